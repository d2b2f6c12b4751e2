"""The report of an import of documents."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Final

from pgcorpus.services.importers.report import COUNTS, ImportReport

MAX_SUFFIXES: Final = 8
"""A remark names no more."""


@dataclass
class DocumentationReport(ImportReport):
    """A report that counts chunks, of each file.

    Attributes:
        documents: How many documents were found.
        unchanged_documents: How many of them were stored as they are, and not read again.
        moved: How many are stored under another path than before, with their vectors.
        deleted: How many chunks were deleted, because their document has them no more.
        pruned: How many documents were deleted, because their files are gone.
        missing: How many were left, though their files are gone.
        other_formats: Suffixes of files that are of no known format → how many there were.
        clicks: How many clicks of old SQLite files are new.
        sessions: How many sessions of searches of old SQLite files are new.
        duration_s: Seconds from start to end.
    """

    documents: int = 0
    unchanged_documents: int = 0
    moved: int = 0
    deleted: int = 0
    pruned: int = 0
    missing: int = 0
    other_formats: Counter[str] = field(default_factory=Counter)
    clicks: int = 0
    sessions: int = 0
    duration_s: float = 0.0

    def list_remarks(self) -> list[str]:
        """Return sentences that say more than the counts of files, for people."""
        chunks = sum(self.total(count) for count in COUNTS)
        rate = chunks / self.duration_s if self.duration_s else 0
        remarks = {
            f"moved documents, which keep their vectors: {self.moved}": self.moved,
            f"deleted chunks, which their documents have no more: {self.deleted}": self.deleted,
            f"deleted documents, whose files are gone: {self.pruned}": self.pruned,
            f"new clicks: {self.clicks}; new sessions of searches: {self.sessions}": self.clicks
            + self.sessions,
            f"documents that were left, though their files are gone: {self.missing}; --prune "
            "deletes them": self.missing,
        }
        others = sum(self.other_formats.values())
        suffixes = [suffix for suffix, _ in self.other_formats.most_common()]
        shown = ", ".join(suffixes[:MAX_SUFFIXES]) + ", ..." * (len(suffixes) > MAX_SUFFIXES)
        remarks[f"skipped files of other formats: {others} ({shown})"] = others
        return [
            *super().list_remarks(),
            *(remark for remark, count in remarks.items() if count),
            f"documents: {self.documents}, unchanged: {self.unchanged_documents}",
            f"chunks: {chunks} in {self.duration_s:.1f} s, {rate:.0f}/s",
        ]

    def as_json(self) -> dict[str, Any]:
        """Return the report for scripts; its shape is fixed."""
        return super().as_json() | {
            name: getattr(self, name)
            for name in (
                *("documents", "unchanged_documents", "moved", "deleted", "pruned", "missing"),
                *("other_formats", "clicks", "sessions", "duration_s"),
            )
        }
