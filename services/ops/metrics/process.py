"""Metrics of what this process counts elsewhere: its connections, and its use of embedders."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    Metric,
    SummaryMetricFamily,
)
from prometheus_client.registry import Collector

from pgcorpus.db.engine import Database
from pgcorpus.services.embedding.usage import list_usage
from pgcorpus.services.jobs.worker import BatchReport

BATCH_BUCKETS = (0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0, 300.0, 600.0)
"""Bounds in seconds, to the time after which a worker counts a batch as hung."""


class ProcessFigures(Collector):
    """Collects the connections of a database's pools, and the totals of embedders.

    Args:
        database: Whose pools.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def describe(self) -> Iterable[Metric]:
        """Return nothing: all is told by ``collect``."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics; nothing is waited for."""
        pool = self._database.pool_state
        connections = GaugeMetricFamily(
            "pgcorpus_pool_connections", "Connections of this process by state", labels=["state"]
        )
        connections.add_metric(["used"], pool.in_use)
        connections.add_metric(["idle"], pool.idle)
        yield connections
        yield GaugeMetricFamily(
            "pgcorpus_pool_connections_max",
            "Connections that this process may open: DB_POOL_SIZE and DB_MAX_OVERFLOW",
            value=pool.limit,
        )
        if self._database.settings.read_urls and self._database.standbys.is_watched:
            yield from self._collect_standbys()
        yield from _collect_usage()

    def _collect_standbys(self) -> Iterator[Metric]:
        """Yield what this process has seen last of the standbys that searches read from."""
        in_use = GaugeMetricFamily(
            "pgcorpus_standby_in_use",
            "1 if searches of this process read from the standby",
            labels=["standby"],
        )
        lags = GaugeMetricFamily(
            "pgcorpus_standby_lag_seconds",
            "Seconds by which the standby is behind the primary, where that is known",
            labels=["standby"],
        )
        for standby in self._database.standbys.all:
            state = standby.state
            in_use.add_metric([state.name], state.in_use)
            if state.lag_seconds is not None:
                lags.add_metric([state.name], state.lag_seconds)
        yield from (in_use, lags)


def _collect_usage() -> Iterator[Metric]:
    uses = ["model", "purpose"]
    durations = SummaryMetricFamily(
        "pgcorpus_embedding_duration_seconds",
        "Calls of embedders that were answered, and their duration",
        labels=uses,
    )
    texts = CounterMetricFamily("pgcorpus_embedding_texts", "Texts that were embedded", labels=uses)
    tokens = CounterMetricFamily(
        "pgcorpus_embedding_tokens",
        "Tokens that the provider counted; 0 for models that are not hosted",
        labels=uses,
    )
    failures = CounterMetricFamily(
        "pgcorpus_embedding_failures",
        "Calls of embedders that failed, by error",
        labels=[*uses, "error"],
    )
    for use, usage in list_usage().items():
        durations.add_metric(use, usage.calls, usage.seconds)
        texts.add_metric(use, usage.texts)
        tokens.add_metric(use, usage.tokens)
        for error, count in usage.failures.items():
            failures.add_metric([*use, error], count)
    yield from (durations, texts, tokens, failures)


class WorkerMetrics:
    """Counts the jobs of a worker by what became of them, as its ``on_batch``.

    Args:
        registry: Where the metrics are.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._jobs = Counter(
            "pgcorpus_worker_jobs",
            "Jobs that this worker ended, by what became of them",
            ["kind", "corpus", "outcome"],
            registry=registry,
        )
        self._durations = Histogram(
            "pgcorpus_worker_batch_duration_seconds",
            "Duration of batches of jobs, from the claim to the end",
            ["kind", "corpus"],
            buckets=BATCH_BUCKETS,
            registry=registry,
        )

    def note_batch(self, report: BatchReport) -> None:
        """Count a batch that has ended."""
        kind, _, corpus = report.name.partition(" ")
        self._durations.labels(kind, corpus).observe(report.seconds)
        for outcome, jobs in report.counts.items():
            self._jobs.labels(kind, corpus, outcome).inc(jobs)
