"""Each provider's conversations as the archive has them, and what becomes of broken ones."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from psycopg.types.json import Jsonb
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from pgcorpus.db.models.chat import Message
from pgcorpus.db.repositories.chat.imports import MessageRecord
from pgcorpus.services.chat.importing import chatgpt, claude, openwebui
from pgcorpus.services.chat.importing.candidates import Reading
from pgcorpus.services.chat.importing.detect import FORMATS
from pgcorpus.services.chat.importing.rules import Parsed
from pgcorpus.services.choices import ChatFormat
from pgcorpus.services.importers.draft import MAX_DETAIL, Unacceptable
from pgcorpus.services.importers.stream import Element
from pgcorpus.services.importers.text import UNSTORABLE
from tests.factories import ConversationFactory, exports

AT = 1_720_000_000.5
MOMENT = datetime(2024, 7, 3, 9, 46, 40, 500_000, tzinfo=UTC)
MAKERS: dict[str, Callable[..., Any]] = {
    "chatgpt": exports.chatgpt,
    "claude": exports.claude,
    "openwebui": exports.openwebui,
}


def of_chatgpt(*contents: Any, **fields: Any) -> dict[str, Any]:
    """A conversation of ChatGPT: a user who says one thing after the other."""
    mapping: dict[str, Any] = {
        "root": {"id": "root", "message": None, "parent": None, "children": ["m0"]}
    }
    for n, content in enumerate(contents):
        if isinstance(content, str):
            content = {"content_type": "text", "parts": [content]}  # noqa: PLW2901 - a shorthand
        mapping[f"m{n}"] = {
            "id": f"m{n}",
            "parent": f"m{n - 1}" if n else "root",
            "children": [f"m{n + 1}"] if n + 1 < len(contents) else [],
            "message": {
                "author": {"role": "user"},
                "create_time": AT,
                "content": content,
                "status": "finished_successfully",
                "recipient": "all",
                "weight": 1.0,
                "metadata": {},
            },
        }
    return {
        "conversation_id": "c1",
        "title": "Prices",
        "create_time": AT,
        "update_time": AT,
        "mapping": mapping,
        "current_node": f"m{len(contents) - 1}",
    } | fields


def of_claude(*said: dict[str, Any], **fields: Any) -> dict[str, Any]:
    """A conversation of Claude, without parents, as exports before 2025 have it."""
    return {
        "uuid": "c1",
        "name": "Prices",
        "created_at": "2024-07-03T09:46:40.500000Z",
        "updated_at": "2024-07-03T09:46:40.500000Z",
        "chat_messages": [
            {"uuid": f"m{n}", "sender": "human", "created_at": "2024-07-03T09:46:40.5Z"} | each
            for n, each in enumerate(said)
        ],
    } | fields


def of_openwebui(*said: dict[str, Any], **fields: Any) -> dict[str, Any]:
    """A conversation of Open WebUI with its tree."""
    return {
        "id": "c1",
        "user_id": "u1",
        "title": "Prices",
        "created_at": int(AT),
        "updated_at": int(AT),
        "chat": {
            "history": {
                "messages": {
                    f"m{n}": {
                        "id": f"m{n}",
                        "parentId": f"m{n - 1}" if n else None,
                        "childrenIds": [f"m{n + 1}"] if n + 1 < len(said) else [],
                        "role": "user",
                        "timestamp": int(AT),
                    }
                    | each
                    for n, each in enumerate(said)
                },
                "currentId": f"m{len(said) - 1}",
            }
        },
    } | fields


def only(parsed: Parsed) -> MessageRecord:
    """The one message of a conversation."""
    (message,) = parsed.record.messages
    return message


def list_changes(parsed: Parsed) -> list[tuple[str, Any, Any, str]]:
    """List the changes as tuples."""
    return [(each.field, each.original, each.stored, each.rule) for each in parsed.changes]


def change(raw: dict[str, Any], way: Sequence[Any], value: Any) -> dict[str, Any]:
    """Copy a value with one thing in it given otherwise; ``...`` takes it out."""
    found = copy.deepcopy(raw)
    at: Any = found
    for key in way[:-1]:
        at = at[key]
    if value is ...:
        del at[way[-1]]
    else:
        at[way[-1]] = value
    return found


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("branches", [0, 4])
def test_a_sound_export_is_read_without_a_change(name: str, branches: int) -> None:
    """In strict mode too: every turn of the conversation, and every branch."""
    for raw in MAKERS[name](turns=6, branches=branches, images=2):
        parsed = FORMATS[name].read(raw, strict=True)

        record = parsed.record
        # Conversations of ChatGPT begin with a message that says nothing.
        assert [each.rule for each in parsed.changes] == ["empty"] * (name == "chatgpt")
        assert record.source_type == name
        assert record.source_id == raw["uuid" if name == "claude" else "id"]
        assert record.title == raw.get("title", raw.get("name"))
        assert record.created_at is not None
        assert record.source_updated_at is not None
        main = [each for each in record.messages if each.branch == 0]
        assert [each.position for each in main] == list(range(6))
        assert [each.role for each in main] == ["user", "assistant"] * 3
        assert len(record.messages) == 6 + branches
        assert [each.created_at for each in main] == sorted(
            each.created_at for each in main if each.created_at
        )
        assert sum("[" in each.content for each in main) == 2


@pytest.mark.parametrize("name", FORMATS)
def test_the_three_formats_give_the_same_turns(name: str) -> None:
    """The same talk, written in three ways, has the same identifiers, places, roles and times."""
    reference = [FORMATS["claude"].read(raw).record for raw in exports.claude(branches=3)]

    for expected, raw in zip(reference, MAKERS[name](branches=3), strict=True):
        found = FORMATS[name].read(raw).record
        assert [
            (each.source_id, each.branch, each.position, each.role, each.content, each.created_at)
            for each in found.messages
        ] == [
            (each.source_id, each.branch, each.position, each.role, each.content, each.created_at)
            for each in expected.messages
        ]


def read_as(raw: Any, asked: ChatFormat = "auto") -> str | None:
    """The format that a value is read as."""
    text = json.dumps(raw).encode()
    reading = Reading(asked, strict=False, language="english")
    element = Element("$", 0, len(text), text)
    found = reading.candidate(element).format
    assert reading.knows(element) == (found is not None)
    return found


@pytest.mark.parametrize("name", FORMATS)
def test_a_format_is_known_by_its_content(name: ChatFormat) -> None:
    """Whatever is broken in it, and without being asked for."""
    (raw,) = MAKERS[name](1)

    assert read_as(raw) == read_as(raw, name) == name


@pytest.mark.parametrize(
    ("raw", "name"),
    [
        ({"mapping": None}, "chatgpt"),
        ({"chat_messages": 3}, "claude"),
        ({"id": "1", "user_id": "2", "chat": None}, "openwebui"),
        ({"title": "bare", "history": {"messages": {}, "currentId": None}}, "openwebui"),
        ({"id": "1", "chat": {"messages": [{"role": "user", "content": "flat"}]}}, "openwebui"),
        ({"format": "pgcorpus-chat", "version": 99}, "pgcorpus"),
        ({"messages": [{"role": "user", "content": "a line of another's"}]}, None),
        ({"messages": [{"from": "human", "value": "another's"}]}, None),
        ({"chunk_id": "price_01", "content": "A chunk of knowledge."}, None),
        ({}, None),
        ([], None),
        ("mapping", None),
        (None, None),
    ],
)
def test_what_is_of_no_format_is_not_taken_for_one(raw: Any, name: str | None) -> None:
    """Nor is a broken conversation disowned."""
    assert read_as(raw) == name


def test_a_bare_list_of_messages_is_read_where_its_format_is_asked_for() -> None:
    """Lines for the training of models look the same: nothing in them says that they are chats."""
    raw = {"messages": [{"role": "user", "content": "flat"}]}

    assert (read_as(raw), read_as(raw, "openwebui"), read_as(raw, "claude")) == (
        None, "openwebui", None,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("read", "raw"),
    [
        (chatgpt.read, {"is_archived": True}),
        (chatgpt.read, {"is_starred": True}),
        (openwebui.read, {"archived": True}),
        (openwebui.read, {"pinned": True}),
    ],
)
def test_what_is_starred_or_pinned_is_saved_and_what_is_archived_is_not(
    read: Callable[[Any], Parsed], raw: dict[str, bool]
) -> None:
    """To archive is to put away."""
    whole = of_chatgpt("a") if read is chatgpt.read else of_openwebui({"content": "a"})

    assert read(whole | raw).record.is_saved == (not any("archived" in key for key in raw))


@pytest.mark.parametrize(
    ("content", "expected", "part"),
    [
        (
            {"content_type": "code", "language": "python", "text": "print(1)"},
            "[code: python]\nprint(1)",
            {"content_type": "code", "language": "python"},
        ),
        (
            {"content_type": "code", "language": "unknown", "text": "search()"},
            "[code]\nsearch()",
            {"content_type": "code", "language": "unknown"},
        ),
        (
            {"content_type": "execution_output", "text": "42"},
            "[output]\n42",
            {"content_type": "execution_output"},
        ),
        (
            {
                "content_type": "tether_quote",
                "title": "A page",
                "url": "https://example.org",
                "domain": "example.org",
                "text": "said there",
            },
            "[quote: A page]\nsaid there",
            {
                "content_type": "tether_quote",
                "title": "A page",
                "url": "https://example.org",
                "domain": "example.org",
            },
        ),
        (
            {"content_type": "tether_browsing_display", "result": "found", "summary": None},
            "[browsing]\nfound",
            {"content_type": "tether_browsing_display"},
        ),
        (
            {
                "content_type": "thoughts",
                "thoughts": [
                    {"summary": "Weighing", "content": "Is it dear?", "chunks": ["Is it dear?"]},
                    {"summary": "Deciding", "content": "No.", "finished": True},
                ],
                "source_analysis_msg_id": "m9",
            },
            "[thoughts]\nWeighing\n\nIs it dear?\n\nDeciding\n\nNo.",
            {"content_type": "thoughts", "source_analysis_msg_id": "m9"},
        ),
        (
            {"content_type": "reasoning_recap", "content": "Thought for 8 seconds"},
            "[reasoning]\nThought for 8 seconds",
            {"content_type": "reasoning_recap"},
        ),
        (
            {"content_type": "system_error", "name": "Timeout", "text": "too slow"},
            "[error: Timeout]\ntoo slow",
            {"content_type": "system_error", "name": "Timeout"},
        ),
        (
            {"content_type": "hologram", "title": "A cube", "text": "it turns", "faces": 6},
            "[hologram: A cube]\nA cube\n\nit turns",
            {"content_type": "hologram", "faces": 6},
        ),
    ],
)
def test_what_is_not_plain_text_keeps_its_words_behind_a_placeholder(
    content: dict[str, Any], expected: str, part: dict[str, Any]
) -> None:
    """So that they are found; the details keep the part without a second copy of them."""
    parsed = chatgpt.read(of_chatgpt(content), strict=True)

    assert only(parsed).content == expected
    assert only(parsed).details["parts"] == [part]


def test_a_picture_is_shown_by_the_name_of_its_file() -> None:
    """The part says which file it shows; a file that no part shows is named after the text."""
    pointer = {
        "content_type": "image_asset_pointer",
        "asset_pointer": "sediment://file_1",
        "width": 640,
    }
    content = {"content_type": "multimodal_text", "parts": [pointer, "What is this?", None, ""]}
    raw = of_chatgpt(content)
    raw["mapping"]["m0"]["message"]["metadata"]["attachments"] = [
        {"id": "file_1", "name": "cat.png"},
        {"id": "file_2", "name": "report.pdf"},
    ]

    message = only(chatgpt.read(raw, strict=True))

    assert message.content == "[image: cat.png]\n\nWhat is this?\n\n[file: report.pdf]"
    assert message.details["files"] == ["cat.png", "report.pdf"]
    assert message.details["parts"] == [pointer | {"name": "cat.png"}]


def test_speech_is_text_and_its_sound_a_placeholder() -> None:
    """As ChatGPT's voice mode has it."""
    sound = {"content_type": "audio_asset_pointer", "asset_pointer": "sediment://file_1"}
    content = {
        "content_type": "multimodal_text",
        "parts": [
            {"content_type": "audio_transcription", "text": "Hello", "direction": "in"},
            sound,
        ],
    }

    message = only(chatgpt.read(of_chatgpt(content), strict=True))

    assert message.content == "Hello\n\n[audio]"
    assert sound in message.details["parts"]


