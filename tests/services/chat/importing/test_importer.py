"""Conversations into the archive: again and again, and never twice."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
import zipfile
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from pgcorpus.db.engine import Database
from pgcorpus.db.errors import UnknownModel
from pgcorpus.db.models.imports import ImportTransformation
from pgcorpus.services.chat.importing.detect import Format
from pgcorpus.services.chat.importing.importer import ChatImporter
from pgcorpus.services.chat.importing.rules import Parsed
from pgcorpus.services.importers.report import ImportReport
from tests.command import PGCORPUS
from tests.factories import exports
from tests.pooler import variables_of

Write = Callable[..., Path]


def conversation(
    uuid: str = "c1",
    *said: str,
    updated_at: str | None = "2024-05-02T10:00:00Z",
    **more: Any,
) -> dict[str, Any]:
    """A conversation in Claude's format, whose messages are ``m0``, ``m1``, ..."""
    return {
        "uuid": uuid,
        "name": f"About {uuid}",
        "created_at": "2024-05-01T10:00:00Z",
        "updated_at": updated_at,
        "chat_messages": [
            {
                "uuid": f"m{n}",
                "sender": "assistant" if n % 2 else "human",
                "text": each,
                "created_at": f"2024-05-01T10:0{n % 10}:00Z",
            }
            for n, each in enumerate(said or ("What is a price?", "What a buyer gives up."))
        ],
    } | more


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes an export, and gives its path."""

    def write(*conversations: Any, name: str = "conversations.json") -> Path:
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps(list(conversations)))
        return file

    return write


def counts(report: ImportReport) -> tuple[int, ...]:
    """Conversations that were added, updated, left unchanged, rejected."""
    return tuple(report.total(name) for name in ("added", "updated", "unchanged", "rejected"))


def rows(database: Database, statement: str) -> list[tuple[Any, ...]]:
    """Return the rows of a statement of the test's own."""
    with database.engine.connect() as connection:
        return [tuple(row) for row in connection.execute(text(statement))]


MESSAGES = "SELECT content, branch, position, version FROM messages ORDER BY branch, position"


def changes(database: Database, **narrowed: str) -> list[ImportTransformation]:
    """The history, the oldest first."""
    return list(reversed(ChatImporter(database).history(**narrowed)))


@pytest.mark.parametrize("make", [exports.chatgpt, exports.claude, exports.openwebui])
def test_an_export_goes_in_whole_and_once(
    database: Database, write: Write, make: Callable[..., Any]
) -> None:
    """Every provider's: conversations and messages are counted, and again nothing is new."""
    file = write(*make(5, turns=6, branches=1))

    first = ChatImporter(database).run([file])
    before = rows(database, "SELECT m::text FROM messages m ORDER BY 1")
    second = ChatImporter(database).run([file])

    assert not first.failed
    assert counts(first) == (5, 0, 0, 0)
    assert first.messages == len(before) > 5 * 6
    assert counts(second) == (0, 0, 5, 0)
    assert second.messages == 0
    assert rows(database, "SELECT m::text FROM messages m ORDER BY 1") == before
    assert rows(database, "SELECT count(*) FROM messages WHERE branch > 0") != [(0,)]


def test_the_report_has_its_fixed_shape(database: Database, write: Write) -> None:
    """It is that of knowledge, with messages and skipped files beside."""
    file = write(
        conversation("a"), {"uuid": "b", "chat_messages": 7}, {"uuid": "c", "chat_messages": []}
    )

    report = ChatImporter(database).run([file])

    assert report.as_json() == {
        "files": [
            {
                "file": str(file),
                "added": 1,
                "updated": 0,
                "unchanged": 0,
                "rejected": 1,
                "transformed": 0,
                "error": None,
            }
        ],
        "added": 1,
        "updated": 0,
        "unchanged": 0,
        "rejected": 1,
        "transformed": 0,
        "rejects": [
            {
                "file": str(file),
                "locator": "$[1]",
                "reason": "its chat_messages are not a list",
            }
        ],
        "messages": 2,
        "skipped": [
            {"file": str(file), "reason": "it has no messages with text", "locator": "$[2]"}
        ],
    }


