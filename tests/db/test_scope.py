"""Scopes in Python: no unit of work is in another's name, whatever happens to its connection."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from itertools import cycle
from typing import Any
from uuid import UUID, uuid4

import numpy as np
import pytest
from sqlalchemy import URL, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm.exc import ObjectDeletedError

from pgcorpus.db.engine import Database
from pgcorpus.db.errors import (
    ConcurrentUse,
    DatabaseUnavailable,
    MissingScope,
    StatementTimeout,
    UnsafeRole,
)
from pgcorpus.db.models import MemoryNode
from pgcorpus.db.repositories.memory.episodes import Told
from pgcorpus.db.repositories.memory.nodes import Exchange
from pgcorpus.db.scope import Scope, refuse_unsafe
from pgcorpus.db.search.ask import Ask
from pgcorpus.db.search.corpora import MEMORY, list_corpora
from pgcorpus.db.search.question import Question
from pgcorpus.db.uow import UnitOfWork
from pgcorpus.services.search.service import AsyncSearchService, SearchService
from tests.conftest import settings_for
from tests.tenancy import MEMORIES, Tenancy, secret

SEEN = text("SELECT DISTINCT scope FROM memory_nodes")
COUNT = text("SELECT count(*) FROM memory_nodes")
ID = UUID("11111111-1111-4111-8111-111111111111")


@pytest.fixture
def pool(tenancy: Tenancy) -> Iterator[Database]:
    """The application's login with a pool of one connection, which everybody gets."""
    settings = replace(tenancy.application.settings, pool_size=1, max_overflow=0)
    pool = Database(settings)
    yield pool
    pool.close()


def list_seen(work: UnitOfWork) -> set[str]:
    """List the scopes whose memories are seen, by SQL that does not ask for a scope."""
    return set(work.session.scalars(SEEN))


def list_seen_by(database: Database, scope: Scope | None) -> set[str]:
    """List the same in a unit of work of its own."""
    with database.unit_of_work(scope) as work:
        return list_seen(work)


def process(database: Database) -> int:
    """The server's process that serves the pool's one connection."""
    with database.engine.connect() as connection:
        return int(connection.scalar(text("SELECT pg_backend_pid()")) or 0)


# The value.


@pytest.mark.parametrize(
    "make",
    [
        lambda: Scope(None, None),
        lambda: Scope.tenant(None),  # type: ignore[arg-type]
        lambda: Scope.tenant(str(ID)),  # type: ignore[arg-type]
        lambda: Scope.user("' OR true --"),  # type: ignore[arg-type]
        lambda: Scope.tenant(ID, user_id="x"),  # type: ignore[arg-type]
        lambda: Scope.parse(""),
        lambda: Scope.parse("tenant:"),
        lambda: Scope.parse(str(ID)),
        lambda: Scope.parse(f"owner:{ID}"),
        lambda: Scope.parse(f"tenant:{ID}' OR true --"),
    ],
)
def test_a_scope_is_a_tenant_or_a_user(make: Callable[[], Scope]) -> None:
    """Nothing else is taken for one: not text, not nobody."""
    with pytest.raises(MissingScope):
        make()


def test_a_scope_is_written_and_read_as_the_database_writes_it(tenancy: Tenancy) -> None:
    """In lower case and with hyphens, as ``uuid::text`` is."""
    for scope in (tenancy.ours, tenancy.theirs, tenancy.person):
        assert Scope.parse(str(scope)) == scope
        assert list_seen_by(tenancy.application, scope) == {str(scope)}
    assert Scope.parse(f"tenant:{str(ID).upper()}") == Scope.tenant(ID)


def test_a_tenants_user_sees_what_is_the_tenants(tenancy: Tenancy) -> None:
    """The user of the tenant who writes changes nothing about what is seen."""
    user = tenancy.user_ids[tenancy.ours]
    as_user = Scope.tenant(tenancy.ours.tenant_id or ID, user_id=user)

    assert str(as_user) == str(tenancy.ours)
    assert list_seen_by(tenancy.application, as_user) == {str(tenancy.ours)}
    assert list_seen_by(tenancy.application, Scope.user(user)) == set()


