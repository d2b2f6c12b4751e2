"""The report of an import of memories."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, fields
from typing import Any, Final, get_args

from pgcorpus.db.models.memory import NOISE
from pgcorpus.db.repositories.memory.imports import Merged, NodeRecord, Record
from pgcorpus.db.text import count_of
from pgcorpus.services.importers.report import Breakdown, ImportReport, Outcome, Tally

MAX_FIELDS: Final = 10
MAX_CHARACTERS: Final = 60
"""Characters by which people are shown a field that has no column."""

STORED: Final = "stored already"
STORED_OTHERWISE: Final = "stored already, with another text (--on-conflict update replaces it)"


@dataclass
class MemoryStatistics:
    """Memories and episodes by more than their outcome.

    Attributes:
        nodes_by_source: Memories that were accepted, by whose assistant it was.
        nodes_by_intent: The same, by what the human wanted.
        nodes_by_cluster: The same, by cluster; -1 is noise, None not clustered.
        left_alone: Why what is counted as unchanged is so.
        unknown_fields: Names of fields without a column, and in how many records each was.
    """

    nodes_by_source: Counter[str] = field(default_factory=Counter)
    nodes_by_intent: Counter[str] = field(default_factory=Counter)
    nodes_by_cluster: Counter[int | None] = field(default_factory=Counter)
    left_alone: Counter[str] = field(default_factory=Counter)
    unknown_fields: Counter[str] = field(default_factory=Counter)

    def add(self, other: MemoryStatistics) -> None:
        """Add the counts of *other*."""
        for each in fields(other):
            getattr(self, each.name).update(getattr(other, each.name))


@dataclass
class MemoryReport(ImportReport):
    """A report that counts memories and episodes.

    Attributes:
        statistics: What else was counted.
        duration_s: Seconds from start to end.
    """

    statistics: MemoryStatistics = field(default_factory=MemoryStatistics)
    duration_s: float = 0.0

    def list_breakdowns(self) -> list[Breakdown]:
        """Return how many memories are of which source, intent and cluster."""
        found = self.statistics
        words = {NOISE: "noise", None: "not clustered"}
        clusters = {words.get(key, key): count for key, count in found.nodes_by_cluster.items()}
        return [
            Breakdown("nodes", "source", found.nodes_by_source),
            Breakdown("nodes", "intent", found.nodes_by_intent),
            Breakdown("nodes", "cluster", clusters),
        ]

    def list_remarks(self) -> list[str]:
        """Return sentences that say more than the counts of files, for people."""
        found = self.statistics
        records = sum(self.total(outcome) for outcome in get_args(Outcome))
        rate = records / self.duration_s if self.duration_s else 0
        return [
            *super().list_remarks(),
            *(f"{count} left as they were: {reason}" for reason, count in found.left_alone.items()),
            *(
                f"the field {name[:MAX_CHARACTERS]!r} has no column and is kept in extra; "
                f"{count_of(count, 'record has', 'records have')} it"
                for name, count in found.unknown_fields.most_common(MAX_FIELDS)
            ),
            f"{count_of(records, 'record')} in {self.duration_s:.1f} s, {rate:.0f}/s",
        ]

    def as_json(self) -> dict[str, Any]:
        """Return the report for scripts; clusters are keys of text there, and null is ``none``."""
        counted = {
            each.name: dict(getattr(self.statistics, each.name).most_common())
            for each in fields(self.statistics)
        }
        clusters = {
            "none" if cluster is None else str(cluster): count
            for cluster, count in counted["nodes_by_cluster"].items()
        }
        return (
            super().as_json()
            | {"embedded": self.embedded, "left_out": dict(self.left_out)}
            | counted
            | {"nodes_by_cluster": clusters, "duration_s": self.duration_s}
        )


@dataclass
class MemoryTally(Tally):
    """A transaction's memories.

    Attributes:
        statistics: What else was counted.
    """

    statistics: MemoryStatistics = field(default_factory=MemoryStatistics)

    def count(self, record: Record | None, merged: Merged) -> None:
        """Count a record that was accepted."""
        self.counts[merged.outcome] += 1
        found = self.statistics
        if merged.outcome == "unchanged":
            found.left_alone[STORED if merged.same_text else STORED_OTHERWISE] += 1
        if isinstance(record, NodeRecord):
            found.nodes_by_source[record.source] += 1
            found.nodes_by_intent[record.intent_type] += 1
            found.nodes_by_cluster[record.cluster_id] += 1
