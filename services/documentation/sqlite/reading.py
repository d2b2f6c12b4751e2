"""Old SQLite files, opened without leaving a trace, and read row by row.

A file is data of strangers: its views and generated columns are not looked at, its structure is
checked before its rows, and a row that cannot be taken is told with its reason.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from datetime import UTC, tzinfo
from functools import partial
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Final, TypeVar, cast
from urllib.parse import quote

from pgcorpus.db.errors import ImportFailed
from pgcorpus.services.documentation.sqlite.records import (
    ClickTable,
    Refused,
    SQLiteChunk,
    SQLiteClick,
    SQLiteDocument,
    SQLiteSession,
)
from pgcorpus.services.documentation.sqlite.rows import Row
from pgcorpus.services.documentation.sqlite.schema import (
    CHUNKED,
    CLICK_TABLES,
    CRAWLED,
    Columns,
)
from pgcorpus.services.importers.draft import Unacceptable
from pgcorpus.services.importers.files import refuse_special

MAGIC: Final = b"SQLite format 3\0"
"""First bytes of a file (sqlite.org/fileformat.html, 1.2)."""

_VERSIONS: Final = slice(18, 20)
_WAL: Final = 2
"""Number in the header of a file whose changes are written ahead."""

BESIDE: Final = ("-wal", "-journal")
"""Files that belong to one of SQLite. The index ``-shm`` is made anew from the first."""

PATIENCE_SECONDS: Final = 5.0
"""Seconds for which a file may stay locked."""

COPIES: Final = 3
"""Times that a file is copied which changes meanwhile."""

MAX_ROW_BYTES: Final = 64 * 1024**2
"""Bytes of one row; a larger one is refused unread."""

MAX_CHUNKS_BYTES: Final = 256 * 1024**2
"""Bytes of all chunks of one document, which are in memory together."""

T = TypeVar("T")

_CRAWLED_KEYS: Final = frozenset({"id", "url", "content"})
_CHUNK_KEYS: Final = frozenset({"id", "document_id", "text"})


class SQLiteDatabase:
    """An open file; its rows are read while they are asked for.

    Args:
        connection: Of which nothing is written.
        zone: Zone of local times that name none.
        strict: Refuse rows of which a value would be read otherwise than it is stored.

    Raises:
        ImportFailed: It is not of the documentation system.
    """

    def __init__(self, connection: sqlite3.Connection, zone: tzinfo, *, strict: bool) -> None:
        self._connection = connection
        self._zone = zone
        self._strict = strict
        self.is_crawled = self._list_columns("documents", CRAWLED).keys() >= _CRAWLED_KEYS
        layout = CRAWLED if self.is_crawled else CHUNKED
        self._columns = {table: self._list_columns(table, layout) for table in layout}
        self._refuse_others()

    def count_rows(self) -> Mapping[str, int]:
        """Return the number of rows of each table that is read."""
        with _read_errors():
            return {
                table: self._connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0]  # noqa: S608 - names are constants
                for table, columns in self._columns.items()
                if columns
            }

    def list_repeated_names(self) -> set[str]:
        """Return the ``chunk_id`` of chunks that another has, too.

        Raises:
            ImportFailed: The file cannot be read on.
        """
        if "chunk_id" not in self._columns.get("chunks", {}):
            return set()
        repeated = (
            "SELECT CAST(chunk_id AS TEXT) FROM chunks WHERE chunk_id IS NOT NULL "
            "GROUP BY 1 HAVING count(*) > 1"
        )
        with _read_errors():
            return {name for (name,) in self._connection.execute(repeated)}

    def list_clicked(self) -> set[int]:
        """Return the ids of chunks that clicks are on.

        Raises:
            ImportFailed: The file cannot be read on.
        """
        with _read_errors():
            return {
                chunk
                for table in CLICK_TABLES
                if (columns := self._columns.get(table))
                for _, chunk in self._find_chunks_clicked(table, columns)
                if chunk is not None
            }

    def read_documents(self) -> Iterator[SQLiteDocument | Refused]:
        """Yield the documents with their chunks, by id, and what is refused of both.

        Raises:
            ImportFailed: The file cannot be read on.
        """
        with _read_errors():
            if not self._columns.get("chunks"):
                for (rowid,) in self._connection.execute("SELECT rowid FROM documents ORDER BY 1"):
                    yield self._read("documents", rowid, self._build_document)
                return
            # Only keys are joined and sorted: texts and vectors might not fit into memory.
            pairs = self._connection.execute(
                "SELECT d.rowid, c.rowid FROM documents d LEFT JOIN chunks c "
                "ON c.document_id = d.rowid ORDER BY 1, 2"
            )
            for rowid, group in groupby(pairs, key=itemgetter(0)):
                yield from self._read_chunked(rowid, (key for _, key in group if key is not None))
            yield from self._find_orphans()

    def read_clicks(self) -> Iterator[SQLiteClick | Refused]:
        """Yield the clicks of both tables on chunks of this file; the others are refused.

        Raises:
            ImportFailed: The file cannot be read on.
        """
        with _read_errors():
            for table in CLICK_TABLES:
                if columns := self._columns.get(table):
                    for rowid, chunk in self._find_chunks_clicked(table, columns):
                        build = partial(self._build_click, cast("ClickTable", table), chunk)
                        yield self._read(table, rowid, build)

    def read_sessions(self) -> Iterator[SQLiteSession | Refused]:
        """Yield the sessions of searches.

        Raises:
            ImportFailed: The file cannot be read on.
        """
        if not self._columns.get("search_sessions"):
            return
        with _read_errors():
            rows = self._connection.execute("SELECT rowid FROM search_sessions ORDER BY 1")
            for (rowid,) in rows:
                yield self._read("search_sessions", rowid, self._build_session)

    def _list_columns(self, table: str, layout: Mapping[str, Columns]) -> Columns:
        """Return the columns of a table that are known, and how they are declared here."""
        real = "SELECT 1 FROM sqlite_master WHERE name = ? AND type = 'table'"
        if self._connection.execute(real, (table,)).fetchone() is None:
            return {}  # a view of that name might be a program without an end
        rows = self._connection.execute(f"PRAGMA table_info({table})")
        return {
            name.lower(): f"{kind.upper()}{' KEY' if key else ''}"
            for _, name, kind, _, _, key in rows
            if name.lower() in layout[table]
        }

    def _refuse_others(self) -> None:
        documents, chunks = self._columns["documents"], self._columns.get("chunks", {})
        if not documents:
            raise ImportFailed(
                "it is an SQLite file, but not of the documentation system: it has no table "
                "documents"
            )
        if self.is_crawled:
            return
        keyed = all(table.get("id") == "INTEGER KEY" for table in (documents, chunks) if table)
        if "path" not in documents or not keyed or (chunks and not chunks.keys() >= _CHUNK_KEYS):
            raise ImportFailed(
                "it is an SQLite file, but not of the documentation system: documents have an id, "
                "and a path or a url and content, and chunks have an id, a document_id and a text"
            )

    def _read(self, table: str, rowid: int, build: Callable[[Row], T]) -> T | Refused:
        """Return what a row is, or why it is refused."""
        columns = ", ".join(self._columns[table])
        try:
            cursor = self._connection.execute(
                f"SELECT {columns} FROM {table} WHERE rowid = ?",  # noqa: S608 - names are constants
                (rowid,),
            )
            values = dict(zip(self._columns[table], cursor.fetchone(), strict=True))
        except sqlite3.DataError:
            return Refused(table, rowid, f"it has more than {MAX_ROW_BYTES // 1024**2} MiB")
        try:
            return build(Row(rowid, values, strict=self._strict))
        except Unacceptable as error:
            return Refused(table, rowid, str(error))

    def _read_chunked(self, rowid: int, keys: Iterable[int]) -> Iterator[SQLiteDocument | Refused]:
        """Yield the refused chunks of a document, and then the document with the others."""
        document = self._read("documents", rowid, self._build_document)
        chunks: list[SQLiteChunk] = []
        size = 0
        for key in keys:
            chunk = self._read("chunks", key, self._build_chunk)
            if isinstance(document, SQLiteDocument) and isinstance(chunk, SQLiteChunk):
                size += _size_bytes(chunk)
                chunks.append(chunk)
                if size > MAX_CHUNKS_BYTES:
                    reason = f"its chunks have more than {MAX_CHUNKS_BYTES // 1024**2} MiB"
                    document = Refused("documents", rowid, reason)
                    yield from (_refuse_with(each.id, rowid) for each in chunks)
                    chunks.clear()
            else:
                yield _refuse_with(key, rowid) if isinstance(chunk, SQLiteChunk) else chunk
        if isinstance(document, SQLiteDocument):
            document = replace(document, chunks=tuple(chunks))
        yield document

    def _find_orphans(self) -> Iterator[Refused]:
        rows = self._connection.execute(
            "SELECT rowid, document_id FROM chunks WHERE document_id IS NULL "
            "OR document_id NOT IN (SELECT rowid FROM documents) ORDER BY 1"
        )
        for rowid, document_id in rows:
            yield Refused("chunks", rowid, f"there is no document {document_id!r:.60}")

    def _find_chunks_clicked(
        self, table: str, columns: Columns
    ) -> Iterator[tuple[int, int | None]]:
        """Yield each click's row and the chunk it was on, by its number or by its name."""
        if not self._columns["chunks"] or "chunk_id" not in columns:
            rows = f"SELECT rowid, NULL FROM {table} ORDER BY 1"  # noqa: S608 - names are constants
        else:
            name = "chunk_id" if "chunk_id" in self._columns["chunks"] else "NULL"
            rows = (
                "SELECT e.rowid, coalesce(CASE WHEN CAST(by_id.rowid AS TEXT) = "  # noqa: S608 - names are constants
                f"CAST(e.chunk_id AS TEXT) THEN by_id.rowid END, by_name.id) FROM {table} e "
                "LEFT JOIN chunks by_id ON by_id.rowid = CAST(e.chunk_id AS INTEGER) "
                f"LEFT JOIN (SELECT {name} AS name, min(rowid) AS id FROM chunks GROUP BY 1) "
                "by_name ON by_name.name = CAST(e.chunk_id AS TEXT) ORDER BY 1"
            )
        return iter(self._connection.execute(rows))

    def _build_document(self, row: Row) -> SQLiteDocument:
        if self.is_crawled:
            return self._build_crawled(row)
        return SQLiteDocument(
            id=row.rowid,
            path=row.get_text("path"),
            title=row.find_text("title"),
            source_url=row.find_text("source_url"),
            captured_at=row.find_time("captured_at"),
            hash=row.find_text("hash"),
            etag=row.find_text("etag"),
            last_modified=row.find_text("last_modified"),
            last_crawled=row.find_time("last_crawled"),
            content_type=row.find_text("content_type"),
            language=row.find_text("language"),
            word_count=row.find_integer("word_count"),
            metadata=row.find_metadata("metadata"),
            changes=row.changes,
        )

    def _build_crawled(self, row: Row) -> SQLiteDocument:
        url = row.get_text("url")
        return SQLiteDocument(
            id=row.get_text("id"),
            path=url,
            source_url=url,
            title=row.find_text("title"),
            content=row.get_text("content"),
            hash=row.find_text("content_hash"),
            source_name=row.find_text("source_name"),
            captured_at=row.find_time("indexed_at"),
            metadata=row.find_metadata("metadata"),
            changes=row.changes,
        )

    def _build_chunk(self, row: Row) -> SQLiteChunk:
        text = row.get_text("text")
        vector, model = row.find_vector()
        return SQLiteChunk(
            id=row.rowid,
            text=text,
            heading=row.find_text("heading"),
            anchor=row.find_text("anchor"),
            vector=vector,
            model=model,
            chunker_version=row.find_text("chunker_version"),
            chunker_config=row.find_text("chunker_config"),
            embedding_version=row.find_text("embedding_version"),
            processing_timestamp=row.find_time("processing_timestamp"),
            lineage_id=row.find_text("lineage_id"),
            chunk_id=row.find_text("chunk_id"),
            h_path=row.find_text("h_path"),
            url=row.find_text("url"),
            retrieved_at=row.find_time("retrieved_at"),
            token_len=row.find_integer("token_len"),
            lang=row.find_text("lang"),
            hash=row.find_text("hash"),
            changes=row.changes,
        )

    def _build_click(self, table: ClickTable, chunk: int | None, row: Row) -> SQLiteClick:
        if chunk is None:
            said = row.find_text("chunk_id")
            raise Unacceptable(f"no chunk of the file has the id {said!r:.60}")
        position = row.find_integer("position")
        if position is None:
            raise Unacceptable("its position is no number from 0")
        return SQLiteClick(
            table=table,
            id=row.rowid,
            query=row.get_text("query"),
            chunk_id=chunk,
            position=position,
            session_id=row.find_text("session_id"),
            user_id=row.find_text("user_id"),
            timestamp=row.find_time("timestamp", self._zone if table == "click_events" else UTC),
            dwell_time=row.find_seconds("dwell_time"),
            clicked=row.find_integer("clicked") != 0,
            doc_id=row.find_text("doc_id"),
            created_at=row.find_time("created_at"),
            changes=row.changes,
        )

    @staticmethod
    def _build_session(row: Row) -> SQLiteSession:
        return SQLiteSession(
            id=row.rowid,
            session_id=row.get_text("session_id"),
            user_id=row.find_text("user_id"),
            start_time=row.find_time("start_time"),
            end_time=row.find_time("end_time"),
            query_count=row.find_integer("query_count"),
            click_count=row.find_integer("click_count"),
            changes=row.changes,
        )


