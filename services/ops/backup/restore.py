"""The restoring of a backup into a database that is empty."""

from __future__ import annotations

import re
import secrets
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from subprocess import PIPE
from typing import Final

from psycopg.conninfo import make_conninfo

from pgcorpus.db import migrations
from pgcorpus.db.engine import Database
from pgcorpus.db.errors import DataLayerError, NotPermitted, NotRestored
from pgcorpus.services.ops.backup.manifest import DUMP, Manifest
from pgcorpus.services.ops.backup.programs import Programs
from pgcorpus.services.ops.backup.store import TIMES, Backup, Progress, require_key

SCRATCH: Final = "pgcorpus_verify_"
"""The beginning of the names of databases that a verification makes, and drops."""

NAME_BYTES: Final = 63

FOR_SUPERUSERS: Final = re.compile(
    r"^\d+; \d+ \d+ (?:EVENT TRIGGER|PUBLICATION|SUBSCRIPTION|COMMENT - EXTENSION)\b"
)
"""Entries of a dump that a superuser alone restores, and no data among them."""


def choose_name(backup: Backup) -> str:
    """Choose a name for the restored database: the original's, and when the backup was made."""
    ending = f"_restored_{backup.manifest.created_at:{TIMES}}".lower()
    original = backup.manifest.database.encode()[: NAME_BYTES - len(ending)]
    return original.decode(errors="ignore") + ending


def restore(
    database: Database, backup: Backup, key: str | None, into: str, progress: Progress
) -> Database:
    """Restore a backup into an empty database, which is made where there is none of the name.

    Every file is compared with its checksum before anything is changed. A database that was made
    is dropped again if the backup cannot be restored.

    Args:
        database: A database of the server, for its owner or a superuser.
        backup: What is restored.
        key: The secret that it is encrypted with, or None.
        into: Name of the database.
        progress: Told how far it is.

    Returns:
        The restored database.

    Raises:
        BackupDamaged: A file is not as it was made.
        NotRestored: The database is not empty, or the server lacks roles or extensions.
        NotPermitted: The login may not make the database, or own what is restored.
        ProgramFailed: ``pg_restore`` is missing, does not fit the server, or failed.
        SettingsError: The backup is encrypted, and there is no key.
    """
    held = backup.manifest
    if held.encrypted:
        require_key(key, backup.name)
    backup.refuse_changed(progress)
    with database.autocommitting() as work:
        programs = Programs.find(database.settings, max(work.backups.find_major(), held.program))
        _refuse_server(work.backups.find_major(), held)
        _refuse_missing_roles(work.backups.list_missing_roles(held.roles))
        made = not work.backups.has_database(into)
        if made:
            _make(database, held, into)
    target = database.beside(into)
    try:
        _refuse_unready(target, held, into)
        with _owning(target, held) as by_superuser:
            _load(programs, target, backup, key, progress, by_superuser=by_superuser)
        with target.autocommitting() as work:
            progress("analyzing", 0, None)
            work.backups.give_database_rights(into, held.database_rights)
            work.backups.analyze_all()
    except BaseException:
        target.close()
        if made:
            drop(database, into)
        raise
    return target


@contextmanager
def restore_for_a_while(
    database: Database, backup: Backup, key: str | None, into: str | None, progress: Progress
) -> Iterator[Database]:
    """Provide a backup restored into a database of its own, which is dropped at the end.

    Args:
        database: A database of the server.
        backup: What is restored.
        key: The secret that it is encrypted with, or None.
        into: An empty database that is there, and is emptied again; None to make one.
        progress: Told how far it is.
    """
    name = into or f"{SCRATCH}{secrets.token_hex(6)}"
    with database.autocommitting() as work:
        was_there = work.backups.has_database(name)
    target = restore(database, backup, key, name, progress)
    try:
        yield target
    finally:
        target.close()
        if was_there:
            migrations.downgrade(target, "base")
            target.close()
        else:
            drop(database, name)


def drop(database: Database, name: str) -> None:
    """Drop a database that was made here; in a thread, which a second Ctrl-C does not stop."""

    def run() -> None:
        with database.autocommitting() as work:
            work.backups.drop_database(name)

    with ThreadPoolExecutor(1, "drop") as thread:
        thread.submit(run).result()


def _refuse_server(major: int, held: Manifest) -> None:
    if major < held.server_major:
        raise NotRestored(
            f"the backup is of PostgreSQL {held.server_major}, and this server is {major}: a dump "
            "is restored into the same version or a newer one. Restore it there"
        )


