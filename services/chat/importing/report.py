"""The report of an import of conversations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pgcorpus.db.text import count_of
from pgcorpus.services.importers.report import ImportReport, Tally


@dataclass
class ChatReport(ImportReport):
    """A report that counts conversations, and the messages in them.

    Attributes:
        messages: How many messages were written.
    """

    messages: int = 0

    @property
    def stored(self) -> int:
        """The number of messages that were written."""
        return self.messages

    def list_remarks(self) -> list[str]:
        """Return sentences that say more than the counts of files, for people."""
        written = count_of(self.messages, "message was", "messages were")
        return [f"{written} written", *super().list_remarks()]

    def as_json(self) -> dict[str, Any]:
        """Return the report for scripts; its shape is fixed."""
        return super().as_json() | {"messages": self.messages}


@dataclass
class ChatTally(Tally):
    """A transaction's conversations.

    Attributes:
        messages: How many messages were written.
    """

    messages: int = 0
