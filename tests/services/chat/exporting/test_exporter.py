"""Conversations out of the archive: nothing is lost, mangled or guessed."""

from __future__ import annotations

import json
import os
import subprocess
from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgcorpus import ChatExporter, EmbeddingService
from pgcorpus.db.engine import Database
from pgcorpus.db.errors import InvalidReference, InvalidValue, NotFound
from pgcorpus.db.models.chat import Conversation, Message
from pgcorpus.services.chat.exporting.exporter import FORMATS
from pgcorpus.services.chat.exporting.openwebui import as_openwebui
from pgcorpus.services.chat.exporting.tree import turns_before
from pgcorpus.services.chat.importing.openwebui import read
from tests.command import PGCORPUS
from tests.pooler import variables_of
from tests.services.chat.archive import (
    ANSWER,
    BEGAN,
    LEFT_OPEN,
    QUESTION,
    TURNS,
    conversation_key,
    fill,
    turn_key,
)


@pytest.fixture
def archive(database: Database) -> Database:
    """The small archive."""
    fill(database)
    return database


@pytest.fixture
def exporter(archive: Database) -> ChatExporter:
    """Its exporter."""
    return ChatExporter(archive)


def test_a_conversation_reads_as_markdown(exporter: ChatExporter) -> None:
    """Title, what is known, the turns with who and when; then what was abandoned, and where."""
    lines = exporter.export(str(conversation_key(1))).text.splitlines()

    assert lines[0] == '# Pricing: a *premium* offer/with "quotes"'
    assert "- Source: `chatgpt:6797-price:1`" in lines
    assert "- Began: 2025-01-15T14:30:22Z" in lines
    assert "- Messages: 6" in lines
    assert "- Messages of abandoned branches: 5" in lines
    assert "- Saved: yes" in lines
    headings = [line for line in lines if line.startswith("##") and line[-1] != "?"]
    assert headings == [
        "## 1. System (2025-01-15T14:31:22Z)",
        "## 2. User (2025-01-15T14:32:22Z)",
        "## 3. ChatGPT (2025-01-15T14:33:22Z)",
        "## 4. Tool (2025-01-15T14:34:22Z)",
        "## 5. ChatGPT (2025-01-15T14:35:22Z)",
        "## 6. User (2025-01-15T14:36:22Z)",
        "## Abandoned branches",
        "### Branch 1, after turn 3",
        "#### 4. User (2025-01-15T14:37:22Z)",
        "#### 5. ChatGPT (2025-01-15T14:38:22Z)",
        "### Branch 2, after turn 2",
        "#### 3. ChatGPT (2025-01-15T14:39:22Z)",
        "#### 4. User (2025-01-15T14:40:22Z)",
        "### Branch 3, after turn 3 of branch 2",
        "#### 4. User (2025-01-15T14:41:22Z)",
    ]


def test_what_was_said_stands_as_it_is(exporter: ChatExporter) -> None:
    """Its own headings, lists and blocks of code, to the character."""
    text = exporter.export("chatgpt:6797-price:1").text

    assert f"\n\n{QUESTION}\n\n" in text
    assert f"\n\n{ANSWER}\n\n" in text


def test_a_block_of_code_left_open_does_not_swallow_what_follows(exporter: ChatExporter) -> None:
    """It is closed after the turn, by the fence it was opened with."""
    text = exporter.export(str(conversation_key(1))).text

    assert f"\n\n{LEFT_OPEN}\n~~~~\n\n### Branch 2" in text


def test_a_conversation_without_messages_has_a_title_nevertheless(exporter: ChatExporter) -> None:
    """And no empty headings."""
    text = exporter.export(str(conversation_key(3))).text

    assert text.startswith("# Untitled conversation\n\n- Id: ")
    assert "- Messages: 0\n" in text
    assert "##" not in text