@contextmanager
def open_database(
    path: Path, *, zone: tzinfo = UTC, strict: bool = False
) -> Iterator[SQLiteDatabase]:
    """Open an old file for reading; nothing is written to it or beside it.

    All is read of one state of the file. One that is written ahead (``-wal``), or of which a
    journal stands beside it, is copied to a temporary folder first; any other stays locked against
    writers until it is closed.

    Args:
        path: The file.
        zone: Zone of ``click_events.timestamp``, which is local time and names none. All other
            times without a zone are UTC.
        strict: Refuse rows of which a value would be read otherwise than it is stored.

    Raises:
        ImportFailed: It is no SQLite file of the documentation system, damaged, encrypted,
            unreadable, or locked for longer than ``PATIENCE_SECONDS``.
    """
    path = Path(os.path.realpath(path))
    with ExitStack() as stack:
        with _read_errors():
            mode = "ro"
            if _is_written_ahead(path) or any(each.exists() for each in list_beside(path)):
                copies = tempfile.TemporaryDirectory(prefix="pgcorpus-sqlite-")
                path, mode = _copy(path, Path(stack.enter_context(copies))), "rw"
            address = f"file:{quote(os.fsencode(path))}?mode={mode}"
            connection = stack.enter_context(closing(_connect(address)))
            found = SQLiteDatabase(connection, zone, strict=strict)
        yield found


