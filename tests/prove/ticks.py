"""The event loop's ticks while a hundred tasks search: how late the loop comes to anybody else."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Final

import numpy as np

from pgcorpus.db.engine import Database
from pgcorpus.services.embedding.hashing import HashingEmbedder
from pgcorpus.services.search.service import AsyncSearchService

TICK_SECONDS: Final = 0.005

WARM: Final = 2
"""Searches of each task before anything is measured: connections open, statements are prepared."""


class SlowEmbedder(HashingEmbedder):
    """A provider that takes its time for each question.

    Args:
        seconds: How long.
    """

    def __init__(self, seconds: float) -> None:
        super().__init__("hashing", 384)
        self._seconds = seconds

    def embed_question(self, text: str) -> np.ndarray:
        """As without the delay, later."""
        time.sleep(self._seconds)
        return super().embed_question(text)


def measure(
    database: Database,
    questions: Sequence[str],
    *,
    corpus: str,
    tasks: int,
    rounds: int,
    seconds: float,
) -> tuple[list[float], list[float]]:
    """Measure how late the loop wakes a task that sleeps, while others search.

    Args:
        database: Where.
        questions: Asked in turn.
        corpus: Which is searched.
        tasks: How many search at the same time.
        rounds: Searches of each task.
        seconds: How long the embedder takes.

    Returns:
        Of each tick the milliseconds that it came late, and those of them in which the loop's own
        thread computed, both from the least to the most. Where other processes want the same
        processors, only the second tells of the searches.
    """

    async def search() -> tuple[list[float], list[float]]:
        service = AsyncSearchService(database, embedder=SlowEmbedder(seconds))
        late: list[float] = []
        busy: list[float] = []

        async def tick() -> None:
            while True:
                began, computed = time.perf_counter(), time.thread_time()
                await asyncio.sleep(TICK_SECONDS)
                busy.append((time.thread_time() - computed) * 1000)
                late.append((time.perf_counter() - began - TICK_SECONDS) * 1000)

        async def one(number: int, times: int) -> None:
            for turn in range(times):
                question = questions[(number * times + turn) % len(questions)]
                await service.search(question, corpus=corpus)

        async def all_at_once(times: int) -> None:
            await asyncio.gather(*(one(number, times) for number in range(tasks)))

        try:
            await all_at_once(WARM)
            ticking = asyncio.create_task(tick())
            await all_at_once(rounds)
            ticking.cancel()
            with suppress(asyncio.CancelledError):
                await ticking
        finally:
            await database.aclose()
        return sorted(late), sorted(busy)

    return asyncio.run(search())
