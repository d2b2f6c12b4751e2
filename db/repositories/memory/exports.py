"""Memories and episodes of one scope, read as they are written into files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import fields
from typing import Any, Final

from sqlalchemy import ColumnElement, Text, and_, cast, func, select

from pgcorpus.db.repositories.base import Repository
from pgcorpus.db.repositories.embeddings import text_hash
from pgcorpus.db.repositories.memory.imports import Kind

Rows = Iterator[Mapping[str, Any]]
"""Rows of a cursor that the context closes, each by the names of its columns."""

ROWS_AT_A_TIME: Final = 500
"""Rows of a cursor that are in memory together."""


class MemoryExportRepository(Repository):
    """Reads what the scope remembers."""

    def begin(self) -> None:
        """Make the transaction one snapshot without a timeout; must come first in it."""
        self.session.connection(
            execution_options={"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}
        )
        self.lift_timeout()

    def count(self, kind: Kind) -> int:
        """Count the records of a kind."""
        kind.corpus.refuse_without(self.scope)
        counted = (
            select(func.count())
            .select_from(kind.corpus.passages)
            .where(*kind.corpus.of_scope(kind.corpus.passages, self.scope))
        )
        return self.session.scalar(counted) or 0

    @contextmanager
    def stream(self, kind: Kind, model_name: str) -> Iterator[Rows]:
        """Read the records of a kind, the oldest first, through a cursor of the server's.

        Args:
            kind: Of which kind they are.
            model_name: Whose vectors are read.

        Yields:
            Rows with the fields of the record, and ``embedding``: float32 of shape
            ``(dimensions,)``, or None where there is no vector of the present text.
        """
        kind.corpus.refuse_without(self.scope)
        passages, vectors = kind.corpus.passages, kind.corpus.vectors
        columns: list[ColumnElement[Any]] = [
            passages.c[field.name]
            if field.name != "language"
            else cast(passages.c.language, Text).label("language")
            for field in fields(kind.record)
        ]
        found = (
            select(*columns, vectors.c.embedding)
            .outerjoin_from(
                passages,
                vectors,
                and_(
                    kind.corpus.vector_join,
                    vectors.c.scope == passages.c.scope,
                    vectors.c.model_name == model_name,
                    vectors.c.content_hash == text_hash(kind.corpus),
                ),
            )
            .where(*kind.corpus.of_scope(passages, self.scope))
            .order_by(passages.c.created_at, passages.c.id)
        )
        rows = self.session.execute(found, execution_options={"yield_per": ROWS_AT_A_TIME})
        with closing(rows):
            yield (dict(row) for row in rows.mappings())
