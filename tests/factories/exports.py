"""Exports as the providers write them, of any length: each conversation is one JSON value.

The same knobs and seed give the same export. ``list(chatgpt())`` is what ``conversations.json``
holds; a long one is written as it is made.
"""

from __future__ import annotations

import random
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

WORDS = [
    "price",
    "offer",
    "margin",
    "customer",
    "churn",
    "anchor",
    "value",
    "premium",
    "discount",
    "refund",
    "trial",
    "upgrade",
    "annual",
    "monthly",
    "invoice",
    "contract",
    "bundle",
    "tier",
    "segment",
    "forecast",
    "the",
    "a",
    "of",
    "in",
    "to",
    "and",
    "for",
    "with",
    "why",
    "how",
    "should",
    "we",
    "our",
    "they",
    "pay",
    "more",
    "less",
    "compare",
    "explain",
    "draft",
    "review",
    "summarise",
    "naïve",
    "café",
    "价格",
    "💶",
]

BEGAN = datetime(2024, 3, 1, 9, tzinfo=UTC)


class Said(NamedTuple):
    """One turn, before a provider's format is put on it."""

    id: str
    parent: str | None
    by_user: bool
    text: str
    at: datetime
    image: str | None


class _Size(NamedTuple):
    """The knobs of one conversation; see ``chatgpt``."""

    turns: int
    branches: int
    images: int
    words: int


class _Talk(NamedTuple):
    """One conversation: its turns in the order in which they were said, the last one current."""

    id: str
    title: str
    began: datetime
    turns: list[Said]


def chatgpt(
    conversations: int = 3,
    *,
    turns: int = 6,
    branches: int = 0,
    images: int = 0,
    words: int = 30,
    seed: int = 0,
) -> Iterator[dict[str, Any]]:
    """Conversations of ChatGPT, beginning as its own do: an empty root and a hidden message.

    Args:
        conversations: How many.
        turns: Messages on the way to the current one, in each.
        branches: Answers that were abandoned, in each.
        images: How many messages of each show an image.
        words: Words of a message.
        seed: Another one makes other texts, identifiers and forks.
    """
    for talk in _talks(conversations, _Size(turns, branches, images, words), seed):
        root, hidden = f"{talk.id}-root", f"{talk.id}-system"
        mapping: dict[str, Any] = {
            root: {"id": root, "message": None, "parent": None, "children": [hidden]},
            hidden: {
                "id": hidden,
                "message": {
                    "id": hidden,
                    "author": {"role": "system", "name": None, "metadata": {}},
                    "create_time": None,
                    "update_time": None,
                    "content": {"content_type": "text", "parts": [""]},
                    "status": "finished_successfully",
                    "end_turn": True,
                    "weight": 0.0,
                    "metadata": {"is_visually_hidden_from_conversation": True},
                    "recipient": "all",
                    "channel": None,
                },
                "parent": root,
                "children": [],
            },
        }
        for said in talk.turns:
            parent = said.parent or hidden
            mapping[said.id] = {
                "id": said.id,
                "message": _of_chatgpt(said),
                "parent": parent,
                "children": [],
            }
            mapping[parent]["children"].append(said.id)
        yield {
            "title": talk.title,
            "create_time": talk.began.timestamp(),
            "update_time": talk.turns[-1].at.timestamp(),
            "mapping": mapping,
            "moderation_results": [],
            "current_node": talk.turns[-1].id,
            "plugin_ids": None,
            "conversation_id": talk.id,
            "conversation_template_id": None,
            "gizmo_id": None,
            "is_archived": False,
            "is_starred": None,
            "safe_urls": [],
            "default_model_slug": "gpt-4o",
            "id": talk.id,
        }


def claude(
    conversations: int = 3,
    *,
    turns: int = 6,
    branches: int = 0,
    images: int = 0,
    words: int = 30,
    seed: int = 0,
) -> Iterator[dict[str, Any]]:
    """Conversations of Claude; for the arguments see ``chatgpt``."""
    for talk in _talks(conversations, _Size(turns, branches, images, words), seed):
        yield {
            "uuid": talk.id,
            "name": talk.title,
            "created_at": _iso(talk.began),
            "updated_at": _iso(talk.turns[-1].at),
            "account": {"uuid": str(uuid.UUID(int=seed))},
            "chat_messages": [
                {
                    "uuid": said.id,
                    "text": said.text,
                    "content": [
                        {
                            "start_timestamp": _iso(said.at),
                            "stop_timestamp": _iso(said.at),
                            "flags": None,
                            "type": "text",
                            "text": said.text,
                            "citations": [],
                        }
                    ],
                    "sender": "human" if said.by_user else "assistant",
                    "created_at": _iso(said.at),
                    "updated_at": _iso(said.at),
                    "attachments": [],
                    "files": [] if said.image is None else [{"file_name": said.image}],
                    "parent_message_uuid": said.parent or "00000000-0000-4000-8000-000000000000",
                }
                for said in talk.turns
            ],
        }


