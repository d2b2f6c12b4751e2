"""Metrics of searches, embedders and workers of this process, as they are counted."""

from __future__ import annotations

import asyncio
import timeit
from collections.abc import Iterator
from time import process_time

import pytest

from pgcorpus.db.engine import Database
from pgcorpus.db.errors import SearchError
from pgcorpus.services.embedding.openai import OpenAIEmbedder
from pgcorpus.services.embedding.usage import Use, embed_documents, embed_question, list_usage
from pgcorpus.services.ops.metrics.app import Metrics
from pgcorpus.services.search.service import AsyncSearchService, SearchService
from tests import factories
from tests.db.search.shelves import SHELVES, Passage
from tests.factories import axis
from tests.services.embedding.loopback_api import Answer, LoopbackAPI
from tests.services.ops.metrics.scraped import find, note_batch, read_samples
from tests.services.search.test_service import AxisEmbedder, SilentEmbedder

PASSAGES = [
    Passage("Anchoring", "A high first price makes the second look small.", axis(0, length=384)),
    Passage("Churn", "Subscribers quit when a habit never forms.", axis(1, length=384)),
]
HYBRID = {"corpus": "knowledge", "mode": "hybrid"}
MOST_MICROSECONDS = 100
"""The bound of what noting a search takes; some 10 µs were measured."""


@pytest.fixture
def filled(database: Database) -> Database:
    """Two passages with their vectors."""
    with database.unit_of_work() as work:
        factories.bind(work.session)
        SHELVES[0].fill(work, PASSAGES)
        work.commit()
    return database


@pytest.fixture
def metrics(filled: Database) -> Iterator[Metrics]:
    """Metrics of the searches of the database."""
    metrics = Metrics(filled, figures=False, worker=True)
    yield metrics
    metrics.close()


def test_a_search_is_timed_by_corpus_mode_and_leg(filled: Database, metrics: Metrics) -> None:
    """Once, whichever way it is asked."""
    embedder = AxisEmbedder()
    SearchService(filled, embedder=embedder).search("price", corpus="knowledge")
    asyncio.run(search_async(filled, embedder))

    samples = read_samples(metrics)
    assert find(samples, "pgcorpus_search_duration_seconds_count", **HYBRID) == 2
    seconds = find(samples, "pgcorpus_search_duration_seconds_sum", **HYBRID)
    assert seconds is not None
    assert 0 < seconds < 30
    for leg in ("vector", "text"):
        labels = {**HYBRID, "leg": leg}
        assert find(samples, "pgcorpus_search_leg_duration_seconds_count", **labels) == 2
        told = find(samples, "pgcorpus_search_legs_total", corpus="knowledge", leg=leg, status="ok")
        assert told == 2
    assert find(samples, "pgcorpus_degraded_searches_total", **HYBRID) == 0


async def search_async(database: Database, embedder: AxisEmbedder) -> None:
    """Search from an event loop."""
    await AsyncSearchService(database, embedder=embedder).search("price", corpus="knowledge")
    await database.aclose()


def test_a_degraded_search_is_counted_with_its_leg(filled: Database, metrics: Metrics) -> None:
    """The embedder's failure is counted, too."""
    before = list_usage().get(Use("hashing", "question"))
    failed = 0 if before is None else before.failures["EmbedderUnavailable"]
    SearchService(filled, embedder=SilentEmbedder()).search("price", corpus="knowledge")

    samples = read_samples(metrics)
    assert find(samples, "pgcorpus_degraded_searches_total", **HYBRID) == 1
    leg = {"corpus": "knowledge", "leg": "vector", "status": "failed"}
    assert find(samples, "pgcorpus_search_legs_total", **leg) == 1
    error = {"model": "hashing", "purpose": "question", "error": "EmbedderUnavailable"}
    assert find(samples, "pgcorpus_embedding_failures_total", **error) == failed + 1


