"""Documentation and one's own documents: chunks under their headings, shared or a tenant's."""

from __future__ import annotations

from typing import Final

from sqlalchemy import and_, func, literal_column

from pgcorpus.db.base import table_of
from pgcorpus.db.models.documentation import Chunk, ChunkBoost, Document, DocumentationEmbedding
from pgcorpus.db.search.corpus import Corpus, Filter, Order

_chunks = table_of(Chunk)
_documents = table_of(Document)
_vectors = table_of(DocumentationEmbedding)

_of_document = and_(_documents.c.scope == _chunks.c.scope, _documents.c.id == _chunks.c.document_id)
_text = func.chunk_text(_chunks.c.heading_path, _chunks.c.text, type_=_chunks.c.text.type)
_citation = func.concat(  # what is null is left out
    _documents.c.path,
    literal_column("'#'").op("||")(func.nullif(_chunks.c.anchor, "")),
    literal_column("', page '").op("||")(_chunks.c.page),
)

DOCUMENTATION: Final = Corpus(
    name="documentation",
    passages=_chunks,
    key=_chunks.c.id,
    text=_text,
    words=_chunks.c.chunk_search,
    language=_chunks.c.language,
    shown=_text,
    vectors=_vectors,
    item=_vectors.c.chunk_id,
    scope=_chunks.c.scope,
    shared_words="chunks_text_gin_idx",
    boosts=table_of(ChunkBoost),
    labels=("citation",),
    metadata_column=_chunks.c.metadata,
    filters={
        "captured_at": Filter(column=_documents.c.captured_at, through=_of_document),
        "chunk_id": Filter(column=_chunks.c.chunk_id),
        "collection": Filter(column=_chunks.c.collection),
        "content_type": Filter(column=_documents.c.content_type, through=_of_document),
        "language": Filter(column=_documents.c.language, through=_of_document),
        "path": Filter(column=_documents.c.path, through=_of_document),
        "path_prefix": Filter(column=_documents.c.path, through=_of_document, prefix=True),
        "source": Filter(column=_documents.c.source_url, through=_of_document),
    },
    hits=(
        _chunks.join(_documents, _of_document)
        .select()
        .with_only_columns(
            _chunks.c.id,
            func.coalesce(
                func.nullif(func.heading_text(_chunks.c.heading_path), ""),
                _documents.c.title,
                _documents.c.path,
            ).label("title"),
            _chunks.c.text.label("content"),
            _citation.label("citation"),
            _chunks.c.chunk_id,
            _chunks.c.document_id.label("document"),
            func.coalesce(_documents.c.title, _documents.c.path).label("document_title"),
            _chunks.c.collection,
            _documents.c.path,
            _chunks.c.heading,
            _chunks.c.heading_path,
            _chunks.c.anchor,
            _chunks.c.page,
            _chunks.c.url,
            _documents.c.source_url.label("source"),
            _documents.c.content_type,
            _documents.c.language,
            _documents.c.captured_at,
            _chunks.c.position,
            _chunks.c.metadata,
            (_chunks.c.scope == literal_column("'shared'")).label("shared"),
        )
    ),
    order=Order(
        within=_chunks.c.document_id,
        place=_chunks.c.position,
        title="document_title",
        citation="citation",
        unit="chunk",
    ),
)
