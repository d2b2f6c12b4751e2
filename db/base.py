"""The declarative base, the names of constraints and the vocabulary of columns."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Annotated, Any, Final, cast
from uuid import UUID

import numpy as np
import pgvector
from pgvector.sqlalchemy import VECTOR
from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    ColumnElement,
    DateTime,
    Dialect,
    ForeignKey,
    MetaData,
    Select,
    Table,
    Text,
    func,
    select,
)
from sqlalchemy.orm import DeclarativeBase, mapped_column

# Every constraint gets a predictable name: revisions drop by name, and pgcorpus.db.errors turns a
# violated name into a sentence.
NAMING_CONVENTION: Final = {
    "pk": "pk_%(table_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "ck": "%(constraint_name)s",
}


SHARED: Final = "shared"
"""The scope of rows that everybody may read, in tables that have such rows."""


class Base(DeclarativeBase):
    """The declarative base of all models."""

    metadata = MetaData(naming_convention=NAMING_CONVENTION)
    type_annotation_map = {datetime: DateTime(timezone=True)}  # noqa: RUF012 - SQLAlchemy's own form


def table_of(model: type[Base]) -> Table:
    """Return the table of a model, for statements that are built from columns."""
    return cast("Table", model.__table__)


uuid_pk = Annotated[UUID, mapped_column(primary_key=True, server_default=func.gen_random_uuid())]
now = Annotated[datetime, mapped_column(server_default=func.now())]


def as_uuid(text: str) -> UUID | None:
    """Return the key that a text stands for, or None where it stands for none."""
    try:
        return UUID(text)
    except ValueError:
        return None


def in_utc(moment: datetime | None) -> datetime | None:
    """Return the moment with a zone: PostgreSQL would read one without in the session's."""
    return moment.replace(tzinfo=UTC) if moment and moment.tzinfo is None else moment


def set_local(settings: Mapping[str, str | ColumnElement[str]]) -> Select[Any]:
    """Build the statement that changes settings until the transaction ends.

    Never for the session: its next user in the pool would have them.
    """
    return select(*(func.set_config(name, value, True) for name, value in settings.items()))


def lock_key(doing: str) -> ColumnElement[int]:
    """Build the key of the advisory lock on *doing*, which differs from schema to schema.

    An evaluation works in a schema of its own beside the others.
    """
    named = func.concat(doing, " in ", func.current_schema(), type_=Text)
    return func.hashtextextended(named, 0, type_=BigInteger)


def parent_key(column: str) -> ForeignKey:
    """Build a foreign key that deletes a row together with its parent."""
    return ForeignKey(column, ondelete="CASCADE")


def readable_times(*columns: str) -> CheckConstraint:
    """Build the check that times lie between the years 2 and 9998.

    No client in Python reads others.

    One such row would break every listing that it is on.
    """
    return CheckConstraint(
        " AND ".join(
            f"{column} BETWEEN to_timestamp(-62104060800) AND to_timestamp(253370764800)"
            for column in columns
        ),
        name="readable_times",
    )


def valid_scope() -> CheckConstraint:
    """Build the check that a scope is written as ``Scope.parse`` reads it.

    Callers write the column.
    """
    return CheckConstraint(
        "scope ~ '^(tenant|user):[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$'", name="valid_scope"
    )


class Vector(VECTOR):
    """A ``vector`` that travels in binary, as a float32 array of shape ``(dimensions,)``.

    pgvector's own type sends text. This one hands the array to the adapter that
    ``pgcorpus.db.engine`` registers on every connection.
    """

    cache_ok = True

    def bind_processor(self, dialect: Dialect) -> Callable[[Any], Any]:  # noqa: ARG002
        """Pass any sequence of numbers on as an array."""
        return lambda value: None if value is None else np.asarray(value, dtype=np.float32)

    def result_processor(self, dialect: Dialect, coltype: object) -> Callable[[Any], Any]:  # noqa: ARG002
        """Return the function that makes an array of a binary vector."""

        def process(value: Any) -> np.ndarray | None:
            if isinstance(value, str):  # a connection made before the extension was
                value = pgvector.Vector.from_text(value)
            return None if value is None else value.to_numpy()

        return process
