"""Files that the old system opens, and that are read again as the same records."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import fields, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pgcorpus.db.errors import DataLayerError, Misuse
from pgcorpus.services.documentation.sqlite import writing
from pgcorpus.services.documentation.sqlite.reading import open_database
from pgcorpus.services.documentation.sqlite.records import (
    Refused,
    SQLiteChunk,
    SQLiteClick,
    SQLiteDocument,
    SQLiteSession,
    SQLiteTime,
)
from pgcorpus.services.documentation.sqlite.schema import DEFAULT_DIMENSIONS
from pgcorpus.services.documentation.sqlite.vectors import encode_vector
from pgcorpus.services.documentation.sqlite.writing import Written, format_time, write_database
from tests.services.documentation.sqlite.files import (
    CRAWLER,
    FULL,
    LAYOUTS,
    chunk,
    click,
    document,
    make_file,
    make_pickle,
    unit,
)

VIENNA = ZoneInfo("Europe/Vienna")
Records = tuple[list[SQLiteDocument], list[SQLiteClick], list[SQLiteSession]]


def read_all(path: Path, **options: Any) -> Records:
    """Everything in a file, of which nothing is refused or read otherwise than stored."""
    with open_database(path, **options) as database:
        found = (
            list(database.read_documents()),
            list(database.read_clicks()),
            list(database.read_sessions()),
        )
    assert not [each for part in found for each in part if isinstance(each, Refused)]
    return found  # type: ignore[return-value]


def vectors(documents: Iterable[SQLiteDocument]) -> list[bytes | None]:
    """The vectors of all chunks, as bytes."""
    return [
        None if each.vector is None else encode_vector(each.vector)
        for document in documents
        for each in document.chunks
    ]


# Records as files may hold them.

texts = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=30
).filter(str.strip)
maybe = st.none() | texts
integers = st.none() | st.integers(0, 2**31 - 1)
moments = st.timedeltas(timedelta(0), timedelta(days=13_000)).map(
    lambda passed: datetime(1990, 1, 2, tzinfo=UTC) + passed
)


def times(zone: str = "UTC") -> st.SearchStrategy[SQLiteTime | None]:
    """Times of a column that is read in a zone; what an assumed zone cannot say is left out."""
    known = UTC if zone == "UTC" else ZoneInfo(zone)
    told = moments.map(SQLiteTime)
    assumed = moments.map(lambda at: SQLiteTime(at, zone)).filter(
        lambda time: "+" not in (format_time(time, known) or "")
    )
    return st.none() | told | assumed


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)


@st.composite
def vectors_of_models(draw: st.DrawFn) -> tuple[np.ndarray | None, str | None]:
    """A vector with its model, or neither."""
    name = draw(st.sampled_from([None, "all-MiniLM-L6-v2", "bge-m3", "a model"]))
    if name is None:
        return None, None
    length = DEFAULT_DIMENSIONS if name == "all-MiniLM-L6-v2" else draw(st.integers(1, 20))
    numbers = st.floats(width=32, allow_nan=False, allow_infinity=False)
    some = draw(st.lists(numbers, min_size=1, max_size=min(length, 5)))
    vector = np.ones(length, np.float32)
    vector[: len(some)] = some
    return (vector, name) if vector.any() else (np.ones(length, np.float32), name)


@st.composite
def chunks(draw: st.DrawFn, id_: int) -> SQLiteChunk:
    """A chunk with all of its fields."""
    vector, model = draw(vectors_of_models())
    plain = {
        each.name: draw(maybe)
        for each in fields(SQLiteChunk)
        if each.type == "str | None" and each.name != "model"
    }
    return SQLiteChunk(
        id=id_,
        text=draw(texts),
        vector=vector,
        model=model,
        processing_timestamp=draw(times()),
        retrieved_at=draw(times()),
        token_len=draw(integers),
        **plain,
    )


@st.composite
def files(draw: st.DrawFn) -> Records:
    """Documents, clicks and sessions of one file of the first layout."""
    ids = iter(sorted(draw(st.sets(st.integers(1, 2**40), min_size=6, max_size=6))))
    paths = draw(st.lists(texts, unique=True, max_size=3))
    documents = [
        SQLiteDocument(
            id=n,
            path=path,
            chunks=tuple(draw(chunks(next(ids))) for _ in range(draw(st.integers(0, 2)))),
            captured_at=draw(times()),
            last_crawled=draw(times()),
            word_count=draw(integers),
            metadata=draw(st.dictionaries(texts, json_values, max_size=3)),
            **{
                each.name: draw(maybe)
                for each in fields(SQLiteDocument)
                if each.type == "str | None" and each.name not in {"content", "source_name"}
            },
        )
        for n, path in enumerate(paths, start=draw(st.integers(1, 2**50)))
    ]
    targets = [each.id for document in documents for each in document.chunks]
    clicks = []
    for table, zone in (("click_events", "Europe/Vienna"), ("click_feedback", "UTC")):
        is_event = table == "click_events"
        clicks += [
            SQLiteClick(
                table=table,
                id=n,
                query=draw(texts),
                chunk_id=draw(st.sampled_from(targets)),
                position=draw(st.integers(0, 100)),
                session_id=draw(maybe),
                user_id=draw(maybe),
                timestamp=draw(times(zone)),
                dwell_time=draw(st.none() | st.floats(0, 1e9)),
                clicked=is_event or draw(st.booleans()),
                doc_id=draw(maybe) if is_event else None,
                created_at=draw(times()) if is_event else None,
            )
            for n in range(1, draw(st.integers(1, 3)) if targets else 1)
        ]
    sessions = [
        SQLiteSession(
            id=n,
            session_id=name,
            user_id=draw(maybe),
            start_time=draw(times()),
            end_time=draw(times()),
            query_count=draw(integers),
            click_count=draw(integers),
        )
        for n, name in enumerate(draw(st.lists(texts, unique=True, max_size=2)), start=1)
    ]
    return documents, clicks, sessions


@given(files())
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
def test_records_are_read_as_they_were_written(
    tmp_path_factory: pytest.TempPathFactory, records: Records
) -> None:
    """Whatever they hold, vectors to the last bit."""
    path = tmp_path_factory.mktemp("written") / "a.db"

    write_database(path, *records, zone=VIENNA)
    found = read_all(path, zone=VIENNA)

    assert found == records
    assert vectors(found[0]) == vectors(records[0])
    assert [each for part in found for record in part for each in record.changes] == []


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_an_old_file_is_written_again_without_loss(tmp_path: Path, layout: tuple[str, ...]) -> None:
    """In its fullest layout."""
    rows = [
        document(1, title="Ä", captured_at="2024-05-01T10:00:00Z"),
        chunk(4, 1, "text\n", heading="H", anchor="h"),
        document(2),
        chunk(3, 2),
    ]
    if layout is FULL:
        rows += [
            chunk(5, 2, embedding=make_pickle(unit(7), 4), embedding_model="bge-m3"),
            click("5", timestamp="2024-10-27T02:30:00", created_at="2024-10-27 00:30:00"),
            click("3", "click_feedback", timestamp="2024-10-27 00:30:00.25"),
            ("search_sessions", {"session_id": "s", "end_time": "2024-10-27"}),
        ]
    old, new = tmp_path / "old.db", tmp_path / "new.db"
    make_file(old, layout, *rows)
    records = read_all(old, zone=VIENNA)

    write_database(new, *records, zone=VIENNA)

    assert read_all(new, zone=VIENNA) == records
    assert vectors(read_all(new)[0]) == vectors(records[0])


def test_a_crawlers_file_is_written_again_without_loss(tmp_path: Path) -> None:
    """In its own layout."""
    values = {"url": "https://a.example/", "content": "# A", "metadata": str({"n": 1, "t": None})}
    old, new = tmp_path / "old.db", tmp_path / "new.db"
    make_file(old, CRAWLER, ("documents", {"id": "ab", "source_name": "a", **values}))
    records = read_all(old)

    assert write_database(new, *records) == Written(documents=1)

    assert read_all(new) == records
    with closing(sqlite3.connect(new)) as connection:
        assert connection.execute("SELECT metadata FROM documents").fetchone() == (
            values["metadata"],
        )


def test_the_old_systems_statements_work_on_the_file(tmp_path: Path) -> None:
    """Its search by words, its reading of vectors, its defaults, its deletes."""
    path = tmp_path / "a.db"
    written = SQLiteDocument(
        id=2,
        path="a.md",
        title="A",
        chunks=(
            SQLiteChunk(id=9, text="Pricing cats", vector=unit(5), model="all-MiniLM-L6-v2"),
            SQLiteChunk(id=11, text="dogs", heading="Prices"),
        ),
    )
    clicks = [SQLiteClick(table="click_events", id=1, query="q", chunk_id=9, position=0)]

    counts = write_database(path, [written], clicks, [SQLiteSession(id=1, session_id="s")])

    assert counts == Written(documents=1, chunks=2, vectors=1, clicks=1, sessions=1)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA foreign_keys = ON")
        found = connection.execute(
            "SELECT c.id, c.text, d.path, bm25(chunks_fts) FROM chunks_fts "
            "JOIN chunks c ON c.id = chunks_fts.rowid JOIN documents d ON d.id = c.document_id "
            "WHERE chunks_fts MATCH 'price' ORDER BY bm25(chunks_fts)"
        ).fetchall()
        assert {row[:3] for row in found} == {(9, "Pricing cats", "a.md"), (11, "dogs", "a.md")}
        assert connection.execute("SELECT * FROM chunks_fts").fetchone() == (None,) * 4
        (blob, model, dimensions, target) = connection.execute(
            "SELECT embedding, embedding_model, embedding_dimensions, e.chunk_id FROM chunks c "
            "JOIN click_events e ON e.chunk_id = CAST(c.id AS TEXT)"
        ).fetchone()
        assert np.array_equal(np.frombuffer(blob, np.float32), unit(5))
        assert (model, dimensions) == ("sentence-transformers/all-MiniLM-L6-v2", 384)
        assert target == "9"
        connection.execute("INSERT INTO click_feedback (query, chunk_id) VALUES ('q', '9')")
        connection.execute("INSERT INTO chunks (document_id, text) VALUES (2, 'new')")
        assert connection.execute(
            "SELECT clicked, timestamp IS NOT NULL, chunker_version FROM click_feedback, chunks "
            "WHERE text = 'new'"
        ).fetchone() == (1, 1, "v1.0.0")
        connection.execute("DELETE FROM documents")
        assert connection.execute("SELECT count(*) FROM chunks").fetchone() == (0,)
        assert connection.execute("PRAGMA user_version").fetchone() == (0,)
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_an_empty_file_has_all_tables(tmp_path: Path) -> None:
    """The old system can fill it."""
    write_database(tmp_path / "a.db", [])

    assert read_all(tmp_path / "a.db") == ([], [], [])


@pytest.mark.parametrize(
    ("at", "assumed", "text"),
    [
        (datetime(2024, 7, 1, 10, tzinfo=UTC), "Europe/Vienna", "2024-07-01 12:00:00"),
        (datetime(2024, 7, 1, 10, tzinfo=UTC), "UTC", "2024-07-01 12:00:00+02:00"),
        (datetime(2024, 7, 1, 10, tzinfo=UTC), None, "2024-07-01 12:00:00+02:00"),
        (datetime(2024, 10, 27, 0, 30, tzinfo=UTC), "Europe/Vienna", "2024-10-27 02:30:00"),
        (datetime(2024, 10, 27, 1, 30, tzinfo=UTC), "Europe/Vienna", "2024-10-27 02:30:00+01:00"),
    ],
)
def test_local_times_are_written_as_they_were_read(
    at: datetime, assumed: str | None, text: str
) -> None:
    """The repeated hour with its zone."""
    assert format_time(SQLiteTime(at, assumed), VIENNA) == text


def test_what_stands_there_is_kept_unless_it_is_to_be_replaced(tmp_path: Path) -> None:
    """Then as one step."""
    path = tmp_path / "a.db"
    path.write_bytes(b"precious")

    with pytest.raises(Misuse, match=r"a\.db exists already"):
        write_database(path, [])
    assert path.read_bytes() == b"precious"

    write_database(path, [SQLiteDocument(id=1, path="a")], replace=True)
    assert len(read_all(path)[0]) == 1
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_appears_meanwhile_is_kept(tmp_path: Path) -> None:
    """The last step refuses, too."""
    path = tmp_path / "a.db"

    def documents() -> Iterator[SQLiteDocument]:
        yield SQLiteDocument(id=1, path="a")
        path.write_bytes(b"precious")

    with pytest.raises(Misuse, match="since a moment ago"):
        write_database(path, documents())
    assert path.read_bytes() == b"precious"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("suffix", ["-wal", "-journal"])
def test_a_file_that_is_open_is_not_replaced(tmp_path: Path, suffix: str) -> None:
    """Its write-ahead log would be written into the new one."""
    path = tmp_path / "a.db"
    path.with_name(f"a.db{suffix}").touch()

    with pytest.raises(Misuse, match="still open"):
        write_database(path, [], replace=True)


@pytest.mark.parametrize(
    ("documents", "reason"),
    [
        ([SQLiteDocument(id=1, path="a"), SQLiteDocument(id=1, path="b")], "documents 1"),
        ([SQLiteDocument(id=1, path="a"), SQLiteDocument(id=2, path="a")], "documents 2"),
        ([SQLiteDocument(id="x", path="a")], "documents x"),
        (
            [SQLiteDocument(id=1, path="a"), SQLiteDocument(id="b", path="b", content="b")],
            "crawler",
        ),
    ],
)
def test_records_that_cannot_stand_in_one_file_are_refused(
    tmp_path: Path, documents: list[SQLiteDocument], reason: str
) -> None:
    """And nothing is left."""
    with pytest.raises(Misuse, match=reason):
        write_database(tmp_path / "a.db", documents)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_not_there_and_one_in_the_place_are_told(tmp_path: Path) -> None:
    """As errors of this layer."""
    (tmp_path / "folder").mkdir()

    with pytest.raises(DataLayerError, match="cannot be written"):
        write_database(tmp_path / "nowhere" / "a.db", [])
    with pytest.raises(DataLayerError, match="is no file that could be replaced"):
        write_database(tmp_path / "folder", [], replace=True)


def test_an_error_of_the_source_stays_its_own_and_leaves_nothing(tmp_path: Path) -> None:
    """It is not taken for one of writing."""

    def documents() -> Iterator[SQLiteDocument]:
        yield SQLiteDocument(id=1, path="a")
        raise OSError("the source is gone")

    with pytest.raises(OSError, match="the source is gone"):
        write_database(tmp_path / "a.db", documents())
    assert not list(tmp_path.iterdir())


def test_an_interrupted_export_leaves_nothing(tmp_path: Path) -> None:
    """Neither the file nor what was written of it; what stood there stays."""
    path = tmp_path / "a.db"
    path.write_bytes(b"precious")
    program = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from pgcorpus.services.documentation.sqlite.records import SQLiteDocument\n"
        "from pgcorpus.services.documentation.sqlite.writing import write_database\n"
        "def documents():\n"
        "    yield SQLiteDocument(id=1, path='a')\n"
        "    print('ready', flush=True)\n"
        "    time.sleep(60)\n"
        "write_database(Path(sys.argv[1]), documents(), replace=True)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        assert len(list(tmp_path.iterdir())) == 2
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=20)

    assert list(tmp_path.iterdir()) == [path]
    assert path.read_bytes() == b"precious"


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is told as an error of this layer."""

    def flush(path: Path) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(writing, "_flush", flush)

    with pytest.raises(DataLayerError, match="No space left"):
        write_database(tmp_path / "a.db", [])
    assert not list(tmp_path.iterdir())


def test_the_file_is_its_owners_alone(tmp_path: Path) -> None:
    """It may hold what tenants wrote."""
    write_database(tmp_path / "a.db", [])

    assert (tmp_path / "a.db").stat().st_mode & 0o777 == 0o600


def test_many_chunks_are_written_in_time(tmp_path: Path) -> None:
    """Faster than they are imported: 3,000 chunks a second."""
    base = SQLiteChunk(id=1, text="word " * 100, vector=unit(), model="all-MiniLM-L6-v2")
    documents = (
        SQLiteDocument(
            id=n, path=f"{n}", chunks=tuple(replace(base, id=n * 10 + m) for m in range(10))
        )
        for n in range(600)
    )
    begun = time.process_time()

    assert write_database(tmp_path / "a.db", documents).chunks == 6000

    assert timedelta(seconds=time.process_time() - begun) < timedelta(seconds=2)
