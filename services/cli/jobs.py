"""pgcorpus worker, pgcorpus jobs."""

from __future__ import annotations

import logging
import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import typer
from rich.logging import RichHandler

from pgcorpus.db.choices import JobStatus
from pgcorpus.services.cli.output import (
    AsJson,
    cut,
    err,
    fail,
    print_json,
    progress_bar,
    say,
    table,
)

if TYPE_CHECKING:
    from pgcorpus.db.engine import Database
    from pgcorpus.db.models.jobs import Job
    from pgcorpus.db.repositories.jobs import QueueStats
    from pgcorpus.db.uow import UnitOfWork
    from pgcorpus.services.jobs.worker import BatchReport


app = typer.Typer(
    help=(
        "The job queue: what waits, what failed and why.\n\n"
        "Jobs are enqueued by the database itself when texts are written, and done by: "
        "pgcorpus worker"
    ),
    no_args_is_help=True,
)

SECONDS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
MAX_SECONDS: Final = 100 * 365 * SECONDS["d"]
ERROR_CHARACTERS: Final = 60

Kind = Annotated[str | None, typer.Option("--kind", "-k", help="Only jobs of this kind.")]
JobId = Annotated[int, typer.Argument(metavar="ID", min=1, max=2**63 - 1)]


def duration(value: str) -> float:
    """Parse seconds from a number and a unit, such as 7d."""
    found = re.fullmatch(r"([0-9]{1,9})([smhdw])", value.strip().lower())
    seconds = int(found[1]) * SECONDS[found[2]] if found else MAX_SECONDS + 1
    if seconds > MAX_SECONDS:
        raise typer.BadParameter(
            f"{value!r} is no length of time; a number and s, m, h, d or w, such as 7d"
        )
    return seconds


def worker(
    concurrency: Annotated[
        int, typer.Option("--concurrency", "-n", min=1, max=64, help="Batches at once.")
    ] = 2,
    once: Annotated[bool, typer.Option("--once", help="Do what is due now, and stop.")] = False,
    kinds: Annotated[
        list[str] | None,
        typer.Option(
            "--kinds",
            "-k",
            help="Only jobs of these kinds, separated by commas; can be repeated. By default all "
            "there are: embed, log_flush, maintenance.",
        ),
    ] = None,
    metrics_port: Annotated[
        int | None,
        typer.Option(
            min=1, max=65535, help="Port to serve /metrics of this worker on; by default none."
        ),
    ] = None,
    metrics_host: Annotated[
        str, typer.Option(help="Address of that port, which asks for no password.")
    ] = "127.0.0.1",
    as_json: AsJson = False,
) -> None:
    """Do what is in the job queue: embed what was written, and maintain the database.

    Any number of workers may run, here and on other machines; each job is done by one of them. They
    hear of new jobs at once, and wait out a database or an embedder that is away.

    SIGTERM and Ctrl-C finish the batches in hand, then exit with 0; a second one gives up at once.
    A worker that is killed loses nothing: its jobs are taken up again after a minute.

    Exit code 1 if, with --once, jobs failed or could not be done now, or if every thread hangs.

    Example: pgcorpus worker --concurrency 4 --kinds embed
    """
    from pgcorpus.db.engine import Database
    from pgcorpus.services.jobs.worker import Worker, stop_at_signals

    named = {kind.strip() for each in kinds or () for kind in each.split(",")} - {""}
    if kinds and not named:
        raise typer.BadParameter("--kinds names no kind; there are: embed, log_flush, maintenance")
    database = Database.from_env()
    with _status(database) as show, _metrics(database, metrics_host, metrics_port) as count:

        def tell(report: BatchReport) -> None:
            show(report)
            count(report)

        running = Worker(database, kinds=named, concurrency=concurrency, on_batch=tell)
        with stop_at_signals(running):
            report = running.run(once=once)
    counts = {name: report.counts[name] for name in ("completed", "retried", "put_off", "failed")}
    if as_json:
        print_json(counts | {"duration_s": round(report.seconds, 3)})
    else:
        told = ", ".join(f"{number} {name.replace('_', ' ')}" for name, number in counts.items())
        say(f"{told}, {report.seconds:.1f} s")
    if report.hung:
        fail("every batch hangs; their jobs are taken up again when their leases have expired")
        sys.stdout.flush()
        os._exit(1)  # the threads that hang would be waited for
    if once and not report.succeeded:
        say("see: pgcorpus jobs list")
        raise typer.Exit(1)


