"""Old files of every layout, read row by row, and never changed."""

from __future__ import annotations

import hashlib
import os
import pickle
import sqlite3
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pytest

from pgcorpus.db.errors import ImportFailed
from pgcorpus.services.documentation.sqlite import reading
from pgcorpus.services.documentation.sqlite.reading import open_database
from pgcorpus.services.documentation.sqlite.records import (
    Refused,
    SQLiteChunk,
    SQLiteClick,
    SQLiteDocument,
    SQLiteSession,
    SQLiteTime,
)
from tests.services.documentation.sqlite.files import (
    CRAWLER,
    FULL,
    LAYOUTS,
    OLDEST,
    WITH_EMBEDDINGS,
    WITH_LINEAGE,
    Row,
    chunk,
    click,
    document,
    insert_rows,
    make_file,
    make_pickle,
    unit,
)

MINILM = "all-MiniLM-L6-v2"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A place for a file, alone in its folder."""
    folder = tmp_path / "old files #1?"
    folder.mkdir()
    return folder / "docfoundry.db"


def documents(path: Path, **options: Any) -> list[SQLiteDocument | Refused]:
    """All documents of a file, and what is refused."""
    with open_database(path, **options) as database:
        return list(database.read_documents())


def clicks(path: Path, **options: Any) -> list[SQLiteClick | Refused]:
    """All clicks of a file, and what is refused."""
    with open_database(path, **options) as database:
        return list(database.read_clicks())


def one_document(path: Path, **options: Any) -> SQLiteDocument:
    """The only document of a file, of which nothing is refused."""
    (found,) = documents(path, **options)
    assert isinstance(found, SQLiteDocument), found
    return found


def one_chunk(path: Path, **options: Any) -> SQLiteChunk:
    """The only chunk of a file, of which nothing is refused."""
    (found,) = one_document(path, **options).chunks
    return found


def list_refused(found: list[Any]) -> list[tuple[str, int, str]]:
    """Return the refused rows as plain values."""
    return [(each.table, each.rowid, each.reason) for each in found if isinstance(each, Refused)]


def folder_state(path: Path) -> dict[str, tuple[str, int, int]]:
    """Every file in a folder: its bytes, when it was written, and its length."""
    return {
        each.name: (
            hashlib.sha256(each.read_bytes()).hexdigest(),
            each.stat().st_mtime_ns,
            each.stat().st_size,
        )
        for each in path.parent.iterdir()
    }


@contextmanager
def another_process(path: Path, script: str) -> Iterator[None]:
    """Run a script that has the file open as ``connection`` until the block ends."""
    program = (
        "import sqlite3, sys\n"
        "connection = sqlite3.connect(sys.argv[1], isolation_level=None)\n"
        f"{script}\n"
        "print('ready', flush=True)\n"
        "sys.stdin.read()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        yield


# Layouts


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_every_layout_is_read_by_its_columns(path: Path, layout: tuple[str, ...]) -> None:
    """Columns that a file lacks are unknown."""
    make_file(path, layout, document(1, title="One"), chunk(4, 1), chunk(2, 1), document(7))

    first, second = documents(path)

    assert isinstance(first, SQLiteDocument)
    assert (first.id, first.path, first.title) == (1, "pages/1.md", "One")
    assert [(each.id, each.text) for each in first.chunks] == [(2, "some words"), (4, "some words")]
    assert (first.source_url, first.etag, first.word_count) == (None, None, None)
    assert second == SQLiteDocument(id=7, path="pages/7.md")


def test_all_columns_of_a_chunk_and_a_document_are_kept(path: Path) -> None:
    """With the default model under its name in the registry."""
    make_file(
        path,
        FULL,
        document(
            1,
            source_url="https://a.example/1",
            captured_at="2024-05-01T10:00:00Z",
            hash="ab" * 32,
            etag='W/"7"',
            last_modified="Wed, 21 Oct 2015 07:28:00 GMT",
            last_crawled="2024-05-01T12:00:00+02:00",
            content_type="text/markdown",
            language="en",
            word_count=12,
        ),
        chunk(
            3,
            1,
            " As stored.\n",
            heading="A",
            anchor="a",
            embedding=unit().tobytes(),
            chunk_id="c-3",
            h_path="Top > A",
            url="https://a.example/1#a",
            retrieved_at="2024-05-01 10:00:00",
            token_len=3,
            lang="en",
            hash="cd",
            lineage_id="l-1",
            embedding_version="2",
            processing_timestamp="2024-05-02",
        ),
    )
    ten = datetime(2024, 5, 1, 10, tzinfo=UTC)

    assert one_document(path) == SQLiteDocument(
        id=1,
        path="pages/1.md",
        source_url="https://a.example/1",
        captured_at=SQLiteTime(ten),
        hash="ab" * 32,
        etag='W/"7"',
        last_modified="Wed, 21 Oct 2015 07:28:00 GMT",
        last_crawled=SQLiteTime(ten),
        content_type="text/markdown",
        language="en",
        word_count=12,
        chunks=(
            SQLiteChunk(
                id=3,
                text=" As stored.\n",
                heading="A",
                anchor="a",
                model=MINILM,
                chunker_version="v1.0.0",
                chunker_config="{}",
                embedding_version="2",
                processing_timestamp=SQLiteTime(datetime(2024, 5, 2, tzinfo=UTC), "UTC"),
                lineage_id="l-1",
                chunk_id="c-3",
                h_path="Top > A",
                url="https://a.example/1#a",
                retrieved_at=SQLiteTime(ten, "UTC"),
                token_len=3,
                lang="en",
                hash="cd",
            ),
        ),
    )


def test_the_crawlers_documents_are_read_with_their_text(path: Path) -> None:
    """Metadata is the text of a dictionary of Python."""
    metadata = {"depth": 2, "tags": ["a", "b"], "it's": None, "seen": True, "set": (1, 2.5)}
    make_file(
        path,
        CRAWLER,
        (
            "documents",
            {
                "id": "0123456789abcdef",
                "url": "https://a.example/",
                "title": "",
                "content": "# Text\n",
                "content_hash": "ff",
                "source_name": "a",
                "indexed_at": "2024-05-01T10:00:00.5",
                "metadata": str(metadata),
            },
        ),
    )

    with open_database(path) as database:
        assert database.is_crawled
        assert database.count_rows() == {"documents": 1}
        assert not list(database.read_clicks())
        assert not list(database.read_sessions())

    assert one_document(path) == SQLiteDocument(
        id="0123456789abcdef",
        path="https://a.example/",
        source_url="https://a.example/",
        content="# Text\n",
        hash="ff",
        source_name="a",
        captured_at=SQLiteTime(datetime(2024, 5, 1, 10, 0, 0, 500_000, tzinfo=UTC), "UTC"),
        metadata=metadata | {"set": [1, 2.5]},
    )


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('true')",
        "{'a': open('/etc/passwd')}",
        "{'a': datetime.datetime(2024, 1, 1)}",
        "{'a': 9" + "**9" * 1000 + "}",
        "[1, 2]",
        "{'a': 1e999}",
        "{'a': b'bytes'}",
        "{'a': 1j}",
        "{'a': " * 5000,
        "[" * 90 + "]" * 90,
        "{'a': " + "-" * 50_000 + "1}",
        "{'a': " + "1+" * 30_000 + "1}",
        "{" + ", ".join(f"'{n}': {n}" for n in range(20_000)) + "}",
        "{'a': '\\z'",
        "{'a': " + "9" * 5000 + "}",
    ],
    ids=lambda text: text[:20],
)
def test_metadata_that_is_no_plain_dictionary_is_left_out(path: Path, text: str) -> None:
    """The document is kept, and the history has the text."""
    values = {"id": "a", "url": "https://a.example/", "content": "x", "metadata": text}
    make_file(path, CRAWLER, ("documents", values))
    begun = time.monotonic()

    found = one_document(path)

    assert found.metadata in ({}, {"a": None})
    assert found.changes
    assert time.monotonic() - begun < 2


def test_metadata_nested_too_deep_is_refused_with_its_row(path: Path) -> None:
    """As JSON of that depth is everywhere."""
    text = "{'a': " * 120 + "1" + "}" * 120
    values = {"id": "a", "url": "https://a.example/", "content": "x", "metadata": text}
    make_file(path, CRAWLER, ("documents", values))

    assert len(documents(path)) == 1


def test_clicks_and_sessions_are_read(path: Path) -> None:
    """Of both tables, each with its own reading of times."""
    make_file(
        path,
        FULL,
        document(1),
        chunk(5, 1, chunk_id="five"),
        click(
            "5",
            position=3,
            doc_id="1",
            timestamp="2024-07-01T12:00:00",
            session_id="s",
            user_id="",
            dwell_time=2.5,
            created_at="2024-07-01 10:00:01",
        ),
        click("five", "click_feedback", clicked=0, timestamp="2024-07-01 10:00:00"),
        ("search_sessions", {"session_id": "s", "start_time": "2024-07-01", "query_count": 2}),
    )
    ten = datetime(2024, 7, 1, 10, tzinfo=UTC)

    assert clicks(path, zone=ZoneInfo("Europe/Vienna")) == [
        SQLiteClick(
            table="click_events",
            id=1,
            query="how",
            chunk_id=5,
            position=3,
            session_id="s",
            timestamp=SQLiteTime(ten, "Europe/Vienna"),
            dwell_time=2.5,
            doc_id="1",
            created_at=SQLiteTime(ten.replace(second=1), "UTC"),
        ),
        SQLiteClick(
            table="click_feedback",
            id=1,
            query="how",
            chunk_id=5,
            position=0,
            timestamp=SQLiteTime(ten, "UTC"),
            clicked=False,
        ),
    ]
    with open_database(path) as database:
        assert list(database.read_sessions()) == [
            SQLiteSession(
                id=1,
                session_id="s",
                start_time=SQLiteTime(datetime(2024, 7, 1, tzinfo=UTC), "UTC"),
                query_count=2,
            )
        ]
        assert database.count_rows() == {
            "documents": 1,
            "chunks": 1,
            "click_events": 1,
            "click_feedback": 1,
            "search_sessions": 1,
        }


@pytest.mark.parametrize(
    "said", ["6", "05", "5abc", "5.0", "five", "", None, "9" * 30, -5, b"\xff"]
)
def test_a_click_on_no_chunk_is_list_refused(path: Path, said: Any) -> None:
    """It says which id it was."""
    make_file(path, WITH_LINEAGE, document(1), chunk(5, 1), click(said))

    ((table, rowid, reason),) = list_refused(clicks(path))

    assert (table, rowid) == ("click_events", 1)
    assert "chunk" in reason


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"position": -1}, "position"),
        ({"position": None}, "position"),
        ({"position": "third"}, "position"),
        ({"query": ""}, "query"),
        ({"query": "a\0b"}, "NUL"),
    ],
)
def test_a_click_without_question_or_position_is_list_refused(
    path: Path, values: dict[str, Any], reason: str
) -> None:
    """Nothing can be learnt from it."""
    make_file(path, WITH_LINEAGE, document(1), chunk(5, 1), click("5", **values))

    ((_, _, told),) = list_refused(clicks(path))

    assert reason in told


def test_an_odd_duration_or_time_of_a_click_is_left_out(path: Path) -> None:
    """The click counts without it, and strictly it does not."""
    odd = click("5", dwell_time=float("inf"), timestamp="yesterday", position="2")
    make_file(path, WITH_LINEAGE, document(1), chunk(5, 1), odd)

    (found,) = clicks(path)

    assert isinstance(found, SQLiteClick)
    assert (found.dwell_time, found.timestamp, found.position) == (None, None, 2)
    assert [each.field for each in found.changes] == ["timestamp", "dwell_time"]
    assert len(list_refused(clicks(path, strict=True))) == 1


# Times


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2024-05-01T10:00:00Z", SQLiteTime(datetime(2024, 5, 1, 10, tzinfo=UTC))),
        ("2024-05-01 10:00:00", SQLiteTime(datetime(2024, 5, 1, 10, tzinfo=UTC), "UTC")),
        ("20240501", SQLiteTime(datetime(2024, 5, 1, tzinfo=UTC), "UTC")),
        ("1714557600.5", SQLiteTime(datetime(2024, 5, 1, 10, 0, 0, 500_000, tzinfo=UTC))),
        (1714557600000, SQLiteTime(datetime(2024, 5, 1, 10, tzinfo=UTC))),
        ("", None),
        (None, None),
        ("0001-01-01T00:00:00", None),
        ("9999-12-31T23:59:59", None),
        ("last week", None),
        ("9" * 400, None),
    ],
)
def test_times_are_read_or_left_out(path: Path, text: Any, expected: SQLiteTime | None) -> None:
    """The zone that was assumed is kept."""
    make_file(path, OLDEST, document(1, captured_at=text))

    assert one_document(path).captured_at == expected


def test_local_times_at_the_ends_of_the_calendar_are_left_out(path: Path) -> None:
    """They have no moment in UTC."""
    make_file(path, FULL, document(1), chunk(5, 1), click("5", timestamp="0001-01-01"))

    (found,) = clicks(path, zone=ZoneInfo("Asia/Tokyo"))

    assert isinstance(found, SQLiteClick)
    assert found.timestamp is None


# Values


def test_unknown_is_the_empty_text_as_often_as_null(path: Path) -> None:
    """Both are None, and so are blanks."""
    make_file(path, FULL, document(1, title="", hash=" ", language=None, word_count=""))

    assert one_document(path) == SQLiteDocument(id=1, path="pages/1.md")


def test_texts_of_other_types_are_read_as_texts(path: Path) -> None:
    """Their former type is recorded."""
    loose = (OLDEST[0].replace("title TEXT", "title").replace("hash TEXT", "hash"), *OLDEST[1:])
    make_file(path, loose, document(1, title=42, hash="Käse".encode(), source_url=1.5))

    found = one_document(path)

    assert (found.title, found.hash, found.source_url) == ("42", "Käse", "1.5")
    assert [each.field for each in found.changes] == ["title", "hash"]


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("a\0b", "NUL"),
        (b"a\xff\xfe", "UTF-8"),
        ("", "empty"),
        (" \n", "empty"),
    ],
)
def test_a_chunk_whose_text_cannot_be_stored_is_list_refused(
    path: Path, value: Any, reason: str
) -> None:
    """The document and its other chunks are kept."""
    make_file(path, OLDEST, document(1), chunk(5, 1, value), chunk(6, 1))

    found = documents(path)

    ((table, rowid, told),) = list_refused(found)
    assert (table, rowid) == ("chunks", 5)
    assert reason in told
    (kept,) = (each for each in found if isinstance(each, SQLiteDocument))
    assert [each.id for each in kept.chunks] == [6]


def test_a_description_is_kept_without_what_cannot_be_stored(path: Path) -> None:
    """The document is more than its title; strictly it is refused."""
    make_file(path, OLDEST, document(1, title="a\0b", source_url=b"c\xff"))

    found = one_document(path)

    assert (found.title, found.source_url) == ("ab", "c\ufffd")
    assert {each.rule for each in found.changes} == {"characters", "text"}
    assert len(list_refused(documents(path, strict=True))) == 1


def test_a_text_that_is_not_utf_8_is_list_refused(path: Path) -> None:
    """SQLite checks no encoding."""
    make_file(path, OLDEST, document(1), chunk(5, 1))
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE chunks SET text = CAST(x'61ff62' AS TEXT)")

    ((_, _, reason),) = list_refused(documents(path))

    assert "UTF-8" in reason


def test_a_file_in_utf_16_is_read(path: Path) -> None:
    """SQLite turns its texts."""
    make_file(path, OLDEST, document(1, title="Käse"), setup="PRAGMA encoding = 'UTF-16le'")

    assert one_document(path).title == "Käse"


def test_chunks_of_no_document_or_a_refused_one_are_list_refused(path: Path) -> None:
    """Each with its own reason."""
    make_file(
        path, OLDEST, document(1, "a\0b"), chunk(5, 1), chunk(6, 9), chunk(7, None), document(2)
    )

    found = documents(path)

    assert [each[:2] for each in list_refused(found)] == [
        ("chunks", 5),
        ("documents", 1),
        ("chunks", 6),
        ("chunks", 7),
    ]
    assert [each.id for each in found if isinstance(each, SQLiteDocument)] == [2]


@pytest.mark.parametrize("value", [-1, 2**40, 1.5, "many", b"7"])
def test_odd_numbers_are_left_out(path: Path, value: Any) -> None:
    """And recorded."""
    make_file(path, FULL, document(1, word_count=value))

    found = one_document(path)

    assert found.word_count is None
    assert [each.field for each in found.changes] == ["word_count"]


# Vectors


@pytest.mark.parametrize(
    "blob",
    [
        unit(3).tobytes(),
        make_pickle(unit(3), 4),
        make_pickle(unit(3), 5),
        make_pickle(unit(3), 4, old=True),
        make_pickle(unit(3), 5, old=True),
    ],
    ids=["raw", "4", "5", "4 of NumPy 1", "5 of NumPy 1"],
)
def test_all_encodings_of_vectors_are_read(path: Path, blob: bytes) -> None:
    """In one file."""
    make_file(path, WITH_EMBEDDINGS, document(1), chunk(5, 1, embedding=blob))

    found = one_chunk(path)

    assert found.vector is not None
    assert np.array_equal(found.vector, unit(3))
    assert found.model == MINILM


@pytest.mark.parametrize("blob", [None, b"", ""])
def test_a_chunk_may_have_no_vector(path: Path, blob: Any) -> None:
    """Nor a model then, whatever the defaults say."""
    make_file(path, FULL, document(1), chunk(5, 1, embedding=blob))

    found = one_chunk(path)

    assert (found.vector, found.model, found.changes) == (None, None, ())


def test_a_vector_of_zeros_is_none_and_said(path: Path) -> None:
    """The embedder failed."""
    make_file(path, FULL, document(1), chunk(5, 1, embedding=bytes(4 * 384)))

    found = one_chunk(path)

    assert (found.vector, found.model) == (None, None)
    assert "the embedder failed" in found.changes[0].original
    assert len(list_refused(documents(path, strict=True))) == 1


@pytest.mark.parametrize(
    ("said", "length", "model"),
    [
        ({}, 384, MINILM),
        ({}, 1536, None),
        ({"embedding_model": None}, 384, MINILM),
        ({"embedding_model": None}, 1536, None),
        ({"embedding_dimensions": 1536}, 1536, None),
        ({"embedding_model": "text-embedding-3-small"}, 1536, "text-embedding-3-small"),
        ({"embedding_model": "BAAI/bge-m3", "embedding_dimensions": 1024}, 1024, "bge-m3"),
    ],
)
def test_a_default_is_no_fact_about_a_vector(
    path: Path, said: dict[str, Any], length: int, model: str | None
) -> None:
    """The default model has 384 dimensions: of another vector nobody knows the model."""
    blob = unit(length=length).tobytes()
    make_file(path, WITH_LINEAGE, document(1), chunk(5, 1, embedding=blob, **said))

    found = one_chunk(path)

    assert found.vector is not None
    assert found.model == model


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"embedding": pickle.dumps(print, 4)}, "calls 'builtins.print'"),
        ({"embedding": pickle.dumps(print, 0)}, "GLOBAL"),
        ({"embedding": unit().tobytes()[:-1]}, "1535 bytes"),
        ({"embedding": bytes(70_000)}, "at most 16000 dimensions"),
        ({"embedding": np.array([np.nan], np.float32).tobytes()}, "NaN"),
        ({"embedding": "[0.1, 0.2]"}, "no BLOB"),
        ({"embedding": unit().tobytes(), "embedding_dimensions": 768}, "are 768"),
    ],
)
def test_a_chunk_whose_vector_is_none_is_list_refused(
    path: Path, values: dict[str, Any], reason: str
) -> None:
    """With its row and the reason."""
    make_file(path, WITH_LINEAGE, document(1), chunk(5, 1, **values))

    ((table, rowid, told),) = list_refused(documents(path))

    assert (table, rowid) == ("chunks", 5)
    assert reason in told


# Files


@pytest.mark.parametrize("mode", ["delete", "truncate", "persist", "memory", "off", "wal"])
@pytest.mark.parametrize("page_size", [512, 65536])
def test_reading_leaves_no_trace(path: Path, mode: str, page_size: int) -> None:
    """In any journal mode and of any page size; in the folder, too."""
    setup = f"PRAGMA page_size = {page_size}; PRAGMA journal_mode = {mode};"
    make_file(path, FULL, document(1), chunk(5, 1), click("5"), setup=setup)
    before = folder_state(path)

    with open_database(path) as database:
        assert folder_state(path) == before
        assert len(list(database.read_documents())) == 1
        assert len(list(database.read_clicks())) == 1
        assert folder_state(path) == before

    assert folder_state(path) == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes anywhere")
def test_a_file_in_a_folder_without_rights_is_read(path: Path) -> None:
    """Written ahead or not."""
    make_file(path, OLDEST, document(1), setup="PRAGMA journal_mode = wal")
    path.parent.chmod(0o500)

    assert one_document(path).id == 1


def test_what_is_only_in_the_wal_is_read(path: Path) -> None:
    """While another process has the file open."""
    make_file(path, OLDEST, document(1), setup="PRAGMA journal_mode = wal")
    insert = "INSERT INTO documents (id, path) VALUES (2, 'b')"
    with another_process(path, f"connection.execute({insert!r})"):
        before = folder_state(path)

        found = documents(path)

        assert path.with_name("docfoundry.db-wal").stat().st_size
        assert folder_state(path) == before
    assert [each.id for each in found if isinstance(each, SQLiteDocument)] == [1, 2]


def test_a_link_leads_to_the_wal_of_the_file(path: Path, tmp_path: Path) -> None:
    """The wal stands beside the file, and not beside the link."""
    make_file(path, OLDEST, setup="PRAGMA journal_mode = wal")
    link = tmp_path / "link.db"
    link.symlink_to(path)
    with another_process(
        path,
        "connection.execute(\"INSERT INTO documents VALUES (2, 'b', NULL, NULL, NULL, NULL)\")",
    ):
        assert one_document(link).id == 2


def test_an_unfinished_transaction_of_another_process_is_not_read(path: Path) -> None:
    """Its journal is rolled back in the copy, and only there."""
    make_file(path, OLDEST, *(document(n, title="x" * 500) for n in range(1, 400)))
    script = (
        "connection.execute('PRAGMA cache_size = 1')\n"
        "connection.execute('PRAGMA cache_spill = 1')\n"
        "connection.execute('BEGIN IMMEDIATE')\n"
        "connection.execute('DELETE FROM documents WHERE id > 5')"
    )
    with another_process(path, script):
        assert path.with_name("docfoundry.db-journal").exists()
        before = folder_state(path)

        assert len(documents(path)) == 399

        assert folder_state(path) == before


def test_a_file_that_stays_locked_is_told_in_time(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With what to do."""
    monkeypatch.setattr(reading, "PATIENCE_SECONDS", 0.3)
    make_file(path, OLDEST, document(1))
    script = "connection.executescript('PRAGMA journal_mode = memory; BEGIN EXCLUSIVE')"
    with another_process(path, script), pytest.raises(ImportFailed, match="another process"):
        documents(path)


