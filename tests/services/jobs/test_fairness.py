"""Fair lanes: what one tenant waits for delays no other."""

from __future__ import annotations

import time
from collections.abc import Sequence
from uuid import UUID

from sqlalchemy import text

from pgcorpus.db.engine import Database
from pgcorpus.db.repositories.jobs import ClaimedJob
from pgcorpus.db.scope import Scope
from pgcorpus.services.jobs.handler import COMPLETED, Finish
from pgcorpus.services.jobs.worker import Worker

LARGE, SMALL = (Scope.tenant(UUID(int=number)) for number in (1, 2))
BACKLOG = 100_000


class Enqueuing:
    """A handler that enqueues a job of another tenant while its first batch is under way."""

    kind, corpus, batch_size = "test", "", 64

    def __init__(self, database: Database) -> None:
        self._database = database
        self.batches: list[list[Scope | None]] = []
        self.worker: Worker
        self.enqueued_at = self.begun_at = 0.0

    def handle(self, jobs: Sequence[ClaimedJob]) -> Finish:
        """Note whose jobs they are."""
        if not self.batches:
            enqueue(self._database, SMALL, 1)
            self.enqueued_at = time.monotonic()
        self.batches.append([job.scope for job in jobs])
        if SMALL in self.batches[-1]:
            self.begun_at = time.monotonic()
            self.worker.stop()
        return lambda _work: [COMPLETED] * len(jobs)


def enqueue(database: Database, scope: Scope, count: int) -> None:
    """Enqueue so many jobs of a scope."""
    with database.engine.begin() as connection:
        connection.execute(
            text(
                "INSERT INTO jobs (kind, scope) SELECT 'test', :scope FROM generate_series(1, :n)"
            ),
            {"scope": str(scope), "n": count},
        )


def test_a_hundred_thousand_jobs_of_one_tenant_delay_no_others(database: Database) -> None:
    """The first job of another is in the batch that is claimed next, and half of that is full."""
    enqueue(database, LARGE, BACKLOG)
    handler = Enqueuing(database)
    handler.worker = Worker(database, [handler], concurrency=1)

    handler.worker.run()

    first, second = handler.batches
    assert first == [LARGE] * 64
    assert sorted(map(str, second)) == [*[str(LARGE)] * 63, str(SMALL)]
    assert SMALL in second[:2]
