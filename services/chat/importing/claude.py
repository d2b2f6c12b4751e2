"""Conversations as Claude exports them: ``conversations.json``, a list of messages each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from pgcorpus.services.chat.importing.parts import Kind, Spoken
from pgcorpus.services.chat.importing.rules import ConversationDraft, Parsed, compact
from pgcorpus.services.chat.importing.tree import Fields, Node, Turn, messages
from pgcorpus.services.importers.draft import Rule, Unacceptable
from pgcorpus.services.importers.text import as_words

SOURCE: Final = "claude"

FIELDS: Final = Fields("chat_messages", "parent_message_uuid", "", None)
FIELDS_WITH_LEAF: Final = FIELDS._replace(current="current_leaf_message_uuid")

NOBODY: Final = "00000000-0000-4000-8000-000000000000"
"""The parent that Claude gives to first messages."""

KINDS: Final[Mapping[str, Kind]] = {
    "text": Kind(texts=("text",)),
    "voice_note": Kind("voice", ("title",), ("text",)),
    "thinking": Kind("thoughts", (), ("thinking",)),
    "redacted_thinking": Kind("thoughts", alone=True),
    "tool_use": Kind("tool", ("name",), arguments="input", alone=True),
    "tool_result": Kind("result", ("name",), ("content",), alone=True),
    "image": Kind("image", ("file_name", "name"), alone=True),
    "document": Kind(
        "file", ("title", "file_name", "name"), ("text", "extracted_content"), alone=True
    ),
    "knowledge": Kind("source", ("title", "url"), ("text",), alone=True),
    "token_budget": Kind("budget"),
}
"""``type`` → kind of the part, as exports from 2024 and 2025 have them."""

DESCRIBED: Final = ("file_name", "file_size", "file_type")
"""Fields of an attachment that describe it."""

UNSUPPORTED: Final = "This block is not supported on your current device yet."
"""The ``text`` that stands in place of a block that ``content`` has."""


def recognises(raw: Any) -> bool:
    """Return whether the value is a conversation of this format, perhaps broken."""
    return isinstance(raw, dict) and "chat_messages" in raw


def read(raw: Any, *, strict: bool = False) -> Parsed:
    """Read one conversation.

    Args:
        raw: Any JSON value.
        strict: Refuse instead of changing a value that is given.

    Raises:
        Unacceptable: It cannot be stored, or ``strict`` forbids how.
    """
    draft = ConversationDraft(strict)
    raw = draft.open(raw)
    listed = raw.get("chat_messages")
    if not isinstance(listed, list):
        raise Unacceptable("its chat_messages are not a list")
    leaf = raw.get("current_leaf_message_uuid")
    fields = FIELDS if leaf is None else FIELDS_WITH_LEAF
    return draft.finish(
        source_type=SOURCE,
        source_id=draft.conversation_id("uuid", raw),
        title=draft.title("name", raw.get("name")),
        created_at=draft.time("created_at", raw.get("created_at")),
        updated_at=draft.time("updated_at", raw.get("updated_at")),
        is_saved=raw.get("is_starred") is True,
        messages=messages(draft, _nodes(draft, listed), leaf, fields),
    )


def _nodes(draft: ConversationDraft, listed: Sequence[Any]) -> list[Node]:
    """Return the messages; one that names no parent answers the one before it in the list."""
    seen: dict[str, Any] = {}
    nodes: list[Node] = []
    for index, each in enumerate(listed):
        name = f"chat_messages[{index}]"
        message = draft.as_object(name, each)
        id_ = draft.once(name, "uuid", index, message, seen)
        if id_ is None:
            continue
        given = message.get("parent_message_uuid")
        parent = draft.as_link(f"{name}.parent_message_uuid", given)
        if parent is None and nodes:
            parent = nodes[-1].id
        nodes.append(Node(id_, None if parent == NOBODY else parent, _turn(draft, name, message)))
    return nodes


def _turn(draft: ConversationDraft, name: str, message: dict[str, Any]) -> Turn | None:
    spoken = _read_text(draft, name, message)
    given = [
        *_files(draft, f"{name}.attachments", message.get("attachments"), spoken),
        *_files(draft, f"{name}.files", message.get("files"), spoken),
    ]
    files = [title for each in given if (title := as_words(each.get("file_name"))) is not None]
    if not spoken.texts:
        draft.change(name, message, None, Rule.EMPTY)
        return None
    sender = message.get("sender")
    details = {
        "model": message.get("model"),
        "files": files,
        "attachments": [each for each in given if each.keys() - {"file_name"}],
        "parts": spoken.parts,
    }
    return Turn(
        role="user" if sender == "human" else draft.role(f"{name}.sender", sender),
        content=spoken.content,
        created_at=draft.time(f"{name}.created_at", message.get("created_at")),
        details=draft.detail(name, compact(details)),
    )


def _read_text(draft: ConversationDraft, name: str, message: dict[str, Any]) -> Spoken:
    """Read the text of the blocks; ``text`` is a second, poorer copy of it, or all there is."""
    spoken = Spoken(draft, KINDS)
    spoken.add(f"{name}.content", message.get("content"))
    text = message.get("text")
    if not spoken.texts:
        spoken.add(f"{name}.text", text)
    elif isinstance(text, str) and not _lines(text) <= _lines(spoken.content):
        draft.change(f"{name}.text", text, spoken.content, Rule.PRECEDENCE)
    return spoken


def _lines(text: str) -> set[str]:
    """Return the lines with text, but for the fence around what is not supported."""
    lines = {line.strip() for line in text.splitlines()}
    return lines - {"", "```", UNSUPPORTED}


def _files(draft: ConversationDraft, name: str, given: Any, spoken: Spoken) -> list[dict[str, Any]]:
    """Return what is known of files: name, size in bytes, type.

    The text that was found in them is spoken after the message's own.
    """
    files = []
    for index, each in enumerate(draft.as_list(name, given)):
        file = draft.as_object(f"{name}[{index}]", each)
        title = as_words(file.get("file_name"))
        spoken.mention("image" if file.get("file_kind") == "image" else "file", [title])
        if (text := as_words(file.get("extracted_content"))) is not None:
            spoken.texts[-1] += f"\n{text}"
        files.append(compact({key: file.get(key) for key in DESCRIBED}))
    return files
