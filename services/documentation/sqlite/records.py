"""The rows of an old SQLite file as plain records. Unknown is None, never the empty string."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from types import MappingProxyType
from typing import Any, Literal

import numpy as np

from pgcorpus.db.repositories.imports import Change

ClickTable = Literal["click_events", "click_feedback"]


@dataclass(frozen=True)
class SQLiteTime:
    """A time as a column has it.

    Attributes:
        at: The moment, in UTC.
        assumed: The zone in which it was read, such as ``Europe/Vienna``; None where the column
            itself says it.
    """

    at: datetime
    assumed: str | None = None


@dataclass(frozen=True, kw_only=True)
class SQLiteChunk:
    """A chunk of a document.

    Lineage (chunker and embedding) may be defaults that were written later; only the vector itself
    is certain.

    Attributes:
        id: ``chunks.id``, by which clicks refer to it.
        text: As stored; never blank.
        vector: float32 of shape ``(dimensions,)``, finite, not all zeros; None where it was not
            embedded or the embedder failed. Left out of comparisons by ``==``.
        model: The vector's model by its name in the registry; None without a vector, or where what
            the row says cannot be true of it.
        h_path: Headings above it, as the old system wrote them.
        changes: The values that were read otherwise than they are stored. Not compared.
    """

    id: int
    text: str
    heading: str | None = None
    anchor: str | None = None
    vector: np.ndarray | None = field(default=None, compare=False)
    model: str | None = None
    chunker_version: str | None = None
    chunker_config: str | None = None
    embedding_version: str | None = None
    processing_timestamp: SQLiteTime | None = None
    lineage_id: str | None = None
    chunk_id: str | None = None
    h_path: str | None = None
    url: str | None = None
    retrieved_at: SQLiteTime | None = None
    token_len: int | None = None
    lang: str | None = None
    hash: str | None = None
    changes: tuple[Change, ...] = field(default=(), compare=False)


@dataclass(frozen=True, kw_only=True)
class SQLiteDocument:
    """A document with its chunks; one of the crawler's has its text in one piece instead.

    Attributes:
        id: An integer; a text of the crawler's.
        path: Unique in the file; of the crawler's, the URL.
        hash: SHA-256 of the text without front matter, in hexadecimal digits.
        last_modified: HTTP's header as the server sent it, like ``etag``.
        content: The text of a document of the crawler's; else None.
        source_name: The crawler's name of the site.
        metadata: Values of JSON.
        chunks: In the order of their ids.
        changes: As of a chunk. Not compared.
    """

    id: int | str
    path: str
    title: str | None = None
    source_url: str | None = None
    captured_at: SQLiteTime | None = None
    hash: str | None = None
    etag: str | None = None
    last_modified: str | None = None
    last_crawled: SQLiteTime | None = None
    content_type: str | None = None
    language: str | None = None
    word_count: int | None = None
    content: str | None = None
    source_name: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    chunks: tuple[SQLiteChunk, ...] = ()
    changes: tuple[Change, ...] = field(default=(), compare=False)


@dataclass(frozen=True, kw_only=True)
class SQLiteClick:
    """A click on a chunk that the file has.

    Attributes:
        table: Where it stands.
        id: In that table.
        chunk_id: ``chunks.id``.
        position: As stored: in ``click_events`` from 0.
        clicked: False for a hit that was shown and passed over; ``click_events`` has none such.
        dwell_time: In seconds.
        doc_id: Of ``click_events`` alone, as is ``created_at``.
        changes: As of a chunk. Not compared.
    """

    table: ClickTable
    id: int
    query: str
    chunk_id: int
    position: int
    session_id: str | None = None
    user_id: str | None = None
    timestamp: SQLiteTime | None = None
    dwell_time: float | None = None
    clicked: bool = True
    doc_id: str | None = None
    created_at: SQLiteTime | None = None
    changes: tuple[Change, ...] = field(default=(), compare=False)


@dataclass(frozen=True, kw_only=True)
class SQLiteSession:
    """A session of searches.

    Attributes:
        id: The row's.
        session_id: Unique in the file.
        changes: As of a chunk. Not compared.
    """

    id: int
    session_id: str
    user_id: str | None = None
    start_time: SQLiteTime | None = None
    end_time: SQLiteTime | None = None
    query_count: int | None = None
    click_count: int | None = None
    changes: tuple[Change, ...] = field(default=(), compare=False)


@dataclass(frozen=True)
class Refused:
    """A row that cannot be taken, with the reason for people."""

    table: str
    rowid: int
    reason: str
