"""Behind PgBouncer, which lends a connection for one transaction.

The contract of the corpora, workers, imports and memories are tested there by ``tests.pooler``.
"""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import text
from sqlalchemy.exc import OperationalError

import pgcorpus
from pgcorpus.db.embedded import HOST, EmbeddedServer
from pgcorpus.db.engine import Database
from pgcorpus.db.errors import LoginRefused, SettingsError, TransactionConflict
from pgcorpus.db.migrations import current, upgrade
from pgcorpus.db.models import FrameworkDocument
from pgcorpus.db.scope import Scope
from pgcorpus.db.scratch import scratch_database
from pgcorpus.db.settings import Settings
from pgcorpus.db.uow import UnitOfWork
from pgcorpus.services.embedding.embed import EmbeddingService
from pgcorpus.services.jobs.worker import Worker
from pgcorpus.services.knowledge.importer import KnowledgeImporter
from pgcorpus.services.ops.doctor import DoctorService
from pgcorpus.services.search.service import AsyncSearchService, SearchService
from tests.pooler import NEEDED, PROGRAM, PgBouncer, variables_of

pytestmark = pytest.mark.skipif(PROGRAM is None, reason=NEEDED)

ROOT = Path(pgcorpus.__file__).parents[1]
SAMPLES = ROOT / "services" / "samples" / "knowledge"
CALLS = 450
"""Calls, of which 50 failed with statements that were prepared on another connection."""


@pytest.fixture(scope="module")
def bouncer(server: EmbeddedServer) -> Iterator[PgBouncer]:
    """A pooler with fewer connections than callers."""
    with PgBouncer(server, pool_size=5) as bouncer:
        yield bouncer


@pytest.fixture
def pooled(bouncer: PgBouncer, database: Database) -> Iterator[Database]:
    """The test's database through the pooler, which is all that is known of it."""
    direct = Settings(database_url=database.settings.admin_url or database.url, environment="test")
    settings = replace(bouncer.settings(direct), admin_url=None, connect_retry_seconds=2)
    pooled = Database(settings)
    yield pooled
    pooled.close()


@pytest.fixture
def administered(pooled: Database, database: Database) -> Iterator[Database]:
    """The same with the server's own address beside it."""
    url = database.settings.admin_url or database.url
    administered = Database(replace(pooled.settings, admin_url=url))
    yield administered
    administered.close()


def ask(database: Database, statement: str) -> Any:
    """Answer in a transaction of its own."""
    with database.engine.connect() as connection:
        return connection.scalar(text(statement))


def test_a_pooler_that_was_not_told_of_is_named(pooled: Database) -> None:
    """It refuses the options with which every connection begins, and is not asked again."""
    with pytest.raises(LoginRefused, match="set DB_POOLER=transaction"):
        ask(Database(replace(pooled.settings, pooler="none")), "SELECT 1")


def test_the_doctor_finds_a_pooler_that_was_not_told_of(
    server: EmbeddedServer, database: Database
) -> None:
    """One that passes over what it does not know, as poolers are often set up."""
    with PgBouncer(server, ignored="options") as lenient:
        direct = Settings(database_url=database.settings.admin_url or database.url)
        settings = replace(lenient.settings(direct), pooler="none", admin_url=None)
        unaware = Database(settings)
        found = {each.check: each for each in DoctorService(unaware).examine().findings}
        with (
            pytest.raises(SettingsError, match="set DB_POOLER=transaction"),
            unaware.unit_of_work() as work,
        ):
            work.session.execute(text("EXECUTE prepared_elsewhere"))
        unaware.close()

    assert found["connections"].status == "warning"
    assert "DB_POOLER=transaction" in (found["connections"].remedy or "")


