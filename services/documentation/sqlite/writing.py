"""Records written as a file that the old system opens."""

from __future__ import annotations

import os
import sqlite3
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, tzinfo
from itertools import chain
from pathlib import Path
from typing import Any, Final

from pgcorpus.db.errors import DataLayerError, Misuse
from pgcorpus.services.documentation.sqlite.reading import list_beside
from pgcorpus.services.documentation.sqlite.records import (
    SQLiteChunk,
    SQLiteClick,
    SQLiteDocument,
    SQLiteSession,
    SQLiteTime,
)
from pgcorpus.services.documentation.sqlite.schema import (
    CHUNKED,
    CHUNKS,
    CLICK_TABLES,
    CRAWLED,
    CRAWLED_DOCUMENTS,
    CREATE_FTS,
    DEFAULT_MODEL,
    DOCUMENTS,
    INSERT_FTS,
    SEARCH_SESSIONS,
    build_insert,
    list_creations,
)
from pgcorpus.services.documentation.sqlite.vectors import encode_vector

MODELS: Final = {DEFAULT_MODEL.rpartition("/")[2]: DEFAULT_MODEL}
"""A model's name in the registry → the old system's, where they differ."""


@dataclass
class Written:
    """Numbers of rows in a file that was written."""

    documents: int = 0
    chunks: int = 0
    vectors: int = 0
    clicks: int = 0
    sessions: int = 0

    def count_rows(self) -> Mapping[str, int]:
        """Return the numbers by their names."""
        return asdict(self)


def write_database(
    path: Path,
    documents: Iterable[SQLiteDocument],
    clicks: Iterable[SQLiteClick] = (),
    sessions: Iterable[SQLiteSession] = (),
    *,
    zone: tzinfo = UTC,
    replace: bool = False,
) -> Written:
    """Write a file of the old system, in the layout of the first document.

    It is read again as the same records: a time without a zone is written without one, vectors
    are raw float32. The file is there when it is whole, or not at all, and readable by its
    owner alone.

    Args:
        path: Where it will be.
        documents: All with chunks, or all of the crawler, with ``content``. Taken one at a time.
        clicks: On their chunks.
        sessions: Of searches.
        zone: Zone of ``click_events.timestamp``, as for ``open_database``.
        replace: Whether a file that is there is replaced.

    Returns:
        What was written.

    Raises:
        Misuse: There is such a file already, or one that belongs to it; or the records cannot
            stand in one file.
        DataLayerError: The file cannot be written.
    """
    with _replace_whole(path, replace=replace) as unfinished:
        writer = _Writer(unfinished, zone)
        with closing(writer.connection):
            writer.write_documents(documents)
            writer.write_clicks(clicks)
            writer.write_sessions(sessions)
            writer.connection.commit()
        return writer.written


