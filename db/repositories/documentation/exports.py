"""A collection as an old SQLite file has it, row by row in the order of the file.

Rows that came from such a file keep their numbers; others, and those whose number another row has,
are numbered behind the greatest.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, closing, contextmanager
from typing import Any, Final

from sqlalchemy import (
    CTE,
    BigInteger,
    ColumnElement,
    FromClause,
    Select,
    Table,
    Text,
    and_,
    case,
    cast,
    column,
    exists,
    func,
    literal,
    null,
    select,
)
from sqlalchemy.dialects.postgresql import JSONB, aggregate_order_by

from pgcorpus.db.base import set_local, table_of
from pgcorpus.db.models.documentation import (
    KEPT,
    Chunk,
    ClickFeedback,
    Document,
    DocumentationEmbedding,
    SearchSession,
)
from pgcorpus.db.repositories.base import Repository
from pgcorpus.db.search.corpora import DOCUMENTATION

_documents = table_of(Document)
_chunks = table_of(Chunk)
_vectors = table_of(DocumentationEmbedding)
_clicks = table_of(ClickFeedback)
_pages = table_of(SearchSession)

Rows = Iterator[Mapping[str, Any]]
"""Rows of a cursor that the context closes, each by the names of its columns."""

ROWS_AT_A_TIME: Final = 500
"""Rows of a cursor that are in memory together."""

_NUMBER: Final = "^[0-9]{1,15}$"
_OWN_TABLE: Final = "click_feedback"
"""The old table that clicks are written into which were recorded here."""


class DocumentExportRepository(Repository):
    """Reads a collection of the scope, or without one what is everybody's."""

    def begin(self) -> None:
        """Make the transaction one snapshot without a timeout; must come first in it."""
        self.session.connection(
            execution_options={"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}
        )
        self.lift_timeout()
        # The planner expects a few numbered rows, and would join them one by one with all others.
        self.session.execute(set_local({"enable_nestloop": "off"}))

    def count_documents(self, collection: str) -> tuple[int, int]:
        """Return how many documents there are, and how many of them are whole as crawled."""
        kept = _documents.c.metadata[KEPT]
        whole = and_(
            kept["content"].astext.is_not(None),
            kept["of"].astext.is_not_distinct_from(_documents.c.hash),
        )
        counted = select(func.count(), func.count().filter(whole)).where(
            *self._in_scope(_documents), _documents.c.collection == collection
        )
        total, crawled = self.session.execute(counted).one()
        return total, crawled

    def list_zones(self, collection: str) -> list[str]:
        """Return the zones in which local times of clicks were read."""
        zone = _clicks.c.metadata[KEPT]["timestamp"]["assumed"].astext
        numbered = self._number_chunks(collection)
        found = (
            select(zone)
            .distinct()
            .join_from(_clicks, numbered, _is_on(numbered))
            .where(*self._in_scope(_clicks), zone.is_not(None))
        )
        return list(self.session.scalars(found))

    def stream_documents(self, collection: str) -> AbstractContextManager[Rows]:
        """Read the columns of each document, and its ``number``."""
        numbered = self._number_documents(collection)
        return self._stream(
            select(_documents, numbered.c.number)
            .join_from(numbered, _documents, _documents.c.id == numbered.c.id)
            .where(*self._in_scope(_documents))
            .order_by(numbered.c.number)
        )

    def stream_chunks(self, collection: str, model_name: str) -> AbstractContextManager[Rows]:
        """Read the columns of each chunk, by document.

        Args:
            collection: Of the documents.
            model_name: Model of the vectors; of a chunk that came with another one's, that.

        Returns:
            Also ``number``, ``document`` (its number) and ``embedding``: float32 of shape
            ``(dimensions,)``, or None.
        """
        numbered = self._number_chunks(collection)
        model = func.coalesce(_chunks.c.metadata[KEPT]["model"].astext, model_name)
        columns = (each for each in _chunks.c if each.name != "chunk_search")
        return self._stream(
            select(*columns, numbered.c.number, numbered.c.document, _vectors.c.embedding)
            .join_from(numbered, _chunks, _chunks.c.id == numbered.c.id)
            .outerjoin(
                _vectors,
                and_(
                    _vectors.c.scope == _chunks.c.scope,
                    _vectors.c.chunk_id == _chunks.c.id,
                    _vectors.c.model_name == model,
                ),
            )
            .where(*self._in_scope(_chunks))
            .order_by(numbered.c.document, numbered.c.number)
        )

    def stream_clicks(self, collection: str) -> AbstractContextManager[Rows]:
        """Read the columns of each click on a chunk of the collection.

        Returns:
            Also ``number`` in its ``table``, and ``chunk``: the number of the chunk.
        """
        chunks = self._number_chunks(collection)
        kept = _clicks.c.metadata[KEPT]
        table = func.coalesce(kept["table"].astext, _OWN_TABLE)
        found = (
            select(
                *_clicks.c,
                table.label("table"),
                chunks.c.number.label("chunk"),
                _read_number(kept["id"]).label("kept"),
            )
            .join_from(_clicks, chunks, _is_on(chunks))
            .where(*self._in_scope(_clicks))
            .cte("found")
        )
        numbered = _number(found, [found.c.created_at, found.c.id], [found.c.table])
        return self._stream(
            select(found, numbered.c.number)
            .join_from(found, numbered, numbered.c.id == found.c.id)
            .order_by(found.c.table, numbered.c.number)
        )

    def stream_sessions(self, collection: str) -> AbstractContextManager[Rows]:
        """Read each visit that came with the collection, or was shown a chunk of it.

        Returns:
            ``number``, ``session_id``, ``user_id``; ``started``, ``ended``, ``queries`` and
            ``clicks`` of what was recorded here; ``kept`` of what was imported, or None.
        """
        chunks = self._number_chunks(collection)
        kept = _pages.c.metadata[KEPT]
        each = (
            func.jsonb_array_elements(_pages.c.shown)
            .table_valued(column("hit", JSONB))
            .render_derived()
        )
        was_shown = exists(
            select(literal(1))
            .select_from(each)
            .where(each.c.hit["id"].astext.in_(select(cast(chunks.c.id, Text)).scalar_subquery()))
        )
        is_own = kept.is_(None)
        clicks = (
            select(func.count())
            .join_from(_clicks, chunks, _is_on(chunks))
            .where(
                *self._in_scope(_clicks),
                _clicks.c.session_id == _pages.c.session_id,
                _clicks.c.clicked,
                _clicks.c.metadata[KEPT].is_(None),
            )
            .correlate(_pages)
            .scalar_subquery()
        )
        imported = func.array_agg(
            aggregate_order_by(kept, _pages.c.created_at, _pages.c.id)
        ).filter(~is_own)[1]
        found = (
            select(
                _pages.c.session_id,
                func.max(_pages.c.user_id).label("user_id"),
                func.min(_pages.c.created_at).filter(is_own).label("started"),
                func.max(_pages.c.created_at).filter(is_own).label("ended"),
                func.count().filter(is_own).label("queries"),
                clicks.label("clicks"),
                imported.label("kept_values"),
            )
            .where(
                *self._in_scope(_pages),
                case((is_own, was_shown), else_=kept["collection"].astext == collection),
            )
            .group_by(_pages.c.session_id)
            .cte("found")
        )
        named = select(
            found.c.session_id.label("id"),
            _read_number(found.c.kept_values["id"]).label("kept"),
            found.c.started,
        ).cte("named")
        numbered = _number(named, [named.c.started, named.c.id], [])
        return self._stream(
            select(
                *(each for each in found.c if each.name != "kept_values"),
                found.c.kept_values.label("kept"),
                numbered.c.number,
            )
            .join_from(found, numbered, numbered.c.id == found.c.session_id)
            .order_by(numbered.c.number)
        )

    def _number_documents(self, collection: str) -> CTE:
        """Give the documents numbers."""
        documents = (
            select(
                _documents.c.id,
                _documents.c.path,
                _read_number(_documents.c.metadata[KEPT]["document"]).label("kept"),
            )
            .where(*self._in_scope(_documents), _documents.c.collection == collection)
            .cte("documents_found")
        )
        return _number(documents, [documents.c.path], [])

    def _number_chunks(self, collection: str) -> CTE:
        """Give the chunks numbers, beside that of their ``document``."""
        documents = self._number_documents(collection)
        chunks = (
            select(
                _chunks.c.id,
                _chunks.c.position,
                documents.c.number.label("document"),
                _read_number(_chunks.c.metadata[KEPT]["id"]).label("kept"),
            )
            .join_from(_chunks, documents, documents.c.id == _chunks.c.document_id)
            .where(*self._in_scope(_chunks))
            .cte("chunks_found")
        )
        return _number(
            chunks, [chunks.c.document, chunks.c.position], [], beside=[chunks.c.document]
        )

    @contextmanager
    def _stream(self, statement: Select[Any]) -> Iterator[Rows]:
        """Read rows through a cursor of the server's, some at a time, and close it."""
        rows = self.session.execute(statement, execution_options={"yield_per": ROWS_AT_A_TIME})
        with closing(rows):
            yield (dict(row) for row in rows.mappings())

    def _in_scope(self, table: Table) -> tuple[ColumnElement[bool], ...]:
        """Restrict *table* to the rows of the one scope."""
        return (table.c.scope == literal(DOCUMENTATION.name_scope(self.scope), Text()),)


def _is_on(chunks: FromClause) -> ColumnElement[bool]:
    """Join clicks with the scope's own chunks."""
    return and_(_clicks.c.chunk_scope == _clicks.c.scope, _clicks.c.chunk_id == chunks.c.id)


def _read_number(value: ColumnElement[Any]) -> ColumnElement[int]:
    """Read a kept number; null where there is none."""
    text = cast(value, Text)
    return case((text.regexp_match(_NUMBER), cast(text, BigInteger)), else_=null())


def _number(
    rows: CTE,
    order: list[ColumnElement[Any]],
    within: list[ColumnElement[Any]],
    *,
    beside: list[ColumnElement[Any]] | None = None,
) -> CTE:
    """Number rows: by what they have ``kept``, where they are the first that has.

    Args:
        rows: With ``id`` and ``kept``.
        order: Of those that are numbered here.
        within: The numbers are unique among rows that have these in common.
        beside: Columns that the result has beside ``id`` and ``number``.
    """
    turn = func.row_number().over(partition_by=[*within, rows.c.kept], order_by=order)
    ranked = select(rows, and_(rows.c.kept.is_not(None), turn == 1).label("own")).subquery()
    names = [each.name for each in (*within, *order)]
    ordered = [ranked.c[name] for name in names]
    groups = [ranked.c[each.name] for each in within]
    greatest = func.max(ranked.c.kept).over(partition_by=groups or None)
    behind = func.row_number().over(partition_by=[*groups, ranked.c.own], order_by=ordered or None)
    number = case((ranked.c.own, ranked.c.kept), else_=func.coalesce(greatest, 0) + behind)
    columns = [ranked.c[each.name] for each in beside or ()]
    return (
        select(ranked.c.id, number.label("number"), *columns)
        .cte(f"{rows.name}_numbered")
        .prefix_with("MATERIALIZED")
    )
