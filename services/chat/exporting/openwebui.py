"""A conversation as OpenWebUI exports and imports it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from pgcorpus.db.models.chat import Conversation, Message
from pgcorpus.services.chat.exporting.tree import turns_before


def as_openwebui(conversation: Conversation, messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Return an export of one conversation, with its branches as a tree.

    OpenWebUI knows times to the second.

    Args:
        conversation: Which. One that came from OpenWebUI keeps its identifier.
        messages: All of it, by branch and position.
    """
    before = turns_before(messages)
    children: defaultdict[str | None, list[str]] = defaultdict(list)
    for each in messages:
        children[_key(before[each.id])].append(str(each.id))
    nodes: dict[str, dict[str, Any]] = {
        str(each.id): {
            "id": str(each.id),
            "parentId": _key(before[each.id]),
            "childrenIds": children[str(each.id)],
            "role": each.role,
            "content": each.content,
            "timestamp": int(each.created_at.timestamp()),
            **_model(each),
        }
        for each in messages
    }
    main = [nodes[str(each.id)] for each in messages if each.branch == 0]
    from_there = conversation.source_type == "openwebui" and conversation.source_id
    changed = conversation.source_updated_at or conversation.updated_at
    return [
        {
            "id": from_there or str(conversation.id),
            "title": conversation.title,
            "chat": {
                "title": conversation.title,
                "history": {
                    "messages": nodes,
                    "currentId": main[-1]["id"] if main else None,
                },
                "messages": main,
            },
            "created_at": int(conversation.created_at.timestamp()),
            "updated_at": int(changed.timestamp()),
            "pinned": conversation.is_saved,
            "archived": False,
        }
    ]


def _key(message: Message | None) -> str | None:
    return None if message is None else str(message.id)


def _model(message: Message) -> dict[str, str]:
    """Return the model that answered, where the source said which."""
    model = message.details.get("model")
    return {"model": model} if message.role == "assistant" and isinstance(model, str) else {}