def test_a_search_without_an_answer_is_counted_by_its_error(
    filled: Database, metrics: Metrics
) -> None:
    """By the class alone: messages quote what was asked."""
    service = SearchService(filled, embedder=AxisEmbedder())
    with pytest.raises(SearchError):
        service.search("price", corpus="knowledge", language="klingon")

    failures = {**HYBRID, "error": "InvalidSearch"}
    assert find(read_samples(metrics), "pgcorpus_search_failures_total", **failures) == 1


def test_no_label_holds_what_was_asked_or_by_whom(filled: Database, metrics: Metrics) -> None:
    """Whatever is asked, the labels are of a few words."""
    service = SearchService(filled, embedder=AxisEmbedder())
    service.search("verysecretword", corpus="knowledge")
    with pytest.raises(SearchError):
        service.search("x", corpus="verysecretcorpus")

    assert "verysecret" not in repr(read_samples(metrics))


def test_a_search_tells_nobody_before_and_after_metrics(filled: Database) -> None:
    """Metrics that are not made, or closed, cost it nothing."""
    before = filled.observers
    metrics = Metrics(filled, figures=False)
    within = filled.observers
    metrics.close()

    assert before == filled.observers == ()
    assert len(within) == 2


def test_noting_a_search_takes_microseconds(filled: Database, metrics: Metrics) -> None:
    """It is on the request path."""
    service = SearchService(filled, embedder=AxisEmbedder())
    noted: list[tuple[object, ...]] = []

    class Keeper:
        def note_search(self, *of: object) -> None:
            noted.append(of)

    observers = filled.observers
    filled.observers = (Keeper(),)
    service.search("price", corpus="knowledge")
    ((prepared, page, seconds),) = noted

    def note() -> None:
        for observer in observers:
            observer.note_search(prepared, page, seconds)

    took = min(timeit.repeat(note, number=500, repeat=5, timer=process_time)) / 500
    assert took * 1e6 < MOST_MICROSECONDS


def test_tokens_are_counted_as_the_provider_counts_them(metrics: Metrics) -> None:
    """Of documents and questions apart, whatever threads send the requests."""
    with LoopbackAPI(dimensions=384) as api:
        embedder = OpenAIEmbedder(
            "counted", 384, api_key="k", base_url=api.base_url, texts_per_request=1, concurrency=3
        )
        embed_documents(embedder, ["a", "b", "c", "d", "e"])
        embed_question(embedder, "f")

    samples = read_samples(metrics)
    documents, question = ({"model": "counted", "purpose": p} for p in ("documents", "question"))
    assert find(samples, "pgcorpus_embedding_tokens_total", **documents) == 5
    assert find(samples, "pgcorpus_embedding_tokens_total", **question) == 1
    assert find(samples, "pgcorpus_embedding_texts_total", **documents) == 5
    assert find(samples, "pgcorpus_embedding_duration_seconds_count", **documents) == 1


def test_what_a_failed_call_has_spent_is_counted(metrics: Metrics) -> None:
    """The provider counts what it answered, whatever became of the rest."""

    def answer(number: int, _request: object) -> Answer:
        return Answer() if number == 0 else Answer(status=400)

    with LoopbackAPI(dimensions=384, answers=answer) as api:
        embedder = OpenAIEmbedder(
            "spent", 384, api_key="k", base_url=api.base_url, texts_per_request=1, concurrency=1
        )
        with pytest.raises(Exception, match="refused"):
            embed_documents(embedder, ["a", "b"])

    usage = list_usage()[Use("spent", "documents")]
    assert (usage.tokens, usage.calls, usage.failures) == (1, 0, {"TextsRefused": 1})


def test_jobs_of_a_worker_are_counted_by_what_became_of_them(metrics: Metrics) -> None:
    """Failures by kind, and how long batches take."""
    note_batch(metrics, completed=3, failed=1)
    note_batch(metrics, completed=2)

    samples = read_samples(metrics)
    labels = {"kind": "embed", "corpus": "chat"}
    assert find(samples, "pgcorpus_worker_jobs_total", **labels, outcome="completed") == 5
    assert find(samples, "pgcorpus_worker_jobs_total", **labels, outcome="failed") == 1
    assert find(samples, "pgcorpus_worker_batch_duration_seconds_count", **labels) == 2