def test_json_holds_all_that_is_stored(exporter: ChatExporter, archive: Database) -> None:
    """Every column but what the database computes, times to the microsecond in UTC."""
    exported = json.loads(exporter.export(str(conversation_key(1)), "json").text)

    with archive.unit_of_work() as work:
        conversation = work.chat.get(conversation_key(1))
        messages = work.messages.list_messages(conversation.id, branch=None)
    columns = {each.name for each in conversation.__table__.columns}
    assert exported["conversation"].keys() == columns
    assert exported["conversation"]["created_at"] == "2025-01-15T14:30:22.123456Z"
    assert exported["conversation"]["record_hash"] == "0102"
    of_message = {each.name for each in Message.__table__.columns}
    for shown, stored in zip(exported["messages"], messages, strict=True):
        assert shown.keys() == of_message - {"conversation_id", "message_search"}
        assert UUID(shown["id"]) == stored.id
        assert (shown["branch"], shown["position"]) == (stored.branch, stored.position)
        assert (shown["role"], shown["content"]) == (stored.role, stored.content)
        assert (shown["metadata"], shown["version"]) == (stored.details, stored.version)
        assert datetime.fromisoformat(shown["created_at"]) == stored.created_at
        assert shown["language"] == "english"


def test_openwebui_gets_the_tree(exporter: ChatExporter) -> None:
    """Each turn with the one before it and those after it; the main branch leads to the current."""
    (exported,) = json.loads(exporter.export(str(conversation_key(1)), "openwebui").text)

    history = exported["chat"]["history"]
    nodes: dict[str, dict[str, Any]] = history["messages"]
    before = {1: None, 2: 1, 3: 2, 4: 3, 5: 4, 6: 5, 7: 3, 8: 7, 9: 2, 10: 9, 11: 9}
    keys = {place: str(turn_key(1, place)) for place in before} | {None: None}
    assert {key: node["parentId"] for key, node in nodes.items()} == {
        keys[place]: keys[parent] for place, parent in before.items()
    }
    for key, node in nodes.items():
        assert node["id"] == key
        assert node["childrenIds"] == [k for k, each in nodes.items() if each["parentId"] == key]
    assert history["currentId"] == keys[6]
    assert [each["id"] for each in exported["chat"]["messages"]] == [keys[n] for n in range(1, 7)]
    assert nodes[str(keys[3])]["timestamp"] == int(BEGAN.timestamp()) + 180
    assert nodes[str(keys[3])]["model"] == "gpt-4o"
    assert "model" not in nodes[str(keys[2])]
    assert (exported["id"], exported["pinned"]) == (str(conversation_key(1)), True)


def test_openwebui_reads_back_what_was_written(exporter: ChatExporter, archive: Database) -> None:
    """The importer changes nothing, and gives every turn its branch and position again."""
    (exported,) = json.loads(exporter.export(str(conversation_key(1)), "openwebui").text)

    parsed = read(exported, strict=True)

    with archive.unit_of_work() as work:
        stored = work.messages.list_messages(conversation_key(1), branch=None)
    assert parsed.changes == []
    record = parsed.record
    assert (record.title, record.is_saved) == ('Pricing: a *premium* offer/with "quotes"', True)
    assert record.created_at == BEGAN.replace(microsecond=0)
    assert [
        (each.branch, each.position, each.role, each.content, each.created_at)
        for each in record.messages
    ] == [
        (
            each.branch,
            each.position,
            each.role,
            each.content,
            each.created_at.replace(microsecond=0),
        )
        for each in stored
    ]