def test_details_say_what_is_not_usual() -> None:
    """The model, and who a message was for; nothing about what is as ever."""
    raw = of_chatgpt("one", "two")
    raw["mapping"]["m1"]["message"] |= {
        "author": {"role": "tool", "name": "python"},
        "status": "in_progress",
        "recipient": "assistant",
        "metadata": {"model_slug": "gpt-4o"},
    }

    one, two = chatgpt.read(raw, strict=True).record.messages

    assert one.details == {"parent_id": "root"}
    assert two.role == "tool"
    assert two.details == {
        "model": "gpt-4o",
        "name": "python",
        "status": "in_progress",
        "recipient": "assistant",
        "parent_id": "m0",
    }


CONTEXT: dict[str, Any] = {
    "content": {
        "content_type": "user_editable_context",
        "user_profile": "I sell boats.",
        "user_instructions": "Be brief.",
    }
}


@pytest.mark.parametrize(
    ("hidden", "said"),
    [
        (CONTEXT, "[context]\nI sell boats.\n\nBe brief."),
        ({"metadata": {"is_visually_hidden_from_conversation": True}}, "two"),
        ({"weight": 0.0}, "two"),
        ({"weight": 0}, "two"),
    ],
)
def test_what_chatgpt_hides_is_kept_and_has_no_place(hidden: dict[str, Any], said: str) -> None:
    """Beside the turn that follows it, which answers the turn before; nothing is left out."""
    raw = of_chatgpt("one", "two", "three")
    raw["mapping"]["m1"]["message"] |= hidden

    parsed = chatgpt.read(raw, strict=True)

    one, three = parsed.record.messages
    assert [(each.source_id, each.position) for each in (one, three)] == [("m0", 0), ("m2", 1)]
    (kept,) = three.details["context"]
    assert (kept["id"], kept["content"]) == ("m1", said)
    assert kept["role"] == raw["mapping"]["m1"]["message"]["author"]["role"]
    assert "context" not in one.details
    assert list_changes(parsed) == []


