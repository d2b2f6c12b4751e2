"""The making of a backup, in one snapshot, with every row counted."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from importlib.metadata import version
from typing import IO, Any, Final, cast

from pgcorpus.db import migrations
from pgcorpus.db.engine import Database
from pgcorpus.db.errors import DatabaseNotReady, DataLayerError, NotPermitted, RowsMissing
from pgcorpus.db.repositories.operations.backups import EVALUATIONS, Fingerprint
from pgcorpus.db.search.corpora import list_corpora
from pgcorpus.db.search.corpus import Corpus
from pgcorpus.db.uow import UnitOfWork
from pgcorpus.services.ops.backup.counting import RowCounter
from pgcorpus.services.ops.backup.encryption import require_cryptography
from pgcorpus.services.ops.backup.manifest import DUMP, QUESTIONS, SCHEMA, Manifest
from pgcorpus.services.ops.backup.programs import Programs
from pgcorpus.services.ops.backup.store import (
    BLOCK_BYTES,
    Backup,
    Progress,
    Store,
    Unfinished,
    Writer,
)
from pgcorpus.services.search.service import SearchService

TITLES: Final = 3
"""Questions that are kept of each corpus that is searched without a scope, with their hits."""

PROBES: Final = 3
"""Vectors of each corpus whose neighbours are kept."""

HITS: Final = 10

COMPRESSION: Final = 1
"""Level of gzip. Digits of vectors gain nothing by a higher one."""


def create(
    database: Database,
    store: Store,
    progress: Progress,
    *,
    questions: Sequence[str] = (),
    vectors: bool = True,
) -> Backup:
    """Back up the whole database.

    Args:
        database: Whose owner, or a superuser, is logged in.
        store: Where the backup is kept.
        progress: Told how far it is.
        questions: Asked of every corpus that is searched without a scope; titles of passages
            are asked without. ``verify`` compares their ten best hits.
        vectors: Write the vectors as CSV, too, as other programs read them.

    Returns:
        The backup, which is on disk.

    Raises:
        RowsMissing: Row security hides rows, or the dump lacks some; nothing is kept.
        NotPermitted: The login may not read everything.
        ProgramFailed: ``pg_dump`` is missing, does not fit the server, or failed.
        BackupError: The folder cannot be written to.
        TransactionConflict: Another backup is being made.
        DatabaseNotReady: The schema is not there.
        DatabaseUnavailable: The database did not answer.
    """
    revision = migrations.current(database)
    if revision is None:
        raise DatabaseNotReady("the database has no schema yet; make it with: pgcorpus db upgrade")
    if store.key is not None:
        require_cryptography()
    with database.exclusively("backing up"), store.begin(datetime.now(UTC)) as unfinished:
        with database.unit_of_work() as work:
            work.operations.require_writable()
            work.backups.fail_abandoned()
            work.commit()
        asked = _ask(database, questions)
        number = None
        try:
            with reading(database) as work:  # its snapshot does not see the note of itself
                number = _begin_log(database, unfinished)
                maker = _Maker(database, work, unfinished, progress)
                backup = maker.make(asked, revision.revision, vectors=vectors)
        except BaseException as error:
            with suppress(DataLayerError):
                number = number or _begin_log(database, unfinished)
                with database.unit_of_work() as work:
                    work.backups.fail_log(number, _sum_up(error))
                    work.commit()
            raise
        with database.unit_of_work() as work:
            held = backup.manifest
            work.backups.complete_log(number, size_bytes=held.size_bytes, rows=held.rows)
            work.commit()
    return backup


@contextmanager
def reading(database: Database, *, as_found: bool = False) -> Iterator[UnitOfWork]:
    """Provide a snapshot in which every row of every table is seen, or raise.

    The session becomes the role of backups, which row security shows all rows, unless the login
    passes over row security by itself.

    Args:
        database: Which.
        as_found: Give the role no rights that it lacks.

    Raises:
        RowsMissing: A policy may hide rows.
        NotPermitted: The login may not read a table, or may not become that role.
    """
    with ExitStack() as stack:
        reader = None
        with database.autocommitting() as aside:
            passes = aside.backups.passes_row_security()
        if not passes:
            lender = stack.enter_context(database.autocommitting())
            if not as_found:
                lender.backups.let_reader_read()
            reader = lender.backups.find_reader()
            if reader is not None:
                stack.enter_context(lender.backups.lend(reader))
        work = stack.enter_context(database.snapshot())
        if reader is not None:
            work.backups.become(reader)
        if closed := work.backups.list_unreadable():
            raise NotPermitted(
                f"this login may not read {', '.join(closed)}; let its owner run: "
                f'GRANT SELECT ON {closed[0]} TO "{reader or "this login"}"'
            )
        if hidden := work.backups.list_hidden():
            raise RowsMissing(
                f"row security may hide rows of {', '.join(hidden)}, and no backup is made that "
                "would lack them. The policy named backup must show every row, and no other may "
                f"take any away. Drop the one that does (DROP POLICY ... ON {hidden[0]}): the next "
                "backup makes its own anew"
            )
        yield work


def find_reader(work: UnitOfWork) -> str | None:
    """Return the role that ``pg_dump`` must become to see every row, or None."""
    return None if work.backups.passes_row_security() else work.backups.find_reader()


def fingerprint_all(work: UnitOfWork, progress: Progress) -> dict[str, Fingerprint]:
    """Read every table; after ``write_alike``."""
    tables = work.backups.list_tables()
    total = sum(max(each.about, 1) for each in tables)
    done = 0
    found = {}
    for each in tables:
        progress("reading tables", done, total)
        found[each.key] = work.backups.take_fingerprint(each)
        done += max(each.about, 1)
    progress("reading tables", total, total)
    return found


def find_drift(database: Database) -> list[str]:
    """Return the differences between schema and models; none are known at an older revision."""
    newest = migrations.history(database)[-1]
    return migrations.drift(database) if newest.applied else []


def ask(database: Database, corpus: Corpus, question: str) -> list[str]:
    """Return the ids of the ten best hits of a search by words."""
    page = SearchService(database).search(question, corpus=corpus.name, mode="text", limit=HITS)
    return [str(hit.id) for hit in page.hits]


def _ask(database: Database, questions: Sequence[str]) -> dict[str, dict[str, list[str]]]:
    """Ask questions of every corpus that is searched without a scope, and keep the hits."""
    asked: dict[str, dict[str, list[str]]] = {}
    for corpus in list_corpora():
        if corpus.needs_scope:
            continue
        with database.unit_of_work() as work:
            titles = questions or work.backups.list_titles(corpus, limit=TITLES)
        found = {}
        for title in titles:
            with suppress(DataLayerError):  # a title may hold nothing that can be asked
                found[title] = ask(database, corpus, title)
        asked[corpus.name] = found
    return asked


def _sum_up(error: BaseException) -> str:
    if isinstance(error, KeyboardInterrupt):
        return "stopped by Ctrl-C"
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def _begin_log(database: Database, unfinished: Unfinished) -> int:
    with database.unit_of_work() as work:
        number = work.backups.begin_log(unfinished.final.name, encrypted=unfinished.encrypted)
        work.commit()
    return number


class _Maker:
    """Writes the files of a backup from one snapshot."""

    def __init__(
        self, database: Database, work: UnitOfWork, unfinished: Unfinished, progress: Progress
    ) -> None:
        self._database = database
        self._work = work
        self._unfinished = unfinished
        self._progress = progress
        self._programs = Programs.find(database.settings, work.backups.find_major())

    def make(
        self, asked: dict[str, dict[str, list[str]]], revision: str, *, vectors: bool
    ) -> Backup:
        """Write everything, the manifest last."""
        work = self._work
        snapshot = work.backups.export_snapshot()
        taken_at = datetime.now(UTC)
        about = work.backups.describe_database()
        seal = work.backups.find_last_seal()
        nearest = {}
        for corpus in list_corpora():
            nearest[corpus.name] = work.backups.list_nearest(corpus, probes=PROBES)
            if vectors:
                self._write_vectors(corpus)
        self._write_json(QUESTIONS, {"asked": asked, "nearest": nearest})
        reader = self._reader()
        work.backups.write_alike()
        manifest = Manifest(
            created_at=taken_at,
            version=version("pgcorpus"),
            revision=revision,
            drift=find_drift(self._database),
            server=about["server_version"],
            server_major=about["server_major"],
            program=self._programs.major,
            database=about["name"],
            encoding=about["encoding"],
            collate=about["collate"],
            ctype=about["ctype"],
            extensions=about["extensions"],
            roles=list(work.backups.list_roles()),
            owners=list(work.backups.list_owners()),
            database_rights=[(role, right) for role, right in about["grants"]],
            encrypted=self._unfinished.encrypted,
            tables=fingerprint_all(work, self._progress),
            sequences=work.backups.list_sequences(),
            indexes=[*work.backups.list_indexes()],
            grants=list(work.backups.list_grants()),
            row_security=list(work.backups.list_row_security()),
            last_seal=seal,
        )
        arguments = [
            f"--snapshot={snapshot}",
            f"--exclude-schema={EVALUATIONS}",
            "--no-password",
            *reader,
        ]
        self._write_schema(arguments)
        self._write_dump(arguments, manifest)
        return self._unfinished.finish(manifest)

    def _reader(self) -> list[str]:
        """Return the options by which ``pg_dump`` sees every row."""
        with self._database.autocommitting() as aside:
            reader = find_reader(aside)
        return [] if reader is None else [f"--role={reader}", "--enable-row-security"]

    def _write_vectors(self, corpus: Corpus) -> None:
        name = f"vectors_{corpus.name}.csv.gz"
        with self._unfinished.write(name) as writer, _compressing(writer) as compressed:

            def write(block: bytes) -> None:
                compressed.write(block)
                self._progress("writing vectors", writer.bytes, None)

            self._work.backups.copy_vectors(corpus, write)

    def _write_json(self, name: str, content: Any) -> None:
        with self._unfinished.write(name) as writer:
            writer.add(json.dumps(content, ensure_ascii=False, indent=1, sort_keys=True).encode())

    def _write_schema(self, arguments: Sequence[str]) -> None:
        with (
            self._unfinished.write(SCHEMA) as writer,
            self._programs.running(
                "pg_dump", "--schema-only", *arguments, database=self._database
            ) as dumping,
        ):
            for block in _blocks(dumping.stdout):
                writer.add(block)

    def _write_dump(self, arguments: Sequence[str], manifest: Manifest) -> None:
        """Write the dump, and count its rows.

        Raises:
            RowsMissing: A table has not as many as the snapshot.
        """
        counter = RowCounter()
        with (
            self._unfinished.write(DUMP) as writer,
            self._programs.running(
                "pg_dump", "--format=custom", *arguments, database=self._database
            ) as dumping,
            counter.counting(self._programs) as counting,
        ):
            for block in _blocks(dumping.stdout):
                writer.add(block)
                counting.write(block)
                self._progress("writing the dump", writer.bytes, None)
        wrong = [
            f"{table} ({counter.rows[table]:,} of {each.rows:,})"
            for table, each in manifest.tables.items()
            if counter.rows[table] != each.rows
        ]
        if wrong:
            raise RowsMissing(
                f"the dump has not the rows that the database has: {', '.join(wrong)}; it was not "
                "kept"
            )


@contextmanager
def _compressing(writer: Writer) -> Iterator[IO[bytes]]:
    class _Output:
        def write(self, data: bytes) -> int:
            writer.add(bytes(data))
            return len(data)

        def flush(self) -> None:
            """Do nothing: the writer keeps nothing back but an encrypted chunk."""

    with gzip.GzipFile(
        fileobj=cast("IO[bytes]", _Output()), mode="wb", compresslevel=COMPRESSION, mtime=0
    ) as compressed:
        yield cast("IO[bytes]", compressed)


def _blocks(stream: IO[bytes] | None) -> Iterator[bytes]:
    assert stream is not None  # noqa: S101 - a pipe was asked for
    while block := stream.read(BLOCK_BYTES):
        yield block
