"""Live recall: a share of the searches by vectors, repeated exactly off the request path."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from typing import Final, NamedTuple

from prometheus_client import CollectorRegistry, Counter, Histogram

from pgcorpus.db.engine import Database
from pgcorpus.db.errors import DataLayerError, translate_errors
from pgcorpus.db.scope import Scope
from pgcorpus.db.search.ask import Ask
from pgcorpus.db.search.corpus import Corpus
from pgcorpus.db.search.page import Hit, SearchPage
from pgcorpus.services.search.request import Prepared, Request

logger = logging.getLogger(__name__)

RECALLED: Final = 10
"""Hits that are compared: recall@10, as ``pgcorpus models verify`` measures it."""

MOST_WAITING: Final = 32
"""Searches that wait to be repeated; when there are more, the oldest is dropped."""

BUSY_SHARE: Final = 0.05
"""The most of the time that is spent on repeating searches: comparing millions of vectors takes
seconds of a processor and of the disk."""

EQUAL: Final = 1e-6
"""Cosines that differ by less are alike: either passage is as good an answer."""

RECALL_BUCKETS: Final = (0.5, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0)


class Sample(NamedTuple):
    """A search to be repeated: its corpus, its question to the database, and its scope."""

    corpus: Corpus
    ask: Ask
    scope: Scope | None


class RecallSampler:
    """Repeats a share of the searches, by their vectors alone: by the index, and without it.

    A search is noted in microseconds, and repeated by a thread of its own. Searches that compared
    all vectors anyway, as those of small scopes and under narrow filters do, are not counted.

    Args:
        database: Where they are repeated, by connections of its own.
        registry: Where the metrics are.
        percent: Share of the searches, 0 to 100.
    """

    def __init__(self, database: Database, registry: CollectorRegistry, percent: int) -> None:
        self._database = database
        self._percent = percent
        self._waiting: deque[Sample] = deque()
        self._wake = threading.Condition()
        self._thread: threading.Thread | None = None
        self._closed = False
        self._recall = Histogram(
            "pgcorpus_search_recall_ratio",
            "Share of the exact 10 nearest passages that a search by the vector index finds",
            ["corpus"],
            buckets=RECALL_BUCKETS,
            registry=registry,
        )
        self._dropped = Counter(
            "pgcorpus_recall_samples_dropped",
            "Samples that were not measured, because others took too long or the database failed",
            registry=registry,
        )

    def note_search(self, prepared: Prepared, page: SearchPage, seconds: float) -> None:  # noqa: ARG002 - see SearchObserver
        """Note a search that was answered; see ``SearchObserver``."""
        if prepared.ask.vector is None or "vector" not in prepared.ask.legs or self._closed:
            return
        if random.uniform(0, 100) >= self._percent:  # noqa: S311 - a sample
            return
        sample = Sample(prepared.request.corpus, _narrow(prepared.ask), prepared.request.scope)
        with self._wake:
            if len(self._waiting) >= MOST_WAITING:
                self._waiting.popleft()
                self._dropped.inc()
            self._waiting.append(sample)
            self._wake.notify()
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="recall", daemon=True)
                self._thread.start()

    def note_failure(self, request: Request, error: DataLayerError) -> None:
        """Note nothing: there is no answer to repeat."""

    def close(self) -> None:
        """Repeat no more searches."""
        with self._wake:
            self._closed = True
            self._waiting.clear()
            self._wake.notify()

    def _work(self) -> None:
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._waiting or self._closed)
                if self._closed:
                    return
                sample = self._waiting.popleft()
            began = time.monotonic()
            try:
                recall = self.measure(sample)
            except Exception as error:  # noqa: BLE001 - a measurement has no caller to tell
                self._dropped.inc()
                logger.debug("a search was not repeated: %s", type(error).__name__)
            else:
                if recall is not None:
                    self._recall.labels(sample.corpus.name).observe(recall)
            rest = (time.monotonic() - began) * (1 / BUSY_SHARE - 1)
            with self._wake:
                self._wake.wait_for(lambda: self._closed, rest)

    def measure(self, sample: Sample) -> float | None:
        """Return the recall of a search, or None where it needed no index.

        Raises:
            DataLayerError: The database did not answer.
        """
        with translate_errors():
            ranker = self._database.reader().ranker(sample.scope)
            found = ranker.answer(sample.corpus, sample.ask)
            shape = found.statement.shape
            if shape.few or shape.whole:
                return None
            return compare(found.hits, ranker.answer_exactly(found).hits)


def compare(found: Sequence[Hit], exact: Sequence[Hit]) -> float | None:
    """Return the share of the exact hits' places that found hits fill, or None without any.

    A hit that is as similar as the last exact one is as good, whichever of them was found.
    """
    if not exact:
        return None
    least = min(hit.scores["vector"] for hit in exact) - EQUAL
    near = sum(hit.scores["vector"] >= least for hit in found)
    return min(near, len(exact)) / len(exact)


def _narrow(ask: Ask) -> Ask:
    """Return the same question for the vector leg alone."""
    return replace(
        ask,
        legs={"vector": 1.0},
        limit=RECALLED,
        offset=0,
        group_by=None,
        min_similarity=0.0,
        boost=0.0,
        learned=False,
        least_depth=0,
        least_first_depth=0,
    )