def test_conversations_in_which_nothing_is_said_are_skipped(
    database: Database, write: Write
) -> None:
    """Every provider's exports have some: they are told, and no run fails for them."""
    silent = {"uuid": "s", "name": "", "chat_messages": [{"uuid": "m", "text": " "}]}
    (chatgpt,) = exports.chatgpt(1)
    file = write(silent, chatgpt | {"mapping": {}}, name="silent.json")

    reports = [ChatImporter(database).run([file]) for _ in range(2)]

    assert [report.failed for report in reports] == [False, False]
    assert [each.locator for each in reports[0].skipped] == ["$[0]", "$[1]"]
    assert counts(reports[0]) == (0, 0, 0, 0)
    assert rows(database, "SELECT count(*) FROM conversations") == [(0,)]


def test_a_conversation_whose_messages_cannot_be_read_is_not_skipped(
    database: Database, write: Write
) -> None:
    """Something may have been said in them: it is kept with the rejects."""
    (chatgpt,) = exports.chatgpt(1)

    report = ChatImporter(database).run([write(chatgpt | {"mapping": {"m": "said"}})])

    assert counts(report) == (0, 0, 0, 1)


def test_a_conversation_is_as_new_as_its_source_says(database: Database, write: Write) -> None:
    """A list of what changed last does not begin with what was imported last; a change here counts.

    Without a time of its source, it is as new as its import.
    """
    timeless = conversation("c2", updated_at=None)
    for message in timeless["chat_messages"]:
        del message["created_at"]
    ChatImporter(database).run([write(conversation("c1"), timeless)])

    assert rows(
        database,
        "SELECT source_id, updated_at = source_updated_at FROM conversations ORDER BY updated_at",
    ) == [("c1", True), ("c2", None)]
    ChatImporter(database).run([write(conversation("c1", "other"))])
    assert rows(database, "SELECT source_id FROM conversations ORDER BY updated_at") == [
        ("c2",), ("c1",),
    ]  # fmt: skip


def test_every_new_message_has_a_job(database: Database, write: Write) -> None:
    """The outbox sees bulk loads, too; what is unchanged is not embedded again."""
    ChatImporter(database).run([write(conversation("c1", "one", "two"))])
    jobs = "SELECT count(*) FROM jobs WHERE kind = 'embed'"
    assert rows(database, jobs) == [(2,)]

    with database.engine.begin() as connection:
        connection.execute(text("DELETE FROM jobs"))
    ChatImporter(database).run([write(conversation("c1", "one", "two", "three"))])

    assert rows(database, jobs) == [(1,)]


def test_a_changed_conversation_is_changed_where_it_differs(
    database: Database, write: Write
) -> None:
    """Same messages keep their rows and versions; what was there before is in the history."""
    ChatImporter(database).run([write(conversation("c1", "one", "two", "three", "four"))])
    before = dict(rows(database, "SELECT content, xmin::text FROM messages"))
    newer = conversation("c1", "one", "TWO", "three", updated_at="2024-06-01T00:00:00Z")

    report = ChatImporter(database).run([write(newer)])

    assert counts(report) == (0, 1, 0, 0)
    assert report.messages == 1
    assert rows(database, MESSAGES) == [("one", 0, 0, 1), ("TWO", 0, 1, 2), ("three", 0, 2, 1)]
    after = dict(rows(database, "SELECT content, xmin::text FROM messages"))
    assert (after["one"], after["three"]) == (before["one"], before["three"])
    gone = {
        "role": "assistant", "content": "four", "created_at": "2024-05-01T10:03:00+00:00",
        "metadata": {"parent_id": "m2"},
    }  # fmt: skip
    assert [(each.field, each.original, each.stored, each.rule) for each in changes(database)] == [
        ("source_updated_at", "2024-05-02T10:00:00+00:00", "2024-06-01T00:00:00+00:00", "replaced"),
        ("messages.m1.content", "two", "TWO", "replaced"),
        ("messages.m3", gone, None, "replaced"),
    ]


