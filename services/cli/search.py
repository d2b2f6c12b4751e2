"""pgcorpus search."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated, Any

import typer

from pgcorpus.db.choices import METADATA, RRF_K, Fusion
from pgcorpus.services.choices import (
    MAX_CONTEXT_TOKENS,
    MAX_GROUP_SIZE,
    MAX_LIMIT,
    MAX_NEIGHBOURS,
    MAX_OFFSET,
    MAX_RRF_K,
    Mode,
)
from pgcorpus.services.cli.explanation import tree
from pgcorpus.services.cli.hits import could_not_answer, show_context, show_page
from pgcorpus.services.cli.output import AsJson, CorpusName, Verbose, out, print_json
from pgcorpus.services.cli.scope import TenantId, UserId, find_scope


def search(
    question: Annotated[
        list[str],
        typer.Argument(
            metavar="QUESTION",
            help='Words, "a phrase", -word, or: the grammar of web searches. What begins with - is '
            "put after --, or inside quotes.",
        ),
    ],
    corpus: CorpusName = "knowledge",
    mode: Annotated[Mode, typer.Option(help="The legs to search with.")] = "hybrid",
    fusion: Annotated[
        Fusion, typer.Option(help="The fusion of the legs' candidates.")
    ] = "calibrated",
    limit: Annotated[int, typer.Option(min=1, max=MAX_LIMIT, help="Hits, at most.")] = 10,
    offset: Annotated[int, typer.Option(min=0, max=MAX_OFFSET, help="Hits to pass over.")] = 0,
    narrow: Annotated[
        list[str] | None,
        typer.Option(
            "--filter",
            metavar="NAME=VALUE",
            help="Keep only what has this value; NAME=A,B (or NAME given again) any of them; "
            "NAME=A..B from A up to, not including, B (either end may be empty); NAME= no value. "
            "The names are listed by: pgcorpus filters CORPUS.",
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
    group_size: Annotated[
        int, typer.Option(min=1, max=MAX_GROUP_SIZE, help="Hits of a group, at most.")
    ] = 1,
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
            max=MAX_CONTEXT_TOKENS,
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
    verbose: Verbose = False,
    as_json: AsJson = False,
) -> None:
    """Find the passages that answer a question best.

    The exit code is 1 where nothing was found and a leg failed, timed out or had no vectors.

    Examples:
    pgcorpus search "premium offer" --mode hybrid --filter chunk_type=atomic_framework

    pgcorpus search "premium offer" --corpus chat --filter role=user --filter date=2025-01-01..
    --group-by conversation

    pgcorpus search "premium offer" --where '{"year": {"$gte": 2020}, "author": "Ada"}'

    pgcorpus search -- -discount premium offer

    pgcorpus search "premium offer" --corpus chat --limit 3 --context 2 --max-tokens 2000 --json

    pgcorpus search "premium offer" --corpus memory --tenant-id UUID --boost 0.2
    """
    from pgcorpus.db.engine import Database
    from pgcorpus.db.search import corpora
    from pgcorpus.db.search.context import order_of
    from pgcorpus.db.search.snippets import START, STOP
    from pgcorpus.services.search.request import MARKERS
    from pgcorpus.services.search.service import SearchService

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
        " ".join(question),
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
        show_page(page, offset, verbose=verbose)
        if context:
            show_context(context)
        if explained:
            out.print(tree(page, explained))
    if not page.hits and any(map(could_not_answer, page.legs)):
        raise typer.Exit(1)


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
