"""The durations of searches, and the plan of one of them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import select, text

from pgcorpus.db.engine import Database
from pgcorpus.db.errors import InvalidSearch, NotPermitted, UnknownCorpus
from pgcorpus.db.models import QueryPerformance
from pgcorpus.db.scope import Scope
from pgcorpus.services import samples
from pgcorpus.services.knowledge.importer import KnowledgeImporter
from pgcorpus.services.ops.performance import AsyncPerformanceService, PerformanceService
from pgcorpus.services.search.service import SearchService
from tests.logins import logged_in

QUESTION = "raise prices on existing customers"


@pytest.fixture
def searched(database: Database) -> Iterator[Database]:
    """A database with the samples, which notes the question of every search."""
    KnowledgeImporter(database).run([samples.folder("knowledge")])
    noting = Database(
        replace(database.settings, metrics_slow_ms=1, metrics_questions=True, pool_size=4)
    )
    yield noting
    noting.close()


def search(database: Database, question: str = QUESTION, **options: Any) -> QueryPerformance:
    """Search, and return what was logged of it."""
    service = SearchService(database)
    service.search(question, **({"corpus": "knowledge", "mode": "text"} | options))
    service.flush_log()
    return find_newest(database)


def find_newest(database: Database) -> QueryPerformance:
    """Return the search that was logged last."""
    with database.unit_of_work() as work:
        newest = select(QueryPerformance).order_by(QueryPerformance.id.desc()).limit(1)
        found: QueryPerformance = work.session.scalars(newest).one()
    return found


def slow_down(database: Database, logged: QueryPerformance) -> None:
    """Change a search of the log into a slow one."""
    with database.engine.begin() as connection:
        connection.execute(
            text("UPDATE query_performance_log SET duration = 1234 WHERE id = :id"),
            {"id": logged.id},
        )


def test_what_each_leg_did_is_logged_and_no_value_of_the_caller(database: Database) -> None:
    """By default no question, either."""
    KnowledgeImporter(database).run([samples.folder("knowledge")])

    logged = search(database, mode="hybrid", filters={"section": "Pricing"}, limit=3)

    assert (logged.query_type, logged.corpus, logged.fusion) == (
        "hybrid_search", "knowledge", "calibrated",
    )  # fmt: skip
    assert logged.legs is not None
    assert logged.legs.keys() == {"text", "vector"}
    assert logged.legs["text"].keys() == {"status", "candidates", "duration_ms"}
    assert logged.candidates == sum(leg["candidates"] for leg in logged.legs.values())
    assert logged.options == {"limit": 3, "offset": 0, "filters": ["section"]}
    assert logged.question is None
    assert logged.degraded


def test_a_question_is_kept_of_a_slow_search_without_a_scope_alone(searched: Database) -> None:
    """The settings ask for it, too."""
    quick = Database(replace(searched.settings, metrics_slow_ms=3_600_000))
    kept = search(searched).question
    of_quick = search(quick).question
    with logged_in(searched, "rag_read_write") as writer:
        service = SearchService(writer)
        service.search(QUESTION, corpus="memory", mode="text", scope=Scope.user(UUID(int=1)))
        service.flush_log()
    of_scope = find_newest(searched)
    cut = search(searched, "price " * 1000).question
    quick.close()

    assert (kept, of_quick) == (QUESTION, None)
    assert (of_scope.question, of_scope.options) == (
        None, {"limit": 10, "offset": 0, "scoped": True},
    )  # fmt: skip
    assert cut is not None
    assert len(cut) == 2000


def test_a_search_of_the_log_is_planned_again_as_it_was(searched: Database) -> None:
    """With its mode, its options and its question; it is run where that is asked for."""
    logged = search(searched, limit=3, offset=1)
    service = PerformanceService(searched)

    found, plan = service.plan(logged.id)
    _, run = service.plan(logged.id, question="another price", analyze=True)

    assert found.id == logged.id
    assert "Execution Time" not in plan.plan
    assert "Execution Time" in run.plan
    assert plan.parameters["page_limit"] == run.parameters["page_limit"] == 3
    assert plan.parameters != run.parameters


def test_what_the_log_does_not_keep_must_be_given_again(database: Database) -> None:
    """The question, and the values of filters; both messages say how."""
    KnowledgeImporter(database).run([samples.folder("knowledge")])
    logged = search(database, filters={"section": "Pricing"})
    service = PerformanceService(database)

    with pytest.raises(InvalidSearch, match=r"had filters on section; .* --filter"):
        service.plan(logged.id, question=QUESTION)
    with pytest.raises(InvalidSearch, match=r"was not kept .* --question"):
        service.plan(logged.id, filters={"section": "Pricing"})
    _, plan = service.plan(logged.id, question=QUESTION, filters={"section": "Pricing"})
    assert plan.plan["Plan"]


@pytest.mark.parametrize(
    ("planted", "error"),
    [
        ({"corpus": "gone"}, UnknownCorpus),
        ({"query_type": "odd"}, InvalidSearch),
        ({"options": '{"limit": "many", "filters": 3, "group_by": [1], "language": {}}'},
         InvalidSearch),
    ],
)  # fmt: skip
def test_a_row_that_was_planted_is_an_error_and_no_trace(
    database: Database, planted: dict[str, str], error: type[Exception]
) -> None:
    """A service may add any row."""
    row = {"corpus": "knowledge", "query_type": "text_search", "options": "{}"} | planted
    with logged_in(database, "rag_read_write") as service, service.engine.begin() as connection:
        connection.execute(
            text("INSERT INTO query_performance_log (query_type, corpus, duration, hits, degraded,"
                 " options) VALUES (:query_type, :corpus, 1, 0, false, CAST(:options AS jsonb))"),
            row,
        )  # fmt: skip
    with database.unit_of_work() as work:
        planted_id = work.session.scalar(select(QueryPerformance.id))

    assert planted_id is not None
    with pytest.raises(error):
        PerformanceService(database).plan(planted_id, question=QUESTION)


def test_figures_and_slow_searches_are_for_administrators(searched: Database) -> None:
    """A login of a service is told who may."""
    logged = search(searched)
    slow_down(searched, logged)
    since = datetime.now(UTC) - timedelta(hours=1)
    with logged_in(searched, "rag_admin") as administrator:
        service = PerformanceService(administrator)
        figures, slow = service.summarise(since=since), service.list_slow(since=since)
    with logged_in(searched, "rag_read_write") as writer:
        for call in ("summarise", "list_slow"):
            with pytest.raises(NotPermitted):
                getattr(PerformanceService(writer), call)(since=since)

    assert [each.id for each in slow] == [logged.id]
    shown = figures.as_json()
    assert shown["query_types"][0]["p99_ms"] == 1234
    assert [each["query_type"] for each in shown["hours"]] == ["text_search"]
    assert {each["metric"] for each in shown["dashboard"]} >= {
        "vector_search_avg_time", "hybrid_search_avg_time", "connection_pool_utilization",
    }  # fmt: skip


def test_the_same_is_awaited(searched: Database) -> None:
    """On the connections of the pool for asyncio."""
    logged = search(searched)

    async def ask() -> tuple[int, str]:
        service = AsyncPerformanceService(searched)
        try:
            figures = await service.summarise(since=datetime.now(UTC) - timedelta(hours=1))
            _, plan = await service.plan(logged.id)
        finally:
            await searched.aclose()
        return figures.times[0].searches, plan.statement

    searches, statement = asyncio.run(ask())
    assert searches == 1
    assert statement
