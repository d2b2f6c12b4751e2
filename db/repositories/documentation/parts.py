"""Documents and chunks one by one, as the old documentation system's interface stores them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple
from uuid import UUID

from sqlalchemy import ColumnElement, Table, Text, delete, func, literal, select
from sqlalchemy.dialects.postgresql import insert

from pgcorpus.db.base import table_of
from pgcorpus.db.errors import MissingReference
from pgcorpus.db.models.documentation import KEPT, Chunk, Document, DocumentationEmbedding
from pgcorpus.db.repositories.base import Repository
from pgcorpus.db.repositories.documentation.feedback import FeedbackRepository
from pgcorpus.db.search.corpora import DOCUMENTATION

_documents = table_of(Document)
_chunks = table_of(Chunk)
_vectors = table_of(DocumentationEmbedding)

_EMBEDDED: Final = ("heading_path", "text")
"""Columns of which a chunk's vector is made."""


class Counts(NamedTuple):
    """Numbers of rows of a collection of the scope."""

    documents: int
    chunks: int
    embedded: int


class DocumentPartRepository(Repository):
    """Documents and chunks of the scope, or without one those that are everybody's."""

    def put_document(self, path: str, values: Mapping[str, Any], *, collection: str) -> UUID:
        """Store what is known of a document, in place of what was known of its path.

        Args:
            path: Within the collection.
            values: Columns by name; others stay.
            collection: The collection that it belongs to.

        Returns:
            Its key, which stays.
        """
        merge = insert(_documents).values(
            tenant_id=None if self.scope is None else self.scope.tenant_id,
            scope=self._scope_name,
            collection=collection,
            path=path,
            **values,
        )
        key: UUID = self.session.execute(
            merge.on_conflict_do_update(
                index_elements=["scope", "collection", "path"], set_=dict(values)
            ).returning(_documents.c.id)
        ).scalar_one()
        return key

    def put_chunk(self, document_id: UUID, name: str, values: Mapping[str, Any]) -> UUID:
        """Store a chunk, in place of the document's chunk of the same name.

        Where another document of the collection has a chunk of that name, the name is kept in the
        metadata, and ``chunk_id`` is made of it and the document's key.

        Args:
            document_id: Its document's key.
            name: Unique within the document.
            values: Columns by name.

        Returns:
            Its key, which stays. Where the text or its headings change, its vectors go.

        Raises:
            MissingReference: The scope has no such document.
        """
        document = self.session.scalar(
            select(Document)
            .where(*self._in_scope(_documents), Document.id == document_id)
            .with_for_update()  # or two chunks would be given one position
        )
        if document is None:
            raise MissingReference(f"there is no document {document_id} in this scope")
        names = (name, f"{document_id}/{name}")
        stored = {
            each.chunk_id: each
            for each in self.session.scalars(
                select(Chunk).where(
                    *self._in_scope(_chunks),
                    Chunk.collection == document.collection,
                    Chunk.chunk_id.in_(names),
                )
            )
        }
        taken = name in stored and stored[name].document_id != document_id
        chunk = stored.get(names[taken])
        details = {**document.details, KEPT: {"chunk_id": name}} if taken else document.details
        if chunk is None:
            last = select(func.max(Chunk.position)).where(
                *self._in_scope(_chunks), Chunk.document_id == document_id
            )
            position = self.session.scalar(last)
            chunk = Chunk(
                tenant_id=document.tenant_id,
                scope=document.scope,
                document_id=document_id,
                collection=document.collection,
                chunk_id=names[taken],
                position=0 if position is None else position + 1,
                details=details,
                **values,
            )
            self.session.add(chunk)
        else:
            if any(getattr(chunk, column) != values[column] for column in _EMBEDDED):
                self.session.execute(
                    delete(_vectors).where(
                        *self._in_scope(_vectors), _vectors.c.chunk_id == chunk.id
                    )
                )
            for column, value in values.items():
                setattr(chunk, column, value)
        self.session.flush()
        return chunk.id

    def find_chunk(self, chunk_id: str, *, collection: str) -> tuple[Chunk, Document] | None:
        """Return a chunk that the transaction may read, by its key or its name, with its document.

        Args:
            chunk_id: The key, the ``chunk_id``, or the name or number that an old file gave it.
            collection: Of the documents.
        """
        found = FeedbackRepository(self.session).find_chunk_key(chunk_id, collection=collection)
        if found is None:
            return None
        row = self.session.execute(
            select(Chunk, Document)
            .join(Document, (Document.scope == Chunk.scope) & (Document.id == Chunk.document_id))
            .where(Chunk.scope == found[0], Chunk.id == found[1])
        ).one()
        return row[0], row[1]

    def count(self, collection: str, model_name: str) -> Counts:
        """Count documents, chunks, and those that have a vector of the model."""
        documents = select(func.count()).where(
            *self._in_scope(_documents), _documents.c.collection == collection
        )
        own = (*self._in_scope(_chunks), _chunks.c.collection == collection)
        embedded = (
            select(func.count())
            .join_from(_chunks, _vectors, DOCUMENTATION.vector_join)
            .where(*own, *self._in_scope(_vectors), _vectors.c.model_name == model_name)
        )
        return Counts(
            *self.session.execute(
                select(
                    documents.scalar_subquery(),
                    select(func.count()).where(*own).scalar_subquery(),
                    embedded.scalar_subquery(),
                )
            ).one()
        )

    @property
    def _scope_name(self) -> str:
        return DOCUMENTATION.name_scope(self.scope)

    def _in_scope(self, table: Table) -> tuple[ColumnElement[bool], ...]:
        """Restrict *table* to the rows of the one scope."""
        return (table.c.scope == literal(self._scope_name, Text()),)
