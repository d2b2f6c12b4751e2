"""pgcorpus learn: rankings that clicks teach, proposed, applied and taken back."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pgcorpus.services.cli.derive import (
    AS_JSON,
    build_command,
    flow,
    parameter,
    require_one_of,
)
from pgcorpus.services.cli.output import AsJson, out, print_json, progress_bar, put, say, table
from pgcorpus.services.cli.scope import TenantId, find_scope
from pgcorpus.services.corpora import SERVICES
from pgcorpus.services.corpus import CorpusServices, LearningService

if TYPE_CHECKING:
    from pgcorpus.db.repositories.rankings import StoredRanking
    from pgcorpus.services.learning.report import LearningReport, WeightsReport


DATES = ["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S"]

LEARNED = {name: each.learning for name, each in SERVICES.items() if each.learning is not None}

LearnedCorpus = Annotated[
    str,
    typer.Argument(
        metavar="|".join(LEARNED),
        help="The corpus.",
        callback=require_one_of(LEARNED),
        autocompletion=lambda: list(LEARNED),
    ),
]


def make_app(services: Iterable[CorpusServices]) -> typer.Typer:
    """Make the command, with one below it for each corpus that learns."""
    app = typer.Typer(
        help="Learn from clicks how to rank; apply it, and take it back.", no_args_is_help=True
    )
    for each in services:
        if each.learning is not None:
            app.command(each.name, help=flow(each.learning.help))(build_learn(each.learning))
    app.command()(rollback)
    app.command()(status)
    return app


def build_learn(service: LearningService) -> Callable[..., None]:
    """Build the command that learns from the clicks on a corpus."""

    def run(*, tenant_id: str | None, since: datetime | None, apply: bool, as_json: bool) -> None:
        from pgcorpus.db.base import in_utc
        from pgcorpus.db.engine import Database

        database = Database.from_env()
        learner = service.make(database, find_scope(database, tenant_id, None))
        with progress_bar("reading pages and clicks") as bar:
            task = bar.task_ids[0]

            def tell(done: int, total: int) -> None:
                bar.update(task, completed=done, total=total)
                if done == total:
                    bar.add_task("learning", total=None)

            report = learner.learn(since=in_utc(since), apply=apply, progress=tell)
        if as_json:
            print_json(report.as_json())
        else:
            show_report(report)
        if report.learned.is_new and not apply:
            say("nothing was written; repeat with --apply, and searches rank by it")

    return build_command(
        run,
        parameter("tenant_id", TenantId),
        parameter(
            "since",
            Annotated[
                datetime | None,
                typer.Option(
                    formats=DATES,
                    metavar="DATE",
                    help="Only from pages that were shown from then on, in UTC.",
                ),
            ],
        ),
        parameter(
            "apply",
            Annotated[
                bool,
                typer.Option("--apply", help="Store what was learned; searches then rank by it."),
            ],
            default=False,
        ),
        AS_JSON,
    )


def show_report(report: LearningReport) -> None:
    """Print what was learned beside today's ranking, and what it stands on."""
    learned = report.learned
    show_weights(report, "learned")
    put(f"  {learned.reason}")
    if (estimate := learned.estimate) is not None:
        put(
            f"  mean 1 / log2(1 + place) of what was clicked: {estimate.before:.4f} today, "
            f"expected change {estimate.change:+.4f}, 99 % confidence {estimate.low:+.4f} to "
            f"{estimate.high:+.4f}"
        )
    put(
        f"  from {learned.impressions:,} pages, {learned.clicks:,} clicked passages, "
        f"{learned.voices:,} voices that clicked; {report.boosts:,} passages boosted"
    )
    if report.today_version:
        say(f"today's ranking is learned, too: {report.today_version}")
    if report.is_limited:
        say(f"only the latest {learned.impressions:,} pages were read, of {report.pages:,}")
    for reason, count in report.left_out.items():
        say(f"left out: {count:,} {reason}")
    show_applied(report, "learn")


def show_weights(report: WeightsReport, found: str) -> None:
    """Print the weights that were *found* (learned, tuned) beside today's."""
    table(
        f"{report.corpus}, {report.scope}",
        ["leg", "weight today", f"weight {found}"],
        [
            (leg, f"{weight:.3f}", f"{report.weights[leg]:.3f}")
            for leg, weight in report.today.items()
        ],
    )


def show_applied(report: WeightsReport, command: str) -> None:
    """Print the version that was stored, if any, and how *command* takes it back."""
    if report.applied is not None:
        say(
            f"applied as version {report.applied}; take it back with: "
            f"pgcorpus {command} rollback {report.corpus}"
        )


def rollback(corpus: LearnedCorpus, tenant_id: TenantId = None, as_json: AsJson = False) -> None:
    """Take back the ranking in use; searches rank by the version before, or unlearned.

    The exit code is 0, too, where there was none to take back.
    """
    from pgcorpus.db.engine import Database

    database = Database.from_env()
    learner = LEARNED[corpus].make(database, find_scope(database, tenant_id, None))
    show_rollback(corpus, learner.roll_back(), as_json=as_json)


def show_rollback(
    corpus: str, taken_back: tuple[StoredRanking, StoredRanking | None] | None, *, as_json: bool
) -> None:
    """Print what a rollback has taken back, and what searches rank by now."""
    active = taken_back and taken_back[1]
    if as_json:
        ended = None if taken_back is None else taken_back[0].version
        print_json({"rolled_back": ended, "active": None if active is None else active.version})
    elif taken_back is None:
        say(f"no learned ranking of {corpus} is in use in this scope: nothing was changed")
    else:
        now = "unlearned" if active is None else f"by version {active.version}"
        say(f"version {taken_back[0].version} was taken back; searches rank {now}")


def status(tenant_id: TenantId = None, as_json: AsJson = False) -> None:
    """Show the versions that were learned, the newest first, and which is in use."""
    from pgcorpus.db.engine import Database

    database = Database.from_env()
    scope = find_scope(database, tenant_id, None)
    versions = [
        each for one in LEARNED.values() for each in one.make(database, scope).list_versions()
    ]
    show_versions(versions, as_json=as_json)
    if not (versions or as_json):
        out.print("nothing was learned yet; learn with: pgcorpus learn documentation")


def show_versions(versions: Sequence[StoredRanking], *, as_json: bool) -> None:
    """Print the versions of learned rankings."""
    if as_json:
        print_json([describe(each) for each in versions])
        return
    taught = "voices or questions"
    table(
        "Learned rankings",
        ["corpus", "version", "in use", "weights", "boosts", "change", taught, "by", "when"],
        [
            (
                each.corpus,
                each.version,
                "yes" if each.is_active else "",
                ", ".join(f"{leg} {weight:.3f}" for leg, weight in each.weights.items()),
                each.boosts,
                _format_change(each.estimate),
                each.estimate.get("voices", each.estimate.get("questions")),
                each.created_by,
                f"{each.created_at:%Y-%m-%d %H:%M}",
            )
            for each in versions
        ],
    )


def describe(ranking: StoredRanking) -> dict[str, Any]:
    """Return a version as the command line prints it in JSON."""
    return ranking._asdict()


def _format_change(estimate: Mapping[str, Any]) -> str | None:
    if "change" not in estimate:
        return None
    return f"{estimate['change']:+.4f} ({estimate['low']:+.4f} to {estimate['high']:+.4f})"


app = make_app(SERVICES.values())
