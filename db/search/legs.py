"""The three ways to find passages, each as one SELECT of (passage_id, score, place)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from pgvector.sqlalchemy import HALFVEC
from sqlalchemy import (
    CTE,
    ColumnElement,
    Double,
    ScalarSelect,
    Select,
    String,
    Text,
    bindparam,
    cast,
    column,
    func,
    literal,
    select,
    table,
    true,
)
from sqlalchemy.dialects.postgresql import REAL, REGCLASS, REGCONFIG, TSQUERY, array

from db.base import Vector
from db.mixins import HALFVEC_MAX_DIMENSIONS
from db.search.corpus import Corpus

CANDIDATE_BUDGET: Final = 2000
"""The rarest words of a question are looked up until their frequencies sum to this many passages;
all its words are scored on those. Measured on 114,000 passages: 12 ms instead of 109 to 390 ms at
the same nDCG on long questions."""

MAX_SCORED_WORDS: Final = 64
"""Of a longer question the rarest words are scored; the rest hardly changes an order, and costs."""

WEIGHTS: Final = (0.5, 0.5, 0.5, 1.0)
"""What an occurrence counts by its label D, C, B, A: a word in the title (A) twice a word in the
text (D)."""

TYPICAL_RANK: Final = 0.06
"""What ts_rank gives a passage of about 60 words that holds each word of the question once. It
counts as half: ts_rank alone stays far below 1, and beside a cosine would weigh next to nothing."""

FUZZY_THRESHOLD: Final = 0.3
"""Least word similarity that counts as found: pg_trgm's default for whole strings."""

MAX_FUZZY_CHARACTERS: Final = 300
"""Trigrams compare what somebody types, not pages: a longer question is cut here."""

AS_CONCAT: Final = 10
"""To PostgreSQL ``<%`` binds like ``||``: its operands need parentheses."""


@dataclass(frozen=True)
class AskedModel:
    """The embedding model of a search: its name and the length of its vectors."""

    name: str
    dimensions: int


@dataclass(frozen=True, kw_only=True)
class Narrowing:
    """What must hold of a passage beside being found.

    Attributes:
        conditions: On the passage's row.
        few: Whether so few passages meet them that all their vectors are compared and all their
            words scored: an index would have to be read far to find enough of them.
    """

    conditions: Sequence[ColumnElement[bool]] = ()
    few: bool = False


def vector(
    corpus: Corpus, model: AskedModel, asked: np.ndarray, depth: int, narrowing: Narrowing
) -> Select[Any]:
    """Nearest by cosine: candidates by the half-precision index, ranked by the full vectors.

    Args:
        corpus: What is searched.
        model: Whose vectors.
        asked: float32 of shape ``(model.dimensions,)``.
        depth: Candidates, at most.
        narrowing: What must hold of a passage.

    Returns:
        ``score`` is the cosine similarity, 0 where it is negative.
    """
    question = bindparam("question_vector", asked, type_=Vector())
    embedding: ColumnElement[Any] = corpus.vectors.c.embedding
    near = select(corpus.item.label("passage_id"), embedding.label("embedding")).where(
        # A literal, or the planner cannot see that the partial index serves.
        corpus.vectors.c.model_name
        == bindparam("model_name", model.name, type_=String(), literal_execute=True)
    )
    if narrowing.conditions:
        near = near.join_from(corpus.vectors, corpus.passages, corpus.key == corpus.item)
        near = near.where(*narrowing.conditions)
    if not narrowing.few and model.dimensions <= HALFVEC_MAX_DIMENSIONS:
        # The bare shape ORDER BY ... LIMIT that the index serves.
        half = HALFVEC(model.dimensions)
        near = near.order_by(cast(embedding, half).op("<=>")(cast(question, half))).limit(depth)
    candidates = near.cte("vector_candidates").prefix_with("MATERIALIZED")
    distance = cast(candidates.c.embedding.op("<=>")(question), Double)
    return _placed(
        select(candidates.c.passage_id, func.greatest(1 - distance, 0, type_=Double)), depth
    )


def text(corpus: Corpus, terms: CTE, depth: int, narrowing: Narrowing) -> Select[Any]:
    """By words, each counting as much as it is rare: how much of the question a passage holds.

    Args:
        corpus: What is searched.
        terms: From ``scored_terms``.
        depth: Candidates, at most.
        narrowing: What must hold of a passage.

    Returns:
        ``score`` in [0, 1]: with r = Σ idf · rank over Σ idf, over the words of the question (each
        as often as it was asked), it is r / (r + ``TYPICAL_RANK``). It does not depend on what
        else was found.
    """
    looked_up = select(terms.c.query)
    if not narrowing.few:
        looked_up = looked_up.where(terms.c.within_budget)
    queries = looked_up.subquery()
    any_of_them = select(
        cast(func.string_agg(cast(queries.c.query, Text), " | "), TSQUERY)
    ).scalar_subquery()
    rank = func.ts_rank(
        array([cast(weight, REAL) for weight in WEIGHTS]), corpus.words, terms.c.query, 1
    )
    weight = terms.c.times * terms.c.idf
    held = select(func.sum(weight * cast(rank, Double)) / func.sum(weight)).correlate(
        corpus.passages
    )
    found = (
        select(corpus.key.label("passage_id"), held.scalar_subquery().label("held"))
        .where(corpus.words.op("@@")(any_of_them))
        .where(*narrowing.conditions)
        .subquery()
    )
    return _placed(select(found.c.passage_id, found.c.held / (found.c.held + TYPICAL_RANK)), depth)


