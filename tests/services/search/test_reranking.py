"""Additions of a caller to a search: an order of its own, and the question why."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import numpy as np
import pytest
from sqlalchemy import text

from pgcorpus.db.engine import Database
from pgcorpus.db.errors import SearchError
from pgcorpus.db.models import EmbeddingModel
from pgcorpus.db.search.ask import DEPTHS
from pgcorpus.db.search.corpora import KNOWLEDGE
from pgcorpus.db.search.page import Hit
from pgcorpus.services.search.service import RERANKED, AsyncSearchService, SearchService
from tests import factories
from tests.db.search.shelves import SHELVES, Passage
from tests.factories import axis
from tests.services.search.test_service import AxisEmbedder, SilentEmbedder

COUNT = 110


@pytest.fixture
def service(database: Database) -> SearchService:
    """A hundred and ten passages, each a little farther from every question than the one before."""
    with database.unit_of_work() as work:
        factories.bind(work.session)
        passages = [
            Passage(f"Kettle {n:03}", "kettle " * (n + 1), axis(1, lean=1 - n / COUNT, length=384))
            for n in range(COUNT)
        ]
        SHELVES[0].fill(work, passages)
        work.commit()
    return SearchService(database, embedder=AxisEmbedder())


def last_first(_question: str, hits: Sequence[Hit]) -> list[float]:
    """The highest number in the title is best."""
    return [float(hit.title.split()[1]) for hit in hits]


def test_a_reranker_orders_more_than_the_page(service: SearchService) -> None:
    """It sees the best hundred, so that it can lift what fusion put low."""
    seen: list[tuple[str, int]] = []

    def rerank(question: str, hits: Sequence[Hit]) -> list[float]:
        seen.append((question, len(hits)))
        return last_first(question, hits)

    page = service.search("kettle", corpus="knowledge", mode="vector", limit=3, rerank=rerank)

    assert seen == [("kettle", RERANKED)]
    assert [hit.title for hit in page.hits] == ["Kettle 099", "Kettle 098", "Kettle 097"]
    assert [hit.score for hit in page.hits] == [99, 98, 97]
    assert page.hits[0].scores["rerank"] == 99
    assert page.hits[0].ranks == {"vector": 100}
    assert not page.degraded


def test_pages_of_a_reranked_search_fit_together(service: SearchService) -> None:
    """The offset counts in the reranker's order."""
    asked = {"corpus": "knowledge", "mode": "vector", "rerank": last_first}

    whole = service.search("kettle", limit=10, **asked).hits
    later = service.search("kettle", limit=5, offset=5, **asked).hits

    assert [hit.id for hit in later] == [hit.id for hit in whole[5:]]


@pytest.fixture
def many(database: Database) -> SearchService:
    """Twice as many passages as the legs find for the first pages, the last the farthest."""
    count = 2 * DEPTHS[0]
    with database.unit_of_work() as work:
        factories.bind(work.session)
        passages = [
            Passage(f"Kettle {n:03}", "kettle", axis(1, lean=1 - n / count, length=384))
            for n in range(count)
        ]
        SHELVES[0].fill(work, passages)
        work.commit()
    return SearchService(database, embedder=AxisEmbedder())


def test_the_first_pages_of_a_reranked_search_repeat_no_hit(many: SearchService) -> None:
    """All are cut from one order, so that a reader meets each hit once, and none is lost."""
    pages = [
        many.search("kettle", corpus="knowledge", mode="vector", offset=offset, rerank=last_first)
        for offset in range(0, 80, 10)
    ]

    places = [hit.ranks["vector"] for page in pages for hit in page.hits]
    assert len(set(places)) == len(places) == 80


def test_far_down_a_reranked_page_says_that_hits_may_repeat(many: SearchService) -> None:
    """There the reranker saw more hits, and may have put any of them in front."""
    first = many.search("kettle", corpus="knowledge", mode="vector", rerank=last_first)
    far = many.search(
        "kettle", corpus="knowledge", mode="vector", offset=DEPTHS[0], rerank=last_first
    )

    assert "may repeat" not in (first.note or "")
    assert "may repeat" in (far.note or "")
    assert len(far.hits) == 10


