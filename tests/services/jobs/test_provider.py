"""A provider of embeddings that is away for an hour, or answers nonsense: nothing is lost."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from sqlalchemy import text

from pgcorpus.db.engine import Database
from pgcorpus.db.search.corpora import CHAT
from pgcorpus.services.embedding import openai
from pgcorpus.services.embedding.openai import OpenAIEmbedder
from pgcorpus.services.jobs import circuit
from pgcorpus.services.jobs.handlers import EmbedHandler
from pgcorpus.services.jobs.worker import Worker
from tests.prove import proofs
from tests.services.embedding.loopback_api import Answer, LoopbackAPI, Request

MESSAGES = 100
HOUR_SECONDS = 3600.0
STEP_SECONDS = 30.0
PASS_TIME = text("""
    UPDATE jobs SET not_before = not_before - make_interval(secs => :passed)
    WHERE kind = 'embed' AND status = 'pending'
""")


class Clock:
    """The time of circuits, which passes when it is told to."""

    def __init__(self) -> None:
        self.now = time.monotonic()

    def monotonic(self) -> float:
        """Return the time in seconds."""
        return self.now


def make_embedder(api: LoopbackAPI) -> OpenAIEmbedder:
    """Return the hosted model."""
    return OpenAIEmbedder(
        proofs.MODEL,
        proofs.DIMENSIONS,
        api_key="k",
        base_url=api.base_url,
        texts_per_request=16,
    )


def count_jobs(database: Database) -> dict[str, int]:
    """Count the jobs that embed messages by their status."""
    with database.unit_of_work() as work:
        return dict(work.jobs.stats().depth["embed"])


def count_vectors(database: Database) -> int:
    """Count the vectors of messages."""
    with database.engine.connect() as connection:
        return connection.scalar(text("SELECT count(*) FROM message_embeddings")) or 0


@contextmanager
def running(database: Database, api: LoopbackAPI) -> Iterator[Worker]:
    """Run a worker in a thread."""
    handler = EmbedHandler(database, CHAT, embedder=make_embedder(api))
    worker = Worker(database, [handler], concurrency=2, poll_seconds=0.05)
    thread = threading.Thread(target=worker.run)
    thread.start()
    try:
        yield worker
    finally:
        worker.stop()
        thread.join()


def wait_until(database: Database, **depth: int) -> None:
    """Wait for the jobs to be in these states, and in no others."""
    deadline = time.monotonic() + 60
    while count_jobs(database) != depth and time.monotonic() < deadline:
        time.sleep(0.05)
    assert count_jobs(database) == depth


def test_an_hour_without_the_provider_uses_up_no_attempt_and_all_is_done_after(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Single probes are sent, some lost and some refused; the first that is answered opens all."""
    clock = Clock()
    monkeypatch.setattr(circuit, "time", clock)
    monkeypatch.setattr(openai, "MAX_RETRIES", 0)
    proofs.fill(database, MESSAGES)
    back = clock.now + HOUR_SECONDS
    away: list[int] = []

    def answer(number: int, request: Request) -> Answer:
        if clock.now >= back:
            return Answer()
        away.append(len(request.texts))
        return Answer(disconnect=True) if number % 2 else Answer(status=503)

    with LoopbackAPI(proofs.DIMENSIONS, answers=answer) as api, running(database, api):
        while clock.now < back + HOUR_SECONDS and count_jobs(database) != {"completed": MESSAGES}:
            if clock.now < back:
                assert count_vectors(database) == 0
            time.sleep(0.02)
            clock.now += STEP_SECONDS
            with database.engine.begin() as connection:
                connection.execute(PASS_TIME, {"passed": STEP_SECONDS})
        wait_until(database, completed=MESSAGES)

    assert len(away) >= 20
    assert set(away[16:]) == {1}, "all but the first batches are single probes"
    assert count_vectors(database) == MESSAGES
    with database.engine.connect() as connection:
        attempts = connection.execute(
            text("SELECT DISTINCT attempts FROM jobs WHERE kind = 'embed'")
        )
        assert attempts.scalars().all() == [1]


def shorten(data: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Give the last vector a number too few."""
    return [*data[:-1], {**data[-1], "embedding": data[-1]["embedding"][:-1]}]


def poison(data: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Make a number of the last vector NaN."""
    vector = data[-1]["embedding"].copy()
    vector[0] = np.nan
    return [*data[:-1], {**data[-1], "embedding": vector}]


def test_vectors_of_a_wrong_length_are_not_stored_and_use_up_no_attempt(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor are those that came with them: the model is another than the registry says."""
    monkeypatch.setattr(circuit, "FIRST_PAUSE_SECONDS", 0.05)
    monkeypatch.setattr(circuit, "LONGEST_PAUSE_SECONDS", 0.05)
    proofs.fill(database, MESSAGES)
    mended = threading.Event()

    def answer(_number: int, _request: Request) -> Answer:
        return Answer() if mended.is_set() else Answer(change=shorten)

    with LoopbackAPI(proofs.DIMENSIONS, answers=answer) as api, running(database, api):
        while len(api.requests) < 20:
            time.sleep(0.02)
        assert count_vectors(database) == 0
        with database.engine.connect() as connection:
            told = connection.scalar(
                text("SELECT last_error FROM jobs WHERE kind = 'embed' AND last_error <> ''")
            )
        assert "63 dimensions came; the registry says 64" in told
        mended.set()
        wait_until(database, completed=MESSAGES)

    assert count_vectors(database) == MESSAGES


def test_a_vector_that_is_no_number_fails_its_text_alone(database: Database) -> None:
    """The others of its batch are stored, each whole; it is a dead letter that says why."""
    proofs.fill(database, MESSAGES)

    def answer(_number: int, request: Request) -> Answer:
        if "message number 21" not in request.texts:
            return Answer()
        place = request.texts.index("message number 21")

        def change(data: list[dict[str, Any]]) -> list[dict[str, Any]]:
            return [*data[:place], *poison(data[: place + 1])[-1:], *data[place + 1 :]]

        return Answer(change=change)

    with LoopbackAPI(proofs.DIMENSIONS, answers=answer) as api, running(database, api):
        wait_until(database, completed=MESSAGES - 1, failed=1)

    with database.unit_of_work() as work:
        (failed,) = work.jobs.list_jobs(status="failed")
    assert "NaN or infinity" in (failed.last_error or "")
    with database.engine.connect() as connection:
        left = connection.execute(
            text(
                "SELECT content FROM messages WHERE NOT EXISTS (SELECT FROM message_embeddings"
                " WHERE message_id = messages.id AND vector_dims(embedding) = :dimensions)"
            ),
            {"dimensions": proofs.DIMENSIONS},
        )
        assert left.scalars().all() == ["message number 21"]
