"""The decision on a conversation that may be stored already."""

from __future__ import annotations

from dataclasses import dataclass, field
from uuid import UUID, uuid4

from pgcorpus.db.repositories.chat.imports import ConversationRecord, Former, KnownConversation
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
    """
    if known is None:
        return Decision("added", record.id or uuid4())
    if known.record_hash == record_hash:
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
    changes = []
    if known.title != record.title:
        changes.append(Change("title", known.title, record.title, Rule.REPLACED.value))
    return Decision("updated", known.id, changes)


def describe_replacement(former: Former) -> Change:
    """Build the change that records a message that was replaced or deleted."""
    name = f"messages.{former.source_id}"
    if former.present is None:
        gone = {"role": former.role, "content": former.content}
        return Change(name, gone, None, Rule.REPLACED.value)
    return Change(f"{name}.content", former.content, former.present, Rule.REPLACED.value)
