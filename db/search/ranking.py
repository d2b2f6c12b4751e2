"""Legs joined into one statement: the union of what they found, fused, and shown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Literal

from sqlalchemy import (
    CTE,
    ColumnElement,
    Double,
    Select,
    bindparam,
    case,
    cast,
    extract,
    func,
    literal_column,
    null,
    select,
    true,
    union_all,
)
from sqlalchemy.dialects.postgresql import JSONB

from db.search.corpus import Corpus

Fusion = Literal["weighted", "rrf"]
FUSIONS: Final[tuple[Fusion, ...]] = ("weighted", "rrf")

RRF_K: Final = 60
"""Reciprocal rank fusion's constant (Cormack, Clarke and Büttcher, SIGIR 2009)."""


def ranked(
    corpus: Corpus,
    legs: Mapping[str, Select[Any]],
    *,
    fusion: Fusion,
    weights: Mapping[str, float],
    limit: int,
    offset: int,
    terms: CTE | None = None,
) -> Select[Any]:
    """The statement of a search: every leg, one snapshot.

    Args:
        corpus: What is searched.
        legs: Name → a SELECT of (passage_id, score, place).
        fusion: ``weighted`` adds weight · score, ``rrf`` adds weight / (60 + place).
        weights: Leg → its weight.
        limit: Hits, at most.
        offset: Hits that are passed over: once, after fusion.
        terms: The question's lexemes, when a leg reads them.

    Returns:
        At least one row. ``report`` is JSON: leg → {candidates, ended}, where ``ended`` is in
        milliseconds from the start of the statement. ``words`` is JSON: how many lexemes were
        asked for, and how many of them have statistics. Where nothing was found, the columns of
        the hit are null.
    """
    found = union_all(*(_of_leg(name, leg) for name, leg in legs.items()))
    candidates = found.cte("candidates").prefix_with("MATERIALIZED")
    gain = _gain(candidates, fusion, weights)
    fused = (
        select(
            candidates.c.passage_id,
            func.sum(gain).label("score"),
            func.jsonb_object_agg(candidates.c.leg, candidates.c.place).label("ranks"),
            func.jsonb_object_agg(candidates.c.leg, candidates.c.score).label("scores"),
            func.jsonb_object_agg(candidates.c.leg, gain).label("contributions"),
        )
        .group_by(candidates.c.passage_id)
        .order_by(func.sum(gain).desc(), candidates.c.passage_id)
        .limit(bindparam("page_limit", limit))
        .offset(bindparam("page_offset", offset))
        .subquery("fused")
    )
    hits = corpus.hits.subquery("hits")
    page = select(fused, *hits.c).join_from(fused, hits, hits.c.id == fused.c.passage_id)
    shown = page.subquery("page")
    done = (
        select(
            candidates.c.leg,
            func.count().label("candidates"),
            func.max(candidates.c.ended).label("ended"),
        )
        .group_by(candidates.c.leg)
        .subquery("done")
    )
    report = select(
        func.jsonb_object_agg(
            done.c.leg,
            func.jsonb_build_object("candidates", done.c.candidates, "ended", done.c.ended),
        ).label("report"),
        _words(terms).label("words"),
    ).subquery("report")
    return (
        select(report, shown)
        .join_from(report, shown, true(), isouter=True)
        .order_by(shown.c.score.desc(), shown.c.passage_id)
    )


def _of_leg(name: str, leg: Select[Any]) -> Select[Any]:
    """A leg's rows under its name, each with the moment it was there."""
    found = leg.subquery(f"{name}_found")
    elapsed = extract("epoch", func.clock_timestamp() - func.statement_timestamp())
    return select(
        literal_column(f"'{name}'").label("leg"),
        found.c.passage_id,
        cast(found.c.score, Double).label("score"),
        found.c.place,
        cast(elapsed * 1000, Double).label("ended"),
    )


def _gain(candidates: CTE, fusion: Fusion, weights: Mapping[str, float]) -> ColumnElement[float]:
    weight = _weight(candidates, weights)
    if fusion == "rrf":
        return weight / (cast(candidates.c.place, Double) + RRF_K)
    return weight * candidates.c.score


def _weight(candidates: CTE, weights: Mapping[str, float]) -> ColumnElement[float]:
    return case(
        *(
            (
                candidates.c.leg == literal_column(f"'{name}'"),
                cast(bindparam(f"weight_{name}", weight), Double),
            )
            for name, weight in weights.items()
        )
    )


def _words(terms: CTE | None) -> ColumnElement[Any]:
    if terms is None:
        return cast(null(), JSONB)
    return (
        select(
            func.jsonb_build_object(
                "asked", func.count(), "with_statistics", func.count(terms.c.frequency)
            )
        )
        .select_from(terms)
        .scalar_subquery()
    )
