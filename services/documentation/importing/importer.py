"""The import of documents: what is unchanged costs nothing, and what moved keeps its vectors."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import sha256
from operator import attrgetter
from pathlib import Path
from typing import Final
from urllib.parse import quote
from uuid import UUID

from pgcorpus.db.choices import DEFAULT_COLLECTION
from pgcorpus.db.engine import Database
from pgcorpus.db.errors import ConstraintViolated, ImportFailed, InvalidValue
from pgcorpus.db.models.embeddings import EmbeddingModel
from pgcorpus.db.repositories.documentation.documents import (
    DocumentRecord,
    DocumentState,
    Move,
    Written,
)
from pgcorpus.db.scope import Scope
from pgcorpus.db.uow import UnitOfWork
from pgcorpus.services.documentation.chunker import DEFAULT_CONFIG, ChunkerConfig
from pgcorpus.services.documentation.drafting import Drafting
from pgcorpus.services.documentation.identity import name_content, name_prefix
from pgcorpus.services.documentation.importing.report import DocumentationReport
from pgcorpus.services.documentation.importing.sources import Root, Source, find_roots
from pgcorpus.services.documentation.importing.sqlite import DatabaseFilling, is_database, read_zone
from pgcorpus.services.documentation.reading.document import Unreadable
from pgcorpus.services.documentation.reading.formats import read_document
from pgcorpus.services.documentation.rules import MAX_COLLECTION_BYTES, check_name
from pgcorpus.services.importers.files import printable
from pgcorpus.services.importers.importer import (
    Bar,
    Importer,
    Passages,
    Run,
    ahead,
    merge_apart,
)
from pgcorpus.services.importers.language import DEFAULT_LANGUAGE
from pgcorpus.services.importers.report import COUNTS, FileReport, Skipped

CORPUS: Final = "documentation"

BULK_BYTES: Final = 1024**2
"""Size of the files from which on building indexes anew takes less time than keeping them up."""

BATCH: Final = 3000
"""Chunks of a transaction: while one batch is written, the next is read. With batches of 1,000 an
import of 59,000 chunks took a tenth longer."""


class DocumentationImporter(Importer[DocumentationReport]):
    """Imports files, folders, zips and patterns; some thousand chunks in a transaction.

    A file that is stored with the same content is not read. Of a changed one only the chunks that
    changed are embedded anew. A document whose file was moved keeps its vectors; one whose file is
    gone stays, unless it is pruned. A run that is stopped is finished by the next.

    Args:
        database: Where to.
        scope: The tenant whose documents they are; None: they are everybody's.
        collection: The collection that they belong to.
        base_url: Address of the folder, for relative links and citations; its files are below it.
        prune: Delete documents whose files are gone from the folders that are imported.
        max_tokens: Tokens of a chunk at most, 8 to 8192.
        overlap_tokens: Tokens at most that a chunk repeats from the one before it.
        time_zone: Zone of the times of clicks in old SQLite files, which name none.
        dry_run: Report what would be done, and write nothing.
        language: The text search configuration of what names no language; ``auto`` finds it.
    """

    corpus = CORPUS

    def __init__(
        self,
        database: Database,
        scope: Scope | None = None,
        *,
        collection: str = DEFAULT_COLLECTION,
        base_url: str | None = None,
        prune: bool = False,
        max_tokens: int = DEFAULT_CONFIG.max_tokens,
        overlap_tokens: int = DEFAULT_CONFIG.overlap_tokens,
        time_zone: str = "UTC",
        dry_run: bool = False,
        language: str = DEFAULT_LANGUAGE,
    ) -> None:
        super().__init__(database, strict=False, dry_run=dry_run, language=language)
        self.scope = scope
        self._collection = collection
        self._base_url = base_url
        self._prune = prune
        self._zone = read_zone(time_zone)
        self._config = ChunkerConfig(max_tokens=max_tokens, overlap_tokens=overlap_tokens)

    def _run(self, paths: Sequence[Path], bar: Bar) -> DocumentationReport:
        started = time.monotonic()
        check_name("collection", self._collection, MAX_COLLECTION_BYTES)
        with self._open_work() as work:
            work.documentation.require_writable()
            if self.scope is not None:
                work.tenancy.require_scope()
        databases = [path for path in paths if is_database(path)]
        files = [path for path in paths if path not in databases]
        with ExitStack() as opened:
            roots = find_roots(files, opened)
            bar.total = sum(source.size_bytes for root in roots for source in root.sources)
            bar.total += sum(path.stat().st_size for path in databases)
            run = opened.enter_context(
                self._record_run(
                    DocumentationReport(CORPUS),
                    paths=[printable(path) for path in paths],
                    scope=None if self.scope is None else str(self.scope),
                    collection=self._collection,
                    prune=self._prune,
                )
            )
            drafting = Drafting(
                collection=self._collection,
                config=self._config,
                language=run.language,
                lineage_id=str(run.id),
            )
            if bar.total >= BULK_BYTES and not self._dry_run:
                filled = attrgetter("documentation")
                models = self._list_models() if databases else ()
                opened.enter_context(self._build_indexes_last(run, bar, filled, models))
            filling = _DocumentationRun(run, roots, drafting, self._base_url)
            filling.move_renamed()
            filling.take_all(bar)
            filling.end(prune=self._prune)
            for path in databases:
                DatabaseFilling(run, drafting, path, self._zone).take_all(bar)
        run.report.duration_s = round(time.monotonic() - started, 3)
        return run.report

    def _list_models(self) -> Sequence[EmbeddingModel]:
        """Return the models whose vectors an old file may bring along."""
        with self._open_work() as work:
            return work.models.list_models()

    def _passages(self, work: UnitOfWork) -> Passages:
        return work.documentation


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A file after it was read.

    Attributes:
        source: The file.
        digest: SHA-256 of its content, in hexadecimal digits; empty where it could not be read.
        record: Its document; None where it is stored already, or refused.
        stored: The document that is stored at its path.
        error: Why it is refused, or None.
    """

    source: Source
    digest: str = ""
    record: DocumentRecord | None = None
    stored: DocumentState | None = None
    error: str | None = None

    @property
    def chunks(self) -> int:
        """The number of chunks that are written for it."""
        return 0 if self.record is None else len(self.record.chunks)

    @property
    def is_unchanged(self) -> bool:
        """True if it is stored as it is."""
        return self.record is None and self.error is None

    def refuse_for(self, error: ConstraintViolated) -> _Candidate:
        """Return the same file, refused; raise *error* if it was refused before."""
        if self.record is None:
            raise error
        # Some messages of the database quote what they are about.
        reason = str(error) if error.constraint else "the database refuses one of its values"
        return _Candidate(self.source, self.digest, error=reason)


