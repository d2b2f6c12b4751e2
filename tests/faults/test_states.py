"""Errors of a real server, by SQLSTATE: each leaves the layer as an error of ours."""

from __future__ import annotations

import asyncio
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import URL, text

from pgcorpus.db.embedded import EmbeddedServer
from pgcorpus.db.engine import Database
from pgcorpus.db.errors import (
    STATES,
    DatabaseExhausted,
    DatabaseReadOnly,
    DatabaseUnavailable,
    DataLayerError,
    InvalidValue,
    LoginRefused,
    NotPermitted,
    StatementRefused,
    StatementTimeout,
    TooManyConnections,
    TransactionConflict,
    translate,
)
from pgcorpus.db.uow import UnitOfWork
from tests.conftest import settings_for
from tests.disks import small_disk
from tests.logins import logged_in

Do = Callable[[UnitOfWork], object]
Way = Callable[[Database, Do], None]


def run(database: Database, do: Do) -> None:
    """In a unit of work, committed."""
    with database.unit_of_work() as work:
        do(work)
        work.commit()


def run_async(database: Database, do: Do) -> None:
    """In a unit of work for asyncio, committed."""

    async def in_loop() -> None:
        try:
            async with database.async_unit_of_work() as work:
                await work.run(do)
                await work.commit()
        finally:
            await database.aclose()

    asyncio.run(in_loop())


both = pytest.mark.parametrize("way", [run, run_async])


def statements(*sql: str) -> Do:
    """Runs them, one after the other."""

    def do(work: UnitOfWork) -> None:
        for each in sql:
            work.session.execute(text(each))

    return do


def copying(*before: str, each: Callable[[UnitOfWork], object] | None = None) -> Do:
    """A COPY of 30,000 rows of a thousand bytes; *each* is called in the middle."""

    def do(work: UnitOfWork) -> None:
        statements(*before)(work)

        def rows() -> Iterator[tuple[str]]:
            for number in range(30_000):
                if number == 10_000 and each is not None:
                    each(work)
                yield ("x" * 1000,)

        with work.memory.stage("staged_fault", {"text": "text"}, rows()):
            pass

    return do


def end_others(work: UnitOfWork) -> None:
    """End all other connections to the database, from one of its own."""
    url = work.session.connection().engine.url.set(drivername="postgresql")
    with psycopg.connect(url.render_as_string(hide_password=False), autocommit=True) as connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )


def catch(way: Way, database: Database, do: Do) -> DataLayerError:
    """Return the error that leaves the layer, and none of the driver's."""
    with pytest.raises(DataLayerError) as raised:
        way(database, do)
    return raised.value


IDLE = "SELECT pg_sleep(0)"


@both
@pytest.mark.parametrize(
    ("do", "kind", "said"),
    [
        (
            statements("SET TRANSACTION READ ONLY", "DELETE FROM jobs"),
            DatabaseReadOnly,
            "name the primary in DATABASE_URL",
        ),
        (
            statements("SELECT pg_advisory_lock(n) FROM generate_series(1, 1000000) AS n"),
            DatabaseExhausted,
            "out of shared memory",
        ),
        (
            statements("SET LOCAL statement_timeout = 20", "SELECT pg_sleep(5)"),
            StatementTimeout,
            "DB_STATEMENT_TIMEOUT_MS",
        ),
        (
            copying("SET LOCAL statement_timeout = 200", each=lambda _: time.sleep(0.5)),
            StatementTimeout,
            "DB_STATEMENT_TIMEOUT_MS",
        ),
        (copying(each=end_others), DatabaseUnavailable, "the connection to the database was lost"),
        (
            lambda work: (end_others(work), statements(IDLE)(work)),
            DatabaseUnavailable,
            "an administrator ended the connection",
        ),
        (
            lambda work: (statements(IDLE)(work), end_others(work)),
            DatabaseUnavailable,
            "the connection to the database was lost",
        ),
        (statements("SELEC 1"), StatementRefused, "SQLSTATE 42601"),
    ],
    ids=[
        "25006", "53200", "57014", "57014 in COPY", "57P01 in COPY", "57P01", "lost at commit",
        "42601",
    ],
)  # fmt: skip
def test_an_error_of_the_server_is_one_of_ours(
    database: Database, way: Way, do: Do, kind: type[DataLayerError], said: str
) -> None:
    """Whatever it came through: a statement, a COPY, a commit, asyncio."""
    error = catch(way, database, do)

    assert isinstance(error, kind)
    assert said in str(error)
    way(database, statements(IDLE))  # and all is well again


@both
@pytest.mark.parametrize(
    ("setting", "kind", "said"),
    [
        ("idle_in_transaction_session_timeout", DatabaseUnavailable, "end units of work sooner"),
        ("transaction_timeout", StatementTimeout, "took longer than transaction_timeout"),
    ],
    ids=["25P03", "25P04"],
)
def test_a_connection_that_the_server_ended_says_why(
    database: Database,
    way: Way,
    setting: str,
    kind: type[DataLayerError],
    said: str,
) -> None:
    """Not that it was lost somehow."""

    def do(work: UnitOfWork) -> None:
        if setting == "transaction_timeout" and version(work) < 17:
            pytest.skip("transaction_timeout is of PostgreSQL 17 and later")
        statements(f"SET LOCAL {setting} = 100")(work)
        time.sleep(0.5)
        statements(IDLE)(work)

    error = catch(way, database, do)

    assert isinstance(error, kind)
    assert said in str(error)


