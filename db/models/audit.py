"""The audit log: changes, their authors, and the seals that prove it unchanged.

Triggers write it, and functions seal it: no code of ours inserts a row here.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, Final
from uuid import UUID

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Identity,
    Index,
    LargeBinary,
    PrimaryKeyConstraint,
    Table,
    Text,
    func,
    literal_column,
    text,
)
from sqlalchemy.dialects.postgresql import INET, JSONB
from sqlalchemy.orm import Mapped, mapped_column

from pgcorpus.db.base import Base

LOG_TABLES: Final = frozenset({"audit_seals", "audit_state", "security_audit_log"})
"""Tables that no application may write to."""

NOT_AUDITED: Final = (LOG_TABLES - {"audit_state"}) | {
    "backup_log",
    "click_feedback",
    "embedding_usage",
    "import_files",
    "import_rejects",
    "import_runs",
    "import_transformations",
    "jobs",
    "maintenance_log",
    "query_performance_archive",
    "query_performance_log",
    "search_sessions",
}
"""Tables of which changes are not recorded: logs themselves, and work under way."""


def list_audited() -> list[str]:
    """Return the names of all other tables, in order: every change of their rows is recorded."""
    return sorted(Base.metadata.tables.keys() - NOT_AUDITED)


class SecurityAuditLog(Base):
    """One change: of a row, the schema, a right or a role. Partitioned by month, in UTC."""

    __tablename__ = "security_audit_log"
    __table_args__ = (
        # A partitioned table cannot have a key without what it is partitioned by.
        PrimaryKeyConstraint("timestamp", "id"),
        Index("idx_security_audit_log_position", "position"),
        Index("idx_security_audit_log_transaction", "transaction_id", postgresql_using="brin"),
        Index(
            "idx_security_audit_log_record",
            literal_column("split_part(record_id, ','::text, '-1'::integer)").label("last_of_key"),
        ),
        Index("idx_security_audit_log_table", "table_name", "timestamp"),
        Index(
            "idx_security_audit_log_actor",
            "actor",
            "timestamp",
            postgresql_where=text("actor IS NOT NULL"),
        ),
        {"postgresql_partition_by": "RANGE (timestamp)"},
    )

    position: Mapped[int] = mapped_column(
        BigInteger,
        Identity(always=True),
        comment="counts entries; those of a transaction that was rolled back are missing",
    )
    id: Mapped[UUID] = mapped_column(server_default=func.gen_random_uuid())
    timestamp: Mapped[datetime] = mapped_column(
        server_default=func.clock_timestamp(),
        comment="time of the entry, which is not the time of the commit",
    )
    user_name: Mapped[str] = mapped_column(
        Text,
        comment="login, whatever role was SET; (unknown) for a role that had changed",
    )
    actor: Mapped[str | None] = mapped_column(
        Text,
        comment="user it was done for, as the application says in app.actor: a claim, not a proof",
    )
    action: Mapped[str] = mapped_column(
        Text, comment="INSERT, UPDATE, DELETE, TRUNCATE, or the command of a change of the schema"
    )
    table_name: Mapped[str | None] = mapped_column(Text)
    record_id: Mapped[str | None] = mapped_column(
        Text, comment="the key of the row, its columns separated by commas; else the object"
    )
    old_values: Mapped[dict[str, Any] | None] = mapped_column(
        JSONB, comment="row before, of an UPDATE what changed; secrets and vectors as keyed hashes"
    )
    new_values: Mapped[dict[str, Any] | None] = mapped_column(
        JSONB, comment="row after, of an UPDATE what changed; secrets and vectors as keyed hashes"
    )
    ip_address: Mapped[Any | None] = mapped_column(INET)
    application_name: Mapped[str | None] = mapped_column(Text)
    transaction_id: Mapped[int] = mapped_column(
        BigInteger, comment="transaction id with its epoch, of the cluster that wrote it"
    )


class AuditSeal(Base):
    """A batch of entries, or the end of a month of them, sealed; each seal holds the one before."""

    __tablename__ = "audit_seals"
    __table_args__ = (
        CheckConstraint("kind IN ('rows', 'retention')", name="valid_seal_kind"),
        Index("idx_audit_seals_last_position", "last_position", "number"),
    )

    number: Mapped[int] = mapped_column(
        BigInteger, primary_key=True, autoincrement=False, comment="counts seals, without a gap"
    )
    sealed_at: Mapped[datetime] = mapped_column(server_default=func.clock_timestamp())
    sealed_by: Mapped[str] = mapped_column(Text, comment="login")
    kind: Mapped[str] = mapped_column(
        Text, comment="rows: a batch was sealed; retention: months were dropped"
    )
    last_position: Mapped[int] = mapped_column(
        BigInteger, comment="entries up to here are sealed, but those in flight"
    )
    oldest_transaction: Mapped[int] = mapped_column(
        BigInteger, comment="entries from this one on may have been in flight"
    )
    next_transaction: Mapped[int] = mapped_column(
        BigInteger, comment="transaction id from which entries are of another cluster"
    )
    months: Mapped[dict[str, Any]] = mapped_column(
        JSONB, comment="month to the number of its entries and the SHA-256 over them"
    )
    previous: Mapped[bytes | None] = mapped_column(
        LargeBinary, comment="the hash of the seal before"
    )
    hash: Mapped[bytes] = mapped_column(
        LargeBinary, comment="SHA-256 of the seal, the hash before included"
    )
    signature: Mapped[bytes | None] = mapped_column(
        LargeBinary,
        comment="HMAC-SHA256 of the hash with PGCORPUS_AUDIT_KEY, which no database knows",
    )


AUDIT_STATE: Final = Table(
    "audit_state",
    Base.metadata,
    Column("only_row", Boolean, primary_key=True, server_default=text("true")),
    Column(
        "inner_block",
        LargeBinary,
        nullable=False,
        comment="the key of the hashes in the log, combined with 0x36 (HMAC-SHA256)",
    ),
    Column("outer_block", LargeBinary, nullable=False, comment="the key, combined with 0x5c"),
    Column(
        "upkeep",
        Boolean,
        nullable=False,
        server_default=text("false"),
        comment="true only while entries are moved out of the default partition",
    ),
    Column("roles", JSONB, comment="the roles of the server, as they were when last looked at"),
    CheckConstraint("only_row", name="single_row"),
)
"""The state of the log's functions: one row, which only their owner reads."""
