"""Files as the old system made them, in every layout, with the tables spelt out here again."""

from __future__ import annotations

import pickle
import sqlite3
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any, Final

import numpy as np

OLDEST: Final = (
    (
        "CREATE TABLE documents (id INTEGER PRIMARY KEY, path TEXT UNIQUE NOT NULL, title TEXT, "
        "source_url TEXT, captured_at TEXT, hash TEXT)"
    ),
    (
        "CREATE TABLE chunks (id INTEGER PRIMARY KEY, document_id INTEGER, heading TEXT, "
        "anchor TEXT, text TEXT NOT NULL, "
        "FOREIGN KEY (document_id) REFERENCES documents(id) ON DELETE CASCADE)"
    ),
    (
        "CREATE VIRTUAL TABLE chunks_fts USING fts5(text, heading, anchor, path UNINDEXED, "
        "content='', tokenize='porter')"
    ),
)
WITH_EMBEDDINGS: Final = (*OLDEST, "ALTER TABLE chunks ADD COLUMN embedding BLOB")
WITH_LINEAGE: Final = (
    *WITH_EMBEDDINGS,
    "ALTER TABLE documents ADD COLUMN etag TEXT",
    "ALTER TABLE documents ADD COLUMN last_modified TEXT",
    "ALTER TABLE documents ADD COLUMN last_crawled TEXT",
    "ALTER TABLE chunks ADD COLUMN chunker_version TEXT DEFAULT 'v1.0.0'",
    "ALTER TABLE chunks ADD COLUMN chunker_config TEXT DEFAULT '{}'",
    (
        "ALTER TABLE chunks ADD COLUMN embedding_model TEXT DEFAULT "
        "'sentence-transformers/all-MiniLM-L6-v2'"
    ),
    "ALTER TABLE chunks ADD COLUMN embedding_version TEXT",
    "ALTER TABLE chunks ADD COLUMN embedding_dimensions INTEGER DEFAULT 384",
    "ALTER TABLE chunks ADD COLUMN processing_timestamp TEXT",
    "ALTER TABLE chunks ADD COLUMN lineage_id TEXT",
    (
        "CREATE TABLE click_events (id INTEGER PRIMARY KEY AUTOINCREMENT, query TEXT NOT NULL, "
        "doc_id TEXT, chunk_id TEXT, position INTEGER, timestamp TEXT, session_id TEXT, "
        "user_id TEXT, dwell_time REAL, created_at TIMESTAMP DEFAULT CURRENT_TIMESTAMP)"
    ),
    (
        "CREATE TABLE search_sessions (id INTEGER PRIMARY KEY AUTOINCREMENT, "
        "session_id TEXT UNIQUE, user_id TEXT, start_time TEXT, "
        "end_time TEXT, query_count INTEGER, click_count INTEGER)"
    ),
)
FULL: Final = (
    *WITH_LINEAGE,
    "ALTER TABLE documents ADD COLUMN content_type TEXT",
    "ALTER TABLE documents ADD COLUMN language TEXT",
    "ALTER TABLE documents ADD COLUMN word_count INTEGER",
    *(
        f"ALTER TABLE chunks ADD COLUMN {column}"
        for column in (
            "chunk_id TEXT",
            "h_path TEXT",
            "url TEXT",
            "retrieved_at TEXT",
            "token_len INTEGER",
            "lang TEXT",
            "hash TEXT",
        )
    ),
    (
        "CREATE TABLE click_feedback (id INTEGER PRIMARY KEY AUTOINCREMENT, session_id TEXT, "
        "user_id TEXT, query TEXT, chunk_id TEXT, position INTEGER, clicked INTEGER DEFAULT 1, "
        "dwell_time REAL, timestamp TEXT DEFAULT CURRENT_TIMESTAMP)"
    ),
)
CRAWLER: Final = (
    (
        "CREATE TABLE documents (id TEXT PRIMARY KEY, url TEXT NOT NULL, title TEXT, "
        "content TEXT NOT NULL, content_hash TEXT, source_name TEXT, indexed_at TEXT, "
        "metadata TEXT)"
    ),
)
LAYOUTS: Final = {
    "oldest": OLDEST,
    "with embeddings": WITH_EMBEDDINGS,
    "with lineage": WITH_LINEAGE,
    "full": FULL,
}

Row = tuple[str, Mapping[str, Any]]


def make_file(path: Path, layout: tuple[str, ...], *rows: Row, setup: str = "") -> Path:
    """Make a file of the layout with rows, each a table and the values of its columns."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.executescript(f"{setup}; PRAGMA synchronous = off; BEGIN")
        for statement in layout:
            connection.execute(statement)
        insert_rows(connection, *rows)
        connection.execute("COMMIT")
    return path


def insert_rows(connection: sqlite3.Connection, *rows: Row) -> None:
    """Insert rows, the words of chunks into the index, too."""
    for table, values in rows:
        marks = ", ".join("?" * len(values))
        connection.execute(
            f"INSERT INTO {table} ({', '.join(values)}) VALUES ({marks})",  # noqa: S608 - of a test
            tuple(values.values()),
        )
        if table == "chunks":
            connection.execute(
                "INSERT INTO chunks_fts (rowid, text, heading, anchor) VALUES (?, ?, ?, ?)",
                (values["id"], values["text"], values.get("heading"), values.get("anchor")),
            )


def document(id_: int, path: str | None = None, **more: Any) -> Row:
    """A row of documents."""
    return "documents", {"id": id_, "path": path or f"pages/{id_}.md", **more}


def chunk(id_: int, document_id: int | None, text: Any = "some words", **more: Any) -> Row:
    """A row of chunks."""
    return "chunks", {"id": id_, "document_id": document_id, "text": text, **more}


def click(chunk_id: Any, table: str = "click_events", **more: Any) -> Row:
    """A row of one of the tables of clicks."""
    return table, {"query": "how", "chunk_id": chunk_id, "position": 0, **more}


def unit(n: int = 0, length: int = 384) -> np.ndarray:
    """A vector of float32 along an axis."""
    return np.eye(1, length, n, dtype=np.float32)[0]


def make_pickle(array: Any, protocol: int, *, old: bool = False) -> bytes:
    """Return a pickle of an array, with the names of NumPy 1 if it is old."""
    blob = pickle.dumps(array, protocol)
    if not old:
        return blob
    shorter = blob.replace(b"\x8c\x16numpy._core.multiarray", b"\x8c\x15numpy.core.multiarray")
    shorter = shorter.replace(b"\x8c\x13numpy._core.numeric", b"\x8c\x12numpy.core.numeric")
    frame = int.from_bytes(blob[3:11], "little") - 1
    return shorter[:3] + frame.to_bytes(8, "little") + shorter[11:]