# The first layer: the builder refuses before the database has to.


@pytest.mark.parametrize("corpus", [c for c in list_corpora() if c.needs_scope])
@pytest.mark.parametrize("mode", ["vector", "text", "fuzzy", "hybrid"])
def test_a_search_without_a_scope_is_refused(tenancy: Tenancy, corpus: Any, mode: Any) -> None:
    """By the service, with and without asyncio, before it connects, and by the repository."""
    nowhere = Database(settings_for(URL.create("postgresql+psycopg", host="127.0.0.1", port=1)))
    with pytest.raises(MissingScope):
        SearchService(nowhere).search("price", corpus=corpus.name, mode=mode)
    with pytest.raises(MissingScope):
        asyncio.run(AsyncSearchService(nowhere).search("price", corpus=corpus.name, mode=mode))
    ask = Ask(question=Question.parse("price"), legs={"text": 1.0}, vector=np.ones(384))
    with tenancy.owner.unit_of_work() as work:
        with pytest.raises(MissingScope):
            work.searches.answer(corpus, ask)
        with pytest.raises(MissingScope):
            work.searches.surroundings(corpus, [uuid4()], before=1, after=1)


EXCHANGE = Exchange(conversation_id="c", sequence_index=0, human="said", assistant="")
TOLD = Told(
    id="ep_0",
    messages=[{"role": "user", "content": "said"}],
    created_at=datetime.now(UTC),
    updated_at=datetime.now(UTC),
)

UNSCOPED: dict[str, Callable[[UnitOfWork], object]] = {
    "get": lambda work: work.memory.get("mem_0"),
    "find": lambda work: work.memory.find("mem_0"),
    "get_by_key": lambda work: work.memory.get_by_key(ID),
    "find_said": lambda work: work.memory.find_said(EXCHANGE),
    "next_index": lambda work: work.memory.next_index("c"),
    "list_conversation": lambda work: work.memory.list_conversation("c"),
    "list_memories": lambda work: work.memory.list_memories(["mem_0"]),
    "list_keys": lambda work: work.memory.list_keys(MEMORY, ["mem_0"]),
    "count": lambda work: work.memory.count(MEMORY, {}),
    "list_telling": lambda work: work.memory.list_telling({}),
    "add": lambda work: work.memory.add(EXCHANGE),
    "touch": lambda work: work.memory.touch(MEMORY, {ID: 1}, datetime.now(UTC)),
    "forget": lambda work: work.memory.forget(MEMORY, {}, limit=10),
    "take_turns": lambda work: work.memory.take_turns(),
    "get episode": lambda work: work.episodes.get("ep_0"),
    "list_episodes": lambda work: work.episodes.list_episodes(),
    "list_of": lambda work: work.episodes.list_of("mem_0"),
    "put": lambda work: work.episodes.put(TOLD),
}


@pytest.mark.parametrize("method", UNSCOPED)
def test_repositories_of_memories_refuse_to_work_without_a_scope(
    unbound: Database, method: str
) -> None:
    """Even for a superuser, to whom the database would refuse nothing."""
    with unbound.unit_of_work() as work, pytest.raises(MissingScope):
        UNSCOPED[method](work)


def test_every_table_with_a_scope_is_a_scoped_corpus() -> None:
    """So that no search of one forgets to ask."""
    scoped = [corpus for corpus in list_corpora() if "scope" in corpus.passages.c]
    assert {corpus.name for corpus in scoped} == {"memory", "episodes", "documentation"}
    for corpus in scoped:
        assert corpus.scope is corpus.passages.c.scope
        assert "scope" in corpus.vectors.c


def test_the_builder_narrows_even_where_row_security_does_not_bind(
    tenancy: Tenancy, unbound: Database
) -> None:
    """A superuser's search, too, finds what is the scope's: each layer holds alone."""
    with unbound.unit_of_work() as work:
        work.enter(tenancy.ours)
        assert len(list_seen(work)) == 3
        for scope in (tenancy.ours, tenancy.theirs, tenancy.person):
            work.enter(scope)
            ask = Ask(question=Question.parse(secret(tenancy.theirs)), legs={"text": 1.0})
            hits = work.searches.answer(MEMORY, ask).hits
            assert len(hits) == (MEMORIES if scope == tenancy.theirs else 0)


