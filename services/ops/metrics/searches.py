"""Metrics of the searches of this process, noted as they are made."""

from __future__ import annotations

from functools import lru_cache
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Histogram

from pgcorpus.db.errors import DataLayerError
from pgcorpus.db.search.page import SearchPage
from pgcorpus.services.search.request import Prepared, Request

SEARCH_BUCKETS: Final = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0,
)  # fmt: skip
"""Bounds in seconds: from the fastest search to the statement timeout, 30 s. The specification
wants vector searches below 0.5 s."""


class SearchMetrics:
    """Counts and times the searches of a database's ``observers``.

    Args:
        registry: Where the metrics are.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._durations = Histogram(
            "pgcorpus_search_duration_seconds",
            "Duration of searches as their callers saw it, embedding the question included",
            ["corpus", "mode"],
            buckets=SEARCH_BUCKETS,
            registry=registry,
        )
        self._leg_durations = Histogram(
            "pgcorpus_search_leg_duration_seconds",
            "Time that a leg took within the statement of a search",
            ["corpus", "mode", "leg"],
            buckets=SEARCH_BUCKETS,
            registry=registry,
        )
        self._legs = Counter(
            "pgcorpus_search_legs",
            "Legs of searches by what became of them",
            ["corpus", "leg", "status"],
            registry=registry,
        )
        self._degraded = Counter(
            "pgcorpus_degraded_searches",
            "Searches of which a leg or the reranker did not answer",
            ["corpus", "mode"],
            registry=registry,
        )
        self._failures = Counter(
            "pgcorpus_search_failures",
            "Searches that had no answer, by the error that their callers got",
            ["corpus", "mode", "error"],
            registry=registry,
        )
        # The labels of a search are few, and looking one up takes longer than counting.
        self._duration_of = lru_cache(maxsize=None)(self._durations.labels)
        self._leg_duration_of = lru_cache(maxsize=None)(self._leg_durations.labels)
        self._leg_of = lru_cache(maxsize=None)(self._legs.labels)

    def note_search(self, prepared: Prepared, page: SearchPage, seconds: float) -> None:  # noqa: ARG002 - see SearchObserver
        """Note a search that was answered; see ``SearchObserver``."""
        corpus, mode = page.corpus, page.mode
        self._duration_of(corpus, mode).observe(seconds)
        for leg in page.legs:
            self._leg_of(corpus, leg.name, leg.status).inc()
            if leg.duration_ms is not None:
                self._leg_duration_of(corpus, mode, leg.name).observe(leg.duration_ms / 1000)
        degraded = self._degraded.labels(corpus, mode)  # made, so that it can be seen to be 0
        if page.degraded:
            degraded.inc()

    def note_failure(self, request: Request, error: DataLayerError) -> None:
        """Note a search that had no answer; see ``SearchObserver``."""
        self._failures.labels(request.corpus.name, request.mode, type(error).__name__).inc()