def test_a_file_that_changes_while_it_is_copied_is_told(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After some tries."""
    monkeypatch.setattr(reading, "PATIENCE_SECONDS", 0.03)
    make_file(path, OLDEST, document(1), setup="PRAGMA journal_mode = wal")
    copy = reading.shutil.copyfile

    def copy_and_change(source: Path, target: Path) -> None:
        copy(source, target)
        with closing(sqlite3.connect(path)) as connection, connection:
            connection.execute("UPDATE documents SET title = hex(randomblob(2000))")

    monkeypatch.setattr(reading.shutil, "copyfile", copy_and_change)

    with pytest.raises(ImportFailed, match="without a pause"):
        documents(path)


def test_no_copy_is_left(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever happens while it is read."""
    monkeypatch.setattr(reading.tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    make_file(path, OLDEST, document(1), setup="PRAGMA journal_mode = wal")

    def interrupt() -> None:
        with open_database(path):
            assert list((tmp_path / "temporary").iterdir())
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupt()

    assert not list((tmp_path / "temporary").iterdir())


def test_errors_of_the_reader_of_records_stay_its_own(path: Path) -> None:
    """They are not taken for the file's."""
    make_file(path, OLDEST, document(1))

    with pytest.raises(OSError, match="full"), open_database(path):
        raise OSError("full")


def spoil(path: Path, content: bytes) -> Path:
    """Write other bytes in the place of a file."""
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "not an SQLite file"),
        (b"SQLite", "not an SQLite file"),
        (os.urandom(8192), "encrypted"),
        (b"SQLite format 3\0", "cannot be read"),
        (b"SQLite format 3\0" + b"\xff" * 4096, "cannot be read"),
    ],
)
def test_what_is_no_sqlite_file_is_told(path: Path, content: bytes, reason: str) -> None:
    """Encrypted ones look like noise."""
    with pytest.raises(ImportFailed, match=reason):
        documents(spoil(path, content))


