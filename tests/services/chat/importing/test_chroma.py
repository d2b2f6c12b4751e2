"""The legacy store, made and read with ChromaDB's own client."""

from __future__ import annotations

import hashlib
import json
import sqlite3
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from pgcorpus.db.engine import Database
from pgcorpus.services.chat.importing import chroma
from pgcorpus.services.chat.importing.importer import ChatImporter
from pgcorpus.services.importers.report import ImportReport
from tests.factories import axis

chromadb = pytest.importorskip("chromadb")

Make = Callable[..., Path]
TURNS = "**You said**:\nWhat is a price?\n\n**ChatGPT said**:\nNote: what a buyer gives up."


def record(key: str, document: str, **more: Any) -> dict[str, Any]:
    """A record as the legacy system made them."""
    metadata = {
        "id": key,
        "title": f"About {key}",
        "source": "chatgpt",
        "earliest_ts": "1714557600.0",
        "latest_ts": "2024-05-02T10:00:00",
        "message_count": 2,
        "is_chunk": False,
    }
    return {"key": key, "document": document, "metadata": metadata | more}


@pytest.fixture
def store(tmp_path: Path) -> Make:
    """Makes a store of records, whose vectors are of so many dimensions, and gives its folder."""

    def make(*records: dict[str, Any], dimensions: int = 384, **metadata: str) -> Path:
        folder = tmp_path / "legacy"
        settings = chromadb.config.Settings(anonymized_telemetry=False)
        client = chromadb.PersistentClient(str(folder), settings)
        collection = client.create_collection("conversations", metadata=metadata or None)
        collection.add(
            ids=[each["key"] for each in records],
            documents=[each["document"] for each in records],
            metadatas=[each["metadata"] for each in records],
            embeddings=[axis(n, length=dimensions).tolist() for n, _ in enumerate(records)],
        )
        client.close()
        return folder

    return make


def counts(report: ImportReport) -> tuple[int, ...]:
    """Conversations that were added, updated, left unchanged, rejected."""
    return tuple(report.total(name) for name in ("added", "updated", "unchanged", "rejected"))


def messages(database: Database) -> list[tuple[str, str]]:
    """Return role and content of each message, in order."""
    statement = "SELECT role, content FROM messages ORDER BY conversation_id, position"
    with database.engine.connect() as connection:
        return [(row.role, row.content) for row in connection.execute(text(statement))]


def test_a_store_goes_in_turn_by_turn(database: Database, store: Make) -> None:
    """With what its metadata says; a second run changes nothing."""
    folder = store(record("a", TURNS))

    first, second = (ChatImporter(database).run([folder]) for _ in range(2))

    assert (counts(first), counts(second)) == ((1, 0, 0, 0), (0, 0, 1, 0))
    assert messages(database) == [
        ("user", "What is a price?"),
        ("assistant", "Note: what a buyer gives up."),
    ]
    with database.unit_of_work() as work:
        known = work.chat_imports.list_known({("chatgpt", "a")})["chatgpt", "a"]
    assert known.title == "About a"
    assert known.created_at.isoformat() == "2024-05-01T10:00:00+00:00"
    assert str(known.source_updated_at) == "2024-05-02 10:00:00+00:00"


def test_chunks_of_a_conversation_are_put_together(database: Database, store: Make) -> None:
    """In their order, which is not that of the store."""
    folder = store(
        record("a_chunk_10", "user: three", id="a", is_chunk=True),
        record("a_chunk_2", "assistant: two", id="a", is_chunk=True),
        record("a_chunk_1", "user: one", id="a_chunk_1", is_chunk=True),
    )

    report = ChatImporter(database).run([folder])

    assert counts(report) == (1, 0, 0, 0)
    assert messages(database) == [("user", "one"), ("assistant", "two"), ("user", "three")]


def test_a_text_without_turns_is_one_message(database: Database, store: Make) -> None:
    """The user's; that nobody said so, nor when, is in the history."""
    ChatImporter(database).run([store(record("a", "just a note", source=""))])

    assert messages(database) == [("user", "just a note")]
    assert [each.rule for each in ChatImporter(database).history()] == ["default", "role"]


def test_a_vector_is_kept_where_its_text_is_a_message(database: Database, store: Make) -> None:
    """Of Chroma's default model, with the hash of the text; others are counted with the reason."""
    folder = store(record("a", TURNS), record("b", "just a note"))

    report = ChatImporter(database).run([folder])

    assert report.embedded == 1
    assert dict(report.left_out) == {"their text is not that of exactly one message": 1}
    statement = "SELECT model_name, content_hash FROM message_embeddings"
    with database.engine.connect() as connection:
        stored = [tuple(row) for row in connection.execute(text(statement))]
    assert stored == [("all-MiniLM-L6-v2", hashlib.sha256(b"just a note").digest())]


@pytest.mark.parametrize(
    ("model", "made", "reason"),
    [
        (None, {"dimensions": 8}, "nothing says which model made vectors of 8 dimensions"),
        (None, {"embedding_model": "acme/unheard-of"}, "unheard-of is not registered"),
        ("bge-m3", {}, "they have 384 dimensions, and bge-m3 has 1024"),
    ],
)
def test_vectors_of_another_model_are_left_out(
    database: Database,
    store: Make,
    model: str | None,
    made: dict[str, Any],
    reason: str,
) -> None:
    """The conversations go in without them."""
    report = ChatImporter(database, embeddings_model=model).run(
        [store(record("a", "a note"), **made)]
    )

    assert counts(report) == (1, 0, 0, 0)
    assert report.embedded == 0
    assert [reason in said for said in report.left_out] == [True]