@pytest.mark.parametrize(
    "scores", [[1.0], [float("nan")] * RERANKED, ["best"] * RERANKED, None], ids=str
)
def test_a_reranker_that_fails_leaves_the_order_of_the_legs(
    service: SearchService, scores: object
) -> None:
    """Too few scores, no numbers, no list at all: the page is what it was, and says so."""
    plain = service.search("kettle", corpus="knowledge", mode="vector", limit=3)

    page = service.search(
        "kettle",
        corpus="knowledge",
        mode="vector",
        limit=3,
        rerank=lambda *_: scores,  # type: ignore[arg-type,return-value] - that is the point
    )

    assert page.hits == plain.hits
    assert page.degraded
    assert "the reranker failed" in (page.note or "")


def test_a_reranked_page_that_is_short_says_why(service: SearchService) -> None:
    """Fewer hits than asked for are explained as without a reranker."""
    page = service.search("kettle", corpus="knowledge", mode="vector", limit=200, rerank=last_first)

    assert len(page.hits) == COUNT
    assert "fewer hits than asked for" in (page.note or "")


def test_async_searches_are_reranked_too(service: SearchService, database: Database) -> None:
    """The reranker runs in a thread: it does not hold up the loop."""
    page = asyncio.run(_rerank(database))

    assert [hit.title for hit in page.hits] == ["Kettle 099"]


async def _rerank(database: Database):  # noqa: ANN202 - SearchPage
    try:
        return await AsyncSearchService(database, embedder=AxisEmbedder()).search(
            "kettle", corpus="knowledge", mode="vector", limit=1, rerank=last_first
        )
    finally:
        await database.aclose()


def test_a_page_explains_itself(service: SearchService) -> None:
    """The statement, its parameters and plan, and what each leg gave to each hit."""
    page = service.search("kettle", corpus="knowledge", limit=2)

    explanation = page.explain()

    assert explanation.contributions == tuple(hit.contributions for hit in page.hits)
    assert "ts_rank" in explanation.statement
    assert explanation.parameters["question_vector"] == "a vector of 384"
    assert explanation.parameters["word_0"] == "'kettl'"
    assert explanation.plan["Execution Time"] > 0
    assert explanation.plan["Plan"]["Node Type"]
    assert "hnsw.ef_search" in explanation.settings
    assert "explainer" not in page.as_json()


def test_a_page_of_no_leg_has_nothing_to_explain(database: Database) -> None:
    """It says so if no statement ranked."""
    page = SearchService(database, embedder=SilentEmbedder()).search(
        "kettle", corpus="knowledge", mode="vector"
    )

    with pytest.raises(SearchError, match="nothing to explain"):
        page.explain()


@pytest.mark.parametrize(("spread", "factor"), [(0.13, 1), (0.065, 2), (0.0001, 3), (1.3, 1 / 3)])
def test_cosines_that_spread_less_weigh_more(
    service: SearchService, database: Database, spread: float, factor: float
) -> None:
    """The weight of the vector leg is scaled to a spread of 0.13, at most three times."""
    with database.unit_of_work() as work:
        work.session.execute(
            text("UPDATE embedding_models SET cosine_spread = :spread WHERE name = 'hashing'"),
            {"spread": spread},
        )
        work.commit()

    hit = service.search("kettle", corpus="knowledge", limit=1).hits[0]

    ratio = (hit.contributions["vector"] / hit.scores["vector"]) / (
        hit.contributions["text"] / hit.scores["text"]
    )
    assert ratio == pytest.approx(0.3 / 0.7 * factor, rel=1e-3)


def test_the_spread_of_a_model_is_measured_once(database: Database) -> None:
    """It is the standard deviation of the cosines of 64 passages; a value that is there stays."""
    vectors = np.random.default_rng(3).normal(size=(64, 384)).astype(np.float32)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    cosines = (unit @ unit.T)[np.triu_indices(64, 1)]
    with database.unit_of_work() as work:
        factories.bind(work.session)
        passages = [Passage(f"P {n}", "words", vector) for n, vector in enumerate(vectors)]
        SHELVES[0].fill(work, passages[:63])
        work.models.measure_spread(KNOWLEDGE, "hashing")
        assert work.session.get_one(EmbeddingModel, "hashing").cosine_spread is None
        SHELVES[0].fill(work, passages[63:])
        work.models.measure_spread(KNOWLEDGE, "hashing")
        measured = work.session.get_one(EmbeddingModel, "hashing").cosine_spread
        work.models.measure_spread(KNOWLEDGE, "all-MiniLM-L6-v2")
        noted = work.session.get_one(EmbeddingModel, "all-MiniLM-L6-v2").cosine_spread

    assert measured == pytest.approx(cosines.std(), rel=1e-3)
    assert noted == pytest.approx(0.13)
