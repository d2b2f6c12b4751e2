"""The adapter of old SQLite files, on files that the old system made."""

from __future__ import annotations

import asyncio
import pickle
import sqlite3
from collections.abc import Awaitable, Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pgcorpus.db.errors import DatabaseNotReady, DatabaseUnavailable, DataLayerError, Misuse
from pgcorpus.services.documentation.adapters import sqlite as module
from pgcorpus.services.documentation.adapters.sqlite import SQLiteAdapter
from pgcorpus.services.documentation.sqlite.reading import open_database
from pgcorpus.services.documentation.sqlite.records import SQLiteChunk, SQLiteDocument
from pgcorpus.services.documentation.sqlite.writing import write_database
from pgcorpus.services.embedding.hashing import HashingEmbedder
from tests.services.documentation.sqlite.files import (
    CRAWLER,
    LAYOUTS,
    WITH_EMBEDDINGS,
    chunk,
    document,
    make_file,
    make_pickle,
)

EMBEDDER = HashingEmbedder(dimensions=32)


def embed(text: str) -> np.ndarray:
    """The vector of a text."""
    return EMBEDDER.embed_documents([text])[0]


def use(path: Path, work: Callable[[SQLiteAdapter], Awaitable[Any]]) -> Any:
    """Initialize an adapter on a file, work with it, and close it."""

    async def run() -> Any:
        adapter = SQLiteAdapter(path, EMBEDDER)
        await adapter.initialize()
        try:
            return await work(adapter)
        finally:
            await adapter.close()

    return asyncio.run(run())


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_a_file_of_every_layout_is_searched_and_written(
    tmp_path: Path, layout: tuple[str, ...]
) -> None:
    """Columns that it lacks are added; what was there is found."""
    path = make_file(tmp_path / "a.db", layout, document(1), chunk(5, 1, "premium prices"))

    async def work(db: SQLiteAdapter) -> tuple[Any, Any]:
        before = await db.search_fulltext("price", 3)
        await db.insert_chunk(1, "c", "new prices", embedding=embed("new prices"))
        return before, await db.search_hybrid("new prices", 3)

    before, after = use(path, work)

    assert [each["id"] for each in before] == [5]
    assert [each["chunk_id"] for each in after] == ["c", None]


def test_vectors_of_all_encodings_are_compared(tmp_path: Path) -> None:
    """Hostile ones, zeros, and those of another length are passed over."""
    vector = embed("premium prices")
    blobs = [
        vector.tobytes(),
        make_pickle(vector, 4),
        make_pickle(vector, 5, old=True),
        make_pickle(2 * vector, 5),
        pickle.dumps(print),
        bytes(4 * 32),
        embed("x").tobytes()[:-4],
        b"",
        None,
    ]
    rows = [chunk(n, 1, embedding=blob) for n, blob in enumerate(blobs, start=1)]
    path = make_file(tmp_path / "a.db", WITH_EMBEDDINGS, document(1), *rows)

    found = use(path, lambda db: db.search_semantic("premium prices", 20, 0.99))

    assert [each["id"] for each in found] == [1, 2, 3, 4]
    assert [each["similarity_score"] for each in found] == pytest.approx([1] * 4, abs=1e-5)


def test_rows_of_the_index_without_a_chunk_are_passed_over(tmp_path: Path) -> None:
    """Their ids are not given to new chunks, which would be found by the old words."""
    path = make_file(
        tmp_path / "a.db", WITH_EMBEDDINGS, document(1), chunk(5, 1, "ancient"), chunk(9, 1, "old")
    )
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("DELETE FROM chunks")

    async def work(db: SQLiteAdapter) -> tuple[int, Any, Any]:
        new = await db.insert_chunk(1, "c", "new words")
        return new, await db.search_fulltext("ancient old", 5), await db.search_fulltext("new", 5)

    new, stale, fresh = use(path, work)

    assert new == 10
    assert stale == []
    assert [each["id"] for each in fresh] == [10]


def test_a_chunk_without_a_document_is_not_found(tmp_path: Path) -> None:
    """By words, by vectors or by id."""
    row = chunk(5, 7, "lost", embedding=embed("lost").tobytes())
    path = make_file(tmp_path / "a.db", WITH_EMBEDDINGS, row)

    async def work(db: SQLiteAdapter) -> list[Any]:
        return [
            await db.search_fulltext("lost", 5),
            await db.search_semantic("lost", 5),
            await db.search_hybrid("lost", 5),
            await db.get_chunk_by_id(5),
        ]

    assert use(path, work) == [[], [], [], None]


