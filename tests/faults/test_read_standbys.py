"""Searches read from a standby that is near enough, and nothing of them is lost where it is not."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any
from uuid import uuid4

import pytest

from pgcorpus.db.embedded import EmbeddedServer
from pgcorpus.db.engine import Database
from pgcorpus.db.errors import InvalidSearch, UnsafeRole
from pgcorpus.db.scope import Scope
from pgcorpus.db.standbys import FARTHEST, Reader, StandbyState
from pgcorpus.services.memory.service import AsyncMemoryService, MemoryService
from pgcorpus.services.ops.doctor import DoctorService
from pgcorpus.services.ops.metrics.process import ProcessFigures
from pgcorpus.services.search.service import AsyncSearchService, SearchService
from tests.conftest import settings_for
from tests.faults.servers import ask
from tests.faults.standbys import Pair, address, kill, promote, remove_rows, standby_of

pytestmark = pytest.mark.direct("a pooler stands before one server, and these are two others")

PATIENCE_SECONDS = 20.0


@contextmanager
def reading(
    primary: EmbeddedServer, *standbys: EmbeddedServer, login: str | None = "app", lag: int = 10
) -> Iterator[Database]:
    """A database whose searches read from standbys, once these were looked at."""
    settings = replace(
        settings_for(address(primary, login)),
        read_urls=tuple(address(each, login) for each in standbys),
        read_max_lag_seconds=lag,
    )
    database = Database(settings)
    database.standbys.look()
    try:
        yield database
    finally:
        database.close()


def wait_until(condition: Callable[[], bool]) -> None:
    """Wait for what threads of the database will see soon."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, "it was waited for in vain"
        time.sleep(0.05)


def list_states(database: Database) -> list[StandbyState]:
    """Return the state of each standby."""
    return [each.state for each in database.standbys.all]


def count_connections(database: Database) -> list[int]:
    """Count the connections that were made to the primary, and to each standby, for searches."""
    pools = (database, *(each.database for each in database.standbys.all))
    return [each.pool_state.idle + each.pool_state.in_use for each in pools]


@contextmanager
def pause(standby: EmbeddedServer) -> Iterator[None]:
    """A standby that receives, and replays nothing."""
    ask(standby, "SELECT pg_wal_replay_pause()")
    while ask(standby, "SELECT pg_get_wal_replay_pause_state()") != "paused":
        time.sleep(0.01)
    try:
        yield
    finally:
        ask(standby, "SELECT pg_wal_replay_resume()")


def say(database: Database, word: str) -> str | None:
    """Commit a message of one word; return the token."""
    with database.unit_of_work() as work:
        conversation = work.chat.create()
        work.chat.append(conversation.id, role="user", content=word)
        return work.commit()


def find(database: Database, word: str, **options: Any) -> bool:
    """Return whether a search finds a message of that word."""
    page = SearchService(database).search(word, corpus="chat", mode="text", **options)
    return any(word in hit.content for hit in page.hits)


IN_RECOVERY = "SELECT pg_is_in_recovery() AS standby"


def is_standby(reader: Reader) -> bool:
    """Return whether a standby answers."""
    ((row,),) = reader.ranker().exchange([(IN_RECOVERY, None)])
    standby: bool = row["standby"]
    return standby


def make_word() -> str:
    """Return a word that no passage has."""
    return f"w{uuid4().hex[:12]}"


RECALLED = "SELECT CAST(sum(access_count) AS integer) FROM memory_nodes"


def test_searches_read_from_standbys_and_what_they_write_goes_to_the_primary(pair: Pair) -> None:
    """The log of searches, and the recalls of memories, while the primary answers no search."""
    pair.follow()
    logged = "SELECT count(*) FROM query_performance_log"
    before = ask(pair.primary, logged), ask(pair.primary, RECALLED)
    with reading(pair.primary, pair.standby) as database:
        search, memory = SearchService(database), MemoryService(database)
        page = search.search("premium prices", corpus="knowledge", snippets=True)
        recall = memory.recall("why do logins time out", scope=pair.scope, limit=3)
        connections = count_connections(database)

        async def run() -> tuple[Any, list[int]]:
            found = await AsyncSearchService(database).search("prices", corpus="knowledge")
            counted = count_connections(database)
            await database.aclose()
            return found, counted

        awaited, of_both_pools = asyncio.run(run())
        search.flush_log()
        memory.flush()

    assert page.hits
    assert awaited.hits
    assert of_both_pools == [0, 2]
    assert len(recall.memories) == 3
    assert connections == [0, 1]
    # Each service has a search service of its own, which wrote its log at the close.
    assert ask(pair.primary, logged) - before[0] == 3
    assert ask(pair.primary, RECALLED) - before[1] == 3