def version(work: UnitOfWork) -> int:
    """The server's major version."""
    return int(work.session.scalar(text("SHOW server_version_num")) or 0) // 10_000


def test_a_session_that_was_idle_too_long_is_replaced_unseen(database: Database) -> None:
    """57P05 meets a connection in the pool, which proves each before it is used."""
    run(database, statements("SET idle_session_timeout = 100"))
    time.sleep(0.5)

    run(database, statements(IDLE))


@both
def test_transactions_in_each_others_way_are_conflicts(database: Database, way: Way) -> None:
    """40001 at the commit, and 40P01 in a statement."""
    run(
        database,
        statements(
            "CREATE TABLE shifts (doctor int PRIMARY KEY, on_call bool)",
            "INSERT INTO shifts VALUES (1, true), (2, true)",
        ),
    )
    serializable = "SET TRANSACTION ISOLATION LEVEL SERIALIZABLE"
    count = "SELECT count(*) FROM shifts WHERE on_call"

    def leave(work: UnitOfWork) -> None:
        statements(serializable, count)(work)
        second = statements(
            serializable, count, "UPDATE shifts SET on_call = false WHERE doctor = 2"
        )
        # In a thread: here it would be awaited, on a connection of this loop.
        between = threading.Thread(target=run, args=(database_two, second))
        between.start()
        between.join()
        statements("UPDATE shifts SET on_call = false WHERE doctor = 1")(work)

    def lock(work: UnitOfWork) -> None:
        statements("UPDATE shifts SET on_call = true WHERE doctor = 1")(work)
        other.start()
        time.sleep(0.5)
        statements("UPDATE shifts SET on_call = true WHERE doctor = 2")(work)

    def lock_other() -> None:
        try:
            with database_two.unit_of_work() as work:
                statements("UPDATE shifts SET on_call = true WHERE doctor = 2")(work)
                statements("UPDATE shifts SET on_call = true WHERE doctor = 1")(work)
        except TransactionConflict as error:
            deadlocks.append(error)

    database_two = Database(settings_for(database.url))
    assert isinstance(catch(way, database, leave), TransactionConflict)
    deadlocks: list[DataLayerError] = []
    other = threading.Thread(target=lock_other)
    try:
        way(database, lock)
    except TransactionConflict as error:
        deadlocks.append(error)
    other.join()
    assert len(deadlocks) == 1
    database_two.close()


def test_a_commit_raises_our_error_itself(database: Database) -> None:
    """A caller that guards it within the unit of work sees no driver's error either."""
    with database.unit_of_work() as work:
        statements(
            "CREATE TABLE late (n int UNIQUE DEFERRABLE INITIALLY DEFERRED)",
            "INSERT INTO late VALUES (1), (1)",
        )(work)
        with pytest.raises(DataLayerError, match="a row with the same key exists"):
            work.commit()


@both
def test_a_value_that_cannot_be_sent_is_refused(database: Database, way: Way) -> None:
    """By psycopg itself, which gives no SQLSTATE."""

    def do(work: UnitOfWork) -> None:
        with work.memory.stage("staged_nul", {"text": "text"}, [("a\x00b",)]):
            pass

    assert isinstance(catch(way, database, do), InvalidValue)


def test_a_read_only_login_is_told_that_a_primary_is_needed(database: Database) -> None:
    """As on a standby, where every transaction is read-only."""
    url = database.url.update_query_dict({"options": "-c default_transaction_read_only=on"})
    standby = Database(settings_for(url))

    with pytest.raises(DatabaseReadOnly, match="it is a standby, or default_transaction_read_only"):
        run(standby, statements("DELETE FROM jobs"))
    standby.close()


@both
@pytest.mark.superuser  # makes a tablespace
@pytest.mark.parametrize("within", ["COPY", "INSERT"])
def test_a_full_disk_is_told_as_one(database: Database, way: Way, within: str) -> None:
    """53100, in a statement and in a COPY."""
    with small_disk("4M") as folder, ExitStack() as stack:
        place = folder / "data"
        place.mkdir()
        with database.engine.connect() as connection:
            data = Path(connection.scalar(text("SHOW data_directory")) or "").stat()
        os.chown(place, data.st_uid, data.st_gid)
        with database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as admin:
            admin.execute(text(f"CREATE TABLESPACE small LOCATION '{place}'"))
            stack.callback(drop_tablespace, database)
        fill = (
            copying("SET LOCAL temp_tablespaces = small")
            if within == "COPY"
            else statements(
                "CREATE TABLE filling (content text) TABLESPACE small",
                "INSERT INTO filling SELECT repeat(md5(n::text), 50)"
                " FROM generate_series(1, 10000) AS n",
            )
        )
        error = catch(way, database, fill)
        way(database, statements(IDLE))

    assert isinstance(error, DatabaseExhausted)
    assert "no space left on the server's disk, and nothing was kept" in str(error)


