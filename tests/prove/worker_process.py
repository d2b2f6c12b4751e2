"""A worker process whose jobs leave effects that can be counted: it is killed in proofs."""

from __future__ import annotations

import argparse
import logging

from db.engine import Database
from services import Worker
from services.jobs.worker import stopped_by_signals
from tests.prove.effects import EffectHandler


def main() -> None:
    """Work on the database of ``DATABASE_URL`` until a signal comes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch-size", type=int, required=True)
    parser.add_argument("--batch-seconds", type=float, required=True)
    parser.add_argument("--lease-seconds", type=float, required=True)
    given = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    database = Database.from_env()
    worker = Worker(
        database,
        [EffectHandler(batch_size=given.batch_size, batch_seconds=given.batch_seconds)],
        concurrency=1,
        lease_seconds=given.lease_seconds,
        poll_seconds=0.5,
    )
    with stopped_by_signals(worker):
        print("ready", flush=True)  # noqa: T201 - to the process that waits for it
        worker.run()
    database.close()


if __name__ == "__main__":
    main()
