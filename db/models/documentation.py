"""Documentation and one's own documents: their chunks, vectors and clicks, shared or a tenant's."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Final
from uuid import UUID

from sqlalchemy import (
    ARRAY,
    CheckConstraint,
    ColumnElement,
    Computed,
    Double,
    ForeignKeyConstraint,
    Index,
    PrimaryKeyConstraint,
    String,
    Text,
    UniqueConstraint,
    func,
    literal_column,
)
from sqlalchemy import (
    text as sql,
)
from sqlalchemy.dialects.postgresql import JSONB, REAL, REGCONFIG, TSVECTOR
from sqlalchemy.orm import Mapped, mapped_column
from sqlalchemy.schema import SchemaItem

from pgcorpus.db.base import SHARED, Base, now, parent_key, readable_times
from pgcorpus.db.choices import DEFAULT_COLLECTION
from pgcorpus.db.mixins import Embedded, Timestamped, embedding_constraints
from pgcorpus.db.models.embeddings import vector_indexes

MAX_PATH_BYTES: Final = 2000
"""Length of the longest path: an index takes no more of a text than a third of a page."""

KEPT: Final = "sqlite"
"""The key of a row's metadata with those values of an old SQLite file that no column has."""

ASKED_IN: Final = sql("COALESCE(app_scope(), 'shared')")
"""The scope of what a transaction writes without naming one."""


class Owned:
    """The owner of a row: a tenant, or nobody where it is everybody's; and its scope."""

    id: Mapped[UUID] = mapped_column(server_default=func.gen_random_uuid())
    tenant_id: Mapped[UUID | None] = mapped_column(
        parent_key("tenants.id"),
        comment="tenant whose own it is, or null where it is everybody's",
    )
    scope: Mapped[str] = mapped_column(
        Text,
        server_default=ASKED_IN,
        comment="shared, or the scope that sees it, as app_scope() has it",
    )


def _build_owner_items(tenant_index: str) -> tuple[SchemaItem, ...]:
    """Build the constraints and the index that every table of the corpus has."""
    return (
        PrimaryKeyConstraint("scope", "id"),
        CheckConstraint(
            "scope = COALESCE('tenant:' || tenant_id::text, 'shared')", name="scope_of_owner"
        ),
        Index(tenant_index, "tenant_id"),
    )


def _is_object(column: str) -> CheckConstraint:
    return CheckConstraint(f"jsonb_typeof({column}) = 'object'", name=f"valid_{column}")


def _index_terms(name: str, terms: str, where: str) -> Index:
    """Build an index of terms, for the functions that searches call."""
    keys: ColumnElement[Any] = literal_column(terms)
    return Index(name, keys.label("keys"), postgresql_using="gin", postgresql_where=sql(where))


_WORDS: Final = "tsvector_to_array(chunk_search)"
_TRIGRAMS: Final = "show_trgm(chunk_text(heading_path, text))"
_METADATA: Final = "metadata_terms(metadata)"


class Document(Owned, Timestamped, Base):
    """A document: a page of a site, a file, a text that an application handed over."""

    __tablename__ = "documents"
    __table_args__ = (
        *_build_owner_items("idx_documentation_tenant"),
        UniqueConstraint("scope", "collection", "path"),
        CheckConstraint(r"collection ~ '\S'", name="non_empty_collection"),
        CheckConstraint(
            rf"path ~ '\S' AND octet_length(path) <= {MAX_PATH_BYTES}", name="valid_path"
        ),
        CheckConstraint("word_count >= 0", name="valid_word_count"),
        _is_object("metadata"),
        readable_times("captured_at", "last_crawled", "created_at", "updated_at"),
    )

    collection: Mapped[str] = mapped_column(
        String(255),
        server_default=DEFAULT_COLLECTION,
        comment="set of documents that are kept and searched together",
    )
    path: Mapped[str] = mapped_column(
        Text, comment="path within the collection; one of each within a scope"
    )
    title: Mapped[str | None] = mapped_column(Text)
    source_url: Mapped[str | None] = mapped_column(Text)
    captured_at: Mapped[datetime | None] = mapped_column(comment="time when the source was read")
    hash: Mapped[str | None] = mapped_column(
        Text, comment="SHA-256 of the file, in hex: an unchanged one is not read again"
    )
    content_type: Mapped[str] = mapped_column(
        String(255), server_default="text/markdown", comment="such as text/markdown"
    )
    language: Mapped[str | None] = mapped_column(
        String(100), comment="language as the source names it"
    )
    word_count: Mapped[int | None]
    etag: Mapped[str | None] = mapped_column(Text)
    last_modified: Mapped[str | None] = mapped_column(
        Text, comment="time of the last change, as the web server told it"
    )
    last_crawled: Mapped[datetime | None] = mapped_column(comment="time of the last visit")
    # "metadata" is SQLAlchemy's own name.
    details: Mapped[dict[str, Any]] = mapped_column(
        "metadata",
        JSONB,
        server_default=sql("'{}'"),
        comment="front matter and what the caller gave",
    )