@given(data=st.data(), size=st.integers(1, 30))
def test_any_tree_survives_the_way_to_openwebui_and_back(data: st.DataObject, size: int) -> None:
    """However often a conversation forked, also before its first turn."""
    before = [None] + [data.draw(st.none() | st.integers(0, n - 1)) for n in range(1, size)]
    tree = {
        str(n): {
            "parentId": None if parent is None else str(parent),
            "role": "user",
            "content": "a",
        }
        for n, parent in enumerate(before)
    }
    current = str(data.draw(st.integers(0, size - 1)))
    numbered = read({"id": "a", "history": {"messages": tree, "currentId": current}}).record
    messages = [
        Message(
            id=UUID(int=int(each.source_id)),
            branch=each.branch,
            position=each.position,
            role=each.role,
            content=each.content,
            details={},
            created_at=BEGAN,
        )
        for each in numbered.messages
    ]
    conversation = Conversation(id=UUID(int=0), title="", created_at=BEGAN, updated_at=BEGAN)

    (exported,) = as_openwebui(conversation, messages)
    again = read(exported).record

    assert [(UUID(each.source_id).int, each.branch, each.position) for each in again.messages] == [
        (each.id.int, each.branch, each.position) for each in messages
    ]
    known = {str(each.id): each.id.int for each in messages}
    parents = {
        known[key]: node["parentId"] and known[node["parentId"]]
        for key, node in exported["chat"]["history"]["messages"].items()
    }
    assert parents == dict(enumerate(before))


def test_what_came_from_openwebui_goes_back_under_its_name(exporter: ChatExporter) -> None:
    """So that it is known again there, and when it comes back here."""
    (exported,) = json.loads(exporter.export("openwebui:w-4", "openwebui").text)

    assert exported["id"] == "w-4"


def test_openwebui_takes_a_conversation_without_messages(exporter: ChatExporter) -> None:
    """There is no current one."""
    (exported,) = json.loads(exporter.export(str(conversation_key(3)), "openwebui").text)

    assert exported["chat"]["history"] == {"messages": {}, "currentId": None}


def test_a_gap_in_the_positions_breaks_no_tree() -> None:
    """Rows deleted by plain SQL: the nearest earlier turn stands in for the one before."""
    messages = [
        Message(id=uuid4(), branch=branch, position=position)
        for branch, position in ((0, 0), (0, 3), (1, 5), (2, 0))
    ]
    first, second, third, fourth = messages

    assert turns_before(messages[::-1]) == {
        first.id: None,
        second.id: first,
        third.id: second,
        fourth.id: None,
    }


@pytest.mark.parametrize("to", FORMATS)
def test_a_file_name_is_safe_on_every_file_system(exporter: ChatExporter, to: Any) -> None:
    """Letters and digits of the title, whatever it holds; a title of many bytes is cut."""
    name = exporter.export(str(conversation_key(1)), to).file_name
    unnamed = exporter.export(str(conversation_key(3)), to).file_name

    assert name.startswith("Pricing-a-premium-offer-with-quotes-")
    assert unnamed.partition(".")[0] == conversation_key(3).hex[:8]
    assert len(name.encode()) < 255


def test_a_long_title_makes_no_long_name(exporter: ChatExporter, archive: Database) -> None:
    """A file system takes 255 bytes, and a letter has up to four."""
    with archive.unit_of_work() as work:
        work.chat.rename(conversation_key(3), "𠀀" * 300)
        work.commit()

    assert (
        200 < len(exporter.export(str(conversation_key(3)), "openwebui").file_name.encode()) < 255
    )


def test_what_cannot_be_exported_is_an_error(exporter: ChatExporter) -> None:
    """An unknown conversation, a name that is none, a format that there is not."""
    with pytest.raises(NotFound):
        exporter.export(str(uuid4()))
    with pytest.raises(InvalidReference):
        exporter.export("prices")
    with pytest.raises(InvalidValue, match="known: markdown, json, openwebui"):
        exporter.export(str(conversation_key(1)), "pdf")  # type: ignore[arg-type]


