"""Texts of files and of rows: what of them can be stored, and how they are shown."""

from __future__ import annotations

import json
import re
from typing import Any, Final

MAX_NAME: Final = 255
"""Characters of the ``varchar(255)`` columns."""

UNSTORABLE: Final = re.compile("[\x00\ud800-\udfff]")
"""NUL characters and halves of surrogate pairs, which PostgreSQL cannot store."""


def clean(value: Any) -> Any:  # noqa: ANN401 - any JSON
    """The value without NUL characters, and with U+FFFD for each half of a surrogate pair."""
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


def shown(value: Any) -> str:  # noqa: ANN401 - any JSON
    """A value for a message: short, and of characters that can be stored."""
    shown = json.dumps(value)
    return shown if len(shown) <= 60 else f"{shown[:60]}..."  # noqa: PLR2004 - about a line


def worded(value: Any) -> str | None:  # noqa: ANN401 - any JSON
    """The value if it is a text that says something."""
    return value if isinstance(value, str) and value.strip() else None
