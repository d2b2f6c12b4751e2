"""A streaming standby: it answers every search as its primary does, and says that it is read-only.

Primary and standby are two real servers; the standby is made by pg_basebackup.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from sqlalchemy import text

from pgcorpus.db.embedded import EmbeddedServer
from pgcorpus.db.engine import Database
from pgcorpus.db.errors import DatabaseReadOnly, StatementRefused, TransactionConflict
from pgcorpus.db.scope import Scope
from pgcorpus.db.scratch import scratch_database
from pgcorpus.db.uow import UnitOfWork
from pgcorpus.services import samples
from pgcorpus.services.chat.importing.importer import ChatImporter
from pgcorpus.services.choices import MODES
from pgcorpus.services.jobs.worker import Worker
from pgcorpus.services.knowledge.importer import KnowledgeImporter
from pgcorpus.services.memory.importing.importer import MemoryImporter
from pgcorpus.services.memory.service import AsyncMemoryService, MemoryService
from pgcorpus.services.ops.doctor import DoctorService
from pgcorpus.services.ops.health import HealthService
from pgcorpus.services.search.service import AsyncSearchService, SearchService
from tests.commands import run_commands
from tests.faults.servers import ask
from tests.faults.standbys import CORPORA, LOGINS, Pair, address, remove_rows, standby_of

pytestmark = pytest.mark.direct("a pooler stands before one server, and these are two others")

SCOPED = ("memory", "episodes")

AT_ONCE_SECONDS = 5
"""The time that a busy machine may take for a call without a wait; a retry would take longer."""


class Call(NamedTuple):
    """A call of a service, whether it is awaited or not."""

    service: str
    method: str
    arguments: tuple[Any, ...]
    options: Mapping[str, Any]


QUESTIONS = {
    "knowledge": "raise prices on existing customers without losing them",
    "chat": "how do I tell customers about higher prices",
    "memory": "why do the logins time out since the release",
    "episodes": "logins that timed out",
}


def by_length(_question: str, hits: Sequence[Any]) -> list[float]:
    """Rerank: the longest title first."""
    return [float(len(hit.title)) for hit in hits]


def list_searches(scope: Scope) -> Iterator[Call]:
    """Yield searches in every mode over every corpus, in every way there is."""

    def search(question: str, corpus: str, **options: Any) -> Call:
        of = {"scope": scope} if corpus in SCOPED else {}
        return Call("search", "search", (question,), {"corpus": corpus, **of, **options})

    for corpus, question in QUESTIONS.items():
        for mode in MODES:
            yield search(question, corpus, mode=mode)
        yield search(question, corpus, fusion="rrf", limit=2, offset=1)
        yield search(question, corpus, fusion="weighted", rerank=by_length)
        yield search('"no passage holds this"', corpus)  # which searches again
        yield search("scarcty pricng logn", corpus, mode="text")  # the fuzzy leg stands in
    atomic = {"chunk_type": "atomic_framework"}
    yield search(QUESTIONS["knowledge"], "knowledge", filters=atomic, language="german")
    yield search(QUESTIONS["chat"], "chat", group_by="conversation")
    yield search(QUESTIONS["memory"], "memory", filters={"source": "grok"})


def list_recalls(scope: Scope) -> Iterator[Call]:
    """Yield every call of the memory service that only reads, or counts what it recalls."""
    question, within, memory = QUESTIONS["memory"], {"scope": scope}, "mem_175e3705fd495387"
    yield Call("memory", "recall", (question,), within)
    yield Call("memory", "recall", (question,), {**within, "touch": False, "include_noise": True})
    yield Call("memory", "recall_episodes", (question,), within)
    yield Call("memory", "context", (question,), within)
    yield Call("memory", "get", (memory,), within)
    yield Call("memory", "episodes", (), within)
    yield Call("memory", "episodes_of", (memory,), within)
    yield Call("memory", "forget", (), {**within, "everything": True, "dry_run": True})


def follow_up(call: Call, result: Any) -> Iterator[Call]:
    """Yield what is asked next: the passages around the hits, where these have an order."""
    if call.method == "search" and call.options["corpus"] in ("chat", "memory") and result.hits:
        yield Call("search", "context", (result.hits,), {"scope": call.options.get("scope")})


def outline(result: Any) -> Any:
    """Return the part of a result that must be the same on both servers."""
    if hasattr(result, "legs"):  # a page of a search
        return {
            "hits": [(hit.id, hit.score, hit.ranks, hit.metadata) for hit in result.hits],
            "legs": [(leg.name, leg.status, leg.reason, leg.candidates) for leg in result.legs],
            "note": result.note,
            "groups": result.groups and [(each.key, each.found) for each in result.groups],
        }
    if hasattr(result, "page"):  # of a recall, whose scores are of the moment
        return [hit.id for hit in result.page.hits]
    return getattr(result, "text", result)


def ask_all(database: Database, scope: Scope) -> list[Any]:
    """The outlines of all answers of the services, one call after the other."""
    search, memory = SearchService(database), MemoryService(database)
    outlines = []

    def take(call: Call) -> None:
        method = getattr(search if call.service == "search" else memory, call.method)
        result = method(*call.arguments, **call.options)
        outlines.append(outline(result))
        if call.method == "search":
            assert result.explain().plan["Plan"]
        for each in follow_up(call, result):
            take(each)

    for call in (*list_searches(scope), *list_recalls(scope)):
        take(call)
    return outlines  # what was noted is left to the end of the database


async def await_all(database: Database, scope: Scope) -> list[Any]:
    """The same for asyncio."""
    search, memory = AsyncSearchService(database), AsyncMemoryService(database)
    outlines = []

    async def take(call: Call) -> None:
        method = getattr(search if call.service == "search" else memory, call.method)
        result = await method(*call.arguments, **call.options)
        outlines.append(outline(result))
        for each in follow_up(call, result):
            await take(each)

    for call in (*list_searches(scope), *list_recalls(scope)):
        await take(call)
    await search.flush_log()
    await memory.flush()
    await database.aclose()
    return outlines


def ask_in_loop(database: Database, scope: Scope) -> list[Any]:
    """As ``ask_all``, in an event loop of its own."""
    return asyncio.run(await_all(database, scope))


def warnings_in(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return the warnings of any logger: ours, and the driver's."""
    return [each.getMessage() for each in caplog.records if each.levelno >= logging.WARNING]


