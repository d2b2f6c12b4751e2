"""Exports of conversations: to be read, to be kept, to be imported elsewhere."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final, get_args

from pgcorpus.db.engine import Database
from pgcorpus.db.errors import InvalidValue
from pgcorpus.db.models.chat import Conversation, Message
from pgcorpus.services.chat.exporting.markdown import as_markdown
from pgcorpus.services.chat.exporting.openwebui import as_openwebui
from pgcorpus.services.choices import ExportFormat
from pgcorpus.services.corpus import Exported

FORMATS: Final = get_args(ExportFormat)

JSON_FORMAT: Final = "pgcorpus-chat"
JSON_VERSION: Final = 1
"""The version of the shape in docs/how-to/export-chats.md; a reader refuses one that it does not
know."""

MAX_NAME_CHARACTERS: Final = 50
"""Characters of a title in a file's name: with four bytes each and the rest, below the 255 of file
systems."""


class ChatExporter:
    """Exports conversations.

    Args:
        database: Where from.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def export(self, reference: str, to: ExportFormat = "markdown") -> Exported:
        """Export one conversation, with all its branches.

        Args:
            reference: Its key, or ``source_type:source_id``.
            to: ``markdown`` to be read, ``json`` with all that is stored of it, ``openwebui`` to be
                imported there.

        Raises:
            InvalidReference: It is of neither form.
            NotFound: There is no such conversation.
            InvalidValue: There is no such format.
        """
        if to not in FORMATS:
            raise InvalidValue(f"there is no format {to!r}; known: {', '.join(FORMATS)}")
        with self._database.unit_of_work() as work:
            conversation = work.chat.get_by_reference(reference)
            messages = work.messages.list_messages(conversation.id, branch=None)
        write, suffix = _WRITERS[to]
        return Exported(write(conversation, messages), f"{_name_file(conversation)}{suffix}")


def as_json(conversation: Conversation, messages: Sequence[Message]) -> dict[str, Any]:
    """Return everything stored of a conversation but what the database computes; times in UTC."""
    return {
        "format": JSON_FORMAT,
        "version": JSON_VERSION,
        "conversation": {
            "id": str(conversation.id),
            "title": conversation.title,
            "source_type": conversation.source_type,
            "source_id": conversation.source_id,
            "created_at": _exact(conversation.created_at),
            "updated_at": _exact(conversation.updated_at),
            "source_updated_at": _exact(conversation.source_updated_at),
            "is_saved": conversation.is_saved,
            "record_hash": conversation.record_hash and conversation.record_hash.hex(),
            "imported_from": conversation.imported_from,
        },
        "messages": [
            {
                "id": str(each.id),
                "branch": each.branch,
                "position": each.position,
                "role": each.role,
                "content": each.content,
                "metadata": each.details,
                "created_at": _exact(each.created_at),
                "updated_at": _exact(each.updated_at),
                "version": each.version,
                "language": each.language,
            }
            for each in messages
        ],
    }


def _write_json(
    shape: Callable[[Conversation, Sequence[Message]], Any],
) -> Callable[[Conversation, Sequence[Message]], str]:
    def write(conversation: Conversation, messages: Sequence[Message]) -> str:
        return json.dumps(shape(conversation, messages), ensure_ascii=False, indent=2) + "\n"

    return write


_WRITERS: Final[
    Mapping[ExportFormat, tuple[Callable[[Conversation, Sequence[Message]], str], str]]
] = {
    "markdown": (as_markdown, ".md"),
    "json": (_write_json(as_json), ".json"),
    "openwebui": (_write_json(as_openwebui), ".openwebui.json"),
}


def _exact(moment: datetime | None) -> str | None:
    """Format a time as ISO 8601 in UTC, to the microsecond."""
    return None if moment is None else moment.astimezone(UTC).isoformat().replace("+00:00", "Z")


def _name_file(conversation: Conversation) -> str:
    words = "".join(c if c.isalnum() else " " for c in conversation.title).split()
    title = "-".join(words)[:MAX_NAME_CHARACTERS].strip("-")
    return "-".join(each for each in (title, conversation.id.hex[:8]) if each)
