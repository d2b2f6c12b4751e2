"""pgcorpus audit."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from pgcorpus.services.cli.output import (
    AsJson,
    cut,
    cut_json,
    fail,
    print_json,
    progress_bar,
    put,
    say,
    table,
)

if TYPE_CHECKING:
    from pgcorpus.db.models.audit import SecurityAuditLog
    from pgcorpus.services.audit import Progress, Remembered, Verification


app = typer.Typer(
    help=(
        "The audit log: who changed what, with seals that show tampering.\n\n"
        "The database writes it itself, whoever changes a row, the schema, a right or a role. "
        "Members of rag_admin may read it, and nobody may change it."
    ),
    no_args_is_help=True,
)

VALUES_CHARACTERS: Final = 100
VALUE_CHARACTERS: Final = 30
SHA256_DIGITS: Final = 64


def moment(value: str) -> datetime:
    """Parse a date or a time; in UTC where it does not say."""
    try:
        found = datetime.fromisoformat(value.strip())
    except ValueError:
        raise typer.BadParameter(
            f"{value!r} is no time; such as 2026-11-21 or 2026-11-21T13:45:00+01:00"
        ) from None
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def check_seal(value: str | None) -> str | None:
    """Check a seal, for ``--remembered``, before any work begins."""
    if value is not None:
        parse_seal(value)
    return value


def parse_seal(value: str) -> Remembered:
    """Parse a seal as ``audit seal`` and ``audit verify`` print it."""
    from pgcorpus.services.audit import Remembered

    number, _, digest = value.strip().lower().partition(":")
    if not number.isdecimal() or len(digest) != SHA256_DIGITS:
        raise typer.BadParameter(f"{value!r} is no seal; it is NUMBER:HASH, as it was printed")
    return Remembered(int(number), digest)


@app.command()
def show(
    of_table: Annotated[
        str | None, typer.Option("--table", "-t", help="Only changes of this table.")
    ] = None,
    record: Annotated[
        str | None,
        typer.Option(
            "--record",
            "-r",
            help="Only changes of the row with this key, or of a memory or episode with this id.",
        ),
    ] = None,
    actor: Annotated[
        str | None, typer.Option("--actor", "-a", help="Only changes for this actor.")
    ] = None,
    login: Annotated[
        str | None, typer.Option(help="Only changes by this login; faster with --since.")
    ] = None,
    since: Annotated[
        datetime | None,
        typer.Option(parser=moment, metavar="WHEN", help="Only changes from this time on, in UTC."),
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=100_000, help="Changes to show, at most.")] = 50,
    as_json: AsJson = False,
) -> None:
    """Show what was changed, by whom and from where, the newest first.

    Of an update the values that changed are shown, before and after. Vectors and the texts of
    users are keyed hashes: equal ones were equal.

    Example: pgcorpus audit show --table users --since 2026-11-01
    """
    from pgcorpus.db.engine import Database
    from pgcorpus.db.models.audit import list_audited

    with Database.from_env().unit_of_work() as work:
        entries = work.audit.list_entries(
            table=of_table, record=record, actor=actor, login=login, since=since, limit=limit
        )
        rows = [_fields(each) for each in entries]
    if not rows and of_table is not None and of_table not in list_audited():
        say(f"no table {of_table!r} is audited; those that are: {', '.join(list_audited())}")
    if as_json:
        print_json(rows)
        return
    for row in rows:
        about = " ".join(row[name] for name in ("action", "table_name", "record_id") if row[name])
        who = row["user_name"] + (f" for {row['actor']}" if row["actor"] else "")
        put(f"{row['timestamp']:%Y-%m-%d %H:%M:%S}  {' '.join(about.split())}  by {who}")
        put(f"    {_values(row['old_values'], row['new_values'])}")
    if not rows:
        say("no entry is as asked for")


@app.command()
def seal(
    trust_unsigned: Annotated[
        bool,
        typer.Option(
            "--trust-unsigned",
            help="Begin to sign with PGCORPUS_AUDIT_KEY, though the seals so far were made without "
            "it: verify first.",
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Seal what was written since the last time: from then on nobody can change it unnoticed.

    A worker does so every hour. Entries of transactions that are still open are sealed the next
    time. The last seal is printed as NUMBER:HASH: kept outside of the database, it is what
    pgcorpus audit verify --remembered compares with.
    """
    from pgcorpus.db.engine import Database
    from pgcorpus.services.audit import AuditService, Remembered

    made = AuditService(Database.from_env()).seal(trust_unsigned=trust_unsigned)
    entries = sum(month["rows"] for each in made for month in each.months.values())
    last = Remembered(made[-1].number, made[-1].hash.hex()) if made else None
    if as_json:
        print_json({"seals": len(made), "entries": entries, "last_seal": last and last._asdict()})
        return
    say(f"{entries:,} entries sealed; new seals: {len(made)}")
    if last is not None:
        typer.echo(f"{last.number}:{last.hash}")