class Chunk(Owned, Timestamped, Base):
    """A chunk of a document: the passage that is embedded and found."""

    __tablename__ = "chunks"
    __table_args__ = (
        *_build_owner_items("idx_chunks_tenant"),
        UniqueConstraint("scope", "collection", "chunk_id"),
        ForeignKeyConstraint(
            ["scope", "document_id"], ["documents.scope", "documents.id"], ondelete="CASCADE"
        ),
        CheckConstraint(r"text ~ '\S'", name="non_empty_chunk"),
        CheckConstraint(r"chunk_id ~ '\S'", name="non_empty_chunk_id"),
        CheckConstraint("position >= 0", name="valid_position"),
        CheckConstraint("token_count >= 0", name="valid_token_count"),
        CheckConstraint("start_offset >= 0 AND end_offset >= start_offset", name="valid_offsets"),
        CheckConstraint("page >= 1", name="valid_page"),
        _is_object("metadata"),
        _is_object("chunker_config"),
        readable_times("processing_timestamp", "created_at", "updated_at"),
        Index("chunks_document_id_idx", "scope", "document_id", "position"),
        Index("idx_chunks_scope_collection", "scope", "collection"),
        _index_terms("chunks_text_gin_idx", _WORDS, "scope = 'shared'"),
        _index_terms("idx_chunks_shared_trigrams", _TRIGRAMS, "scope = 'shared'"),
        _index_terms("idx_chunks_scope_words", f"scope_keys(scope, {_WORDS})", "scope <> 'shared'"),
        _index_terms(
            "idx_chunks_scope_trigrams", f"scope_keys(scope, {_TRIGRAMS})", "scope <> 'shared'"
        ),
        _index_terms("idx_chunks_shared_metadata", _METADATA, "scope = 'shared'"),
        _index_terms(
            "idx_chunks_scope_metadata", f"scope_keys(scope, {_METADATA})", "scope <> 'shared'"
        ),
    )

    document_id: Mapped[UUID]
    collection: Mapped[str] = mapped_column(
        String(255), server_default=DEFAULT_COLLECTION, comment="collection of its document"
    )
    chunk_id: Mapped[str] = mapped_column(
        String(255),
        comment="identifier that survives moves within the document; one of each within a "
        "collection of a scope",
    )
    position: Mapped[int] = mapped_column(comment="number in the order of the document, from 0")
    heading: Mapped[str | None] = mapped_column(Text, comment="heading that it stands under")
    anchor: Mapped[str | None] = mapped_column(
        Text, comment="fragment of the heading, as GitHub makes it"
    )
    heading_path: Mapped[list[str]] = mapped_column(
        ARRAY(Text),
        server_default=sql("'{}'"),
        comment="headings from the highest level down to its own; searched like a title",
    )
    text: Mapped[str] = mapped_column(Text)
    url: Mapped[str | None] = mapped_column(Text)
    language: Mapped[str] = mapped_column(
        REGCONFIG,
        server_default=sql("'english'::regconfig"),
        comment="text search configuration of this chunk",
    )
    token_count: Mapped[int | None] = mapped_column(
        comment="length in tokens, as the chunker counts them"
    )
    hash: Mapped[str | None] = mapped_column(Text, comment="SHA-256 of the text, in hex")
    start_offset: Mapped[int | None] = mapped_column(
        comment="characters before it in the text of the document"
    )
    end_offset: Mapped[int | None] = mapped_column(comment="characters up to its end")
    page: Mapped[int | None] = mapped_column(
        comment="number of the page on which it begins, from 1"
    )
    details: Mapped[dict[str, Any]] = mapped_column(
        "metadata", JSONB, server_default="{}", comment="metadata of its document, and its own"
    )
    chunker_version: Mapped[str | None] = mapped_column(
        String(50), comment="version of the chunker that cut it"
    )
    chunker_config: Mapped[dict[str, Any]] = mapped_column(
        JSONB, server_default="{}", comment="limits that it was cut by"
    )
    processing_timestamp: Mapped[datetime | None] = mapped_column(comment="time when it was cut")
    lineage_id: Mapped[str | None] = mapped_column(
        String(255), comment="run of the import that wrote it"
    )
    chunk_search: Mapped[str] = mapped_column(
        TSVECTOR,
        Computed(
            "setweight(to_tsvector(language, left(heading_text(heading_path), 10000)), 'A')"
            " || to_tsvector(language, left(text, 90000))",
            persisted=True,
        ),
        nullable=False,
        deferred=True,
        comment="the words a search reads; headings count like a title",
    )


