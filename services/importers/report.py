"""The report of an import, counted in passages."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Final, Literal, NamedTuple, get_args

from pgcorpus.db.repositories.imports import Refused
from pgcorpus.db.text import count_of

Outcome = Literal["added", "updated", "unchanged", "rejected"]
"""The outcome of a passage, which is in exactly one of these counts."""

COUNTS: Final = (*get_args(Outcome), "transformed")
"""``transformed`` are passages of which a change was written into the history."""


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
class Changed:
    """A value that a dry run would store otherwise than it stands in its file.

    Attributes:
        file: The file's full path.
        locator: Where in the file, as a JSON path.
        item: The author's identifier of the passage.
        field: The field's name in the file.
        original: What was given, any JSON; None when nothing was.
        stored: What would be stored, any JSON; None when nothing would.
        rule: Name in docs/reference/import-rules.md.
    """

    file: str
    locator: str
    item: str
    field: str
    original: Any
    stored: Any
    rule: str


@dataclass(frozen=True, slots=True)
class Skipped:
    """A file or conversation with nothing to import.

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

    Attributes:
        file: As it was given.
        counts: How many passages became what: each of ``COUNTS``.
        error: Why the file could not be imported, or None.
    """

    file: str
    counts: Counter[str] = field(default_factory=Counter)
    error: str | None = None

    def as_json(self) -> dict[str, Any]:
        """Return the report for scripts; its shape is fixed."""
        counts = {name: self.counts[name] for name in COUNTS}
        return {"file": self.file} | counts | {"error": self.error}


class Breakdown(NamedTuple):
    """Counts of imported passages by one of their features.

    Attributes:
        passages: Their name in the plural.
        feature: By what they are counted.
        counts: How many have each value.
    """

    passages: str
    feature: str
    counts: Mapping[Any, int]


@dataclass
class ImportReport:
    """The report of one call of an importer. A corpus with more to report extends it.

    Attributes:
        corpus: Name of what was filled.
        files: One report per file, in order.
        rejects: Every passage that was refused, in order.
        skipped: What was left alone.
        embedded: How many vectors that came along were stored.
        left_out: How many of them were not, by reason.
        changes: What a dry run would change; of another run the history has it.
    """

    corpus: str
    files: list[FileReport] = field(default_factory=list)
    rejects: list[Reject] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    embedded: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    changes: list[Changed] = field(default_factory=list)

    def total(self, count: str) -> int:
        """Return the sum of one of ``COUNTS`` over all files."""
        return sum(file.counts[count] for file in self.files)

    @property
    def stored(self) -> int:
        """The number of passages that were written."""
        return self.total("added") + self.total("updated")

    @property
    def failed(self) -> bool:
        """True if a passage or a whole file did not go in."""
        return bool(self.rejects) or any(file.error for file in self.files)

    def list_breakdowns(self) -> list[Breakdown]:
        """Return counts of what was imported, for people."""
        return []

    def list_remarks(self) -> list[str]:
        """Return sentences that say more than the counts of files, for people."""
        return [f"{count_of(self.embedded, 'vector')} came along"] if self.embedded else []

    def as_json(self) -> dict[str, Any]:
        """Return the report for scripts; its shape is fixed."""
        return (
            {"files": [file.as_json() for file in self.files]}
            | {count: self.total(count) for count in COUNTS}
            | {"rejects": [asdict(reject) for reject in self.rejects]}
            | {"skipped": [asdict(skipped) for skipped in self.skipped]}
        )


@dataclass
class Tally:
    """The counts of one transaction, which are reported when it is kept.

    Attributes:
        counts: How many passages became what: each of ``COUNTS``.
        refused: Passages that did not go in.
        embedded: How many vectors that came along were stored.
        left_out: How many of them were not, by reason.
    """

    counts: Counter[str] = field(default_factory=Counter)
    refused: list[Refused] = field(default_factory=list)
    embedded: int = 0
    left_out: Counter[str] = field(default_factory=Counter)

    def refuse(self, refused: Refused) -> None:
        """Count a passage that does not go in."""
        self.counts["rejected"] += 1
        self.refused.append(refused)

    def add_to(self, file: FileReport, report: ImportReport) -> None:
        """Report it, now that the transaction was kept."""
        file.counts += self.counts
        report.rejects += [Reject(file.file, each.locator, each.reason) for each in self.refused]
        report.embedded += self.embedded
        report.left_out += self.left_out