def drop_tablespace(database: Database) -> None:
    """Drop the tablespace: the failure in it left nothing behind."""
    database.close()
    with database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as admin:
        admin.execute(text("DROP TABLESPACE small"))
    database.close()


@contextmanager
def limit_login(database: Database, by: str) -> Iterator[tuple[Database, str]]:
    """Make a login that may have one connection, which is in use; yield what ends that limit."""
    with logged_in(database, "rag_read_only") as login:
        name = login.url.username
        of = f"ROLE {name}" if by == "role" else f'DATABASE "{database.url.database}"'
        limit = f"ALTER {of} CONNECTION LIMIT "
        database.close()
        with login.engine.connect():
            run_as(database, f"{limit} 1")
            yield Database(replace(login.settings, connect_retry_seconds=3)), f"{limit} -1"
        run_as(database, f"{limit} -1")


def run_as(database: Database, statement: str) -> None:
    """Run it from another database: superusers alone pass over limits."""
    elsewhere = Database(settings_for(database.url.set(database="postgres")))
    run(elsewhere, statements(statement))
    elsewhere.close()


@both
@pytest.mark.parametrize("by", ["role", "database"])
def test_a_limit_of_connections_is_waited_for_and_told(
    database: Database, way: Way, by: str
) -> None:
    """53300: by DB_CONNECT_RETRY, and it is named as what it is."""
    with limit_login(database, by) as (login, _):
        began = time.monotonic()
        error = catch(way, login, statements(IDLE))
        seconds = time.monotonic() - began

    assert isinstance(error, TooManyConnections)
    assert f"too many connections for {by}" in str(error)
    assert "CONNECTION LIMIT" in str(error)
    assert 1 < seconds < 8


@both
def test_a_connection_that_becomes_free_is_taken(database: Database, way: Way) -> None:
    """No caller sees that there was none."""
    with limit_login(database, "role") as (login, lift):
        patient = Database(replace(login.settings, connect_retry_seconds=30))
        threading.Timer(1, run_as, (database, lift)).start()
        way(patient, statements(IDLE))
        patient.close()


def test_a_full_server_is_told_as_one() -> None:
    """Neither a superuser nor anybody else finds a slot: reserved ones, then none at all."""
    home = Path(tempfile.mkdtemp(prefix="pgcorpus-full-"))
    home.chmod(0o755)  # PostgreSQL runs as another account when the tests run as root
    server = EmbeddedServer(
        home,
        settings={"fsync": "off", "max_connections": "5", "superuser_reserved_connections": "2"},
    )
    server.start()
    try:
        url = server.url.set(drivername="postgresql").render_as_string(hide_password=False)
        held = [psycopg.connect(url, autocommit=True) for _ in range(3)]
        held[0].execute("CREATE ROLE guest LOGIN PASSWORD 'guest'")
        guest = server.url.set(username="guest", password="guest")
        assert "are reserved" in full(guest)
        held += [psycopg.connect(url) for _ in range(2)]
        assert "too many clients" in full(server.url)
        for each in held:
            each.close()
    finally:
        server.destroy()


def full(url: URL) -> str:
    """The message with which a full server is given up."""
    database = Database(replace(settings_for(url), connect_retry_seconds=1))
    error = catch(run, database, statements(IDLE))
    assert isinstance(error, TooManyConnections)
    return str(error)


def test_a_wrong_password_is_refused_at_once(database: Database) -> None:
    """With the number of attempts that it was worth: no account is locked for it."""
    url = database.url.set(password="guessed")
    wrong = Database(replace(settings_for(url), connect_retry_seconds=60))
    began = time.monotonic()

    error = catch(run, wrong, statements(IDLE))

    assert isinstance(error, LoginRefused)
    assert time.monotonic() - began < 10


def test_a_server_of_the_wrong_kind_is_waited_for(database: Database) -> None:
    """An address may ask for a primary or a standby: a failover may be under way."""
    url = database.url.update_query_dict({"target_session_attrs": "standby"})
    wrong = Database(replace(settings_for(url), connect_retry_seconds=1))

    error = catch(run, wrong, statements(IDLE))

    assert type(error) is DatabaseUnavailable
    assert "gave up after 1 s" in str(error)


def test_every_state_has_a_sentence() -> None:
    """The sentence holds for itself, without what the server says."""
    for state, (kind, _) in STATES.items():
        made = type("Made", (psycopg.Error,), {"sqlstate": state.ljust(5, "0")})
        error = translate(made("said"))
        assert type(error) is kind, state
        assert "{" not in str(error)


def test_a_missing_right_stays_what_it_is(database: Database) -> None:
    """In COPY as elsewhere."""
    with logged_in(database, "rag_read_only") as login:
        error = catch(run, login, statements("DELETE FROM jobs"))

    assert isinstance(error, NotPermitted)