def pgcorpus(database: Database, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command on a database, in a folder."""
    environment = {name: value for name, value in os.environ.items() if name in {"PATH", "HOME"}}
    environment |= variables_of(database.settings)
    return subprocess.run(
        [PGCORPUS, *arguments],
        check=False,
        capture_output=True,
        text=True,
        env=environment | {"COLUMNS": "160"},
        cwd=folder,
        timeout=120,
    )


def test_the_command_exports_to_stdout_a_file_or_a_folder(
    archive: Database, tmp_path: Path
) -> None:
    """The same text; only the export is on stdout, and a file that was there is replaced whole."""
    reference = str(conversation_key(1))
    (tmp_path / "out.md").write_text("older")
    (tmp_path / "there").mkdir()

    shown = pgcorpus(archive, tmp_path, "export", "chat", reference)
    written = pgcorpus(archive, tmp_path, "export", "chat", reference, "-o", "out.md")
    named = pgcorpus(archive, tmp_path, "export", "chat", reference, "-f", "json", "-o", "there")

    assert [each.returncode for each in (shown, written, named)] == [0, 0, 0]
    assert shown.stdout == ChatExporter(archive).export(reference).text
    assert (tmp_path / "out.md").read_text() == shown.stdout
    assert "exported to out.md" in written.stderr
    (file,) = (tmp_path / "there").iterdir()
    assert json.loads(file.read_text())["conversation"]["id"] == reference
    assert sorted(each.name for each in tmp_path.iterdir()) == ["out.md", "there"]


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        ([str(UUID(int=5))], 1, "there is no conversation"),
        (["chatgpt:none"], 1, "there is no conversation 'none' from 'chatgpt'"),
        (["prices"], 2, "SOURCE_TYPE:SOURCE_ID"),
        ([str(conversation_key(1)), "--format", "pdf"], 2, "pdf"),
        ([str(conversation_key(1)), "--output", "no/such/folder.md"], 1, "cannot be written"),
    ],
)
def test_the_command_tells_what_is_wrong(
    archive: Database, tmp_path: Path, arguments: list[str], code: int, says: str
) -> None:
    """In a sentence on stderr, with the exit code of its kind; nothing is written."""
    done = pgcorpus(archive, tmp_path, "export", "chat", *arguments)

    assert (done.returncode, done.stdout) == (code, "")
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_archive_is_listed_page_by_page(archive: Database, tmp_path: Path) -> None:
    """As JSON for scripts, as a table for people; the cursor of a page leads to the next."""
    first = pgcorpus(archive, tmp_path, "chat", "list", "--limit", "3", "--json")
    page = json.loads(first.stdout)
    second = pgcorpus(
        archive, tmp_path, "chat", "list", "--limit", "3", "--json", "--cursor", page["next_cursor"]
    )
    table = pgcorpus(archive, tmp_path, "chat", "list", "--source", "claude")
    bad = pgcorpus(archive, tmp_path, "chat", "list", "--cursor", page["next_cursor"][:-2])

    assert [each["id"] for each in page["conversations"]] == [
        str(conversation_key(number)) for number in (4, 3, 2)
    ]
    assert page["conversations"][2]["message_count"] == 2
    last = json.loads(second.stdout)
    assert [each["id"] for each in last["conversations"]] == [str(conversation_key(1))]
    assert last["next_cursor"] is None
    assert "Churn" in table.stdout
    assert "定价" not in table.stdout
    assert (bad.returncode, bad.stdout) == (2, "")
    assert "begin again without one" in bad.stderr


def test_a_conversation_is_shown_saved_and_unsaved(archive: Database, tmp_path: Path) -> None:
    """By its key or by its source."""
    shown = pgcorpus(archive, tmp_path, "chat", "show", "claude:c-2")
    whole = pgcorpus(archive, tmp_path, "chat", "show", "claude:c-2", "--json")
    as_it_was = ChatExporter(archive).export("claude:c-2", "json").text
    saved = pgcorpus(archive, tmp_path, "chat", "save", "claude:c-2")
    again = pgcorpus(archive, tmp_path, "chat", "save", "claude:c-2", "--json")
    listed = pgcorpus(archive, tmp_path, "chat", "list", "--saved", "--json")
    unsaved = pgcorpus(archive, tmp_path, "chat", "unsave", str(conversation_key(2)))
    left = pgcorpus(archive, tmp_path, "chat", "list", "--saved", "--json")
    once_more = pgcorpus(archive, tmp_path, "chat", "unsave", "claude:c-2", "--json")

    assert shown.stdout == ChatExporter(archive).export("claude:c-2").text
    assert whole.stdout == as_it_was
    assert (saved.returncode, unsaved.returncode) == (0, 0)
    assert (saved.stdout, unsaved.stdout) == ("", "")
    assert json.loads(again.stdout) in json.loads(listed.stdout)["conversations"]
    assert (json.loads(once_more.stdout)["title"], again.stderr) == ("Churn", "")
    assert json.loads(once_more.stdout)["is_saved"] is False
    titles = [each["title"] for each in json.loads(listed.stdout)["conversations"]]
    assert sorted(titles) == ["Churn", 'Pricing: a *premium* offer/with "quotes"']
    assert len(json.loads(left.stdout)["conversations"]) == 1


def test_the_archive_is_counted(archive: Database, tmp_path: Path) -> None:
    """For scripts and for people; the commands name what is missing."""
    counted = pgcorpus(archive, tmp_path, "chat", "stats", "--since", "2025-01-16", "--json")
    table = pgcorpus(archive, tmp_path, "chat", "stats")

    statistics = json.loads(counted.stdout)
    assert statistics["conversations"] == 4
    assert statistics["messages"] == sum(map(len, TURNS.values()))
    assert statistics["messages_by_day"] == {"2025-01-16": 2, "2025-01-18": 1}
    assert statistics["coverage"]["model_name"] == "hashing"
    assert table.returncode == 0
    assert "pgcorpus embed --corpus chat" in table.stdout


def test_coverage_is_told_of_the_model_that_is_used(archive: Database, tmp_path: Path) -> None:
    """Beside that of the one the archive is set to; nobody is sent to make what is there."""
    with archive.unit_of_work() as work:
        work.models.use_model("chat", "text-embedding-3-small")  # and there is no key
        work.commit()
    before = json.loads(pgcorpus(archive, tmp_path, "chat", "stats", "--json").stdout)
    missing = pgcorpus(archive, tmp_path, "chat", "stats").stdout
    EmbeddingService(archive).embed("chat")

    after = json.loads(pgcorpus(archive, tmp_path, "chat", "stats", "--json").stdout)
    whole = pgcorpus(archive, tmp_path, "chat", "stats").stdout

    total = before["messages"]
    assert (before["coverage_in_use"]["embedded"], after["coverage_in_use"]["embedded"]) == (
        0,
        total,
    )
    assert after["coverage"] == before["coverage"]
    assert after["coverage"]["model_name"] == "text-embedding-3-small"
    assert after["coverage_in_use"]["model_name"] == "hashing"
    assert after["coverage_in_use"]["percent"] == 100
    assert before["coverage_in_use"]["model_name"] == "text-embedding-3-small"
    assert "'text-embedding-3-small' has no vectors" in after["coverage_in_use"]["reason"]
    assert "pgcorpus embed" in missing
    assert "pgcorpus embed" not in whole
    assert "of the offline model 'hashing' are counted" in whole


@given(places=st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), max_size=30, unique=True))
def test_the_turn_before_is_of_the_greatest_branch_not_above(places: list[tuple[int, int]]) -> None:
    """At the nearest earlier position, whatever is missing: as the numbering of branches says."""
    messages = [Message(id=uuid4(), branch=b, position=p) for b, p in places]

    found = turns_before(messages)

    for message in messages:
        earlier = [
            each
            for each in messages
            if each.position < message.position and each.branch <= message.branch
        ]
        nearest = max(earlier, key=lambda each: (each.position, each.branch), default=None)
        assert found[message.id] is nearest
