"""Exchanges below the unit of work: a transaction in one round trip, on a connection kept clean."""

from __future__ import annotations

import asyncio
import contextvars
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import Engine, event, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.util import await_only

from pgcorpus.db.engine import Database
from pgcorpus.db.errors import UnsafeRole
from pgcorpus.db.scope import Scope
from pgcorpus.db.search.answer import Answer
from pgcorpus.db.search.corpora import KNOWLEDGE
from pgcorpus.db.search.driver import Sent
from pgcorpus.db.search.pipeline import Rows
from tests.conftest import settings_for
from tests.db.search.crowd import KEPT, WORD, Crowd
from tests.db.search.crowd import ask as ask_crowd
from tests.logins import logged_in

WAITED_FOR = re.compile(r"\tF\t\d+\t(Query|Sync)")
"""Messages whose answer is waited for, in libpq's trace of the protocol."""

SCOPE = Scope.tenant(UUID(int=7))
TOLD: Sent = ("SELECT app_scope() AS scope, current_setting('app.tenant_id', true) AS tenant", {})
PROCESS: Sent = ("SELECT pg_backend_pid() AS pid, now() AS at", {})

Way = Callable[[Database, Sequence[Sent], Scope | None], list[Rows]]


def exchange(database: Database, statements: Sequence[Sent], scope: Scope | None) -> list[Rows]:
    """Send statements as a search does."""
    return database.ranker(scope).exchange(statements)


def exchange_awaited(
    database: Database, statements: Sequence[Sent], scope: Scope | None
) -> list[Rows]:
    """The same under asyncio."""

    async def run() -> list[Rows]:
        try:
            return await database.run(exchange, database, statements, scope)
        finally:
            await database.aclose()

    return asyncio.run(run())


ways = pytest.mark.parametrize("way", [exchange, exchange_awaited], ids=["sync", "asyncio"])


@pytest.fixture
def single(database: Database) -> Iterator[Database]:
    """A service's login, with one connection that all work shares."""
    with logged_in(database, "rag_read_write") as service:
        url = service.settings.database_url
        assert url is not None
        settings = replace(service.settings, pool_size=1, max_overflow=0)
        own = Database(settings)
        yield own
        own.close()


@contextmanager
def count_waits(engine: Engine) -> Iterator[list[str]]:
    """Note the messages whose answers a pool's connections wait for."""
    waited: list[str] = []
    with tempfile.TemporaryFile("w+") as traced:

        def begin(connection: Any, _record: object, _proxy: object) -> None:
            driver = getattr(connection, "driver_connection", connection)
            driver.pgconn.trace(traced.fileno())

        def end(connection: Any, _record: object) -> None:
            getattr(connection, "driver_connection", connection).pgconn.untrace()

        event.listen(engine, "checkout", begin)
        event.listen(engine, "checkin", end)
        try:
            yield waited
        finally:
            event.remove(engine, "checkout", begin)
            event.remove(engine, "checkin", end)
        traced.seek(0)
        waited += WAITED_FOR.findall(traced.read())


@ways
def test_an_exchange_has_its_scope_and_leaves_none(single: Database, way: Way) -> None:
    """The scope ends with the transaction, and the next search has none."""
    ((within,),) = way(single, [TOLD], SCOPE)
    ((without,),) = way(single, [TOLD], None)

    assert within == {"scope": str(SCOPE), "tenant": str(SCOPE.tenant_id)}
    assert (without["scope"], without["tenant"] or "") == (None, "")


@ways
def test_nothing_that_a_unit_of_work_set_for_the_session_is_left(
    single: Database, way: Way
) -> None:
    """Any caller may run SET: a search that followed it would have read another tenant's rows."""
    for _ in range(2):  # the first exchange resets what is new, the second what was used
        with single.unit_of_work() as work:
            work.session.execute(text(f"SET app.tenant_id = '{SCOPE.tenant_id}'"))
            work.session.execute(text("SET search_path = pg_catalog"))
            work.commit()
        ((told,),) = way(single, [TOLD], None)
        assert (told["scope"], told["tenant"] or "") == (None, "")


def test_settings_of_an_exchange_end_with_it(single: Database) -> None:
    """A unit of work that has the connection next plans as ever."""
    shown: Sent = ("SELECT current_setting('enable_seqscan') AS shown", {})
    off: Sent = ("SELECT set_config('enable_seqscan', 'off', true)", {})

    _, ((within),) = single.ranker().exchange([off, shown])
    ((after,),) = single.ranker().exchange([shown])

    assert (within["shown"], after["shown"]) == ("off", "on")


@ways
def test_statements_of_an_exchange_are_one_transaction(single: Database, way: Way) -> None:
    """They begin at the same moment, and the next exchange is another."""
    (first,), (second,) = way(single, [PROCESS, PROCESS], None)
    ((third,),) = way(single, [PROCESS], None)

    assert first == second
    assert third["at"] > first["at"]


def test_a_table_that_another_client_left_behind_a_pooler_hides_none(single: Database) -> None:
    """A temporary table lasts as long as the session, and would come before the schema's."""
    shown: Sent = ("SELECT 'chunks'::regclass = 'public.chunks'::regclass AS whole", {})
    pooled = Database(replace(single.settings, pooler="transaction"))  # the session stays the same
    try:
        with pooled.unit_of_work(SCOPE) as work:
            work.session.execute(text("CREATE TEMPORARY TABLE chunks AS SELECT * FROM chunks"))
            work.session.execute(text("SET app.identity = 'somebody:else'"))
            work.commit()
        ((exchanged,),) = pooled.ranker(SCOPE).exchange([shown])
        with pooled.unit_of_work(SCOPE) as work:
            worked = work.session.scalar(text(shown[0]))
            identity = work.session.scalar(text("SELECT current_setting('app.identity')"))
    finally:
        pooled.close()

    assert (exchanged["whole"], worked, identity) == (True, True, "")


