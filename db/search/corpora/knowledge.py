"""The curated knowledge base: chunks, of which each is one whole idea."""

from __future__ import annotations

from typing import Final

from sqlalchemy import and_, func, literal_column, select
from sqlalchemy.dialects.postgresql import ARRAY, TEXT

from pgcorpus.db.base import table_of
from pgcorpus.db.models.knowledge import (
    CHUNK_TYPES,
    ChunkEmbedding,
    DocumentConcept,
    FrameworkDocument,
    FrameworkMetadata,
    KeyConcept,
    SourceLines,
)
from pgcorpus.db.search.corpus import Corpus, Filter

_documents = table_of(FrameworkDocument)
_details = table_of(FrameworkMetadata)
_links = table_of(DocumentConcept)
_concepts = table_of(KeyConcept)
_lines = table_of(SourceLines)
_vectors = table_of(ChunkEmbedding)

_of_document = _details.c.document_id == _documents.c.id

KNOWLEDGE: Final = Corpus(
    name="knowledge",
    passages=_documents,
    key=_documents.c.id,
    text=_documents.c.title + literal_column("E'\\n'") + _documents.c.content,
    words=_documents.c.search_vector,
    language=_documents.c.language,
    shown=_documents.c.title + literal_column("' '") + _documents.c.content,
    vectors=_vectors,
    item=_vectors.c.document_id,
    filters={
        "chunk_id": Filter(column=_documents.c.chunk_id),
        "section": Filter(column=_documents.c.section),
        "source_file": Filter(column=_documents.c.source_file),
        "created_at": Filter(column=_documents.c.created_at),
        "chunk_type": Filter(
            column=_details.c.chunk_type, through=_of_document, choices=CHUNK_TYPES
        ),
        "framework_name": Filter(column=_details.c.framework_name, through=_of_document),
        "validation_passed": Filter(column=_details.c.validation_passed, through=_of_document),
        "concept": Filter(
            column=_concepts.c.concept_name,
            through=and_(
                _links.c.document_id == _documents.c.id, _links.c.concept_id == _concepts.c.id
            ),
        ),
    },
    defaults={"validation_passed": True},
    hits=select(
        _documents.c.id,
        _documents.c.title,
        _documents.c.content,
        _documents.c.chunk_id,
        _documents.c.source_file,
        _documents.c.section,
        _documents.c.description,
        _documents.c.created_at,
        _details.c.chunk_type,
        _details.c.framework_name,
        _details.c.validation_passed,
        _lines.c.start_line,
        _lines.c.end_line,
        func.array(
            select(_concepts.c.concept_name)
            .join_from(_links, _concepts, _links.c.concept_id == _concepts.c.id)
            .where(_links.c.document_id == _documents.c.id)
            .order_by(_concepts.c.concept_name)
            .correlate(_documents)
            .scalar_subquery(),
            type_=ARRAY(TEXT),
        ).label("concepts"),
    )
    .select_from(_documents)
    .outerjoin(_details, _of_document)
    .outerjoin(_lines, _lines.c.document_id == _documents.c.id),
    labels=("chunk_id", "section", "chunk_type"),
    metadata_column=_documents.c.extra,
)
