"""Live recall: it sees a bad index, waits for nothing, and is limited."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Final

import numpy as np
import pytest
from sqlalchemy import text

from pgcorpus.db.engine import Database
from pgcorpus.db.search.page import Hit
from pgcorpus.services.ops.metrics import recall
from pgcorpus.services.ops.metrics.app import Metrics
from pgcorpus.services.ops.metrics.recall import compare
from pgcorpus.services.search.service import SearchService
from tests.services.ops.metrics.scraped import Samples, find, read_samples

ROWS: Final = 12_000
"""Passages: so many that a search does not compare all vectors, and a poor graph misses some."""

DIMENSIONS: Final = 32
SEARCHES: Final = 12

FILL: Final = text("""
    WITH made AS (
        INSERT INTO framework_documents (chunk_id, source_file, section, title, content, language)
        SELECT to_char(n, 'FM00000'), 'f.md', 's', 'Passage', 'word' || n, 'simple'
        FROM generate_series(1, :rows) AS n
        RETURNING id, title || E'\\n' || content AS embedded
    ), described AS (
        INSERT INTO framework_metadata
            (document_id, character_count, word_count, chunk_type, framework_name,
             validation_passed)
        SELECT id, 300, 20, 'supporting', 's', true FROM made
    )
    INSERT INTO chunk_embeddings (document_id, model_name, embedding, content_hash)
    SELECT id, 'sampled', (SELECT array_agg(random() * 2 - 1) FROM
               generate_series(1, :dimensions) WHERE id IS NOT NULL)::vector,
           sha256(convert_to(embedded, 'UTF8'))
    FROM made
""")

BUILD: Final = """
    CREATE INDEX sampled_hnsw ON chunk_embeddings
    USING hnsw ((embedding::halfvec(32)) halfvec_cosine_ops)
    WITH (m = {m}, ef_construction = {ef}) WHERE model_name = 'sampled'
