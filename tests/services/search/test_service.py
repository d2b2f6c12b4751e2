"""Searches as a caller sees them: honest about every leg, whatever happens to it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import delete, select, text

from pgcorpus.db.engine import Database
from pgcorpus.db.errors import (
    DatabaseNotReady,
    EmbedderUnavailable,
    EmptyQuestion,
    SearchError,
    UnknownCorpus,
    UnknownFilter,
    WrongDimensions,
)
from pgcorpus.db.models import ChunkEmbedding, FrameworkDocument
from pgcorpus.db.search.corpora import KNOWLEDGE
from pgcorpus.db.search.page import Leg, SearchPage
from pgcorpus.db.search.prelude import compile_prelude
from pgcorpus.db.search.ranking import compile_search
from pgcorpus.services.search.service import AsyncSearchService, SearchService
from tests import factories
from tests.conftest import settings_for
from tests.db.search.shelves import SHELVES, Passage
from tests.factories import axis

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
    """Return what a page says of a leg."""
    return next(leg for leg in page.legs if leg.name == name)


def test_a_hybrid_page_says_what_each_leg_did(service: SearchService) -> None:
    """Both legs ran; each tells its candidates and its time."""
    page = service.search("refund price", corpus="knowledge")

    assert [(each.name, each.status) for each in page.legs] == [("vector", "ok"), ("text", "ok")]
    assert leg(page, "vector").candidates == 3
    assert leg(page, "text").candidates == 2
    assert all(each.duration_ms is not None and each.duration_ms >= 0 for each in page.legs)
    assert (page.degraded, page.mode, page.fusion) == (False, "hybrid", "calibrated")
    assert page.hits[0].title == "Anchoring"


def test_a_page_says_that_hits_were_not_similar_enough(service: SearchService) -> None:
    """Fewer hits than asked for, for that reason; without a bound all are there."""
    options = {"corpus": "knowledge", "mode": "vector"}

    page = service.search("refund", **options, min_similarity=0.5)
    every = service.search("refund", **options)

    assert [hit.title for hit in page.hits] == ["Anchoring"]
    assert page.note == (
        "fewer hits than asked for: 2 found by their vectors were less similar than "
        "min_similarity 0.5"
    )
    assert (page.degraded, leg(page, "vector").candidates) == (False, 1)
    assert len(every.hits) == 3


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


TS_RANK = "ts_rank(real[], tsvector, tsquery, integer)"


@contextmanager
def shadowing(database: Database, function: str, does: str) -> Iterator[SearchService]:
    """A service for which one of PostgreSQL's functions does something else."""
    with database.engine.begin() as connection:
        connection.execute(text("CREATE SCHEMA shadow"))
        connection.execute(
            text(
                f"CREATE FUNCTION shadow.{function} RETURNS real"
                f" LANGUAGE plpgsql AS $$ BEGIN {does}; RETURN 0.1; END $$"
            )
        )
    options = "-c search_path=shadow,public,pg_catalog"
    url = database.url.update_query_dict({"options": options})
    shadowed = Database(replace(database.settings, database_url=url, statement_timeout_ms=1000))
    try:
        yield SearchService(shadowed, embedder=AxisEmbedder())
    finally:
        shadowed.close()


@pytest.mark.parametrize(
    ("does", "status", "says"),
    [
        ("RAISE 'out of ink'", "failed", "out of ink"),
        ("PERFORM pg_sleep(20)", "timed_out", "DB_STATEMENT_TIMEOUT_MS"),
    ],
    ids=["broken", "slow"],
)
def test_a_words_leg_that_does_not_answer_leaves_the_vectors(
    filled: Database, does: str, status: str, says: str
) -> None:
    """FR2: vector results stay when full-text search fails; the weights are renormalised."""
    with shadowing(filled, TS_RANK, does) as service:
        page = service.search("refund price", corpus="knowledge")

    assert page.degraded
    assert leg(page, "text").status == status
    assert says in (leg(page, "text").reason or "")
    assert leg(page, "vector").status == "ok"
    assert page.hits[0].contributions == {"vector": pytest.approx(1.0)}
    assert len(page.hits) == 3


def test_a_words_leg_alone_that_does_not_answer_is_an_error(filled: Database) -> None:
    """There is no other leg to answer, and the error says why."""
    with (
        shadowing(filled, TS_RANK, "RAISE 'out of ink'") as service,
        pytest.raises(SearchError, match="out of ink"),
    ):
        service.search("refund price", corpus="knowledge", mode="text")


