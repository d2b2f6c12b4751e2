"""The logs that the system keeps of its own running."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import BigInteger, CheckConstraint, Identity, Index, String, Text, func, text
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
