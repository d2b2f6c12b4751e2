"""Text: what PostgreSQL can hold, and numbers in sentences."""

from __future__ import annotations


def storable(value: str) -> bool:
    """Return whether PostgreSQL can hold the text.

    A text must not have a NUL character or half of a surrogate pair.
    """
    return "\0" not in value and not any("\ud800" <= c <= "\udfff" for c in value)


def count_of(number: int, noun: str, plural: str | None = None) -> str:
    """Return a number with its noun, such as ``1 message``, ``2 messages``, ``3 memories``.

    Args:
        number: How many.
        noun: What, if it is one.
        plural: What, if it is another number; by default *noun* with an ``s``.
    """
    return f"{number} {noun if number == 1 else plural or noun + 's'}"
