"""The tokens that embedding may take, and those that it took."""

from __future__ import annotations

from datetime import date
from typing import Final

from sqlalchemy import BigInteger, CheckConstraint, Index, Text, UniqueConstraint, text
from sqlalchemy.orm import Mapped, mapped_column

from pgcorpus.db.base import Base, uuid_pk
from pgcorpus.db.choices import LEAST_CEILING, MOST_TOKENS
from pgcorpus.db.mixins import Timestamped

EVERY_SCOPE: Final = "default"
"""The scope of the ceiling that holds for every scope without a row of its own."""

_ANY_SCOPE: Final = "(tenant|user):[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"


class TokenCeiling(Timestamped, Base):
    """The most tokens that embedding the texts of a scope may take in a day."""

    __tablename__ = "token_ceilings"
    __table_args__ = (
        CheckConstraint(f"scope ~ '^(default|{_ANY_SCOPE})$'", name="valid_scope"),
        CheckConstraint(
            f"tokens_per_day = 0 OR tokens_per_day BETWEEN {LEAST_CEILING} AND {MOST_TOKENS}",
            name="valid_tokens_per_day",
        ),
    )

    id: Mapped[uuid_pk]
    scope: Mapped[str] = mapped_column(
        Text,
        unique=True,
        comment="scope that it holds for; default: every scope without a row of its own",
    )
    tokens_per_day: Mapped[int] = mapped_column(
        BigInteger,
        comment="the most tokens that embedding its texts may take from midnight UTC on",
    )


class EmbeddingUsage(Base):
    """The tokens that embedding the texts of a scope took on one day."""

    __tablename__ = "embedding_usage"
    __table_args__ = (
        CheckConstraint(f"scope ~ '^(shared|{_ANY_SCOPE})$'", name="valid_scope"),
        CheckConstraint("reserved_tokens >= 0 AND spent_tokens >= 0", name="non_negative_tokens"),
        UniqueConstraint("scope", "day"),
        Index("idx_embedding_usage_day", "day"),
    )

    id: Mapped[uuid_pk]
    scope: Mapped[str] = mapped_column(
        Text,
        comment="scope whose texts were embedded; shared: those that are everybody's",
    )
    day: Mapped[date] = mapped_column(comment="day in UTC on which the tokens were asked for")
    reserved_tokens: Mapped[int] = mapped_column(
        BigInteger,
        server_default=text("0"),
        comment="bound of the calls under way, and of those whose process died",
    )
    spent_tokens: Mapped[int] = mapped_column(
        BigInteger,
        server_default=text("0"),
        comment="tokens that the provider counted, and the bound where it did not answer",
    )
    full_at: Mapped[int | None] = mapped_column(
        BigInteger,
        comment="ceiling under which the next job did not fit any more; null if all did",
    )