class DocumentationEmbedding(Embedded, Base):
    """The vector of a chunk; its scope is copied, so that a search needs no join to ask for it."""

    __tablename__ = "documentation_embeddings"
    __table_args__ = (
        PrimaryKeyConstraint("scope", "id"),
        *embedding_constraints("scope", "chunk_id"),
        ForeignKeyConstraint(
            ["scope", "chunk_id"], ["chunks.scope", "chunks.id"], ondelete="CASCADE"
        ),
        Index("idx_documentation_embeddings_scope", "scope", "model_name"),
        *vector_indexes(
            "documentation_embeddings",
            scope=SHARED,
            text_embedding_3_small="chunks_embedding_idx",
        ),
    )

    id: Mapped[UUID] = mapped_column(server_default=func.gen_random_uuid())
    chunk_id: Mapped[UUID]
    scope: Mapped[str] = mapped_column(Text, comment="scope of its chunk")


class ClickFeedback(Owned, Base):
    """A chunk that a user opened, or was shown and did not open."""

    __tablename__ = "click_feedback"
    __table_args__ = (
        *_build_owner_items("idx_click_feedback_tenant"),
        ForeignKeyConstraint(
            ["chunk_scope", "chunk_id"], ["chunks.scope", "chunks.id"], ondelete="CASCADE"
        ),
        CheckConstraint("chunk_scope IN ('shared', scope)", name="readable_chunk"),
        CheckConstraint("position >= 1", name="valid_position"),
        CheckConstraint("dwell_time >= 0 AND dwell_time < 'Infinity'", name="valid_dwell_time"),
        _is_object("metadata"),
        readable_times("created_at"),
        Index("idx_click_feedback_chunk", "chunk_scope", "chunk_id", "scope"),
        Index("click_feedback_query_idx", "scope", literal_column("left(query, 200)").label("q")),
        Index("click_feedback_session_idx", "scope", "session_id"),
        Index("idx_click_feedback_created", "scope", "created_at"),
    )

    query: Mapped[str] = mapped_column(Text)
    chunk_scope: Mapped[str] = mapped_column(
        Text, comment="scope of the chunk, which is shared or of the same scope"
    )
    chunk_id: Mapped[UUID]
    position: Mapped[int] = mapped_column(comment="place on the page of results, from 1")
    session_id: Mapped[str | None] = mapped_column(String(255))
    user_id: Mapped[str | None] = mapped_column(String(255))
    dwell_time: Mapped[float | None] = mapped_column(Double, comment="seconds")
    clicked: Mapped[bool] = mapped_column(server_default=sql("true"))
    details: Mapped[dict[str, Any]] = mapped_column("metadata", JSONB, server_default=sql("'{}'"))
    created_at: Mapped[now]


