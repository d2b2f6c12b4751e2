"""A file of each layout with whatever a layout can hold, for what goes there and back."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import numpy as np

from tests.services.documentation.sqlite.files import (
    CRAWLER,
    LAYOUTS,
    Row,
    chunk,
    click,
    document,
    make_file,
    make_pickle,
    unit,
)

ALL: Final = {**LAYOUTS, "crawler": CRAWLER}


def make_library(path: Path, layout: str) -> Path:
    """Make a file of a layout, with rows of every kind that it can hold."""
    return make_file(path, ALL[layout], *ROWS[layout])


def _vector(seed: int, length: int = 384) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=length).astype(np.float32)


_OLDEST: Final[tuple[Row, ...]] = (
    document(
        3,
        "guide/pricing.md",
        title="Pricing",
        source_url="https://a.example/pricing",
        captured_at="2024-03-01T10:00:00Z",
        hash="ab" * 32,
    ),
    document(7, "guide/empty.md", title="", captured_at="2024-03-02 10:00:00"),
    document(9, "z.md"),
    chunk(5, 3, "How to price a premium offer", heading="Offers", anchor="offers"),
    chunk(11, 3, "  Text with\nspaces around  ", heading="", anchor=""),
    chunk(12, 3, "How to price a premium offer", heading="Offers", anchor="offers"),
    chunk(20, 9, "Über größere Mengen"),
)


def _with(rows: tuple[Row, ...], more: dict[int, dict[str, Any]]) -> tuple[Row, ...]:
    """Return the rows with further values of some chunks."""
    return tuple(
        (table, {**values, **more.get(values["id"], {})}) if table == "chunks" else (table, values)
        for table, values in rows
    )


_EMBEDDED: Final = _with(
    _OLDEST,
    {
        5: {"embedding": make_pickle(unit(3), 4, old=True)},
        11: {"embedding": _vector(1).tobytes()},
        12: {"embedding": make_pickle(_vector(2), 5)},
        20: {"embedding": b""},
    },
)
_LINEAGE: Final = (
    *_with(
        _EMBEDDED,
        {
            5: {"processing_timestamp": "2024-03-01T10:00:01", "lineage_id": "run-1"},
            11: {
                "chunker_version": "v2.0.0",
                "chunker_config": '{"size": 100, "by": "words"}',
                "embedding_version": "2.2.2",
            },
            12: {"chunker_config": "no JSON", "embedding_dimensions": 384},
        },
    ),
    document(30, "tagged.md", etag='W/"x"', last_modified="Fri, 01 Mar 2024 10:00:00 GMT"),
    chunk(
        31,
        30,
        "of another model",
        embedding=_vector(4, 1024).tobytes(),
        embedding_model="BAAI/bge-m3",
        embedding_dimensions=1024,
    ),
    click("5", id=1, timestamp="2024-05-01T12:00:00.5", session_id="s1", user_id="u", doc_id="3"),
    click("11", id=2, timestamp=None, created_at="2024-05-01 10:00:02", position=4, dwell_time=2.5),
    click("5", id=8, timestamp="2024-05-01T12:00:00+02:00", created_at=None),
    ("search_sessions", {"id": 1, "session_id": "s1", "start_time": "2024-05-01T12:00:00"}),
    (
        "search_sessions",
        {"id": 4, "session_id": "s2", "user_id": "u", "query_count": 3, "click_count": 0},
    ),
)
_FULL: Final = (
    *_with(
        _LINEAGE,
        {
            5: {
                "chunk_id": "offers",
                "h_path": "Pricing > Offers",
                "url": "https://a.example/pricing#offers",
                "retrieved_at": "2024-03-01T09:00:00Z",
                "token_len": 6,
                "lang": "en",
                "hash": "cd" * 32,
            },
            11: {"chunk_id": "twice", "h_path": '["A", "B > C"]'},
            12: {"chunk_id": "twice", "h_path": ""},
            20: {"lang": "de", "chunk_id": "x" * 300},
        },
    ),
    document(40, "typed.html", content_type="text/html", language="en", word_count=3),
    click("offers", "click_feedback", id=1, position=1, clicked=0, timestamp="2024-06-01 10:00:00"),
    click("20", "click_feedback", id=2, position=0, timestamp="2024-06-01T10:00:00+00:00"),
)
_CRAWLED: Final[tuple[Row, ...]] = (
    (
        "documents",
        {
            "id": "0123456789abcdef",
            "url": "https://a.example/a",
            "title": "A",
            "content": "# A\n\nSome words.\n\n## B\n\n" + "More words. " * 400,
            "content_hash": "ef" * 32,
            "source_name": "example",
            "indexed_at": "2024-03-01T10:00:00",
            "metadata": "{'depth': 2, 'tags': ('x', 'y')}",
        },
    ),
    (
        "documents",
        {"id": "1" * 16, "url": "https://a.example/b", "title": None, "content": "plain"},
    ),
)
ROWS: Final[dict[str, tuple[Row, ...]]] = {
    "oldest": _OLDEST,
    "with embeddings": _EMBEDDED,
    "with lineage": _LINEAGE,
    "full": _FULL,
    "crawler": _CRAWLED,
}
