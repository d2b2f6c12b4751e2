"""pgcorpus eval."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer
from rich.progress import Progress, TaskID

from pgcorpus.services.choices import LOADINGS, MODES, Mode
from pgcorpus.services.cli.derive import require_one_of
from pgcorpus.services.cli.output import AsJson, print_json, progress_bar, say, table
from pgcorpus.services.importers.language import AUTO
from pgcorpus.services.importers.options import LANGUAGE

if TYPE_CHECKING:
    from pgcorpus.services.evaluation.beir import Collection
    from pgcorpus.services.evaluation.evaluate import Evaluation, EvaluationService


ENDING: Final = (signal.SIGTERM, signal.SIGHUP)
KILLED: Final = 128
"""Exit code of a process that a signal ended, less the signal's number, as shells have it."""


def parse_modes(value: str | None) -> list[Mode]:
    """Parse a list of modes with commas; empty where none is named."""
    names = {name.strip() for name in (value or "").split(",")} - {""}
    if unknown := names - set(MODES):
        raise typer.BadParameter(f"there is no {min(unknown)!r}; known: {', '.join(MODES)}")
    return [mode for mode in MODES if mode in names]


def check_modes(value: str | None) -> str | None:
    """Check a list of modes, for ``--modes``, before any work begins."""
    parse_modes(value)
    return value


def evaluate(
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="DIR",
            exists=True,
            file_okay=False,
            help="A collection: corpus.jsonl, queries.jsonl, qrels.tsv (or qrels/test.tsv).",
        ),
    ],
    modes: Annotated[
        str | None,
        typer.Option(
            metavar="MODE,MODE...",
            callback=check_modes,
            help=f"Some of {', '.join(MODES)}; by default all that can run.",
        ),
    ] = None,
    corpus: Annotated[
        str,
        typer.Option(
            callback=require_one_of(LOADINGS),
            help="The way to cut texts into passages: documentation as files are; scratch only "
            "what is longer than an embedder takes.",
        ),
    ] = "scratch",
    language: Annotated[
        str,
        typer.Option(
            metavar="auto|NAME",
            callback=require_one_of(LANGUAGE.known),
            help="Text search configuration of documents and queries; auto finds that of the "
            "documents, and queries are read in the corpus's, as for any search.",
        ),
    ] = AUTO,
    model: Annotated[
        str | None,
        typer.Option(
            help="The model that made emb_docs.npy and emb_queries.npy; without these files, the "
            "registered model to embed with, such as hashing."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Measure how well searches rank, on a test collection in BEIR layout.

    The collection is imported into a schema of its own (a superuser's into a database of its own),
    which is dropped at the end; nothing else is changed. Log in as the owner of the database.
    Every query with a relevant document is asked in every mode, in hybrid mode with every fusion.

    Vectors come from emb_docs.npy and emb_queries.npy in DIR (row i for line i) or are made by
    --model. A scope field keeps a query to the documents of its own scope.

    Example: pgcorpus eval scifact --modes text,hybrid --model hashing --json
    """
    from pgcorpus.db.engine import Database
    from pgcorpus.services.evaluation.beir import missing_files, read_collection
    from pgcorpus.services.evaluation.evaluate import EvaluationService

    if missing := missing_files(folder):
        raise typer.BadParameter(f"{folder} has no {', '.join(missing)}", param_hint="DIR")
    collection = read_collection(folder)
    with ends_in_order():
        evaluation = evaluate_with_bar(
            EvaluationService(Database.from_env()),
            collection,
            corpus=corpus,
            modes=parse_modes(modes),
            language=language,
            model=model,
        )
    for note in evaluation.notes:
        say(f"note: {note}")
    if as_json:
        print_json(evaluation.as_json())
    else:
        show(evaluation)


def evaluate_with_bar(
    service: EvaluationService,
    collection: Collection,
    *,
    corpus: str,
    modes: list[Mode],
    language: str,
    model: str | None,
) -> Evaluation:
    """Evaluate under progress bars, one for each stage."""
    with ExitStack() as shown:
        bars: list[Progress] = []
        tasks: dict[str, TaskID] = {}

        def show_progress(stage: str, done: int, total: int) -> None:
            if not bars:
                bars.append(shown.enter_context(progress_bar()))
            if stage not in tasks:
                tasks[stage] = bars[0].add_task(stage, total=None)
            bars[0].update(tasks[stage], completed=done, total=total or None)

        return service.evaluate(
            collection,
            corpus=corpus,
            modes=modes,
            language=language,
            model=model,
            progress=show_progress,
        )


def show(evaluation: Evaluation) -> None:
    """Print an evaluation as a table."""
    about = (
        evaluation.collection,
        f"{evaluation.documents:,} documents",
        f"{evaluation.queries:,} queries",
        evaluation.language,
        evaluation.model or "no vectors",
    )
    table(
        ", ".join(about),
        ["mode", "fusion", "nDCG@10", "recall@10", "recall@100", "MRR", "p50 ms", "p95 ms"],
        [
            (
                result.mode,
                result.fusion,
                *(
                    f"{share:.4f}"
                    for share in (result.ndcg, result.recall_10, result.recall_100, result.mrr)
                ),
                f"{result.p50_ms:.1f}",
                f"{result.p95_ms:.1f}",
            )
            for result in evaluation.results
        ],
    )


@contextmanager
def ends_in_order() -> Iterator[None]:
    """End at signals as after Ctrl-C, with everything tidied up.

    They would end the process at once.
    """

    def end(number: int, _frame: object) -> None:
        raise SystemExit(KILLED + number)

    before = {number: signal.signal(number, end) for number in ENDING}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