@contextmanager
def _metrics(
    database: Database, host: str, port: int | None
) -> Iterator[Callable[[BatchReport], None]]:
    """Serve the metrics of this worker, where a port was given."""
    if port is None:
        yield lambda _report: None
        return
    from pgcorpus.services.ops.metrics.app import Metrics
    from pgcorpus.services.ops.metrics.server import serve

    metrics = Metrics(database, figures=False, searches=False, worker=True)
    with closing(metrics), serve(metrics.wsgi, host, port) as address:
        say(f"serving {address}/metrics")
        yield metrics.note_batch


@contextmanager
def _status(database: Database) -> Iterator[Callable[[BatchReport], None]]:
    """Provide a status line of the work done so far, where a person watches."""
    if not err.is_terminal or database.settings.logs_json:
        yield lambda _report: None
        return
    counts: Counter[str] = Counter()
    root = logging.getLogger()
    handlers = root.handlers[:]
    root.handlers = [RichHandler(console=err, show_path=False)]
    try:
        with err.status("waiting for jobs") as status:

            def show(report: BatchReport) -> None:
                counts.update(report.counts)
                rate = report.counts.total() / (report.seconds or 1)
                told = ", ".join(f"{number} {name}" for name, number in sorted(counts.items()))
                status.update(f"{told}; last {report.name}, {rate:.0f}/s")

            yield show
    finally:
        root.handlers = handlers


@app.command("list")
def list_jobs(
    status: Annotated[JobStatus | None, typer.Option(help="Only jobs of this status.")] = None,
    kind: Kind = None,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="Jobs to show, at most.")] = 50,
    as_json: AsJson = False,
) -> None:
    """Show jobs, the newest first; of those that failed the last that did.

    Example: pgcorpus jobs list --status failed
    """
    from pgcorpus.db.engine import Database

    with Database.from_env().unit_of_work() as work:
        rows = [
            _fields(each) for each in work.jobs.list_jobs(status=status, kind=kind, limit=limit)
        ]
    if as_json:
        print_json(rows)
        return
    table(
        "Jobs",
        ["id", "kind", "status", "attempts", "due", "finished", "last error"],
        [
            (
                row["id"],
                row["kind"],
                row["status"],
                f"{row['attempts']} of {row['max_attempts']}",
                f"{row['not_before']:%Y-%m-%d %H:%M:%S}" if row["status"] == "pending" else "",
                f"{row['finished_at']:%Y-%m-%d %H:%M:%S}" if row["finished_at"] else "",
                cut(row["last_error"] or "", ERROR_CHARACTERS),
            )
            for row in rows
        ],
    )


@app.command()
def show(job_id: JobId, as_json: AsJson = False) -> None:
    """Show all there is to know of one job."""
    from pgcorpus.db.engine import Database

    with Database.from_env().unit_of_work() as work:
        fields = _fields(work.jobs.get(job_id))
    if as_json:
        print_json(fields)
    else:
        table(f"Job {job_id}", ["", ""], list(fields.items()))


@app.command()
def requeue(
    ids: Annotated[
        list[int] | None, typer.Argument(metavar="[ID...]", min=1, max=2**63 - 1)
    ] = None,
    kind: Kind = None,
    failed: Annotated[bool, typer.Option("--failed", help="All jobs that failed.")] = False,
    as_json: AsJson = False,
) -> None:
    """Try jobs again, now and with all their attempts: named ones, or all that failed.

    Of named jobs also those that wait for their next attempt. A failed job that was enqueued anew
    meanwhile gives way to the newer one.

    Example: pgcorpus jobs requeue --failed --kind embed
    """
    from pgcorpus.db.engine import Database

    if bool(ids) == failed:
        raise typer.BadParameter("name jobs, or give --failed for all that failed")
    with Database.from_env().unit_of_work() as work:
        requeued = work.jobs.requeue(ids=ids or None, kind=kind)
        work.commit()
        others = {each: _state(work, each) for each in sorted(set(ids or ()) - set(requeued))}
    if as_json:
        print_json({"requeued": len(requeued), "not_requeued": list(others)})
    else:
        say(f"{len(requeued)} requeued")
    if others:
        told = ", ".join(f"{job} {state}" for job, state in others.items())
        fail(f"not requeued: {told}; see: pgcorpus jobs show ID")
        raise typer.Exit(1)


