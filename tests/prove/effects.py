"""Jobs whose doing can be counted: each leaves a row, in the transaction that ends it."""

from __future__ import annotations

import time
from collections.abc import Sequence

from sqlalchemy import text

from pgcorpus.db.engine import Database
from pgcorpus.db.repositories.jobs import ClaimedJob
from pgcorpus.db.uow import UnitOfWork
from pgcorpus.services.jobs.handler import COMPLETED, Finish, Outcome


class EffectHandler:
    """Notes each job in the table ``effects``.

    Args:
        batch_size: Jobs at a time.
        batch_seconds: How long a batch takes.
    """

    kind = "effect"
    corpus = ""

    def __init__(self, *, batch_size: int = 100, batch_seconds: float = 0.0) -> None:
        self.batch_size = batch_size
        self._batch_seconds = batch_seconds

    def handle(self, jobs: Sequence[ClaimedJob]) -> Finish:
        """Take its time, then note them."""
        time.sleep(self._batch_seconds)
        ids = [job.id for job in jobs]

        def finish(work: UnitOfWork) -> Sequence[Outcome]:
            noted = text("INSERT INTO effects (job) SELECT unnest(CAST(:ids AS bigint[]))")
            work.session.execute(noted, {"ids": ids})
            return [COMPLETED] * len(ids)

        return finish


def enqueue_effects(database: Database, count: int) -> None:
    """Make the table, and enqueue so many jobs."""
    with database.engine.begin() as connection:
        connection.execute(text("CREATE TABLE IF NOT EXISTS effects (job bigint NOT NULL)"))
        connection.execute(
            text("INSERT INTO jobs (kind) SELECT 'effect' FROM generate_series(1, :count)"),
            {"count": count},
        )


def count_effects(database: Database) -> tuple[int, int]:
    """Count the effects, and the jobs that they are of."""
    with database.engine.connect() as connection:
        row = connection.execute(text("SELECT count(*), count(DISTINCT job) FROM effects")).one()
    return row[0], row[1]