def test_calls_of_many_at_once_are_right(pooled: Database) -> None:
    """Searches, writes and reads by threads and by asyncio, on five connections."""
    KnowledgeImporter(pooled).run([SAMPLES])
    EmbeddingService(pooled).embed("knowledge")
    searches, awaited = SearchService(pooled), AsyncSearchService(pooled)
    modes = ("hybrid", "text", "vector")
    first = {
        mode: searches.search("refund guarantee", corpus="knowledge", mode=mode).hits[0].id
        for mode in modes
    }

    def write(number: int) -> bool:
        with pooled.unit_of_work(actor=f"caller {number}") as work:
            document = work.session.query(FrameworkDocument).limit(1).one()
            document.title = f"{document.title[:40]} {number}"
            work.session.flush()
            told = work.session.scalar(text("SELECT current_setting('app.actor')"))
        return bool(told == f"caller {number}")

    def read(number: int) -> bool:
        wanted = text("SELECT CAST(:number AS int), current_setting('statement_timeout')")
        with pooled.unit_of_work() as work:
            return tuple(work.session.execute(wanted, {"number": number}).one()) == (number, "30s")

    def search(number: int) -> bool:
        mode = modes[number % len(modes)]
        return bool(
            searches.search("refund guarantee", corpus="knowledge", mode=mode).hits[0].id
            == first[mode]
        )

    kinds: tuple[Callable[[int], bool], ...] = (search, write, read)

    async def search_too() -> list[bool]:
        async def once(number: int) -> bool:
            mode = modes[number % len(modes)]
            page = await awaited.search("refund guarantee", corpus="knowledge", mode=mode)
            return bool(page.hits[0].id == first[mode])

        try:
            return list(await asyncio.gather(*(once(number) for number in range(CALLS // 3))))
        finally:
            await pooled.aclose()

    with ThreadPoolExecutor(16) as threads:
        called = [threads.submit(kinds[n % 3], n) for n in range(CALLS - CALLS // 3)]
        asked = asyncio.run(search_too())
        answers = [each.result() for each in called] + asked

    assert len(answers) == CALLS
    assert all(answers)


@pytest.mark.superuser  # may take any role
def test_what_others_set_for_their_session_does_not_reach_us(
    bouncer: PgBouncer, pooled: Database
) -> None:
    """They share our connections; a scope above all would show the memories of others."""
    one = Database(replace(pooled.settings, application_name="careless"))
    careless = (
        "SET app.tenant_id = '00000000-0000-0000-0000-000000000001';"
        " SET statement_timeout = 12345; SET search_path = pg_catalog; SET ROLE rag_read_only"
    )
    for _ in range(20):  # on each connection
        with one.engine.execution_options(isolation_level="AUTOCOMMIT").connect() as connection:
            connection.exec_driver_sql(careless)
    one.close()

    for _ in range(20):
        with pooled.unit_of_work() as work:
            told = work.session.execute(
                text(
                    "SELECT current_setting('app.tenant_id'), current_setting('statement_timeout'),"
                    " current_setting('role'), to_regclass('jobs') IS NOT NULL, pg_sleep(0.002)"
                )
            ).one()
        assert tuple(told)[:4] == ("", "30s", "none", True)


def test_a_statement_that_takes_too_long_is_ended(pooled: Database) -> None:
    """Without an option of the session."""
    hasty = Database(replace(pooled.settings, statement_timeout_ms=20))

    with pytest.raises(OperationalError, match="statement timeout"):
        ask(hasty, "SELECT pg_sleep(3600)")

    assert ask(hasty, "SELECT 1") == 1
    hasty.close()


def cut(work: UnitOfWork) -> Callable[[], None]:
    """Return what breaks the line to the pooler, on which the unit of work is."""
    driver: Any = work.session.connection().connection.driver_connection

    def shut() -> None:
        with socket.socket(fileno=os.dup(driver.pgconn.socket)) as line:
            line.shutdown(socket.SHUT_RDWR)

    return shut


def test_a_lost_connection_is_replaced_before_it_is_used(pooled: Database) -> None:
    """By the statement that begins the transaction, with which nothing is lost."""

    def answer(work: UnitOfWork) -> object:
        return work.session.scalar(text("SELECT 2"))

    async def lose_and_ask() -> object:
        async with pooled.async_unit_of_work() as work:
            shut = await work.run(cut)
        shut()
        async with pooled.async_unit_of_work() as work:
            answered = await work.run(answer)
        await pooled.aclose()
        return answered

    with pooled.unit_of_work() as work:
        shut = cut(work)
    shut()
    with pooled.unit_of_work() as work:
        assert answer(work) == 2
    assert asyncio.run(lose_and_ask()) == 2


def test_work_is_done_by_one_at_a_time_without_a_session(
    pooled: Database, administered: Database
) -> None:
    """The lock is a transaction's; whoever comes directly meets it as well."""
    with (
        pooled.exclusively("testing"),
        pytest.raises(TransactionConflict, match="testing"),
        administered.exclusively("testing"),
    ):
        pass
    with administered.exclusively("testing", wait=True):
        pass


def test_what_needs_a_session_says_how_to_give_one(pooled: Database, tmp_path: Path) -> None:
    """Upgrades and model switches; reading the version needs none."""
    assert current(pooled) is not None
    for act in (
        lambda: upgrade(pooled),
        lambda: scratch_database(pooled).__enter__(),
        lambda: pooled.listening("x").__enter__(),
    ):
        with pytest.raises(SettingsError, match="set DATABASE_ADMIN_URL"):
            act()
    said = subprocess.run(
        [Path(sys.executable).with_name("pgcorpus"), "db", "upgrade"],
        check=False,
        capture_output=True,
        text=True,
        env={"PATH": "/usr/bin", "HOME": str(tmp_path)} | variables_of(pooled.settings),
        cwd=tmp_path,
        timeout=120,
    )
    assert "DATABASE_ADMIN_URL" in said.stderr
    assert "Traceback" not in said.stderr


def test_an_upgrade_goes_past_the_pooler(administered: Database) -> None:
    """As a model switch and a listening worker do."""
    upgrade(administered)

    with administered.listening("news") as wait:
        assert not wait(0.01)
        with administered.engine.begin() as connection:
            connection.execute(text("NOTIFY news"))
        assert wait(30)


def test_a_worker_without_a_session_polls(
    pooled: Database, caplog: pytest.LogCaptureFixture
) -> None:
    """And says what would let it listen."""
    worker = Worker(pooled, [], poll_seconds=0.1)
    with caplog.at_level("INFO"), ThreadPoolExecutor(1) as threads:
        running = threads.submit(worker.run)
        worker._stopping.wait(0.5)
        worker.stop()
        running.result()

    assert "set DATABASE_ADMIN_URL" in caplog.text
    assert "not listening" not in caplog.text


class CountingProxy:
    """Passes bytes on, and counts how often a client speaks after the server has answered."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._listener = socket.create_server((HOST, 0))
        self.port: int = self._listener.getsockname()[1]
        self.round_trips = 0
        self._answered = True
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Take no more clients."""
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection((HOST, self._port))
                for ends in ((client, server, True), (server, client, False)):
                    threading.Thread(target=self._pass_on, args=ends, daemon=True).start()

    def _pass_on(self, source: socket.socket, target: socket.socket, asks: bool) -> None:
        with suppress(OSError):
            while said := source.recv(65536):
                self.round_trips += asks and self._answered
                self._answered = not asks
                target.sendall(said)


def count_round_trips(settings: Settings, scope: Scope | None = None) -> int:
    """Count those of one search, once everything about it is known."""
    assert settings.database_url is not None
    proxy = CountingProxy(settings.database_url.port or 0)
    url = settings.database_url.set(port=proxy.port)
    database = Database(replace(settings, database_url=url, metrics_enabled=False))
    database._guard = lambda _connection, **_: None  # type: ignore[method-assign]
    searches = SearchService(database)
    corpus = "knowledge" if scope is None else "memory"
    for _ in range(3):
        before = proxy.round_trips
        searches.search("refund guarantee", corpus=corpus, scope=scope)
    counted = proxy.round_trips - before
    database.close()
    proxy.close()
    return counted


@pytest.mark.parametrize("scope", [None, Scope.tenant(UUID(int=1))], ids=["shared", "scoped"])
def test_a_search_costs_no_more_round_trips(
    pooled: Database, database: Database, scope: Scope | None
) -> None:
    """The transaction begins together with its settings, which prove the connection as well."""
    KnowledgeImporter(pooled).run([SAMPLES])
    EmbeddingService(pooled).embed("knowledge")
    url = database.settings.admin_url or database.url
    direct = replace(pooled.settings, database_url=url, pooler="none")

    through, past = count_round_trips(pooled.settings, scope), count_round_trips(direct, scope)

    assert 0 < through <= past, (through, past)
