"""The report of a run of maintenance."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final, Literal, NamedTuple, get_args
from uuid import UUID

Operation = Literal[
    "leftover_indexes",
    "partitions",
    "statistics_update",
    "reindex",
    "retention",
    "vacuum",
    "bloat_report",
    "extension_updates",
]
"""The kinds of steps, in the order in which they are done; ``statistics_update`` is the
specification's name. Sizes of indexes are judged by fresh statistics, and reported at the end."""

OPERATIONS: Final[tuple[Operation, ...]] = get_args(Operation)

StepStatus = Literal["completed", "skipped", "failed"]


class Outcome(NamedTuple):
    """The outcome of a step.

    Attributes:
        status: ``skipped`` where there was nothing to do.
        detail: What was found and done, for the log.
    """

    status: Literal["completed", "skipped"]
    detail: Mapping[str, Any]


@dataclass(frozen=True)
class StepReport:
    """The report of one step.

    Attributes:
        operation: Its kind.
        subject: Table or index, or None for the whole database.
        status: How it ended.
        duration_ms: From its beginning to its end.
        detail: What was found and done.
        error: Why it failed, or None.
    """

    operation: Operation
    subject: str | None
    status: StepStatus
    duration_ms: float
    detail: Mapping[str, Any] = field(default_factory=dict)
    error: str | None = None


@dataclass(frozen=True)
class MaintenanceReport:
    """The report of a run.

    Attributes:
        run: The key of the run in ``maintenance_log``.
        interrupted: Steps of runs before this one that did not end.
        steps: What was done, in order.
    """

    run: UUID
    interrupted: Sequence[str]
    steps: Sequence[StepReport]

    @property
    def counts(self) -> Counter[str]:
        """The number of steps of each status."""
        return Counter(step.status for step in self.steps)

    def as_json(self) -> dict[str, Any]:
        """Return the report as the command line prints it."""
        return {
            "run": self.run,
            "interrupted": list(self.interrupted),
            **{status: self.counts[status] for status in get_args(StepStatus)},
            "steps": [asdict(step) for step in self.steps],
        }