def openwebui(
    conversations: int = 3,
    *,
    turns: int = 6,
    branches: int = 0,
    images: int = 0,
    words: int = 30,
    seed: int = 0,
) -> Iterator[dict[str, Any]]:
    """Conversations of Open WebUI; for the arguments see ``chatgpt``."""
    for talk in _talks(conversations, _Size(turns, branches, images, words), seed):
        found = {said.id: _of_openwebui(said) for said in talk.turns}
        for said in talk.turns:
            if said.parent is not None:
                found[said.parent]["childrenIds"].append(said.id)
        path = []
        at: str | None = talk.turns[-1].id
        while at is not None:
            path.append(found[at])
            at = found[at]["parentId"]
        yield {
            "id": talk.id,
            "user_id": str(uuid.UUID(int=seed)),
            "title": talk.title,
            "chat": {
                "id": "",
                "title": talk.title,
                "models": ["llama3.1:8b"],
                "params": {},
                "history": {"messages": found, "currentId": talk.turns[-1].id},
                "messages": path[::-1],
                "tags": [],
                "timestamp": int(talk.began.timestamp() * 1000),
                "files": [],
            },
            "updated_at": int(talk.turns[-1].at.timestamp()),
            "created_at": int(talk.began.timestamp()),
            "share_id": None,
            "archived": False,
            "pinned": False,
            "meta": {"tags": ["pricing"]},
            "folder_id": None,
        }


def _talks(conversations: int, size: _Size, seed: int) -> Iterator[_Talk]:
    source = random.Random(seed)  # noqa: S311 - texts for tests
    for number in range(conversations):
        yield _talk(source, number, size)


def _talk(source: random.Random, number: int, size: _Size) -> _Talk:
    turns, branches, images, words = size
    began = BEGAN + timedelta(hours=number % 10_000)
    main = [_key(source) for _ in range(turns)]
    shown = set(source.sample(main, min(images, turns)))
    said = [
        Said(
            id_,
            main[place - 1] if place else None,
            place % 2 == 0,
            _text(source, words),
            began + timedelta(minutes=2 * place),
            f"photo-{number}-{place}.png" if id_ in shown else None,
        )
        for place, id_ in enumerate(main)
    ]
    abandoned = []
    for _ in range(branches if turns > 1 else 0):
        place = source.randrange(1, turns)
        at = began + timedelta(minutes=2 * place - 1)
        text = _text(source, words)
        abandoned.append(Said(_key(source), main[place - 1], place % 2 == 0, text, at, None))
    in_order = sorted([*said[:-1], *abandoned], key=lambda each: each.at)
    return _Talk(_key(source), _text(source, 5), began, [*in_order, *said[-1:]])


def _key(source: random.Random) -> str:
    return str(uuid.UUID(int=source.getrandbits(128), version=4))


def _text(source: random.Random, words: int) -> str:
    return " ".join(source.choices(WORDS, k=words))


def _iso(moment: datetime) -> str:
    return moment.isoformat(timespec="microseconds").replace("+00:00", "Z")


def _of_chatgpt(said: Said) -> dict[str, Any]:
    content: dict[str, Any] = {"content_type": "text", "parts": [said.text]}
    metadata: dict[str, Any] = {"request_id": said.id}
    if not said.by_user:
        metadata |= {"model_slug": "gpt-4o", "finish_details": {"type": "stop"}}
    if said.image is not None:
        file = f"file-{said.id}"
        pointer = {
            "content_type": "image_asset_pointer",
            "asset_pointer": f"file-service://{file}",
            "size_bytes": 123_456,
            "width": 640,
            "height": 480,
            "fovea": None,
            "metadata": None,
        }
        content = {"content_type": "multimodal_text", "parts": [pointer, said.text]}
        metadata["attachments"] = [
            {"id": file, "name": said.image, "size": 123_456, "mimeType": "image/png"}
        ]
    return {
        "id": said.id,
        "author": {
            "role": "user" if said.by_user else "assistant",
            "name": None,
            "metadata": {},
        },
        "create_time": said.at.timestamp(),
        "update_time": None,
        "content": content,
        "status": "finished_successfully",
        "end_turn": None,
        "weight": 1.0,
        "metadata": metadata,
        "recipient": "all",
        "channel": None,
    }


def _of_openwebui(said: Said) -> dict[str, Any]:
    message: dict[str, Any] = {
        "id": said.id,
        "parentId": said.parent,
        "childrenIds": [],
        "role": "user" if said.by_user else "assistant",
        "content": said.text,
        "timestamp": int(said.at.timestamp()),
    }
    if said.by_user:
        message["models"] = ["llama3.1:8b"]
    else:
        message |= {"model": "llama3.1:8b", "modelName": "llama3.1:8b", "modelIdx": 0, "done": True}
    if said.image is not None:
        message["files"] = [{"type": "image", "name": said.image, "url": f"/files/{said.id}"}]
    return message