def test_a_file_without_an_index_of_words_gets_one(tmp_path: Path) -> None:
    """Of all its chunks."""
    path = make_file(tmp_path / "a.db", WITH_EMBEDDINGS, document(1), chunk(5, 1, "premium"))
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("DROP TABLE chunks_fts")

    assert len(use(path, lambda db: db.search_fulltext("premium", 5))) == 1


def test_what_another_process_writes_is_found(tmp_path: Path) -> None:
    """The vectors in memory are not older than the file."""
    path = make_file(tmp_path / "a.db", WITH_EMBEDDINGS, document(1), chunk(5, 1))

    async def work(db: SQLiteAdapter) -> tuple[Any, Any]:
        before = await db.search_semantic("premium", 5)
        with closing(sqlite3.connect(path)) as connection, connection:
            blob = embed("premium").tobytes()
            connection.execute("UPDATE chunks SET embedding = ?", (blob,))
        return before, await db.search_semantic("premium", 5)

    before, after = use(path, work)

    assert (len(before), len(after)) == (0, 1)


def test_vectors_are_read_once_for_many_searches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As long as nothing is written."""
    row = chunk(5, 1, embedding=embed("premium").tobytes())
    path = make_file(tmp_path / "a.db", WITH_EMBEDDINGS, document(1), row)
    read, reads = module._read_vectors, []

    def count_reads(*arguments: Any) -> Any:
        reads.append(1)
        return read(*arguments)

    monkeypatch.setattr(module, "_read_vectors", count_reads)

    async def work(db: SQLiteAdapter) -> None:
        for _ in range(5):
            assert await db.search_semantic("premium", 5)

    use(path, work)

    assert len(reads) == 1


def test_an_exported_file_is_searched_and_what_was_written_is_imported(tmp_path: Path) -> None:
    """The way back to SQLite, and forth again."""
    path = tmp_path / "a.db"
    stored = SQLiteChunk(id=3, text="premium prices", vector=embed("premium"), model="hashing")
    write_database(path, [SQLiteDocument(id=1, path="a.md", chunks=(stored,))])

    async def work(db: SQLiteAdapter) -> Any:
        found = await db.search_hybrid("premium", 5)
        await db.insert_chunk(1, "c", "more", heading="More", embedding=embed("more"))
        await db.record_click_feedback("s", None, "premium", 3, 0)
        return found

    found = use(path, work)

    assert [each["id"] for each in found] == [3]
    with open_database(path) as database:
        (document_read,) = database.read_documents()
        (click,) = database.read_clicks()
    assert [each.model for each in document_read.chunks] == ["hashing", "hashing"]
    assert document_read.chunks[1].heading == "More"
    assert (click.chunk_id, click.timestamp.assumed) == (3, "UTC")


def test_a_file_of_the_crawler_is_refused_and_kept(tmp_path: Path) -> None:
    """It has nothing to search."""
    path = make_file(tmp_path / "a.db", CRAWLER)
    before = path.read_bytes()

    with pytest.raises(Misuse, match="crawler"):
        use(path, lambda db: db.health_check())
    assert path.read_bytes() == before


def test_what_is_no_sqlite_file_is_told(tmp_path: Path) -> None:
    """As an error of this layer."""
    (tmp_path / "a.db").write_bytes(b"something else " * 100)

    for path in (tmp_path / "a.db", tmp_path, tmp_path / "nowhere" / "a.db"):
        with pytest.raises(DatabaseUnavailable):
            use(path, lambda db: db.health_check())


def test_a_locked_file_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After some patience; reading by others goes on."""
    monkeypatch.setattr(module, "PATIENCE_SECONDS", 0.1)
    path = make_file(tmp_path / "a.db", WITH_EMBEDDINGS, document(1))

    async def work(db: SQLiteAdapter) -> None:
        with closing(sqlite3.connect(path, isolation_level=None)) as connection:
            connection.execute("BEGIN IMMEDIATE")
            with pytest.raises(DatabaseUnavailable):
                await db.insert_chunk(1, "c", "new")
            connection.execute("ROLLBACK")
        await db.insert_chunk(1, "c", "new")

    use(path, work)


def test_calls_before_initialize_say_so(tmp_path: Path) -> None:
    """Nothing is made by accident."""
    with pytest.raises(DatabaseNotReady, match="initialize"):
        asyncio.run(SQLiteAdapter(tmp_path / "a.db", EMBEDDER).search_fulltext("a", 1))
    assert not list(tmp_path.iterdir())


def test_numbers_that_no_column_holds_are_refused(tmp_path: Path) -> None:
    """As errors of this layer."""

    async def work(db: SQLiteAdapter) -> None:
        with pytest.raises(DataLayerError):
            await db.insert_document("a", word_count=2**70)
        await db.insert_document("a")

    use(tmp_path / "a.db", work)
