"""The history of imports: runs, files, every change made to a value, and refused passages."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Final
from uuid import UUID

from sqlalchemy import (
    JSON,
    BigInteger,
    CheckConstraint,
    ColumnElement,
    Identity,
    Index,
    LargeBinary,
    String,
    Text,
    literal_column,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from pgcorpus.db.base import Base, now, parent_key, readable_times, uuid_pk, valid_scope


class Scoped:
    """The scope of an import's history: what memories leave behind is scoped as they are."""

    scope: Mapped[str | None] = mapped_column(
        Text, comment="scope of the row it is about, as app_scope() has it, or null"
    )


class ImportRun(Scoped, Base):
    """One call of an importer."""

    __tablename__ = "import_runs"
    __table_args__ = (valid_scope(), readable_times("started_at", "finished_at"))

    id: Mapped[uuid_pk]
    corpus: Mapped[str] = mapped_column(String(50))
    options: Mapped[dict[str, Any]] = mapped_column(JSONB, server_default=text("'{}'"))
    started_at: Mapped[now]
    finished_at: Mapped[datetime | None] = mapped_column(
        comment="time of its end; null: it was stopped"
    )


class ImportFile(Scoped, Base):
    """One file of a run, with what it says of itself beside its chunks."""

    __tablename__ = "import_files"
    __table_args__ = (
        CheckConstraint(
            "least(added, updated, unchanged, rejected, transformed) >= 0", name="valid_counts"
        ),
        valid_scope(),
        readable_times("created_at"),
        Index("ix_import_files_run_id", "run_id"),
    )
    # Thousands are added at once, and nobody reads their times back: one statement does for all.
    __mapper_args__ = {"eager_defaults": False}  # noqa: RUF012 - as SQLAlchemy reads it

    id: Mapped[uuid_pk]
    run_id: Mapped[UUID] = mapped_column(parent_key("import_runs.id"))
    file: Mapped[str] = mapped_column(Text)
    sha256: Mapped[bytes | None] = mapped_column(LargeBinary, comment="SHA-256 of the file's bytes")
    header: Mapped[Any] = mapped_column(
        JSON, nullable=True, comment="the file's own metadata, as it stood"
    )
    error: Mapped[str | None] = mapped_column(Text, comment="reason why the file could not be read")
    added: Mapped[int] = mapped_column(server_default=text("0"))
    updated: Mapped[int] = mapped_column(server_default=text("0"))
    unchanged: Mapped[int] = mapped_column(server_default=text("0"))
    rejected: Mapped[int] = mapped_column(server_default=text("0"))
    transformed: Mapped[int] = mapped_column(server_default=text("0"))
    created_at: Mapped[now]


class ImportTransformation(Scoped, Base):
    """One value that was stored otherwise than it stood in its file, and by which rule.

    JSON and not JSONB: an original may hold what JSONB cannot, such as a NUL character.
    """

    __tablename__ = "import_transformations"
    __table_args__ = (
        valid_scope(),
        readable_times("created_at"),
        Index("ix_import_transformations_run_id", "run_id"),
        Index("ix_import_transformations_item", "item", postgresql_using="hash"),
    )

    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    run_id: Mapped[UUID] = mapped_column(parent_key("import_runs.id"))
    file: Mapped[str] = mapped_column(Text)
    locator: Mapped[str] = mapped_column(Text, comment="place in the file, as a JSON path")
    item: Mapped[str] = mapped_column(Text, comment="the author's identifier of the passage")
    field: Mapped[str] = mapped_column(Text)
    original: Mapped[Any] = mapped_column(JSON, nullable=True)
    stored: Mapped[Any] = mapped_column(JSON, nullable=True)
    rule: Mapped[str] = mapped_column(String(50), comment="see docs/reference/import-rules.md")
    created_at: Mapped[now]


PLACE: Final[tuple[ColumnElement[bytes], ...]] = (
    literal_column("text_hash(file)"),
    literal_column("text_hash(locator)"),
)
"""A place in a file, by hash: names of files in an order could be spelled out by others."""


class ImportReject(Scoped, Base):
    """A passage that was refused, kept so that it can be mended and tried again."""

    __tablename__ = "import_rejects"
    __table_args__ = (
        valid_scope(),
        readable_times("created_at"),
        Index(
            "uq_import_rejects_place",
            "scope",
            "corpus",
            *PLACE,
            unique=True,
            postgresql_nulls_not_distinct=True,
        ),
        Index(
            "idx_import_rejects_scope",
            "scope",
            postgresql_where=text("scope IS NOT NULL"),
        ),
    )

    id: Mapped[uuid_pk]
    run_id: Mapped[UUID] = mapped_column(parent_key("import_runs.id"))
    corpus: Mapped[str] = mapped_column(String(50))
    file: Mapped[str] = mapped_column(Text)
    locator: Mapped[str] = mapped_column(Text, comment="place in the file, as a JSON path")
    reason: Mapped[str] = mapped_column(Text)
    payload: Mapped[Any] = mapped_column(JSON, comment="the passage as it stood in the file")
    context: Mapped[dict[str, Any] | None] = mapped_column(
        JSON, comment="description of the chunk and its neighbours in the file"
    )
    created_at: Mapped[now]