def test_words_weigh_the_same_until_analyze_and_the_page_says_so(filled: Database) -> None:
    """The very next search knows the new statistics, whoever ran ANALYZE."""
    service = SearchService(filled, embedder=AxisEmbedder())
    before = service.search("refund price", corpus="knowledge", mode="text")
    with filled.engine.begin() as connection:
        connection.execute(text("ANALYZE framework_documents"))
    after = service.search("refund price", corpus="knowledge", mode="text")

    assert "run ANALYZE" in (leg(before, "text").reason or "")
    assert leg(after, "text").reason is None
    assert {hit.title for hit in before.hits} == {hit.title for hit in after.hits}


def test_row_security_hides_passages_and_not_how_rare_words_are(filled: Database) -> None:
    """A role that owns nothing sees what its policy allows, ranked by what ANALYZE found."""
    role = f"{filled.url.database}_reader"
    grants = (
        f"CREATE ROLE {role} LOGIN PASSWORD 'invented'",
        f"GRANT SELECT ON ALL TABLES IN SCHEMA public TO {role}",
        "ALTER TABLE framework_documents ENABLE ROW LEVEL SECURITY",
        f"CREATE POLICY visible ON framework_documents TO {role} USING (title <> 'Anchoring')",
        "ANALYZE",
    )
    with filled.engine.begin() as connection:
        for statement in grants:
            connection.execute(text(statement))
    guest = settings_for(filled.url.set(username=role, password="invented"))
    quiet = Database(replace(guest, metrics_enabled=False))
    try:
        service = SearchService(quiet, embedder=AxisEmbedder())
        pages = [
            service.search("refund price", corpus="knowledge", mode=mode)
            for mode in ("vector", "text", "fuzzy", "hybrid")
        ]
    finally:
        quiet.close()
        with filled.engine.begin() as connection:
            connection.execute(text(f"GRANT {role} TO CURRENT_USER"))
            connection.execute(text(f"DROP OWNED BY {role}"))
            connection.execute(text(f"DROP ROLE {role}"))

    assert [len(page.hits) for page in pages] == [2, 1, 1, 2]
    assert not any(hit.title == "Anchoring" for page in pages for hit in page.hits)
    assert leg(pages[1], "text").reason is None


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
    assert "OPENAI_API_KEY is not set" in (page.stand_in or "")
    assert "'hashing'" in (page.stand_in or "")


def test_without_a_key_nobody_is_sent_to_embed_beside_real_vectors(filled: Database) -> None:
    """Of another model they would be of no use, and would cost the hours that the real ones did."""
    with filled.unit_of_work() as work:
        ids = list(work.session.scalars(select(FrameworkDocument.id)))
        vectors = np.random.default_rng(1).normal(size=(len(ids), 3072))
        work.embeddings.store(KNOWLEDGE, "text-embedding-3-large", ids, vectors)
        work.session.execute(delete(ChunkEmbedding).where(ChunkEmbedding.model_name == "hashing"))
        work.commit()

    page = SearchService(filled).search("refund", corpus="knowledge")

    reason = leg(page, "vector").reason or ""
    assert reason == (
        "there are no vectors of the model 'hashing'; there are of 'text-embedding-3-large'"
    )
    assert "OPENAI_API_KEY is not set" in (page.stand_in or "")
    assert page.hits


def test_in_production_nothing_stands_in(filled: Database) -> None:
    """There the missing key is a missing key."""
    strict = Database(replace(filled.settings, environment="production"))
    try:
        page = SearchService(strict).search("refund", corpus="knowledge", mode="vector")
    finally:
        strict.close()

    assert leg(page, "vector").status == "failed"
    assert "OPENAI_API_KEY" in (leg(page, "vector").reason or "")
    assert page.hits == ()


@pytest.mark.parametrize(
    ("passage", "question"),
    [
        (
            Passage("定价", "高价锚定让第二个价格显得便宜。", language="simple"),
            "第二个价格为什么便宜",
        ),
        (Passage("ราคา", "ราคาแรกที่สูงทำให้ราคาที่สองดูถูก", language="simple"), "ราคาที่สองดูถูก"),
        (
            Passage("価格", "最初の高い価格が次の価格を安く見せる。", language="simple"),
            "価格を安く見せる方法",
        ),
    ],
    ids=["Chinese", "Thai", "Japanese"],
)
@pytest.mark.parametrize("mode", ["text", "hybrid"])
def test_a_script_without_spaces_is_answered_by_the_fuzzy_leg_and_said(
    filled: Database, passage: Passage, question: str, mode: str
) -> None:
    """PostgreSQL finds no words in it; parts of them are alike."""
    with filled.unit_of_work() as work:
        factories.bind(work.session)
        SHELVES[0].fill(work, [passage])
        work.commit()

    page = SearchService(filled, embedder=AxisEmbedder()).search(
        question, corpus="knowledge", mode=mode
    )

    found = {hit.title: hit for hit in page.hits}
    assert "the fuzzy leg answered instead of the text leg" in (page.note or "")
    assert [each.name for each in page.legs][-1:] == ["fuzzy"]
    assert "text" not in {each.name for each in page.legs}
    assert found[passage.title].ranks == {"fuzzy": 1}
    assert not page.degraded


