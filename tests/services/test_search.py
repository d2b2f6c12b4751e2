"""Searches as a caller sees them: honest about every leg, whatever happens to it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import event, text

from db.engine import Database
from db.errors import (
    DatabaseNotReady,
    EmbedderUnavailable,
    EmptyQuestion,
    SearchError,
    UnknownCorpus,
    UnknownFilter,
    WrongDimensions,
)
from db.search.page import Leg, SearchPage
from services.search import AsyncSearchService, SearchService
from tests import factories
from tests.conftest import settings_for
from tests.factories import axis
from tests.search.shelves import SHELVES, Passage

PASSAGES = [
    Passage("Anchoring", "A high first price makes the second look small.", axis(0, length=384)),
    Passage("Churn", "Subscribers quit when a habit never forms.", axis(1, length=384)),
    Passage("Guarantees", "A refund moves the risk to the seller.", axis(2, length=384)),
]


class AxisEmbedder:
    """Every question means axis 0."""

    model_name = "hashing"
    dimensions = 384
    batch_size = 8

    def embed_documents(self, texts: Sequence[str]) -> np.ndarray:
        """One axis per text."""
        return np.stack([axis(n, length=self.dimensions) for n in range(len(texts))])

    def embed_question(self, text: str) -> np.ndarray:
        """Axis 0."""
        return axis(0, length=self.dimensions)


class SilentEmbedder(AxisEmbedder):
    """A provider that is down."""

    def embed_question(self, text: str) -> np.ndarray:
        """No answer."""
        raise EmbedderUnavailable("the provider did not answer")


class ShortEmbedder(AxisEmbedder):
    """A provider that answers with another model's vectors."""

    def embed_question(self, text: str) -> np.ndarray:
        """Four numbers."""
        return axis(0, length=4)


@pytest.fixture
def filled(database: Database) -> Database:
    """Three passages with their vectors."""
    with database.unit_of_work() as work:
        factories.bind(work.session)
        SHELVES[0].fill(work, PASSAGES)
        work.commit()
    return database


@pytest.fixture
def service(filled: Database) -> SearchService:
    """A service whose every question means axis 0."""
    return SearchService(filled, embedder=AxisEmbedder())


def leg(page: SearchPage, name: str) -> Leg:
    """What a page says of a leg."""
    return next(leg for leg in page.legs if leg.name == name)


def test_a_hybrid_page_says_what_each_leg_did(service: SearchService) -> None:
    """Both legs ran; each tells its candidates and its time."""
    page = service.search("refund price", corpus="knowledge")

    assert [(each.name, each.status) for each in page.legs] == [("vector", "ok"), ("text", "ok")]
    assert leg(page, "vector").candidates == 3
    assert leg(page, "text").candidates == 2
    assert all(each.duration_ms is not None and each.duration_ms >= 0 for each in page.legs)
    assert (page.degraded, page.mode, page.fusion) == (False, "hybrid", "weighted")
    assert page.hits[0].title == "Anchoring"


def test_a_silent_embedder_leaves_the_words(filled: Database) -> None:
    """The vector leg failed, and says why; the words leg answers with all of the weight."""
    page = SearchService(filled, embedder=SilentEmbedder()).search("refund", corpus="knowledge")

    assert page.degraded
    assert leg(page, "vector").status == "failed"
    assert leg(page, "vector").reason == "the provider did not answer"
    assert [hit.title for hit in page.hits] == ["Guarantees"]
    assert page.hits[0].score == pytest.approx(page.hits[0].scores["text"])


def test_a_vector_search_without_an_embedder_is_an_empty_page_with_its_reason(
    filled: Database,
) -> None:
    """No leg is left, and the page says so instead of failing."""
    page = SearchService(filled, embedder=SilentEmbedder()).search(
        "refund", corpus="knowledge", mode="vector"
    )

    assert (page.hits, page.degraded) == ((), True)
    assert leg(page, "vector").reason == "the provider did not answer"


def test_a_broken_words_leg_leaves_the_vectors(service: SearchService, filled: Database) -> None:
    """FR2: vector results stay when full-text search fails; the weights are renormalised."""
    with filled.engine.begin() as connection:
        connection.execute(text("DROP FUNCTION lexeme_frequencies(regclass, name, text[])"))

    page = service.search("refund price", corpus="knowledge")

    assert page.degraded
    assert leg(page, "text").status == "failed"
    assert "lexeme_frequencies" in (leg(page, "text").reason or "")
    assert leg(page, "vector").status == "ok"
    assert page.hits[0].contributions == {"vector": pytest.approx(1.0)}