def test_a_newer_export_records_every_value_that_it_changes(
    database: Database, write: Write
) -> None:
    """Times, roles and details as well as titles and texts; what it does not say stays."""
    older = conversation("c1", "one", "two")
    newer = conversation("c1", "one", "two", updated_at="2024-06-01T00:00:00Z")
    newer["created_at"] = "2023-01-01T00:00:00Z"
    newer["chat_messages"][0] |= {"sender": "assistant", "created_at": "2023-01-02T00:00:00Z"}
    newer["chat_messages"][1]["model"] = "newer"
    del newer["chat_messages"][1]["created_at"]
    ChatImporter(database).run([write(older)])
    times = [older["created_at"], older["updated_at"], older["chat_messages"][0]["created_at"]]
    began, updated, said = (datetime.fromisoformat(each).isoformat() for each in times)

    ChatImporter(database).run([write(newer)])

    assert {each.field: (each.original, each.stored) for each in changes(database)} == {
        "created_at": (began, "2023-01-01T00:00:00+00:00"),
        "source_updated_at": (updated, "2024-06-01T00:00:00+00:00"),
        "messages.m0.role": ("user", "assistant"),
        "messages.m0.created_at": (said, "2023-01-02T00:00:00+00:00"),
        "messages.m1.metadata": ({"parent_id": "m0"}, {"model": "newer", "parent_id": "m0"}),
    }


@pytest.mark.parametrize("begins", [True, False])
def test_a_message_without_a_time_is_recorded_with_what_it_got(
    database: Database, write: Write, begins: bool
) -> None:
    """The beginning of its conversation, or the time of the import; once."""
    given = conversation("c1", "one", "two")
    for each in (*given["chat_messages"], *(() if begins else (given,))):
        for name in ("created_at", "updated_at"):
            each.pop(name, None)

    report = ChatImporter(database).run([write(given)])
    ChatImporter(database).run([write(given | {"name": "Renamed"})])

    stored = dict(rows(database, "SELECT metadata ->> 'source_id', created_at FROM messages"))
    told = [each for each in changes(database) if each.rule == "default"]
    assert report.total("transformed") == 1
    assert {each.field: each.stored for each in told} == {
        f"messages.{key}.created_at": moment.astimezone(UTC).isoformat()
        for key, moment in stored.items()
    }
    assert [each.original for each in told] == [None, None]


def test_messages_change_places(database: Database, write: Write) -> None:
    """Two that swap, and one that comes between, never collide."""
    first = conversation("c1", "one", "two", "three")
    ChatImporter(database).run([write(first)])
    moved = conversation("c1", updated_at="2024-06-01T00:00:00Z")
    one, two, three = first["chat_messages"]
    new = {"uuid": "new", "sender": "human", "text": "new"}
    moved["chat_messages"] = [two, one, new, three]

    ChatImporter(database).run([write(moved)])

    assert rows(database, MESSAGES) == [
        ("two", 0, 0, 1), ("one", 0, 1, 1), ("new", 0, 2, 1), ("three", 0, 3, 1),
    ]  # fmt: skip


def test_what_was_written_here_stays_behind_what_comes(database: Database, write: Write) -> None:
    """A message that no export knows is not the export's to delete."""
    ChatImporter(database).run([write(conversation("c1", "one", "two"))])
    ((conversation_id,),) = rows(database, "SELECT id FROM conversations")
    with database.unit_of_work() as work:
        work.chat.append(conversation_id, role="user", content="said here")
        work.commit()
    newer = conversation("c1", "one", "two", "three", updated_at="2024-06-01T00:00:00Z")

    ChatImporter(database).run([write(newer)])
    shorter = conversation("c1", "one", updated_at="2024-07-01T00:00:00Z")
    grown = rows(database, MESSAGES)
    ChatImporter(database).run([write(shorter)])

    assert [content for content, *_ in grown] == ["one", "two", "three", "said here"]
    assert rows(database, MESSAGES) == [("one", 0, 0, 1), ("said here", 0, 1, 1)]


