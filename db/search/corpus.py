"""What is searchable, as a value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time
from typing import Any

from sqlalchemy import Column, ColumnElement, Select, Table, and_, exists, or_

from db.errors import InvalidFilter, MissingScope, UnknownFilter


@dataclass(frozen=True, kw_only=True)
class Filter:
    """A column that a caller may narrow a search by.

    Attributes:
        column: The column that is compared.
        through: How its table belongs to the passage, or None for a column of the passage itself.
    """

    column: ColumnElement[Any]
    through: ColumnElement[bool] | None = None


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """Where one corpus keeps what a search reads. All ranking SQL is built from this.

    Attributes:
        name: Stable, lower case; it is logged and shown.
        passages: The table with one row per passage.
        key: Its primary key.
        text: What is embedded of a passage, and hashed to notice a change.
        words: The ``tsvector`` column, whose trigger or expression keeps it in step.
        shown: The expression that the trigram index is on.
        vectors: The embedding table.
        item: The column of ``vectors`` that names the passage.
        filters: What a caller may narrow by, under the caller's names.
        defaults: Filters that hold unless the caller names them.
        hits: A SELECT with one row per passage: ``id``, ``title``, ``content``; every further
            column is metadata of the hit. It runs only for the passages that won.
        required: Names of filters without which no search may run.
    """

    name: str
    passages: Table
    key: Column[Any]
    text: ColumnElement[str]
    words: Column[Any]
    shown: ColumnElement[str]
    vectors: Table
    item: Column[Any]
    filters: Mapping[str, Filter]
    hits: Select[Any]
    defaults: Mapping[str, Any] = field(default_factory=dict)
    required: frozenset[str] = frozenset()

    def conditions(self, asked: Mapping[str, Any]) -> list[ColumnElement[bool]]:
        """What must hold of a passage, the corpus's defaults included.

        Args:
            asked: Filter name → a value (equality), a list (any of them), None (no value), or a
                mapping with ``gte``, ``gt``, ``lte`` or ``lt`` (a range). Text is read as the
                column's type: ``"true"``, ``"2025-01-31"``.

        Raises:
            UnknownFilter: The corpus has no filter of that name.
            InvalidFilter: A value is not of the column's type.
            MissingScope: A required filter is absent.
        """
        if missing := self.required - asked.keys():
            raise MissingScope(
                f"{self.name} is searched only within a scope; name {', '.join(sorted(missing))}"
            )
        if unknown := asked.keys() - self.filters.keys():
            raise UnknownFilter(
                f"{self.name} has no filter {', '.join(sorted(unknown))}; "
                f"known: {', '.join(sorted(self.filters))}"
            )
        return [
            _condition(name, self.filters[name], value)
            for name, value in sorted({**self.defaults, **asked}.items())
        ]


def storable(value: str) -> bool:
    """Whether PostgreSQL can hold the text: no NUL character, no half of a surrogate pair."""
    return "\0" not in value and not any("\ud800" <= c <= "\udfff" for c in value)


def _condition(name: str, of: Filter, value: Any) -> ColumnElement[bool]:  # noqa: ANN401
    if of.through is None:
        return _compared(name, of.column, value)
    # No value is also no row: a passage without a concept has none.
    none = ~exists().where(and_(of.through, of.column.is_not(None)))
    if value is None:
        return none
    several = isinstance(value, (list, tuple, set, frozenset))
    wanted = [each for each in value if each is not None] if several else value
    held = exists().where(and_(of.through, _compared(name, of.column, wanted)))
    return or_(held, none) if several and len(wanted) < len(value) else held


COMPARISONS = {"gte": "__ge__", "gt": "__gt__", "lte": "__le__", "lt": "__lt__"}


def _compared(name: str, column: ColumnElement[Any], value: Any) -> ColumnElement[bool]:  # noqa: ANN401
    if value is None:
        return column.is_(None)
    if isinstance(value, Mapping):
        if column.type.python_type is bool:
            raise InvalidFilter(f"{name}: true and false have no range")
        if not value or value.keys() - COMPARISONS.keys():
            raise InvalidFilter(
                f"{name}: a range has the bounds {', '.join(COMPARISONS)}, not {sorted(value)}"
            )
        return and_(
            *(
                getattr(column, COMPARISONS[bound])(_as(name, column, limit))
                for bound, limit in sorted(value.items())
            )
        )
    if isinstance(value, (list, tuple, set, frozenset)):
        present = [_as(name, column, each) for each in value if each is not None]
        among = column.in_(present)
        return or_(among, column.is_(None)) if len(present) < len(value) else among
    equal: ColumnElement[bool] = column == _as(name, column, value)
    return equal


def _as(name: str, column: ColumnElement[Any], value: Any) -> Any:  # noqa: ANN401
    """The value as the column's Python type; text is read, nothing else is guessed."""
    kind = column.type.python_type
    try:
        converted = _read(kind, value) if isinstance(value, str) else value
    except ValueError:
        converted = value
    if kind is datetime and type(converted) is date:
        converted = datetime.combine(converted, time.min)
    if isinstance(converted, datetime) and converted.tzinfo is None:
        converted = converted.replace(tzinfo=UTC)
    if not isinstance(converted, kind) or (kind is not bool and isinstance(converted, bool)):
        raise InvalidFilter(f"{name}: {value!r} is not a {kind.__name__}")
    if isinstance(converted, str) and not storable(converted):
        raise InvalidFilter(f"{name}: {value!r} holds a character that no text can hold")
    return converted


def _read(kind: type, value: str) -> Any:  # noqa: ANN401
    if kind is bool:
        return {"true": True, "false": False}[value.lower()] if value.lower() in BOOLEANS else value
    if kind in (datetime, date):
        return kind.fromisoformat(value)
    return kind(value)


BOOLEANS = ("true", "false")
