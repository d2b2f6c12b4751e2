"""pgcorpus performance."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.tree import Tree

from pgcorpus.services.cli.explanation import add_explanation
from pgcorpus.services.cli.jobs import duration
from pgcorpus.services.cli.output import AsJson, cut, out, print_json, put, say, table, visible
from pgcorpus.services.cli.scope import TenantId, UserId, find_scope
from pgcorpus.services.cli.search import read_filters

if TYPE_CHECKING:
    from pgcorpus.db.models.operations import QueryPerformance
    from pgcorpus.db.repositories.operations.performance import Times
    from pgcorpus.services.ops.performance import Performance


QUESTION_CHARACTERS = 40
MAX_LISTED = 10_000
MAX_MILLISECONDS = 3_600_000


def performance(
    since: Annotated[
        float,
        typer.Option(
            parser=duration,
            metavar="TIME",
            help="Length of the time, up to now: 90s, 30m, 12h, 7d or 4w.",
        ),
    ] = "24h",  # type: ignore[assignment]  # parsed
    corpus: Annotated[
        str | None, typer.Option("--corpus", "-c", help="Only searches of this corpus.")
    ] = None,
    slow: Annotated[
        bool, typer.Option("--slow", help="List slow searches instead, the slowest first.")
    ] = False,
    least_ms: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=MAX_MILLISECONDS,
            help="With --slow: what is slow, in milliseconds; by default METRICS_SLOW_MS (500).",
        ),
    ] = None,
    limit: Annotated[
        int, typer.Option(min=1, max=MAX_LISTED, help="With --slow: searches to list, at most.")
    ] = 20,
    plan: Annotated[
        int | None,
        typer.Option(
            metavar="ID", min=1, max=2**63 - 1, help="Plan this search of the log again instead."
        ),
    ] = None,
    question: Annotated[
        str | None,
        typer.Option(help="With --plan: the question, where the log has not kept it."),
    ] = None,
    narrow: Annotated[
        list[str] | None,
        typer.Option(
            "--filter",
            metavar="NAME=VALUE",
            help="With --plan: the filters that the search had, as pgcorpus search takes them.",
        ),
    ] = None,
    analyze: Annotated[
        bool, typer.Option("--analyze", help="With --plan: run the search, and tell its times.")
    ] = False,
    tenant_id: TenantId = None,
    user_id: UserId = None,
    as_json: AsJson = False,
) -> None:
    """Show how long searches took; list slow ones, and plan one of them again.

    The figures are percentiles per type of search and hour, of query_performance_log and its
    archive. Only members of rag_admin and the owner of the schema may read these.

    Examples:
    pgcorpus performance --since 7d --corpus knowledge

    pgcorpus performance --slow --least-ms 200

    pgcorpus performance --plan 4711 --question "premium offer" --analyze
    """
    from pgcorpus.db.engine import Database
    from pgcorpus.db.search.corpora import get_corpus
    from pgcorpus.services.ops.performance import PerformanceService

    _refuse_what_goes_with_other_options(
        {"--slow": slow, "--plan": plan is not None},
        {"--least-ms": ("--slow", least_ms is not None)}
        | {
            name: ("--plan", given)
            for name, given in {
                "--question": question is not None,
                "--filter": bool(narrow),
                "--analyze": analyze,
                "--tenant-id": tenant_id is not None,
                "--user-id": user_id is not None,
            }.items()
        },
    )
    if corpus is not None:
        get_corpus(corpus)
    database = Database.from_env()
    service = PerformanceService(database)
    begin = datetime.now(UTC) - timedelta(seconds=since)
    if plan is not None:
        scope = find_scope(database, tenant_id, user_id)
        found, explained = service.plan(
            plan,
            question=question,
            filters=read_filters(narrow or []),
            scope=scope,
            analyze=analyze,
        )
        if as_json:
            print_json({"search": _fields(found), "explanation": asdict(explained)})
            return
        root = Tree(
            f"[bold]search {found.id}[/] ({escape(visible(found.corpus))}, {found.query_type}, "
            f"{found.duration:.1f} ms at {found.timestamp:%Y-%m-%d %H:%M:%S})"
        )
        add_explanation(root, explained)
        out.print(root)
    elif slow:
        searches = service.list_slow(since=begin, least_ms=least_ms, corpus=corpus, limit=limit)
        if as_json:
            print_json([_fields(each) for each in searches])
        else:
            _show_slow(searches)
    else:
        figures = service.summarise(since=begin, corpus=corpus)
        if as_json:
            print_json(figures.as_json())
        else:
            _show(figures)


def _refuse_what_goes_with_other_options(
    modes: dict[str, bool], options: dict[str, tuple[str, bool]]
) -> None:
    """Raise for options that would be ignored.

    Args:
        modes: Those that exclude each other → whether it was given.
        options: Option → the mode that it needs, and whether it was given.
    """
    if sum(modes.values()) > 1:
        raise typer.BadParameter(f"give one of {' and '.join(modes)}")
    for option, (mode, given) in options.items():
        if given and not modes[mode]:
            raise typer.BadParameter(f"it goes with {mode}", param_hint=option)


def _show(figures: Performance) -> None:
    """Print the percentiles, then the dashboard."""
    columns = ["type", "searches", "degraded", "p50", "p95", "p99", "slowest"]
    totals = [each for each in figures.times if each.hour is None]
    table(f"Searches since {figures.since:%Y-%m-%d %H:%M} UTC, in ms", columns, map(_row, totals))
    table(
        "By hour (UTC), in ms",
        ["hour", *columns],
        [
            (f"{each.hour.astimezone(UTC):%d %b %Hh}", *_row(each))
            for each in figures.times
            if each.hour is not None
        ],
    )
    table(
        "performance_dashboard (the last hour, all corpora)",
        ["metric", "value", "unit"],
        [
            (each.metric, "-" if each.value is None else f"{each.value:.1f}", each.unit)
            for each in figures.metrics
        ],
    )
    if not totals:
        say(
            "no search was logged in this time: services log theirs while METRICS_ENABLED is true, "
            "and pgcorpus search does not"
        )


def _row(times: Times) -> tuple[object, ...]:
    from pgcorpus.services.ops.performance import SEARCH

    return (
        times.query_type.removesuffix(SEARCH),
        times.searches,
        times.degraded,
        *(f"{each:.1f}" for each in (times.p50_ms, times.p95_ms, times.p99_ms, times.slowest_ms)),
    )


def _show_slow(searches: Any) -> None:
    from pgcorpus.services.ops.performance import SEARCH

    table(
        "Slow searches (times are in UTC, of legs in ms)",
        ["id", "when", "type", "corpus", "ms", "hits", "legs", "question"],
        [
            (
                each.id,
                f"{each.timestamp.astimezone(UTC):%d %b %H:%M}",
                each.query_type.removesuffix(SEARCH),
                each.corpus,
                f"{each.duration:.0f}",
                each.hits,
                _describe_legs(each),
                cut(each.question or "", QUESTION_CHARACTERS),
            )
            for each in searches
        ],
    )
    if searches:
        put("  plan one of them again with: pgcorpus performance --plan ID")


def _describe_legs(search: QueryPerformance) -> str:
    """Describe what each leg did, in a few characters."""
    described = []
    for name, leg in (search.legs or {}).items():
        known = leg if isinstance(leg, dict) else {}  # others may add rows of any shape
        took = known.get("duration_ms")
        status = known.get("status")
        part = [name] if status == "ok" else [name, str(status)]
        described.append(" ".join([*part, *([f"{took:.1f}"] if isinstance(took, float) else [])]))
    return ", ".join(described)


def _fields(search: QueryPerformance) -> dict[str, Any]:
    from pgcorpus.db.models.operations import QueryPerformance

    return {
        column.key: getattr(search, column.key) for column in QueryPerformance.__table__.columns
    }
