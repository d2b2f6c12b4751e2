"""Searches at their limits: misuse, narrow rights, lost connections, and questions without end."""

from __future__ import annotations

import asyncio
import pickle
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from copy import deepcopy
from dataclasses import asdict, replace
from itertools import permutations
from typing import Any, Final

import pytest
from sqlalchemy import URL, Connection, text

from pgcorpus.db.engine import Database
from pgcorpus.db.errors import (
    DatabaseUnavailable,
    InvalidFilter,
    InvalidSearch,
    SearchError,
    UnknownFilter,
)
from pgcorpus.db.search import known, ranker
from pgcorpus.db.search.page import SearchPage
from pgcorpus.db.search.prelude import compile_prelude
from pgcorpus.db.search.ranking import compile_search
from pgcorpus.services.embedding.embed import EmbeddingService
from pgcorpus.services.embedding.hashing import HashingEmbedder
from pgcorpus.services.search.service import AsyncSearchService, SearchService
from tests import factories
from tests.conftest import Databases, settings_for
from tests.db.search.shelves import SHELVES, Passage
from tests.factories import axis
from tests.services.search.test_service import AxisEmbedder, leg, shadowing

PASSAGES: Final = [
    Passage("Anchoring", "A high first price makes the second look small.", axis(0, length=384)),
    Passage("Churn", "Subscribers quit a habit.", axis(1, lean=0.8, length=384)),
    Passage("Guarantees", "A refund moves the risk.", axis(2, lean=0.6, length=384)),
]
"""Cosines to every question: 1, 0.8 and 0.6."""

TERMS: Final = 10_000

READ_BY_SEARCHES: Final = (
    "GRANT SELECT ON framework_documents, framework_metadata, source_lines, key_concepts,"
    " document_concepts, chunk_embeddings, embedding_models"
)


def fill(database: Database) -> None:
    """Put the three passages in, with their vectors."""
    with database.unit_of_work() as work:
        factories.bind(work.session)
        SHELVES[0].fill(work, PASSAGES)
        work.commit()


@pytest.fixture
def filled(database: Database) -> Database:
    """A database for the tests that change it."""
    fill(database)
    return database


@pytest.fixture(scope="module")
def unchanged(databases: Databases, hosted: URL) -> Iterator[Database]:
    """The database of the tests that change nothing that lasts."""
    with databases.opened(hosted.database or "", owner=hosted) as database:
        fill(database)
        yield database


@pytest.fixture
def service(unchanged: Database) -> SearchService:
    """A service whose every question means axis 0."""
    return SearchService(unchanged, embedder=AxisEmbedder())


@contextmanager
def guest(database: Database, *grants: str) -> Iterator[Database]:
    """The database as a role with these rights alone sees it."""
    role = f"{database.url.database}_guest"
    with database.engine.begin() as connection:
        connection.execute(text(f"CREATE ROLE {role} LOGIN PASSWORD 'invented'"))
        for grant in grants:
            connection.execute(text(f"{grant} TO {role}"))
    settings = settings_for(database.url.set(username=role, password="invented"))
    seen = Database(replace(settings, metrics_enabled=False))
    try:
        yield seen
    finally:
        seen.close()
        with database.engine.begin() as connection:
            connection.execute(text(f"GRANT {role} TO CURRENT_USER"))
            connection.execute(text(f"DROP OWNED BY {role}"))
            connection.execute(text(f"DROP ROLE {role}"))