def test_what_is_hidden_at_the_end_is_kept_beside_the_last_turn() -> None:
    """In its order; and once, though two branches follow it."""
    raw = of_chatgpt("zero", "one", "two", "three")
    for name in ("m0", "m3", "m2"):
        raw["mapping"][name]["message"]["weight"] = 0
    raw["mapping"]["m4"] = {"id": "m4", "parent": "m0", "children": []} | {
        "message": raw["mapping"]["m1"]["message"] | {"id": "m4"}
    }
    raw["mapping"]["m0"]["children"].append("m4")

    parsed = chatgpt.read(raw)

    found = {each.source_id: each.details.get("context", []) for each in parsed.record.messages}
    assert {name: [each["id"] for each in hidden] for name, hidden in found.items()} == {
        "m1": ["m0", "m2", "m3"],
        "m4": [],
    }


def test_every_message_that_is_left_out_as_empty_is_recorded() -> None:
    """Whole, also that with which every conversation of ChatGPT begins."""
    raw = of_chatgpt("", "", "three")
    raw["mapping"]["m0"]["message"] |= {"weight": 0.0, "author": {"role": "system"}}

    parsed = chatgpt.read(raw, strict=True)

    assert only(parsed).source_id == "m2"
    assert only(parsed).position == 0
    assert list_changes(parsed) == [
        (f"mapping.{name}.message", raw["mapping"][name]["message"], None, "empty")
        for name in ("m0", "m1")
    ]


