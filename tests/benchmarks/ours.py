"""This project, through what a backend service would call: ``python -m tests.benchmarks.ours``."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from importlib.metadata import version
from typing import Any

import numpy as np
import psycopg
from sqlalchemy.engine import make_url

from pgcorpus.db.engine import Database
from pgcorpus.db.search.corpora import KNOWLEDGE
from pgcorpus.db.settings import DRIVER, Settings
from pgcorpus.services.choices import Mode
from pgcorpus.services.jobs.worker import Worker
from pgcorpus.services.knowledge.importer import KnowledgeImporter
from pgcorpus.services.ops.switch import ModelSwitch
from pgcorpus.services.search.service import AsyncSearchService, SearchService
from tests.benchmarks.contender import HITS, Contender, Job, serve

MODEL = "benchmark"

INDEXES = """
    SELECT indexrelid::regclass::text AS name, pg_get_indexdef(indexrelid) AS definition
    FROM pg_index
    JOIN pg_class ON pg_class.oid = indexrelid
    JOIN pg_am ON pg_am.oid = relam
    WHERE indrelid = 'chunk_embeddings'::regclass AND amname = 'hnsw'
      AND pg_get_expr(indpred, indrelid) LIKE %s
"""


class GivenVectors:
    """An embedder whose vectors are there already, so that no model is measured.

    Attributes:
        number: Of the question that the thread, or the task, asks next.
    """

    batch_size = 1

    def __init__(self, job: Job) -> None:
        self.model_name = MODEL
        self.dimensions = job.dimensions
        self.number = ContextVar[int]("number")
        self._vectors = job.question_vectors

    def embed_question(self, text: str) -> np.ndarray:
        """Return the vector of the question."""
        vector: np.ndarray = self._vectors[self.number.get()]
        return vector

    def embed_documents(self, texts: Sequence[str]) -> np.ndarray:
        """Nobody asks: the passages' vectors are loaded."""
        raise NotImplementedError(texts)


class Ours(Contender):
    """Loads through the importer, searches through ``SearchService``."""

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        # As docs/how-to/deploy.md advises: more connections than processors do not search faster.
        pool = 2 * (os.cpu_count() or 1)
        url = make_url(job.url).set(drivername=DRIVER)
        self.database = Database(Settings(database_url=url, pool_size=pool))
        self.embedder = GivenVectors(job)
        self.service = SearchService(self.database, embedder=self.embedder)
        self.service_of_tasks = AsyncSearchService(self.database, embedder=self.embedder)
        self.runner = asyncio.Runner()  # one loop, to which its connections belong

    def facts(self) -> dict[str, Any]:
        """Its version."""
        return {
            "package": f"pgcorpus {version('pgcorpus')}",
            "driver": f"psycopg {version('psycopg')}",
        }

    def load(self, progress: Callable[[int], None]) -> float:
        """Import files and vectors, every rule, constraint and index of words included."""
        rows = len(self.job.passages)
        self.definition = register_model(self.database, self.job)
        importer = KnowledgeImporter(
            self.database, embeddings=self.job.data / "vectors.npy", embeddings_model=MODEL
        )
        started = time.perf_counter()
        report = importer.run(
            [self.job.data / "chunks"], lambda done, total: progress(rows * done // total)
        )
        seconds = time.perf_counter() - started
        if report.embedded != rows:
            raise RuntimeError(f"{report.embedded} of {rows} vectors went in")
        return seconds

    def index(self) -> str:
        """The model's own index, as the registry made it."""
        with psycopg.connect(self.job.url) as connection:
            connection.execute(self.definition)
        return self.definition.partition(" USING ")[2]

    def settle(self) -> None:
        """Take the model into use; a worker finds that all passages have their vectors."""
        ModelSwitch(self.database).use(KNOWLEDGE.name, MODEL)
        Worker(self.database, kinds=["embed"]).run(once=True)

    def search(self, mode: Mode, number: int) -> list[str]:
        """As a backend service does."""
        self.embedder.number.set(number)
        page = self.service.search(
            self.job.questions[number], corpus=KNOWLEDGE.name, mode=mode, limit=HITS
        )
        return [hit.metadata["chunk_id"] for hit in page.hits]

    def search_by_tasks(self, *, mode: Mode, clients: int, seconds: float) -> dict[str, float]:
        """Search through ``AsyncSearchService``."""
        return self.runner.run(self._search_by_tasks(mode, clients, seconds))

    async def _search_by_tasks(self, mode: Mode, clients: int, seconds: float) -> dict[str, float]:
        questions, answered, deadline = self.job.questions, [0] * clients, 0.0

        async def search(number: int) -> None:
            self.embedder.number.set(number % len(questions))
            await self.service_of_tasks.search(
                questions[number % len(questions)], corpus=KNOWLEDGE.name, mode=mode, limit=HITS
            )

        async def client(number: int) -> None:
            while time.perf_counter() < deadline:
                await search(number * 31 + answered[number])
                answered[number] += 1

        await asyncio.gather(*map(search, range(clients)))  # opens the connections
        started = time.perf_counter()
        deadline = started + seconds
        await asyncio.gather(*map(client, range(clients)))
        return {"searches": sum(answered), "seconds": time.perf_counter() - started}

    def close(self) -> None:
        """Write the log of searches, too, or the process would try when the server is gone."""
        self.service.flush_log()
        self.runner.run(self.database.aclose())
        self.runner.close()


def register_model(database: Database, job: Job) -> str:
    """Add the model, and take its index away until the vectors are there.

    Returns:
        The statement that builds the index.
    """
    ModelSwitch(database).add(MODEL, dimensions=job.dimensions, provider="hashing")
    with psycopg.connect(job.url) as connection:
        ((name, definition),) = connection.execute(INDEXES, [f"%'{MODEL}'%"]).fetchall()
        connection.execute(f"DROP INDEX {name}")
    return str(definition)


if __name__ == "__main__":
    serve(Ours)
