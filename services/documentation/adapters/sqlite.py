"""The old documentation system's interface on one of its own SQLite files.

For development and for files that have not moved yet; it does not grow.
"""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final, TypeVar, cast

import numpy as np

from pgcorpus.db.errors import (
    DatabaseNotReady,
    DatabaseUnavailable,
    DataLayerError,
    InvalidValue,
    MissingReference,
    Misuse,
)
from pgcorpus.services.documentation.adapters.checks import (
    as_vector,
    refuse_blank,
    refuse_unstorable,
)
from pgcorpus.services.documentation.adapters.protocol import (
    ClickStatistics,
    DatabaseStatistics,
    DocumentationAdapter,
    Hit,
    HybridHit,
    SemanticHit,
)
from pgcorpus.services.documentation.sqlite.schema import (
    CHUNKED,
    CHUNKS,
    CREATE_FTS,
    DOCUMENTS,
    INSERT_FTS,
    build_insert,
    list_creations,
)
from pgcorpus.services.documentation.sqlite.vectors import (
    NotAVector,
    decode_vector,
    encode_vector,
)
from pgcorpus.services.embedding.embedder import Embedder, unit_rows
from pgcorpus.services.importers.text import clean

T = TypeVar("T")
Legs = list[tuple[int, float]]
"""Ids of chunks and their scores, best first."""

PATIENCE_SECONDS: Final = 5.0
"""Seconds for which another process may keep the file locked."""

MAX_WORDS: Final = 100
"""Different words of a question that are searched for: FTS5 limits its expressions."""

MAX_HITS: Final = 10_000
MAX_DAYS: Final = 365_000

_DEPTH: Final = 5
_LEAST_DEPTH: Final = 50
"""Candidates of each search for every hit of a hybrid one, and the least of them."""

_HIT: Final = (
    "SELECT c.id, c.chunk_id, c.text, c.heading, c.anchor, c.url, d.path, d.title, d.source_url "
    "FROM chunks c JOIN documents d ON d.id = c.document_id WHERE c.id = ?"
)
_BY_WORDS: Final = (
    "SELECT c.id, -bm25(chunks_fts) FROM chunks_fts JOIN chunks c ON c.id = chunks_fts.rowid "
    "JOIN documents d ON d.id = c.document_id "
    "WHERE chunks_fts MATCH ? ORDER BY 2 DESC, 1 LIMIT ?"
)
"""Rows of the index whose chunk is gone are joined with nothing."""

_VECTORS: Final = (
    "SELECT c.id, c.embedding FROM chunks c JOIN documents d ON d.id = c.document_id "
    "WHERE length(c.embedding) > 0 ORDER BY c.id"
)
_NEXT_ID: Final = (
    "SELECT 1 + max(ifnull((SELECT max(id) FROM chunks), 0), "
    "ifnull((SELECT max(id) FROM chunks_fts_docsize), 0))"
)
"""The id after those of all chunks that ever were: the words of those that are gone stay in the
index, which has no texts to delete them by."""

_CLICKS: Final = (
    "SELECT count(*), count(DISTINCT session_id), avg(position), avg(dwell_time) "
    "FROM click_feedback WHERE clicked AND datetime(timestamp) >= datetime('now', :since) "
    "AND (:query IS NULL OR query = :query)"
)
_RECENT: Final = "-7 days"


