"""pgcorpus search."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

import typer

from db.engine import Database
from db.search.page import Hit, Leg, SearchPage
from db.search.ranking import Fusion
from services.cli.explanation import told, tree
from services.cli.output import AsJson, CorpusName, cut, out, print_json, say, table
from services.search import Mode, SearchService

TITLE_CHARACTERS = 32
LEAST_PREVIEW_CHARACTERS = 20


def search(
    question: Annotated[
        str, typer.Argument(help='Words, "a phrase", -word, or: the grammar of web searches.')
    ],
    corpus: CorpusName = "knowledge",
    mode: Annotated[Mode, typer.Option(help="How to search.")] = "hybrid",
    fusion: Annotated[Fusion, typer.Option(help="How legs are joined.")] = "calibrated",
    limit: Annotated[int, typer.Option(help="Hits, at most.")] = 10,
    offset: Annotated[int, typer.Option(help="Hits to pass over.")] = 0,
    narrow: Annotated[
        list[str] | None,
        typer.Option(
            "--filter",
            metavar="NAME=VALUE",
            help="Keep only what has this value; NAME=A,B (or NAME given again) any of them; "
            "NAME=A..B from A up to, not including, B (either end may be empty); NAME= no value.",
        ),
    ] = None,
    language: Annotated[
        str | None,
        typer.Option(
            help="Text search configuration that reads the question; by default those of the "
            "corpus's passages."
        ),
    ] = None,
    explain: Annotated[
        bool, typer.Option("--explain", help="Show the statement, its plan and each leg's part.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Find the passages that answer a question best.

    The exit code is 1 where nothing was found and a leg failed, timed out or had no vectors.

    Example: pgcorpus search "premium offer" --mode hybrid --filter chunk_type=atomic_framework
    """
    page = SearchService(Database.from_env()).search(
        question,
        corpus=corpus,
        mode=mode,
        fusion=fusion,
        limit=limit,
        offset=offset,
        filters=read_filters(narrow or []),
        language=language,
    )
    explained = page.explain() if explain and page.explainer else None
    if as_json:
        print_json(page.as_json() | ({"explanation": asdict(explained)} if explained else {}))
    else:
        show(page, offset)
        if explained:
            out.print(tree(page, explained))
    if not page.hits and any(map(could_not_answer, page.legs)):
        raise typer.Exit(1)


def could_not_answer(leg: Leg) -> bool:
    """Whether a leg failed, timed out or had no vectors.

    A text leg is skipped for what the question is, which is no failure.
    """
    return leg.status in {"failed", "timed_out"} or (leg.name, leg.status) == ("vector", "skipped")


def read_filters(pairs: list[str]) -> dict[str, Any]:
    """``name=value`` pairs as ``Corpus.narrowed`` takes them."""
    filters: dict[str, Any] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name:
            raise typer.BadParameter(f"{pair!r} is not NAME=VALUE", param_hint="--filter")
        low, dots, high = value.partition("..")
        if dots:
            read: Any = {bound: end for bound, end in (("gte", low), ("lt", high)) if end}
        else:
            read = [each or None for each in value.split(",")]
        if name in filters and (dots or isinstance(filters[name], dict)):
            raise typer.BadParameter(f"{name} has a range and more", param_hint="--filter")
        filters[name] = read if dots else filters.get(name, []) + read
    return filters


def show(page: SearchPage, offset: int = 0) -> None:
    """A page as a table: what was found, by which leg, and what each leg did."""
    names = [leg.name for leg in page.legs]
    beside = TITLE_CHARACTERS + 22 + 13 * len(names)  # what the other columns take of the width
    preview = max(LEAST_PREVIEW_CHARACTERS, out.width - beside)
    how = f"{page.mode}, {page.fusion}" if page.mode == "hybrid" else page.mode
    table(
        f"{page.question}  ({page.corpus}, {how})",
        ["", "score", *names, "title", "content"],
        [
            (
                place,
                f"{hit.score:.4f}",
                *(_of_leg(hit, name) for name in names),
                cut(hit.title, TITLE_CHARACTERS),
                cut(hit.content, preview),
            )
            for place, hit in enumerate(page.hits, start=offset + 1)
        ],
    )
    for leg in page.legs:
        reason = f" ({leg.reason})" if leg.reason else ""
        out.print(f"  {told(leg)}{reason}", markup=False, highlight=False)
    if page.note:
        say(f"  note: {page.note}")


def _of_leg(hit: Hit, name: str) -> str:
    rank = f"#{hit.ranks[name]}" if name in hit.ranks else "  "
    return f"{hit.scores[name]:.3f} {rank}" if name in hit.scores else "-"
