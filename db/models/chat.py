"""The chat archive: conversations from every provider, message by message."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Final, Literal, get_args
from uuid import UUID

from sqlalchemy import (
    CheckConstraint,
    Computed,
    FetchedValue,
    Index,
    LargeBinary,
    String,
    Text,
    UniqueConstraint,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB, REGCONFIG, TSVECTOR
from sqlalchemy.orm import Mapped, mapped_column, relationship

from pgcorpus.db.base import Base, parent_key, readable_times, uuid_pk
from pgcorpus.db.choices import NATIVE
from pgcorpus.db.mixins import Embedded, Timestamped, embedding_constraints
from pgcorpus.db.models.embeddings import vector_indexes

Role = Literal["user", "assistant", "system", "tool"]
ROLES: Final = get_args(Role)


class Conversation(Timestamped, Base):
    """One conversation, with where it came from."""

    __tablename__ = "conversations"
    __table_args__ = (
        UniqueConstraint("source_type", "source_id"),
        CheckConstraint("length(trim(source_type)) > 0", name="non_empty_source_type"),
        readable_times("created_at", "updated_at", "source_updated_at"),
        Index("idx_conversations_created_at", "created_at", "id"),
        Index("idx_conversations_updated_at", "updated_at", "id"),
        Index("idx_conversations_source_id", "source_id"),
        Index("idx_conversations_saved", "id", postgresql_where=text("is_saved")),
    )

    id: Mapped[uuid_pk]
    title: Mapped[str] = mapped_column(Text, server_default="")
    created_at: Mapped[datetime] = mapped_column(
        server_default=text("now()"), comment="time of its beginning, by its source"
    )
    source_id: Mapped[str | None] = mapped_column(String(255), comment="identifier in its source")
    source_type: Mapped[str] = mapped_column(
        String(50),
        server_default=NATIVE,
        comment="chatgpt, claude, openwebui, ...; native for a conversation written here",
    )
    source_updated_at: Mapped[datetime | None] = mapped_column(
        comment="time of its last change in the source: an older export is not news"
    )
    is_saved: Mapped[bool] = mapped_column(server_default=text("false"))
    record_hash: Mapped[bytes | None] = mapped_column(
        LargeBinary, comment="SHA-256 of the conversation as imported, to know it again"
    )
    imported_from: Mapped[str | None] = mapped_column(
        Text, comment="path of the file that last wrote this row"
    )

    messages: Mapped[list[Message]] = relationship(
        back_populates="conversation",
        lazy="raise",
        passive_deletes=True,
        order_by="(Message.branch, Message.position)",
    )


class Message(Timestamped, Base):
    """One turn of a conversation."""

    __tablename__ = "messages"
    __table_args__ = (
        UniqueConstraint("conversation_id", "branch", "position", deferrable=True),
        CheckConstraint(r"content ~ '\S'", name="non_empty_message"),
        CheckConstraint("role IN ('user', 'assistant', 'system', 'tool')", name="valid_role"),
        CheckConstraint("branch >= 0 AND position >= 0", name="valid_position"),
        CheckConstraint("version > 0", name="valid_version"),
        readable_times("created_at", "updated_at"),
        Index("idx_messages_conversation_created", "conversation_id", "created_at"),
        Index("idx_messages_role", "role"),
        Index("idx_messages_created_at", "created_at", "id"),
        Index("idx_messages_search", "message_search", postgresql_using="gin"),
        Index(
            "idx_messages_content_trgm",
            "content",
            postgresql_using="gin",
            postgresql_ops={"content": "gin_trgm_ops"},
        ),
        Index(
            "idx_messages_metadata",
            "metadata",
            postgresql_using="gin",
            postgresql_ops={"metadata": "jsonb_path_ops"},
        ),
    )

    id: Mapped[uuid_pk]
    conversation_id: Mapped[UUID] = mapped_column(parent_key("conversations.id"))
    branch: Mapped[int] = mapped_column(
        server_default=text("0"),
        comment="0: the conversation as it stands; others were abandoned, numbered depth first "
        "and the deepest fork first, so that the turn before is of the greatest branch not above "
        "this one",
    )
    position: Mapped[int] = mapped_column(
        FetchedValue(),
        comment="distance from the first turn, from 0; given by a trigger where it is null",
    )
    role: Mapped[Role] = mapped_column(String(20))
    content: Mapped[str] = mapped_column(Text)
    details: Mapped[dict[str, Any]] = mapped_column(
        "metadata",  # a name that SQLAlchemy keeps for itself
        JSONB,
        server_default=text("'{}'"),
        comment="details of the source beside the text: parts without text, model, its own ids",
    )
    created_at: Mapped[datetime] = mapped_column(
        server_default=text("now()"), comment="time when it was said"
    )
    version: Mapped[int] = mapped_column(
        server_default=text("1"), comment="number of the version of the content, from 1"
    )
    language: Mapped[str] = mapped_column(
        REGCONFIG,
        server_default=text("'english'::regconfig"),
        comment="text search configuration of this message",
    )
    message_search: Mapped[str] = mapped_column(
        TSVECTOR,
        Computed("to_tsvector(language, left(content, 100000))", persisted=True),
        deferred=True,
        comment="the words a search reads, of the first 100,000 characters",
    )

    conversation: Mapped[Conversation] = relationship(back_populates="messages", lazy="raise")
    embeddings: Mapped[list[MessageEmbedding]] = relationship(
        back_populates="message", lazy="raise", passive_deletes=True
    )


class MessageEmbedding(Embedded, Base):
    """The vector of a message."""

    __tablename__ = "message_embeddings"
    __table_args__ = (
        *embedding_constraints("message_id"),
        *vector_indexes("message_embeddings"),
        Index("idx_message_embeddings_model", "model_name"),
    )

    id: Mapped[uuid_pk]
    message_id: Mapped[UUID] = mapped_column(parent_key("messages.id"))

    message: Mapped[Message] = relationship(back_populates="embeddings", lazy="raise")
