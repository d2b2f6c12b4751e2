"""pgcorpus maintenance."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import typer

from pgcorpus.services.cli.output import (
    AsJson,
    Limit,
    cut,
    cut_json,
    fail,
    print_json,
    progress_bar,
    put,
    say,
    table,
    warn,
)
from pgcorpus.services.ops.maintenance.report import MaintenanceReport, Operation

if TYPE_CHECKING:
    from pgcorpus.db.models.operations import MaintenanceLog
    from pgcorpus.services.ops.maintenance.service import OnStep
    from pgcorpus.services.ops.maintenance.steps import Request, Step


app = typer.Typer(
    help=(
        "Maintain the database while searches run, and see what was done.\n\n"
        "For the owner of the tables; from PostgreSQL 17 on also for members of rag_admin. One run "
        "at a time; each step is logged."
    ),
    no_args_is_help=True,
)

DETAIL_CHARACTERS: Final = 100
SHOWN: Final = 15
MEGABYTE: Final = 1024**2
SIZES: Final = ("bytes", "index_bytes", "toast_bytes")


@app.command()
def weekly(as_json: AsJson = False) -> None:
    """Do what is done each week.

    Drop what rebuilds left, make partitions ahead, renew statistics, rebuild indexes of vectors
    where that is worth its while, delete old timings and jobs, vacuum, and report sizes.

    Exit code 1 if a step failed; the others are done nevertheless.
    """
    from pgcorpus.services.ops.maintenance.steps import WEEKLY, Request

    _run(Request(WEEKLY, all_indexes=False), as_json)


@app.command()
def monthly(as_json: AsJson = False) -> None:
    """Do what is done each month: as weekly, but for indexes of all kinds, and offer updates.

    Updates of extensions are listed with their statement, and not done.

    Exit code 1 if a step failed; the others are done nevertheless.
    """
    from pgcorpus.services.ops.maintenance.steps import MONTHLY, Request

    _run(Request(MONTHLY), as_json)


@app.command()
def now(
    task: Annotated[Operation, typer.Argument(metavar="TASK", help="The task.")],
    only: Annotated[
        str | None,
        typer.Option(
            help="Only this table, or with reindex this index, which is built anew in any case."
        ),
    ] = None,
    full: Annotated[
        bool,
        typer.Option(
            "--full",
            help="With vacuum and --only: write the table anew, to give its space back. Searches "
            "of it wait meanwhile.",
        ),
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    as_json: AsJson = False,
) -> None:
    """Do one task now: for all tables and indexes, or one.

    TASK is leftover_indexes, partitions, statistics_update, reindex, retention, vacuum,
    bloat_report or extension_updates.

    Example: pgcorpus maintenance now reindex --only idx_embeddings_vector
    """
    from pgcorpus.services.ops.maintenance.steps import Request

    if full and (task != "vacuum" or only is None):
        raise typer.BadParameter("--full is for: now vacuum --only TABLE", param_hint="--full")
    if full and not yes:
        typer.confirm(
            f"Searches and writes of {only} wait until it is written anew. Go on?",
            abort=True,
            err=True,
        )
    _run(Request((task,), only=only, full=full), as_json)


@app.command()
def log(
    operation: Annotated[
        Operation | None, typer.Option("--task", "-t", help="Only steps of this task.")
    ] = None,
    limit: Limit = 50,
    as_json: AsJson = False,
) -> None:
    """Show the steps that were done, the newest first. For the owner and members of rag_admin."""
    from pgcorpus.db.engine import Database

    with Database.from_env().unit_of_work() as work:
        rows = [
            _fields(each)
            for each in work.maintenance.list_entries(operation=operation, limit=limit)
        ]
    if as_json:
        print_json(rows)
        return
    for row in rows:
        what = " ".join(filter(None, (row["operation"], row["subject"])))
        seconds = "" if row["duration"] is None else f", {row['duration'] / 1000:.1f} s"
        put(f"{row['timestamp']:%Y-%m-%d %H:%M:%S}  {what}: {row['status']}{seconds}")
        if told := row["error"] or (row["detail"] and cut_json(row["detail"], DETAIL_CHARACTERS)):
            put(f"    {cut(told, DETAIL_CHARACTERS)}")
    if not rows:
        say("no maintenance was done yet; begin with: pgcorpus maintenance weekly")


@app.command()
def schedule(
    scheduler: Annotated[
        Literal["systemd", "pg_cron"],
        typer.Argument(metavar="SCHEDULER", help="systemd or pg_cron."),
    ],
    command: Annotated[
        Path | None,
        typer.Option(help="Path of pgcorpus on the server; by default that of this command."),
    ] = None,
) -> None:
    """Print what lets SCHEDULER, systemd or pg_cron, run maintenance; nothing is changed.

    systemd runs all of it, by timers. pg_cron can run single statements alone: statistics,
    partitions and VACUUM; which index is worth a rebuild it cannot tell.

    Example: pgcorpus maintenance schedule systemd
    """
    from pgcorpus.db.engine import Database
    from pgcorpus.services.ops.maintenance.schedule import make_units

    if scheduler == "pg_cron":
        with Database.from_env().unit_of_work() as work:
            work.maintenance.refuse_without_rights()
            for statement in work.maintenance.list_cron_statements():
                put(statement)
        return
    units = make_units((command or Path(sys.argv[0])).absolute())
    for name, text in units.items():
        put(f"# /etc/systemd/system/{name}")
        put(text)
    timers = " ".join(name for name in units if name.endswith(".timer"))
    say(f"write them there, then: systemctl daemon-reload && systemctl enable --now {timers}")


def _run(request: Request, as_json: bool) -> None:
    from pgcorpus.db.engine import Database
    from pgcorpus.services.ops.maintenance.service import MaintenanceService

    with _progress() as on_step:
        report = MaintenanceService(Database.from_env()).run(request, on_step=on_step)
    if as_json:
        print_json(report.as_json())
    else:
        _show(report)
    if report.counts["failed"]:
        raise typer.Exit(1)


@contextmanager
def _progress() -> Iterator[OnStep]:
    """Provide a progress bar of the steps, and of what the server says of the present one."""
    with progress_bar("maintenance") as bar:

        def show(done: int, total: int, step: Step, phase: tuple[str, float] | None) -> None:
            named = " ".join(filter(None, (step.operation, step.subject)))
            share = 0.0 if phase is None else phase[1]
            doing = named if phase is None else f"{named}: {phase[0]}"
            bar.update(
                bar.task_ids[0], description=cut(doing, 48), completed=done + share, total=total
            )

        yield show
        bar.update(bar.task_ids[0], description="maintenance", completed=bar.tasks[0].total)


def _show(report: MaintenanceReport) -> None:
    if report.interrupted:
        warn(f"the run before did not end: {', '.join(report.interrupted)}")
    table(
        "Maintenance",
        ["task", "done", "skipped", "failed", "seconds"],
        [_summarise(report, each) for each in dict.fromkeys(s.operation for s in report.steps)],
    )
    for step in report.steps:
        match step.operation:
            case _ if step.status == "failed":
                fail(f"{step.operation} {step.subject or ''}".strip() + f": {step.error}")
            case "reindex" if step.status == "completed":
                before, after = (step.detail[each] / MEGABYTE for each in ("bytes", "bytes_after"))
                put(
                    f"{step.subject} was built anew, {before:.1f} to {after:.1f} MB: "
                    f"{step.detail['reason']}"
                )
            case "leftover_indexes" if step.status == "completed":
                put(f"left by a rebuild and dropped: {', '.join(step.detail['dropped'])}")
            case "bloat_report":
                _show_sizes(step.detail["tables"], step.detail["indexes"])
            case "extension_updates" if step.status == "completed":
                for each in step.detail["offered"]:
                    put(
                        f"{each['name']} {each['installed']} can be updated to "
                        f"{each['available']}: {each['statement']}"
                    )


def _summarise(report: MaintenanceReport, operation: Operation) -> Sequence[object]:
    steps = [each for each in report.steps if each.operation == operation]
    counts = [
        sum(each.status == status for each in steps)
        for status in ("completed", "skipped", "failed")
    ]
    return (operation, *counts, f"{sum(each.duration_ms for each in steps) / 1000:.1f}")


def _show_sizes(tables: Sequence[dict[str, Any]], indexes: Sequence[dict[str, Any]]) -> None:
    table(
        f"The largest {SHOWN} tables (MB)",
        ["table", "rows", "indexes", "out of line", "dead rows"],
        [
            (
                each["table"],
                *(f"{each[size] / MEGABYTE:.1f}" for size in SIZES),
                f"{each['dead_rows']:,}",
            )
            for each in tables[:SHOWN]
        ],
    )
    large = [each for each in indexes if each["bytes"] >= MEGABYTE][:SHOWN]
    if large:
        put("Indexes, those first of which a rebuild gives most back")
    for each in large:  # no table: the names are long, and are there to be copied
        bloat = "not known" if each["bloat"] is None else f"{each['bloat']:.0%}"
        invalid = "" if each["valid"] else " (invalid)"
        put(f"{each['bytes'] / MEGABYTE:10.1f} MB {bloat:>10}  {each['index']}{invalid}")


def _fields(entry: MaintenanceLog) -> dict[str, Any]:
    return {column.key: getattr(entry, column.key) for column in entry.__table__.columns}