def test_a_folder_a_pipe_and_nothing_are_told(path: Path) -> None:
    """None of them is waited for."""
    pipe = path.with_name("pipe.db")
    os.mkfifo(pipe)
    for wrong in (path.parent, pipe, path):
        with pytest.raises(ImportFailed):
            documents(wrong)


@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
def test_a_truncated_file_is_told(path: Path, share: float) -> None:
    """Before the first row."""
    make_file(path, OLDEST, document(1), *(chunk(n, 1, "word " * 200) for n in range(1, 200)))
    content = path.read_bytes()

    with pytest.raises(ImportFailed, match=r"damaged|cannot be read"):
        documents(spoil(path, content[: int(len(content) * share)]))


def test_an_index_that_lacks_rows_is_told(path: Path) -> None:
    """Chunks would be passed over without a word."""
    index = "CREATE INDEX by_document ON chunks (document_id)"
    make_file(path, (*OLDEST, index), document(1), chunk(5, 1), chunk(6, 1))
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("PRAGMA writable_schema = on")
        empty = "CREATE INDEX by_document ON chunks (document_id) WHERE id > 5"
        connection.execute("UPDATE sqlite_master SET sql = ? WHERE name = 'by_document'", (empty,))
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("REINDEX by_document")
        connection.execute("PRAGMA writable_schema = on")
        connection.execute("UPDATE sqlite_master SET sql = ? WHERE name = 'by_document'", (index,))

    with pytest.raises(ImportFailed, match="REINDEX"):
        documents(path)