def test_a_node_without_a_message_is_spliced_out() -> None:
    """Its answers answer the turn above it."""
    raw = change(of_chatgpt("one", "two", "three"), ["mapping", "m1", "message"], None)

    parsed = chatgpt.read(raw, strict=True)

    assert [(each.source_id, each.position) for each in parsed.record.messages] == [
        ("m0", 0),
        ("m2", 1),
    ]
    assert list_changes(parsed) == [("mapping.m1.message", None, None, "spliced")]


def test_blocks_win_over_the_text_of_a_message() -> None:
    """Nothing is recorded if both say the same; ``text`` does not know every block."""
    parsed = claude.read(
        of_claude(
            {
                "text": f"Let me look.\n```\n{claude.UNSUPPORTED}\n```\nIt costs 5.",
                "content": [
                    {"type": "thinking", "thinking": "A price is asked for."},
                    {"type": "text", "text": "Let me look.", "citations": []},
                    {
                        "type": "tool_use",
                        "name": "web_search",
                        "id": "t1",
                        "input": {"query": "price of tea", "limit": 3, "sites": ["a.example"]},
                    },
                    {
                        "type": "tool_result",
                        "name": "web_search",
                        "tool_use_id": "t1",
                        "content": [
                            {"type": "knowledge", "title": "Tea", "url": "x", "text": "5 a bag"},
                            {"type": "image", "file_name": "tea.png"},
                        ],
                        "is_error": False,
                    },
                    {"type": "text", "text": "It costs 5.", "citations": [{"url": "x"}]},
                ],
            }
        ),
        strict=True,
    )

    message = only(parsed)
    assert message.content == (
        "[thoughts]\nA price is asked for.\n\n"
        "Let me look.\n\n"
        '[tool: web_search]\nquery: price of tea\nlimit: 3\nsites: ["a.example"]\n\n'
        "[result: web_search]\n[source: Tea]\n5 a bag\n\n[image: tea.png]\n\n"
        "It costs 5."
    )
    assert message.details["parts"] == [
        {"type": "thinking"},
        {"type": "tool_use", "name": "web_search", "id": "t1"},
        {"type": "tool_result", "name": "web_search", "tool_use_id": "t1", "is_error": False},
        {"type": "knowledge", "title": "Tea", "url": "x"},
        {"type": "image", "file_name": "tea.png"},
        {"type": "text", "citations": [{"url": "x"}]},
    ]


def test_a_text_that_says_more_than_the_blocks_is_recorded() -> None:
    """It gives way, and is not lost."""
    parsed = claude.read(
        of_claude({"text": "One.\nTwo.", "content": [{"type": "text", "text": "One."}]})
    )

    assert only(parsed).content == "One."
    assert list_changes(parsed) == [("chat_messages[0].text", "One.\nTwo.", "One.", "precedence")]


def test_the_text_of_an_attachment_is_the_messages() -> None:
    """A long paste becomes an attachment, and the message itself may be empty."""
    parsed = claude.read(
        of_claude(
            {
                "text": "",
                "content": [],
                "attachments": [
                    {"file_name": "paste.txt", "file_type": "txt", "file_size": 7}
                    | {"id": "a1", "extracted_content": "A tale."}
                ],
                "files": [{"file_name": "cat.png", "file_kind": "image"}, {"file_name": ""}],
            }
        ),
        strict=True,
    )

    message = only(parsed)
    assert message.content == "[file: paste.txt]\nA tale.\n\n[image: cat.png]\n\n[file]"
    assert message.details["files"] == ["paste.txt", "cat.png"]
    assert message.details["attachments"] == [
        {"file_name": "paste.txt", "file_size": 7, "file_type": "txt"}
    ]