def scored_terms(corpus: Corpus, words: str, language: str) -> CTE:
    """The lexemes of a question with their rarity, from the statistics ANALYZE keeps.

    Args:
        corpus: What is searched.
        words: The question's words.
        language: The text search configuration that reads them.

    Returns:
        Rows of ``query`` (a tsquery of the one lexeme), ``times`` (how often it was asked),
        ``frequency`` (share of passages that hold it; null before the first ANALYZE), ``idf``
        (1 without a frequency) and ``within_budget`` (whether it is looked up).
    """
    asked = (
        func.unnest(func.to_tsvector(cast(literal(language), REGCONFIG), literal(words)))
        .table_valued(column("lexeme", Text), "positions", "weights")
        .render_derived()
    )
    lexemes = (
        select(asked.c.lexeme, cast(func.cardinality(asked.c.positions), Double).label("times"))
        .cte("asked_lexemes")
        .prefix_with("MATERIALIZED")
    )
    relation = cast(literal(corpus.passages.name), REGCLASS)
    known = func.lexeme_frequencies(
        relation,
        literal(corpus.words.name),
        func.array(select(lexemes.c.lexeme).scalar_subquery()),
    ).table_valued(column("lexeme", Text), column("frequency", Double))
    passages = estimated_passages(corpus)
    rarest = (
        select(lexemes.c.lexeme, lexemes.c.times, known.c.frequency, passages.label("passages"))
        .join_from(lexemes, known, known.c.lexeme == lexemes.c.lexeme)
        .order_by(known.c.frequency, lexemes.c.lexeme)
        .limit(MAX_SCORED_WORDS)
        .subquery()
    )
    half = 0.5 / rarest.c.passages  # half a passage: no frequency is 0 or 1, as in BM25
    so_far = func.sum(rarest.c.frequency).over(
        order_by=(rarest.c.frequency, rarest.c.lexeme), rows=(None, -1)
    )
    quoted = func.replace(func.replace(rarest.c.lexeme, "\\", "\\\\"), "'", "''")
    return (
        select(
            cast(func.concat("'", quoted, "'"), TSQUERY).label("query"),
            rarest.c.times,
            rarest.c.frequency,
            func.coalesce(
                func.ln(1 + (1 - rarest.c.frequency + half) / (rarest.c.frequency + half)), 1
            ).label("idf"),
            func.coalesce(so_far * rarest.c.passages < CANDIDATE_BUDGET, true()).label(
                "within_budget"
            ),
        )
        .cte("terms")
        .prefix_with("MATERIALIZED")
    )


def estimated_passages(corpus: Corpus) -> ScalarSelect[float]:
    """How many passages the last ANALYZE saw, at least 1."""
    pg_class = table("pg_class", column("oid"), column("reltuples"))
    return (
        select(func.greatest(cast(pg_class.c.reltuples, Double), 1, type_=Double))
        .where(pg_class.c.oid == cast(literal(corpus.passages.name), REGCLASS))
        .scalar_subquery()
    )


def fuzzy(corpus: Corpus, words: str, depth: int, narrowing: Narrowing) -> Select[Any]:
    """By trigrams: typos, identifiers, and languages that put no spaces between words.

    Args:
        corpus: What is searched.
        words: The question's words.
        depth: Candidates, at most.
        narrowing: What must hold of a passage.

    Returns:
        ``score`` in [0, 1]: how alike the question and the most similar run of words are.
    """
    asked = literal(words[:MAX_FUZZY_CHARACTERS])
    return _placed(
        select(
            corpus.key.label("passage_id"),
            cast(func.word_similarity(asked, corpus.shown), Double),
        )
        .where(asked.op("<%", precedence=AS_CONCAT)(corpus.shown))
        .where(*narrowing.conditions),
        depth,
    )


def _placed(found: Select[Any], depth: int) -> Select[Any]:
    """The best *depth* of (passage_id, score), numbered; equals are ordered by id."""
    passage_id, score = found.subquery().c
    best = (
        select(passage_id.label("passage_id"), score.label("score"))
        .order_by(score.desc(), passage_id)
        .limit(depth)
        .subquery()
    )
    place = func.row_number().over(order_by=(best.c.score.desc(), best.c.passage_id))
    return select(best.c.passage_id, best.c.score, place.label("place"))
