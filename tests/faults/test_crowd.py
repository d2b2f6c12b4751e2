"""Two hundred clients at once, for whom the server has not enough connections."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from uuid import UUID

import pytest
from sqlalchemy import text

from pgcorpus.db.embedded import EmbeddedServer
from pgcorpus.db.engine import Database
from pgcorpus.db.errors import DatabaseUnavailable
from pgcorpus.db.uow import UnitOfWork
from tests.conftest import settings_for
from tests.faults.crowd import Crowd
from tests.faults.servers import server_of
from tests.prove import proofs

pytestmark = pytest.mark.direct("a pooler has connections enough, and that is what it is for")

CLIENTS = 200
CONNECTIONS = 24
HANG_SECONDS = 100

Record = Callable[[str, object], None]


@pytest.fixture(scope="module")
def small(server: EmbeddedServer) -> Iterator[EmbeddedServer]:
    """A server with fewer connections than clients."""
    with server_of(server, max_connections=str(CONNECTIONS)) as own:
        yield own


@pytest.fixture
def database(small: EmbeddedServer) -> Iterator[Database]:
    """Its database, with a pool that the server has room for."""
    settings = settings_for(small.url)
    database = Database(replace(settings, pool_size=8, max_overflow=8, pool_timeout_seconds=60))
    yield database
    with database.engine.begin() as connection:
        connection.execute(text("TRUNCATE conversations, jobs CASCADE"))
    database.close()


def read_talks(database: Database) -> Counter[str]:
    """Count the turns of each conversation."""
    with database.engine.connect() as connection:
        found = connection.execute(text("SELECT conversation_id FROM messages"))
        return Counter(str(row[0]) for row in found)


def test_threads_of_one_process_wait_for_a_connection(
    database: Database, record_property: Record
) -> None:
    """Each is answered; the pool is the queue."""
    crowd = Crowd(database, CLIENTS)
    threads = start_threads(crowd)
    for thread in threads:
        thread.join(HANG_SECONDS)

    record_property("slowest_seconds", crowd.slowest_seconds)
    assert not any(thread.is_alive() for thread in threads)
    assert (len(crowd.kept), crowd.errors) == (CLIENTS, {})
    assert read_talks(database) == Counter(crowd.kept * 2)


def start_threads(crowd: Crowd) -> list[threading.Thread]:
    """Start a thread for each client."""
    threads = [
        threading.Thread(target=crowd.run, args=(number,), daemon=True) for number in range(CLIENTS)
    ]
    for thread in threads:
        thread.start()
    return threads


def test_tasks_of_one_loop_wait_for_a_connection(
    database: Database, record_property: Record
) -> None:
    """The same for asyncio."""

    def write(work: UnitOfWork, number: int) -> UUID:
        talk = work.chat.create(f"client {number}").id
        work.chat.append(talk, role="user", content="What does it cost?")
        return talk

    async def client(number: int) -> str:
        async with database.async_unit_of_work() as work:
            talk = await work.run(write, number)
            await work.commit()
        return str(talk)

    async def crowd() -> list[str]:
        async with asyncio.timeout(HANG_SECONDS):
            kept = await asyncio.gather(*map(client, range(CLIENTS)))
        await database.aclose()
        return kept

    began = time.monotonic()
    kept = asyncio.run(crowd())
    record_property("slowest_seconds", time.monotonic() - began)

    assert read_talks(database) == Counter(kept)


def test_a_pool_that_stays_in_use_is_told(database: Database) -> None:
    """After DB_POOL_TIMEOUT, with the settings to change; then all is well again."""
    impatient = Database(
        replace(database.settings, pool_size=1, max_overflow=0, pool_timeout_seconds=1)
    )
    with impatient.unit_of_work() as work:
        work.session.execute(text("SELECT 1"))
        crowd = Crowd(impatient, CLIENTS)
        for thread in start_threads(crowd):
            thread.join(HANG_SECONDS)
        with (
            pytest.raises(DatabaseUnavailable, match="raise DB_POOL_SIZE or DB_MAX_OVERFLOW"),
            impatient.unit_of_work() as other,
        ):
            other.session.execute(text("SELECT 1"))

    assert (crowd.kept, crowd.errors) == ([], {"DatabaseUnavailable": CLIENTS})
    with impatient.unit_of_work() as work:
        assert work.session.scalar(text("SELECT 1")) == 1
    impatient.close()
    assert read_talks(database) == {}


def test_processes_whose_pools_are_too_large_are_answered_or_told(
    database: Database, record_property: Record
) -> None:
    """The server has too few connections: who finds none in time is told so, and nobody hangs."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.faults.crowd", str(CLIENTS // 2)],
            env=proofs.environment(
                database,
                DB_POOL_SIZE=str(CLIENTS // 2),
                DB_MAX_OVERFLOW="0",
                DB_CONNECT_RETRY="3",
                METRICS_ENABLED="false",
            ),
            cwd=proofs.PROJECT,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    try:
        shown = [process.communicate(timeout=HANG_SECONDS)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    reports = [json.loads(each) for each in shown]
    kept = [talk for each in reports for talk in each["kept"]]
    errors = Counter[str]()
    for each in reports:
        errors.update(each["errors"])

    record_property("slowest_seconds", max(each["slowest_seconds"] for each in reports))
    record_property("kept_and_errors", f"{len(kept)} {dict(errors)}")
    # The other is an attempt that the crowded server did not answer in the time that was left.
    assert "TooManyConnections" in errors
    assert errors.keys() <= {"TooManyConnections", "DatabaseUnavailable"}
    assert len(kept) <= CLIENTS <= len(kept) + errors.total()
    assert read_talks(database) == Counter(kept * 2)
    with database.unit_of_work() as work:  # and now there is room again
        assert work.session.scalar(text("SELECT 1")) == 1