def test_messages_of_claude_without_parents_follow_one_another() -> None:
    """As exports had them before there were branches."""
    found = claude.read(of_claude({"text": "a"}, {"text": "b", "sender": "assistant"})).record

    assert [(each.source_id, each.branch, each.position, each.role) for each in found.messages] == [
        ("m0", 0, 0, "user"),
        ("m1", 0, 1, "assistant"),
    ]


def test_claudes_parents_make_branches() -> None:
    """The conversation is the path to the leaf that Claude names, or to the newest."""
    said: list[dict[str, Any]] = [
        {"text": "a", "parent_message_uuid": claude.NOBODY},
        {"text": "b", "parent_message_uuid": "m0"},
        {"text": "c", "parent_message_uuid": "m0", "created_at": "2024-07-03T09:50:00Z"},
    ]

    newest = claude.read(of_claude(*said), strict=True).record
    named = claude.read(of_claude(*said, current_leaf_message_uuid="m1"), strict=True).record

    assert [(each.source_id, each.branch) for each in newest.messages] == [
        ("m0", 0),
        ("m2", 0),
        ("m1", 1),
    ]
    assert [(each.source_id, each.branch) for each in named.messages] == [
        ("m0", 0),
        ("m1", 0),
        ("m2", 1),
    ]


def test_a_message_that_stands_twice_is_kept_once() -> None:
    """One with the same identifier and another text gets an identifier of its own."""
    parsed = claude.read(
        of_claude(
            {"uuid": "m", "text": "a"},
            {"uuid": "m", "text": "a"},
            {"uuid": "m", "text": "b"},
            {"uuid": None, "text": "c"},
        )
    )

    assert [each.source_id for each in parsed.record.messages] == ["m", "m#2", "#3"]
    assert [each[0] + " " + each[3] for each in list_changes(parsed)] == [
        "chat_messages[1] duplicate",
        "chat_messages[2].uuid duplicate",
        "chat_messages[3].uuid identifier",
    ]


def test_openwebui_parts_files_and_errors_are_shown() -> None:
    """A list of parts like OpenAI's, files beside the text, an error in place of an answer."""
    parsed = openwebui.read(
        of_openwebui(
            {
                "content": [
                    {"type": "text", "text": "Look"},
                    {"type": "image_url", "image_url": {"url": "https://example.org/a.png"}},
                ],
                "files": [{"type": "file", "name": "a.pdf"}, {"type": "image", "url": "/f/1"}],
            },
            {"role": "assistant", "content": "", "model": "llama", "error": {"content": "no VRAM"}},
        ),
        strict=True,
    )

    look, error = parsed.record.messages
    assert look.content == "Look\n\n[image]\n\n[file: a.pdf]\n\n[image]"
    assert look.details["files"] == ["a.pdf"]
    assert look.details["parts"] == [
        {"type": "image_url", "image_url": {"url": "https://example.org/a.png"}}
    ]
    assert error.content == "[error]\nno VRAM"
    assert error.details["model"] == "llama"


def test_openwebuis_chat_may_stand_alone_or_be_a_list() -> None:
    """Its interface exports one chat alone; old versions kept a list."""
    whole = of_openwebui({"content": "a"}, {"content": "b", "role": "assistant"})
    flat = {
        "id": "c1",
        "title": "Prices",
        "timestamp": int(AT * 1000),
        "messages": [
            {"id": "m0", "role": "user", "content": "a", "timestamp": int(AT)},
            {"id": "m1", "role": "assistant", "content": "b", "timestamp": int(AT)},
        ],
    }
    bare = whole["chat"] | {"id": "c1", "title": "Prices"}

    turns = openwebui.read(whole, strict=True).record.messages

    for raw in (bare, flat):
        record = openwebui.read(raw, strict=True).record
        assert [(each.source_id, each.content) for each in record.messages] == [
            (each.source_id, each.content) for each in turns
        ]
        assert (record.source_id, record.title) == ("c1", "Prices")


@pytest.mark.parametrize("scale", [1, 10**3, 10**6, 10**9])
def test_times_are_told_apart_by_their_size(scale: int) -> None:
    """Seconds, milliseconds, microseconds and nanoseconds since 1970."""
    raw = of_openwebui({"content": "a", "timestamp": int(AT * scale)})

    message = only(openwebui.read(raw, strict=True))

    assert message.created_at == MOMENT.replace(microsecond=0 if scale == 1 else 500_000)


@pytest.mark.parametrize(
    ("given", "moment"),
    [
        ("2024-07-03T09:46:40.500000Z", MOMENT),
        ("2024-07-03T11:46:40.5+02:00", MOMENT),
        ("2024-07-03T09:46:40.5", MOMENT),
        ("1990-01-01T00:00:00Z", datetime(1990, 1, 1, tzinfo=UTC)),
    ],
)
def test_times_are_read_as_iso_8601(given: str, moment: datetime) -> None:
    """In any zone; one without a zone is UTC."""
    raw = of_claude({"text": "a", "created_at": given})

    assert only(claude.read(raw, strict=True)).created_at == moment