def _connect(address: str) -> sqlite3.Connection:
    """Open a database in one transaction, after a look at its structure.

    Raises:
        ImportFailed: It is damaged.
    """
    connection = sqlite3.connect(
        address, uri=True, timeout=PATIENCE_SECONDS, isolation_level=None, check_same_thread=False
    )
    try:
        connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, MAX_ROW_BYTES)
        connection.text_factory = _decode
        for setting in ("query_only = ON", "trusted_schema = OFF", "cell_size_check = ON"):
            connection.execute(f"PRAGMA {setting}")
        connection.execute("BEGIN")
        _refuse_damaged(connection)
    except BaseException:
        connection.close()
        raise
    return connection


def _refuse_damaged(connection: sqlite3.Connection) -> None:
    """Raise for a file whose pages or indexes are wrong: rows might have no end, or be passed over.

    Raises:
        ImportFailed: It is one.
    """
    for (fault,) in connection.execute("PRAGMA integrity_check(100)"):
        told = " ".join(fault.split())
        if fault.startswith("***"):
            raise ImportFailed(
                f"it is damaged: {told:.100}; save what is left with: "
                "sqlite3 FILE .recover | sqlite3 NEW_FILE"
            )
        if " index " in fault:  # other faults are of rows, which are looked at one by one
            raise ImportFailed(
                f"an index in it is damaged: {told:.100}; mend a copy of it with: "
                "sqlite3 COPY REINDEX"
            )


