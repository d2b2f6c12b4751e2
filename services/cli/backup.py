"""pgcorpus backup."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from pgcorpus.services.cli.output import (
    AsJson,
    fail,
    print_json,
    progress_bar,
    put,
    say,
    table,
    warn,
)

if TYPE_CHECKING:
    from pgcorpus.services.ops.backup import verify as verifying
    from pgcorpus.services.ops.backup.store import Backup, Progress, Store


KILO = 1000

app = typer.Typer(
    help="Make, verify, restore and prune backups of the whole database.", no_args_is_help=True
)

Folder = Annotated[
    Path | None,
    typer.Option(
        "--in", metavar="DIR", help="The folder of backups. By default BACKUP_DIR.",
        show_default=False,
    ),
]  # fmt: skip
Named = Annotated[
    str, typer.Argument(metavar="BACKUP", help="Its name or path; latest is the newest whole one.")
]


@app.command()
def create(
    to: Annotated[
        Path | None,
        typer.Option(
            "--to",
            metavar="DIR",
            help="The folder of backups. By default BACKUP_DIR.",
            show_default=False,
        ),
    ] = None,
    questions: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Questions, one a line: verify compares their ten best hits. By default titles.",
            show_default=False,
        ),
    ] = None,
    vectors: Annotated[
        bool, typer.Option(help="Write the vectors as CSV, too, for other programs.")
    ] = True,
    as_json: AsJson = False,
) -> None:
    """Back up the whole database, every tenant's rows included.

    A backup is a folder: a custom-format dump of everything, the schema alone as SQL, the vectors
    as compressed CSV, and a manifest with the number of rows and a checksum of every table. All of
    it is of one snapshot. The folder appears when it is complete. With BACKUP_KEY it is encrypted.

    Log in as the owner of the database, who need not be a superuser. Rows that row security could
    hide are an error, and so is a dump with fewer rows than the snapshot.

    Example: pgcorpus backup create --to /var/backups/pgcorpus
    """  # fmt: skip
    from pgcorpus.db.engine import Database
    from pgcorpus.services.ops.backup import create as making

    asked = _read_questions(questions)
    store = _store(to)
    with _bar(as_json) as progress:
        made = making.create(Database.from_env(), store, progress, questions=asked, vectors=vectors)
    if as_json:
        print_json(_describe(made))
        return
    say(
        f"{made.manifest.rows:,} rows of {len(made.manifest.tables)} tables, "
        f"{_size(made.manifest.size_bytes)}{', encrypted' if made.manifest.encrypted else ''}"
    )
    put(str(made.path))


@app.command("list")
def list_backups(folder: Folder = None, as_json: AsJson = False) -> None:
    """List the backups, the oldest first; exit code 1 if one is not whole.

    Sizes are compared with the manifest; checksums are by verify and restore.
    """
    found = _store(folder).list_backups()
    if as_json:
        print_json(
            [
                {"name": each.name, "problem": each.problem}
                | (_describe(each.backup) if each.backup else {})
                for each in found
            ]
        )
    else:
        table(
            "Backups",
            ["name", "rows", "size", "encrypted"],
            [
                (
                    each.name,
                    f"{each.backup.manifest.rows:,}" if each.backup else "not whole",
                    _size(each.backup.manifest.size_bytes) if each.backup else "",
                    "yes" if each.backup and each.backup.manifest.encrypted else "",
                )
                for each in found
            ],
        )
        for each in found:
            if each.problem:
                fail(each.problem)
    if any(each.problem for each in found):
        raise typer.Exit(1)


@app.command()
def verify(
    named: Named = "latest",
    into: Annotated[
        str | None,
        typer.Option(
            "--into",
            metavar="NAME",
            help="An empty database that is there, and is emptied again. By default one is made.",
            show_default=False,
        ),
    ] = None,
    folder: Folder = None,
    as_json: AsJson = False,
) -> None:
    """Restore a backup into a database of its own, compare it with the manifest, and drop it.

    Compared are the checksum of every file, the rows and checksum of every table, sequences,
    indexes, grants, row security, the schema, the seals of the audit log, the nearest vectors of
    some, and the ten best hits of the saved questions. Exit code 1 if anything differs.
    """
    from pgcorpus.db.engine import Database
    from pgcorpus.services.ops.backup import verify as verifying

    store = _store(folder)
    backup = store.find(named)
    with _bar(as_json) as progress:
        found = verifying.verify(Database.from_env(), backup, store.key, progress, into=into)
    _show(found, as_json)


@app.command()
def restore(
    named: Named,
    into: Annotated[
        str | None,
        typer.Option(
            "--into",
            metavar="NAME",
            help="The new database, or an empty one. By default a new name with the time.",
            show_default=False,
        ),
    ] = None,
    folder: Folder = None,
    as_json: AsJson = False,
) -> None:
    """Restore a backup into a new database beside the present one, and compare it.

    The present database stays as it is. The server is that of DATABASE_URL. Once the new database
    is as it should be, point DATABASE_URL to it.

    Example: pgcorpus backup restore latest --into pgcorpus_restored
    """  # fmt: skip
    from pgcorpus.db.engine import Database
    from pgcorpus.services.ops.backup import restore as restoring
    from pgcorpus.services.ops.backup import verify as verifying

    store = _store(folder)
    backup = store.find(named)
    name = into or restoring.choose_name(backup)
    with _bar(as_json) as progress:
        restored = restoring.restore(Database.from_env(), backup, store.key, name, progress)
        found = verifying.compare(restored, backup, store.key, progress)
        restored.close()
    _show(found, as_json)
    say(f"restored into the database {name}; use it with DATABASE_URL=.../{name}")


@app.command()
def prune(
    days: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=36_500,
            help="Age from which backups go. By default BACKUP_RETENTION_DAYS.",
            show_default=False,
        ),
    ] = None,
    folder: Folder = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list what would go.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    as_json: AsJson = False,
) -> None:
    """Delete old backups. The newest whole one stays, however old it is.

    What is not whole is not deleted, but listed by pgcorpus backup list.
    """  # fmt: skip
    from pgcorpus.db.settings import Settings

    store = _store(folder)
    kept_days = days or Settings.from_env().backup_retention_days
    with _bar(as_json) as progress:
        old = store.list_old(kept_days, datetime.now(UTC), progress)
    if old and not (yes or dry_run):
        if not sys.stdin.isatty():
            fail(f"{len(old)} backups would be deleted; to agree: pgcorpus backup prune --yes")
            raise typer.Exit(2)
        typer.confirm(
            f"Delete {', '.join(each.name for each in old)} for good?", abort=True, err=True
        )
    if not dry_run:
        for each in old:
            store.delete(each)
    if as_json:
        print_json({"deleted": [each.name for each in old], "dry_run": dry_run})
        return
    for each in old:
        say(f"{each.name} {'would be deleted' if dry_run else 'deleted'}")
    if not old:
        say(f"no backup is older than {kept_days} days, or it is the last whole one")


def _store(folder: Path | None) -> Store:
    from pgcorpus.db.settings import Settings
    from pgcorpus.services.ops.backup.store import Store

    settings = Settings.from_env()
    return Store(folder or settings.backup_folder, settings.backup_key)


def _read_questions(path: Path | None) -> list[str]:
    if path is None:
        return []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise typer.BadParameter(
            f"{path} cannot be read: {error}", param_hint="--questions"
        ) from error
    return [line.strip() for line in lines if line.strip()]


@contextmanager
def _bar(as_json: bool) -> Iterator[Progress]:
    """Provide a progress bar with one line for each stage."""
    signal.signal(signal.SIGTERM, _end)
    if as_json:
        yield lambda *_: None
        return
    with progress_bar() as bar:
        tasks: dict[str, Any] = {}

        def tell(stage: str, done: int, total: int | None) -> None:
            if stage not in tasks:
                for before in tasks.values():
                    bar.update(before, total=1, completed=1)
                tasks[stage] = bar.add_task(stage, total=total)
            bar.update(tasks[stage], completed=done, total=total)

        yield tell
        for task in tasks.values():
            bar.update(task, total=1, completed=1)


def _end(number: int, _frame: object) -> NoReturn:
    """End in order, as Ctrl-C does: what is unfinished is deleted."""
    sys.exit(128 + number)


def _show(found: verifying.Verification, as_json: bool) -> None:
    if as_json:
        print_json(found.as_json())
    else:
        table(
            f"{found.backup}, restored into {found.database}",
            ["compared", "number", "result"],
            [
                (
                    each.name,
                    f"{each.compared:,}",
                    f"{len(each.differences)} differ" if each.differences else "the same",
                )
                for each in found.checks
            ],
        )
        for each in found.checks:
            for difference in each.differences:
                fail(f"{each.name}: {difference}")
        if not found.is_same:
            warn("the restored database differs from the backup")
    if not found.is_same:
        raise typer.Exit(1)


def _describe(backup: Backup) -> dict[str, Any]:
    held = backup.manifest
    return {
        "name": backup.name,
        "path": str(backup.path),
        "created_at": held.created_at,
        "database": held.database,
        "revision": held.revision,
        "server": held.server,
        "encrypted": held.encrypted,
        "tables": len(held.tables),
        "rows": held.rows,
        "bytes": held.size_bytes,
        "files": {name: each.bytes for name, each in held.files.items()},
    }


def _size(size_bytes: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if size_bytes < KILO:
            return f"{size_bytes:,.0f} {unit}" if unit == "B" else f"{size_bytes:,.1f} {unit}"
        size_bytes /= KILO
    return f"{size_bytes:,.1f} TB"