@pytest.mark.parametrize(
    "absurd",
    [
        0,
        -1,
        -1e30,
        1e25,
        10**400,
        "yesterday",
        "",
        "1989-12-31T23:59:59Z",
        "0001-01-01T00:00:00+23:59",
        "9999-12-31T23:59:59-23:59",
        True,
        [2024],
        f"{datetime.now(UTC) + timedelta(days=3):%Y-%m-%d}",  # the same in every process
    ],
)
def test_an_absurd_time_is_none(absurd: Any) -> None:
    """And recorded; without a time of its own the conversation has its messages'."""
    raw = of_claude({"text": "a"}, created_at=absurd, updated_at=absurd)

    parsed = claude.read(raw)

    assert list_changes(parsed) == [
        ("created_at", absurd, None, "time"),
        ("updated_at", absurd, None, "time"),
    ]
    assert parsed.record.created_at == parsed.record.source_updated_at == MOMENT
    with pytest.raises(Unacceptable, match="created_at would be changed"):
        claude.read(raw, strict=True)


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_a_number_that_is_none_is_left_out(number: float) -> None:
    """JSONB cannot hold it, wherever it stands."""
    parsed = chatgpt.read(of_chatgpt("a", create_time=number))

    assert list_changes(parsed) == [("create_time", repr(number), None, "number")]


@pytest.mark.parametrize(
    ("given", "role"),
    [
        ("User", "user"),
        ("human", "user"),
        ("ai", "assistant"),
        ("bot", "assistant"),
        ("model", "assistant"),
        ("developer", "system"),
        ("function", "tool"),
        ("oracle", "tool"),
        (None, "tool"),
        ({"a": 1}, "tool"),
    ],
)
def test_every_role_becomes_one_of_four(given: Any, role: str) -> None:
    """Whoever is neither user nor assistant is a tool."""
    parsed = openwebui.read(of_openwebui({"content": "a", "role": given}))

    assert only(parsed).role == role
    assert list_changes(parsed) == [("chat.history.messages.m0.role", given, role, "role")]


@pytest.mark.parametrize(
    ("given", "stored"), [(None, ""), (["a"], '["a"]'), (7, "7"), ({"a": None}, '{"a": null}')]
)
def test_a_title_that_is_no_text_becomes_one(given: Any, stored: str) -> None:
    """Empty where there is none."""
    parsed = claude.read(of_claude({"text": "a"}, name=given))

    assert parsed.record.title == stored
    assert list_changes(parsed) == [("name", given, stored, "title")]


def test_a_conversation_without_an_identifier_gets_that_of_its_content() -> None:
    """The same the next time, and another for another content."""
    one, again, other = (
        chatgpt.read(of_chatgpt(said, conversation_id=None)) for said in ("a", "a", "b")
    )

    assert one.record.source_id == again.record.source_id != other.record.source_id
    assert list_changes(one) == [("id", None, one.record.source_id, "identifier")]


@pytest.mark.parametrize("given", ["", " ", "x" * 256, ["c1"], 1.5])
def test_what_cannot_be_an_identifier_is_replaced(given: Any) -> None:
    """Blank, longer than its column, or neither text nor a whole number."""
    parsed = claude.read(of_claude({"text": "a"}, uuid=given))

    assert re.fullmatch("sha256-[0-9a-f]{64}", parsed.record.source_id)
    assert list_changes(parsed) == [("uuid", given, parsed.record.source_id, "identifier")]


def test_a_number_may_identify() -> None:
    """As text."""
    parsed = claude.read(of_claude({"text": "a", "uuid": 7}, uuid=12))

    assert (parsed.record.source_id, only(parsed).source_id) == ("12", "7")


def test_what_cannot_be_stored_is_cleaned_wherever_it_stands() -> None:
    """In texts, names, identifiers and details; each is recorded where it stood."""
    raw = of_chatgpt(
        {"content_type": "code", "language": "py\x00thon", "text": "a\ud800b"},
        title="Pri\x00ces",
        conversation_id="c\x001",
    )
    raw["mapping"] = {key.replace("m0", "m\x000"): each for key, each in raw["mapping"].items()}
    raw["mapping"]["root"]["children"] = ["m\x000"]
    raw["current_node"] = "m\x000"

    parsed = chatgpt.read(raw)

    message = only(parsed)
    assert (parsed.record.source_id, parsed.record.title) == ("c1", "Prices")
    assert message.source_id == "m0"
    assert message.content == "[code: python]\na\ufffdb"
    assert {each.field for each in parsed.changes} == {
        "title",
        "conversation_id",
        "current_node",
        "mapping.m0",
        "mapping.root.children[0]",
        "mapping.m0.message.content.language",
        "mapping.m0.message.content.text",
    }
    assert {each.rule for each in parsed.changes} == {"characters"}


