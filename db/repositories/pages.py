"""Pages of a long list.

Each continues after the last row of the one before, whatever came since.
"""

from __future__ import annotations

import json
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Final, Generic, TypeVar

from pgcorpus.db.choices import MAX_PAGE
from pgcorpus.db.errors import InvalidCursor, InvalidValue

T = TypeVar("T")


SEAL_BYTES: Final = 8


@dataclass(frozen=True)
class Page(Generic[T]):
    """A part of a list.

    Attributes:
        items: In the order of the list.
        next_cursor: Where the next page begins, or None after the last one.
    """

    items: tuple[T, ...]
    next_cursor: str | None


def page_of(
    rows: Sequence[T], limit: int, listing: str, key: Callable[[T], Sequence[object]]
) -> Page[T]:
    """Make a page of up to ``limit + 1`` rows: one more than is shown means that there are more.

    Args:
        rows: In the order of the list.
        limit: Rows of the page.
        listing: What is listed and how; see ``encode``.
        key: What the list is ordered by, of a row; read back as text.
    """
    shown = tuple(rows[:limit])
    return Page(shown, encode(listing, key(shown[-1])) if len(rows) > limit else None)


def check_limit(limit: int) -> int:
    """Return the limit of a page, or raise if it cannot be one.

    Raises:
        InvalidValue: It is not 1 to ``MAX_PAGE``.
    """
    if not 1 <= limit <= MAX_PAGE:
        raise InvalidValue(f"limit must be 1 to {MAX_PAGE}, not {limit}")
    return limit


def encode(listing: str, key: Sequence[object]) -> str:
    """Encode the key of the last row that was shown as a cursor.

    The seal is a hash and no secret. It keeps a cursor that was changed, cut off or taken from
    another list from silently giving wrong rows; a forged one is only a place in the list.

    Args:
        listing: What is listed and how, order and filters included.
        key: What the list is ordered by, of that row.
    """
    payload = json.dumps([str(part) for part in key]).encode()
    seal = blake2b(payload + listing.encode(), digest_size=SEAL_BYTES).digest()
    return urlsafe_b64encode(seal + payload).rstrip(b"=").decode()


def decode(listing: str, cursor: str) -> list[str]:
    """Decode the key in a cursor, as text.

    Args:
        listing: As it was encoded for.
        cursor: What ``encode`` returned.

    Raises:
        InvalidCursor: It did not, or for another list.
    """
    try:
        payload = urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4))[SEAL_BYTES:]
        key = [str(part) for part in json.loads(payload)]
    except (ValueError, TypeError, RecursionError):
        raise InvalidCursor from None
    if encode(listing, key) != cursor:
        raise InvalidCursor
    return key