def test_a_row_that_breaks_a_constraint_of_its_table_is_refused_alone(path: Path) -> None:
    """The file as a whole is read."""
    loose = (*OLDEST[:1], OLDEST[1].replace("text TEXT NOT NULL", "text TEXT"), OLDEST[2])
    make_file(path, loose, document(1), chunk(6, 1))
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("INSERT INTO chunks (id, document_id) VALUES (5, 1)")
        connection.execute("PRAGMA writable_schema = on")
        connection.execute("UPDATE sqlite_master SET sql = ? WHERE name = 'chunks'", (OLDEST[1],))

    assert list_refused(documents(path)) == [("chunks", 5, "its text is empty")]


def test_any_damaged_byte_gives_rows_or_an_error(path: Path) -> None:
    """Never another exception, and never without an end."""
    make_file(
        path, FULL, document(1), *(chunk(n, 1, "word " * 90) for n in range(1, 60)), click("5")
    )
    content = path.read_bytes()
    random = np.random.default_rng(7)

    for _ in range(150):
        damaged = bytearray(content)
        for _ in range(int(random.integers(1, 30))):
            damaged[int(random.integers(len(damaged)))] = int(random.integers(256))
        spoil(path, bytes(damaged))
        try:
            with open_database(path) as database:
                for read in (database.read_documents, database.read_clicks, database.read_sessions):
                    for each in read():
                        assert each
        except ImportFailed:
            pass


