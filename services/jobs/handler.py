"""The protocol of handlers of jobs, and the outcomes of a job."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Literal, Protocol

from pgcorpus.db.repositories.jobs import ClaimedJob
from pgcorpus.db.uow import UnitOfWork

Ending = Literal["completed", "released", "retried", "failed"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """The outcome of one job.

    Attributes:
        ending: ``completed``; ``released`` is pending again, the attempt not counted;
            ``retried`` is pending again later, or failed after the last attempt; ``failed`` is not
            tried again.
        reason: Kept beside the job as its ``last_error``.
        delay_seconds: How long a released job may not be begun.
    """

    ending: Ending
    reason: str | None = None
    delay_seconds: float = 0.0


COMPLETED: Final = Outcome("completed")

Finish = Callable[[UnitOfWork], Sequence[Outcome]]
"""Writes what was worked out, in the transaction that ends the jobs, and returns the outcome of
each, in their order. Where that transaction is lost with its connection, it is called again."""


class Handler(Protocol):
    """Does the jobs of one kind and one corpus, in batches; threads share it.

    Attributes:
        kind: Of its jobs.
        corpus: What the payloads of its jobs have under ``corpus``; ``""`` where they have none.
        batch_size: The most jobs at a time.
    """

    @property
    def kind(self) -> str: ...  # noqa: D102 - above
    @property
    def corpus(self) -> str: ...  # noqa: D102 - above
    @property
    def batch_size(self) -> int: ...  # noqa: D102 - above

    def handle(self, jobs: Sequence[ClaimedJob]) -> Finish:
        """Do the slow part of the jobs, outside of any transaction.

        Whatever it raises concerns the whole batch. ``TextsRefused`` and any other exception but
        those below make the worker halve the batch until the job to blame is alone, and fail it.

        Args:
            jobs: At least one.

        Returns:
            What is left to do in the transaction that ends the jobs.

        Raises:
            EmbeddingError: And ``DatabaseNotReady``, ``NotPermitted``, ``SettingsError``: no job is
                to blame. The worker puts the batch off and claims no more of the kind for a while.
            DatabaseUnavailable: The batch is given back when the database is there again.
        """
        ...
