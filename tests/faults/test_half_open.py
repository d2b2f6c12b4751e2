"""Connections whose other side says nothing more, although TCP finds nothing wrong."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
from sqlalchemy import URL, text

from pgcorpus.db.connections import ANSWER_MARGIN_SECONDS
from pgcorpus.db.engine import Database
from pgcorpus.db.errors import DatabaseUnavailable
from pgcorpus.db.uow import UnitOfWork
from tests.conftest import settings_for
from tests.faults.proxy import Proxy

STATEMENT_SECONDS = 1
SLACK_SECONDS = 4


@pytest.fixture
def proxy(shared: Database) -> Iterator[Proxy]:
    """A proxy in front of the server."""
    with Proxy(shared.url) as proxy:
        yield proxy


def behind(proxy: Proxy, **settings: object) -> Database:
    """The database behind the proxy."""
    given = {"statement_timeout_ms": STATEMENT_SECONDS * 1000} | settings
    return Database(replace(settings_for(proxy.url), **given))  # type: ignore[arg-type]


def ask(work: UnitOfWork) -> object:
    """A statement that takes a moment, in which the proxy stalls."""
    return work.session.scalar(text("SELECT 1 FROM pg_sleep(0.8)"))


def load(work: UnitOfWork) -> None:
    """A COPY of more than the buffers on the way hold."""
    rows = (("x" * 1000,) for _ in range(1_000_000))
    with work.memory.stage("staged_stall", {"text": "text"}, rows):
        pass


def lists(work: UnitOfWork) -> object:
    """Several statements in one round trip, as searches send them."""
    sql = "SELECT 1 AS one FROM pg_sleep(%(seconds)s)"
    return work.searches.exchange([(sql, {"seconds": 0.4}), (sql, {"seconds": 0.4})])


def run(database: Database, do: Callable[[UnitOfWork], object]) -> None:
    """Run it in a unit of work."""
    with database.unit_of_work() as work:
        do(work)
    database.close()


def run_async(database: Database, do: Callable[[UnitOfWork], object]) -> None:
    """Run it in a unit of work for asyncio."""

    async def in_loop() -> None:
        try:
            async with database.async_unit_of_work() as work:
                await work.run(do)
        finally:
            await database.aclose()

    asyncio.run(in_loop())


def last(call: Callable[[], object]) -> float:
    """Seconds until a call ends with the error that the connection is lost."""
    began = time.monotonic()
    with pytest.raises(DatabaseUnavailable, match="gave no answer for 6 s"):
        call()
    return time.monotonic() - began


@pytest.mark.parametrize("do", [ask, load, lists])
@pytest.mark.parametrize("way", [run, run_async])
def test_a_proxy_that_stalls_in_mid_query_ends_the_call(
    proxy: Proxy, way: Callable[..., None], do: Callable[[UnitOfWork], object]
) -> None:
    """After the statement timeout and a margin: the server's own word would have come by then."""
    database = behind(proxy)
    way(database, lambda _: None)
    threading.Timer(0.3, proxy.stall).start()

    seconds = last(lambda: way(database, do))

    longest = STATEMENT_SECONDS + ANSWER_MARGIN_SECONDS
    assert longest <= seconds + 0.5 < longest + SLACK_SECONDS
    proxy.flow()
    way(behind(proxy), ask)


def test_a_commit_that_is_not_answered_ends_too(proxy: Proxy) -> None:
    """The message says that it may have been kept or not."""
    database = behind(proxy)

    def commit() -> None:
        with database.unit_of_work() as work:
            ask(work)
            proxy.stall()
            work.commit()

    assert last(commit) < STATEMENT_SECONDS + ANSWER_MARGIN_SECONDS + SLACK_SECONDS
    database.close()


def test_a_pooled_connection_that_stalled_meanwhile_ends_the_next_call(proxy: Proxy) -> None:
    """And all others of the pool with it: one wait, not one for each."""
    database = behind(proxy)
    works = [database.unit_of_work() for _ in range(2)]
    for work in works:
        with work:
            ask(work)
    proxy.stall()
    threading.Timer(STATEMENT_SECONDS + ANSWER_MARGIN_SECONDS + 1, proxy.flow).start()

    began = time.monotonic()
    for _ in range(2):
        with database.unit_of_work() as work:
            assert ask(work) == 1

    assert time.monotonic() - began < STATEMENT_SECONDS + ANSWER_MARGIN_SECONDS + SLACK_SECONDS
    database.close()


def test_a_statement_without_a_timeout_is_waited_for(proxy: Proxy) -> None:
    """Nothing but the system's keepalives ends it, until its transaction ends."""
    database = behind(proxy)
    with database.unit_of_work() as work:
        work.knowledge.lift_timeout()
        threading.Timer(0.3, proxy.stall).start()
        threading.Timer(STATEMENT_SECONDS + ANSWER_MARGIN_SECONDS + 2, proxy.flow).start()
        assert ask(work) == 1
        work.commit()
        driver = work.session.connection().connection.driver_connection
        ask(work)
        assert not driver.patient  # type: ignore[union-attr]
    database.close()


def test_keepalives_are_asked_of_the_system(shared: Database) -> None:
    """They end a connection whose machine is gone: unplugged, or forgotten by a firewall."""
    options = read_options(shared.url)

    assert options == {"keepalive": 1, "idle": 30, "interval": 10, "count": 3, "user": 30_000}


def test_keepalives_come_from_the_settings_and_the_address_wins(shared: Database) -> None:
    """As for every parameter that the address itself gives."""
    address = shared.url.update_query_dict({"keepalives_idle": "7", "tcp_user_timeout": "0"})

    options = read_options(address, keepalives_idle_seconds=60, keepalives_interval_seconds=5)

    assert options == {"keepalive": 1, "idle": 7, "interval": 5, "count": 3, "user": 0}


def read_options(url: URL, **settings: int) -> dict[str, int]:
    """The options of a connection's socket."""
    database = Database(replace(settings_for(url), **settings))  # type: ignore[arg-type]
    with database.engine.connect() as connection:
        driver = connection.connection.driver_connection
        with socket.socket(fileno=driver.fileno()) as ours:  # type: ignore[union-attr]
            tcp = socket.IPPROTO_TCP
            options = {
                "keepalive": ours.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE),
                "idle": ours.getsockopt(tcp, socket.TCP_KEEPIDLE),
                "interval": ours.getsockopt(tcp, socket.TCP_KEEPINTVL),
                "count": ours.getsockopt(tcp, socket.TCP_KEEPCNT),
                "user": ours.getsockopt(tcp, socket.TCP_USER_TIMEOUT),
            }
            ours.detach()
    database.close()
    return options
