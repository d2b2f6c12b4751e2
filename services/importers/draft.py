"""A record being read from a file: readings shared by all formats, and the changes made.

docs/reference/import-rules.md describes every rule to the people who read the history.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from enum import StrEnum
from typing import Any, Final

from pgcorpus.db.repositories.imports import Change
from pgcorpus.services.importers.files import MAX_DEPTH
from pgcorpus.services.importers.text import MAX_NAME, UNSTORABLE, clean, describe_value

EARLIEST: Final = datetime(1990, 1, 1, tzinfo=UTC)
LATEST: Final = timedelta(days=1)
"""The time past now up to which a moment is accepted: clocks differ, and times without a zone are
read as UTC."""

UNITS: Final = (
    (1e11, 1),
    (1e14, 10**3),
    (1e17, 10**6),
    (1e20, 10**9),
)
"""A time below the first number is in the second's parts of a second since 1970. Seconds reach
1e11 in the year 5138, and milliseconds are past it since 1973."""

MAX_DETAIL: Final = 10_000
"""Characters of one text in a message's details: more is not description but a file's content."""

TRUE_WORDS: Final = frozenset({"true", "yes", "y", "on", "1", "t"})
FALSE_WORDS: Final = frozenset({"false", "no", "n", "off", "0", "f"})


class Rule(StrEnum):
    """Names of the rules, as the history of an import has them."""

    BOOLEAN = "boolean"
    CHARACTERS = "characters"
    CHOICE = "choice"
    CHUNK_TYPE = "chunk_type"
    CONCEPT = "concept"
    CONCEPT_DROPPED = "concept_dropped"
    CONCEPT_LIST = "concept_list"
    CONCEPT_MERGED = "concept_merged"
    CURRENT = "current"
    CUT = "cut"
    CYCLE = "cycle"
    DATE = "date"
    DEFAULT = "default"
    DERIVED = "derived"
    DUPLICATE = "duplicate"
    EMPTY = "empty"
    ENCODING = "encoding"
    IDENTIFIER = "identifier"
    INHERITED = "inherited"
    INTEGER = "integer"
    KEPT = "kept"
    LANGUAGE = "language"
    LINES = "lines"
    LINKS = "links"
    NUMBER = "number"
    OLDER = "older"
    ORPHAN = "orphan"
    POSITION = "position"
    PRECEDENCE = "precedence"
    RANGE = "range"
    RECOUNTED = "recounted"
    REPLACED = "replaced"
    ROLE = "role"
    ROOTS = "roots"
    SHAPE = "shape"
    SOURCE_FILE = "source_file"
    SPLICED = "spliced"
    TAGS = "tags"
    TEXT = "text"
    TIME = "time"
    TITLE = "title"
    UNREADABLE = "unreadable"
    ZONE = "zone"


class Unacceptable(Exception):
    """The record cannot be stored; the message says why. It does not leave the importers."""


@dataclass(slots=True)
class Draft:
    """A record being read from a file, and the changes made so far.

    Attributes:
        strict: Refuse instead of changing a value that is given.
        changes: In the order in which they were made.
    """

    strict: bool = False
    changes: list[Change] = field(default_factory=list)

    def storable(self, raw: dict[str, Any]) -> dict[str, Any]:
        """Return the object with every value as PostgreSQL can store it.

        Raises:
            Unacceptable: It is nested too deep.
        """
        if not _doubtful(raw):
            return raw
        cleaned: dict[str, Any] = self._clean_detail("", raw)
        return cleaned

    def change(self, name: str, original: Any, stored: Any, rule: Rule) -> None:
        """Record that a given value is stored otherwise.

        Raises:
            Unacceptable: That is forbidden.
        """
        if self.strict and original is not None:
            raise Unacceptable(
                f"{name} would be changed from {describe_value(original)} to "
                f"{describe_value(stored)} (rule {rule.value})"
            )
        self.record(name, original, stored, rule)

    def record(self, name: str, original: Any, stored: Any, rule: Rule) -> None:
        """Record a change that is allowed."""
        self.changes.append(Change(name, original, stored, rule.value))

    def as_object(self, name: str, value: Any) -> dict[str, Any]:
        """Return the value if it is an object; one without fields in place of anything else."""
        if isinstance(value, dict):
            return value
        if value is not None:
            self.change(name, value, None, Rule.SHAPE)
        return {}

    def as_list(self, name: str, value: Any) -> Sequence[Any]:
        """Return the value if it is a list; an empty one in place of anything else."""
        if isinstance(value, list):
            return value
        if value is not None:
            self.change(name, value, None, Rule.SHAPE)
        return []

    def as_link(self, name: str, value: Any) -> str | None:
        """Return the value if it is an identifier; None in place of anything else."""
        if value is None or isinstance(value, str):
            return value
        self.change(name, value, None, Rule.SHAPE)
        return None

    def as_links(self, name: str, value: Any) -> Sequence[str]:
        """Return the identifiers in a list of them."""
        listed = self.as_list(name, value)
        links = [each for each in listed if isinstance(each, str)]
        if len(links) != len(listed):
            self.change(name, value, links, Rule.SHAPE)
        return links

    def identifier(self, name: str, value: Any, otherwise: str) -> str:
        """Return the value as an identifier, or *otherwise* where it can be none."""
        if is_identifier(value):
            return str(value)
        stored = (
            str(value) if type(value) is int and abs(value) < 10 ** (MAX_NAME - 1) else otherwise
        )
        self.change(name, value, stored, Rule.IDENTIFIER)
        return stored

    def text(self, name: str, value: Any) -> str:
        """Return the value as text; what is not text is stored as it stands in JSON."""
        if isinstance(value, str):
            return value
        stored = json.dumps(value, ensure_ascii=False, default=float)
        self.change(name, value, stored, Rule.TEXT)
        return stored

    def time(self, name: str, value: Any) -> datetime | None:
        """Return a moment, or None where none is given or it cannot be.

        Args:
            name: Of the field.
            value: An ISO 8601 text (UTC where it names no zone), or seconds, milliseconds,
                microseconds or nanoseconds since 1970.
        """
        if value is None:
            return None
        moment = _moment(value)
        if moment is None or not EARLIEST <= moment <= datetime.now(UTC) + LATEST:
            self.change(name, value, None, Rule.TIME)
            return None
        return moment

    def detail(self, name: str, value: Any) -> Any:
        """Return the value without the end of texts that are too long to describe anything."""
        match value:
            case str() if len(value) > MAX_DETAIL:
                stored = value[:MAX_DETAIL]
                self.change(name, value, stored, Rule.CUT)
                return stored
            case list():
                return [self.detail(f"{name}[{n}]", each) for n, each in enumerate(value)]
            case dict():
                return {key: self.detail(f"{name}.{key}", each) for key, each in value.items()}
            case Decimal():
                return float(value)
            case _:
                return value

    def _clean_detail(self, name: str, value: Any) -> Any:
        """Return the value without what PostgreSQL cannot store.

        Each change is recorded where it was made.
        """
        match value:
            case str() if UNSTORABLE.search(value):
                stored = clean(value)
                self.change(clean(name), value, stored, Rule.CHARACTERS)
                return stored
            case float() if not math.isfinite(value):
                self.change(clean(name), repr(value), None, Rule.NUMBER)  # JSON has no such number
                return None
            case list():
                return [self._clean_detail(f"{name}[{n}]", each) for n, each in enumerate(value)]
            case dict():
                return self._clean_object(f"{name}." if name else "", value)
            case _:
                return value

    def _clean_object(self, prefix: str, value: dict[str, Any]) -> dict[str, Any]:
        cleaned: dict[str, Any] = {}
        for key, each in value.items():
            name = clean(key)
            if name == key:
                cleaned[key] = self._clean_detail(prefix + key, each)
            elif name in value or name in cleaned:
                self.change(prefix + name, {key: each}, None, Rule.CHARACTERS)
            else:
                self.change(prefix + name, key, name, Rule.CHARACTERS)
                cleaned[name] = self._clean_detail(prefix + name, each)
        return cleaned


def is_identifier(value: Any) -> bool:
    """Return whether a value can be stored as an identifier."""
    return isinstance(value, str) and bool(value.strip()) and len(value) <= MAX_NAME


def _doubtful(raw: dict[str, Any]) -> bool:
    """Return whether some value may be one that PostgreSQL cannot store.

    It needs no stack of its own.

    Raises:
        Unacceptable: The value is nested deeper than ``MAX_DEPTH``, at which the recursion of
            whoever reads it next would end.
    """
    doubtful = False
    level: list[Any] = [raw]
    for _ in range(MAX_DEPTH):
        below: list[Any] = []
        for holder in level:
            if isinstance(holder, dict):
                doubtful = doubtful or any(map(UNSTORABLE.search, holder))
                values: Any = holder.values()
            else:
                values = holder
            for value in values:
                if isinstance(value, str):
                    doubtful = doubtful or UNSTORABLE.search(value) is not None
                elif isinstance(value, dict | list):
                    below.append(value)
                elif isinstance(value, float):
                    doubtful = doubtful or not math.isfinite(value)
        if not below:
            return doubtful
        level = below
    raise Unacceptable(f"it is nested deeper than {MAX_DEPTH} levels")


def _moment(value: Any) -> datetime | None:
    try:
        match value:
            case bool():
                return None
            case int() | float() | Decimal():
                number = float(value)
                per_second = next((unit for limit, unit in UNITS if abs(number) < limit), None)
                if per_second is None:  # beyond all units, or not a number
                    return None
                return datetime.fromtimestamp(number / per_second, UTC)
            case str():
                moment = datetime.fromisoformat(value.strip())
                return moment.replace(tzinfo=moment.tzinfo or UTC).astimezone(UTC)
            case _:
                return None
    except (ValueError, ArithmeticError, OSError):  # no date, or one that no calendar here reaches
        return None
