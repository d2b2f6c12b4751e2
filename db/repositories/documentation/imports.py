"""Names and vectors of chunks, as an import of an old SQLite file asks and stores them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import numpy as np
from sqlalchemy import Text, and_, literal, or_, select
from sqlalchemy.dialects.postgresql import insert

from pgcorpus.db.base import table_of
from pgcorpus.db.models.documentation import Chunk, Document, DocumentationEmbedding
from pgcorpus.db.repositories.base import Repository
from pgcorpus.db.repositories.embeddings import text_hash
from pgcorpus.db.search.corpora import DOCUMENTATION

_chunks = table_of(Chunk)
_documents = table_of(Document)
_vectors = table_of(DocumentationEmbedding)

_NAMES: Final = {"path": "text", "chunk_id": "text"}
_VECTORS: Final = {"chunk_id": "text", "model_name": "text", "embedding": "vector"}


class DocumentImportRepository(Repository):
    """Chunks of the scope by their ``chunk_id``."""

    def list_taken(self, names: Iterable[tuple[str, str]], *, collection: str) -> set[str]:
        """Return those names that chunks of other documents of the collection have.

        Args:
            names: Path of a document, and the ``chunk_id`` that one of its chunks is to have.
            collection: Of the documents.
        """
        with self.stage("staged_names", _NAMES, names) as staged:
            taken = (
                select(_chunks.c.chunk_id)
                .join_from(
                    staged,
                    _chunks,
                    and_(
                        _chunks.c.scope == literal(self._scope_name, Text()),
                        _chunks.c.collection == collection,
                        _chunks.c.chunk_id == staged.c.chunk_id,
                    ),
                )
                .join(
                    _documents,
                    and_(
                        _documents.c.scope == _chunks.c.scope,
                        _documents.c.id == _chunks.c.document_id,
                    ),
                )
                .where(_documents.c.path != staged.c.path)
            )
            return set(self.session.scalars(taken))

    def store_vectors(self, rows: Iterable[tuple[str, str, np.ndarray]], *, collection: str) -> int:
        """Store vectors of chunks, taken as those of the present texts.

        Args:
            rows: ``chunk_id``, name of a registered model, and vector of its length.
            collection: Of the documents.

        Returns:
            How many are new or differ from what was stored.
        """
        with self.stage("staged_vectors", _VECTORS, rows) as staged:
            found = select(
                _chunks.c.scope,
                _chunks.c.id,
                staged.c.model_name,
                staged.c.embedding,
                text_hash(DOCUMENTATION),
            ).join_from(
                staged,
                _chunks,
                and_(
                    _chunks.c.scope == literal(self._scope_name, Text()),
                    _chunks.c.collection == collection,
                    _chunks.c.chunk_id == staged.c.chunk_id,
                ),
            )
            merge = insert(_vectors).from_select(
                ["scope", "chunk_id", "model_name", "embedding", "content_hash"], found
            )
            values = {name: merge.excluded[name] for name in ("embedding", "content_hash")}
            changed = (_vectors.c[name].is_distinct_from(new) for name, new in values.items())
            result = self.session.connection().execute(
                merge.on_conflict_do_update(
                    index_elements=["scope", "chunk_id", "model_name"],
                    set_=values,
                    where=or_(*changed),
                ),
                execution_options={"preserve_rowcount": True},
            )
        return int(result.rowcount)

    @property
    def _scope_name(self) -> str:
        return DOCUMENTATION.name_scope(self.scope)
