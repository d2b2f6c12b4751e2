"""Conversations as ChatGPT exports them: ``conversations.json``, a tree of messages each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from pgcorpus.services.chat.importing.parts import Kind, Spoken
from pgcorpus.services.chat.importing.rules import ConversationDraft, Parsed, compact
from pgcorpus.services.chat.importing.tree import Fields, Node, Turn, messages
from pgcorpus.services.importers.draft import Rule, Unacceptable
from pgcorpus.services.importers.text import as_words

SOURCE: Final = "chatgpt"

FIELDS: Final = Fields("mapping", "parent", "children", "current_node")

_MEDIA: Final = ("name",)

KINDS: Final[Mapping[str, Kind]] = {
    "text": Kind(texts=("parts", "text")),
    "multimodal_text": Kind(texts=("parts", "text")),
    "code": Kind("code", ("language",), ("text",)),
    "execution_output": Kind("output", (), ("text",)),
    "computer_output": Kind("output", (), ("text",), alone=True),
    "tether_quote": Kind("quote", ("title", "domain", "url"), ("text",)),
    "tether_browsing_display": Kind("browsing", (), ("summary", "result")),
    "thoughts": Kind("thoughts", (), ("thoughts",)),
    "reasoning_recap": Kind("reasoning", (), ("content",)),
    "user_editable_context": Kind("context", (), ("user_profile", "user_instructions")),
    "model_editable_context": Kind("context", (), ("model_set_context",)),
    "system_error": Kind("error", ("name",), ("text",), alone=True),
    "image_asset_pointer": Kind("image", _MEDIA, alone=True),
    "audio_asset_pointer": Kind("audio", _MEDIA, alone=True),
    "video_container_asset_pointer": Kind("video", _MEDIA, alone=True),
    "real_time_user_audio_video_asset_pointer": Kind("audio", _MEDIA, alone=True),
    "audio_transcription": Kind(texts=("text",)),
}
"""``content_type`` → kind of the part, as exports from 2023 to 2025 have them."""

USUAL_STATUS: Final = "finished_successfully"
ALL_RECIPIENTS: Final = "all"
HIDDEN: Final = "is_visually_hidden_from_conversation"
CONTEXTS: Final = frozenset({"user_editable_context", "model_editable_context"})
"""``content_type`` of custom instructions and memories: told to the model, and never shown."""


def recognises(raw: Any) -> bool:
    """Return whether the value is a conversation of this format, perhaps broken."""
    return isinstance(raw, dict) and "mapping" in raw


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
    mapping = raw.get("mapping")
    if not isinstance(mapping, dict):
        raise Unacceptable("its mapping is not an object")
    nodes = [_node(draft, id_, node) for id_, node in mapping.items()]
    name = "conversation_id" if raw.get("conversation_id") is not None else "id"
    return draft.finish(
        source_type=SOURCE,
        source_id=draft.conversation_id(name, raw),
        title=draft.title("title", raw.get("title")),
        created_at=draft.time("create_time", raw.get("create_time")),
        updated_at=draft.time("update_time", raw.get("update_time")),
        is_saved=raw.get("is_starred") is True,
        messages=messages(draft, nodes, raw.get("current_node"), FIELDS),
    )


def _node(draft: ConversationDraft, id_: str, raw: Any) -> Node:
    name = f"mapping.{id_}"
    node = draft.as_object(name, raw)
    parent = draft.as_link(f"{name}.parent", node.get("parent"))
    message = draft.as_object(f"{name}.message", node.get("message"))
    if not message and parent is not None:
        draft.change(f"{name}.message", None, None, Rule.SPLICED)
    children = None
    if "children" in node:
        children = draft.as_links(f"{name}.children", node["children"])
    turn = _turn(draft, f"{name}.message", message)
    if turn is not None and _is_hidden(message):
        when = None if turn.created_at is None else turn.created_at.isoformat()
        said = {"id": id_, "role": turn.role, "content": turn.content, "created_at": when}
        return Node(id_, parent, None, children, compact(said) | turn.details)
    return Node(id_, parent, turn, children)


def _is_hidden(message: Mapping[str, Any]) -> bool:
    """Return whether ChatGPT does not show the message."""
    metadata, content = message.get("metadata"), message.get("content")
    kind = content.get("content_type") if isinstance(content, dict) else None
    return (
        message.get("weight") == 0
        or (isinstance(metadata, dict) and metadata.get(HIDDEN) is True)
        or (isinstance(kind, str) and kind in CONTEXTS)
    )


def _turn(draft: ConversationDraft, name: str, message: dict[str, Any]) -> Turn | None:
    """Read the turn of a message, or None."""
    if not message:
        return None
    author = draft.as_object(f"{name}.author", message.get("author"))
    metadata = draft.as_object(f"{name}.metadata", message.get("metadata"))
    files = _attachments(draft, f"{name}.metadata.attachments", metadata.get("attachments"))
    spoken = _read_text(draft, f"{name}.content", message.get("content"), files)
    if not spoken.texts:
        draft.change(name, message, None, Rule.EMPTY)
        return None
    status, recipient = message.get("status"), message.get("recipient")
    details = {
        "model": metadata.get("model_slug"),
        "name": author.get("name"),
        "files": list(files.values()),
        "parts": spoken.parts,
        "status": None if status == USUAL_STATUS else status,
        "recipient": None if recipient == ALL_RECIPIENTS else recipient,
    }
    return Turn(
        role=draft.role(f"{name}.author.role", author.get("role")),
        content=spoken.content,
        created_at=draft.time(f"{name}.create_time", message.get("create_time")),
        details=draft.detail(name, compact(details)),
    )


def _attachments(draft: ConversationDraft, name: str, given: Any) -> dict[str, str]:
    """Return the files that came with a message: identifier → name."""
    found = {}
    for index, each in enumerate(draft.as_list(name, given)):
        attachment = draft.as_object(f"{name}[{index}]", each)
        if (title := as_words(attachment.get("name"))) is not None:
            found[str(attachment.get("id", index))] = title
    return found


def _read_text(
    draft: ConversationDraft,
    name: str,
    content: Any,
    files: Mapping[str, str],
) -> Spoken:
    """Read the text of a message, with a placeholder for each of its files."""
    shown = set()
    if isinstance(content, dict) and isinstance(parts := content.get("parts"), list):
        named = []
        for part in parts:
            file = _file_of(part, files)
            named.append(part if file is None else part | {"name": files[file]})
            shown.add(file)
        content = content | {"parts": named}
    spoken = Spoken(draft, KINDS)
    spoken.add(name, content)
    spoken.mention("file", [title for file, title in files.items() if file not in shown])
    return spoken


def _file_of(part: Any, files: Mapping[str, str]) -> str | None:
    """Return the file that a part shows: ``file-service://file-abc`` is the file ``file-abc``."""
    pointer = part.get("asset_pointer") if isinstance(part, dict) else None
    file = pointer.rsplit("/", 1)[-1] if isinstance(pointer, str) else None
    return file if file in files else None
