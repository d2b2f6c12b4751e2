"""pgcorpus search."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from typing import Annotated, Any

import typer
from rich.text import Text

from pgcorpus.db.engine import Database
from pgcorpus.db.search import corpora
from pgcorpus.db.search.context import order_of
from pgcorpus.db.search.metadata import METADATA
from pgcorpus.db.search.page import Hit, Leg, SearchPage
from pgcorpus.db.search.ranking import RRF_K, Fusion
from pgcorpus.db.search.snippets import START, STOP
from pgcorpus.services.cli.explanation import describe_leg, tree
from pgcorpus.services.cli.output import (
    AsJson,
    CorpusName,
    cut,
    out,
    print_json,
    put,
    say,
    table,
    visible,
)
from pgcorpus.services.cli.scope import TenantId, UserId, find_scope
from pgcorpus.services.search.context import MAX_NEIGHBOURS, Context
from pgcorpus.services.search.request import MARKERS, MAX_RRF_K
from pgcorpus.services.search.service import Mode, SearchService
from pgcorpus.services.search.snippets import shorten

TITLE_CHARACTERS = 32
GROUP_CHARACTERS = 36  # a UUID
LEAST_PREVIEW_CHARACTERS = 20


def search(
    question: Annotated[
        str, typer.Argument(help='Words, "a phrase", -word, or: the grammar of web searches.')
    ],
    corpus: CorpusName = "knowledge",
    mode: Annotated[Mode, typer.Option(help="The legs to search with.")] = "hybrid",
    fusion: Annotated[
        Fusion, typer.Option(help="The fusion of the legs' candidates.")
    ] = "calibrated",
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
    where: Annotated[
        str | None,
        typer.Option(
            metavar="JSON",
            help="Keep only what has such free metadata: keys, and operators such as $gte; see "
            "docs/reference/metadata-filters.md.",
        ),
    ] = None,
    language: Annotated[
        str | None,
        typer.Option(
            help="Text search configuration that reads the question; by default those of the "
            "corpus's passages."
        ),
    ] = None,
    group_by: Annotated[
        str | None,
        typer.Option(
            metavar="COLUMN",
            help="Group hits by a column of theirs, as chat's by conversation and documentation's "
            "by document; limit and offset count groups.",
        ),
    ] = None,
    group_size: Annotated[int, typer.Option(help="Hits of a group, at most.")] = 1,
    snippets: Annotated[
        bool | None,
        typer.Option(
            "--snippets/--no-snippets",
            help="Show the words around those of the question, marked, instead of the beginning "
            "of the content. By default only at a terminal.",
        ),
    ] = None,
    neighbours: Annotated[
        int | None,
        typer.Option(
            "--context",
            metavar="PASSAGES",
            min=0,
            max=MAX_NEIGHBOURS,
            help="Passages to show before and after each hit, in a corpus that has an order, as "
            "turns of a chat and chunks of a document have.",
        ),
    ] = None,
    max_tokens: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Tokens of the context, at most: hits first, then the passages nearest to them.",
        ),
    ] = None,
    min_similarity: Annotated[
        float,
        typer.Option(
            min=0.0, max=1.0, help="Cosine below which the vector leg drops what it found."
        ),
    ] = 0.0,
    rrf_k: Annotated[
        int,
        typer.Option(
            "--rrf-k",
            min=0,
            max=MAX_RRF_K,
            help="Constant of rrf: the greater, the less the first places count for.",
        ),
    ] = RRF_K,
    tenant_id: TenantId = None,
    user_id: UserId = None,
    boost: Annotated[
        float,
        typer.Option(
            min=0.0,
            max=1.0,
            help="Share of its score by which a memory rises, at most, for being new or often "
            "recalled.",
        ),
    ] = 0.0,
    learned: Annotated[
        bool,
        typer.Option(
            "--learned/--no-learned", help="Rank by what clicks have taught, where that is applied."
        ),
    ] = True,
    explain: Annotated[
        bool, typer.Option("--explain", help="Show the statement, its plan and each leg's part.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Find the passages that answer a question best.

    The exit code is 1 where nothing was found and a leg failed, timed out or had no vectors.

    Examples:
    pgcorpus search "premium offer" --mode hybrid --filter chunk_type=atomic_framework

    pgcorpus search "premium offer" --corpus chat --filter role=user --filter date=2025-01-01..
    --group-by conversation

    pgcorpus search "premium offer" --where '{"year": {"$gte": 2020}, "author": "Ada"}'

    pgcorpus search "premium offer" --corpus chat --limit 3 --context 2 --max-tokens 2000 --json

    pgcorpus search "premium offer" --corpus memory --tenant-id UUID --boost 0.2
    """
    if max_tokens is not None and neighbours is None:
        raise typer.BadParameter(
            "it bounds the context, which was not asked for; give --context, too",
            param_hint="--max-tokens",
        )
    if neighbours is not None:
        order_of(corpora.get_corpus(corpus))  # refused before anything is searched
    database = Database.from_env()
    scope = find_scope(database, tenant_id, user_id)
    service = SearchService(database)
    page = service.search(
        question,
        corpus=corpus,
        mode=mode,
        fusion=fusion,
        limit=limit,
        offset=offset,
        filters=read_filters(narrow or []) | read_where(where),
        language=language,
        group_by=group_by,
        group_size=group_size,
        snippets=out.is_terminal and not as_json if snippets is None else snippets,
        markers=MARKERS if as_json else (START, STOP),
        scope=scope,
        min_similarity=min_similarity,
        rrf_k=rrf_k,
        boost=boost,
        learned=learned,
    )
    context = None
    if neighbours is not None:
        context = service.context(
            page.hits, before=neighbours, after=neighbours, max_tokens=max_tokens, scope=scope
        )
    explained = page.explain() if explain and page.explainer else None
    if as_json:
        more = {"context": context.as_json()} if context else {}
        more |= {"explanation": asdict(explained)} if explained else {}
        print_json(page.as_json() | more)
    else:
        show(page, offset)
        if context:
            show_context(context)
        if explained:
            out.print(tree(page, explained))
    if not page.hits and any(map(could_not_answer, page.legs)):
        raise typer.Exit(1)