def _refuse_missing_roles(missing: Sequence[str]) -> None:
    if missing:
        statements = " ".join(f'CREATE ROLE "{each}" NOLOGIN;' for each in missing)
        raise NotRestored(
            f"the server lacks roles that own something in the backup or have a right in it: "
            f"{', '.join(missing)}. Roles are of the whole server and are not in it; let an "
            f"administrator make them, then restore again: {statements}"
        )


def _make(database: Database, held: Manifest, name: str) -> None:
    if len(name.encode()) > NAME_BYTES or "\0" in name or not name.strip():
        raise NotRestored(f"{name!r} is no name of a database: it has 1 to {NAME_BYTES} bytes")
    with database.autocommitting() as work:
        if not work.backups.may_make_databases():
            me = work.backups.find_login()
            raise NotPermitted(
                f"this login may not make databases. Let an administrator run: ALTER ROLE {me} "
                f"CREATEDB; or make an empty one with the extensions "
                f"{', '.join(sorted(held.extensions.keys() - {'plpgsql'}))}, and name it with "
                f"--into: CREATE DATABASE ... OWNER {me}"
            )
        work.backups.make_database(
            name, encoding=held.encoding, collate=held.collate, ctype=held.ctype
        )


def _refuse_unready(target: Database, held: Manifest, name: str) -> None:
    with target.autocommitting() as work:
        if not work.backups.is_empty():
            raise NotRestored(
                f"the database {name} is not empty, and nothing was changed; restore into a new "
                "name: --into NAME"
            )
    lacking = sorted(held.extensions.keys() - _list_extensions(target))
    with target.unit_of_work() as work:
        if closed := work.backups.list_closed_extensions(lacking):
            me = work.backups.find_login()
            raise NotRestored(
                f"this login cannot make the extensions {', '.join(closed)}, which the backup "
                "needs. Let an administrator make an empty database with them, and name it with "
                f"--into NAME: CREATE DATABASE name OWNER {me}; and in it: "
                + " ".join(f"CREATE EXTENSION {each};" for each in closed)
            )


def _list_extensions(target: Database) -> set[str]:
    with target.autocommitting() as work:
        return work.backups.list_extensions()


@contextmanager
def _owning(target: Database, held: Manifest) -> Iterator[bool]:
    """Let this login restore what other roles own: functions of the searches are a role's.

    Yields:
        Whether the login is a superuser, who may without.
    """
    with target.autocommitting() as work:
        backups = work.backups
        if backups.is_superuser():
            yield True
            return
        me = backups.find_login()
        others = [each for each in held.owners if each != me]
        with backups.lend(*others, inherited=True):
            backups.let_make_in_public(*others, allowed=True)
            try:
                yield False
            finally:
                with suppress(DataLayerError):
                    backups.let_make_in_public(*others, allowed=False)


def _load(
    programs: Programs,
    target: Database,
    backup: Backup,
    key: str | None,
    progress: Progress,
    *,
    by_superuser: bool,
) -> None:
    """Run ``pg_restore``, which reads the dump as it is decrypted."""
    entries = _list_entries(programs, backup, key)
    if not by_superuser:
        entries = [each for each in entries if not FOR_SUPERUSERS.match(each)]
    with tempfile.TemporaryDirectory() as folder:
        wanted = Path(folder) / "entries"
        wanted.write_text("\n".join(entries))
        arguments = (
            f"--dbname={make_conninfo('', dbname=target.url.database)}",
            "--single-transaction",  # all of it, or nothing
            "--no-password",
            f"--use-list={wanted}",
        )
        total, done = backup.manifest.files[DUMP].bytes, 0
        with programs.running("pg_restore", *arguments, database=target, stdin=PIPE) as loading:
            assert loading.stdin is not None  # noqa: S101 - a pipe was asked for
            for block in backup.read(DUMP, key):
                loading.stdin.write(block)
                done += len(block)
                progress("restoring", min(done, total), total)
            loading.stdin.close()
            progress("building indexes", 0, None)


def _list_entries(programs: Programs, backup: Backup, key: str | None) -> list[str]:
    """List the entries of the dump, of which its beginning tells."""
    # A file and no pipe: who writes the dump reads nothing meanwhile, and a long list fills a pipe.
    with tempfile.TemporaryFile() as listed:
        with programs.running("pg_restore", "--list", stdin=PIPE, stdout=listed) as listing:
            assert listing.stdin is not None  # noqa: S101 - a pipe was asked for
            with suppress(BrokenPipeError):  # it has read enough
                for block in backup.read(DUMP, key):
                    listing.stdin.write(block)
            with suppress(BrokenPipeError):
                listing.stdin.close()
        listed.seek(0)
        return listed.read().decode().splitlines()