"""


class RandomEmbedder:
    """Every question is another direction."""

    model_name = "sampled"
    dimensions = DIMENSIONS
    batch_size = 8

    def __init__(self) -> None:
        self._random = np.random.default_rng(7)

    def embed_question(self, _text: str) -> np.ndarray:
        """A direction."""
        vector = self._random.normal(size=DIMENSIONS).astype(np.float32)
        return vector / np.linalg.norm(vector)

    def embed_documents(self, texts: list[str]) -> np.ndarray:
        """A direction for each."""
        return np.stack([self.embed_question(each) for each in texts])


@pytest.fixture
def large(database: Database) -> Database:
    """Many vectors, without an index."""
    with database.unit_of_work() as work:
        work.models.add_model("sampled", dimensions=DIMENSIONS, provider="hashing")
        work.session.execute(FILL, {"rows": ROWS, "dimensions": DIMENSIONS})
        work.commit()
    return database


@pytest.fixture
def unlimited(monkeypatch: pytest.MonkeyPatch) -> None:
    """No rest between two samples."""
    monkeypatch.setattr(recall, "BUSY_SHARE", 1.0)


def build(database: Database, *, m: int, ef: int) -> None:
    """Make the vector index, good or bad."""
    with database.engine.begin() as connection:
        connection.execute(text("SET LOCAL max_parallel_maintenance_workers = 0"))
        connection.execute(text("DROP INDEX IF EXISTS sampled_hnsw"))
        connection.execute(text(BUILD.format(m=m, ef=ef)))
        connection.execute(text("ANALYZE"))


def sample(database: Database, *, percent: int = 100) -> Samples:
    """Search some times, and return the metrics once all samples are measured."""
    watched = Database(replace(database.settings, recall_percent=percent))
    metrics = Metrics(watched, figures=False)
    service = SearchService(watched, embedder=RandomEmbedder())
    for number in range(SEARCHES):
        service.search(f"word{number}", corpus="knowledge")
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        samples = read_samples(metrics)
        if percent == 0 or (count_measured(samples) or 0) >= SEARCHES:
            break
        time.sleep(0.1)
    metrics.close()
    watched.close()
    return samples


def count_measured(samples: Samples) -> float | None:
    """The number of searches that were repeated."""
    return find(samples, "pgcorpus_search_recall_ratio_count", corpus="knowledge")


def mean(samples: Samples) -> float:
    """The mean recall."""
    total = find(samples, "pgcorpus_search_recall_ratio_sum", corpus="knowledge")
    assert total is not None
    return total / (count_measured(samples) or 1)


@pytest.mark.usefixtures("unlimited")
def test_a_good_index_finds_what_is_nearest_and_a_bad_one_does_not(large: Database) -> None:
    """The same searches, the same vectors: only the graph differs."""
    build(large, m=16, ef=64)
    good = sample(large)
    build(large, m=2, ef=4)
    bad = sample(large)

    assert count_measured(good) == count_measured(bad) == SEARCHES
    assert mean(good) > 0.95
    assert mean(bad) < mean(good) - 0.1


@pytest.mark.usefixtures("unlimited")
def test_the_repetition_uses_no_index(large: Database) -> None:
    """Its plan reads the table."""
    build(large, m=16, ef=64)
    ranker = large.ranker()
    service = SearchService(large, embedder=RandomEmbedder())
    noted: list[object] = []

    class Keeper:
        def note_search(self, prepared: object, *_: object) -> None:
            noted.append(prepared)

    large.observers = (Keeper(),)
    service.search("word1", corpus="knowledge")
    (prepared,) = noted
    found = ranker.answer(prepared.request.corpus, recall._narrow(prepared.ask))  # type: ignore[attr-defined]
    exact = ranker.answer_exactly(found)
    plans = [str(ranker.explain(answer.statement, analyze=False)) for answer in (found, exact)]

    assert "sampled_hnsw" in plans[0]
    assert "sampled_hnsw" not in plans[1]
    assert len(exact.hits) == recall.RECALLED


def test_no_share_is_no_sample(large: Database) -> None:
    """METRICS_RECALL_PERCENT=0 repeats nothing."""
    build(large, m=16, ef=64)

    assert count_measured(sample(large, percent=0)) is None


def test_what_waits_is_limited_and_what_is_dropped_is_counted(
    large: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A search never waits for the sampler, and memory does not grow."""
    monkeypatch.setattr(recall.RecallSampler, "measure", lambda *_: time.sleep(60))
    build(large, m=16, ef=64)
    watched = Database(replace(large.settings, recall_percent=100))
    metrics = Metrics(watched, figures=False)
    service = SearchService(watched, embedder=RandomEmbedder())
    for number in range(recall.MOST_WAITING + 5):
        service.search(f"word{number}", corpus="knowledge", mode="vector")

    dropped = find(read_samples(metrics), "pgcorpus_recall_samples_dropped_total")
    metrics.close()
    watched.close()
    assert dropped in {4, 5}


@pytest.fixture
def hits() -> list[Hit]:
    """Ten hits, each a little less similar than the one before."""
    return [make_hit(n, 0.9 - n / 100) for n in range(10)]


def make_hit(key: int, cosine: float) -> Hit:
    """A hit of a vector leg."""
    return Hit(
        id=key,
        corpus="knowledge",
        score=cosine,
        title="",
        content="",
        ranks={"vector": 1},
        scores={"vector": cosine},
        contributions={},
    )


def test_recall_counts_the_places_that_are_filled(hits: list[Hit]) -> None:
    """A missing hit is a tenth; one as similar as the last exact one is as good."""
    assert compare(hits, hits) == 1
    assert compare(hits[:9], hits) == 0.9
    assert compare([*hits[:9], make_hit(99, 0.1)], hits) == 0.9
    assert compare([*hits[:9], make_hit(99, hits[9].scores["vector"])], hits) == 1
    assert compare(hits, []) is None