@pytest.mark.parametrize(
    "layout",
    [
        ("CREATE TABLE notes (id INTEGER PRIMARY KEY)",),
        ("CREATE TABLE documents (id INTEGER PRIMARY KEY, title TEXT)",),
        ("CREATE TABLE documents (id TEXT, path TEXT)",),
        ("CREATE TABLE documents (id INT PRIMARY KEY, path TEXT)",),
        ("CREATE VIEW documents AS SELECT 1 AS id, 'a' AS path",),
        (
            (
                "CREATE VIEW documents AS WITH RECURSIVE n(id) AS "
                "(SELECT 1 UNION ALL SELECT id + 1 FROM n) SELECT "
                "CAST(id AS TEXT) AS id, 'u' AS url, zeroblob(1e9) AS content FROM n"
            ),
        ),
        (OLDEST[0], "CREATE TABLE chunks (id INTEGER PRIMARY KEY, text TEXT)"),
        (OLDEST[0] + " WITHOUT ROWID",),
    ],
)
def test_an_sqlite_file_of_something_else_is_told(path: Path, layout: tuple[str, ...]) -> None:
    """Views are not looked at: they are programs."""
    make_file(path, layout)

    with pytest.raises(ImportFailed):
        documents(path)


def test_chunks_that_are_a_view_are_not_there(path: Path) -> None:
    """A view may be without an end."""
    endless = "WITH RECURSIVE n(id) AS (SELECT 1 UNION ALL SELECT id + 1 FROM n)"
    view = f"CREATE VIEW chunks AS {endless} SELECT id, 1 AS document_id, 'x' AS text FROM n"  # noqa: S608 - of a test
    make_file(path, (OLDEST[0], view), document(1))

    assert one_document(path).chunks == ()