@pytest.mark.parametrize("login", ["app", "reader"])
@pytest.mark.parametrize("way", [ask_all, ask_in_loop])
def test_a_standby_answers_as_its_primary_does(
    pair: Pair,
    way: Callable[[Database, Scope], list[Any]],
    login: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Every search, recall and context; without a warning, an error in its log, or a wait."""
    pair.follow()
    before = pair.errors()
    with caplog.at_level(logging.DEBUG):
        with pair.opened(pair.standby, login) as standby:
            answers = way(standby, pair.scope)
            closing = time.monotonic()
        closed = time.monotonic()
    warned = warnings_in(caplog)
    left_out = [each for each in caplog.messages if "the database is read-only" in each]
    with pair.opened(pair.primary, "app") as primary:
        expected = way(primary, pair.scope)

    assert warned == []
    assert pair.errors() == before
    assert closed - closing < AT_ONCE_SECONDS
    assert len(answers) == len(expected)
    for answer, expectation in zip(answers, expected, strict=True):
        assert answer == expectation
    assert any("searches were not logged" in each for each in left_out)
    assert any("recalled memories were not counted" in each for each in left_out)


@pytest.mark.parametrize("login", [None, *LOGINS])
def test_the_doctor_asks_a_standby_for_no_analyze(pair: Pair, login: str | None) -> None:
    """It does not know when ANALYZE ran, and row security hides the statistics of memories."""
    pair.follow()
    with pair.opened(pair.standby, login) as standby:
        findings = DoctorService(standby).examine().findings

    of_statistics = [each for each in findings if each.check == "statistics"]
    assert {each.corpus for each in of_statistics} == {*CORPORA, "documentation"}
    assert [each for each in of_statistics if each.status != "ok"] == []


STATISTICS = text("""
    SELECT version, CAST((languages, all_languages, elements, frequencies) AS text)
    FROM lexeme_statistics('framework_documents', 'search_vector', 'language', NULL)
""")


def test_a_standby_has_the_statistics_of_words(pair: Pair) -> None:
    """It does not know when ANALYZE ran, and sees all the same that it ran again."""
    pair.follow()
    when = "SELECT pg_stat_get_last_analyze_time(CAST('framework_documents' AS regclass)) IS NULL"
    with pair.opened(pair.standby) as standby, pair.opened(pair.primary) as primary:
        on_standby, on_primary = SearchService(standby), SearchService(primary)

        def read(database: Database) -> tuple[Any, ...]:
            with database.engine.connect() as connection:
                return tuple(connection.execute(STATISTICS).one())

        def scores(service: SearchService) -> list[float]:
            page = service.search("premium prices", corpus="knowledge", mode="text")
            return [hit.score for hit in page.hits]

        before, scored = read(standby), scores(on_standby)
        assert ask(pair.standby, when)
        assert not ask(pair.primary, when)
        assert before[0] is not None
        assert before[1] == read(primary)[1]
        assert scored == scores(on_primary)

        with primary.unit_of_work() as work:  # a word becomes common
            work.session.execute(
                text(
                    "UPDATE framework_documents SET content = content || ' premium'"
                    " WHERE chunk_id NOT IN"
                    " (SELECT chunk_id FROM framework_documents ORDER BY chunk_id LIMIT 5)"
                )
            )
            work.commit()
        ask(pair.primary, "ANALYZE framework_documents")
        pair.follow()
        after = read(standby)

        assert after[0] != before[0]
        assert after[1] == read(primary)[1]
        assert scores(on_standby) == scores(on_primary) != scored


def statement(sql: str) -> Callable[[Database, Scope], object]:
    """Run a statement in a unit of work."""

    def run(database: Database, _scope: Scope) -> None:
        with database.unit_of_work() as work:
            work.session.execute(text(sql))
            work.commit()

    return run


def commit_tenant(database: Database, _scope: Scope) -> None:
    """Flush what was added with the commit alone."""
    with database.unit_of_work() as work:
        work.tenancy.create_tenant("New")
        work.commit()


def commit_tenant_in_loop(database: Database, _scope: Scope) -> None:
    """The same for asyncio."""

    def create(work: UnitOfWork) -> None:
        work.tenancy.create_tenant("New")

    async def run() -> None:
        try:
            async with database.async_unit_of_work() as work:
                await work.run(create)
                await work.commit()
        finally:
            await database.aclose()

    asyncio.run(run())


def remember_in_loop(database: Database, scope: Scope) -> None:
    """Remember, for asyncio."""

    async def run() -> None:
        memory = AsyncMemoryService(database)
        try:
            await memory.remember("Hello.", scope=scope, conversation_id="new")
        finally:
            await database.aclose()

    asyncio.run(run())


def copy_in(database: Database, _scope: Scope) -> None:
    """Load rows by COPY."""
    with database.unit_of_work() as work, work.memory.stage("staged", {"t": "text"}, [("a",)]):
        work.commit()


def listen(database: Database, _scope: Scope) -> None:
    """Wait for a notification."""
    with database.listening("pgcorpus_jobs") as wait:
        wait(0.1)


def index_concurrently(database: Database, _scope: Scope) -> None:
    """Build an index beside running work."""
    with database.autocommitting() as work:
        work.session.execute(text("CREATE INDEX CONCURRENTLY ON jobs (status)"))


def evaluate(database: Database, _scope: Scope) -> None:
    """Make a database for a moment."""
    with scratch_database(database):
        pytest.fail("a standby made a database")


def touch(database: Database, scope: Scope) -> None:
    """Count memories as recalled, now."""
    MemoryService(database).touch(["mem_175e3705fd495387"], scope=scope)


def forget(database: Database, scope: Scope) -> None:
    """Forget everything."""
    MemoryService(database).forget(scope=scope, everything=True)


WRITES: Mapping[str, tuple[str | None, Callable[[Database, Scope], object]]] = {
    "a commit": (None, commit_tenant),
    "a commit, asyncio": (None, commit_tenant_in_loop),
    "an import of knowledge": (
        "keeper",
        lambda database, _: KnowledgeImporter(database).run([samples.folder("knowledge")]),
    ),
    "an import of chats": (
        "app",
        lambda database, _: ChatImporter(database).run([samples.folder("chat")]),
    ),
    "an import of memories": (
        "keeper",
        lambda database, scope: MemoryImporter(database, scope).run([samples.folder("memory")]),
    ),
    "remember": (
        "app",
        lambda database, scope: MemoryService(database).remember(
            "Hello.", scope=scope, conversation_id="new"
        ),
    ),
    "remember, asyncio": ("app", remember_in_loop),
    "an episode": (
        "app",
        lambda database, scope: MemoryService(database).store_episode(
            "pricing-review", scope=scope
        ),
    ),
    "touch": ("app", touch),
    "forget": ("app", forget),
    "by a login that only reads": ("reader", touch),
    "a worker": ("keeper", lambda database, _: Worker(database).run()),
    "a worker, once": ("keeper", lambda database, _: Worker(database).run(once=True)),
    "COPY": (None, copy_in),
    "a notification": (None, statement("SELECT pg_notify('pgcorpus_jobs', '')")),
    "LISTEN": (None, listen),
    "a lock of rows": (None, statement("SELECT id FROM conversations FOR SHARE")),
    "a lock of a table": (None, statement("LOCK TABLE jobs IN SHARE ROW EXCLUSIVE MODE")),
    "a lock of a table, not waited for": (
        None,
        statement("LOCK TABLE jobs IN ACCESS EXCLUSIVE MODE NOWAIT"),
    ),
    "a table of the session": (None, statement("CREATE TEMPORARY TABLE t (a integer)")),
    "a sequence": (
        None,
        statement("SELECT nextval(pg_get_serial_sequence('query_performance_log', 'id'))"),
    ),
    "a transaction's number": (None, statement("SELECT pg_current_xact_id()")),
    "statistics": (None, statement("ANALYZE jobs")),
    "a revision": (None, statement("ALTER TABLE jobs ADD COLUMN more integer")),
    "a role": (None, statement("CREATE ROLE one_more")),
    "an index beside running work": (None, index_concurrently),
    "an evaluation": (None, evaluate),
}
"""Kind of a write → its login, None for the owner of the tables, and the call."""


TOLD = re.compile(
    "^the database is read-only.*: it is a standby, .* name the primary in DATABASE_URL"
)


@pytest.mark.parametrize("done", WRITES)
def test_a_write_is_told_as_read_only(
    pair: Pair, done: str, caplog: pytest.LogCaptureFixture
) -> None:
    """With the primary as the remedy, at once, and without a warning beside."""
    login, write = WRITES[done]
    started = time.monotonic()
    with (
        pair.opened(pair.standby, login) as standby,
        pytest.raises(DatabaseReadOnly, match=TOLD),
    ):
        write(standby, pair.scope)

    assert time.monotonic() - started < AT_ONCE_SECONDS
    assert warnings_in(caplog) == []


@pytest.mark.parametrize(
    ("asked", "state"),
    [
        ("SET TRANSACTION ISOLATION LEVEL SERIALIZABLE", "0A000"),
        ("SET TRANSACTION READ WRITE", "0A000"),
        ("SELECT pg_switch_wal()", "55000"),
    ],
)
def test_what_is_no_write_keeps_its_sqlstate(pair: Pair, asked: str, state: str) -> None:
    """Nothing of ours asks for it, and on a primary these states say something else."""
    with pair.opened(pair.standby) as standby, pytest.raises(StatementRefused, match=state):
        statement(asked)(standby, pair.scope)


def test_locks_of_applications_work_on_a_standby(pair: Pair) -> None:
    """As two processes that read there may want to exclude each other."""
    with (
        pair.opened(pair.standby) as standby,
        standby.exclusively("reading"),
        pytest.raises(TransactionConflict),
        standby.exclusively("reading"),
    ):
        pytest.fail("two had the lock")


def test_commands_on_a_standby_search_and_refuse_to_write(pair: Pair, tmp_path: Path) -> None:
    """A write ends with 1 and one sentence; nothing is said beside an answer."""
    pair.follow()
    within = ("--tenant-id", str(pair.scope.tenant_id))
    commands: Mapping[str, Mapping[tuple[str, ...], bool]] = {  # login → command → does it write?
        "app": {
            ("search", QUESTIONS["knowledge"], "--json"): False,
            ("memory", "recall", QUESTIONS["memory"], *within, "--json"): False,
            ("import", "knowledge", str(samples.folder("knowledge"))): True,
            ("import", "memory", str(samples.folder("memory")), *within): True,
            ("memory", "remember", "Hello.", *within): True,
        },
        "keeper": {
            ("jobs", "stats", "--json"): False,
            ("worker",): True,
            ("models", "use", "knowledge", "bge-m3", "--force"): True,
        },
    }
    kept = {name: value for name, value in os.environ.items() if name in {"PATH", "HOME"}}
    for login, given in commands.items():
        url = address(pair.standby, login).render_as_string(hide_password=False)
        environment = kept | {"DATABASE_URL": url, "COLUMNS": "160"}
        results = run_commands(environment, tmp_path, list(given))
        for (command, writes), result in zip(given.items(), results, strict=True):
            told = (command, result)
            assert result.code == int(writes), told
            assert "WARNING" not in result.stderr, told
            assert "Traceback" not in result.stderr, told
            last = result.stderr.strip().rpartition("\n")[2]
            assert last.startswith("error: the database is read-only (") == writes, told
            assert last.endswith("name the primary in DATABASE_URL to write") == writes, told


RECALLED = "SELECT CAST(sum(access_count) AS integer) FROM memory_nodes"


def test_a_standby_that_is_promoted_takes_notes(
    pair: Pair, caplog: pytest.LogCaptureFixture
) -> None:
    """The same services, on connections that stay: what they left out before is not made up for."""
    with standby_of(pair.primary) as other, pair.opened(other, "app") as database:
        search, memory = SearchService(database), MemoryService(database)

        def count_notes() -> tuple[int, int]:
            with database.unit_of_work(pair.scope) as work:
                recalled = work.session.scalar(text(RECALLED))
            return ask(other, "SELECT count(*) FROM query_performance_log"), recalled

        def ask_both() -> None:
            search.search(QUESTIONS["knowledge"], corpus="knowledge")
            memory.recall(QUESTIONS["memory"], scope=pair.scope, limit=3)
            search.flush_log()
            memory.flush()

        before = count_notes()
        ask_both()
        assert count_notes() == before
        assert ask(other, "SELECT pg_promote()")
        ask_both()
        after = count_notes()

    assert (after[0] - before[0], after[1] - before[1]) == (1, 3)
    assert warnings_in(caplog) == []


def test_a_standby_is_ready_for_reads_and_the_lag_is_told_on_both_sides(pair: Pair) -> None:
    """On a primary to members of pg_monitor alone; nobody else is told how far standbys are."""

    def lag(server: EmbeddedServer, login: str | None) -> tuple[str, str]:
        with pair.opened(server, login) as database, database.unit_of_work() as work:
            found = work.health.examine("replication_lag")
        return found.status, found.details

    with pair.opened(pair.standby, "app") as database:
        health = HealthService(database)
        reads, writes = health.check(), health.check_readiness(writes=True)

    assert (reads.verdict, reads.ready) == ("healthy", True), reads
    assert (writes.verdict, writes.live) == ("not_ready", True)
    assert lag(pair.standby, "app")[0] == "HEALTHY"
    assert lag(pair.standby, "app")[1].startswith("replayed up to")
    assert lag(pair.primary, "app")[0] == "UNKNOWN"
    with pair.opened(pair.primary) as database, database.engine.connect() as superuser:
        told = superuser.execute(text(
            "SELECT status, details FROM system_health_check('{replication_lag}')"
        )).one()  # fmt: skip
    assert told.status == "HEALTHY"
    assert told.details.startswith("standbys: 1, the last ")


def test_a_read_that_is_in_the_way_of_replay_is_told_to_run_again(pair: Pair) -> None:
    """Rows that it may still see are removed on the primary."""
    count = "SELECT count(*) FROM query_performance_log"
    with (
        standby_of(pair.primary, max_standby_streaming_delay="0") as other,
        pair.opened(other) as database,
        pytest.raises(TransactionConflict, match="run the unit of work again"),
        database.unit_of_work() as work,
    ):
        read_through(work, count, partial(remove_rows, pair.primary, other))


def read_through(work: UnitOfWork, statement: str, change: Callable[[], None]) -> None:
    """Read twice in one snapshot, before and after a change."""
    work.session.connection(execution_options={"isolation_level": "REPEATABLE READ"})
    work.session.execute(text(statement))
    change()
    work.session.execute(text(statement))
