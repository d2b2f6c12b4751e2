"""Our own export of a conversation, read again: nothing of it is lost or made up."""

from __future__ import annotations

import json
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from pgcorpus.db.engine import Database
from pgcorpus.services.chat.exporting.exporter import ChatExporter
from pgcorpus.services.chat.importing import pgcorpus
from pgcorpus.services.chat.importing.importer import ChatImporter
from pgcorpus.services.importers.draft import Unacceptable
from pgcorpus.services.importers.report import ImportReport
from tests.conftest import Databases
from tests.factories import exports
from tests.services.chat import archive as chat_archive
from tests.services.chat.archive import conversation_key

MADE_HERE = ("updated_at", "record_hash", "imported_from")
"""Columns of a conversation that tell when and how it came into this archive."""


@pytest.fixture
def archive(database: Database) -> Database:
    """An archive that something is exported from; one of its messages was said there."""
    chat_archive.fill(database)
    with database.engine.begin() as connection:
        connection.execute(
            text(
                "UPDATE messages SET metadata = metadata || jsonb_build_object('source_id', 'm' || "
                "position || '-' || branch), language = 'german' WHERE conversation_id = :id AND "
                "(branch, position) <> (0, 5)"
            ),
            {"id": conversation_key(1)},
        )
        connection.execute(
            text(
                "UPDATE conversations SET source_type = 'native', source_id = NULL WHERE id = :id"
            ),
            {"id": conversation_key(4)},
        )
    return database


@pytest.fixture
def other(databases: Databases, hosted: Any) -> Iterator[Database]:
    """An archive with nothing in it."""
    with databases.opened(hosted.database or "", owner=hosted) as other:
        yield other


def export_json(archive: Database, reference: str) -> dict[str, Any]:
    """Export a conversation as JSON."""
    told: dict[str, Any] = json.loads(ChatExporter(archive).export(reference, "json").text)
    return told


def lasting(told: dict[str, Any]) -> dict[str, Any]:
    """Return what is the same in every archive. A message has a key of its own in each."""
    told = deepcopy(told)
    for name in MADE_HERE:
        del told["conversation"][name]
    if told["conversation"]["source_id"] is not None:
        del told["conversation"]["id"]
    for message in told["messages"]:
        del message["id"], message["updated_at"]
    return told


def counts(report: ImportReport) -> tuple[int, ...]:
    """Conversations that were added, updated, left unchanged, rejected."""
    return tuple(report.total(name) for name in ("added", "updated", "unchanged", "rejected"))


@pytest.mark.parametrize("number", [1, 2, 4])
def test_what_was_exported_comes_back_whole(
    archive: Database, other: Database, tmp_path: Path, number: int
) -> None:
    """Source, identifier, title, times, branches, positions, metadata, languages, saved or not.

    One that was written here keeps its key, for it has no other name.
    """
    told = export_json(archive, str(conversation_key(number)))
    file = tmp_path / "kept.json"
    file.write_text(json.dumps(told))

    first, second = (ChatImporter(other).run([file]) for _ in range(2))

    source = told["conversation"]["source_id"] and "{source_type}:{source_id}"
    reference = (source or "{id}").format(**told["conversation"])
    assert (counts(first), counts(second)) == ((1, 0, 0, 0), (0, 0, 1, 0))
    assert lasting(export_json(other, reference)) == lasting(told)


def test_an_archive_that_gets_its_own_export_back_changes_nothing(
    archive: Database, tmp_path: Path
) -> None:
    """Neither what was imported nor what was written there, alone or behind an imported turn.

    Not even where the archive made something up: the times of messages without one.
    """
    (chatgpt,) = exports.chatgpt(1, branches=2)
    file = tmp_path / "conversations.json"
    for node in chatgpt["mapping"].values():  # as of some messages in every export
        if node["message"] is not None:
            node["message"].pop("create_time", None)
    file.write_text(json.dumps(chatgpt))
    ChatImporter(archive).run([file])
    with archive.unit_of_work() as work:
        imported = work.chat.get_by_reference(f"chatgpt:{chatgpt['conversation_id']}").id
        work.chat.append(imported, role="user", content="said here")
        work.chat.save(imported)
        work.commit()
    told = [export_json(archive, str(key)) for key in (imported, conversation_key(4))]
    file.write_text("\n".join(map(json.dumps, told)))

    report = ChatImporter(archive).run([file])

    assert (counts(report), report.messages) == ((0, 0, 2, 0), 0)
    assert [export_json(archive, str(key)) for key in (imported, conversation_key(4))] == told


def test_several_exports_in_a_file_are_read_one_by_one(
    archive: Database, other: Database, tmp_path: Path
) -> None:
    """As lines; one of a version that is not known here is refused, and kept for one that knows."""
    told = [export_json(archive, str(conversation_key(number))) for number in (1, 2)]
    file = tmp_path / "kept.jsonl"
    file.write_text("\n".join(map(json.dumps, [told[0], told[1] | {"version": 2}])))

    report = ChatImporter(other).run([file])

    assert counts(report) == (1, 0, 0, 1)
    assert "it is of version 2, and version 1 is read here" in report.rejects[0].reason


@pytest.mark.parametrize(
    ("way", "value"),
    [
        (("conversation",), None),
        (("messages",), {}),
        (("messages", 0), "said"),
        (("messages", 0, "id"), None),
        (("messages", 0, "metadata"), []),
        (("messages", 0, "role"), "oracle"),
        (("messages", 0, "role"), ["user"]),
        (("messages", 0, "content"), " "),
        (("messages", 0, "branch"), -1),
        (("messages", 0, "position"), True),
        (("messages", 0, "position"), 1),
        (("messages", 0, "position"), 2**31),
        (("messages", 0, "metadata", "source_id"), "m1-0"),
        (("conversation", "source_type"), "x" * 51),
        (("conversation", "source_id"), None),
        (("conversation", "source_id"), 7),
        (("version",), "1"),
    ],
)
def test_an_export_that_somebody_broke_is_refused(
    archive: Database,
    way: tuple[str | int, ...],
    value: Any,
) -> None:
    """We write no such thing: guessing at what was meant would lose what was."""
    told = export_json(archive, str(conversation_key(1)))
    at: Any = told
    for step in way[:-1]:
        at = at[step]
    at[way[-1]] = value

    with pytest.raises(Unacceptable):
        pgcorpus.read(told)
