"""The pools of one process: made once, and within one limit."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace

import pytest
from sqlalchemy import text
from sqlalchemy.exc import TimeoutError as PoolTimeout

from pgcorpus.db.engine import Database
from pgcorpus.db.errors import DatabaseUnavailable
from pgcorpus.services.ops.doctor import DoctorService, Finding

ONE = text("SELECT 1")
OPEN = text(
    "SELECT count(*) FROM pg_stat_activity"
    " WHERE datname = current_database() AND application_name = 'counted'"
)
THREADS = 16


@pytest.fixture
def narrow(database: Database) -> Iterator[Database]:
    """A database to which three connections may be open."""
    narrow = Database(
        replace(
            database.settings,
            pool_size=2,
            max_overflow=1,
            pool_timeout_seconds=1,
            application_name="counted",
        )
    )
    yield narrow
    narrow.close()


def count_open(database: Database) -> int:
    """Count the connections that the server sees."""
    with database.engine.connect() as connection:
        return int(connection.scalar(OPEN) or 0)


async def ask_at_once(database: Database, times: int) -> int:
    """Hold so many connections for asyncio at once, and count those that are open then."""
    opened = [await database.async_engine.connect() for _ in range(times)]
    counted = [int(await connection.scalar(OPEN) or 0) for connection in opened]
    for connection in opened:
        await connection.close()
    return max(counted)


def test_threads_make_one_engine(database: Database) -> None:
    """Each pool that was lost would keep its connections."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for _ in range(20):
            fresh = Database(database.settings)
            ready = threading.Barrier(THREADS)

            def make(fresh: Database = fresh, ready: threading.Barrier = ready) -> tuple[int, ...]:
                ready.wait()
                made = (fresh.engine, fresh.async_engine, fresh._sessions, fresh._places)
                return tuple(map(id, made))

            with ThreadPoolExecutor(THREADS) as threads:
                made = [each.result() for each in [threads.submit(make) for _ in range(THREADS)]]

            assert len(set(made)) == 1
    finally:
        sys.setswitchinterval(interval)


def test_both_pools_share_one_limit(database: Database, narrow: Database) -> None:
    """A pool may have the places that the other keeps idle; it finds out when it asks again."""

    async def use_both() -> None:
        assert await ask_at_once(narrow, 3) == 3
        assert count_open(database) == 2  # idle in the pool
        held = [narrow.engine.connect() for _ in range(3)]
        assert [each.scalar(OPEN) for each in held] == [3, 3, 3]
        for each in held:
            each.close()
        assert await ask_at_once(narrow, 3) == 3
        await narrow.aclose()

    asyncio.run(use_both())


def test_a_place_that_nobody_gives_up_is_waited_for(narrow: Database) -> None:
    """For DB_POOL_TIMEOUT, and as a full pool is told."""

    async def ask() -> object:
        async with narrow.async_engine.connect() as connection:
            return await connection.scalar(ONE)

    async def ask_while_all_are_in_use() -> object:
        held = [narrow.engine.connect() for _ in range(3)]
        with pytest.raises(PoolTimeout):
            await ask()
        with pytest.raises(DatabaseUnavailable, match="DB_POOL_TIMEOUT"):
            async with narrow.async_unit_of_work() as work:
                await work.run(lambda within: within.session.execute(ONE))
        waiting = asyncio.create_task(ask())
        await asyncio.sleep(0.2)
        held.pop().close()
        answer = await waiting
        for each in held:
            each.close()
        await narrow.aclose()
        return answer

    assert asyncio.run(ask_while_all_are_in_use()) == 1


def test_a_connection_that_is_lost_gives_its_place_back(
    database: Database, narrow: Database
) -> None:
    """Else a server that restarts a few times would use up the limit."""
    for _ in range(5):
        with narrow.engine.connect() as connection:
            assert connection.scalar(ONE) == 1
        with narrow.engine.connect() as connection:
            connection.invalidate()
        with narrow.engine.connect() as connection:
            assert connection.scalar(ONE) == 1
        with database.engine.begin() as other:
            other.execute(
                text(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                    " WHERE datname = current_database() AND application_name = 'counted'"
                )
            )

    held = [narrow.engine.connect() for _ in range(3)]

    assert [each.scalar(ONE) for each in held] == [1, 1, 1]
    for each in held:
        each.close()


def test_the_doctor_compares_all_pools_with_what_the_server_allows(database: Database) -> None:
    """Of each process, and says what would fit."""

    def find(processes: int) -> Finding:
        settings = replace(database.settings, pool_size=20, max_overflow=30, processes=processes)
        examined = Database(settings)
        findings = DoctorService(examined).examine().findings
        examined.close()
        return next(each for each in findings if each.check == "connections")

    assert find(1).status == "ok"
    found = find(4)
    assert found.status == "warning"
    assert "200 connections" in found.detail
    assert "allows 197" in found.detail
    assert found.remedy == "DB_POOL_SIZE=20 DB_MAX_OVERFLOW=29"
    assert (
        find(1000).remedy == "DB_POOLER=transaction  # with a transaction pooler before the server"
    )


def exchange_in_tasks(database: Database) -> list[int]:
    """Ask from many tasks at once which connection answers."""

    async def ask() -> list[int]:
        try:
            return await asyncio.gather(*(database.run(ask_process, database) for _ in range(12)))
        finally:
            await database.aclose()

    return asyncio.run(ask())


def exchange_in_threads(database: Database) -> list[int]:
    """Ask from many threads at once which connection answers."""
    with ThreadPoolExecutor(THREADS) as threads:
        return list(threads.map(lambda _: ask_process(database), range(12)))


def ask_process(database: Database) -> int:
    """The process that serves an exchange."""
    slowly = "SELECT pg_backend_pid() AS pid FROM pg_sleep(0.05)"
    ((row,),) = database.ranker().exchange([(slowly, {})])
    pid: int = row["pid"]
    return pid


@pytest.mark.parametrize("ask", [exchange_in_tasks, exchange_in_threads])
def test_searches_at_once_take_the_connections_that_the_pool_keeps(
    narrow: Database, ask: Callable[[Database], list[int]]
) -> None:
    """One opened beyond them would be closed after a single search."""
    assert len(set(ask(narrow))) <= narrow.settings.pool_size


def test_a_search_that_gets_no_turn_says_so(narrow: Database) -> None:
    """It waits as long as for a connection."""
    with ExitStack() as turns:
        for _ in range(narrow.settings.pool_size):
            turns.enter_context(narrow._throttle.take_turn())
        with pytest.raises(PoolTimeout):
            ask_process(narrow)
