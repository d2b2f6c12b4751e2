"""The decision on a conversation that may be stored already."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

from pgcorpus.db.repositories.chat.imports import (
    ConversationRecord,
    Former,
    KnownConversation,
    Timed,
)
from pgcorpus.db.repositories.imports import Change
from pgcorpus.services.importers.draft import Rule
from pgcorpus.services.importers.report import Outcome


@dataclass(frozen=True, slots=True)
class Decision:
    """The outcome for a conversation, and what is written.

    Attributes:
        outcome: How it counts.
        id: Key of its row, or None where it is rejected.
        changes: What goes into the history.
        reason: Why it is rejected.
        stands_at: Where the one is that it was rejected for, or None.
    """

    outcome: Outcome
    id: UUID | None = None
    changes: list[Change] = field(default_factory=list)
    reason: str = ""
    stands_at: str | None = None

    @property
    def writes(self) -> bool:
        """Return whether the conversation is written."""
        return self.outcome in {"added", "updated"}


def decide(
    record: ConversationRecord,
    record_hash: bytes,
    known: KnownConversation | None,
    *,
    file: str,
    first: str | None,
    legacy: bool,
    same: bool = False,
) -> Decision:
    """Decide whether a conversation is added, replaced, kept or refused.

    Args:
        record: The conversation.
        record_hash: SHA-256 of it.
        known: What is stored under its source and identifier, or None.
        file: Full path of the file that it comes from.
        first: Where this run, or the one that rejected it, has met it before, or None. Two of one
            run, neither newer, do not take turns in replacing each other, nor by a retry.
        legacy: Whether a legacy store has it, which knows less than its provider's export.
        same: Whether it is what is stored, however that came here.
    """
    if known is None:
        return Decision("added", record.id or uuid4())
    if same or known.record_hash == record_hash:
        return Decision("unchanged", known.id)
    there, here = known.source_updated_at, record.source_updated_at
    if legacy and known.imported_from not in {None, file}:
        kept = Change("imported_from", file, known.imported_from, Rule.KEPT.value)
        return Decision("unchanged", known.id, [kept])
    if there is not None and here is not None and here < there:
        older = Change("source_updated_at", here.isoformat(), there.isoformat(), Rule.OLDER.value)
        return Decision("unchanged", known.id, [older])
    if first is not None and (there is None or here is None or here == there):
        return Decision(
            "rejected",
            reason=f"{record.source_id!r} stands at {first}, too, with another content, and "
            "neither is newer; import the one that is meant alone",
            stands_at=first,
        )
    replaced = {
        "title": (known.title, record.title),
        "created_at": (known.created_at, record.created_at),
        "source_updated_at": (there, here),
    }
    changes = [
        Change(name, _as_json(before), _as_json(after), Rule.REPLACED.value)
        for name, (before, after) in replaced.items()
        # What the source does not say stays as it is.
        if before is not None and after is not None and before != after
    ]
    return Decision("updated", known.id, changes)


def list_replacements(former: Former) -> list[Change]:
    """List the changes that record a message that was replaced or deleted."""
    name = f"messages.{former.source_id}"
    if former.present is None:
        gone = {field: _as_json(value) for field, value in former.values.items() if value != {}}
        return [Change(name, gone, None, Rule.REPLACED.value)]
    return [
        Change(
            f"{name}.{field}",
            _as_json(value),
            _as_json(former.present[field]),
            Rule.REPLACED.value,
        )
        for field, value in former.values.items()
    ]


def describe_time(timed: Timed) -> Change:
    """Build the change that records the time that a message without one got."""
    name = f"messages.{timed.source_id}.created_at"
    return Change(name, None, _as_json(timed.created_at), Rule.DEFAULT.value)


def _as_json(value: Any) -> Any:
    """Return the value as JSON: a moment as ISO 8601 in UTC."""
    return value.astimezone(UTC).isoformat() if isinstance(value, datetime) else value
