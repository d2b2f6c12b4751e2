"""Checks of what callers of an adapter give, the same for both databases."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from pgcorpus.db.errors import InvalidValue
from pgcorpus.services.importers.text import UNSTORABLE


def as_vector(embedding: Sequence[float] | np.ndarray) -> np.ndarray:
    """Return a vector that can be compared.

    Raises:
        InvalidValue: It is none.
    """
    try:
        vector = np.asarray(embedding, np.float32)
    except (ValueError, TypeError) as error:
        raise InvalidValue("an embedding is a list of numbers") from error
    if vector.ndim != 1 or not np.isfinite(vector).all() or not vector.any():
        raise InvalidValue("an embedding is a list of finite numbers, of which one is not 0")
    return vector


def refuse_blank(text: str) -> None:
    """Raise for a chunk that says nothing.

    Raises:
        InvalidValue: It is one.
    """
    if not text.strip():
        raise InvalidValue("the text of a chunk is empty")


def refuse_unstorable(*values: Any) -> None:
    """Raise for a text that one of the databases could not hold.

    Raises:
        InvalidValue: There is one.
    """
    if any(isinstance(value, str) and UNSTORABLE.search(value) for value in values):
        raise InvalidValue("a text holds a NUL character or half of a surrogate pair")


def has_word(question: str) -> bool:
    """Return whether a question has a letter or a digit: without one it finds nothing."""
    return any(map(str.isalnum, question))