def test_a_row_that_is_too_large_is_refused_unread(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others are read."""
    monkeypatch.setattr(reading, "MAX_ROW_BYTES", 1024**2)
    make_file(path, OLDEST, document(1), chunk(5, 1, "x" * 1024**2 + "y"), chunk(6, 1))

    found = documents(path)

    assert [each[:2] for each in list_refused(found)] == [("chunks", 5)]
    assert isinstance(found[-1], SQLiteDocument)


def test_a_document_of_too_many_chunks_is_list_refused(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They would be in memory together."""
    monkeypatch.setattr(reading, "MAX_CHUNKS_BYTES", 100)
    rows: list[Row] = [chunk(n, 1, "x" * 40) for n in range(1, 6)]
    make_file(path, OLDEST, document(1), *rows, document(2), chunk(9, 2))

    found = documents(path)

    assert sorted(each[:2] for each in list_refused(found)) == [
        *(("chunks", n) for n in range(1, 6)),
        ("documents", 1),
    ]
    assert [each.id for each in found if isinstance(each, SQLiteDocument)] == [2]


def test_many_rows_take_little_memory_and_time(path: Path) -> None:
    """Documents are read while they are asked for, 3,000 chunks a second and more."""
    blobs = (make_pickle(unit(3), 4), unit(4).tobytes())
    make_file(path, FULL)
    with closing(sqlite3.connect(path)) as connection, connection:
        for n in range(1, 601):
            rows = (chunk(20 * n + m, n, "word " * 100, embedding=blobs[m % 2]) for m in range(10))
            insert_rows(connection, document(n), *rows)
    begun, count = time.monotonic(), 0
    tracemalloc.start()
    with open_database(path) as database:
        for each in database.read_documents():
            assert isinstance(each, SQLiteDocument)
            count += len(each.chunks)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert count == 6000
    assert peak < 4 * 1024**2
    assert time.monotonic() - begun < 10  # tracing takes most of it
