"""Agent memory: single exchanges, whole episodes, and the tenants and users that own them."""

from __future__ import annotations

from datetime import datetime
from hashlib import sha256
from typing import Any, Final, get_args
from uuid import UUID

from sqlalchemy import (
    ARRAY,
    BigInteger,
    CheckConstraint,
    ColumnElement,
    Computed,
    Double,
    ForeignKeyConstraint,
    Index,
    PrimaryKeyConstraint,
    SmallInteger,
    String,
    Text,
    UniqueConstraint,
    func,
    literal_column,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB, REGCONFIG, TSVECTOR
from sqlalchemy.orm import Mapped, mapped_column
from sqlalchemy.schema import SchemaItem

from pgcorpus.db.base import Base, now, parent_key, readable_times, uuid_pk
from pgcorpus.db.choices import (
    TAGS,
    Complexity,
    ConversationMode,
    EmotionalValence,
    IntentType,
    Urgency,
)
from pgcorpus.db.mixins import Embedded, embedding_constraints

INTENT_TYPES: Final = get_args(IntentType)
COMPLEXITIES: Final = get_args(Complexity)
EMOTIONAL_VALENCES: Final = get_args(EmotionalValence)
URGENCIES: Final = get_args(Urgency)
CONVERSATION_MODES: Final = get_args(ConversationMode)


NOISE: Final = -1
"""The cluster of memories that belong to none, as HDBSCAN numbers it."""

MAX_DEPTH: Final = 10
"""The greatest ``technical_depth``."""

SCOPE: Final = "COALESCE('tenant:' || tenant_id::text, 'user:' || user_id::text)"
"""The scope of a row, as ``app_scope()`` gives that of a transaction."""


def memory_id(conversation_id: str, sequence_index: int, human_content: str) -> str:
    """Return the id of a memory, as the systems before this one made it."""
    said = f"{conversation_id}:{sequence_index}:{human_content[:100]}"
    return f"mem_{sha256(said.encode()).hexdigest()[:16]}"


def _one_of(column: str, values: tuple[str, ...]) -> CheckConstraint:
    allowed = ", ".join(f"'{value}'" for value in values)
    return CheckConstraint(f"{column} IN ({allowed})", name=f"valid_{column}")


def _lists(column: str, names: tuple[str, ...]) -> str:
    """Write the condition that these keys of a JSON object are lists, where they exist."""
    return " AND ".join(
        [f"jsonb_typeof({column}) = 'object'"]
        + [f"COALESCE(jsonb_typeof({column} -> '{name}'), 'array') = 'array'" for name in names]
    )


class Scoped:
    """The owner of a row, a user or a tenant, and its scope in one column."""

    key: Mapped[UUID] = mapped_column(server_default=func.gen_random_uuid())
    user_id: Mapped[UUID | None] = mapped_column(
        comment="user whose personal memory it is, or who wrote it"
    )
    tenant_id: Mapped[UUID | None] = mapped_column(
        parent_key("tenants.id"), comment="tenant whose memory it is"
    )
    scope: Mapped[str] = mapped_column(
        Text,
        server_default=text("app_scope()"),
        comment="scope that sees it, as app_scope() has it",
    )
    access_count: Mapped[int] = mapped_column(server_default=text("0"), comment="number of recalls")
    last_accessed: Mapped[datetime | None] = mapped_column(comment="time of the last recall")


STORAGE: Final = {"postgresql_with": {"fillfactor": 85}}
"""Room on each page: a recalled row is counted where it stands, and no index is written."""


def _build_shared_items(
    table: str, *, words: str, shown: tuple[str, str]
) -> tuple[SchemaItem, ...]:
    """Build the constraints and indexes that memories and episodes share.

    Args:
        table: Which of them.
        words: The ``tsvector`` column.
        shown: The two columns that trigrams are looked for in.
    """
    return (
        PrimaryKeyConstraint("scope", "key"),
        UniqueConstraint("scope", "id"),
        # The user is of the row's tenant, or has none where the row has none.
        ForeignKeyConstraint(["scope", "user_id"], ["users.scope", "users.id"], ondelete="CASCADE"),
        CheckConstraint(f"scope = {SCOPE}", name="scope_of_owner"),
        CheckConstraint("user_id IS NOT NULL OR tenant_id IS NOT NULL", name="user_or_tenant"),
        CheckConstraint("access_count >= 0", name="valid_access_count"),
        Index(f"idx_{table}_scope_user", "scope", "user_id", "created_at"),
        Index(f"idx_{table}_tenant", "tenant_id"),
        Index(f"idx_{table}_scope_created", "scope", "created_at", "key"),
        _keys_of_scope(f"idx_{table}_scope_words", f"tsvector_to_array({words})"),
        _keys_of_scope(
            f"idx_{table}_scope_trigrams",
            f"show_trgm(({shown[0]} || ' '::text) || {shown[1]})",
        ),
    )


def _keys_of_scope(name: str, terms: str) -> Index:
    """Build an index of terms together with the scope, for the functions that searches call."""
    keys: ColumnElement[Any] = literal_column(f"scope_keys(scope, {terms})")
    return Index(name, keys.label("keys"), postgresql_using="gin")


class Tenant(Base):
    """An enterprise whose users share their memories."""

    __tablename__ = "tenants"
    __table_args__ = (
        Index("uq_tenants_slug", literal_column("text_hash(slug::text)"), unique=True),
        CheckConstraint(r"name ~ '\S'", name="non_empty_tenant_name"),
        CheckConstraint("slug ~ '^[a-z0-9]+(-[a-z0-9]+)*$'", name="valid_slug"),
        CheckConstraint("jsonb_typeof(settings) = 'object'", name="valid_settings"),
        readable_times("created_at"),
    )

    id: Mapped[uuid_pk]
    name: Mapped[str] = mapped_column(String(255))
    slug: Mapped[str] = mapped_column(String(100), comment="short name for addresses and files")
    scope: Mapped[str] = mapped_column(
        Text,
        Computed("'tenant:' || id::text", persisted=True),
        nullable=False,
        comment="scope that sees it, as app_scope() has it",
    )
    settings: Mapped[dict[str, Any]] = mapped_column(JSONB, server_default=text("'{}'"))
    created_at: Mapped[now]


class User(Base):
    """An owner of memories, as an identity provider knows them."""

    __tablename__ = "users"
    __table_args__ = (
        Index(
            "uq_users_auth_provider_external_id",
            literal_column("text_hash(identity)"),
            unique=True,
        ),
        UniqueConstraint("scope", "id"),
        CheckConstraint(r"auth_provider ~ '\S' AND external_id ~ '\S'", name="non_empty_identity"),
        CheckConstraint("auth_provider !~ ':'", name="valid_auth_provider"),
        CheckConstraint("email ~ '^[^@[:space:]]+@[^@[:space:]]+$'", name="valid_email"),
        readable_times("created_at"),
        Index("idx_users_tenant_id", "tenant_id"),
    )

    id: Mapped[uuid_pk]
    tenant_id: Mapped[UUID | None] = mapped_column(
        parent_key("tenants.id"), comment="the enterprise, or null for a user on their own"
    )
    auth_provider: Mapped[str] = mapped_column(String(50))
    external_id: Mapped[str] = mapped_column(
        String(255), comment="the user's key at the auth_provider"
    )
    identity: Mapped[str] = mapped_column(
        Text,
        Computed("auth_provider || ':' || external_id", persisted=True),
        nullable=False,
        comment="identity of the user: auth_provider:external_id",
    )
    email: Mapped[str | None] = mapped_column(String(320))
    display_name: Mapped[str | None] = mapped_column(String(255))
    created_at: Mapped[now]
    scope: Mapped[str] = mapped_column(
        Text,
        Computed("COALESCE('tenant:' || tenant_id::text, 'user:' || id::text)", persisted=True),
        nullable=False,
        comment="scope whose memories the user sees, as app_scope() has it",
    )


class MemoryNode(Scoped, Base):
    """One exchange: the human's words, and the answer."""

    __tablename__ = "memory_nodes"
    __table_args__ = (
        *_build_shared_items(
            "memory_nodes", words="memory_search", shown=("human_content", "assistant_content")
        ),
        CheckConstraint(r"human_content ~ '\S' OR assistant_content ~ '\S'", name="non_empty_node"),
        readable_times("created_at", "last_accessed"),
        CheckConstraint("sequence_index >= 0", name="valid_sequence_index"),
        _one_of("intent_type", INTENT_TYPES),
        _one_of("complexity", COMPLEXITIES),
        CheckConstraint("technical_depth BETWEEN 0 AND 10", name="valid_technical_depth"),
        _one_of("emotional_valence", EMOTIONAL_VALENCES),
        _one_of("urgency", URGENCIES),
        _one_of("conversation_mode", CONVERSATION_MODES),
        CheckConstraint(_lists("tags", TAGS), name="valid_tags"),
        CheckConstraint("jsonb_typeof(extra) = 'object'", name="valid_extra"),
        CheckConstraint("cluster_id >= -1", name="valid_cluster_id"),
        CheckConstraint("cluster_confidence BETWEEN 0 AND 1", name="valid_cluster_confidence"),
        Index("idx_memory_nodes_scope_conversation", "scope", "conversation_id", "sequence_index"),
        Index("idx_memory_nodes_scope_cluster", "scope", "cluster_id"),
        Index("idx_memory_nodes_scope_said", "scope", "human_hash"),
        STORAGE,
    )

    id: Mapped[str] = mapped_column(
        String(255),
        comment="mem_ and 16 hex digits of the SHA-256 of conversation_id:sequence_index:the "
        "first 100 characters of human_content; one of each within a scope",
    )
    conversation_id: Mapped[str] = mapped_column(
        String(255), comment="conversation in which it was said"
    )
    sequence_index: Mapped[int] = mapped_column(
        comment="number of the exchange in the conversation, from 0"
    )
    human_content: Mapped[str] = mapped_column(Text, comment="words of the human")
    assistant_content: Mapped[str] = mapped_column(
        Text, server_default="", comment="words of the assistant"
    )
    source: Mapped[str] = mapped_column(
        String(50), comment="provider of the assistant: anthropic, openai, grok, gemini, ..."
    )
    created_at: Mapped[now] = mapped_column(comment="time when it was said")
    intent_type: Mapped[IntentType] = mapped_column(
        String(20), server_default="statement", comment="intent of the human"
    )
    complexity: Mapped[Complexity] = mapped_column(String(20), server_default="simple")
    technical_depth: Mapped[int] = mapped_column(
        SmallInteger, server_default=text("0"), comment="0 (none) to 10"
    )
    emotional_valence: Mapped[EmotionalValence] = mapped_column(
        String(20), server_default="neutral"
    )
    urgency: Mapped[Urgency] = mapped_column(String(20), server_default="low")
    conversation_mode: Mapped[ConversationMode] = mapped_column(String(20), server_default="chat")
    action_required: Mapped[bool] = mapped_column(server_default=text("false"))
    has_code: Mapped[bool] = mapped_column(server_default=text("false"))
    has_error: Mapped[bool] = mapped_column(server_default=text("false"))
    tags: Mapped[dict[str, Any]] = mapped_column(
        JSONB,
        server_default=text("'{}'"),
        comment="domains, topics, entities, processes: a list of names each",
    )
    cluster_id: Mapped[int | None] = mapped_column(
        comment="-1: noise, of no cluster; null: not yet clustered"
    )
    cluster_label: Mapped[str | None] = mapped_column(String(255))
    cluster_confidence: Mapped[float | None] = mapped_column(Double, comment="0 to 1")
    duplicate_of: Mapped[str | None] = mapped_column(
        String(255), comment="id of the memory that says the same, where it was linked"
    )
    extra: Mapped[dict[str, Any]] = mapped_column(
        JSONB, server_default=text("'{}'"), comment="fields of the file that have no column"
    )
    language: Mapped[str] = mapped_column(
        REGCONFIG,
        server_default=text("'english'::regconfig"),
        comment="text search configuration of this memory",
    )
    human_hash: Mapped[int] = mapped_column(
        BigInteger,
        Computed("hashtextextended(human_content, (0)::bigint)", persisted=True),
        nullable=False,
        deferred=True,
        comment="finds the same human_content; an index on the expression would not "
        "serve under row security",
    )
    memory_search: Mapped[str] = mapped_column(
        TSVECTOR,
        Computed(
            "setweight(to_tsvector(language, left(human_content, 30000)), 'A')"
            " || to_tsvector(language, left(assistant_content, 70000))",
            persisted=True,
        ),
        nullable=False,
        deferred=True,
        comment="the words a search reads; what the human said counts like a title",
    )


class EpisodicMemory(Scoped, Base):
    """A whole conversation, and its outcome."""

    __tablename__ = "episodic_memories"
    __table_args__ = (
        *_build_shared_items(
            "episodic_memories", words="episode_search", shown=("title", "content")
        ),
        CheckConstraint("jsonb_typeof(messages) = 'array'", name="valid_messages"),
        readable_times("created_at", "updated_at", "last_accessed"),
        CheckConstraint("message_count >= 0", name="valid_message_count"),
        CheckConstraint("duration_minutes >= 0", name="valid_duration"),
        CheckConstraint(_lists("llm_tags", ("key_entities", "domains")), name="valid_llm_tags"),
        CheckConstraint("jsonb_typeof(extra) = 'object'", name="valid_extra"),
        _one_of("dominant_intent", INTENT_TYPES),
        CheckConstraint("avg_technical_depth BETWEEN 0 AND 10", name="valid_avg_technical_depth"),
        _one_of("urgency_max", URGENCIES),
        STORAGE,
    )

    id: Mapped[str] = mapped_column(String(255), comment="ep_...; one of each within a scope")
    title: Mapped[str] = mapped_column(Text, server_default="")
    messages: Mapped[list[Any]] = mapped_column(
        JSONB, comment="turns in their order: role and content each"
    )
    message_count: Mapped[int]
    source: Mapped[str] = mapped_column(String(50), comment="the assistant, as of memory_nodes")
    created_at: Mapped[now] = mapped_column(comment="time of its beginning")
    updated_at: Mapped[now] = mapped_column(comment="time of its end")
    duration_minutes: Mapped[float | None] = mapped_column(Double)
    llm_tags: Mapped[dict[str, Any]] = mapped_column(
        JSONB,
        server_default=text("'{}'"),
        comment="summary, primary_intent, outcome, interruption_reason, key_entities, "
        "emotional_arc, domains, time_context: what a model said of it",
    )
    dominant_intent: Mapped[IntentType | None] = mapped_column(String(20))
    avg_complexity: Mapped[float | None] = mapped_column(
        Double, comment="mean over its memories: simple 1, moderate 2, complex 3"
    )
    avg_technical_depth: Mapped[float | None] = mapped_column(Double, comment="0 to 10")
    emotional_arc: Mapped[str | None] = mapped_column(Text, comment="course of the mood")
    has_code: Mapped[bool] = mapped_column(server_default=text("false"))
    has_errors: Mapped[bool] = mapped_column(server_default=text("false"))
    urgency_max: Mapped[Urgency | None] = mapped_column(String(20))
    memory_node_ids: Mapped[list[str]] = mapped_column(
        ARRAY(Text), server_default=text("'{}'"), comment="the memories it is made of"
    )
    related_episode_ids: Mapped[list[str]] = mapped_column(ARRAY(Text), server_default=text("'{}'"))
    extra: Mapped[dict[str, Any]] = mapped_column(
        JSONB, server_default=text("'{}'"), comment="fields of the file that have no column"
    )
    language: Mapped[str] = mapped_column(
        REGCONFIG,
        server_default=text("'english'::regconfig"),
        comment="text search configuration of this episode",
    )
    content: Mapped[str] = mapped_column(
        Text,
        Computed("episode_text(llm_tags, messages)", persisted=True),
        nullable=False,
        comment="the summary and what was said, as a search reads it",
    )
    episode_search: Mapped[str] = mapped_column(
        TSVECTOR,
        Computed(
            "setweight(to_tsvector(language, left(title, 10000)), 'A')"
            " || to_tsvector(language, left(episode_text(llm_tags, messages), 90000))",
            persisted=True,
        ),
        nullable=False,
        deferred=True,
        comment="the words a search reads, of the first 90,000 characters",
    )


class MemoryEmbedding(Embedded, Base):
    """The vector of a memory; its scope is copied, so that a search needs no join to ask for it."""

    __tablename__ = "memory_embeddings"
    __table_args__ = (
        PrimaryKeyConstraint("scope", "id"),
        *embedding_constraints("scope", "node_key"),
        ForeignKeyConstraint(
            ["scope", "node_key"], ["memory_nodes.scope", "memory_nodes.key"], ondelete="CASCADE"
        ),
        Index("idx_memory_embeddings_scope", "scope", "model_name"),
    )

    id: Mapped[UUID] = mapped_column(server_default=func.gen_random_uuid())
    node_key: Mapped[UUID]
    scope: Mapped[str] = mapped_column(Text, comment="scope of its memory")


class EpisodeEmbedding(Embedded, Base):
    """The vector of an episode, with its scope."""

    __tablename__ = "episode_embeddings"
    __table_args__ = (
        PrimaryKeyConstraint("scope", "id"),
        *embedding_constraints("scope", "episode_key"),
        ForeignKeyConstraint(
            ["scope", "episode_key"],
            ["episodic_memories.scope", "episodic_memories.key"],
            ondelete="CASCADE",
        ),
        Index("idx_episode_embeddings_scope", "scope", "model_name"),
    )

    id: Mapped[UUID] = mapped_column(server_default=func.gen_random_uuid())
    episode_key: Mapped[UUID]
    scope: Mapped[str] = mapped_column(Text, comment="scope of its episode")