def test_a_slow_words_leg_times_out_alone(service: SearchService, filled: Database) -> None:
    """A leg that takes longer than the statement may is told from one that is broken."""
    with filled.engine.begin() as connection:
        connection.execute(text("DROP FUNCTION lexeme_frequencies(regclass, name, text[])"))
        connection.execute(
            text(
                "CREATE FUNCTION lexeme_frequencies(regclass, name, text[])"
                " RETURNS TABLE (lexeme text, frequency double precision) LANGUAGE sql AS"
                " 'SELECT ''x'', 0.5 FROM pg_sleep(20)'"
            )
        )
    impatient = Database(replace(filled.settings, statement_timeout_ms=500))
    try:
        page = SearchService(impatient, embedder=AxisEmbedder()).search("x", corpus="knowledge")
    finally:
        impatient.close()

    assert leg(page, "text").status == "timed_out"
    assert "DB_STATEMENT_TIMEOUT_MS" in (leg(page, "text").reason or "")
    assert len(page.hits) == 3


def test_missing_vectors_are_named_with_their_cure(filled: Database) -> None:
    """A model without vectors is skipped, and the page names the command that makes them."""
    with filled.engine.begin() as connection:
        connection.execute(text("DELETE FROM chunk_embeddings"))

    page = SearchService(filled).search("refund", corpus="knowledge")

    assert leg(page, "vector").status == "skipped"
    assert "pgcorpus embed --corpus knowledge" in (leg(page, "vector").reason or "")
    assert [hit.title for hit in page.hits] == ["Guarantees"]


def test_without_a_key_the_offline_model_stands_in_and_says_so(filled: Database) -> None:
    """The active model needs a key; the offline one has vectors and answers."""
    page = SearchService(filled).search("refund", corpus="knowledge", mode="vector")

    assert leg(page, "vector").status == "ok"
    assert "OPENAI_API_KEY is not set" in (page.note or "")
    assert "'hashing'" in (page.note or "")


def test_in_production_nothing_stands_in(filled: Database) -> None:
    """There the missing key is a missing key."""
    strict = Database(replace(filled.settings, environment="production"))
    try:
        page = SearchService(strict).search("refund", corpus="knowledge", mode="vector")
    finally:
        strict.close()

    assert leg(page, "vector").status == "skipped"
    assert page.hits == ()


def test_a_typo_is_answered_by_the_fuzzy_leg_and_said(service: SearchService) -> None:
    """No passage holds the word: the fuzzy leg stands in for the words leg."""
    page = service.search("subscribbers", corpus="knowledge", mode="text")

    assert [each.name for each in page.legs] == ["text", "fuzzy"]
    assert leg(page, "text").reason == "no passage holds a word of the question"
    assert page.hits[0].title == "Churn"
    assert "fuzzy stood in" in (page.note or "")


def test_only_stop_words_are_a_clear_answer(service: SearchService) -> None:
    """There is nothing to look up, and the page says it."""
    page = service.search("the of and", corpus="knowledge", mode="text")

    assert page.hits == ()
    assert leg(page, "text").status == "skipped"
    assert "too common" in (leg(page, "text").reason or "")


def test_ten_thousand_words_are_a_question(service: SearchService) -> None:
    """A pasted page is answered like any other question."""
    page = service.search("refund " + "anything else " * 5000, corpus="knowledge")

    assert len(page.hits) == 3
    assert not page.degraded


def test_fewer_hits_than_asked_for_are_explained(service: SearchService) -> None:
    """A short page has a reason on it, and a full one has none."""
    short = service.search(
        "price", corpus="knowledge", filters={"created_at": {"lt": "2020-01-01"}}
    )
    full = service.search("price", corpus="knowledge", limit=2)

    assert "the filters keep 0 passages" in (short.note or "")
    assert full.note is None


