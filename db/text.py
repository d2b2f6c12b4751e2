"""Text that PostgreSQL can hold."""

from __future__ import annotations


def storable(value: str) -> bool:
    """Return whether PostgreSQL can hold the text.

    A text must not have a NUL character or half of a surrogate pair.
    """
    return "\0" not in value and not any("\ud800" <= c <= "\udfff" for c in value)