def test_row_security_binds_searches_on_a_standby(pair: Pair) -> None:
    """Another tenant sees nothing, and a login that passes over it is refused."""
    pair.follow()
    with reading(pair.primary, pair.standby) as database:
        recall = partial(MemoryService(database).recall, "why do logins time out")
        assert recall(scope=pair.scope).memories
        assert not recall(scope=Scope.tenant(uuid4())).memories
        assert count_connections(database) == [0, 1]
    with (
        reading(pair.primary, pair.standby, login=None) as database,
        pytest.raises(UnsafeRole),
    ):
        MemoryService(database).recall("logins", scope=pair.scope)


def test_a_search_with_a_token_sees_the_commit(pair: Pair) -> None:
    """A standby that does not come so far is waited for, and then the primary answers."""
    pair.follow()
    word = make_word()
    with reading(pair.primary, pair.standby) as database:
        with pause(pair.standby):
            token = say(database, word)
            assert not find(database, word)
            assert find(database, word, after=token)
        pair.follow()
        database.standbys.look()
        assert is_standby(database.reader(after=token))
        assert find(database, word, after=token)


def test_a_search_with_a_token_waits_for_a_standby(pair: Pair) -> None:
    """One that replays soon answers it."""
    pair.follow()
    word = make_word()
    with reading(pair.primary, pair.standby) as database:
        with pause(pair.standby):
            token = say(database, word)
            resume = threading.Timer(0.1, ask, (pair.standby, "SELECT pg_wal_replay_resume()"))
            resume.start()
            reader = database.reader(after=token)
            resume.join()
        assert is_standby(reader)
        assert find(database, word, after=token)


def test_what_was_remembered_is_recalled_at_once(pair: Pair) -> None:
    """Also where it was awaited; the service passes its own tokens on."""
    pair.follow()
    words = make_word(), make_word()
    with reading(pair.primary, pair.standby) as database, pause(pair.standby):
        memory = MemoryService(database)
        memory.remember(words[0], scope=pair.scope, conversation_id=words[0])
        recall = memory.recall(words[0], scope=pair.scope, mode="text", touch=False)

        async def run() -> Any:
            own = AsyncMemoryService(database)
            await own.remember(words[1], scope=pair.scope, conversation_id=words[1])
            found = await own.recall(words[1], scope=pair.scope, mode="text", touch=False)
            await database.aclose()
            return found

        awaited = asyncio.run(run())

    assert [each.human for each in recall.memories] == [words[0]]
    assert [each.human for each in awaited.memories] == [words[1]]


@pytest.mark.parametrize("token", ["", "16", "16/B374D848 ", "G/0", "0/123456789", 7])
def test_what_is_no_token_is_told(pair: Pair, token: Any) -> None:
    """With standbys and without, so that a mistake does not wait for the first standby."""
    with reading(pair.primary, pair.standby) as database, pair.opened(pair.primary) as without:
        for each in (database, without):
            with pytest.raises(InvalidSearch, match="pass on what commit"):
                find(each, "prices", after=token)


def test_tokens_cost_nothing_without_standbys(pair: Pair) -> None:
    """A commit asks for no position, and has no token."""
    with pair.opened(pair.primary, "app") as database:
        assert database.token() is None
        assert say(database, make_word()) is None
        assert "standbys" not in database.__dict__