@app.command()
def purge(
    older_than: Annotated[
        float,
        typer.Option(
            parser=duration, metavar="TIME", help="Time since they ended: 90s, 30m, 12h, 7d or 4w."
        ),
    ],
    status: Annotated[
        Literal["completed", "failed"], typer.Option(help="The status of the jobs to delete.")
    ] = "completed",
    as_json: AsJson = False,
) -> None:
    """Delete jobs that ended long ago. A worker does so with completed ones after 7 days.

    Example: pgcorpus jobs purge --older-than 30d --status failed
    """
    from pgcorpus.db.engine import Database

    database = Database.from_env()
    purged = 0
    with progress_bar("purging") as bar:
        while True:
            with database.unit_of_work() as work:
                count = work.jobs.purge(older_than_seconds=older_than, status=status)
                work.commit()
            if not count:
                break
            purged += count
            bar.update(bar.task_ids[0], description=f"purging: {purged}")
            bar.start()
    if as_json:
        print_json({"purged": purged})
    else:
        say(f"{purged} purged")


@app.command()
def stats(as_json: AsJson = False) -> None:
    """Show how many jobs wait and for how long, how fast they are done, and how many failed.

    Completed jobs are those of the last hour. Tenants, and users without one, take turns: their
    lanes follow, the longest first, and the tokens that they spent since midnight UTC.
    """
    from pgcorpus.db.engine import Database

    with Database.from_env().unit_of_work() as work:
        found = work.jobs.stats()
        lanes = work.jobs.list_longest_lanes()
        usage = work.usage.list_today()
        tokens = work.usage.get_figures()
    if as_json:
        print_json(
            _stats_json(found)
            | {
                "longest_lanes": [asdict(each) for each in lanes],
                "tokens_today": asdict(tokens),
                "scopes_today": [asdict(each) for each in usage],
            }
        )
        return
    statuses = ("pending", "running", "completed", "failed")
    table(
        "Jobs by kind",
        ["kind", "pending", "running", "completed in the last hour", "failed"],
        [
            (kind, *(of.get(each, 0) for each in statuses))
            for kind, of in sorted(found.depth.items())
        ],
    )
    oldest = found.oldest_due_seconds
    table(
        "Queue",
        ["", ""],
        [
            ("due now", found.due),
            ("the first of them waits for", "-" if oldest is None else f"{oldest:.0f} s"),
            ("lanes that wait in turn", found.lanes),
            ("due in the longest of them", found.largest_lane),
            ("over a ceiling, until midnight UTC", found.over_ceiling),
            ("waiting for another attempt", found.retrying),
            ("completed per second, last minute", f"{found.completed_in_minute / 60:.1f}"),
            ("completed per second, last hour", f"{found.completed_in_hour / 3600:.1f}"),
            ("failed in the last hour", found.failed_in_hour),
            ("failed in all (pgcorpus jobs list --status failed)", found.total("failed")),
            ("tokens spent since midnight UTC", tokens.spent_tokens),
            ("tenants and users that spent all of theirs", tokens.full_scopes),
        ],
    )
    if lanes:
        table(
            "Longest lanes",
            ["of", "due", "waits for"],
            [
                (
                    each.scope or "(everybody's)",
                    each.due,
                    "midnight UTC" if each.is_full else f"{each.oldest_due_seconds:.0f} s",
                )
                for each in lanes
            ],
        )
    if usage:
        table(
            "Tokens since midnight UTC",
            ["of", "spent", "ceiling"],
            [
                (
                    each.scope,
                    each.spent_tokens,
                    "-"
                    if each.ceiling is None
                    else f"{each.ceiling}{' reached' if each.is_full else ''}",
                )
                for each in usage
            ],
        )


def _stats_json(found: QueueStats) -> dict[str, Any]:
    return asdict(found) | {
        "completed_per_second": {
            "minute": round(found.completed_in_minute / 60, 3),
            "hour": round(found.completed_in_hour / 3600, 3),
        },
        "failed": found.total("failed"),
    }


def _state(work: UnitOfWork, job_id: int) -> str:
    """Return the reason why a job was not requeued."""
    from pgcorpus.db.errors import NotFound

    try:
        job = work.jobs.get(job_id)
    except NotFound:
        return "is not there"
    return f"is {job.status} ({job.kind})"


def _fields(job: Job) -> dict[str, Any]:
    from pgcorpus.db.models.jobs import Job

    return {column.key: getattr(job, column.key) for column in Job.__table__.columns}