class _Writer:
    """A file being written, in one transaction that nothing but the last step needs.

    Args:
        path: An empty file.
        zone: Zone of ``click_events.timestamp``.
    """

    def __init__(self, path: Path, zone: tzinfo) -> None:
        self.connection = sqlite3.connect(path)
        self.written = Written()
        self._zone = zone
        # Nobody reads the file before it is whole: no journal stands beside it.
        self.connection.execute("PRAGMA journal_mode = OFF")
        self.connection.execute("PRAGMA synchronous = OFF")

    def write_documents(self, documents: Iterable[SQLiteDocument]) -> None:
        """Create the tables, and write documents with their chunks."""
        remaining = iter(documents)
        first = next(remaining, None)
        crawled = first is not None and first.content is not None
        for statement in list_creations(CRAWLED if crawled else CHUNKED):
            self.connection.execute(statement)
        if not crawled:
            self.connection.execute(CREATE_FTS)
        for document in chain(() if first is None else (first,), remaining):
            if crawled != (document.content is not None):
                raise Misuse(
                    f"{document.path} is of the crawler and others are not, or the other way "
                    "round; write two files"
                )
            write = self._write_crawled if crawled else self._write_chunked
            write(document)
            self.written.documents += 1

    def write_clicks(self, clicks: Iterable[SQLiteClick]) -> None:
        """Write clicks into their tables."""
        for click in clicks:
            zone = self._zone if click.table == "click_events" else UTC
            values = {
                **vars(click),
                "chunk_id": str(click.chunk_id),
                "timestamp": format_time(click.timestamp, zone),
                "created_at": format_time(click.created_at),
            }
            self._insert(click.table, CLICK_TABLES[click.table], values)
            self.written.clicks += 1

    def write_sessions(self, sessions: Iterable[SQLiteSession]) -> None:
        """Write sessions of searches."""
        for session in sessions:
            values = {
                **vars(session),
                "start_time": format_time(session.start_time),
                "end_time": format_time(session.end_time),
            }
            self._insert("search_sessions", SEARCH_SESSIONS, values)
            self.written.sessions += 1

    def _write_chunked(self, document: SQLiteDocument) -> None:
        values = {
            **vars(document),
            "captured_at": format_time(document.captured_at),
            "last_crawled": format_time(document.last_crawled),
            "metadata": str(dict(document.metadata)) if document.metadata else None,
        }
        self._insert("documents", DOCUMENTS, values)
        for chunk in document.chunks:
            self._write_chunk(document, chunk)

    def _write_chunk(self, document: SQLiteDocument, chunk: SQLiteChunk) -> None:
        vector = chunk.vector
        values = {
            **vars(chunk),
            "document_id": document.id,
            "embedding": None if vector is None else encode_vector(vector),
            "embedding_model": MODELS.get(chunk.model or "", chunk.model),
            "embedding_dimensions": None if vector is None else len(vector),
            "processing_timestamp": format_time(chunk.processing_timestamp),
            "retrieved_at": format_time(chunk.retrieved_at),
        }
        self._insert("chunks", CHUNKS, values)
        self.connection.execute(
            INSERT_FTS, (chunk.id, chunk.text, chunk.heading, chunk.anchor, document.path)
        )
        self.written.chunks += 1
        self.written.vectors += vector is not None

    def _write_crawled(self, document: SQLiteDocument) -> None:
        values = {
            **vars(document),
            "url": document.path,
            "content_hash": document.hash,
            "indexed_at": format_time(document.captured_at),
            "metadata": str(dict(document.metadata)),
        }
        self._insert("documents", CRAWLED_DOCUMENTS, values)

    def _insert(self, table: str, columns: Mapping[str, str], values: Mapping[str, Any]) -> None:
        named = {name: values.get(name) for name in columns}
        try:
            self.connection.execute(build_insert(table, columns), named)
        except sqlite3.IntegrityError as error:
            raise Misuse(f"{table} {named['id']} cannot stand in the file: {error}") from error


def format_time(time: SQLiteTime | None, zone: tzinfo = UTC) -> str | None:
    """Return a time as a column has it.

    Args:
        time: Of which the column says the zone, unless it was assumed to be *zone*.
        zone: In which the column is read. The hour that the end of summer time repeats is written
            with its zone, as are times of other zones.
    """
    if time is None:
        return None
    local = time.at.astimezone(zone)
    bare = local.replace(tzinfo=None, fold=0)
    if time.assumed == str(zone) and bare.replace(tzinfo=zone).astimezone(UTC) == time.at:
        return str(bare)
    return str(local)


@contextmanager
def _replace_whole(path: Path, *, replace: bool) -> Iterator[Path]:
    """Provide a file beside *path* that takes its place when the block ends well.

    Raises:
        Misuse: There is one already, or one that belongs to it.
        DataLayerError: It cannot be written.
    """
    path = Path(os.path.realpath(path))
    if path.exists() and not path.is_file():
        raise Misuse(f"{path} is no file that could be replaced; choose another name")
    if path.exists() and not replace:
        raise Misuse(
            f"{path.name} exists already; replace it with --replace, or choose another name"
        )
    for beside in list_beside(path):
        if beside.exists():
            # It would be taken for the new file's, and written into it.
            raise Misuse(
                f"{beside.name} stands beside {path.name}, which is still open or was not closed; "
                "end the program that uses it, or choose another name"
            )
    with _write_errors(path):
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        os.close(handle)
    unfinished = Path(name)
    try:
        yield unfinished
        with _write_errors(path):
            _flush(unfinished)
            if replace:
                unfinished.replace(path)
            else:
                path.hardlink_to(unfinished)  # refuses where a file has appeared meanwhile
            _flush(path.parent)
    except sqlite3.Error as error:
        if error.sqlite_errorcode == sqlite3.SQLITE_FULL:
            raise DataLayerError(
                f"no space left on the disk of {path}: it was not written; free some, and run the "
                "same again"
            ) from error
        raise DataLayerError(f"{path.name} cannot be written: {error}") from error
    finally:
        unfinished.unlink(missing_ok=True)


@contextmanager
def _write_errors(path: Path) -> Iterator[None]:
    """Translate errors of the file system."""
    try:
        yield
    except FileExistsError as error:
        raise Misuse(f"{path.name} exists already, since a moment ago") from error
    except OSError as error:
        raise DataLayerError(f"{path.name} cannot be written: {error.strerror}") from error


def _flush(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
