"""Conversations as Open WebUI exports them: a tree of messages each, or a list."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from pgcorpus.db.repositories.chat.imports import MessageRecord
from pgcorpus.services.chat.importing.parts import Kind, Spoken
from pgcorpus.services.chat.importing.rules import ConversationDraft, Parsed, compact
from pgcorpus.services.chat.importing.tree import Fields, Node, Turn, messages
from pgcorpus.services.importers.draft import Rule, Unacceptable
from pgcorpus.services.importers.text import as_words

SOURCE: Final = "openwebui"

KINDS: Final[Mapping[str, Kind]] = {
    "text": Kind(texts=("text",)),
    "input_text": Kind(texts=("text",)),
    "output_text": Kind(texts=("text",)),
    "image_url": Kind("image", ("name",), alone=True),
    "image": Kind("image", ("name",), alone=True),
    "input_audio": Kind("audio", ("name",), alone=True),
    "file": Kind("file", ("name",), alone=True),
    "error": Kind("error", (), ("content",)),
}
"""``type`` → kind of the part: those of OpenAI's chat messages, and Open WebUI's files."""


def recognises(raw: Any) -> bool:
    """Return whether the value is a conversation of this format, perhaps broken."""
    if not isinstance(raw, dict):
        return False
    chat = raw.get("chat", raw)
    if not isinstance(chat, dict):
        return "user_id" in raw
    if isinstance(history := chat.get("history"), dict):
        return "messages" in history
    return chat is not raw and _is_list_of_messages(chat)


def accepts(raw: Any) -> bool:
    """Return whether ``recognises`` does, or the value is a bare list of messages.

    Many programs write such lists.
    """
    return recognises(raw) or (isinstance(raw, dict) and _is_list_of_messages(raw))


def _is_list_of_messages(chat: dict[str, Any]) -> bool:
    listed = chat.get("messages")
    return isinstance(listed, list) and all(
        isinstance(each, dict) and {"role", "content"} <= each.keys() for each in listed
    )


def read(raw: Any, *, strict: bool = False) -> Parsed:
    """Read one conversation.

    Args:
        raw: Any JSON value: a record of the export, or the ``chat`` of one.
        strict: Refuse instead of changing a value that is given.

    Raises:
        Unacceptable: It cannot be stored, or ``strict`` forbids how.
    """
    draft = ConversationDraft(strict)
    raw = draft.open(raw)
    chat = raw.get("chat", raw)
    if not isinstance(chat, dict):
        raise Unacceptable("its chat is not an object")
    inside = "" if chat is raw else "chat."
    titled = raw if raw.get("title") is not None else chat
    began, when = ("created_at", raw) if raw.get("created_at") is not None else ("timestamp", chat)
    return draft.finish(
        source_type=SOURCE,
        source_id=draft.conversation_id("id", raw if raw.get("id") or not chat.get("id") else chat),
        title=draft.title("title", titled.get("title")),
        created_at=draft.time(began, when.get(began)),
        updated_at=draft.time("updated_at", raw.get("updated_at")),
        is_saved=raw.get("pinned") is True,
        messages=_messages(draft, inside, chat),
    )


def _messages(draft: ConversationDraft, inside: str, chat: dict[str, Any]) -> list[MessageRecord]:
    """Return the tree of the history, or where there is none the list that old versions kept."""
    history = draft.as_object(f"{inside}history", chat.get("history"))
    tree = draft.as_object(f"{inside}history.messages", history.get("messages"))
    if tree:
        name = f"{inside}history.messages"
        nodes = [_node(draft, f"{name}.{id_}", id_, each) for id_, each in tree.items()]
        fields = Fields(name, "parentId", "childrenIds", f"{inside}history.currentId")
        return messages(draft, nodes, history.get("currentId"), fields)
    name = f"{inside}messages"
    nodes = _in_line(draft, name, draft.as_list(name, chat.get("messages")))
    return messages(draft, nodes, None, Fields(name, "parentId", "childrenIds", None))


def _node(draft: ConversationDraft, name: str, id_: str, raw: Any) -> Node:
    message = draft.as_object(name, raw)
    if message.get("id") not in (None, id_):
        draft.change(f"{name}.id", message["id"], id_, Rule.IDENTIFIER)
    parent = draft.as_link(f"{name}.parentId", message.get("parentId"))
    children = None
    if "childrenIds" in message:
        children = draft.as_links(f"{name}.childrenIds", message["childrenIds"])
    return Node(id_, parent, _turn(draft, name, message), children)


def _in_line(draft: ConversationDraft, name: str, listed: Sequence[Any]) -> list[Node]:
    """Return messages each of which answers the one before it."""
    seen: dict[str, Any] = {}
    nodes: list[Node] = []
    for index, each in enumerate(listed):
        path = f"{name}[{index}]"
        message = draft.as_object(path, each)
        id_ = draft.once(path, "id", index, message, seen)
        if id_ is not None:
            parent = nodes[-1].id if nodes else None
            nodes.append(Node(id_, parent, _turn(draft, path, message)))
    return nodes


def _turn(draft: ConversationDraft, name: str, message: dict[str, Any]) -> Turn | None:
    spoken = Spoken(draft, KINDS)
    spoken.add(f"{name}.content", message.get("content"))
    files = _files(draft, f"{name}.files", message.get("files"), spoken)
    if isinstance(error := message.get("error"), dict):
        spoken.add(f"{name}.error", {"type": "error", "content": error.get("content")})
    if not spoken.texts:
        if message:
            draft.change(name, message, None, Rule.EMPTY)
        else:
            draft.change(name, None, None, Rule.SPLICED)
        return None
    details = {"model": message.get("model"), "files": files, "parts": spoken.parts}
    return Turn(
        role=draft.role(f"{name}.role", message.get("role")),
        content=spoken.content,
        created_at=draft.time(f"{name}.timestamp", message.get("timestamp")),
        details=draft.detail(name, compact(details)),
    )


def _files(draft: ConversationDraft, name: str, given: Any, spoken: Spoken) -> list[str]:
    """Return the names of files.

    Their content is not kept: Open WebUI has it by their identifier.
    """
    names = []
    for index, each in enumerate(draft.as_list(name, given)):
        file = draft.as_object(f"{name}[{index}]", each)
        kind = "image" if file.get("type") == "image" else "file"
        title = as_words(file.get("name"))
        spoken.mention(kind, [title])
        if title is not None:
            names.append(title)
    return names
