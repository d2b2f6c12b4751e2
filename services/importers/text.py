"""Texts of files and of rows: the characters that can be stored, and values in messages."""

from __future__ import annotations

import json
import re
from typing import Any, Final

MAX_NAME: Final = 255
"""Characters of the ``varchar(255)`` columns."""

SEPARATOR: Final = re.compile(r"[,;\n]")
"""The end of a name in a text that lists names."""

UNSTORABLE: Final = re.compile("[\x00\ud800-\udfff]")
"""NUL characters and halves of surrogate pairs, which PostgreSQL cannot store."""


def clean(value: Any) -> Any:
    """Replace what PostgreSQL cannot store: no NUL characters, U+FFFD for half surrogate pairs."""
    match value:
        case str():
            return UNSTORABLE.sub(_substitute, value)
        case list():
            return [clean(element) for element in value]
        case dict():
            return {clean(key): clean(element) for key, element in value.items()}
        case _:
            return value


def _substitute(found: re.Match[str]) -> str:
    return "" if found[0] == "\x00" else "\ufffd"


def describe_value(value: Any) -> str:
    """Return a value for a message: short, and of characters that can be stored."""
    shown = json.dumps(value)
    return shown if len(shown) <= 60 else f"{shown[:60]}..."  # noqa: PLR2004 - about a line


def as_words(value: Any) -> str | None:
    """Return the value if it is a text with any word in it, else None."""
    return value if isinstance(value, str) and value.strip() else None
