"""A worker process whose jobs can be counted, or cost next to nothing: it is killed in proofs."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence

import numpy as np

from pgcorpus import Worker
from pgcorpus.db.engine import Database
from pgcorpus.db.search.corpora import CHAT
from pgcorpus.services.embedding.embedder import unit_rows
from pgcorpus.services.jobs.handler import Handler
from pgcorpus.services.jobs.handlers import EmbedHandler
from pgcorpus.services.jobs.worker import stop_at_signals
from tests.prove.effects import EffectHandler


class InstantEmbedder:
    """Random directions, whatever the texts say: what is measured is all the rest.

    Args:
        model_name: Name in the registry.
        dimensions: Length of the vectors.
        batch_size: Texts at a time.
    """

    def __init__(self, model_name: str, dimensions: int, batch_size: int) -> None:
        self.model_name = model_name
        self.dimensions = dimensions
        self.batch_size = batch_size
        self._chance = np.random.default_rng()

    def embed_documents(self, texts: Sequence[str]) -> np.ndarray:
        """Vectors, float32 of shape ``(len(texts), dimensions)``."""
        return unit_rows(self._chance.standard_normal((len(texts), self.dimensions)))

    def embed_question(self, text: str) -> np.ndarray:
        """One vector."""
        return np.asarray(self.embed_documents([text])[0])


def main() -> None:
    """Work on the database of ``DATABASE_URL`` until a signal comes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch-size", type=int, required=True)
    parser.add_argument("--batch-seconds", type=float, default=0.0)
    parser.add_argument("--lease-seconds", type=float, required=True)
    parser.add_argument("--embed", help="embed messages, at once, with this model")
    parser.add_argument("--dimensions", type=int, help="length of its vectors")
    given = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    database = Database.from_env()
    handler: Handler = EffectHandler(batch_size=given.batch_size, batch_seconds=given.batch_seconds)
    if given.embed:
        embedder = InstantEmbedder(given.embed, given.dimensions, given.batch_size)
        handler = EmbedHandler(database, CHAT, embedder=embedder)
    worker = Worker(
        database,
        [handler],
        concurrency=1,
        lease_seconds=given.lease_seconds,
        poll_seconds=0.5,
    )
    with stop_at_signals(worker):
        print("ready", flush=True)  # noqa: T201 - to the process that waits for it
        worker.run()
    database.close()


if __name__ == "__main__":
    main()
