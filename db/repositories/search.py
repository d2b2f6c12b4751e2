"""Searches: the ranking statement is put together, run, and its rows read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from sqlalchemy import (
    ColumnElement,
    Select,
    case,
    func,
    literal_column,
    select,
)

from db.repositories.base import Repository
from db.search import legs
from db.search.corpus import Corpus
from db.search.legs import AskedModel, Narrowing
from db.search.page import Hit
from db.search.question import Question
from db.search.ranking import Fusion, ranked

DEPTHS: Final = (100, 1000, 11_000)
"""Candidates of each leg: the first of these that reaches the end of the page. It does not grow
from page to page, or hits would move between pages that are shown and pages to come; 100 is enough
that fusion sees what a second leg finds late."""

FEW: Final = 2000
"""So few passages are compared one by one: that is exact, and cheaper than an index that passes
over what a filter refuses."""

MAX_EF_SEARCH: Final = 1000
"""pgvector's own bound of ``hnsw.ef_search``."""

MAX_SCAN_TUPLES: Final = 200_000
"""How far an index scan goes on under a filter: with at least ``FEW`` passages kept, enough to
find the first hundred in four million."""


@dataclass(frozen=True, kw_only=True)
class Ask:
    """One question to one corpus, ready for the database.

    Attributes:
        question: Taken apart.
        language: Text search configuration that reads it.
        legs: Which legs run, each with its weight.
        model: Whose vectors are compared; needed for the vector leg.
        vector: The question's, float32 of shape ``(model.dimensions,)``.
        fusion: How legs are joined.
        limit: Hits, at most.
        offset: Hits that are passed over.
        filters: As ``Corpus.conditions`` takes them.
    """

    question: Question
    language: str
    legs: Mapping[str, float]
    model: AskedModel | None = None
    vector: np.ndarray | None = None
    fusion: Fusion = "weighted"
    limit: int = 10
    offset: int = 0
    filters: Mapping[str, Any] = field(default_factory=dict)

    @property
    def depth(self) -> int:
        """Candidates of each leg."""
        return next(depth for depth in DEPTHS if depth >= self.limit + self.offset)


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What the database said.

    Attributes:
        hits: Best first.
        candidates: Leg → how many passages it found.
        durations_ms: Leg → its share of the statement's time; legs that found none are absent.
        words_asked: Lexemes in the question; None when no leg read words.
        words_known: Lexemes whose rarity is known; 0 before the first ANALYZE.
        kept: How many passages meet the filters, or None when they are more than ``FEW``.
    """

    hits: tuple[Hit, ...]
    candidates: Mapping[str, int]
    durations_ms: Mapping[str, float]
    words_asked: int | None
    words_known: int | None
    kept: int | None


class SearchRepository(Repository):
    """Ranks the passages of any corpus."""

    def answer(self, corpus: Corpus, ask: Ask) -> Answer:
        """Run a search: one statement, one snapshot, after its settings.

        Raises:
            UnknownFilter: The corpus has no such filter.
            InvalidFilter: A filter's value is of the wrong kind.
            MissingScope: The corpus needs a scope that *ask* does not name.
        """
        ranking, kept = self.prepare(corpus, ask)
        rows = self.session.execute(ranking).all()
        report = rows[0].report or {}
        words = rows[0].words or {}
        return Answer(
            hits=tuple(_hit(row._asdict()) for row in rows if row.id is not None),
            candidates={leg: done["candidates"] for leg, done in report.items()},
            durations_ms=_durations(report),
            words_asked=words.get("asked"),
            words_known=words.get("with_statistics"),
            kept=kept,
        )

    def prepare(self, corpus: Corpus, ask: Ask) -> tuple[Select[Any], int | None]:
        """Set the transaction up for a search.

        Returns:
            The statement that ranks, and how many passages meet the filters (None: more than
            ``FEW``).
        """
        conditions = [
            *corpus.conditions(ask.filters),
            *ask.question.demands(corpus.words, ask.language),
        ]
        kept = self._prelude(corpus, ask, conditions)
        narrowing = Narrowing(conditions=conditions, few=kept is not None)
        return statement(corpus, ask, narrowing), kept

    def count(self, corpus: Corpus) -> int:
        """How many passages the corpus has."""
        return self.session.scalar(select(func.count()).select_from(corpus.passages)) or 0

    def _prelude(
        self, corpus: Corpus, ask: Ask, conditions: Sequence[ColumnElement[bool]]
    ) -> int | None:
        """Settings for this transaction, and how many passages are left to search, if few.

        The settings are the transaction's alone: those of a session would leak through the pool.

        Returns:
            The number of passages that meet the conditions, or None when they are more than
            ``FEW``. The defaults of a corpus keep most of it: where a caller adds nothing, a large
            table is not counted.
        """
        settings = {
            "hnsw.ef_search": min(ask.depth, MAX_EF_SEARCH),
            "hnsw.iterative_scan": "relaxed_order",
            "hnsw.max_scan_tuples": MAX_SCAN_TUPLES,
            "pg_trgm.word_similarity_threshold": legs.FUZZY_THRESHOLD,
        }
        some: Select[Any] = select(literal_column("1")).select_from(corpus.passages)
        some = some.where(*conditions).limit(FEW + 1)
        counted = select(func.count()).select_from(some.subquery()).scalar_subquery()
        # The statistics know a large corpus; only others are counted.
        large = legs.estimated_passages(corpus) > 10 * FEW
        added = len(conditions) > len(corpus.defaults) or bool(ask.filters)
        row = self.session.execute(
            select(
                *(func.set_config(name, str(value), True) for name, value in settings.items()),
                (counted if added else case((large, FEW + 1), else_=counted)).label("kept"),
            )
        ).one()
        return row.kept if row.kept <= FEW else None


def statement(corpus: Corpus, ask: Ask, narrowing: Narrowing) -> Select[Any]:
    """The one statement of a search."""
    words = ask.question.words
    terms = legs.scored_terms(corpus, words, ask.language) if "text" in ask.legs else None
    selects: dict[str, Select[Any]] = {}
    for name in ask.legs:
        if name == "vector" and ask.model is not None and ask.vector is not None:
            selects[name] = legs.vector(corpus, ask.model, ask.vector, ask.depth, narrowing)
        elif name == "text" and terms is not None:
            selects[name] = legs.text(corpus, terms, ask.depth, narrowing)
        elif name == "fuzzy":
            selects[name] = legs.fuzzy(corpus, words, ask.depth, narrowing)
    return ranked(
        corpus,
        selects,
        fusion=ask.fusion,
        weights=ask.legs,
        limit=ask.limit,
        offset=ask.offset,
        terms=terms,
    )


RANKING: Final = (
    "report",
    "words",
    "passage_id",
    "score",
    "ranks",
    "scores",
    "contributions",
    "id",
    "title",
    "content",
)


def _hit(row: Mapping[str, Any]) -> Hit:
    return Hit(
        id=row["id"],
        score=row["score"],
        title=row["title"],
        content=row["content"],
        ranks=row["ranks"],
        scores=row["scores"],
        contributions=row["contributions"],
        metadata={key: value for key, value in row.items() if key not in RANKING},
    )


def _durations(report: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Each leg's own time: legs run one after another, and each notes when it was done."""
    before, durations = 0.0, {}
    for leg, done in sorted(report.items(), key=lambda item: item[1]["ended"]):
        durations[leg] = round(done["ended"] - before, 3)
        before = done["ended"]
    return durations
