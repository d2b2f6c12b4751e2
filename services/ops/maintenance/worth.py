"""The decision whether an index is worth a rebuild: by its size, and by the recall of searches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from pgcorpus.db.repositories.operations.maintenance import IndexState
from pgcorpus.services.choices import LEAST_RECALL

LEAST_BYTES: Final = 8 * 1024**2
"""Size of an index below which a rebuild is not worth its while: it fits into memory as it is."""

LEAST_BLOAT: Final = {"btree": 0.5, "hnsw": 0.3}
"""Share of an index that a rebuild must give back. B-trees that rows are added to in random order
have a third of their pages free, and would have it again soon."""


LEAST_GAIN: Final = 0.02
"""Recall that was lost since the last rebuild, at least: a graph that was no better when it was new
does not become better by another rebuild."""

PAGE: Final = 8192
USABLE: Final = PAGE - 24 - 8 - 4
"""Bytes of a page of an HNSW index: less its header, pgvector's own and the first pointer
(``HNSW_MAX_SIZE`` in its hnsw.h)."""

ELEMENT: Final = 72
"""Bytes of an element before its vector (``HnswElementTupleData``: ten places in the table, and the
neighbours')."""

NEIGHBOUR: Final = 6
POINTER: Final = 4

VECTOR_BYTES: Final = {
    "halfvec": lambda dimensions: 8 + 2 * dimensions,
    "vector": lambda dimensions: 8 + 4 * dimensions,
    "bit": lambda dimensions: 8 + dimensions // 8,
}

BTREE_ENTRY: Final = 8 + POINTER
BTREE_PAGE: Final = (PAGE - 40) * 0.9
"""Bytes that PostgreSQL fills of a leaf when it builds an index: its fillfactor is 90."""


def estimate_bytes(index: IndexState) -> int | None:
    """Return the size that the index would have if it were built now, or None if that is unknown.

    Equal keys share an entry of a B-tree, so that it may be smaller.
    """
    if index.method == "hnsw" and index.type in VECTOR_BYTES and index.dimensions > 0:
        return int(index.entries * _bytes_of_element(index)) + PAGE
    if index.method == "btree" and index.key_bytes is not None:
        entry = BTREE_ENTRY + _align(index.key_bytes)
        return int(index.entries * entry / BTREE_PAGE * PAGE * 1.01) + 2 * PAGE
    return None


def find_reason(
    index: IndexState, *, recall: float | None, rebuilt: Mapping[str, Any] | None
) -> str | None:
    """Return why an index should be built anew, or None where that is not worth its while.

    Args:
        index: As it is now.
        recall: Recall@10 of searches that use it, in [0, 1], where it was measured.
        rebuilt: What was logged of the last rebuild, if there was one.
    """
    if not index.valid:
        return "it is invalid: a build failed or was stopped"
    bloat = estimate_bloat(index)
    if index.bytes >= LEAST_BYTES and bloat is not None:
        least = LEAST_BLOAT[index.method]
        if bloat >= least:
            return f"{bloat:.0%} of its {index.bytes / 1024**2:.0f} MB can be given back"
    if recall is not None and recall < LEAST_RECALL:
        best = (rebuilt or {}).get("recall_after")
        if best is None or recall <= best - LEAST_GAIN:
            return f"searches find {recall:.1%} of the ten best by it"
    return None


def estimate_bloat(index: IndexState) -> float | None:
    """Return the share of an index that a rebuild would give back, in [0, 1], or None."""
    expected = estimate_bytes(index)
    if expected is None or not index.bytes:
        return None
    return max(0.0, 1 - expected / index.bytes)


def describe(index: IndexState, recall: float | None = None) -> dict[str, Any]:
    """Return the figures of an index for the log."""
    bloat = estimate_bloat(index)
    return {
        "table": index.table,
        "method": index.method,
        "bytes": index.bytes,
        "entries": round(index.entries),
        "bloat": None if bloat is None else round(bloat, 3),
    } | ({} if recall is None else {"recall": recall})


def sort_by_waste(indexes: Sequence[IndexState]) -> list[IndexState]:
    """Return the indexes, those first that hold most bytes for nothing."""
    return sorted(
        indexes, key=lambda each: (-(estimate_bloat(each) or 0) * each.bytes, -each.bytes)
    )


def _bytes_of_element(index: IndexState) -> float:
    """Return the mean bytes of a vector in a graph: itself, and its links to neighbours."""
    element = _align(ELEMENT + VECTOR_BYTES[index.type](index.dimensions))
    # Twice m on the lowest level; one element in m is on the next one, too.
    links = _align(4 + 2 * index.links * NEIGHBOUR) + index.links * NEIGHBOUR / (index.links - 1)
    together = element + links + POINTER
    if together > USABLE:  # the vector has a page of its own, and its links the next one
        return 2 * PAGE
    return PAGE / ((USABLE + POINTER) // (together + POINTER))


def _align(size: float) -> int:
    """Round up to a multiple of eight bytes."""
    return int(-(-size // 8) * 8)
