"""The job queue: work to be done later, by any worker."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any, Final

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Identity,
    Index,
    SmallInteger,
    String,
    Text,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from pgcorpus.db.base import Base, now, readable_times, valid_scope
from pgcorpus.db.choices import JobStatus
from pgcorpus.db.mixins import Timestamped

CHANNEL: Final = "pgcorpus_jobs"
"""The channel that a trigger notifies when jobs are enqueued."""


class Job(Timestamped, Base):
    """One thing to do: enqueued in the transaction that makes it necessary."""

    __tablename__ = "jobs"
    __table_args__ = (
        CheckConstraint(
            "status IN ('pending', 'running', 'completed', 'failed')", name="valid_job_status"
        ),
        CheckConstraint(
            "attempts BETWEEN 0 AND 1000000 AND max_attempts BETWEEN 1 AND 1000000",
            name="valid_attempts",
        ),
        CheckConstraint(
            "(status = 'running') = (lease_expires_at IS NOT NULL)"
            " AND (status <> 'running' OR worker_id IS NOT NULL)",
            name="valid_lease",
        ),
        CheckConstraint(
            "repeat_every > interval '0' AND repeat_every <= interval '10 years'",
            name="valid_repetition",
        ),
        CheckConstraint("octet_length(dedupe_key) <= 1000", name="valid_dedupe_key"),
        # Python reads neither numbers of 4,300 digits nor 1,000 brackets.
        CheckConstraint(
            "jsonb_typeof(payload) = 'object' AND octet_length(payload::text) <= 4000"
            " AND coalesce(octet_length(payload ->> 'corpus'), 0) <= 200"
            " AND NOT jsonb_path_exists(payload, '$.**{20}')",
            name="valid_payload",
        ),
        valid_scope(),
        readable_times(
            "not_before",
            "lease_expires_at",
            "started_at",
            "finished_at",
            "created_at",
            "updated_at",
        ),
        Index(
            "uq_jobs_pending_dedupe_key",
            "dedupe_key",
            "kind",
            "scope",
            unique=True,
            postgresql_nulls_not_distinct=True,
            postgresql_where=text("status = 'pending' AND dedupe_key IS NOT NULL"),
        ),
        Index(
            "idx_jobs_pending",
            "kind",
            text("coalesce(payload ->> 'corpus', '')"),
            text("coalesce(scope, '')"),
            text("priority DESC"),
            "id",
            postgresql_where=text("status = 'pending'"),
        ),
        Index("idx_jobs_running", "lease_expires_at", postgresql_where=text("status = 'running'")),
        Index("idx_jobs_completed", "finished_at", postgresql_where=text("status = 'completed'")),
        Index("idx_jobs_scope", "scope", "dedupe_key", postgresql_where=text("scope IS NOT NULL")),
        Index("idx_jobs_failed", "finished_at", "id", postgresql_where=text("status = 'failed'")),
    )

    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    kind: Mapped[str] = mapped_column(String(50), comment="kind of its handler")
    payload: Mapped[dict[str, Any]] = mapped_column(
        JSONB,
        server_default=text("'{}'"),
        comment="arguments of the handler: keys, never texts",
    )
    status: Mapped[JobStatus] = mapped_column(
        String(20),
        server_default="pending",
        comment="failed: it is tried again only if it is requeued",
    )
    priority: Mapped[int] = mapped_column(
        SmallInteger, server_default=text("0"), comment="jobs of higher priority are claimed sooner"
    )
    dedupe_key: Mapped[str | None] = mapped_column(
        Text(collation="C"),
        comment="key of which at most one job of a kind and scope is pending",
    )
    attempts: Mapped[int] = mapped_column(
        server_default=text("0"), comment="number of attempts begun"
    )
    max_attempts: Mapped[int] = mapped_column(server_default=text("5"))
    not_before: Mapped[now] = mapped_column(
        comment="time from which it may be begun, again after a failure"
    )
    repeat_every: Mapped[timedelta | None] = mapped_column(
        comment="interval of a periodic job: done, it is pending again after this time"
    )
    worker_id: Mapped[str | None] = mapped_column(
        String(100), comment="worker that has it, or had it last"
    )
    lease_expires_at: Mapped[datetime | None] = mapped_column(
        comment="time until which its worker is believed to be alive"
    )
    started_at: Mapped[datetime | None] = mapped_column(comment="time of the last attempt")
    finished_at: Mapped[datetime | None]
    last_error: Mapped[str | None] = mapped_column(Text, comment="reason of the last failure")
    scope: Mapped[str | None] = mapped_column(
        Text, comment="scope of the row it is about, as app_scope() has it, or null"
    )
