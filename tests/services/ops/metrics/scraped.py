"""A scrape in which every metric is: the database and a process that searches, embeds and works."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime

from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from pgcorpus.db.engine import Database
from pgcorpus.db.models.operations import BackupLog
from pgcorpus.services.jobs.worker import BatchReport
from pgcorpus.services.ops.metrics.app import Metrics

Samples = Mapping[tuple[str, frozenset[tuple[str, str]]], float]


def scrape(metrics: Metrics) -> str:
    """The text that Prometheus gets."""
    answer = metrics.answer("GET", "/metrics", "text/plain")
    assert answer.status == 200
    return answer.body.decode()


def list_families(scraped: str) -> dict[str, Metric]:
    """The metrics of a scrape by name, without those of the Python client itself."""
    families = text_string_to_metric_families(scraped)
    return {each.name: each for each in families if not each.name.startswith("process_")}


def read_samples(metrics: Metrics) -> Samples:
    """Every sample of a scrape, by its name and labels."""
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in list_families(scrape(metrics)).values()
        for sample in family.samples
    }


def find(samples: Samples, name: str, **labels: str) -> float | None:
    """The value of one sample, or None."""
    return samples.get((name, frozenset(labels.items())))


def note_backup(database: Database) -> None:
    """A backup that was verified."""
    with database.unit_of_work() as work:
        work.session.add(
            BackupLog(location="pgcorpus_1", status="verified", finished_at=datetime.now(UTC))
        )
        work.commit()


def note_batch(metrics: Metrics, **counts: int) -> None:
    """A batch of a worker."""
    metrics.note_batch(BatchReport("embed chat", Counter(counts), 0.2))