@dataclass
class _DocumentationRun:
    """One call of the importer, under way."""

    run: Run[DocumentationReport]
    roots: Sequence[Root]
    drafting: Drafting
    base_url: str | None
    _stored: dict[str, DocumentState] = field(default_factory=dict)
    _missing: dict[UUID, DocumentState] = field(default_factory=dict)
    _digests: dict[str, str] = field(default_factory=dict)

    @property
    def collection(self) -> str:
        """The collection that is filled."""
        return self.drafting.collection

    @cached_property
    def sources(self) -> Sequence[Source]:
        """The files, each once, however often it was named."""
        found: dict[str, Source] = {}
        for root in self.roots:
            for source in root.sources:
                found.setdefault(source.key, source)
        return list(found.values())

    def move_renamed(self) -> None:
        """Find what is stored, and give documents the paths that their files have now."""
        with self.run.transaction() as work:
            has_any = work.documentation.has_any(self.collection)
        if not has_any:
            return
        self._digests = dict(self._hash_all())
        with self.run.transaction() as work:
            work.imports.lock(CORPUS)
            stored = {s.path: s for s in work.documentation.list_stored(self.collection)}
            missing = self._find_missing(stored)
            moves = plan_moves(stored, missing, self._digests)
            if moves:
                work.documentation.move(moves, collection=self.collection)
        by_key = {each.id: each for each in stored.values()}
        for move in moves:
            stored.pop(by_key[move.id].path, None)
        # What was moved is read again: its address has changed with its path.
        stored |= {each.path: by_key[each.id]._replace(path=each.path, hash=None) for each in moves}
        self._stored = stored
        self._missing = {each.id: each for each in missing if stored.get(each.path) is each}
        self.run.report.moved = len(moves)

    def take_all(self, bar: Bar) -> None:
        """Import every file, in batches."""
        report = self.run.report
        for root in self.roots:
            report.skipped += [Skipped(*each) for each in root.skipped]
            report.other_formats += root.others
        with closing(ahead(self._read_batches())) as batches:
            for batch in batches:
                for candidate in batch:
                    if candidate.is_unchanged:
                        self._report(candidate, None, bar)
                self._merge([each for each in batch if not each.is_unchanged], bar)

    def end(self, *, prune: bool) -> None:
        """Delete the documents whose files are gone, or count them."""
        self.run.report.missing = len(self._missing)
        if prune and self._missing:
            with self.run.transaction() as work:
                work.imports.lock(CORPUS)
                self.run.report.pruned = work.documentation.delete(self._missing)
            self.run.report.missing = 0

    def _hash_all(self) -> Iterator[tuple[str, str]]:
        """Yield the path and the hash of every file that can be read."""
        for source in self.sources:
            if source.error is None:
                with suppress(ImportFailed):  # it is told when the file is read
                    yield source.path, sha256(source.read()).hexdigest()

    def _find_missing(self, stored: Mapping[str, DocumentState]) -> list[DocumentState]:
        """Return the stored documents of the given folders whose files are gone."""
        present = {source.path for source in self.sources}
        prefixes = tuple(root.prefix for root in self.roots if root.prefix is not None)
        # Of what could not be looked into, nothing is known to be gone.
        closed = tuple(f"{source.path}/" for source in self.sources if source.error is not None)
        return [
            each
            for path, each in stored.items()
            if path.startswith(prefixes) and path not in present and not path.startswith(closed)
        ]

    def _read_batches(self) -> Iterator[list[_Candidate]]:
        """Yield the files of each transaction: while it is written, those of the next are read."""
        batch: list[_Candidate] = []
        chunks = 0
        for candidate in self._read_all():
            batch.append(candidate)
            chunks += candidate.chunks
            if chunks >= BATCH or len(batch) >= BATCH:
                yield batch
                batch, chunks = [], 0
        yield batch

    def _read_all(self) -> Iterator[_Candidate]:
        seen: dict[str, str] = {}
        for source in self.sources:
            if source.path in seen:
                other = seen[source.path]
                yield _Candidate(source, error=f"its path in the collection is that of {other}")
            else:
                seen[source.path] = source.name
                yield self._read(source)

    def _read(self, source: Source) -> _Candidate:
        """Read a file, unless it is stored as it is."""
        if source.error is not None:
            return _Candidate(source, error=source.error)
        stored = self._stored.get(source.path)
        base = None if self.base_url is None else _join(self.base_url, source.inner)
        if stored is not None and self._is_current(stored, base):
            return _Candidate(source, stored=stored)
        try:
            content = source.read()
            document = read_document(content, name=source.path, base=base)
            record = self.drafting.draft(
                document,
                path=source.path,
                digest=sha256(content).hexdigest(),
                source_url=document.source_url or base,
            )
        except (ImportFailed, InvalidValue, Unreadable) as error:
            return _Candidate(source, error=str(error))
        return _Candidate(source, record.hash or "", record, stored)

    def _is_current(self, stored: DocumentState, base: str | None) -> bool:
        """Return whether a document is stored as its file would be read now."""
        return (
            stored.hash is not None
            and stored.hash == self._digests.get(stored.path)
            and (stored.chunker is None or stored.chunker == self.drafting.chunker)
            and (base is None or stored.source_url is not None)
        )

    def _merge(self, batch: Sequence[_Candidate], bar: Bar) -> None:
        for written in merge_apart(batch, self._write, _Candidate.refuse_for):
            for candidate, chunks in written:
                self._report(candidate, chunks, bar)

    def _write(self, batch: Sequence[_Candidate]) -> list[tuple[_Candidate, Written | None]]:
        """Write a batch in a transaction of its own."""
        records = [each.record for each in batch if each.record is not None]
        with self.run.transaction() as work:
            work.imports.lock(CORPUS)
            if moves := self._find_edited(work, batch):
                work.documentation.move(moves, collection=self.collection)
            written = work.documentation.write(records) if records else {}
            for each in batch:
                counts = _count(written.get((self.collection, each.source.path)))
                digest = bytes.fromhex(each.digest) or None
                self.run.add_file(work, each.source.key, counts, error=each.error, sha256=digest)
        return [(each, written.get((self.collection, each.source.path))) for each in batch]

    def _find_edited(self, work: UnitOfWork, batch: Sequence[_Candidate]) -> list[Move]:
        """Find the documents whose files were moved to a path of the batch, and edited.

        A new file is an old one if it says most of what that said.
        """
        new = [each.record for each in batch if each.record is not None and each.stored is None]
        if not new or not self._missing:
            return []
        said: dict[str, list[UUID]] = defaultdict(list)
        for document_id, chunk_id in work.documentation.list_chunk_names(self._missing):
            said[name_content(chunk_id)].append(document_id)
        moves = []
        taken: set[UUID] = set()
        for record in new:
            shared = Counter(
                each
                for chunk in record.chunks
                for each in said.get(name_content(chunk.chunk_id), ())
            )
            for document_id, count in shared.most_common():
                former = self._missing[document_id]
                if document_id not in taken and count * 2 >= former.chunks:
                    taken.add(document_id)
                    moves.append(_move(former, record.path))
                    break
        return moves

    def _report(self, candidate: _Candidate, written: Written | None, bar: Bar) -> None:
        """Report a file, now that its transaction was kept."""
        report, source = self.run.report, candidate.source
        counts = _count(written)
        if candidate.is_unchanged and candidate.stored is not None:
            counts["unchanged"] = candidate.stored.chunks
            report.unchanged_documents += 1
        report.files.append(FileReport(source.name, Counter(counts), candidate.error))
        report.documents += candidate.error is None
        if written is not None:
            report.deleted += written.deleted
            report.moved += self._missing.pop(written.id, None) is not None
        bar.finish(source.size_bytes)