@app.command()
def verify(
    seal_before: Annotated[
        str | None,
        typer.Option(
            "--remembered",
            callback=check_seal,
            metavar="NUMBER:HASH",
            help="A seal that was noted elsewhere, and must be there as it was.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check that the log is as it was sealed: nothing changed, removed or inserted, by anybody.

    With PGCORPUS_AUDIT_KEY signatures are checked, too: without one, a superuser who rewrites the
    log can make new seals for it. The newest seals can be cut off with the entries under them:
    --remembered tells. Months that retention dropped are listed, and are no fault.

    Exit code 1 if anything is not as it was. What is not sealed yet is counted.
    """
    from pgcorpus.db.engine import Database
    from pgcorpus.services.audit import AuditService

    with _reading() as progress:
        found = AuditService(Database.from_env()).verify(
            remembered=None if seal_before is None else parse_seal(seal_before), progress=progress
        )
    if as_json:
        print_json(found.as_json())
    else:
        _show(found)
    if not found.intact:
        raise typer.Exit(1)


@app.command()
def retain(
    months: Annotated[
        int, typer.Option(min=1, max=1200, help="Months to keep beside the current one.")
    ],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    as_json: AsJson = False,
) -> None:
    """Drop the months of the log that are older, after verifying it; for its owner.

    What is dropped must be sealed. A seal says which month it was, how many entries it had and who
    dropped it: pgcorpus audit verify goes on finding everything else.

    Example: pgcorpus audit retain --months 24
    """
    from pgcorpus.db.engine import Database
    from pgcorpus.services.audit import AuditService

    service = AuditService(Database.from_env())
    droppable = [f"{month:%Y-%m}" for month in service.list_droppable(months)]
    if droppable and not yes:
        typer.confirm(
            f"Drop {', '.join(droppable)} from the audit log for good?", abort=True, err=True
        )
    with _reading() as progress:
        dropped = service.retain(months, progress)
    if as_json:
        print_json({"dropped": [asdict(each) for each in dropped]})
        return
    for each in dropped:
        say(f"{each.month}: {each.rows} entries dropped")
    if not dropped:
        say("no month is old enough")


@contextmanager
def _reading() -> Iterator[Progress]:
    """Provide a progress bar for reading the whole log, partition by partition."""
    with progress_bar("reading the log") as bar:
        yield lambda done, total: bar.update(bar.task_ids[0], completed=done, total=total)


def _show(found: Verification) -> None:
    if found.dropped:
        table(
            "Dropped by retention",
            ["month", "entries", "by", "at"],
            [
                (each.month, each.rows, each.dropped_by, f"{each.dropped_at:%Y-%m-%d %H:%M:%S}")
                for each in found.dropped
            ],
        )
    for each in found.tampering:
        fail(each.detail)
    if found.signatures == "unchecked":
        say("signatures were not checked: PGCORPUS_AUDIT_KEY is not set")
    say(f"{found.sealed} entries under {found.seals} seals, {found.unsealed} not sealed yet")
    if found.intact:
        say("the log is as it was sealed" if found.seals else "nothing is sealed yet")
    if found.last_seal is not None:
        typer.echo(f"{found.last_seal.number}:{found.last_seal.hash}")


def _values(before: dict[str, Any] | None, after: dict[str, Any] | None) -> str:
    """Format a row's values; of a changed row both the former and the new ones."""
    short = partial(cut_json, characters=VALUE_CHARACTERS)
    if before is None or after is None:
        pairs = [f"{name}: {short(value)}" for name, value in (before or after or {}).items()]
    else:
        pairs = [f"{name}: {short(before[name])} → {short(after[name])}" for name in after]
    return cut(", ".join(pairs), VALUES_CHARACTERS)


def _fields(entry: SecurityAuditLog) -> dict[str, Any]:
    return {column.key: getattr(entry, column.key) for column in entry.__table__.columns}