@contextmanager
def lock(database: Database, table: str) -> Iterator[Connection]:
    """Lock the table, so that nobody else can read it."""
    with database.engine.connect() as holder:
        holder.execute(text(f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE"))
        yield holder


def who_waits(holder: Connection, table: str) -> int:
    """The process of a backend that waits for the table, as soon as there is one."""
    waiting = text("SELECT pid FROM pg_locks WHERE NOT granted AND relation = to_regclass(:table)")
    patience = time.monotonic() + 20
    while (pid := holder.scalar(waiting, {"table": table})) is None:
        assert time.monotonic() < patience, f"no search came to {table}"
        time.sleep(0.01)
    return int(pid)


def interrupt(
    database: Database, table: str, signal: str, search: Callable[[], SearchPage]
) -> SearchPage:
    """Return what a search gives whose backend gets a signal, once, when it reads the table."""
    with ThreadPoolExecutor(1) as threads, lock(database, table) as holder:
        searching = threads.submit(search)
        holder.execute(text(f"SELECT {signal}(:pid)"), {"pid": who_waits(holder, table)})
        holder.rollback()
        return searching.result(timeout=30)


# Questions without end


@pytest.mark.parametrize(
    ("question", "capped"),
    [
        ("refund " + " ".join(f"-a{n}" for n in range(TERMS)), True),
        (" ".join(f'"a{n}"' for n in range(TERMS)), True),
        (" ".join(f'-"a {n}"' for n in range(TERMS)) + " refund", True),
        (" or ".join(f'"{n}"' for n in range(TERMS)), True),
        (" or ".join(f"-{n}" for n in range(TERMS)) + " refund", True),
        (" or ".join(f"a{n}" for n in range(TERMS)), False),
        ("or " * TERMS + "refund", False),
    ],
    ids=[
        "exclusions", "phrases", "excluded phrases", "or between phrases",
        "or between exclusions", "or between words", "or alone",
    ],
)  # fmt: skip
@pytest.mark.parametrize("mode", ["text", "hybrid"])
def test_ten_thousand_terms_are_a_question(
    service: SearchService, question: str, capped: bool, mode: str
) -> None:
    """The first 64 demands bind, and the page says that the others do not."""
    page = service.search(question, corpus="knowledge", mode=mode)

    assert not page.degraded
    assert ("64" in (page.note or "")) is capped


def test_the_first_of_ten_thousand_exclusions_holds(service: SearchService) -> None:
    """A cap keeps what was asked first."""
    rest = " ".join(f"-a{n}" for n in range(TERMS))

    page = service.search(f"refund price -habit {rest}", corpus="knowledge")

    assert {hit.title for hit in page.hits} == {"Anchoring", "Guarantees"}


def _excluding(terms: int) -> str:
    return "refund price " + " ".join(f"-a{n}" for n in range(terms))


def _quoting(terms: int, joined: str = " ") -> str:
    # The first three hold all six words: further ones add none to score.
    words = ("refund", "moves", "habit", "quit", "price", "small")
    first = list(zip(words[::2], words[1::2], strict=True))
    pairs = first + [pair for pair in permutations(words, 2) if pair not in first]
    return joined.join(f'"{" ".join(pairs[n % len(pairs)])}"' for n in range(terms))


def _choosing(terms: int) -> str:
    return _quoting(terms, " or ")


@pytest.mark.parametrize("question", [_excluding, _quoting, _choosing])
@pytest.mark.parametrize("mode", ["text", "hybrid"])
def test_more_terms_make_no_new_statement(
    service: SearchService, question: Callable[[int], str], mode: str
) -> None:
    """A caller's words fill no cache: statements depend on the kind of demand alone."""
    for terms in (3, 300):  # some, and more than bind
        service.search(question(terms), corpus="knowledge", mode=mode)
    before = compile_search.cache_info().misses, compile_prelude.cache_info().misses

    for terms in (4, 5, 9, 17, 30, 200, 400, 5000):
        service.search(question(terms), corpus="knowledge", mode=mode)

    assert (compile_search.cache_info().misses, compile_prelude.cache_info().misses) == before


def test_stop_words_alone_leave_the_weight_to_the_vectors(service: SearchService) -> None:
    """The score of a hybrid search is then the cosine."""
    page = service.search("the of and", corpus="knowledge")

    assert [hit.score for hit in page.hits] == pytest.approx([1.0, 0.8, 0.6], abs=1e-5)
    assert [hit.contributions for hit in page.hits] == [
        {"vector": pytest.approx(hit.scores["vector"])} for hit in page.hits
    ]
    assert leg(page, "text").status == "skipped"


# Misuse


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"filters": {1: 2}}, UnknownFilter, "known: chunk_id"),
        ({"filters": {None: 1}}, UnknownFilter, "known: chunk_id"),
        ({"filters": {1: 2, "colour": 3}}, UnknownFilter, "known: chunk_id"),
        ({"filters": {"section": {1: 2, "a": 3}}}, InvalidFilter, "gte, gt, lte, lt"),
        ({"filters": {"section": {None: 2}}}, InvalidFilter, "gte, gt, lte, lt"),
        ({"filters": "section"}, (InvalidFilter, InvalidSearch), "filters"),
        ({"filters": ["section"]}, (InvalidFilter, InvalidSearch), "filters"),
        ({"weights": [1]}, InvalidSearch, "weights"),
        ({"weights": 0.5}, InvalidSearch, "weights"),
        ({"weights": {"vector": 1e308}}, InvalidSearch, "weight"),
        ({"weights": {"vector": 1e308, "text": 1e308}}, InvalidSearch, "weight"),
        ({"weights": {"vector": 10**400}}, InvalidSearch, "weight"),
        ({"language": 5}, InvalidSearch, "text search configuration 5|language"),
        ({"limit": True}, InvalidSearch, "limit must be"),
        ({"offset": False}, InvalidSearch, "offset 0 to"),
        *(
            (
                {"min_similarity": value},
                InvalidSearch,
                "min_similarity must be a number from 0 to 1",
            )
            for value in (-0.1, 1.1, float("nan"), "0.3", True)
        ),
        *(
            ({"rrf_k": value}, InvalidSearch, "rrf_k must be a whole number from 0 to 10,000")
            for value in (-1, 10_001, 60.0, "60", True)
        ),
        ({"mode": ["text"]}, InvalidSearch, "known: vector, text, fuzzy, hybrid"),
        ({"fusion": {}}, InvalidSearch, "known: calibrated, weighted, rrf"),
        ({"foo": 1}, (TypeError, InvalidSearch), "foo"),
    ],
)
def test_an_argument_of_the_wrong_type_is_named(
    service: SearchService,
    options: dict[str, Any],
    error: type[Exception] | tuple[type[Exception], ...],
    says: str,
) -> None:
    """Callers hand on what they were given: the sentence is for them, and no stack trace."""
    with pytest.raises(error, match=says):
        service.search("price", **{"corpus": "knowledge", **options})