class SQLiteAdapter(DocumentationAdapter):
    """A ``DocumentationAdapter`` on an SQLite file. Its calls wait for one another.

    Args:
        path: The file; made if it is not there.
        embedder: Embeds questions. Vectors of another length than its own are not searched.
    """

    def __init__(self, path: Path, embedder: Embedder) -> None:
        self._path = path
        self._embedder = embedder
        self._connection: sqlite3.Connection | None = None
        self._turn = threading.Lock()
        self._kept: tuple[tuple[int, int], np.ndarray, np.ndarray] | None = None

    async def initialize(self) -> None:
        """Open the file, and make the tables, columns and the index that it lacks.

        Raises:
            DatabaseUnavailable: It cannot be opened.
            Misuse: It is of the crawler, and has no chunks.
        """
        await asyncio.to_thread(self._open)

    async def close(self) -> None:
        """Close the file. It may be initialized again."""
        await asyncio.to_thread(self._close)

    async def insert_document(
        self,
        path: str,
        title: str | None = None,
        source_url: str | None = None,
        content_type: str = "text/markdown",
        language: str | None = None,
        word_count: int | None = None,
    ) -> int:
        values = (path, title, source_url, content_type, language, word_count)
        refuse_unstorable(*values)

        def insert(connection: sqlite3.Connection) -> int:
            (found,) = connection.execute(
                "INSERT INTO documents (path, title, source_url, content_type, language, "
                "word_count) VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (path) DO UPDATE SET "
                "title = excluded.title, source_url = excluded.source_url, "
                "content_type = excluded.content_type, language = excluded.language, "
                "word_count = excluded.word_count RETURNING id",
                values,
            ).fetchone()
            return int(found)

        return await self._write(insert)

    async def insert_chunk(
        self,
        document_id: int | str,
        chunk_id: str,
        text: str,
        heading: str | None = None,
        anchor: str | None = None,
        h_path: str | None = None,
        url: str | None = None,
        token_len: int | None = None,
        lang: str | None = None,
        embedding: Sequence[float] | np.ndarray | None = None,
    ) -> int:
        refuse_unstorable(chunk_id, text, heading, anchor, h_path, url, lang)
        refuse_blank(text)
        vector = None if embedding is None else as_vector(embedding)
        named = {
            "id": 0,
            "document_id": document_id,
            "chunk_id": chunk_id,
            "text": text,
            "heading": heading,
            "anchor": anchor,
            "h_path": h_path,
            "url": url,
            "token_len": token_len,
            "lang": lang,
            "embedding": None if vector is None else encode_vector(vector),
            "embedding_model": None if vector is None else self._embedder.model_name,
            "embedding_dimensions": None if vector is None else len(vector),
        }

        def insert(connection: sqlite3.Connection) -> int:
            found = connection.execute("SELECT path FROM documents WHERE id = ?", (document_id,))
            if (path := found.fetchone()) is None:
                raise MissingReference(f"there is no document {document_id}")
            connection.execute(
                "DELETE FROM chunks WHERE document_id = ? AND chunk_id = ?", (document_id, chunk_id)
            )
            (new,) = connection.execute(_NEXT_ID).fetchone()
            named["id"] = new
            connection.execute(build_insert("chunks", named), named)
            connection.execute(INSERT_FTS, (new, text, heading, anchor, *path))
            return int(new)

        return await self._write(insert)

    async def search_fulltext(self, query: str, k: int) -> list[Hit]:
        def search(connection: sqlite3.Connection) -> list[Hit]:
            return [_show(connection, id_) for id_, _ in _search_words(connection, query, k)]

        return await self._read(search)

    async def search_semantic(
        self, query: str, k: int, min_similarity: float = 0.3
    ) -> list[SemanticHit]:
        vector = await self._embed(query)

        def search(connection: sqlite3.Connection) -> list[SemanticHit]:
            return [
                {**_show(connection, id_), "similarity_score": score}
                for id_, score in self._search_vectors(connection, vector, k, min_similarity)
            ]

        return await self._read(search)

    async def search_hybrid(
        self, query: str, k: int, rrf_k: int = 60, min_similarity: float = 0.3
    ) -> list[HybridHit]:
        vector = await self._embed(query)
        depth = max(_LEAST_DEPTH, _DEPTH * k)

        def search(connection: sqlite3.Connection) -> list[HybridHit]:
            words = _search_words(connection, query, depth)
            near = self._search_vectors(connection, vector, depth, min_similarity)
            fused: dict[int, float] = {}
            for leg in (words, near):
                for rank, (id_, _) in enumerate(leg, start=1):
                    fused[id_] = fused.get(id_, 0.0) + 1 / (rrf_k + rank)
            by_words, by_vector = dict(words), dict(near)
            best = sorted(fused.items(), key=lambda each: (-each[1], each[0]))[: max(k, 0)]
            return [
                {
                    **_show(connection, id_),
                    "fts_score": by_words.get(id_),
                    "similarity_score": by_vector.get(id_),
                    "rrf_score": score,
                }
                for id_, score in best
            ]

        return await self._read(search)

    async def get_chunk_by_id(self, chunk_id: int | str) -> Hit | None:
        def get(connection: sqlite3.Connection) -> Hit | None:
            found = _find_chunk(connection, chunk_id)
            return None if found is None else _show(connection, found)

        return await self._read(get)

    async def record_click_feedback(
        self,
        session_id: str | None,
        user_id: str | None,
        query: str,
        chunk_id: int | str,
        position: int,
        clicked: bool = True,
        dwell_time: float | None = None,
    ) -> None:
        refuse_unstorable(session_id, user_id, query)

        def record(connection: sqlite3.Connection) -> None:
            found = _find_chunk(connection, chunk_id)
            if found is None:
                raise MissingReference(f"there is no chunk {chunk_id!r:.60}")
            connection.execute(
                "INSERT INTO click_feedback (session_id, user_id, query, chunk_id, position, "
                "clicked, dwell_time, timestamp) VALUES (?, ?, ?, ?, ?, ?, ?, datetime('now'))",
                (session_id, user_id, query, str(found), position, clicked, dwell_time),
            )

        await self._write(record)

    async def get_click_feedback_stats(
        self, query: str | None = None, days: int = 30
    ) -> ClickStatistics:
        since = f"-{min(max(days, 0), MAX_DAYS)} days"

        def get(connection: sqlite3.Connection) -> ClickStatistics:
            return _count_clicks(connection, since, None if query is None else clean(query))

        return await self._read(get)

    async def get_database_stats(self) -> DatabaseStatistics:
        def get(connection: sqlite3.Connection) -> DatabaseStatistics:
            documents, chunks, embedded = connection.execute(
                "SELECT (SELECT count(*) FROM documents), (SELECT count(*) FROM chunks), "
                "(SELECT count(*) FROM chunks WHERE length(embedding) > 0)"
            ).fetchone()
            return {
                "document_count": documents,
                "chunk_count": chunks,
                "embedded_chunk_count": embedded,
                "recent_clicks": _count_clicks(connection, _RECENT, None)["total_clicks"],
            }

        return await self._read(get)

    async def health_check(self) -> bool:
        try:
            await self._read(lambda connection: connection.execute("SELECT 1 FROM documents"))
        except DataLayerError:
            return False
        return True

    async def _read(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Do *work* in one transaction, in a thread."""
        return await asyncio.to_thread(self._work, "BEGIN", work)

    async def _write(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Do *work*, which writes, in one transaction, in a thread."""
        return await asyncio.to_thread(self._work, "BEGIN IMMEDIATE", work)

    def _work(self, begin: str, work: Callable[[sqlite3.Connection], T]) -> T:
        with self._turn, _translate_errors():
            if self._connection is None:
                raise DatabaseNotReady("the database is not open; call initialize() first")
            with self._connection:  # which commits, or rolls back
                self._connection.execute(begin)
                return work(self._connection)

    def _open(self) -> None:
        with self._turn, _translate_errors():
            if self._connection is not None:
                return
            connection = sqlite3.connect(
                self._path, timeout=PATIENCE_SECONDS, isolation_level=None, check_same_thread=False
            )
            try:
                with connection:
                    connection.execute("BEGIN IMMEDIATE")
                    _complete(connection)
            except BaseException:
                connection.close()
                raise
            self._connection = connection

    def _close(self) -> None:
        with self._turn:
            if self._connection is not None:
                self._connection.close()
            self._connection = self._kept = None

    async def _embed(self, query: str) -> np.ndarray | None:
        """Return the vector of a question; None without a word in it."""
        if not _quote_words(query):
            return None
        return await asyncio.to_thread(self._embedder.embed_question, clean(query))

    def _search_vectors(
        self, connection: sqlite3.Connection, vector: np.ndarray | None, k: int, least: float
    ) -> Legs:
        """Return chunks by cosine, compared with all."""
        ids, rows = self._load_vectors(connection)
        if vector is None or not len(ids):
            return []
        scores = rows @ vector
        order = np.argsort(-scores, kind="stable")[: max(k, 0)]
        return [(int(ids[n]), float(scores[n])) for n in order if scores[n] >= least]

    def _load_vectors(self, connection: sqlite3.Connection) -> tuple[np.ndarray, np.ndarray]:
        """Return the ids of the chunks that have a vector, and these with unit length.

        They are kept until something is written, by this connection or another.
        """
        (version,) = connection.execute("PRAGMA data_version").fetchone()
        state = (version, connection.total_changes)
        if self._kept is None or self._kept[0] != state:
            found = dict(_read_vectors(connection, self._embedder.dimensions))
            rows = np.array(list(found.values()), np.float32)
            self._kept = (state, np.array(list(found)), unit_rows(rows) if found else rows)
        return self._kept[1:]


def _complete(connection: sqlite3.Connection) -> None:
    """Make the tables, columns and the index that an old or an empty file lacks.

    Raises:
        Misuse: It is of the crawler.
    """
    if "content" in _list_columns(connection, "documents"):
        raise Misuse(
            "it is a file of the crawler, which has no chunks; import it with: "
            "pgcorpus import documentation"
        )
    for statement in list_creations(CHUNKED):
        connection.execute(statement)
    for table, columns in (("documents", DOCUMENTS), ("chunks", CHUNKS)):
        there = _list_columns(connection, table)
        for name, kind in columns.items():
            if name not in there:
                connection.execute(f"ALTER TABLE {table} ADD COLUMN {name} {kind}")
    if not _list_columns(connection, "chunks_fts"):
        connection.execute(CREATE_FTS)
        connection.execute(
            "INSERT INTO chunks_fts (rowid, text, heading, anchor, path) SELECT c.id, c.text, "
            "c.heading, c.anchor, d.path FROM chunks c JOIN documents d ON d.id = c.document_id"
        )


def _list_columns(connection: sqlite3.Connection, table: str) -> set[str]:
    return {name for _, name, *_ in connection.execute(f"PRAGMA table_info({table})")}


def _quote_words(query: str) -> str:
    """Return an expression of FTS5 that any of the question's words matches; empty without one."""
    words = (word for word in clean(query).split() if any(map(str.isalnum, word)))
    few = list(dict.fromkeys(words))[:MAX_WORDS]
    return " OR ".join('"' + word.replace('"', '""') + '"' for word in few)


def _search_words(connection: sqlite3.Connection, query: str, k: int) -> Legs:
    """Return chunks by BM25."""
    if not (quoted := _quote_words(query)):
        return []
    limit = min(max(k, 0), MAX_HITS)
    return [(id_, score) for id_, score in connection.execute(_BY_WORDS, (quoted, limit))]


def _read_vectors(
    connection: sqlite3.Connection, dimensions: int
) -> Iterator[tuple[int, np.ndarray]]:
    """Yield the vectors that can be compared with those of so many dimensions."""
    for id_, blob in connection.execute(_VECTORS):
        try:
            vector = decode_vector(blob)
        except NotAVector:
            continue
        if vector is not None and len(vector) == dimensions and vector.any():
            yield id_, vector


def _show(connection: sqlite3.Connection, chunk_id: int) -> Hit:
    row = connection.execute(_HIT, (chunk_id,)).fetchone()
    return cast("Hit", dict(zip(Hit.__annotations__, row, strict=True)))


def _find_chunk(connection: sqlite3.Connection, chunk_id: int | str) -> int | None:
    """Return the id of a chunk of a document by its name, else by its id."""
    column = "c.id" if isinstance(chunk_id, int) else "c.chunk_id"
    statement = (
        f"SELECT c.id FROM chunks c JOIN documents d ON d.id = c.document_id WHERE {column} = ?"  # noqa: S608 - of two constants
    )
    try:
        if found := connection.execute(statement, (chunk_id,)).fetchone():
            return int(found[0])
    except (OverflowError, UnicodeEncodeError):  # no such number or text is in any column
        return None
    if isinstance(chunk_id, str) and chunk_id.isdecimal() and chunk_id.isascii():
        return _find_chunk(connection, int(chunk_id))
    return None


def _count_clicks(connection: sqlite3.Connection, since: str, query: str | None) -> ClickStatistics:
    row = connection.execute(_CLICKS, {"since": since, "query": query}).fetchone()
    return cast("ClickStatistics", dict(zip(ClickStatistics.__annotations__, row, strict=True)))


@contextmanager
def _translate_errors() -> Iterator[None]:
    """Translate errors of the driver into this layer's."""
    try:
        yield
    except sqlite3.IntegrityError as error:
        raise InvalidValue(f"the database refused a row: {error}") from error
    except OverflowError as error:
        raise InvalidValue("a number is too large for the database") from error
    except sqlite3.Error as error:
        raise DatabaseUnavailable(f"the SQLite file cannot be used: {error}") from error
