"""The log of searches: who reads it, how it ages, and the figures made of it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest
from sqlalchemy import select, text

from pgcorpus.db.engine import Database
from pgcorpus.db.errors import InvalidValue, NotFound, NotPermitted
from pgcorpus.db.models import ArchivedQueryPerformance, QueryPerformance
from pgcorpus.db.uow import UnitOfWork
from tests import factories
from tests.logins import logged_in

NOW = datetime.now(UTC)
DURATIONS = np.random.default_rng(3).gamma(2.0, 20.0, size=200)


def add(work: UnitOfWork, durations: Any, *, ago: timedelta = timedelta(), **columns: Any) -> None:
    """Log searches that ended some time ago."""
    work.performance.log(
        [
            {
                "timestamp": NOW - ago, "query_type": "hybrid_search", "corpus": "knowledge",
                "duration": float(each), "hits": 3, "degraded": False,
            }
            | columns
            for each in durations
        ]
    )  # fmt: skip


@pytest.fixture
def aged(database: Database) -> Database:
    """A log with searches of today, of a month ago and of a year ago."""
    with database.unit_of_work() as work:
        for days in (0, 31, 400):
            add(work, [float(days + 1)], ago=timedelta(days=days), legs={"text": {}}, options={})
        work.commit()
    return database


def test_percentiles_are_those_of_numpy_per_type_and_hour(work: UnitOfWork) -> None:
    """``percentile_cont`` interpolates as numpy does."""
    add(work, DURATIONS)
    add(work, DURATIONS * 2, ago=timedelta(hours=5), degraded=True)
    add(work, [1.0], query_type="text_search")
    add(work, [9e6], ago=timedelta(days=2))

    times = work.performance.list_times(since=NOW - timedelta(days=1))

    assert [(each.query_type, each.searches, each.degraded) for each in times] == [
        ("hybrid_search", 400, 200),
        ("hybrid_search", 200, 200),
        ("hybrid_search", 200, 0),
        ("text_search", 1, 0),
        ("text_search", 1, 0),
    ]
    assert [each.hour is None for each in times] == [True, False, False, True, False]
    for each, durations in zip(
        times, ([*DURATIONS, *DURATIONS * 2], DURATIONS * 2, DURATIONS), strict=False
    ):
        wanted = [*np.percentile(durations, [50, 95, 99]), max(durations)]
        found = [each.p50_ms, each.p95_ms, each.p99_ms, each.slowest_ms]
        np.testing.assert_allclose(found, wanted)


def test_percentiles_are_of_one_corpus_and_of_the_archive_too(aged: Database) -> None:
    """Archived searches are still counted."""
    with aged.unit_of_work() as work:
        add(work, [5.0], corpus="chat")
        assert work.performance.archive(older_than=timedelta(days=30)) == 2
        since = NOW - timedelta(days=1000)
        of_knowledge = work.performance.list_times(since=since, corpus="knowledge")
        of_all = work.performance.list_times(since=since)

    assert [of_knowledge[0].searches, of_all[0].searches] == [3, 4]


def test_the_dashboard_has_the_metrics_of_the_seed(work: UnitOfWork) -> None:
    """Of the last hour; without searches they have no value."""
    before = {each.metric: each for each in work.performance.list_metrics()}
    add(work, [10.0, 20.0])
    add(work, [1000.0], ago=timedelta(hours=2))
    after = {each.metric: each for each in work.performance.list_metrics()}

    assert before["hybrid_search_avg_time"] == ("hybrid_search_avg_time", None, "ms")
    assert after["hybrid_search_avg_time"] == ("hybrid_search_avg_time", 15.0, "ms")
    assert after["hybrid_search_p95_time"].value == pytest.approx(19.5)
    assert after["hybrid_search_count"] == ("hybrid_search_count", 2.0, "searches")
    assert after["vector_search_avg_time"].value is None
    used = after["connection_pool_utilization"]
    assert used.unit == "%"
    assert used.value is not None
    assert 0 < used.value <= 100


def test_old_searches_are_archived_as_they_were_and_in_time_deleted(aged: Database) -> None:
    """In batches, until there are none."""
    with aged.unit_of_work() as work:
        before = {each.id: each for each in work.session.scalars(select(QueryPerformance))}
        moved = [work.performance.archive(older_than=timedelta(days=30), limit=1) for _ in range(3)]
        archived = work.session.scalars(select(ArchivedQueryPerformance)).all()
        kept = [
            {column.key: getattr(each, column.key) for column in each.__table__.columns}
            for each in archived
        ]
        were = [
            {column.key: getattr(before[each.id], column.key) for column in each.__table__.columns}
            for each in archived
        ]
        deleted = work.performance.delete_archived(older_than=timedelta(days=365))
        left = work.session.scalars(select(ArchivedQueryPerformance.duration)).all()
        work.commit()

    assert moved == [1, 1, 0]
    assert kept == were
    assert (deleted, left) == (1, [32.0])


@pytest.mark.parametrize("verb", ["archive", "delete_archived"])
def test_what_is_young_cannot_be_moved_or_deleted(database: Database, verb: str) -> None:
    """Not by a service that was broken into, either."""
    with (
        pytest.raises(InvalidValue, match="searches of the last"),
        database.unit_of_work() as work,
    ):
        getattr(work.performance, verb)(older_than=timedelta(hours=1))


def test_a_service_adds_to_the_log_and_maintains_it_and_administrators_read(
    aged: Database,
) -> None:
    """The log tells what tenants search for, and when."""
    with logged_in(aged, "rag_read_write") as service:
        with service.unit_of_work() as work:
            add(work, [7.0])
            assert work.performance.archive(older_than=timedelta(days=30)) == 2
            work.commit()
        for forbidden in (
            "SELECT count(*) FROM query_performance_log",
            "SELECT count(*) FROM query_performance_archive",
            "SELECT * FROM performance_dashboard",
            "UPDATE query_performance_log SET duration = 1",
            "DELETE FROM query_performance_log",
            "INSERT INTO query_performance_archive SELECT",
        ):
            with pytest.raises(NotPermitted), service.unit_of_work() as work:
                work.session.execute(text(forbidden))
    with logged_in(aged, "rag_read_only") as reader:
        for call in ("archive_searches('31 days', 1)", "delete_archived_searches('99 days', 1)"):
            with pytest.raises(NotPermitted), reader.unit_of_work() as work:
                work.session.execute(text(f"SELECT {call}"))
    with logged_in(aged, "rag_admin") as administrator, administrator.unit_of_work() as work:
        assert len(work.performance.list_times(since=NOW - timedelta(days=1))) == 2
        assert work.performance.list_metrics()


@pytest.mark.parametrize(
    "planted",
    [
        {"timestamp": "infinity"},
        {"duration": "nan"},
        {"duration": "infinity"},
        {"duration": -1.0},
        {"legs": "[]"},
        {"options": "3"},
        {"question": "x" * 2001},
    ],
)
def test_a_row_that_an_administrator_could_not_read_is_refused(
    database: Database, planted: dict[str, Any]
) -> None:
    """A service writes what an administrator reads."""
    row = {"timestamp": NOW, "duration": 1.0, "legs": "{}", "options": "{}", "question": None}
    with (
        logged_in(database, "rag_read_write") as service,
        pytest.raises(InvalidValue),
        service.unit_of_work() as work,
    ):
        work.session.execute(
            text("INSERT INTO query_performance_log (timestamp, query_type, corpus, duration,"
                 " hits, degraded, legs, options, question)"
                 " VALUES (CAST(:timestamp AS timestamptz), 'text_search', 'chat',"
                 " CAST(:duration AS float8), 0, false,"
                 " CAST(:legs AS jsonb), CAST(:options AS jsonb), CAST(:question AS text))"),
            row | planted,
        )  # fmt: skip


def test_slow_searches_are_listed_the_slowest_first(work: UnitOfWork) -> None:
    """Within a time, and of one corpus."""
    factories.bind(work.session)
    add(work, [100.0, 700.0, 500.0])
    add(work, [900.0], ago=timedelta(days=2))
    add(work, [800.0], corpus="chat")
    since = NOW - timedelta(days=1)

    slow = work.performance.list_slow(least_ms=500, since=since)
    of_knowledge = work.performance.list_slow(least_ms=0, since=since, corpus="knowledge", limit=2)

    assert [each.duration for each in slow] == [800.0, 700.0, 500.0]
    assert [each.duration for each in of_knowledge] == [700.0, 500.0]
    assert work.performance.get(slow[0].id) is slow[0]
    with pytest.raises(NotFound, match="pgcorpus performance --slow"):
        work.performance.get(2**62)