def test_tasks_with_one_context_take_connections_each_in_its_way(single: Database) -> None:
    """One that waits to search would have made the other's unit of work skip the reset."""
    database = Database(replace(single.settings, pool_size=2))

    def search(seconds: float = 0) -> str | None:
        told: Sent = (
            "SELECT app_scope() AS scope FROM pg_sleep(%(seconds)s)",
            {"seconds": seconds},
        )
        ((row,),) = database.ranker().exchange([told])
        scope: str | None = row["scope"]
        return scope

    def work() -> bool:
        with database.unit_of_work() as own:
            own.session.execute(text(f"SET app.tenant_id = '{SCOPE.tenant_id}'"))
            driver: Any = own.session.connection().connection.driver_connection
            autocommit: bool = driver.autocommit
            return autocommit

    async def run() -> tuple[bool, str | None]:
        context, arrived, leave = contextvars.copy_context(), asyncio.Event(), asyncio.Event()

        def delay(_connection: object, record: Any, _proxy: object) -> None:
            if not record.info:  # the new connection
                arrived.set()
                await_only(leave.wait())

        async def start(function: Callable[..., Any], *args: Any) -> Any:
            return await database.run(function, *args)

        try:
            await database.run(search)
            event.listen(database.async_engine.sync_engine, "checkout", delay, insert=True)
            first = asyncio.create_task(start(search, 0.2))
            second = asyncio.create_task(start(search), context=context)
            await arrived.wait()
            await first
            autocommit = await asyncio.create_task(start(work), context=context)
            scope = await database.run(search)
            leave.set()
            await second
        finally:
            await database.aclose()
        return autocommit, scope

    assert asyncio.run(run()) == (False, None)


def test_an_exchange_that_fails_leaves_the_connection_whole(single: Database) -> None:
    """The transaction ends, and the pool's one connection serves the next search."""
    ((before,),) = single.ranker().exchange([PROCESS])
    with pytest.raises(DBAPIError, match="division by zero"):
        single.ranker(SCOPE).exchange([("SELECT 1 / 0", {})])
    ((after,),) = single.ranker().exchange([PROCESS])
    ((told,),) = single.ranker().exchange([TOLD])

    assert before["pid"] == after["pid"]
    assert told["scope"] is None


def test_a_connection_that_was_lost_in_the_pool_is_replaced(
    single: Database, superuser: Engine
) -> None:
    """A restart of the server between two searches is not the caller's business."""
    ((before,),) = single.ranker().exchange([PROCESS])
    with superuser.connect() as connection:
        connection.execute(text("SELECT pg_terminate_backend(:pid, 10000)"), {"pid": before["pid"]})
    ((after,),) = single.ranker().exchange([PROCESS])

    assert before["pid"] != after["pid"]


def test_a_login_that_passes_over_row_security_is_refused(database: Database) -> None:
    """The owner's searches within a scope would rely on nobody's word but ours."""
    own = Database(settings_for(database.url))
    try:
        with pytest.raises(UnsafeRole):
            own.ranker(SCOPE).exchange([TOLD])
    finally:
        own.close()


@pytest.mark.parametrize("legs", [{"vector": 1.0}, {"text": 1.0}, {"vector": 0.5, "text": 0.5}])
def test_a_search_waits_for_the_server_once_or_twice(crowd: Crowd, legs: dict[str, float]) -> None:
    """No reset, no BEGIN and no COMMIT of their own; twice where words are new to the service."""
    own = Database(crowd.database.settings)
    asked = ask_crowd(f"{WORD[900]} {WORD[40]}", legs)
    other = ask_crowd(f"{WORD[900]} {WORD[41]}", legs)
    try:
        for _ in range(2):
            own.ranker().answer(KNOWLEDGE, asked)
        with count_waits(own.engine) as waited:
            answer = own.ranker().answer(KNOWLEDGE, asked)
        with count_waits(own.engine) as waited_for_new:
            own.ranker().answer(KNOWLEDGE, other)
    finally:
        own.close()

    assert waited == ["Sync"]
    assert waited_for_new == ["Sync"] * (2 if "text" in legs else 1)
    assert len(answer.hits) == 10


def test_of_a_large_corpus_only_the_words_are_read_again(crowd: Crowd) -> None:
    """Its size and its statistics are those of the search before; what filters keep is counted."""
    own = Database(crowd.database.settings)
    ranker = own.ranker()
    sent: list[str] = []
    exchange = ranker.exchange

    def record(statements: Sequence[Sent], settings: Mapping[str, str] | None = None) -> list[Rows]:
        sent.extend(sql for sql, _ in statements)
        return exchange(statements, settings)

    def answer(**filters: str) -> tuple[Answer, bool]:
        sent.clear()
        asked = ask_crowd(f"{WORD[900]} {WORD[40]}", {"text": 1.0}, filters=filters)
        answered = ranker.answer(KNOWLEDGE, asked)
        return answered, any("lexeme_statistics" in sql for sql in sent)

    ranker.exchange = record
    try:
        (first, of_first), (again, of_again) = answer(), answer()
        narrowed, of_narrowed = answer(section="0.05 %")
    finally:
        own.close()

    assert (of_first, of_again, of_narrowed) == (True, False, True)
    assert again.hits == first.hits
    assert narrowed.kept == KEPT["0.05 %"]