def test_the_store_is_not_touched(database: Database, store: Make) -> None:
    """Chroma writes into what it opens: not into the original."""
    folder = store(record("a", TURNS))

    def content() -> dict[Path, bytes]:
        return {each: each.read_bytes() for each in folder.rglob("*") if each.is_file()}

    before = content()
    ChatImporter(database).run([folder])

    assert content() == before


def test_the_store_takes_nothing_from_an_export(
    database: Database, store: Make, tmp_path: Path
) -> None:
    """A provider's own export is richer; the history says what was left alone."""
    export = tmp_path / "conversations.json"
    said = {"uuid": "m", "sender": "human", "text": "whole"}
    export.write_text(json.dumps([{"uuid": "a", "name": "A", "chat_messages": [said]}]))
    ChatImporter(database).run([export])

    report = ChatImporter(database).run([store(record("a", TURNS, source="claude"))])

    assert counts(report) == (0, 0, 1, 0)
    assert messages(database) == [("user", "whole")]
    assert [each.rule for each in ChatImporter(database).history()] == ["kept", "default"]


@pytest.mark.parametrize("index", ["first", "", "9" * 5000, 1.5])
def test_a_chunk_without_a_number_stops_nobody(
    database: Database, store: Make, index: str | float
) -> None:
    """Whatever stands in its place; nor does a key that ends in more digits than Python reads."""
    folder = store(
        record("a", "user: one", chunk_index=index),
        record("b-" + "7" * 5000, "user: two", id="b"),
    )

    report = ChatImporter(database).run([folder])

    assert (counts(report), report.failed) == ((2, 0, 0, 0), False)


def test_a_record_that_the_client_stumbles_over_is_rejected_alone(
    database: Database, store: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other conversations of its page go in."""
    read = chroma._elements

    def stumble(collection: Any, batch: Any, offset: int) -> Any:
        if any("bad" in keys for keys in batch):
            raise ValueError("no such segment")
        return read(collection, batch, offset)

    monkeypatch.setattr(chroma, "_elements", stumble)
    folder = store(*(record(key, "user: one") for key in ("a", "bad", "c")))

    report = ChatImporter(database).run([folder])

    assert counts(report) == (2, 0, 0, 1)
    assert "no such segment" in report.rejects[0].reason


def test_a_page_without_vectors_is_read_for_its_texts(
    database: Database, store: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As old clients left some; they are made again."""
    get = chromadb.Collection.get

    def without(self: Any, **asked: Any) -> Any:
        return get(self, **asked) | {"embeddings": None}

    monkeypatch.setattr(chromadb.Collection, "get", without)

    report = ChatImporter(database).run([store(record("a", TURNS))])

    assert (counts(report), report.embedded) == ((1, 0, 0, 0), 0)


def test_a_vector_of_a_single_turn_is_kept(database: Database, store: Make) -> None:
    """A speaker's name at the beginning of the document does not make it another text."""
    report = ChatImporter(database).run(
        [
            store(
                record("a", "**You said**:\nWhat is a price? "), record("b", "user: a price\nai: 5")
            )
        ]
    )

    assert report.embedded == 1
    statement = "SELECT content_hash FROM message_embeddings"
    with database.engine.connect() as connection:
        stored = connection.scalars(text(statement)).all()
    assert stored == [hashlib.sha256(b"What is a price?").digest()]


def test_a_store_is_left_alone_where_another_format_is_asked_for(
    database: Database, store: Make
) -> None:
    """As any other file of other conversations."""
    folder = store(record("a", TURNS))

    report = ChatImporter(database, format="claude").run([folder])

    assert counts(report) == (0, 0, 0, 0)
    assert [each.file for each in report.files] == [str(folder)]


def test_a_refused_conversation_of_a_store_can_be_tried_again(
    database: Database, store: Make
) -> None:
    """From what was kept of it, without the store."""
    folder = store(record("a", TURNS, latest_ts="not a time"))
    strict = ChatImporter(database, strict=True).run([folder])

    again = ChatImporter(database).retry()

    assert (counts(strict), counts(again)) == ((0, 0, 0, 1), (1, 0, 0, 0))


def test_another_sqlite_file_is_no_store(database: Database, tmp_path: Path) -> None:
    """It is an error by name, and skipped in a folder."""
    other = tmp_path / "other.sqlite3"
    with closing(sqlite3.connect(other)) as connection:
        connection.execute("CREATE TABLE notes (text)")

    report = ChatImporter(database).run([other])

    assert "not of a ChromaDB store" in (report.files[0].error or "")


def test_without_the_client_the_error_says_how_to_install_it(
    database: Database, store: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is an extra."""
    folder = store(record("a", TURNS))
    monkeypatch.setitem(sys.modules, "chromadb", None)

    report = ChatImporter(database).run([folder])

    assert "pip install 'pgcorpus[chroma]'" in (report.files[0].error or "")


@pytest.mark.parametrize(
    ("document", "turns"),
    [
        ("**You said:** a\n**Claude said:** b", [("user", "a"), ("assistant", "b")]),
        ("User: a\nAI: b\nHuman: c", [("user", "a"), ("assistant", "b"), ("user", "c")]),
        ("intro\nuser: a", [("user", "intro"), ("user", "a")]),
        ("user said: a\nsystem: no turn", [("user", "a\nsystem: no turn")]),
        ("user: \nassistant: b", [("assistant", "b")]),
        ("The user: is not at the beginning", [("user", "The user: is not at the beginning")]),
    ],
)
def test_turns_begin_with_who_speaks(document: str, turns: list[tuple[str, str]]) -> None:
    """At the beginning of a line, in one of two ways; never both in one text."""
    raw = {"collection": "c", "metadata": {"id": "a"}, "documents": [document]}

    messages = chroma.read(raw).record.messages

    assert [(each.role, each.content) for each in messages] == turns