def test_what_was_saved_here_stays_saved(database: Database, write: Write) -> None:
    """Whatever the export says of it."""
    ChatImporter(database).run([write(conversation("c1", "one"))])
    with database.engine.begin() as connection:
        connection.execute(text("UPDATE conversations SET is_saved = true"))

    ChatImporter(database).run(
        [write(conversation("c1", "two", updated_at="2024-06-01T00:00:00Z"))]
    )

    assert rows(database, "SELECT is_saved FROM conversations") == [(True,)]


def test_an_older_export_takes_nothing_back(database: Database, write: Write) -> None:
    """It is unchanged, and the history says why; once, however often it comes."""
    ChatImporter(database).run([write(conversation("c1", "one", "two"))])
    older = write(conversation("c1", "one", updated_at="2024-05-01T10:00:00Z"), name="older.json")

    reports = [ChatImporter(database).run([older]) for _ in range(2)]

    assert [counts(report) for report in reports] == [(0, 0, 1, 0)] * 2
    assert len(rows(database, MESSAGES)) == 2
    assert [(each.field, each.rule) for each in changes(database)] == [
        ("source_updated_at", "older")
    ]


def test_one_identifier_twice_in_a_run_is_decided_by_time(database: Database, write: Write) -> None:
    """The newer wins in any order; neither newer, the second is rejected, run after run."""
    newer = conversation("c1", "new", updated_at="2024-06-01T00:00:00Z")
    file = write(newer, conversation("c1", "old"), conversation("c2", "x"), conversation("c2", "y"))

    reports = [ChatImporter(database).run([file]) for _ in range(2)]

    assert counts(reports[0]) == (2, 0, 1, 1)
    assert counts(reports[1]) == (0, 0, 3, 1)
    assert "stands at" in reports[0].rejects[0].reason
    assert sorted(content for content, *_ in rows(database, MESSAGES)) == ["new", "x"]


def test_a_retry_does_not_decide_what_the_import_refused_to(
    database: Database, write: Write
) -> None:
    """Neither is newer, then or later; one whose rival is gone by then goes in."""
    file = write(
        *(conversation(*said) for said in (("c1", "x"), ("c1", "y"), ("c2", "x"), ("c2", "y")))
    )
    ChatImporter(database).run([file])
    with database.engine.begin() as connection:
        connection.execute(text("DELETE FROM conversations WHERE source_id = 'c2'"))

    reports = [ChatImporter(database).retry() for _ in range(2)]

    assert [counts(report) for report in reports] == [(1, 0, 0, 1), (0, 0, 0, 1)]
    assert reports[0].rejects[0].reason == reports[1].rejects[0].reason
    assert sorted(content for content, *_ in rows(database, MESSAGES)) == ["x", "y"]


def test_one_bad_conversation_does_not_stop_the_others(database: Database, write: Write) -> None:
    """Refused by its reader, or by the database alone: it is kept, and can be tried again."""
    with database.engine.begin() as connection:
        connection.execute(
            text("ALTER TABLE messages ADD CONSTRAINT no_x CHECK (content <> 'forbidden')")
        )
    file = write(
        *(conversation(f"c{n}") for n in range(20)),
        conversation("bad", "fine", "forbidden"),
        {"uuid": "none", "chat_messages": "oops"},
        *(conversation(f"d{n}") for n in range(20)),
    )

    dry = ChatImporter(database, dry_run=True).run([file])
    report = ChatImporter(database).run([file])

    assert dry.as_json() == report.as_json()
    assert counts(report) == (40, 0, 0, 2)
    assert [each.locator for each in report.rejects] == ["$[20]", "$[21]"]
    assert "no_x" in report.rejects[0].reason
    assert rows(database, "SELECT count(*) FROM conversations WHERE source_id = 'bad'") == [(0,)]

    with database.engine.begin() as connection:
        connection.execute(text("ALTER TABLE messages DROP CONSTRAINT no_x"))
    again = ChatImporter(database).retry()

    assert counts(again) == (1, 0, 0, 1)
    with database.unit_of_work() as work:
        assert [each.locator for each in work.imports.list_rejects("chat")] == ["$[21]"]