def test_a_chinese_name_in_an_english_question_leaves_the_words_leg(
    service: SearchService,
) -> None:
    """Most letters decide."""
    page = service.search("refund to the seller 王", corpus="knowledge", mode="text")

    assert [each.name for each in page.legs] == ["text"]
    assert page.hits[0].title == "Guarantees"


def test_german_passages_are_found_by_german_forms(filled: Database) -> None:
    """The service needs no language to be named, and takes one that is."""
    german = Passage("Häuser", "Die Häuser am Fluss wurden verkauft.", language="german")
    with filled.unit_of_work() as work:
        factories.bind(work.session)
        SHELVES[0].fill(work, [german])
        work.commit()
    service = SearchService(filled, embedder=AxisEmbedder())

    def titles(question: str, language: str | None = None) -> list[str]:
        page = service.search(question, corpus="knowledge", mode="text", language=language)
        return [hit.title for hit in page.hits if "text" in hit.ranks]

    assert titles("Häusern") == ["Häuser"]
    assert titles("refunding") == ["Guarantees"]
    assert titles("Häusern", "english") == []


def test_the_model_of_a_search_is_that_of_its_snapshot(filled: Database) -> None:
    """A service that has chosen a model notices that the corpus was given another."""
    with filled.unit_of_work() as work:
        work.models.add_model("other", dimensions=4, provider="hashing")
        work.models.use_model("knowledge", "hashing")
        work.commit()
    service = SearchService(filled)
    before = service.search("refund", corpus="knowledge", mode="vector")
    with filled.unit_of_work() as work:
        work.models.use_model("knowledge", "other")
        work.commit()

    after = service.search("refund", corpus="knowledge", mode="vector")

    assert leg(before, "vector").candidates == 3
    assert "no vectors of the model 'other'" in (leg(after, "vector").reason or "")


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
        ({"fusion": "magic"}, "known: calibrated, weighted, rrf"),
        ({"limit": 0}, "limit must be 1 to 1000"),
        ({"limit": 1001}, "limit must be 1 to 1000"),
        ({"offset": -1}, "offset 0 to 10000"),
        ({"weights": {"vector": -1}}, "a number from 0"),
        ({"weights": {"vector": float("nan")}}, "a number from 0"),
        ({"weights": {"vector": 0, "text": 0}}, "above 0"),
        ({"weights": {"magic": 1}}, "no leg magic"),
        ({"language": "klingon"}, "no text search configuration 'klingon'"),
        ({"language": "\udcff"}, "no text search configuration"),
        ({"language": "99999999"}, "no text search configuration"),
        ({"language": ""}, "no text search configuration"),
        ({"language": "a.b.c"}, "no text search configuration"),
        ({"limit": "3"}, "limit must be"),
        ({"limit": 2.5}, "limit must be"),
        ({"weights": {"vector": "a"}}, "a number from 0"),
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
    assert "compared by" in (leg(fuzzy, "fuzzy").reason or "")
    assert "word99" not in (leg(fuzzy, "fuzzy").reason or "")


def test_far_down_a_page_says_that_hits_may_repeat(service: SearchService) -> None:
    """Beyond the depth of the first page, the legs are read deeper."""
    pages = {
        (limit, offset): service.search("price", corpus="knowledge", limit=limit, offset=offset)
        for limit, offset in ((10, 20), (10, 30), (50, 50), (50, 100))
    }

    told = {where: page.note or "" for where, page in pages.items()}
    assert "ranked among" not in told[10, 20] + told[50, 50]
    assert "ranked among 100 candidates" in told[10, 30]
    assert "ranked among 1000 candidates" in told[50, 100]


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


@pytest.mark.parametrize("mode", ["vector", "text", "fuzzy", "hybrid"])
def test_the_statement_of_a_search_is_compiled_once(service: SearchService, mode: str) -> None:
    """The second search of a shape compiles nothing, in SQLAlchemy's cache or our own."""
    service.search("price refund", corpus="knowledge", mode=mode)
    before = compile_search.cache_info().misses, compile_prelude.cache_info().misses

    service.search("seller habit", corpus="knowledge", mode=mode, limit=7, offset=1)

    assert (compile_search.cache_info().misses, compile_prelude.cache_info().misses) == before


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
        connection.execute(text("DROP TABLE query_performance_log CASCADE"))

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
