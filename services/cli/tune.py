"""pgcorpus tune: fusion weights tuned to judged questions, proposed, applied and taken back."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from inspect import Parameter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from pgcorpus.services.cli.derive import AS_JSON, build_command, flow, parameter, require_one_of
from pgcorpus.services.cli.learn import (
    show_applied,
    show_rollback,
    show_versions,
    show_weights,
)
from pgcorpus.services.cli.output import AsJson, out, print_json, progress_bar, put, say
from pgcorpus.services.cli.scope import TenantId, find_scope
from pgcorpus.services.corpora import SERVICES
from pgcorpus.services.corpus import CorpusServices

if TYPE_CHECKING:
    from pgcorpus.services.evaluation.tuning import TuningReport


HELP: Final = """Tune the fusion weights of this corpus to judged questions, 50 or more.

The folder has queries.jsonl and qrels.tsv, as for pgcorpus eval. Every question is searched for,
and the weights of the vector leg and the text leg are found under which judged passages stand
highest. What held-out questions gain is told with its interval. Nothing is written without --apply,
and nothing where there is nothing to gain.

Example: pgcorpus tune {name} --judgements judged
"""

TunedCorpus = Annotated[
    str,
    typer.Argument(
        metavar="|".join(SERVICES),
        help="The corpus.",
        callback=require_one_of(SERVICES),
        autocompletion=lambda: list(SERVICES),
    ),
]

JUDGEMENTS = Annotated[
    Path,
    typer.Option(
        metavar="DIR",
        exists=True,
        file_okay=False,
        help="Judged questions: queries.jsonl and qrels.tsv (or qrels/test.tsv).",
    ),
]

KEY = Annotated[
    str | None,
    typer.Option(
        metavar="COLUMN",
        help="The column of the hits that the judgements name documents by, such as path or id; by "
        "default chunk_id, or id in corpora without.",
    ),
]

APPLY = Annotated[
    bool, typer.Option("--apply", help="Store what was found; searches then rank by it.")
]


def make_app(services: Iterable[CorpusServices]) -> typer.Typer:
    """Make the command, with one below it for each corpus."""
    app = typer.Typer(
        help="Tune fusion weights to judged questions; apply them, and take them back.",
        no_args_is_help=True,
    )
    for each in services:
        app.command(each.name, help=flow(HELP.format(name=each.name)))(build_tune(each))
    app.command()(rollback)
    app.command()(status)
    return app


def build_tune(services: CorpusServices) -> Callable[..., None]:
    """Build the command that tunes a corpus."""

    def run(
        *,
        judgements: Path,
        key: str | None,
        apply: bool,
        as_json: bool,
        tenant_id: str | None = None,
    ) -> None:
        from pgcorpus.db.engine import Database
        from pgcorpus.services.evaluation.beir import QUERIES, missing_files, read_judgements
        from pgcorpus.services.evaluation.tuning import TuningService

        if missing := missing_files(judgements, (QUERIES,)):
            raise typer.BadParameter(
                f"{judgements} has no {', '.join(missing)}", param_hint="--judgements"
            )
        judged = read_judgements(judgements)
        database = Database.from_env()
        service = TuningService(database, find_scope(database, tenant_id, None))
        with progress_bar("asking questions") as bar:
            task = bar.task_ids[0]

            def tell(done: int, total: int) -> None:
                bar.update(task, completed=done, total=total)

            report = service.tune(services.name, judged, key=key, apply=apply, progress=tell)
        if as_json:
            print_json(report.as_json())
        else:
            show_report(report)
        if report.tuned.is_new and not apply:
            say("nothing was written; repeat with --apply, and searches rank by it")

    tenant = [] if services.scoping == "none" else [parameter("tenant_id", TenantId)]
    return build_command(
        run,
        parameter("judgements", JUDGEMENTS, Parameter.empty),
        *tenant,
        parameter("key", KEY),
        parameter("apply", APPLY, default=False),
        AS_JSON,
    )


def show_report(report: TuningReport) -> None:
    """Print what was found beside today's weights, and what there is to gain."""
    from pgcorpus.services.learning.tuning import CONFIDENCE

    tuned = report.tuned
    show_weights(report, "tuned")
    put(f"  {tuned.reason}")
    if (estimate := tuned.estimate) is not None:
        put(
            f"  nDCG@10 of {tuned.questions} questions: {estimate.before:.4f} today, expected "
            f"change {estimate.change:+.4f}, {CONFIDENCE:.0%} confidence {estimate.low:+.4f} to "
            f"{estimate.high:+.4f}"
        )
    put(
        "  by the share of the vector leg: "
        + ", ".join(f"{share:g}: {quality:.3f}" for share, quality in tuned.curve.items())
    )
    if report.today_version:
        say(f"today's ranking is learned, too: {report.today_version}; its boosts stay")
    for note in report.notes:
        say(f"note: {note}")
    show_applied(report, "tune")


def rollback(corpus: TunedCorpus, tenant_id: TenantId = None, as_json: AsJson = False) -> None:
    """Take back the ranking in use; searches rank by the version before, or untuned.

    The exit code is 0, too, where there was none to take back.
    """
    from pgcorpus.db.engine import Database
    from pgcorpus.services.evaluation.tuning import TuningService

    database = Database.from_env()
    service = TuningService(database, find_scope(database, tenant_id, None))
    show_rollback(corpus, service.roll_back(corpus), as_json=as_json)


def status(tenant_id: TenantId = None, as_json: AsJson = False) -> None:
    """Show the versions that were tuned or learned, the newest first, and which is in use."""
    from pgcorpus.db.engine import Database
    from pgcorpus.services.evaluation.tuning import TuningService

    database = Database.from_env()
    scope = find_scope(database, tenant_id, None)
    service = TuningService(database, scope)
    versions = [
        version
        for each in SERVICES.values()
        if scope is not None or each.scoping != "required"
        for version in service.list_versions(each.name)
    ]
    show_versions(versions, as_json=as_json)
    if not (versions or as_json):
        out.print("nothing was tuned yet; tune with: pgcorpus tune CORPUS --judgements DIR")


app = make_app(SERVICES.values())