def test_weights_are_of_the_callers_choosing(service: SearchService) -> None:
    """Configurable, as FR2 asks; they are scaled to sum to 1."""
    page = service.search("refund", corpus="knowledge", weights={"vector": 1, "text": 3})

    top = page.hits[0]
    assert top.contributions["text"] == pytest.approx(0.75 * top.scores["text"])


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"mode": "magic"}, "known: vector, text, fuzzy, hybrid"),
        ({"fusion": "magic"}, "known: weighted, rrf"),
        ({"limit": 0}, "limit must be 1 to 1000"),
        ({"limit": 1001}, "limit must be 1 to 1000"),
        ({"offset": -1}, "offset 0 to 10000"),
        ({"weights": {"vector": -1}}, "not negative"),
        ({"weights": {"vector": float("nan")}}, "not negative"),
        ({"weights": {"vector": 0, "text": 0}}, "above 0"),
        ({"weights": {"magic": 1}}, "no leg magic"),
        ({"language": "klingon"}, "no text search configuration 'klingon'"),
        ({"language": "\udcff"}, "no text search configuration"),
        ({"language": "99999999"}, "no text search configuration"),
        ({"language": ""}, "no text search configuration"),
        ({"language": "a.b.c"}, "no text search configuration"),
        ({"limit": "3"}, "limit must be"),
        ({"limit": 2.5}, "limit must be"),
        ({"weights": {"vector": "a"}}, "not negative"),
        ({"filters": {"section": "\udcff"}}, "no text can hold"),
        ({"filters": {"section": "a\0b"}}, "no text can hold"),
    ],
)
def test_a_wrong_argument_is_named(
    service: SearchService, options: dict[str, object], says: str
) -> None:
    """Every error says what is allowed."""
    with pytest.raises(SearchError, match=says):
        service.search("price", corpus="knowledge", **options)


def test_none_is_the_default(service: SearchService) -> None:
    """A caller may hand on what it was not given."""
    page = service.search("price", corpus="knowledge", filters=None, language=None, limit=None)

    assert page == replace(
        service.search("price", corpus="knowledge"), legs=page.legs, hits=page.hits
    )


def test_what_was_cut_of_a_question_is_said(service: SearchService) -> None:
    """By the fuzzy leg as by the words leg."""
    long = " ".join(f"word{n}" for n in range(100))

    page = service.search(f"refund {long}", corpus="knowledge", mode="text")
    fuzzy = service.search(f"refund {long}", corpus="knowledge", mode="fuzzy")

    assert "64 rarest words" in (leg(page, "text").reason or "")
    assert "first 300 characters" in (leg(fuzzy, "fuzzy").reason or "")


def test_far_down_a_page_says_that_hits_may_repeat(service: SearchService) -> None:
    """Beyond the first hundred, the legs are read deeper."""
    near = service.search("price", corpus="knowledge", limit=50, offset=50)
    far = service.search("price", corpus="knowledge", limit=50, offset=100)

    assert "ranked among" not in (near.note or "")
    assert "ranked among 1000 candidates" in (far.note or "")


def test_an_unknown_corpus_or_filter_lists_the_known(service: SearchService) -> None:
    """So does every unknown name."""
    with pytest.raises(UnknownCorpus, match="knowledge"):
        service.search("price", corpus="recipes")
    with pytest.raises(UnknownFilter, match="chunk_type"):
        service.search("price", corpus="knowledge", filters={"colour": "red"})


def test_a_vector_of_another_length_is_refused(filled: Database) -> None:
    """The question's vector must be of the model's length."""
    with pytest.raises(WrongDimensions, match="384 dimensions"):
        SearchService(filled, embedder=ShortEmbedder()).search("price", corpus="knowledge")


def test_a_database_without_the_schema_names_the_cure(empty: Database) -> None:
    """The first search on a new database says what to do."""
    with pytest.raises(DatabaseNotReady, match="pgcorpus db upgrade"):
        SearchService(empty, embedder=AxisEmbedder()).search("price", corpus="knowledge")


def test_by_default_only_what_passed_validation_is_found(filled: Database) -> None:
    """The specification's own queries have this filter; a caller may lift it."""
    with filled.engine.begin() as connection:
        connection.execute(text("UPDATE framework_metadata SET validation_passed = false"))
    service = SearchService(filled, embedder=AxisEmbedder())

    assert service.search("price", corpus="knowledge").hits == ()
    lifted = service.search(
        "price", corpus="knowledge", filters={"validation_passed": [True, False, None]}
    )
    assert len(lifted.hits) == 3