@pytest.mark.parametrize("question", [None, 5, b"a", ["price"]], ids=repr)
def test_a_question_that_is_no_text_is_refused(service: SearchService, question: object) -> None:
    """And the error says what a question is."""
    with pytest.raises(SearchError, match="question"):
        service.search(question, corpus="knowledge")  # type: ignore[arg-type] - that is the point


# Pages outlive their service


def test_a_page_can_be_copied_and_sent(service: SearchService) -> None:
    """To another process, to a cache, as plain dicts: what it says stays the same."""
    page = service.search("refund price", corpus="knowledge")

    assert pickle.loads(pickle.dumps(page)) == page  # noqa: S301 - made a moment ago
    assert deepcopy(page) == page
    assert asdict(page)["hits"][0]["title"] == page.hits[0].title
    assert page.explain().plan["Plan"]


def test_a_page_from_afar_cannot_explain_itself(service: SearchService) -> None:
    """The connection did not travel with it, and it says so."""
    page = service.search("refund price", corpus="knowledge")
    sent: SearchPage = pickle.loads(pickle.dumps(page))  # noqa: S301 - made a moment ago

    with pytest.raises(SearchError, match="explain"):
        sent.explain()


# A model that changes under a service


def test_a_changed_spread_counts_from_the_next_search_on(filled: Database) -> None:
    """A service that is alive reads it anew: half the spread is twice the weight."""
    service = SearchService(filled, embedder=AxisEmbedder())

    def ratio() -> float:
        hit = service.search("price", corpus="knowledge").hits[0]
        vector, words = (hit.contributions[name] / hit.scores[name] for name in ("vector", "text"))
        return vector / words

    changed = text("UPDATE embedding_models SET cosine_spread = :spread WHERE name = 'hashing'")
    ratios = []
    for spread in (0.13, 0.065):
        with filled.engine.begin() as connection:
            connection.execute(changed, {"spread": spread})
        ratios.append(ratio())

    assert ratios[1] == pytest.approx(2 * ratios[0], rel=1e-3)