class SearchSession(Owned, Base):
    """A page of results as a user was shown it."""

    __tablename__ = "search_sessions"
    __table_args__ = (
        *_build_owner_items("idx_search_sessions_tenant"),
        _is_object("weights"),
        CheckConstraint("jsonb_typeof(shown) = 'array'", name="valid_shown"),
        _is_object("metadata"),
        readable_times("created_at"),
        Index("idx_search_sessions_session", "scope", "session_id"),
        Index("idx_search_sessions_created", "scope", "created_at"),
    )

    session_id: Mapped[str] = mapped_column(
        String(255), comment="identifier of the visit; one visit may search many times"
    )
    user_id: Mapped[str | None] = mapped_column(String(255))
    query: Mapped[str | None] = mapped_column(Text)
    mode: Mapped[str | None] = mapped_column(String(20))
    fusion: Mapped[str | None] = mapped_column(
        String(20), comment="fusion of the legs, such as calibrated"
    )
    weights: Mapped[dict[str, float]] = mapped_column(
        JSONB, server_default=sql("'{}'"), comment="weight of each leg"
    )
    shown: Mapped[list[dict[str, Any]]] = mapped_column(
        JSONB,
        server_default=sql("'[]'"),
        comment="chunks on the page: id, position from 1, score of each leg",
    )
    details: Mapped[dict[str, Any]] = mapped_column("metadata", JSONB, server_default=sql("'{}'"))
    created_at: Mapped[now]


class LearnedRanking(Owned, Base):
    """A version of what clicks or judgements taught: weights of legs, and boosts of passages."""

    __tablename__ = "learned_rankings"
    __table_args__ = (
        *_build_owner_items("idx_learned_rankings_tenant"),
        UniqueConstraint("scope", "corpus", "version"),
        CheckConstraint("version >= 1", name="valid_version"),
        CheckConstraint("replaced >= 1 AND replaced < version", name="valid_replaced"),
        _is_object("weights"),
        _is_object("estimate"),
        readable_times("created_at"),
        Index(
            "idx_learned_rankings_active",
            "scope",
            "corpus",
            unique=True,
            postgresql_where=sql("is_active"),
        ),
    )

    corpus: Mapped[str] = mapped_column(String(50))
    version: Mapped[int] = mapped_column(comment="number within corpus and scope, from 1")
    replaced: Mapped[int | None] = mapped_column(
        comment="version that was active before, and is again after a rollback; null: none was"
    )
    weights: Mapped[dict[str, float]] = mapped_column(
        JSONB, comment="weight of each leg; their sum is 1"
    )
    estimate: Mapped[dict[str, Any]] = mapped_column(
        JSONB,
        comment="expected change (before, change, low, high), and how much taught it",
    )
    is_active: Mapped[bool] = mapped_column(comment="searches use it; one of a corpus and scope")
    created_by: Mapped[str] = mapped_column(
        Text,
        server_default=sql(
            "COALESCE(NULLIF(current_setting('app.actor', true), ''), SESSION_USER)"
        ),
        comment="user it was done for, or else the login",
    )
    created_at: Mapped[now]


class ChunkBoost(Owned, Base):
    """The boost of a chunk, which a learned ranking adds to its score."""

    __tablename__ = "chunk_boosts"
    __table_args__ = (
        *_build_owner_items("idx_chunk_boosts_tenant"),
        UniqueConstraint("scope", "ranking_id", "chunk_id"),
        ForeignKeyConstraint(
            ["scope", "ranking_id"],
            ["learned_rankings.scope", "learned_rankings.id"],
            ondelete="CASCADE",
        ),
        ForeignKeyConstraint(
            ["passage_scope", "chunk_id"], ["chunks.scope", "chunks.id"], ondelete="CASCADE"
        ),
        CheckConstraint("passage_scope IN ('shared', scope)", name="readable_passage"),
        CheckConstraint("boost BETWEEN -0.05::real AND 0.05::real", name="bounded_boost"),
        readable_times("created_at"),
        Index("idx_chunk_boosts_chunk", "passage_scope", "chunk_id", "scope"),
    )

    ranking_id: Mapped[UUID]
    passage_scope: Mapped[str] = mapped_column(
        Text, comment="scope of the chunk, which is shared or of the same scope"
    )
    chunk_id: Mapped[UUID]
    boost: Mapped[float] = mapped_column(REAL, comment="added to a score in [0, 1]")
    created_at: Mapped[now]
