"""The logs that the system keeps of its own running."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import BigInteger, Identity, Index, String, func
from sqlalchemy.orm import Mapped, mapped_column

from pgcorpus.db.base import Base


class QueryPerformance(Base):
    """The duration of one search, as its caller saw it."""

    __tablename__ = "query_performance_log"
    __table_args__ = (Index("idx_query_performance_log_timestamp", "timestamp"),)

    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    timestamp: Mapped[datetime] = mapped_column(server_default=func.now())
    query_type: Mapped[str] = mapped_column(
        String(50), comment="vector_search, text_search, fuzzy_search or hybrid_search"
    )
    corpus: Mapped[str] = mapped_column(String(50))
    duration: Mapped[float] = mapped_column(comment="milliseconds, embedding the question included")
    hits: Mapped[int]
    degraded: Mapped[bool] = mapped_column(comment="true if a leg did not answer")
