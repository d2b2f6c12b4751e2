"""The curated knowledge base: frameworks, cut into chunks that keep an idea whole."""

from __future__ import annotations

from datetime import date
from typing import Any, Final
from uuid import UUID

from sqlalchemy import (
    CheckConstraint,
    Computed,
    Date,
    Index,
    LargeBinary,
    String,
    Text,
    func,
    literal_column,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB, REGCONFIG, TSVECTOR
from sqlalchemy.orm import Mapped, mapped_column, relationship

from pgcorpus.db.base import Base, now, parent_key, readable_times, uuid_pk
from pgcorpus.db.mixins import Embedded, Timestamped, embedding_constraints
from pgcorpus.db.models.embeddings import vector_indexes

CHUNK_TYPES: Final = ("atomic_framework", "framework_section", "supporting")


class FrameworkDocument(Timestamped, Base):
    """One chunk of the curated knowledge base: a framework is never split inside its idea."""

    __tablename__ = "framework_documents"
    __table_args__ = (
        CheckConstraint("length(trim(content)) > 0", name="non_empty_content"),
        CheckConstraint("length(trim(chunk_id)) > 0", name="non_empty_chunk_id"),
        CheckConstraint("source_file ~ '^[A-Za-z0-9_.-]+$'", name="valid_source_file"),
        readable_times("created_at", "updated_at"),
        Index("idx_documents_chunk_id", "chunk_id"),
        Index("idx_documents_section", "section"),
        Index("idx_documents_source_file", "source_file"),
        Index("idx_documents_created_at", "created_at"),
        Index("idx_documents_content_fts", "search_vector", postgresql_using="gin"),
        Index(
            "idx_documents_title_fts",
            func.to_tsvector(text("'english'"), text("title")),
            postgresql_using="gin",
        ),
        Index(
            "idx_documents_trigram",
            literal_column("((title || ' '::text) || content)").label("shown"),
            postgresql_using="gin",
            postgresql_ops={"shown": "gin_trgm_ops"},
        ),
        Index(
            "idx_documents_extra",
            "extra",
            postgresql_using="gin",
            postgresql_ops={"extra": "jsonb_path_ops"},
        ),
    )

    id: Mapped[uuid_pk]
    chunk_id: Mapped[str] = mapped_column(
        String(255), unique=True, comment="the author's own identifier"
    )
    source_file: Mapped[str] = mapped_column(
        String(255), comment="text that the chunk was cut from"
    )
    section: Mapped[str] = mapped_column(String(255))
    title: Mapped[str] = mapped_column(Text)
    description: Mapped[str | None] = mapped_column(Text)
    content: Mapped[str] = mapped_column(Text)
    language: Mapped[str] = mapped_column(
        REGCONFIG,
        server_default=text("'english'::regconfig"),
        comment="text search configuration of this chunk",
    )
    search_vector: Mapped[str] = mapped_column(
        TSVECTOR,
        Computed(
            "setweight(to_tsvector(language, title), 'A')"
            " || setweight(to_tsvector(language, content), 'D')",
            persisted=True,
        ),
        deferred=True,
        comment="the words a search reads; the title weighs more",
    )
    extra: Mapped[dict[str, Any]] = mapped_column(
        JSONB, server_default=text("'{}'"), comment="fields of the file that have no column"
    )
    imported_from: Mapped[str | None] = mapped_column(
        Text, comment="path of the file that last wrote this row"
    )
    record_hash: Mapped[bytes | None] = mapped_column(
        LargeBinary, comment="SHA-256 of the record as imported, to know it again"
    )

    details: Mapped[FrameworkMetadata] = relationship(
        back_populates="document", lazy="raise", passive_deletes=True
    )
    lines: Mapped[SourceLines | None] = relationship(
        back_populates="document", lazy="raise", passive_deletes=True
    )
    concepts: Mapped[list[KeyConcept]] = relationship(
        secondary="document_concepts",
        back_populates="documents",
        lazy="raise",
        order_by="KeyConcept.concept_name",
    )
    embeddings: Mapped[list[ChunkEmbedding]] = relationship(
        back_populates="document", lazy="raise", passive_deletes=True
    )


class ChunkEmbedding(Embedded, Base):
    """The vector of a chunk's title and content."""

    __tablename__ = "chunk_embeddings"
    __table_args__ = (
        *embedding_constraints("document_id"),
        CheckConstraint("embedding IS NOT NULL", name="non_null_embedding"),
        *vector_indexes("chunk_embeddings", text_embedding_3_large="idx_embeddings_vector"),
        Index("idx_embeddings_document_id", "document_id"),
        Index("idx_embeddings_model", "model_name"),
        Index("idx_embeddings_created_at", "created_at"),
    )

    id: Mapped[uuid_pk]
    document_id: Mapped[UUID] = mapped_column(parent_key("framework_documents.id"))
    # The seed's default, kept for its own INSERT statements.
    model_name: Mapped[str] = mapped_column(
        String(100),
        server_default="text-embedding-3-large",
        comment="model that made the vector",
    )

    document: Mapped[FrameworkDocument] = relationship(back_populates="embeddings", lazy="raise")


class FrameworkMetadata(Base):
    """The author's metadata of a chunk: its kind, its counts and its checks."""

    __tablename__ = "framework_metadata"
    __table_args__ = (
        CheckConstraint(
            "chunk_type IN ('atomic_framework', 'framework_section', 'supporting')",
            name="valid_chunk_type",
        ),
        CheckConstraint(
            "character_count > 0 AND character_count <= 50000", name="valid_character_count"
        ),
        CheckConstraint("word_count > 0 AND word_count <= 15000", name="valid_word_count"),
        CheckConstraint("character_count >= word_count * 3", name="logical_word_char_ratio"),
        Index("idx_metadata_framework_name", "framework_name"),
        Index("idx_metadata_chunk_type", "chunk_type"),
        Index("idx_metadata_processing_date", "processing_date"),
        Index("idx_metadata_validation", "validation_passed"),
    )

    id: Mapped[uuid_pk]
    document_id: Mapped[UUID] = mapped_column(parent_key("framework_documents.id"), unique=True)
    character_count: Mapped[int]
    word_count: Mapped[int]
    chunk_type: Mapped[str] = mapped_column(String(50))
    framework_name: Mapped[str | None] = mapped_column(String(255))
    preserves_complete_concept: Mapped[bool | None] = mapped_column(server_default=text("true"))
    overlap_with_previous: Mapped[str | None] = mapped_column(
        Text, comment="text repeated from the end of the chunk before"
    )
    contains_formula: Mapped[bool | None] = mapped_column(server_default=text("false"))
    contains_list: Mapped[bool | None] = mapped_column(server_default=text("false"))
    contains_example: Mapped[bool | None] = mapped_column(server_default=text("false"))
    business_logic_intact: Mapped[bool | None] = mapped_column(server_default=text("true"))
    validation_passed: Mapped[bool | None] = mapped_column(
        server_default=text("false"), comment="searches show only chunks that passed, unless asked"
    )
    processing_date: Mapped[date | None] = mapped_column(Date)
    guidelines_compliance: Mapped[str | None] = mapped_column(String(255))

    document: Mapped[FrameworkDocument] = relationship(back_populates="details", lazy="raise")


class KeyConcept(Base):
    """A term of the field that chunks explain."""

    __tablename__ = "key_concepts"
    __table_args__ = (
        CheckConstraint("length(trim(concept_name)) > 0", name="non_empty_concept_name"),
        CheckConstraint("concept_name ~ '^[A-Za-z0-9 &-]+$'", name="valid_concept_format"),
        Index("idx_concepts_name", "concept_name"),
    )

    id: Mapped[uuid_pk]
    concept_name: Mapped[str] = mapped_column(String(255), unique=True)
    created_at: Mapped[now]

    documents: Mapped[list[FrameworkDocument]] = relationship(
        secondary="document_concepts", back_populates="concepts", lazy="raise"
    )


class DocumentConcept(Base):
    """A link between a chunk and a concept that it explains."""

    __tablename__ = "document_concepts"
    __table_args__ = (
        Index("idx_document_concepts_document_id", "document_id"),
        Index("idx_document_concepts_concept_id", "concept_id"),
    )

    document_id: Mapped[UUID] = mapped_column(
        parent_key("framework_documents.id"), primary_key=True
    )
    concept_id: Mapped[UUID] = mapped_column(parent_key("key_concepts.id"), primary_key=True)
    created_at: Mapped[now]


class SourceLines(Base):
    """The lines of its source that a chunk was cut from."""

    __tablename__ = "source_lines"
    __table_args__ = (
        CheckConstraint("start_line > 0 AND end_line >= start_line", name="valid_line_numbers"),
        CheckConstraint("end_line - start_line <= 10000", name="reasonable_line_range"),
        Index("idx_source_lines_document_id", "document_id"),
        Index("idx_source_lines_range", "start_line", "end_line"),
    )

    id: Mapped[uuid_pk]
    document_id: Mapped[UUID] = mapped_column(parent_key("framework_documents.id"), unique=True)
    start_line: Mapped[int | None]
    end_line: Mapped[int | None]

    document: Mapped[FrameworkDocument] = relationship(back_populates="lines", lazy="raise")
