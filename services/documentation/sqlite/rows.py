"""A row of an old SQLite file, whose columns may hold values of any type."""

from __future__ import annotations

import ast
import math
import re
import warnings
from collections.abc import Mapping
from datetime import UTC, datetime, tzinfo
from typing import Any, Final

import numpy as np

from pgcorpus.db.repositories.imports import Change
from pgcorpus.services.documentation.sqlite.records import SQLiteTime
from pgcorpus.services.documentation.sqlite.schema import DEFAULT_DIMENSIONS, DEFAULT_MODEL
from pgcorpus.services.documentation.sqlite.vectors import NotAVector, decode_vector
from pgcorpus.services.importers.draft import Draft, Rule, Unacceptable
from pgcorpus.services.importers.text import UNSTORABLE, clean

MAX_LITERAL: Final = 100_000
"""Characters of ``metadata``, which Python's parser reads: more would take it long."""

MAX_INTEGER: Final = 2**31 - 1
"""Largest number of PostgreSQL's ``integer``."""

_DIGITS: Final = re.compile(r"[0-9]{1,10}")
_NUMBER: Final = re.compile(r"[0-9]{9,20}(\.[0-9]{1,9})?")
"""A time in seconds, or parts of seconds, since 1970, that the column's affinity made a text."""


class Row:
    """A row being read.

    Args:
        rowid: Its number in its table.
        values: By column; columns that the file lacks are not there.
        strict: Refuse instead of reading a value otherwise than it is stored.
    """

    def __init__(self, rowid: int, values: Mapping[str, Any], *, strict: bool) -> None:
        self.rowid = rowid
        self._values = values
        self._draft = Draft(strict)

    @property
    def changes(self) -> tuple[Change, ...]:
        """The values that were read otherwise than they are stored, so far."""
        return tuple(self._draft.changes)

    def find_text(self, name: str) -> str | None:
        """Return a text as stored; None for NULL and for a text of blanks alone.

        Characters that PostgreSQL cannot store are left out or replaced, and that is recorded.
        """
        text = self._find_any_text(name)
        if text is not None and UNSTORABLE.search(text):
            stored = clean(text)
            self._draft.change(name, text, stored, Rule.CHARACTERS)
            text = stored
        return text if text and text.strip() else None

    def get_text(self, name: str) -> str:
        """Return a text that the row must have, exactly as stored.

        Raises:
            Unacceptable: It has none, or none that PostgreSQL can hold.
        """
        text = self._find_any_text(name)
        if text is None or not text.strip():
            raise Unacceptable(f"its {name} is empty")
        if (found := UNSTORABLE.search(text)) is not None:
            what = "a NUL character" if found[0] == "\0" else "bytes that are not UTF-8"
            raise Unacceptable(f"its {name} holds {what}, which no text in PostgreSQL can")
        return text

    def find_integer(self, name: str) -> int | None:
        """Return a whole number from 0, or None; what is no such number is left out."""
        value = self._values.get(name)
        if value is None or value == "":
            return None
        whole = isinstance(value, float) and value.is_integer()
        number = int(value) if whole or _DIGITS.fullmatch(str(value)) else value
        kept = number if isinstance(number, int) and 0 <= number <= MAX_INTEGER else None
        if kept is None:
            self._draft.change(name, _describe(value), None, Rule.INTEGER)
        return kept

    def find_seconds(self, name: str) -> float | None:
        """Return a duration, or None; what is no finite number from 0 is left out."""
        value = self._values.get(name)
        if value is None or value == "":
            return None
        try:
            number = float(value)
        except (ValueError, OverflowError):
            number = math.nan
        if math.isfinite(number) and number >= 0:
            return number
        self._draft.change(name, _describe(value), None, Rule.NUMBER)
        return None

    def find_time(self, name: str, zone: tzinfo = UTC) -> SQLiteTime | None:
        """Return a time; one that cannot be is left out.

        Args:
            name: Of the column: ISO 8601, or seconds since 1970 or parts of them.
            zone: Its zone where it names none.
        """
        value: Any = self._values.get(name)
        if not isinstance(value, int | float) and (value := self.find_text(name)) is None:
            return None
        local = None
        if isinstance(value, str):
            try:
                local = datetime.fromisoformat(value.strip())
            except ValueError:
                value = float(value) if _NUMBER.fullmatch(value.strip()) else value
        if local is None or local.tzinfo is not None:
            at = self._draft.time(name, value)
            return None if at is None else SQLiteTime(at)
        try:
            moment = local.replace(tzinfo=zone).astimezone(UTC).isoformat()
        except OverflowError:  # at the ends of the calendar
            moment = str(value)
        at = self._draft.time(name, moment)
        return None if at is None else SQLiteTime(at, assumed=str(zone))

    def find_metadata(self, name: str) -> Mapping[str, Any]:
        """Return an object that was written by Python's ``str``; empty if it cannot be read."""
        text = self.find_text(name)
        if text is None:
            return {}
        try:
            found = _read_literal(text)
        except ValueError:
            self._draft.change(name, self._draft.detail(name, text), {}, Rule.UNREADABLE)
            return {}
        return self._draft.storable(found)

    def find_vector(self) -> tuple[np.ndarray | None, str | None]:
        """Return the vector and its model's name in the registry, where they are known.

        Raises:
            Unacceptable: It has a vector that is none, or a pickle that may do anything.
        """
        blob = self._values.get("embedding")
        if blob is None or blob == "":
            return None, None
        if not isinstance(blob, bytes):
            raise Unacceptable("its embedding is no BLOB")
        try:
            vector = decode_vector(blob)
        except NotAVector as error:
            raise Unacceptable(str(error)) from error
        if vector is not None and not vector.any():
            self._draft.change(
                "embedding", "a vector of zeros: the embedder failed", None, Rule.EMPTY
            )
            vector = None
        return vector, None if vector is None else self._find_model(len(vector))

    def _find_any_text(self, name: str) -> str | None:
        """Return a value as text; half surrogate pairs stand for bytes that are not UTF-8."""
        value = self._values.get(name)
        if value is None or isinstance(value, str):
            return value
        if isinstance(value, bytes):
            self._draft.change(name, f"a BLOB of {len(value)} bytes", "the same text", Rule.TEXT)
            return value.decode("utf-8", "surrogateescape")
        text = str(value)
        self._draft.change(name, repr(value), text, Rule.TEXT)
        return text

    def _find_model(self, dimensions: int) -> str | None:
        """Return the model of a vector; defaults that were written later are no facts.

        Raises:
            Unacceptable: The vector is not as long as the row says it was made.
        """
        said = self.find_integer("embedding_dimensions")
        if said not in {None, dimensions, DEFAULT_DIMENSIONS}:
            raise Unacceptable(
                f"its embedding has {dimensions} dimensions, but its embedding_dimensions are "
                f"{said}"
            )
        name = self.find_text("embedding_model")
        if name not in {None, DEFAULT_MODEL}:
            return _as_registered(name or "")
        if dimensions == DEFAULT_DIMENSIONS:
            return _as_registered(DEFAULT_MODEL)
        if name is not None:
            self._draft.change("embedding_model", name, None, Rule.DEFAULT)
        return None


def _as_registered(name: str) -> str:
    """Return a model's name without the organisation that published it."""
    return name.rsplit("/", 1)[-1]


def _describe(value: Any) -> str:
    """Return a value that is left out, as the history can keep it."""
    return UNSTORABLE.sub("\ufffd", repr(value)[:100])


def _read_literal(text: str) -> dict[str, Any]:
    """Read the text of a dictionary of values that JSON has, too.

    Raises:
        ValueError: It is none, or too long.
    """
    if len(text) > MAX_LITERAL:
        raise ValueError
    try:
        with warnings.catch_warnings():  # of escapes that Python does not know
            warnings.simplefilter("ignore")
            found = _as_json(ast.literal_eval(text.strip()))
    except (SyntaxError, TypeError, MemoryError, RecursionError) as error:
        raise ValueError from error
    if not isinstance(found, dict):
        raise ValueError  # noqa: TRY004 - the caller tells one reason
    return found


def _as_json(value: Any) -> Any:
    match value:
        case None | bool() | int() | float() | str():
            return value
        case list() | tuple() | set():
            return [_as_json(each) for each in value]
        case dict():
            return {str(key): _as_json(each) for key, each in value.items()}
        case _:
            raise ValueError