def test_a_conflict_with_another_transaction_is_tried_again(
    database: Database, write: Write
) -> None:
    """Deadlocks end one of two transactions, again and again; nothing is lost but time."""
    with database.engine.begin() as connection:
        connection.execute(text("CREATE SEQUENCE attempts"))
        connection.execute(
            text("""
                CREATE FUNCTION conflict_once() RETURNS trigger LANGUAGE plpgsql AS $$
                BEGIN
                    IF nextval('attempts') < 4 THEN
                        RAISE EXCEPTION 'another was here' USING ERRCODE = 'deadlock_detected';
                    END IF;
                    RETURN NEW;
                END $$
            """)
        )
        connection.execute(
            text(
                "CREATE TRIGGER conflict_once BEFORE INSERT ON conversations"
                " FOR EACH ROW EXECUTE FUNCTION conflict_once()"
            )
        )

    report = ChatImporter(database).run([write(conversation("c1"), conversation("c2"))])

    assert counts(report) == (2, 0, 0, 0)


def test_what_a_reader_stumbles_over_is_rejected_alone(
    database: Database, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fault of ours in reading one conversation is no reason to lose the others."""

    def stumble(raw: dict[str, Any], *, strict: bool = False) -> Parsed:
        raise KeyError(raw["uuid"])

    monkeypatch.setattr(
        "pgcorpus.services.chat.importing.candidates.READERS",
        {"claude": Format(stumble, lambda _raw: True, (b'"chat_messages"',))},
    )

    report = ChatImporter(database).run([write(conversation("c1"))])

    assert counts(report) == (0, 0, 0, 1)
    assert "KeyError" in report.rejects[0].reason


def test_strict_rejects_what_would_be_changed(database: Database, write: Write) -> None:
    """An unknown sender, bytes that are not UTF-8."""
    strange = conversation("c1")
    strange["chat_messages"][0]["sender"] = "martian"
    file = write(strange, conversation("c2", "caf?"), conversation("c3"))
    file.write_bytes(file.read_bytes().replace(b"caf?", b"caf\xe9"))

    report = ChatImporter(database, strict=True).run([file])

    assert counts(report) == (1, 0, 0, 2)
    assert "martian" in report.rejects[0].reason
    assert "UTF-8" in report.rejects[1].reason


def test_bytes_that_are_not_utf8_are_replaced_and_told(database: Database, write: Write) -> None:
    """The history has the offset of the first in the file, and how many there were."""
    file = write(conversation("c1"), conversation("c2", "caf? na?ve"))
    file.write_bytes(
        content := file.read_bytes().replace(b"?ve", b"\xefve").replace(b"caf?", b"caf\xe9")
    )

    report = ChatImporter(database).run([file])

    assert counts(report) == (2, 0, 0, 0)
    (told,) = changes(database)
    assert (told.item, told.rule) == ("c2", "encoding")
    assert told.original == {"offset": content.index(b"\xe9"), "count": 2}
    assert rows(database, "SELECT content FROM messages WHERE content LIKE 'caf%'") == [
        ("caf\ufffd na\ufffdve",)
    ]


def test_a_dry_run_reports_the_same_and_writes_nothing(database: Database, write: Write) -> None:
    """Rejects, changes and all; nothing is left, not even the run."""
    file = write(conversation("c1"), {"uuid": "none", "chat_messages": []}, conversation("c1", "x"))

    dry = ChatImporter(database, dry_run=True).run([file])
    left = rows(
        database,
        "SELECT (SELECT count(*) FROM conversations), (SELECT count(*) FROM import_runs)",
    )
    real = ChatImporter(database).run([file])

    assert dry.as_json() == real.as_json()
    assert left == [(0, 0)]


def test_the_language_of_each_message_is_found(database: Database, write: Write) -> None:
    """A long message has its own; a short one, that of its conversation."""
    german = "Der Preis ist das, was ein Käufer für eine Ware oder Leistung bezahlen muss. " * 5
    english = "The price is what a buyer has to give for what a seller has to offer. " * 5
    file = write(conversation("c1", german, english, "ok", german))

    ChatImporter(database, language="auto").run([file])

    found = rows(database, "SELECT language::text FROM messages ORDER BY position")
    assert found == [("german",), ("english",), ("german",), ("german",)]


def test_only_the_format_asked_for_is_taken(database: Database, write: Write) -> None:
    """Conversations of another are rejected; a file of nothing else is an error."""
    (chatgpt,) = exports.chatgpt(1)
    mixed, other = write(conversation("c1"), chatgpt), write(chatgpt, name="other.json")

    report = ChatImporter(database, format="claude").run([mixed, other])

    assert counts(report) == (1, 0, 0, 1)
    assert [bool(file.error) for file in report.files] == [False, True]


def test_an_unknown_model_is_refused_before_anything_is_written(
    database: Database, write: Write
) -> None:
    """A typing error costs nothing."""
    with pytest.raises(UnknownModel):
        ChatImporter(database, embeddings_model="nope").run([write(conversation("c1"))])

    assert rows(database, "SELECT count(*) FROM import_runs") == [(0,)]


def test_stopping_leaves_whole_conversations_and_the_next_run_goes_on(
    database: Database, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C after the second batch."""
    monkeypatch.setattr("pgcorpus.services.chat.importing.candidates.BATCH_MESSAGES", 10)
    file = write(*exports.claude(20, turns=4))

    def interrupt(done: int, total: int) -> None:
        if done > total / 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ChatImporter(database).run([file], interrupt)
    kept = rows(database, "SELECT count(*) FROM messages GROUP BY conversation_id")
    report = ChatImporter(database).run([file])

    assert 0 < len(kept) < 20
    assert set(kept) == {(4,)}
    assert counts(report) == (20 - len(kept), 0, len(kept), 0)


def test_a_killed_import_is_finished_by_the_next(database: Database, write: Write) -> None:
    """Kill -9 in the middle: what is there is whole, and nothing is there twice."""
    file = write(*exports.chatgpt(400, turns=20))
    environment = os.environ | variables_of(database.settings)
    with subprocess.Popen(
        [PGCORPUS, "import", "chat", file], env=environment, stderr=subprocess.DEVNULL
    ) as process:
        while process.poll() is None and not rows(database, "SELECT FROM messages LIMIT 1"):
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    kept = rows(database, "SELECT count(*) FROM messages GROUP BY conversation_id")

    report = ChatImporter(database).run([file])

    assert 0 < len(kept) < 400
    assert len({number for (number,) in kept}) == 1
    assert counts(report) == (400 - len(kept), 0, len(kept), 0)


def test_two_imports_of_one_file_at_once_add_it_once(database: Database, write: Write) -> None:
    """They take turns batch by batch; every conversation is added by one of them."""
    file = write(*exports.chatgpt(200, turns=20))
    environment = os.environ | variables_of(database.settings)
    with subprocess.Popen(
        [PGCORPUS, "import", "chat", file, "--json"],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as process:
        here = ChatImporter(database).run([file])
        said, _ = process.communicate()
    there = json.loads(said)

    assert process.returncode == 0
    assert here.total("added") + there["added"] == 200
    assert here.total("unchanged") + there["unchanged"] == 200
    assert not here.failed


@pytest.mark.parametrize("packed", [False, True])
def test_progress_is_told_in_bytes_and_ends_at_its_total(
    database: Database, write: Write, packed: bool
) -> None:
    """It never runs backwards, through a file or through the members of a zip."""
    file = write(*exports.claude(5))
    if packed:
        with zipfile.ZipFile(file.with_suffix(".zip"), "w") as archive:
            archive.write(file, "conversations.json")
            archive.writestr("cat.png", b"\x89PNG")
        file = file.with_suffix(".zip")
    told: list[tuple[int, int]] = []

    ChatImporter(database).run([file], lambda *each: told.append(each))

    assert told == sorted(told)
    assert told[-1] == (file.stat().st_size,) * 2


def test_a_large_import_renews_the_statistics(database: Database, write: Write) -> None:
    """The ranking of words reads them."""
    ChatImporter(database).run([write(*exports.claude(2))])

    analyzed = "SELECT reltuples > 0 FROM pg_class WHERE relname = 'messages'"
    assert rows(database, analyzed) == [(True,)]