def test_a_name_that_is_taken_once_cleaned_is_dropped() -> None:
    """Its value is in the history."""
    raw = of_chatgpt("a")
    raw["mapping"]["m0\x00"] = {"message": "gone"}

    assert list_changes(chatgpt.read(raw)) == [
        ("mapping.m0", {"m0\x00": {"message": "gone"}}, None, "characters")
    ]


def test_a_long_text_in_the_details_is_cut() -> None:
    """An image as text is not description; what is cut off is in the history."""
    url = "data:image/png;base64," + "A" * 50_000
    part = {"type": "image_url", "image_url": {"url": url}}

    parsed = openwebui.read(of_openwebui({"content": [part]}))

    assert only(parsed).details["parts"][0]["image_url"] == {"url": url[:MAX_DETAIL]}
    assert [(each.original, each.rule) for each in parsed.changes] == [(url, "cut")]


@pytest.mark.parametrize(
    ("path", "value", "field"),
    [
        ("mapping/m1", ["a"], "mapping.m1"),
        ("mapping/m1/parent", 3, "mapping.m1.parent"),
        ("mapping/m1/children", {"m2": 1}, "mapping.m1.children"),
        ("mapping/m1/message", "two", "mapping.m1.message"),
        ("mapping/m1/message/author", "user", "mapping.m1.message.author"),
        ("mapping/m1/message/metadata", "none", "mapping.m1.message.metadata"),
        (
            "mapping/m1/message/metadata/attachments",
            {"name": "a"},
            "mapping.m1.message.metadata.attachments",
        ),
        (
            "mapping/m1/message/metadata/attachments",
            ["a"],
            "mapping.m1.message.metadata.attachments[0]",
        ),
    ],
)
def test_a_value_of_the_wrong_shape_is_as_good_as_absent(
    path: str,
    value: Any,
    field: str,
) -> None:
    """It is recorded, and the turns around it go in."""
    raw = change(of_chatgpt("one", "two", "three"), path.split("/"), value)
    given = value[0] if field.endswith("[0]") else value

    parsed = chatgpt.read(raw)

    assert (field, given, None, "shape") in list_changes(parsed)
    assert {"m0", "m2"} <= {each.source_id for each in parsed.record.messages}


def test_a_link_that_is_no_identifier_is_left_out() -> None:
    """The others of the list hold."""
    raw = change(of_chatgpt("one", "two"), ["mapping", "m0", "children"], [7, "m1"])

    assert list_changes(chatgpt.read(raw)) == [("mapping.m0.children", [7, "m1"], ["m1"], "shape")]


@pytest.mark.parametrize(("given", "stored"), [(42, "42"), (True, "true"), (1.5, "1.5")])
def test_a_content_that_is_no_text_becomes_one(given: Any, stored: str) -> None:
    """As it stands in JSON."""
    parsed = openwebui.read(of_openwebui({"content": given}))

    assert only(parsed).content == stored
    assert list_changes(parsed) == [("chat.history.messages.m0.content", given, stored, "text")]


@pytest.mark.parametrize(
    ("read", "raw", "reason"),
    [
        (chatgpt.read, ["a"], "a conversation must be an object"),
        (chatgpt.read, of_chatgpt("a", mapping=["a"]), "its mapping is not an object"),
        (chatgpt.read, of_chatgpt("a", mapping={}), "it has no messages with text"),
        (chatgpt.read, of_chatgpt("", " \n"), "it has no messages with text"),
        (claude.read, of_claude(chat_messages={}), "its chat_messages are not a list"),
        (claude.read, of_claude({"text": None}), "it has no messages with text"),
        (openwebui.read, of_openwebui(chat="a"), "its chat is not an object"),
        (openwebui.read, of_openwebui(chat={}), "it has no messages with text"),
    ],
)
def test_a_conversation_that_says_nothing_is_refused_with_its_reason(
    read: Callable[[Any], Parsed],
    raw: Any,
    reason: str,
) -> None:
    """In a sentence."""
    with pytest.raises(Unacceptable, match=f"^{reason}$"):
        read(raw)


@pytest.mark.parametrize("depth", [200, 100_000])
def test_a_conversation_nested_too_deep_is_refused(depth: int) -> None:
    """Before anybody's stack ends."""
    nested: Any = "deep"
    for _ in range(depth):
        nested = [nested]

    with pytest.raises(Unacceptable, match="nested deeper than 100 levels"):
        chatgpt.read(of_chatgpt("a", gizmo_id=nested))
    while isinstance(nested, list):  # taken apart here: the interpreter would do it by recursion
        nested = nested.pop()


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(codec=None), max_size=8)
    | st.sampled_from(["m0", "m1", "root", "text", "code", "tool_use", "image_url"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["type", "content_type", "text", "parts", "content", "name", "input"])
            | st.text(st.characters(codec=None), max_size=3),
            inner,
            max_size=3,
        )
    ),
    max_leaves=8,
)
SOUND = {
    "chatgpt": of_chatgpt("one", {"content_type": "code", "text": "two"}, "three"),
    "claude": of_claude(
        {"text": "one", "parent_message_uuid": claude.NOBODY, "attachments": [], "files": []},
        {"content": [{"type": "tool_use", "name": "t", "input": {}}], "parent_message_uuid": "m0"},
    ),
    "openwebui": of_openwebui(
        {"content": "one", "files": [{"name": "a"}]}, {"content": [{"type": "text", "text": "two"}]}
    ),
}


