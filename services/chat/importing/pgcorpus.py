"""Conversations as this archive exports them: complete, as they came from their source."""

from __future__ import annotations

from operator import attrgetter
from typing import Any, Final
from uuid import UUID

from pgcorpus.db.choices import NATIVE
from pgcorpus.db.models.chat import ROLES, Role
from pgcorpus.db.repositories.chat.imports import SOURCE_ID, MessageRecord
from pgcorpus.services.chat.exporting.exporter import JSON_FORMAT, JSON_VERSION
from pgcorpus.services.chat.importing.rules import MAX_SOURCE, ConversationDraft, Parsed
from pgcorpus.services.importers.draft import Unacceptable
from pgcorpus.services.importers.language import NAMES
from pgcorpus.services.importers.text import MAX_NAME, describe_value

SOURCE: Final = "pgcorpus"

MAX_PLACE: Final = 2**31
"""The first number past the greatest branch or position: the columns are of four bytes."""


def recognises(raw: Any) -> bool:
    """Return whether the value is an export of this archive, of whatever version."""
    return isinstance(raw, dict) and raw.get("format") == JSON_FORMAT


def read(raw: Any, *, strict: bool = False) -> Parsed:
    """Read one conversation. Nothing of it is repaired: what is not as we write it is refused.

    Args:
        raw: Any JSON value.
        strict: Refuse what cannot be stored as it stands.

    Raises:
        Unacceptable: It is of a version that is not known, or not of the export's shape.
    """
    draft = ConversationDraft(strict)
    raw = draft.open(raw)
    if raw.get("version") != JSON_VERSION:
        raise Unacceptable(
            f"it is of version {describe_value(raw.get('version'))}, and version {JSON_VERSION} is "
            "read here; upgrade pgcorpus, then: pgcorpus import retry --corpus chat"
        )
    told, listed = raw.get("conversation"), raw.get("messages")
    if not isinstance(told, dict) or not isinstance(listed, list):
        raise Unacceptable("it lacks its conversation or its messages")
    source_type = _text("source_type", told.get("source_type"), MAX_SOURCE)
    source_id = told.get("source_id")
    key = None
    if source_id is None and source_type == NATIVE:
        key = _key("id", told.get("id"))
        source_id = str(key)
    messages = sorted(
        (_message(draft, f"messages[{n}]", each) for n, each in enumerate(listed)),
        key=attrgetter("branch", "position"),
    )
    if len({(each.branch, each.position) for each in messages}) < len(messages):
        raise Unacceptable("two of its messages have the same place")
    if len({each.source_id for each in messages}) < len(messages):
        raise Unacceptable("two of its messages have the same identifier")
    return draft.finish(
        source_type=source_type,
        source_id=_text("source_id", source_id, MAX_NAME),
        title=draft.title("title", told.get("title")),
        created_at=draft.time("created_at", told.get("created_at")),
        updated_at=draft.time("source_updated_at", told.get("source_updated_at")),
        is_saved=told.get("is_saved") is True,
        messages=messages,
        id=key,
        made_up=False,
    )


def _message(draft: ConversationDraft, name: str, raw: Any) -> MessageRecord:
    if not isinstance(raw, dict):
        raise Unacceptable(f"{name} must be an object")
    key = _text(f"{name}.id", raw.get("id"), MAX_NAME)
    metadata = raw.get("metadata")
    if not isinstance(metadata, dict):
        raise Unacceptable(f"{name}.metadata must be an object")
    language = raw.get("language")
    return MessageRecord(
        source_id=_text(f"{name}.metadata.{SOURCE_ID}", metadata.get(SOURCE_ID, key), MAX_NAME),
        branch=_place(f"{name}.branch", raw.get("branch")),
        position=_place(f"{name}.position", raw.get("position")),
        role=_role(f"{name}.role", raw.get("role")),
        content=_text(f"{name}.content", raw.get("content")),
        created_at=draft.time(f"{name}.created_at", raw.get("created_at")),
        details={field: value for field, value in metadata.items() if field != SOURCE_ID},
        language=language if language in NAMES else None,
        is_native=SOURCE_ID not in metadata,
    )


def _key(name: str, value: Any) -> UUID:
    try:
        return UUID(value)
    except (ValueError, TypeError, AttributeError):
        raise Unacceptable(f"{name} cannot be {describe_value(value)}") from None


def _text(name: str, value: Any, limit: int | None = None) -> str:
    if not isinstance(value, str) or not value.strip() or len(value) > (limit or len(value)):
        raise Unacceptable(f"{name} cannot be {describe_value(value)}")
    return value


def _role(name: str, value: Any) -> Role:
    if value not in ROLES:
        raise Unacceptable(f"{name} cannot be {describe_value(value)}")
    role: Role = value
    return role


def _place(name: str, value: Any) -> int:
    if type(value) is not int or not 0 <= value < MAX_PLACE:
        raise Unacceptable(f"{name} cannot be {describe_value(value)}")
    return value
