"""The rules that turn a conversation as it stands into records, shared by all formats.

Each change is recorded.

docs/reference/import-rules.md describes every rule to the people who read the history.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from pgcorpus.db.models.chat import ROLES, Role
from pgcorpus.db.repositories.chat.imports import ConversationRecord, MessageRecord
from pgcorpus.db.repositories.imports import Change
from pgcorpus.services.importers.draft import Draft, Rule, Unacceptable, is_identifier

MAX_SOURCE: Final = 50
"""Characters of ``conversations.source_type``."""

OTHER_ROLES: Final[Mapping[str, Role]] = {
    "human": "user",
    "ai": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "developer": "system",
    "function": "tool",
}
UNKNOWN_ROLE: Final[Role] = "tool"
"""The role of a speaker that is neither the user nor the assistant: a tool that one of them
called."""


class NothingSaid(Unacceptable):
    """The conversation has no messages with text, as some in every provider's exports."""


@dataclass(frozen=True, slots=True)
class Parsed:
    """A conversation that can be stored.

    Attributes:
        record: The conversation, within all constraints of the tables.
        changes: How it differs from what was given.
    """

    record: ConversationRecord
    changes: list[Change]


@dataclass(slots=True)
class ConversationDraft(Draft):
    """A conversation being read, and the changes made so far."""

    def open(self, raw: Any) -> dict[str, Any]:
        """Return the conversation as an object of which every value can be stored.

        Raises:
            Unacceptable: It is no object, or nested too deep.
        """
        if not isinstance(raw, dict):
            raise Unacceptable("a conversation must be an object")
        return self.storable(raw)

    def change(self, name: str, original: Any, stored: Any, rule: Rule) -> None:
        """Record that a given value is stored otherwise.

        Raises:
            Unacceptable: That is forbidden. A message that says nothing may always be left out:
                every provider's exports have such.
        """
        if rule is Rule.EMPTY:
            self.record(name, original, stored, rule)
        else:
            Draft.change(self, name, original, stored, rule)  # super() knows no class with slots

    def conversation_id(self, name: str, raw: dict[str, Any]) -> str:
        """Return the identifier of a conversation.

        Without one, it is made of the content, so that the same content has the same.
        """
        value = raw.get(name)
        if is_identifier(value):
            return str(value)
        canonical = json.dumps(raw, sort_keys=True, default=float)
        digest = hashlib.sha256(canonical.encode()).hexdigest()
        return self.identifier(name, value, f"sha256-{digest}")

    def once(
        self, name: str, key: str, index: int, message: dict[str, Any], seen: dict[str, Any]
    ) -> str | None:
        """Return the identifier of a message in a list, made unique; None for a copy of one before.

        Args:
            name: Of the message.
            key: Its field that holds the identifier.
            index: Its place in the list.
            message: The message.
            seen: Those before by identifier; this one is added.
        """
        given = self.identifier(f"{name}.{key}", message.get(key), f"#{index}")
        stored = given
        if given in seen:
            if seen[given] == message:
                self.change(name, message, None, Rule.DUPLICATE)
                return None
            stored = f"{given}#{index}"
            self.change(f"{name}.{key}", given, stored, Rule.DUPLICATE)
        seen[stored] = message
        return stored

    def title(self, name: str, value: Any) -> str:
        """Return the title: empty where there is none."""
        if isinstance(value, str):
            return value
        stored = "" if value is None else json.dumps(value, ensure_ascii=False)
        self.change(name, value, stored, Rule.TITLE)
        return stored

    def role(self, name: str, value: Any) -> Role:
        """Return the speaker in the four roles of the archive."""
        if value in ROLES:
            role: Role = value
            return role
        word = value.strip().lower() if isinstance(value, str) else ""
        stored: Role = next(
            (role for role in ROLES if role == word), OTHER_ROLES.get(word, UNKNOWN_ROLE)
        )
        self.change(name, value, stored, Rule.ROLE)
        return stored

    def finish(
        self,
        *,
        source_type: str,
        source_id: str,
        title: str,
        created_at: datetime | None,
        updated_at: datetime | None,
        is_saved: bool,
        messages: Sequence[MessageRecord],
        id: UUID | None = None,  # noqa: A002 - as the record's field
        made_up: bool = True,
    ) -> Parsed:
        """Return the finished conversation, with its changes.

        Args:
            source_type: As the fields of ``ConversationRecord``, and all that follow.
            source_id: As above.
            title: As above.
            created_at: As above.
            updated_at: As above.
            is_saved: As above.
            messages: As above.
            id: As above.
            made_up: Whether the times that it lacks become those of its messages.

        Raises:
            NothingSaid: It has no messages.
            Unacceptable: It has none, and a value that might have held some is unreadable.
        """
        if not messages:
            lost = any(each.rule == Rule.SHAPE for each in self.changes)
            raise (Unacceptable if lost else NothingSaid)("it has no messages with text")
        times = [each.created_at for each in messages if each.created_at is not None and made_up]
        record = ConversationRecord(
            source_type=source_type,
            source_id=source_id,
            title=title,
            created_at=created_at or min(times, default=None),
            source_updated_at=updated_at or max(times, default=None),
            messages=tuple(messages),
            is_saved=is_saved,
            id=id,
        )
        return Parsed(record, self.changes)


def compact(details: Mapping[str, Any]) -> dict[str, Any]:
    """Return the details that have a value."""
    return {name: value for name, value in details.items() if value not in (None, "", [], {})}