def test_an_index_of_another_kind_is_used_from_the_next_search_on(
    filled: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model registered anew has another index: comparing as before would read every vector."""
    for module in (known, ranker):
        monkeypatch.setattr(module, "FEW", 1)  # three passages count as many: indexes are asked
    service = SearchService(filled, embedder=AxisEmbedder())
    before = service.search("price", corpus="knowledge", mode="vector")
    with filled.engine.begin() as connection:
        connection.execute(
            text("UPDATE embedding_models SET index_kind = 'binary' WHERE name = 'hashing'")
        )

    after = service.search("price", corpus="knowledge", mode="vector")

    assert "binary_quantize" not in before.explain().statement
    assert "binary_quantize" in after.explain().statement
    assert len(after.hits) == len(PASSAGES)


# Narrow rights


def test_a_role_that_may_only_write_vectors_embeds(filled: Database) -> None:
    """The registry is not its to change: what else is noted of a model is left out."""
    with filled.engine.begin() as connection:
        connection.execute(text("DELETE FROM chunk_embeddings"))
    grants = (
        READ_BY_SEARCHES,
        "GRANT SELECT ON corpus_settings",
        "GRANT INSERT, UPDATE ON chunk_embeddings",
    )

    with guest(filled, *grants) as database:
        report = EmbeddingService(database, embedder=HashingEmbedder()).embed("knowledge")

    assert (report.embedded, report.failed) == (3, 0)


@pytest.mark.parametrize("mode", ["text", "fuzzy", "hybrid"])
def test_a_role_that_may_not_read_the_settings_searches_by_words(
    unchanged: Database, mode: str
) -> None:
    """The vector leg needs the corpus's model, and says what it may not; the others do not."""
    with guest(unchanged, READ_BY_SEARCHES) as database:
        page = SearchService(database, embedder=AxisEmbedder()).search(
            "refund", corpus="knowledge", mode=mode
        )

    assert [hit.title for hit in page.hits] == ["Guarantees"]
    assert page.degraded is (mode == "hybrid")
    if mode == "hybrid":
        assert leg(page, "vector").status == "failed"
        assert "corpus_settings" in (leg(page, "vector").reason or "")
        assert page.hits[0].score == pytest.approx(page.hits[0].scores["text"])


# Legs, statements and connections that are lost


@pytest.mark.parametrize(
    ("does", "status", "says"),
    [
        ("RAISE 'out of ink'", "failed", "out of ink"),
        ("PERFORM pg_sleep(20)", "timed_out", "DB_STATEMENT_TIMEOUT_MS"),
    ],
    ids=["broken", "slow"],
)
def test_a_stand_in_that_does_not_answer_leaves_the_vectors(
    filled: Database, does: str, status: str, says: str
) -> None:
    """No passage holds the word, and the fuzzy leg that should help cannot."""
    with shadowing(filled, "word_similarity(text, text)", does) as service:
        page = service.search("subscribbers", corpus="knowledge")

    assert page.degraded
    assert leg(page, "fuzzy").status == status
    assert says in (leg(page, "fuzzy").reason or "")
    assert leg(page, "vector").status == "ok"
    assert [hit.score for hit in page.hits] == pytest.approx([1.0, 0.8, 0.6], abs=1e-5)


def test_a_statement_that_is_cancelled_once_is_no_error(
    service: SearchService, unchanged: Database
) -> None:
    """Each leg answers alone: what was slow for a moment does not reach the caller."""
    page = interrupt(
        unchanged,
        "chunk_embeddings",
        "pg_cancel_backend",
        lambda: service.search("refund price", corpus="knowledge"),
    )

    assert page.hits
    assert any(each.status == "ok" for each in page.legs)


@pytest.mark.parametrize("table", ["embedding_models", "framework_documents", "chunk_embeddings"])
def test_a_killed_backend_costs_one_search_at_most(
    service: SearchService, unchanged: Database, table: str
) -> None:
    """While the model is chosen, in the prelude, in the statement: the next search works."""
    with suppress(DatabaseUnavailable):
        page = interrupt(
            unchanged,
            table,
            "pg_terminate_backend",
            lambda: SearchService(unchanged).search("refund", corpus="knowledge"),
        )
        assert page.hits

    assert len(service.search("price", corpus="knowledge").hits) == len(PASSAGES)


@pytest.mark.parametrize("table", ["embedding_models", "framework_documents", "chunk_embeddings"])
def test_a_killed_backend_costs_one_async_search_at_most(unchanged: Database, table: str) -> None:
    """The same, awaited."""

    async def search_twice() -> SearchPage:
        database = Database(unchanged.settings)
        service = AsyncSearchService(database)
        try:
            with suppress(DatabaseUnavailable):
                assert (await service.search("refund", corpus="knowledge")).hits
            return await service.search("price", corpus="knowledge")
        finally:
            await database.aclose()

    page = interrupt(unchanged, table, "pg_terminate_backend", lambda: asyncio.run(search_twice()))

    assert len(page.hits) == len(PASSAGES)


def test_cancelled_tasks_leave_the_pool_whole(unchanged: Database) -> None:
    """Fifty searches are given up, in the middle or in the queue; every connection comes back."""

    async def give_up() -> tuple[list[Any], int, list[SearchPage]]:
        database = Database(replace(unchanged.settings, max_overflow=3))
        service = AsyncSearchService(database, embedder=AxisEmbedder())

        def fifty() -> list[asyncio.Task[SearchPage]]:
            search = service.search
            return [asyncio.create_task(search("price", corpus="knowledge")) for _ in range(50)]

        try:
            with lock(unchanged, "framework_documents") as holder:
                tasks = fifty()
                await asyncio.to_thread(who_waits, holder, "framework_documents")
                for task in tasks:
                    task.cancel()
                given_up = await asyncio.gather(*tasks, return_exceptions=True)
            in_use = database.async_engine.pool.checkedout()  # type: ignore[attr-defined]
            return given_up, in_use, await asyncio.gather(*fifty())
        finally:
            await database.aclose()

    given_up, in_use, pages = asyncio.run(give_up())

    assert all(isinstance(each, asyncio.CancelledError) for each in given_up)
    assert in_use == 0
    assert all(len(page.hits) == len(PASSAGES) for page in pages)
