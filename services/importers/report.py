"""The report of an import, counted in passages."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any, Final, Literal

Outcome = Literal["added", "updated", "unchanged", "rejected"]
"""What becomes of a passage: it is in exactly one of these counts."""

COUNTS: Final = ("added", "updated", "unchanged", "rejected", "transformed")


@dataclass(frozen=True, slots=True)
class Reject:
    """A passage that was refused.

    Attributes:
        file: As it was given.
        locator: Where in the file, as a JSON path.
        reason: Why.
    """

    file: str
    locator: str
    reason: str


@dataclass(frozen=True, slots=True)
class Skipped:
    """A file or conversation with nothing to import, which was not asked for by name.

    Attributes:
        file: The file's path, that of its zip before it.
        reason: Why it was left alone.
        locator: Where in the file a conversation stands, as a JSON path; None for the whole file.
    """

    file: str
    reason: str
    locator: str | None = None


@dataclass(slots=True)
class FileReport:
    """The counts of one file.

    Every passage is in exactly one of the first four counts.

    Attributes:
        file: As it was given.
        added: Passages that are new.
        updated: Passages that replaced what was stored.
        unchanged: Passages that left what was stored as it was.
        rejected: Passages that were refused.
        transformed: Passages of which a change was written into the history.
        error: Why the file could not be imported, or None.
    """

    file: str
    added: int = 0
    updated: int = 0
    unchanged: int = 0
    rejected: int = 0
    transformed: int = 0
    error: str | None = None


@dataclass(slots=True)
class MemoryStatistics:
    """The statistics of an import of memories, beside the counts of files.

    Attributes:
        nodes_by_source: Memories that were accepted, by whose assistant it was.
        nodes_by_intent: The same, by what the human wanted.
        nodes_by_cluster: The same, by cluster; -1 is noise, None not clustered.
        left_alone: Why what is counted as unchanged is so.
        unknown_fields: Names of fields that are not stored, and in how many records each was.
        duration_s: Seconds from start to end.
    """

    nodes_by_source: Counter[str] = field(default_factory=Counter)
    nodes_by_intent: Counter[str] = field(default_factory=Counter)
    nodes_by_cluster: Counter[int | None] = field(default_factory=Counter)
    left_alone: Counter[str] = field(default_factory=Counter)
    unknown_fields: Counter[str] = field(default_factory=Counter)
    duration_s: float = 0.0

    def as_json(self) -> dict[str, Any]:
        """Return the statistics for scripts.

        Clusters are keys of text there, and null is ``none``.
        """
        counts = ("nodes_by_source", "nodes_by_intent", "left_alone", "unknown_fields")
        clusters = {
            "none" if cluster is None else str(cluster): count
            for cluster, count in self.nodes_by_cluster.most_common()
        }
        return {name: dict(getattr(self, name).most_common()) for name in counts} | {
            "nodes_by_cluster": clusters,
            "duration_s": self.duration_s,
        }


@dataclass(slots=True)
class ImportReport:
    """The report of one call of an importer.

    Attributes:
        files: One report per file, in order.
        rejects: Every passage that was refused, in order.
        embedded: How many vectors that came along were stored.
        left_out: How many of them were not, by reason.
        messages: How many messages were written, where conversations are what is counted.
        skipped: What was left alone, where conversations are counted.
        memory: What else is said of memories, where these are counted.
    """

    files: list[FileReport] = field(default_factory=list)
    rejects: list[Reject] = field(default_factory=list)
    embedded: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    messages: int | None = None
    skipped: list[Skipped] = field(default_factory=list)
    memory: MemoryStatistics | None = None

    def total(self, count: str) -> int:
        """Return the sum of one of ``COUNTS`` over all files."""
        return sum(getattr(file, count) for file in self.files)

    @property
    def stored(self) -> int:
        """The number of passages written: messages, or what else is counted."""
        if self.messages is not None:
            return self.messages
        return self.total("added") + self.total("updated")

    @property
    def failed(self) -> bool:
        """True if a passage or a whole file did not go in."""
        return bool(self.rejects) or any(file.error for file in self.files)

    def as_json(self) -> dict[str, Any]:
        """Return the report for scripts; its shape is fixed."""
        of_chat = {
            "messages": self.messages,
            "skipped": [asdict(skipped) for skipped in self.skipped],
        }
        of_memory = {"embedded": self.embedded, "left_out": dict(self.left_out)}
        return (
            {"files": [asdict(file) for file in self.files]}
            | {count: self.total(count) for count in COUNTS}
            | {"rejects": [asdict(reject) for reject in self.rejects]}
            | (of_chat if self.messages is not None else {})
            | (of_memory | self.memory.as_json() if self.memory is not None else {})
        )