def test_a_standby_that_lags_is_left_until_it_is_near_again(
    pair: Pair, caplog: pytest.LogCaptureFixture
) -> None:
    """Its lag is measured by what the primary has written: an idle primary makes none old."""
    pair.follow()
    word = make_word()
    with reading(pair.primary, pair.standby, lag=2) as database:
        time.sleep(2.5)  # nothing is written meanwhile
        find(database, word)
        database.standbys.look()
        assert [each.in_use for each in list_states(database)] == [True]
        with pause(pair.standby):
            say(database, word)
            wait_until(lambda: not list_states(database)[0].in_use)
            assert find(database, word)
            assert (list_states(database)[0].lag_seconds or 0) > 2
        wait_until(lambda: list_states(database)[0].in_use)
        assert find(database, word)
    name = f"127.0.0.1:{pair.standby.url.port}"
    assert [each for each in caplog.messages if "searches" in each] == [
        f"searches do not read from the standby {name}: it is more than 2 s behind",
        f"searches read from the standby {name} again",
    ]


def test_a_server_that_takes_writes_itself_is_not_read_as_a_standby(pair: Pair) -> None:
    """It may have been the primary once, and has its own history since."""
    with standby_of(pair.primary) as other, reading(pair.primary, other) as database:
        assert list_states(database)[0].in_use
        promote(other)
        database.standbys.look()
        (state,) = list_states(database)

    assert not state.in_use
    assert state.problem == "it is no standby, but takes writes itself"


def test_a_read_that_fails_on_a_standby_is_read_elsewhere(pair: Pair) -> None:
    """It was in the way of replay; the standby was shut down; it died, and others go on."""
    slow = "SELECT inet_server_port() AS port, CAST(pg_sleep(1.5) AS text)"

    def read(database: Database) -> int:
        reader = database.reader()
        ((row,),) = reader.ranker().exchange([(slow, None)])
        port: int = row["port"]
        return port

    def read_while(database: Database, change: Callable[[], object]) -> int:
        ports: list[int] = []
        thread = threading.Thread(target=lambda: ports.append(read(database)))
        thread.start()
        time.sleep(0.3)
        change()
        thread.join()
        return ports[0]

    with (
        standby_of(pair.primary, max_standby_streaming_delay="0") as other,
        reading(pair.primary, other) as database,
    ):
        port = pair.primary.url.port
        assert read(database) == other.url.port
        assert read_while(database, partial(remove_rows, pair.primary, other)) == port
        assert list_states(database)[0].in_use  # it answers the next search
        assert read_while(database, other.stop) == port
        assert not list_states(database)[0].in_use
        other.start()
        wait_until(lambda: list_states(database)[0].in_use)
        assert read_while(database, partial(kill, other)) == port
        find(database, "prices")  # without an error


def test_a_commit_that_cannot_be_located_sends_its_searches_to_the_primary(pair: Pair) -> None:
    """It is committed all the same."""
    with reading(pair.standby, pair.standby) as database:  # a standby knows no position of its own
        assert database.token() == FARTHEST
        assert database.standbys.choose(FARTHEST) == []


def test_a_search_within_a_unit_of_work_sees_its_own_writes(pair: Pair) -> None:
    """It runs on the primary, in the transaction."""
    with reading(pair.primary, pair.standby) as database, database.unit_of_work() as work:
        conversation = work.chat.create()
        work.chat.append(conversation.id, role="user", content="unseen elsewhere")
        ((row,),) = work.searches.exchange([(IN_RECOVERY, None)])

    assert not row["standby"]


def test_doctor_and_metrics_tell_of_each_standby(pair: Pair) -> None:
    """By host and port alone; one that cannot be used is a warning with its reason."""
    pair.follow()
    port = pair.standby.url.port
    with reading(pair.primary, pair.standby, pair.primary) as database:
        find(database, "prices")
        findings = DoctorService(database).examine().findings
        told = {each.name: each for each in ProcessFigures(database).collect()}

    of_standbys = [each for each in findings if each.check == "standby"]
    assert [(each.subject, each.status) for each in of_standbys] == [
        (f"127.0.0.1:{port}", "ok"),
        (f"127.0.0.1:{pair.primary.url.port}", "warning"),
    ]
    assert "takes writes itself" in of_standbys[1].detail
    in_use = {
        each.labels["standby"]: each.value for each in told["pgcorpus_standby_in_use"].samples
    }
    assert in_use == {f"127.0.0.1:{port}": 1, f"127.0.0.1:{pair.primary.url.port}": 0}
    assert len(told["pgcorpus_standby_lag_seconds"].samples) == 1
