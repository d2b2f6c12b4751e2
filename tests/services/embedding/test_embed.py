"""Embedding a corpus: resumable, and only what needs it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from sqlalchemy import text

from pgcorpus.db.engine import Database
from pgcorpus.db.errors import (
    EmbedderUnavailable,
    TextsRefused,
    TransactionConflict,
    UnknownCorpus,
    UnknownModel,
)
from pgcorpus.services.embedding.embed import EmbeddingService
from pgcorpus.services.embedding.hashing import HashingEmbedder
from pgcorpus.services.embedding.openai import OpenAIEmbedder
from tests import factories
from tests.db.search.shelves import SHELVES, Passage
from tests.services.embedding.loopback_api import Answer, LoopbackAPI


@pytest.fixture
def filled(database: Database) -> Database:
    """Nineteen chunks without vectors, as the specification counts them."""
    with database.unit_of_work() as work:
        factories.bind(work.session)
        SHELVES[0].fill(work, [Passage(f"Title {n}", f"Text number {n}") for n in range(19)])
        work.commit()
    return database


class Picky(HashingEmbedder):
    """Refuses any batch that holds the text it does not like."""

    calls = 0

    def embed_documents(self, texts: Sequence[str]) -> np.ndarray:
        """All or nothing."""
        self.calls += 1
        if any("number 7" in each for each in texts):
            raise TextsRefused("a text is refused")
        return super().embed_documents(texts)


class Failing(HashingEmbedder):
    """Goes down after its first batch."""

    calls = 0

    def __init__(self) -> None:
        super().__init__()
        self.batch_size = 5

    def embed_documents(self, texts: Sequence[str]) -> np.ndarray:
        """One answer, then none."""
        self.calls += 1
        if self.calls > 1:
            raise EmbedderUnavailable("gone")
        return super().embed_documents(texts)


def test_every_chunk_gets_its_vector_and_a_second_run_does_nothing(filled: Database) -> None:
    """Nineteen embedded, then none."""
    service = EmbeddingService(filled)
    progress: list[int] = []

    first = service.embed("knowledge", on_progress=progress.append)
    second = service.embed("knowledge")

    assert (first.embedded, first.failed, sum(progress)) == (19, 0, 19)
    assert first.model == "hashing"
    assert "OPENAI_API_KEY is not set" in (first.reason or "")
    assert second.embedded == 0
    assert second.as_json().keys() == {
        "corpus", "model", "embedded", "stale", "failed", "waiting", "duration_s",
    }  # fmt: skip


def test_a_changed_text_is_embedded_anew(filled: Database) -> None:
    """Its vector is stale, and replaced."""
    service = EmbeddingService(filled)
    service.embed("knowledge")
    with filled.engine.begin() as connection:
        connection.execute(
            text("UPDATE framework_documents SET content = 'New.' WHERE title = 'Title 3'")
        )

    report = service.embed("knowledge")

    assert (report.embedded, report.stale) == (1, 1)


def test_a_bad_text_is_found_by_halving_and_the_others_are_embedded(filled: Database) -> None:
    """One failure is one failure."""
    picky = Picky()

    report = EmbeddingService(filled, embedder=picky).embed("knowledge")

    assert (report.embedded, report.failed) == (18, 1)
    assert report.failures[0][1] == "a text is refused"
    assert picky.calls < 19


def test_a_run_that_is_cut_off_goes_on_where_it_was(filled: Database) -> None:
    """Stored vectors stay; nothing is embedded twice."""
    with pytest.raises(EmbedderUnavailable):
        EmbeddingService(filled, embedder=Failing()).embed("knowledge")
    _, coverage = EmbeddingService(filled).coverage("knowledge", "hashing")
    assert coverage.embedded == 5

    report = EmbeddingService(filled, embedder=HashingEmbedder()).embed("knowledge")

    assert report.embedded == 14


def test_nineteen_chunks_through_an_api_that_is_slow_and_refuses_now_and_then(
    filled: Database,
) -> None:
    """200 ms an answer, and every third a 429: all are embedded, by the client that is used."""

    def misbehave(number: int, _request: object) -> Answer:
        busy = number % 3 == 1
        return Answer(status=429, headers={"Retry-After": "0"}) if busy else Answer()

    with LoopbackAPI(dimensions=3072, latency_seconds=0.2, answers=misbehave) as api:
        embedder = OpenAIEmbedder(
            "text-embedding-3-large", 3072, api_key="k", base_url=api.base_url, texts_per_request=2
        )
        report = EmbeddingService(filled, embedder=embedder).embed("knowledge")

    assert (report.embedded, report.failed) == (19, 0)
    assert len(api.requests) > 10
    _, coverage = EmbeddingService(filled).coverage("knowledge", "text-embedding-3-large")
    assert coverage.embedded == 19


def test_a_text_that_changes_while_it_is_embedded_keeps_no_stale_vector(filled: Database) -> None:
    """Compare-and-set: the vector of the old text is not stored."""

    class Slow(HashingEmbedder):
        def embed_documents(self, texts: Sequence[str]) -> np.ndarray:
            with filled.engine.begin() as connection:
                connection.execute(text("UPDATE framework_documents SET content = title || '!'"))
            return super().embed_documents(texts)

    report = EmbeddingService(filled, embedder=Slow()).embed("knowledge")

    assert report.embedded == 0
    _, coverage = EmbeddingService(filled).coverage("knowledge", "hashing")
    assert coverage.embedded == 0


def test_unknown_names_list_the_known(filled: Database) -> None:
    """For corpora as for models."""
    with pytest.raises(UnknownCorpus, match="knowledge"):
        EmbeddingService(filled).embed("recipes")
    with pytest.raises(UnknownModel, match="text-embedding-3-large"):
        EmbeddingService(filled).embed("knowledge", model="gpt")


def test_a_model_may_be_named_and_then_nothing_stands_in(filled: Database) -> None:
    """A model asked for by name that cannot be reached is an error, with its cure."""
    with pytest.raises(EmbedderUnavailable, match="OPENAI_API_KEY"):
        EmbeddingService(filled).embed("knowledge", model="text-embedding-3-large")


def test_two_runs_at_once_do_not_pay_twice(filled: Database) -> None:
    """The second is told to wait; another model's run is not in the way."""
    refused: list[str] = []

    class Busy(HashingEmbedder):
        def embed_documents(self, texts: Sequence[str]) -> np.ndarray:
            try:
                EmbeddingService(filled).embed("knowledge", model="hashing")
            except TransactionConflict as conflict:
                refused.append(str(conflict))
            return super().embed_documents(texts)

    first = EmbeddingService(filled, embedder=Busy()).embed("knowledge")
    second = EmbeddingService(filled).embed("knowledge", model="hashing")

    assert (first.embedded, second.embedded) == (19, 0)
    assert refused == [
        "another process is embedding knowledge with hashing; wait until it has ended"
    ]
