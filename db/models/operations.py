"""The logs that the system keeps of its own running."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal
from uuid import UUID

from sqlalchemy import BigInteger, CheckConstraint, Identity, Index, String, Text, func, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from pgcorpus.db.base import Base, readable_times

MaintenanceStatus = Literal["running", "completed", "skipped", "failed", "interrupted"]


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


class MaintenanceLog(Base):
    """One step of maintenance: of a table, an index or the whole database."""

    __tablename__ = "maintenance_log"
    __table_args__ = (
        CheckConstraint(
            "status IN ('running', 'completed', 'skipped', 'failed', 'interrupted')",
            name="valid_maintenance_status",
        ),
        readable_times("timestamp"),
        Index("idx_maintenance_log_timestamp", "timestamp"),
        Index("idx_maintenance_log_subject", "operation", "subject", "timestamp"),
    )

    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    run: Mapped[UUID] = mapped_column(
        server_default=func.gen_random_uuid(),
        comment="the run of pgcorpus maintenance that the step was a part of",
    )
    operation: Mapped[str] = mapped_column(String(50), comment="kind of the step, such as reindex")
    subject: Mapped[str | None] = mapped_column(
        Text, comment="table or index that it was done to; null for the whole database"
    )
    timestamp: Mapped[datetime] = mapped_column(
        server_default=func.clock_timestamp(), comment="time at which the step began"
    )
    status: Mapped[MaintenanceStatus] = mapped_column(
        String(20),
        server_default="running",
        comment="skipped: there was nothing to do; interrupted: its process ended before the step",
    )
    duration: Mapped[float | None] = mapped_column(
        comment="milliseconds; null while the step runs, and where it was interrupted"
    )
    detail: Mapped[dict[str, Any]] = mapped_column(
        JSONB, server_default=text("'{}'"), comment="findings, and what was done"
    )
    error: Mapped[str | None] = mapped_column(Text, comment="reason of a failure")
    login: Mapped[str] = mapped_column(
        Text, server_default=text("SESSION_USER"), comment="login that did it"
    )