def _decode(text: bytes) -> str:
    """Return a value of type TEXT; half surrogate pairs stand for bytes that are not UTF-8."""
    return text.decode("utf-8", "surrogateescape")


def list_beside(path: Path) -> list[Path]:
    """Return the files that would belong to one of SQLite, if they are there."""
    return [path.with_name(path.name + suffix) for suffix in BESIDE]


def _is_written_ahead(path: Path) -> bool:
    """Return whether a file is in WAL mode, in which opening it makes files beside it.

    Raises:
        ImportFailed: It is not SQLite's.
    """
    refuse_special(path)
    with path.open("rb") as file:
        header = file.read(100)
    if not header.startswith(MAGIC):
        raise ImportFailed("it is not an SQLite file, or it is encrypted")
    return _WAL in header[_VERSIONS]


def _copy(path: Path, folder: Path) -> Path:
    """Copy a file and what belongs to it, as they are at one moment.

    Raises:
        ImportFailed: They change all the time.
    """
    files = [path, *list_beside(path)]
    for _ in range(COPIES):
        before = [_find_state(file) for file in files]
        for file, state in zip(files, before, strict=True):
            (folder / file.name).unlink(missing_ok=True)
            if state is not None:
                shutil.copyfile(file, folder / file.name)
        if before == [_find_state(file) for file in files]:
            return folder / path.name
        time.sleep(PATIENCE_SECONDS / COPIES)
    raise ImportFailed(
        "another process writes to it without a pause; stop that, or import a copy made with: "
        "sqlite3 FILE '.backup NEW_FILE'"
    )


def _find_state(path: Path) -> tuple[int, int, int] | None:
    """Return a value that changes whenever the file does; None where there is no file."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


@contextmanager
def _read_errors() -> Iterator[None]:
    """Translate what goes wrong while a file is read."""
    try:
        yield
    except sqlite3.ProgrammingError:  # of ours: it was closed before
        raise
    except sqlite3.Error as error:
        if error.sqlite_errorcode & 0xFF in {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}:
            raise ImportFailed(
                f"another process writes to it, and it stayed locked for {PATIENCE_SECONDS:.0f} s; "
                "stop that process and try again"
            ) from error
        raise ImportFailed(f"it cannot be read: {error}") from error
    except UnicodeDecodeError as error:  # of SQLite's own messages, which quote the file
        raise ImportFailed("it is damaged: its schema is not UTF-8") from error
    except OSError as error:
        raise ImportFailed(f"it cannot be read: {error.strerror}") from error


def _size_bytes(chunk: SQLiteChunk) -> int:
    """Return about how much memory a chunk takes."""
    return len(chunk.text) + (0 if chunk.vector is None else chunk.vector.nbytes)


def _refuse_with(chunk_id: int, document_id: int) -> Refused:
    return Refused("chunks", chunk_id, f"its document {document_id} is refused")