def plan_moves(
    stored: Mapping[str, DocumentState],
    missing: Collection[DocumentState],
    digests: Mapping[str, str],
) -> list[Move]:
    """Find the documents whose files have other paths now, with the same content.

    Args:
        stored: Path → document.
        missing: Those whose files are gone.
        digests: Path → SHA-256 of the file that is there now.

    Returns:
        The moves. Two documents may have changed places, and one may have taken the path of
        another.
    """
    gone = {each.id for each in missing}
    left: dict[str, list[DocumentState]] = defaultdict(list)
    for path, each in stored.items():
        is_other = path in digests and digests[path] != each.hash
        if each.hash is not None and (each.id in gone or is_other):
            left[each.hash].append(each)
    moves = []
    for path, digest in digests.items():
        here = stored.get(path)
        if (here is None or here.hash != digest) and left[digest]:
            moves.append(_move(left[digest].pop(0), path))
    return moves


def _move(former: DocumentState, path: str) -> Move:
    return Move(former.id, path, name_prefix(former.path), name_prefix(path))


def _count(written: Written | None) -> dict[str, int]:
    counts = dict.fromkeys(COUNTS, 0)
    if written is not None:
        counts |= {name: getattr(written, name) for name in ("added", "updated", "unchanged")}
    return counts


def _join(base: str, path: str) -> str:
    return f"{base.rstrip('/')}/{quote(path)}"