# The third layer: whom row security would not bind is not let in.


@pytest.mark.parametrize(
    ("make", "why"),
    [
        ("ALTER ROLE {role} SUPERUSER", "is a superuser"),
        ("ALTER ROLE {role} BYPASSRLS", "has BYPASSRLS"),
        ("ALTER TABLE memory_nodes OWNER TO {role}", "owns memory_nodes"),
        (
            """
            CREATE ROLE test_scope_owner; GRANT test_scope_owner TO {role};
            ALTER TABLE users OWNER TO test_scope_owner
            """,
            "owns users, or may act as its owner",
        ),
        ("GRANT postgres TO {role}", "may become postgres"),
        (
            "CREATE ROLE test_scope_dumper BYPASSRLS; GRANT test_scope_dumper TO {role}",
            "may become test_scope_dumper",
        ),
        ("GRANT rag_admin TO {role} WITH INHERIT FALSE", "may TRUNCATE chunk_boosts"),
        ("GRANT TRIGGER ON memory_nodes TO {role}", "memory_nodes, or put a trigger on it"),
    ],
    ids=[
        *("superuser", "bypassrls", "owner", "member of owner", "member of superuser", "of bypass"),
        *("administrator", "trigger"),
    ],
)
def test_a_login_that_row_security_does_not_bind_is_refused(
    unbound: Database, pool: Database, make: str, why: str
) -> None:
    """With the reason, and with what mends it; it is undone before anything is committed."""
    role = pool.url.username
    with unbound.engine.connect() as connection:
        connection.execute(text(make.format(role=role)))
        connection.execute(text(f"SET LOCAL ROLE {role}"))
        with pytest.raises(UnsafeRole, match=why) as refused:
            refuse_unsafe(connection)
    assert "pgcorpus roles create-user" in str(refused.value)


def test_a_unit_of_work_with_a_scope_refuses_a_superuser_and_the_owner(
    tenancy: Tenancy, unbound: Database
) -> None:
    """Before the first statement of the caller, each time anew."""
    for database in (unbound, tenancy.owner) * 2:
        with pytest.raises(UnsafeRole), database.unit_of_work(tenancy.ours) as work:
            work.session.scalar(COUNT)