def ways(value: Any, way: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to everything in a value."""
    if isinstance(value, dict | list):
        for key, each in value.items() if isinstance(value, dict) else enumerate(value):
            yield (*way, key)
            yield from ways(each, (*way, key))


@pytest.mark.parametrize("name", FORMATS)
@given(data=st.data())
def test_whatever_stands_in_a_field_the_conversation_is_read_or_refused(
    name: str, data: st.DataObject
) -> None:
    """And what is read can be stored: every message has a place of its own, text, and JSON."""
    raw = SOUND[name]
    for _ in range(data.draw(st.integers(1, 3))):
        way = data.draw(st.sampled_from(list(ways(raw))))
        raw = change(raw, way, data.draw(st.just(...) | JSON))

    try:
        record = FORMATS[name].read(raw).record
    except Unacceptable:
        return

    texts = [record.source_id, record.title, *(each.content for each in record.messages)]
    details = json.dumps([each.details for each in record.messages], allow_nan=False)
    assert not UNSTORABLE.search("".join(texts))
    assert "\\u0000" not in details
    assert not UNSTORABLE.search(json.dumps(json.loads(details), ensure_ascii=False))
    assert 0 < len(record.source_id) <= 255
    assert all(each.content.strip() for each in record.messages)
    places = [(each.branch, each.position) for each in record.messages]
    assert places == sorted(set(places))
    assert len({each.source_id for each in record.messages}) == len(places)


def test_strict_mode_refuses_what_would_be_changed() -> None:
    """The reason names the field, both values and the rule."""
    raw = of_openwebui({"content": "a", "role": "oracle"})

    with pytest.raises(
        Unacceptable,
        match=r'messages\.m0\.role would be changed from "oracle" to "tool" \(rule role\)',
    ):
        openwebui.read(raw, strict=True)


@pytest.mark.parametrize("name", FORMATS)
def test_a_chain_of_20_000_turns_is_read(name: str) -> None:
    """As deep as a conversation may get, and no recursion on the way."""
    (raw,) = MAKERS[name](1, turns=20_000, words=1)

    parsed = FORMATS[name].read(raw)

    # Conversations of ChatGPT begin with a message that says nothing.
    assert [each.rule for each in parsed.changes] == ["empty"] * (name == "chatgpt")
    assert parsed.record.messages[-1].position == 19_999


LETTERS = [chr(n) for n in range(0x10400, 0x10428)] + [chr(n) for n in range(0x20000, 0x20200)]
"""Letters of four bytes each, which are the longest there are."""

WORST = {
    "one word": "x" * 2_000_000,
    "words of four bytes": " ".join(a + b for a in LETTERS for b in LETTERS),
    # The most that a search can have to read: each half is a word, and both together are one.
    "compounds": " ".join(f"{(a + b) * 90}-{(b + a) * 90}" for a, b in pairwise(LETTERS)),
    "addresses": " ".join(f"{n:x}.example/{n:x}" for n in range(20_000)),
    "numbers": " ".join(f"{n / 7:.6f}" for n in range(20_000)),
    "one word again and again": "price " * 400_000,
}


@pytest.mark.parametrize("content", WORST.values(), ids=WORST)
def test_an_enormous_message_is_kept_whole(session: Session, content: str) -> None:
    """However many words its first 100,000 characters are, they fit what a search reads."""
    message = only(chatgpt.read(of_chatgpt(content), strict=True))
    conversation = ConversationFactory()

    session.add(
        Message(
            conversation_id=conversation.id,
            branch=message.branch,
            position=message.position,
            role=message.role,
            content=message.content,
            details=message.details,
        )
    )
    session.flush()

    assert session.scalar(select(func.length(Message.content))) == len(content)
    # PostgreSQL leaves out a word of more than 2,046 bytes.
    found = session.scalar(select(func.length(Message.message_search)))
    assert (found > 0) == (" " in content)


def test_huge_details_are_storable(session: Session) -> None:
    """A part of a million values, nested as deep as is read, is still JSON of PostgreSQL."""
    nested: Any = 1
    for _ in range(80):
        nested = {"deeper": nested}
    part = {"content_type": "hologram", "points": list(range(1_000_000)), "nested": nested}

    message = only(
        chatgpt.read(of_chatgpt({"content_type": "multimodal_text", "parts": [part]}), strict=True)
    )

    assert message.content == "[hologram]"
    stored = session.connection().exec_driver_sql(
        "SELECT jsonb_array_length(%s -> 'parts' -> 0 -> 'points')", (Jsonb(message.details),)
    )
    assert stored.scalar() == 1_000_000