def could_not_answer(leg: Leg) -> bool:
    """Return whether a leg failed, timed out or had no vectors.

    A text leg is skipped for what the question is, which is no failure.
    """
    return leg.status in {"failed", "timed_out"} or (leg.name, leg.status) == ("vector", "skipped")


def read_filters(pairs: list[str]) -> dict[str, Any]:
    """Parse ``name=value`` pairs into filters as ``Corpus.parse_filters`` takes them."""
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
            raise typer.BadParameter(
                f"{name} has a range and other values; give one of the two", param_hint="--filter"
            )
        filters[name] = read if dots else filters.get(name, []) + read
    return filters


def read_where(where: str | None) -> dict[str, Any]:
    """Parse JSON into the filter on free metadata; without any there is no such filter."""
    if where is None:
        return {}
    try:
        return {METADATA: json.loads(where)}
    except (ValueError, RecursionError) as error:
        raise typer.BadParameter(f"it is not JSON: {error}", param_hint="--where") from error


def show(page: SearchPage, offset: int = 0) -> None:
    """Print a page as a table: the hits, the legs that found them, and what each leg did."""
    names = [leg.name for leg in page.legs]
    beside = TITLE_CHARACTERS + 22 + 13 * len(names)  # what the other columns take of the width
    beside += 0 if page.groups is None else GROUP_CHARACTERS + 10
    preview = max(LEAST_PREVIEW_CHARACTERS, out.width - beside)
    how = f"{page.mode}, {page.fusion}" if page.mode == "hybrid" else page.mode
    grouped = [] if page.groups is None else ["group", "hits"]
    table(
        f"{page.question}  ({page.corpus}, {how})",
        ["", *grouped, "score", *names, "title", "content"],
        [
            (
                *beginning,
                f"{hit.score:.4f}",
                *(_of_leg(hit, name) for name in names),
                cut(hit.title, TITLE_CHARACTERS),
                cut(hit.content, preview) if hit.snippet is None else _mark(hit.snippet, preview),
            )
            for beginning, hit in _number_hits(page, offset + 1)
        ],
    )
    for leg in page.legs:
        reason = f" ({leg.reason})" if leg.reason else ""
        put(f"  {describe_leg(leg)}{reason}")
    if page.learned:
        put(f"  ranked by what clicks taught: version {page.learned.version}, {page.learned.scope}")
    if page.note:
        say(f"  note: {page.note}")


def show_context(context: Context) -> None:
    """Print the turns around hits, as a prompt would have them, hits in bold."""
    for excerpt in context.excerpts:
        for turn, block in excerpt.blocks():
            out.print()
            out.print(Text(visible(block), style="bold" if turn is None or turn.is_hit else ""))
    say(f"  context: about {context.tokens} tokens")
    if context.note:
        say(f"  note: {context.note}")


def _number_hits(page: SearchPage, first: int) -> Iterator[tuple[tuple[object, ...], Hit]]:
    """Yield each hit with what its row begins with.

    It begins with the hit's number, or at the first hit of a group with the group.
    """
    if page.groups is None:
        yield from (((place,), hit) for place, hit in enumerate(page.hits, start=first))
        return
    for place, group in enumerate(page.groups, start=first):
        yield (place, cut(str(group.key), GROUP_CHARACTERS), group.found), group.hits[0]
        yield from ((("", "", ""), hit) for hit in group.hits[1:])


def _mark(snippet: str, characters: int) -> Text:
    """Return a snippet with its marked words in bold, which a file cannot show."""
    before, after = ("", "") if out.is_terminal else MARKERS
    beginning, *parts = shorten(snippet, characters).split(START)
    text = Text(visible(beginning))
    for part in parts:
        marked, _, plain = part.partition(STOP)
        text.append(f"{before}{visible(marked)}{after}", style="bold").append(visible(plain))
    return text


def _of_leg(hit: Hit, name: str) -> str:
    rank = f"#{hit.ranks[name]}" if name in hit.ranks else "  "
    return f"{hit.scores[name]:.3f} {rank}" if name in hit.scores else "-"