def test_the_embedded_servers_superuser_steps_down(
    tenancy: Tenancy, unbound: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has no other login: within a scope it works as the application's role, until the end."""
    who = text("SELECT current_user")
    embedded = Database(replace(unbound.settings, database_url=None))
    monkeypatch.setitem(embedded.__dict__, "url", unbound.url)
    with embedded.unit_of_work(tenancy.ours) as work:
        assert work.session.scalar(who) == "rag_read_write"
        assert list_seen(work) == {str(tenancy.ours)}
        work.commit()
        assert list_seen(work) == {str(tenancy.ours)}
    with embedded.unit_of_work() as work:
        assert work.session.scalar(who) == "rag_admin"
        work.enter(tenancy.ours)
        assert list_seen(work) == {str(tenancy.ours)}
        work.leave()
        with work.jobs.as_login():
            assert work.session.scalar(who) == "postgres"
            with work.session.begin_nested():  # as where a role or an index is made
                assert work.session.scalar(who) == "postgres"
        assert work.session.scalar(who) == "rag_admin"
    embedded.close()


# What scope could leak through.

LEFT_BEHIND: dict[str, Callable[[UnitOfWork], object]] = {
    "a session-level SET": lambda work: work.session.execute(
        text("SELECT set_config('app.tenant_id', current_setting('app.tenant_id'), false)")
    ),
    "row_security": lambda work: work.session.execute(text("SET row_security = off")),
    "an identity": lambda work: work.session.execute(text("SET app.identity = 'test:x'")),
    "SET ROLE": lambda work: work.session.execute(text("SET ROLE rag_read_write")),
    "a search_path": lambda work: work.session.execute(text("SET search_path = pg_temp, public")),
    "a cursor": lambda work: work.session.execute(
        text("DECLARE kept CURSOR WITH HOLD FOR SELECT scope FROM memory_nodes")
    ),
    "a temporary table": lambda work: work.session.execute(
        text("CREATE TEMPORARY TABLE kept AS SELECT scope FROM memory_nodes")
    ),
    "a temporary table in another's place": lambda work: work.session.execute(
        text("CREATE TEMPORARY TABLE memory_nodes AS SELECT * FROM public.memory_nodes")
    ),
    "a temporary view": lambda work: work.session.execute(
        text("CREATE TEMPORARY VIEW tenants AS SELECT scope FROM public.memory_nodes")
    ),
    "a sequence": lambda work: work.session.execute(
        text("CREATE TEMPORARY SEQUENCE kept START 7; SELECT nextval('kept')")
    ),
    "a channel": lambda work: work.session.execute(text("LISTEN kept")),
    "a prepared statement": lambda work: work.session.execute(
        text("PREPARE kept AS SELECT scope FROM memory_nodes")
    ),
}


@pytest.mark.parametrize("what", LEFT_BEHIND)
@pytest.mark.parametrize("end", ["commit", "close"])
def test_nothing_is_left_behind_in_a_pooled_connection(
    tenancy: Tenancy, pool: Database, what: str, end: str
) -> None:
    """Whoever gets the same connection next sees its own scope, and nothing that was left there."""
    before = process(pool)
    with pool.unit_of_work(tenancy.theirs) as work:
        LEFT_BEHIND[what](work)
        if end == "commit":
            work.commit()

    with pool.unit_of_work() as work:
        session = work.session
        assert list_seen(work) == set()
        assert session.scalar(text("SELECT app_scope()")) is None
        assert session.scalar(text("SELECT count(*) FROM pg_cursors")) == 0
        assert session.scalar(text("SELECT count(*) FROM pg_listening_channels()")) == 0
        assert session.scalar(text("SELECT to_regclass('kept')")) is None
        assert session.scalar(text("SELECT current_user = session_user")) is True
        assert session.scalar(text("SHOW row_security")) == "on"
        assert not session.scalar(text("SELECT current_setting('app.identity', true)"))
        assert session.scalar(text("SELECT 'tenants'::regclass = 'public.tenants'::regclass"))
    assert list_seen_by(pool, tenancy.ours) == {str(tenancy.ours)}
    assert process(pool) == before


def test_an_exception_takes_the_scope_along(tenancy: Tenancy, pool: Database) -> None:
    """Of Python's or the database's, in a statement or between two."""

    def fail(statement: str | None) -> None:
        with pool.unit_of_work(tenancy.theirs) as work:
            work.session.execute(COUNT)
            if statement:
                work.session.execute(text(statement))
            raise KeyError

    for statement in (None, "SELECT 1 / 0", "SELECT FROM nowhere"):
        with pytest.raises(Exception, match=r".*"):
            fail(statement)
        assert list_seen_by(pool, None) == set()
        assert list_seen_by(pool, tenancy.ours) == {str(tenancy.ours)}


def test_a_killed_connection_takes_the_scope_along(
    tenancy: Tenancy, unbound: Database, pool: Database
) -> None:
    """The pool makes a new one, for whoever comes next."""
    terminate = text("SELECT pg_terminate_backend(:pid, 10000)")

    def be_killed() -> None:
        with unbound.engine.connect() as killer, pool.unit_of_work(tenancy.theirs) as work:
            pid = work.session.scalar(text("SELECT pg_backend_pid()"))
            assert killer.scalar(terminate, {"pid": pid})
            work.session.execute(COUNT)

    with pytest.raises(DatabaseUnavailable):
        be_killed()

    assert list_seen_by(pool, None) == set()
    assert list_seen_by(pool, tenancy.ours) == {str(tenancy.ours)}


def test_a_statement_timeout_leaves_the_scope_as_it_was(tenancy: Tenancy, pool: Database) -> None:
    """Within the transaction a savepoint brings it back; after it, it is gone."""
    slow = text("SELECT pg_sleep(60) FROM memory_nodes")

    def be_late(work: UnitOfWork) -> None:
        work.session.execute(text("SET LOCAL statement_timeout = 20"))
        work.session.execute(slow)

    with pool.unit_of_work(tenancy.theirs) as work:
        with pytest.raises(DBAPIError), work.session.begin_nested():
            be_late(work)
        assert list_seen(work) == {str(tenancy.theirs)}
    with pytest.raises(StatementTimeout), pool.unit_of_work(tenancy.theirs) as work:
        be_late(work)

    assert list_seen_by(pool, None) == set()


def test_commit_and_rollback_keep_the_scope(tenancy: Tenancy, pool: Database) -> None:
    """The unit of work goes on in a new transaction, in the same name."""
    with pool.unit_of_work(tenancy.ours) as work:
        for end in (work.commit, work.rollback, work.commit):
            assert list_seen(work) == {str(tenancy.ours)}
            end()
        assert list_seen(work) == {str(tenancy.ours)}


@pytest.mark.parametrize("lazily", [False, True])
@pytest.mark.parametrize("ends", ["released", "rolled back", "failed"])
def test_a_savepoint_does_not_change_whose_the_work_is(
    tenancy: Tenancy, pool: Database, ends: str, lazily: bool
) -> None:
    """Entered within it, a scope is left with it: Python and database never disagree."""
    scopes: list[Scope | None] = [tenancy.theirs, None, tenancy.person, tenancy.ours]
    with pool.unit_of_work(tenancy.ours) as work:
        for scope in scopes:
            if lazily:
                work.rollback()  # the savepoint begins the transaction
                work.enter(tenancy.ours)
            with pytest.raises(ZeroDivisionError), work.session.begin_nested() as savepoint:  # noqa: PT012
                work.enter(scope) if scope else work.leave()
                assert list_seen(work) == ({str(scope)} if scope else set())
                if ends == "rolled back":
                    savepoint.rollback()
                if ends == "released":
                    savepoint.commit()
                raise ZeroDivisionError
            now = scope if ends == "released" else tenancy.ours
            assert list_seen(work) == ({str(now)} if now else set())
            assert work.searches.scope == now
            said = work.session.scalar(text("SELECT app_scope()"))
            assert said == (str(now) if now else None)


def test_prepared_statements_serve_whoever_runs_them(tenancy: Tenancy, pool: Database) -> None:
    """The driver prepares what it sees more than five times; the plan is of no scope."""
    scopes = cycle([tenancy.ours, tenancy.theirs, None, tenancy.person])
    for _, scope in zip(range(40), scopes, strict=False):
        assert list_seen_by(pool, scope) == ({str(scope)} if scope else set())
    with pool.unit_of_work(tenancy.ours) as work:
        for _, scope in zip(range(40), scopes, strict=False):
            work.enter(scope) if scope else work.leave()
            assert list_seen(work) == ({str(scope)} if scope else set())
        prepared = text("SELECT count(*) FROM pg_prepared_statements WHERE statement ~ 'DISTINCT'")
        assert work.session.scalar(prepared) == 1


def test_many_tasks_share_a_small_pool_without_sharing_a_scope(tenancy: Tenancy) -> None:
    """Each awaits between its statements, while others run on the connection it had before."""
    settings = replace(tenancy.application.settings, pool_size=3, max_overflow=0)
    scopes = (tenancy.ours, tenancy.theirs, tenancy.person)

    async def look(database: Database, number: int) -> None:
        scope = scopes[number % 3]
        async with database.async_unit_of_work(scope) as work:
            for step in range(4):
                assert await work.run(list_seen) == {str(scope)}
                await asyncio.sleep(0.001 * ((number * 7 + step) % 5))
                if step == 1:
                    await (work.commit() if number % 2 else work.rollback())
        async with database.async_unit_of_work() as work:
            assert await work.run(list_seen) == set()

    async def all_at_once() -> None:
        database = Database(settings)
        try:
            await asyncio.gather(*(look(database, number) for number in range(60)))
        finally:
            await database.aclose()

    asyncio.run(all_at_once())


def test_two_tasks_do_not_share_a_unit_of_work(tenancy: Tenancy) -> None:
    """One that enters another scope would make the other read and write there: it is refused."""
    entered, read = threading.Event(), []

    def stay(work: UnitOfWork) -> None:
        work.enter(tenancy.theirs)
        entered.set()
        work.session.execute(text("SELECT pg_sleep(0.2)"))
        read.append(list_seen(work))

    async def both() -> None:
        async with tenancy.application.async_unit_of_work(tenancy.ours) as work:
            first = asyncio.create_task(work.run(stay))
            await asyncio.to_thread(entered.wait)
            for second in (work.run(list_seen), work.commit(), work.rollback()):
                with pytest.raises(ConcurrentUse, match="open one for each task"):
                    await second
            await first
            assert await work.run(list_seen) == {str(tenancy.theirs)}  # one after the other is fine
        await tenancy.application.aclose()

    asyncio.run(both())
    assert read == [{str(tenancy.theirs)}]


def test_a_cancelled_task_leaves_no_scope(tenancy: Tenancy) -> None:
    """Wherever it is interrupted, the next task on the connection begins as nobody."""
    settings = replace(tenancy.application.settings, pool_size=1, max_overflow=0)

    async def endless(database: Database) -> None:
        async with database.async_unit_of_work(tenancy.theirs) as work:
            while True:
                await work.run(list_seen)

    async def work_until_cancelled() -> None:
        database = Database(settings)
        try:
            for pause in (0.0, 0.005, 0.02, 0.05):
                task = asyncio.create_task(endless(database))
                await asyncio.sleep(pause)
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
                async with database.async_unit_of_work() as work:
                    assert await work.run(list_seen) == set()
                async with database.async_unit_of_work(tenancy.ours) as work:
                    assert await work.run(list_seen) == {str(tenancy.ours)}
        finally:
            await database.aclose()

    asyncio.run(work_until_cancelled())


def test_threads_share_a_pool_without_sharing_a_scope(tenancy: Tenancy) -> None:
    """Twelve at a time, three connections."""
    database = Database(replace(tenancy.application.settings, pool_size=3, max_overflow=0))
    scopes = (tenancy.ours, tenancy.theirs, tenancy.person)

    def look(number: int) -> bool:
        scope = scopes[number % 3]
        return all(list_seen_by(database, scope) == {str(scope)} for _ in range(3))

    with ThreadPoolExecutor(12) as threads:
        assert all(threads.map(look, range(60)))
    database.close()


def test_a_loaded_row_is_not_handed_to_another_scope(tenancy: Tenancy, pool: Database) -> None:
    """The row in the session's memory is asked for again, and is no longer to be seen."""
    (key, *_) = tenancy.keys("memory_nodes", tenancy.theirs)
    identity = (str(tenancy.theirs), key)
    with pool.unit_of_work(tenancy.theirs) as work:
        node = work.session.get_one(MemoryNode, identity)
        for change in (lambda: work.enter(tenancy.ours), work.leave):
            change()
            with pytest.raises(ObjectDeletedError):
                _ = node.human_content
            assert work.session.get(MemoryNode, identity) is None
            work.enter(tenancy.theirs)
            assert work.session.get_one(MemoryNode, identity).human_content


def test_what_was_added_before_is_of_the_scope_before(tenancy: Tenancy, pool: Database) -> None:
    """It is written before the scope changes, not when somebody next asks."""
    said = {"conversation_id": "c", "sequence_index": 0, "human_content": "said"}
    with pool.unit_of_work(tenancy.ours) as work:
        of_ours = {"id": "mem_x", "tenant_id": tenancy.ours.tenant_id, "source": "openai"}
        work.session.add(MemoryNode(**said, **of_ours))
        work.enter(tenancy.theirs)
        assert list_seen(work) == {str(tenancy.theirs)}
        work.enter(tenancy.ours)
        assert work.session.scalar(COUNT) == MEMORIES + 1
