"""Rows of passages and vectors stay whole, as long as they fit on a page."""

from __future__ import annotations

import random

from sqlalchemy import text

from pgcorpus.db.search.corpora import list_corpora
from pgcorpus.db.uow import UnitOfWork
from tests.factories import FrameworkDocumentFactory

WORDS = 250
"""Number of words of a passage, which is then larger than PostgreSQL leaves alone by default."""


def test_rows_of_every_corpus_stay_whole(work: UnitOfWork) -> None:
    """Of the tables of passages, which are searched by words, and of those of vectors."""
    tables = {table.name for each in list_corpora() for table in (each.passages, each.vectors)}

    options = work.session.execute(
        text("SELECT relname, reloptions FROM pg_class WHERE relname = ANY (:tables)"),
        {"tables": list(tables)},
    ).all()

    assert {row.relname for row in options if whole(row.reloptions)} == tables


def test_a_long_passage_is_read_as_it_is(work: UnitOfWork) -> None:
    """Neither its text nor its words are decompressed for a search."""
    source = random.Random(7)  # noqa: S311 - no secret
    content = " ".join(f"word{source.randrange(10_000)}" for _ in range(WORDS))
    FrameworkDocumentFactory(content=content)
    work.session.flush()

    stored = work.session.execute(
        text("""
            SELECT pg_column_compression(content), pg_column_compression(search_vector),
                   pg_column_size(search_vector) AS size
            FROM framework_documents
        """)
    ).one()

    assert stored[:2] == (None, None)
    assert stored.size > 2040


def whole(options: list[str] | None) -> bool:
    """Return whether rows of a table stay whole up to a page."""
    return "toast_tuple_target=8160" in (options or ())