def test_the_async_service_gives_the_same_page(service: SearchService, filled: Database) -> None:
    """One code path: the same statements, awaited."""

    async def search() -> SearchPage:
        try:
            return await AsyncSearchService(filled, embedder=AxisEmbedder()).search(
                "refund price", corpus="knowledge", limit=2
            )
        finally:
            await filled.aclose()

    page = asyncio.run(search())
    same = service.search("refund price", corpus="knowledge", limit=2)

    assert page.hits == same.hits
    assert [replace(each, duration_ms=None) for each in page.legs] == [
        replace(each, duration_ms=None) for each in same.legs
    ]


def test_a_hundred_async_searches_share_the_pool(filled: Database) -> None:
    """More searches than connections wait their turn."""

    async def search() -> list[SearchPage]:
        service = AsyncSearchService(filled, embedder=AxisEmbedder())
        try:
            return await asyncio.gather(
                *(service.search("price", corpus="knowledge") for _ in range(100))
            )
        finally:
            await filled.aclose()

    assert {page.hits[0].title for page in asyncio.run(search())} == {"Anchoring"}


def test_settings_do_not_leak_through_the_pool(service: SearchService, filled: Database) -> None:
    """hnsw.ef_search is the transaction's: the next user of the connection has the default."""
    service.search("price", corpus="knowledge", limit=500)

    with filled.engine.connect() as connection:
        shown = connection.scalar(text("SELECT current_setting('hnsw.ef_search')"))
    assert shown == "40"


def test_the_statement_of_a_search_is_compiled_once(
    service: SearchService, filled: Database
) -> None:
    """SQLAlchemy's cache serves the second search: nothing in the statement defeats it."""
    seen: list[tuple[str, str]] = []

    def note(*event: Any) -> None:  # noqa: ANN401 - of SQLAlchemy
        _, _, statement, _, context, _ = event
        seen.append((context.cache_hit.name, statement))

    service.search("price", corpus="knowledge")
    event.listen(filled.engine, "before_cursor_execute", note)
    service.search("refund the seller", corpus="knowledge", limit=7, offset=1)

    assert seen
    assert [statement for hit, statement in seen if hit != "CACHE_HIT"] == []


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(question=st.text() | st.text(alphabet="\"-or \0()&|!:*\\'", max_size=30))
def test_no_question_is_a_stack_trace(service: SearchService, question: str) -> None:
    """Any text is answered by a page, or refused as empty."""
    try:
        page = service.search(question, corpus="knowledge")
    except EmptyQuestion:
        return
    assert page.question == question


def test_a_lost_server_is_a_clear_error(filled: Database) -> None:
    """A search against a server that is gone says so, after the retries."""
    url = filled.url.set(port=1)
    gone = Database(replace(settings_for(url), connect_retry_seconds=0))

    with pytest.raises(Exception, match="Check DATABASE_URL"):
        SearchService(gone).search("price", corpus="knowledge")


def test_searches_are_timed_into_the_log(service: SearchService, filled: Database) -> None:
    """Off the request path: buffered, and written in one batch."""
    service.search("price", corpus="knowledge")
    service.search("refund", corpus="knowledge", mode="text")
    service.flush_log()

    with filled.engine.connect() as connection:
        rows = connection.execute(
            text("SELECT query_type, corpus, hits, degraded, duration > 0 AS timed"
                 " FROM query_performance_log ORDER BY id")
        ).all()  # fmt: skip
    assert [tuple(row) for row in rows] == [
        ("hybrid_search", "knowledge", 3, False, True),
        ("text_search", "knowledge", 1, False, True),
    ]


def test_a_log_that_cannot_be_written_is_no_error(
    service: SearchService, filled: Database, caplog: pytest.LogCaptureFixture
) -> None:
    """A search counts; its log does not."""
    with filled.engine.begin() as connection:
        connection.execute(text("DROP TABLE query_performance_log"))

    page = service.search("price", corpus="knowledge")
    service.flush_log()

    assert page.hits
    assert "1 searches were not logged" in caplog.text


def test_metrics_can_be_switched_off(filled: Database) -> None:
    """METRICS_ENABLED=false notes nothing."""
    quiet = Database(replace(filled.settings, metrics_enabled=False))
    try:
        silent = SearchService(quiet, embedder=AxisEmbedder())
        silent.search("price", corpus="knowledge")
        silent.flush_log()
    finally:
        quiet.close()

    with filled.engine.connect() as connection:
        assert connection.scalar(text("SELECT count(*) FROM query_performance_log")) == 0
