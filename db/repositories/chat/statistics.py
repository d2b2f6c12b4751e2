"""The chat archive in numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any, Final, Self

from sqlalchemy import ColumnElement, Date, Executable, cast, func, select, text
from sqlalchemy.orm import Session

from pgcorpus.db.models.chat import Conversation, Message
from pgcorpus.db.repositories.embeddings import Coverage


@dataclass(frozen=True)
class Distribution:
    """The spread of a number; all zeros over nothing."""

    minimum: int
    mean: float
    median: float
    p95: float
    maximum: int


@dataclass(frozen=True)
class StorageBytes:
    """The size of the archive's three tables on disk.

    Attributes:
        tables: Rows, with the maps of free and visible pages.
        indexes: Of all kinds.
        toast: Long values that are kept beside their rows, with their index.
    """

    tables: int
    indexes: int
    toast: int


@dataclass(frozen=True)
class EmbeddingCoverage:
    """The number of messages that one model has vectors of.

    Attributes:
        model_name: The model.
        total: Messages, of all branches.
        embedded: Those with a vector of their present text.
        stale: Those whose vector is of an older text.
        percent: Of the total that is embedded; 100 where there is none.
    """

    model_name: str
    total: int
    embedded: int
    stale: int
    percent: float

    @classmethod
    def of(cls, model_name: str, counted: Coverage) -> Self:
        """Read the counts that the view ``embedding_coverage`` has of the active model."""
        total, embedded = counted.total, counted.embedded
        percent = round(100 * embedded / total, 1) if total else 100.0
        return cls(model_name, total, embedded, counted.stale, percent)


@dataclass(frozen=True, kw_only=True)
class ChatStatistics:
    """The archive in numbers.

    Attributes:
        conversations: All.
        saved: Those that are saved.
        messages: Of all branches.
        conversations_by_source: ``source_type`` → conversations, the most frequent first.
        messages_by_source: The same → messages of all branches.
        messages_by_role: Role → messages of all branches.
        messages_by_day: Day in UTC → messages of all branches, within the range asked for.
        messages_per_conversation: Of the main branch; a conversation without messages counts 0.
        storage_bytes: On disk.
        coverage: How many messages have vectors of the model that the archive is set to.
    """

    conversations: int
    saved: int
    messages: int
    conversations_by_source: Mapping[str, int]
    messages_by_source: Mapping[str, int]
    messages_by_role: Mapping[str, int]
    messages_by_day: Mapping[date, int]
    messages_per_conversation: Distribution
    storage_bytes: StorageBytes
    coverage: EmbeddingCoverage


STORAGE: Final = text("""
    SELECT CAST(sum(pg_table_size(oid)) - sum(toast) AS bigint),
           CAST(sum(pg_indexes_size(oid)) AS bigint),
           CAST(sum(toast) AS bigint)
    FROM pg_class
    CROSS JOIN LATERAL (
        SELECT coalesce(pg_total_relation_size(nullif(reltoastrelid, 0)), 0) AS toast
    ) AS beside
    WHERE oid IN ('conversations'::regclass, 'messages'::regclass, 'message_embeddings'::regclass)
""")

COVERAGE: Final = text("""
    SELECT model_name, total, embedded, stale, CAST(percent AS float8)
    FROM embedding_coverage WHERE corpus = 'chat'
""")

PER_CONVERSATION: Final = text("""
    SELECT coalesce(min(spoken), 0), CAST(coalesce(avg(spoken), 0) AS float8),
           coalesce(percentile_cont(0.5) WITHIN GROUP (ORDER BY spoken), 0),
           coalesce(percentile_cont(0.95) WITHIN GROUP (ORDER BY spoken), 0),
           coalesce(max(spoken), 0)
    FROM (
        SELECT count(messages.id) AS spoken
        FROM conversations
        LEFT JOIN messages ON conversation_id = conversations.id AND branch = 0
        GROUP BY conversations.id
    ) AS counted
""")


def count_all(session: Session, days: Sequence[ColumnElement[bool]]) -> ChatStatistics:
    """Count the archive.

    Args:
        session: To read with.
        days: Which messages are counted by day.
    """

    def tally(statement: Executable) -> dict[Any, int]:
        return {row[0]: row[1] for row in session.execute(statement)}

    def one(statement: Executable) -> Sequence[Any]:
        return session.execute(statement).one()

    day = cast(func.timezone("UTC", Message.created_at), Date)
    by_source = (
        select(Conversation.source_type, func.count())
        .group_by(Conversation.source_type)
        .order_by(func.count().desc(), Conversation.source_type)
    )
    by_role = select(Message.role, func.count()).group_by(Message.role).order_by(Message.role)
    by_day = select(day, func.count()).where(*days).group_by(day).order_by(day)
    conversations, roles = tally(by_source), tally(by_role)
    saved = select(func.count()).select_from(Conversation).where(Conversation.is_saved)
    return ChatStatistics(
        conversations=sum(conversations.values()),
        saved=session.scalar(saved) or 0,
        messages=sum(roles.values()),
        conversations_by_source=conversations,
        messages_by_source=tally(
            by_source.join(Message, Message.conversation_id == Conversation.id)
        ),
        messages_by_role=roles,
        messages_by_day=tally(by_day),
        messages_per_conversation=Distribution(*one(PER_CONVERSATION)),
        storage_bytes=StorageBytes(*one(STORAGE)),
        coverage=EmbeddingCoverage(*one(COVERAGE)),
    )
