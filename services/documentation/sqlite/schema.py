"""The tables of the old system's SQLite files, in their fullest form.

``PRAGMA user_version`` is 0 in all of them: a file's layout shows in its columns alone.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from types import MappingProxyType
from typing import Final

DEFAULT_MODEL: Final = "sentence-transformers/all-MiniLM-L6-v2"
DEFAULT_DIMENSIONS: Final = 384
"""Length of vectors, as the default of a column that was added later: such values are no facts
about the rows from before."""

Columns = Mapping[str, str]
"""Name → type and constraints, in the order of the table."""

DOCUMENTS: Final[Columns] = MappingProxyType(
    {
        "id": "INTEGER PRIMARY KEY",
        "path": "TEXT UNIQUE NOT NULL",
        "title": "TEXT",
        "source_url": "TEXT",
        "captured_at": "TEXT",
        "hash": "TEXT",
        "etag": "TEXT",
        "last_modified": "TEXT",
        "last_crawled": "TEXT",
        "content_type": "TEXT",
        "language": "TEXT",
        "word_count": "INTEGER",
        "metadata": "TEXT",  # not of the old system, which reads by name: its reader passes it over
    }
)
CHUNKS: Final[Columns] = MappingProxyType(
    {
        "id": "INTEGER PRIMARY KEY",
        "document_id": "INTEGER REFERENCES documents(id) ON DELETE CASCADE",
        "heading": "TEXT",
        "anchor": "TEXT",
        "text": "TEXT NOT NULL",
        "embedding": "BLOB",
        "chunker_version": "TEXT DEFAULT 'v1.0.0'",
        "chunker_config": "TEXT DEFAULT '{}'",
        "embedding_model": f"TEXT DEFAULT '{DEFAULT_MODEL}'",
        "embedding_version": "TEXT",
        "embedding_dimensions": f"INTEGER DEFAULT {DEFAULT_DIMENSIONS}",
        "processing_timestamp": "TEXT",
        "lineage_id": "TEXT",
        "chunk_id": "TEXT",
        "h_path": "TEXT",
        "url": "TEXT",
        "retrieved_at": "TEXT",
        "token_len": "INTEGER",
        "lang": "TEXT",
        "hash": "TEXT",
    }
)
CLICK_EVENTS: Final[Columns] = MappingProxyType(
    {
        "id": "INTEGER PRIMARY KEY",
        "query": "TEXT",
        "doc_id": "TEXT",
        "chunk_id": "TEXT",
        "position": "INTEGER",
        "timestamp": "TEXT",
        "session_id": "TEXT",
        "user_id": "TEXT",
        "dwell_time": "REAL",
        "created_at": "TEXT DEFAULT CURRENT_TIMESTAMP",
    }
)
CLICK_FEEDBACK: Final[Columns] = MappingProxyType(
    {
        "id": "INTEGER PRIMARY KEY",
        "session_id": "TEXT",
        "user_id": "TEXT",
        "query": "TEXT",
        "chunk_id": "TEXT",
        "position": "INTEGER",
        "clicked": "INTEGER DEFAULT 1",
        "dwell_time": "REAL",
        "timestamp": "TEXT DEFAULT CURRENT_TIMESTAMP",
    }
)
SEARCH_SESSIONS: Final[Columns] = MappingProxyType(
    {
        "id": "INTEGER PRIMARY KEY",
        "session_id": "TEXT UNIQUE",
        "user_id": "TEXT",
        "start_time": "TEXT",
        "end_time": "TEXT",
        "query_count": "INTEGER",
        "click_count": "INTEGER",
    }
)
CRAWLED_DOCUMENTS: Final[Columns] = MappingProxyType(
    {
        "id": "TEXT PRIMARY KEY",
        "url": "TEXT NOT NULL",
        "title": "TEXT",
        "content": "TEXT NOT NULL",
        "content_hash": "TEXT",
        "source_name": "TEXT",
        "indexed_at": "TEXT",
        "metadata": "TEXT",
    }
)

CLICK_TABLES: Final[Mapping[str, Columns]] = MappingProxyType(
    {"click_events": CLICK_EVENTS, "click_feedback": CLICK_FEEDBACK}
)
CHUNKED: Final[Mapping[str, Columns]] = MappingProxyType(
    {
        "documents": DOCUMENTS,
        "chunks": CHUNKS,
        **CLICK_TABLES,
        "search_sessions": SEARCH_SESSIONS,
    }
)
"""Documents cut into chunks."""

CRAWLED: Final[Mapping[str, Columns]] = MappingProxyType({"documents": CRAWLED_DOCUMENTS})
"""The crawler's: documents whole, and nothing else."""

CREATE_FTS: Final = (
    "CREATE VIRTUAL TABLE chunks_fts USING fts5"
    "(text, heading, anchor, path UNINDEXED, content='', tokenize='porter')"
)
INSERT_FTS: Final = (
    "INSERT INTO chunks_fts (rowid, text, heading, anchor, path) VALUES (?, ?, ?, ?, ?)"
)


def list_creations(layout: Mapping[str, Columns]) -> Iterator[str]:
    """Yield the statements that create the tables of a layout which are not there yet."""
    for table, columns in layout.items():
        body = ", ".join(f"{name} {kind}" for name, kind in columns.items())
        yield f"CREATE TABLE IF NOT EXISTS {table} ({body})"


def build_insert(table: str, columns: Collection[str]) -> str:
    """Build the statement that inserts a row with named values, one for each column.

    Both names and columns are of this module.
    """
    values = ", ".join(f":{name}" for name in columns)
    return f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({values})"  # noqa: S608 - constants
