"""The values that a document may have: names and metadata that PostgreSQL can store."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

from pgcorpus.db.errors import InvalidValue

MAX_PATH_BYTES: Final = 2000
"""An index takes no longer text."""

MAX_COLLECTION_BYTES: Final = 255

MAX_METADATA_CHARACTERS: Final = 64 * 1024
"""Length of a document's metadata as JSON: each of its chunks has a copy."""

MAX_METADATA_DEPTH: Final = 50
"""Levels within one another."""

MAX_SHOWN: Final = 100
"""Characters of a place in a message."""

_UNSTORED: Final = re.compile("[\ud800-\udfff\0]")


def check_name(what: str, name: str, most_bytes: int) -> None:
    """Raise for a path or a collection that cannot be stored.

    Raises:
        InvalidValue: It is blank, too long, or holds a NUL or half a character.
    """
    if not name.strip():
        raise InvalidValue(f"the {what} is blank")
    if found := _UNSTORED.search(name):
        raise InvalidValue(
            f"the {what} holds {found[0]!r} at character {found.start()}, which cannot be stored"
        )
    if (size := len(name.encode())) > most_bytes:
        raise InvalidValue(f"the {what} has {size} bytes; at most {most_bytes} are stored")


def check_metadata(metadata: Mapping[str, Any]) -> None:
    """Raise for metadata that is no JSON as PostgreSQL stores it.

    Raises:
        InvalidValue: The message says which value, and why.
    """
    if not isinstance(metadata, Mapping):
        raise InvalidValue(f"metadata must be an object, not {type(metadata).__name__}")
    left = [("metadata", dict(metadata), 0)]
    while left:
        where, value, depth = left.pop()
        if depth > MAX_METADATA_DEPTH:
            raise InvalidValue(f"{where} is nested deeper than {MAX_METADATA_DEPTH} levels")
        if (reason := _refuse(value)) is not None:
            raise InvalidValue(f"{where} {reason}")
        left += [(f"{where}{at}"[:MAX_SHOWN], inner, depth + 1) for at, inner in _list_inner(value)]
    try:
        size = len(json.dumps(dict(metadata)))
    except ValueError as error:  # a whole number of more digits than Python writes
        raise InvalidValue(f"metadata holds a number that is too long: {error}") from error
    if size > MAX_METADATA_CHARACTERS:
        raise InvalidValue(
            f"metadata has {size} characters as JSON; at most {MAX_METADATA_CHARACTERS} are "
            "stored, as each chunk has a copy"
        )


def _refuse(value: Any) -> str | None:
    """Return why a value cannot be stored, whatever it holds; or None."""
    match value:
        case str():
            return "holds a NUL or half a character" if _UNSTORED.search(value) else None
        case float() if not math.isfinite(value):
            return f"is {value}, which is no JSON"
        case None | int() | float() | list() | tuple():
            return None
        case dict():
            other = next((key for key in value if not isinstance(key, str)), None)
            if other is not None:
                return f"has the key {other!r}, which is no text"
            broken = any(map(_UNSTORED.search, value))
            return "has a key with a NUL or half a character" if broken else None
        case _:
            return f"is of the type {type(value).__name__}, which is no JSON"


def _list_inner(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        yield from ((f".{key}", inner) for key, inner in value.items())
    elif isinstance(value, list | tuple):
        yield from ((f"[{number}]", inner) for number, inner in enumerate(value))
