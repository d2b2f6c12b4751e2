"""The logs that the system keeps of its own running."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Final, Literal
from uuid import UUID

from sqlalchemy import BigInteger, CheckConstraint, Identity, Index, String, Text, func, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from pgcorpus.db.base import Base, readable_times

MaintenanceStatus = Literal["running", "completed", "skipped", "failed", "interrupted"]

VALID_DETAILS: Final = (
    "duration BETWEEN 0 AND 1e12 AND jsonb_typeof(legs) = 'object' "
    "AND jsonb_typeof(options) = 'object' AND length(question) <= 2000"
)


class _SearchTiming:
    """The columns of the log of searches, and of its archive."""

    query_type: Mapped[str] = mapped_column(
        String(50), comment="vector_search, text_search, fuzzy_search or hybrid_search"
    )
    corpus: Mapped[str] = mapped_column(String(50))
    duration: Mapped[float] = mapped_column(comment="milliseconds, embedding the question included")
    hits: Mapped[int]
    degraded: Mapped[bool] = mapped_column(comment="true if a leg did not answer")
    fusion: Mapped[str | None] = mapped_column(
        String(20), comment="fusion of the legs; null in rows of before revision 0009"
    )
    candidates: Mapped[int | None] = mapped_column(comment="passages that the legs found, in all")
    legs: Mapped[dict[str, Any] | None] = mapped_column(
        JSONB(none_as_null=True), comment="leg to its status, candidates and milliseconds"
    )
    options: Mapped[dict[str, Any] | None] = mapped_column(
        JSONB(none_as_null=True),
        comment="limit, offset, language, group_by, names of filters; never a value of a filter",
    )
    question: Mapped[str | None] = mapped_column(
        Text, comment="text of the question; null unless METRICS_QUESTIONS keeps it"
    )


class QueryPerformance(_SearchTiming, Base):
    """The duration of one search, as its caller saw it. Administrators alone read it."""

    __tablename__ = "query_performance_log"
    __table_args__ = (
        CheckConstraint(VALID_DETAILS, name="valid_search_details"),
        readable_times("timestamp"),
        Index("idx_query_performance_log_timestamp", "timestamp"),
    )

    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    timestamp: Mapped[datetime] = mapped_column(server_default=func.now())


class ArchivedQueryPerformance(_SearchTiming, Base):
    """The duration of a search that retention moved out of the log."""

    __tablename__ = "query_performance_archive"
    __table_args__ = (
        CheckConstraint(VALID_DETAILS, name="valid_search_details"),
        readable_times("timestamp"),
        Index("idx_query_performance_archive_timestamp", "timestamp"),
    )

    id: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    timestamp: Mapped[datetime]


class BackupLog(Base):
    """One backup of the database: begun, ended well or badly, and perhaps verified since."""

    __tablename__ = "backup_log"
    __table_args__ = (
        CheckConstraint("kind IN ('full')", name="valid_kind"),
        CheckConstraint(
            "status IN ('running', 'complete', 'verified', 'failed')", name="valid_status"
        ),
        CheckConstraint(
            "(status = 'running') = (finished_at IS NULL)", name="finished_unless_running"
        ),
        CheckConstraint("bytes >= 0 AND rows >= 0", name="non_negative_sizes"),
        Index("idx_backup_log_finished_at", "finished_at"),
    )

    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    kind: Mapped[str] = mapped_column(
        Text, server_default="full", comment="full: the whole database"
    )
    started_at: Mapped[datetime] = mapped_column(server_default=func.now())
    finished_at: Mapped[datetime | None] = mapped_column(
        comment="time of its end, of a failure too"
    )
    location: Mapped[str] = mapped_column(
        Text, comment="name of its folder, below the folder of backups"
    )
    bytes: Mapped[int | None] = mapped_column(BigInteger, comment="size of all its files")
    rows: Mapped[int | None] = mapped_column(BigInteger, comment="number of rows of all tables")
    status: Mapped[str] = mapped_column(Text, server_default="running")
    error: Mapped[str | None] = mapped_column(Text, comment="reason of a failure")
    verified_at: Mapped[datetime | None] = mapped_column(
        comment="time of the last verification that found no difference"
    )
    encrypted: Mapped[bool] = mapped_column(
        server_default=text("false"), comment="true if its files are encrypted"
    )


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
