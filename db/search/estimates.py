"""Estimates of row counts: the one place where rows are told without being counted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, Final

from sqlalchemy import (
    ColumnElement,
    Double,
    Select,
    String,
    cast,
    column,
    literal,
    literal_column,
    select,
    table,
)
from sqlalchemy.dialects.postgresql import REGCLASS

from pgcorpus.db.search.corpus import Condition, Corpus
from pgcorpus.db.search.driver import in_drivers_words
from pgcorpus.db.search.ranking import Shape, select_matching

ANALYSED_ROWS: Final = "greatest(pg_class.reltuples, 0)"
"""The rows of a table in ``pg_class`` at its last ANALYZE: what changes since then are compared
with, as autovacuum does."""

GROWTH: Final = """
    CASE WHEN pg_class.relpages > 0 THEN
        pg_relation_size(pg_class.oid)::float8 / current_setting('block_size')::integer
        / pg_class.relpages
    ELSE 0 END"""
"""Present pages of a table per page of its last ANALYZE; 0 before the first."""

ROWS: Final = f"{ANALYSED_ROWS} * ({GROWTH})"
"""Its rows now, as the planner estimates them: in proportion to the table's present size, rows that
were changed since then included until VACUUM."""


def estimate_passages(corpus: Corpus) -> ColumnElement[float]:
    """Estimate the passages as the planner does: all, or those that are shared where some are.

    The shared ones are those of a partial index, which has an estimate of its own.
    """
    pg_class = table("pg_class", column("oid"), column("reltuples", Double))
    rows: ColumnElement[float] = literal_column(ROWS, Double)
    if corpus.shared_words is not None:
        index = pg_class.alias("of_index")
        of_index = cast(literal(corpus.shared_words, String()), REGCLASS)
        shared = select(index.c.reltuples).where(index.c.oid == of_index).scalar_subquery()
        rows = shared * literal_column(f"({GROWTH})", Double)
    passages = cast(literal(corpus.passages.name, String()), REGCLASS)
    return select(rows).where(pg_class.c.oid == passages).scalar_subquery()


@lru_cache(maxsize=512)
def explain_matching(corpus: Corpus, conditions: tuple[Condition, ...], demanding: bool) -> str:
    """Compile the EXPLAIN of the passages that meet filters and demands."""
    shape = Shape(corpus=corpus, legs=(), conditions=conditions, demanding=demanding)
    return _explain(select_matching(corpus, shape.narrowing()))


@lru_cache(maxsize=512)
def explain_own(corpus: Corpus) -> str:
    """Compile the EXPLAIN of the scope's own passages."""
    *_, own = corpus.split_scope(corpus.passages)
    return _explain(select(literal_column("1")).select_from(corpus.passages).where(*own))


def read_estimate(plan: Sequence[Mapping[str, Any]]) -> float:
    """Return the number of rows that a plan, as EXPLAIN gives it in JSON, expects."""
    return float(plan[0]["QUERY PLAN"][0]["Plan"]["Plan Rows"])


def _explain(statement: Select[Any]) -> str:
    return f"EXPLAIN (FORMAT JSON) {in_drivers_words(statement)}"
