"""Parsers that are installed on request."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from pgcorpus.services.documentation.reading.document import Unreadable


@contextmanager
def require_extra() -> Iterator[None]:
    """Say how to install the parser that is imported within.

    Raises:
        Unreadable: It is not installed.
    """
    try:
        yield
    except ImportError as error:
        raise Unreadable(
            f"its parser, {error.name}, is not installed: it needs "
            "pip install 'pgcorpus[documents]'"
        ) from error
