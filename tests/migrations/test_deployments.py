"""Deployments that meet others, a crash, or a server that lacks something."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import LiteralString

import psycopg
import pytest
from sqlalchemy import URL, text

from pgcorpus.db import migrations
from pgcorpus.db.embedded import EmbeddedServer
from pgcorpus.db.engine import Database
from pgcorpus.db.errors import DatabaseNotReady, DatabaseUnavailable
from tests.conftest import settings_for
from tests.migrations.conftest import Alembic, Dump

PATIENCE_SECONDS = 60
HEAD = migrations.ScriptDirectory.from_config(migrations._config()).get_current_head()


@pytest.fixture
def bystander(empty: Database) -> Iterator[psycopg.Connection]:
    """Somebody else who works in the database; each statement is a transaction of its own."""
    dsn = empty.url.set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(dsn, autocommit=True) as connection:
        yield connection


def wait_until(happened: Callable[[], bool]) -> None:
    """Come back as soon as it has happened."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def deployments(bystander: psycopg.Connection, condition: LiteralString = "true") -> int:
    """Count the connections of this project that the server has in this database."""
    bystander.execute("SELECT pg_stat_clear_snapshot()")  # the view stands still in a transaction
    row = bystander.execute(
        "SELECT count(*) FROM pg_stat_activity"  # noqa: S608 - conditions of this file
        " WHERE datname = current_database() AND application_name = 'pgcorpus' AND " + condition
    ).fetchone()
    assert row is not None
    return int(row[0])


def test_a_database_address_is_all_the_command_line_needs(
    empty: Database, schema_of: Dump, alembic: Alembic
) -> None:
    """Upgrade, current, history, check and downgrade, from any folder."""
    nothing = schema_of(empty.url)

    alembic.run("upgrade", "head", url=empty.url)
    assert f"{HEAD} (head)" in alembic.run("current", url=empty.url)
    assert "<base> -> 0001" in alembic.run("history", url=empty.url)
    assert "No new upgrade operations" in alembic.run("check", url=empty.url)
    alembic.run("-x", "yes=true", "downgrade", "base", url=empty.url)

    assert schema_of(empty.url) == nothing


def test_upgrades_and_downgrades_say_what_they_did(empty: Database, alembic: Alembic) -> None:
    """On stderr, in a line; also where there was nothing to do."""
    lines = [
        alembic.end(alembic.start(*arguments, url=empty.url))[2].splitlines()[-1]
        for arguments in (
            ("upgrade", "0005"),
            ("upgrade", "head"),
            ("upgrade", "head"),
            ("-x", "yes=true", "downgrade", "base"),
        )
    ]

    assert lines == [
        "the schema went from nothing to 0005",
        f"the schema went from 0005 to {HEAD}",
        f"the schema was at {HEAD} already: nothing was done",
        f"the schema went from {HEAD} to nothing",
    ]


def test_without_any_address_the_embedded_server_is_used(home: Path, alembic: Alembic) -> None:
    """It is started by the upgrade, and it has the schema."""
    alembic.run("upgrade", "head", PGCORPUS_HOME=str(home))
    assert f"{HEAD} (head)" in alembic.run("current", PGCORPUS_HOME=str(home))
    database = Database(settings_for(EmbeddedServer(home).url))
    assert migrations.drift(database) == []

    alembic.run("-x", "yes=true", "downgrade", "base", PGCORPUS_HOME=str(home))
    assert migrations.current(database) is None


def test_two_upgrades_at_once_queue(
    empty: Database, hosted: URL, schema_of: Dump, alembic: Alembic, bystander: psycopg.Connection
) -> None:
    """Both wait while the lock is held; then one upgrades, the other finds it done."""
    bystander.execute("SELECT pg_advisory_lock(%s)", (migrations.LOCK_KEY,))
    one, other = (alembic.start("upgrade", "head", url=empty.url) for _ in range(2))
    wait_until(lambda: deployments(bystander, "query LIKE '%ROLLBACK%'") == 2)
    assert (one.poll(), other.poll()) == (None, None)
    assert migrations.current(empty) is None
    # Neither waits inside a transaction: a snapshot would hold up CREATE INDEX CONCURRENTLY.
    wait_until(lambda: deployments(bystander, "backend_xmin IS NOT NULL") == 0)

    bystander.execute("SELECT pg_advisory_unlock(%s)", (migrations.LOCK_KEY,))

    ends = [alembic.end(process) for process in (one, other)]
    assert [code for code, _, _ in ends] == [0, 0]
    went, stayed = sorted((told for _, _, told in ends), key=lambda each: "already" in each)
    assert went.startswith("the schema went from nothing to ")
    assert stayed.endswith(" already: nothing was done\n")
    assert schema_of(empty.url) == schema_of(hosted)


def test_an_upgrade_does_not_wait_for_ever(
    empty: Database, bystander: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After its patience it says whom it waited for."""
    monkeypatch.setattr(migrations, "LOCK_WAIT_SECONDS", 0)
    bystander.execute("SELECT pg_advisory_lock(%s)", (migrations.LOCK_KEY,))

    with pytest.raises(DatabaseNotReady, match="another upgrade has been running"):
        migrations.upgrade(empty)


def test_the_lock_is_free_after_a_failure(empty: Database, bystander: psycopg.Connection) -> None:
    """The revision may have failed, or there is no such revision."""
    bystander.execute("CREATE TABLE framework_documents ()")
    with pytest.raises(Exception, match="already exists"):
        migrations.upgrade(empty)
    with pytest.raises(DatabaseNotReady, match="Can't locate revision"):
        migrations.upgrade(empty, "9999")

    taken = bystander.execute("SELECT pg_try_advisory_lock(%s)", (migrations.LOCK_KEY,)).fetchone()
    assert taken == (True,)


def test_a_failed_revision_leaves_those_before_it(
    empty: Database, schema_of: Dump, bystander: psycopg.Connection
) -> None:
    """Each is a transaction: what failed is undone, and the next upgrade goes on from there."""
    migrations.upgrade(empty, "0001")
    before = schema_of(empty.url)
    bystander.execute("CREATE TABLE source_lines ()")

    with pytest.raises(Exception, match="already exists"):
        migrations.upgrade(empty)
    bystander.execute("DROP TABLE source_lines")

    assert schema_of(empty.url) == before
    migrations.upgrade(empty)
    assert migrations.drift(empty) == []


def test_a_revision_gives_way_to_running_work(
    empty: Database,
    schema_of: Dump,
    bystander: psycopg.Connection,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A table that stays locked stops the upgrade, not the application; nothing is half done."""
    migrations.upgrade(empty, "0001")
    before = schema_of(empty.url)
    monkeypatch.setattr(migrations, "LOCK_TIMEOUT", "50ms")

    with bystander.transaction():
        bystander.execute("LOCK TABLE embedding_models IN ACCESS EXCLUSIVE MODE")
        with pytest.raises(DatabaseNotReady, match="kept a table locked for 50ms"):
            migrations.upgrade(empty)

    assert schema_of(empty.url) == before
    migrations.upgrade(empty)


def test_a_killed_upgrade_leaves_a_database_that_upgrades(
    empty: Database,
    hosted: URL,
    schema_of: Dump,
    alembic: Alembic,
    bystander: psycopg.Connection,
) -> None:
    """``kill -9`` in the middle of a revision undoes that revision, and frees the lock."""
    migrations.upgrade(empty, "0001")
    before = schema_of(empty.url)
    with bystander.transaction():
        bystander.execute("LOCK TABLE embedding_models IN ACCESS EXCLUSIVE MODE")
        process = alembic.start("upgrade", "head", url=empty.url)
        wait_until(lambda: deployments(bystander, "wait_event_type = 'Lock'") == 1)
        process.kill()
        assert alembic.end(process)[0] == -9
    wait_until(lambda: deployments(bystander) == 0)

    assert schema_of(empty.url) == before
    migrations.upgrade(empty)
    assert schema_of(empty.url) == schema_of(hosted)


def test_a_connection_lost_during_an_upgrade_is_an_error_of_this_layer(
    empty: Database, bystander: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server ends it, as in a failover; the next upgrade goes through."""

    def fail_over(*_: object) -> None:
        bystander.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND application_name = 'pgcorpus'"
        )

    with monkeypatch.context() as patch:
        patch.setattr(migrations, "refuse_unknown_revision", fail_over)  # the lock is held here
        with pytest.raises(DatabaseUnavailable, match="connection to the database was lost"):
            migrations.upgrade(empty)

    migrations.upgrade(empty)


def test_a_database_ahead_of_the_code_is_left_alone(database: Database, alembic: Alembic) -> None:
    """A newer release made it: every command says so, by name, and changes nothing."""
    with database.engine.begin() as connection:
        connection.execute(text("UPDATE pgcorpus_version SET version_num = '9999'"))
    ahead = "the database is at revision 9999, which this release does not have"

    complaint = alembic.fail("upgrade", "head", url=database.url)
    assert ahead in complaint
    assert "Install the release that made it" in complaint

    for command in (
        migrations.upgrade,
        migrations.history,
        migrations.current,
        migrations.drift,
        lambda database: migrations.downgrade(database, "base"),
    ):
        with pytest.raises(DatabaseNotReady, match=ahead):
            command(database)
    with database.engine.connect() as connection:
        assert connection.scalar(text("SELECT count(*) FROM framework_documents")) == 0


def test_the_history_says_what_is_applied(empty: Database) -> None:
    """Before, between and after."""
    assert migrations.current(empty) is None
    assert not any(version.applied for version in migrations.history(empty))

    migrations.upgrade(empty, "0002")

    current = migrations.current(empty)
    assert current is not None
    assert current.revision == "0002"
    assert [version.applied for version in migrations.history(empty)][:3] == [True, True, False]
    with pytest.raises(DatabaseNotReady, match="not up to date"):
        migrations.drift(empty)

    migrations.upgrade(empty)
    assert all(version.applied for version in migrations.history(empty))


def test_looking_at_an_empty_database_leaves_it_empty(empty: Database, schema_of: Dump) -> None:
    """Not even the version table is made."""
    nothing = schema_of(empty.url)

    migrations.history(empty)
    migrations.downgrade(empty, "base")

    assert schema_of(empty.url) == nothing


def test_a_failed_command_shows_no_stack_trace(empty: Database, alembic: Alembic) -> None:
    """A password that is wrong and an address that is none are for people to read."""
    refused = alembic.fail("current", url=empty.url.set(password="guessed"))
    assert "password authentication failed" in refused
    assert "Check DATABASE_URL" in refused

    assert "DATABASE_URL is not a database address" in alembic.fail("current", DATABASE_URL="x")


def test_a_role_without_rights_is_told_who_may(
    empty: Database, bystander: psycopg.Connection
) -> None:
    """Since PostgreSQL 15 not everyone may make tables; the message says who does."""
    role = f"{empty.url.database}_guest"
    bystander.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'invented'")
    guest = Database(settings_for(empty.url.set(username=role, password="invented")))
    try:
        with pytest.raises(DatabaseNotReady, match="Upgrade as the owner of the database"):
            migrations.upgrade(guest)
    finally:
        guest.close()
        bystander.execute(f"DROP ROLE {role}")


def test_a_server_that_lacks_something_is_told_what_mends_it(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No pgvector, no pg_trgm, or too old a version of the one or of PostgreSQL."""
    server = EmbeddedServer(home, settings={"fsync": "off"})
    database = Database(settings_for(server.start()))
    extensions = server.bin.parent / "share" / "extension"

    for control, cure in {
        "vector.control": "postgresql-18-pgvector",
        "pg_trgm.control": "postgresql-contrib",
    }.items():
        hidden = (extensions / control).rename(extensions / f"{control}.hidden")
        with pytest.raises(DatabaseNotReady, match=cure):
            migrations.upgrade(database)
        hidden.rename(extensions / control)

    for bar, height, cure in (
        ("OLDEST_PGVECTOR", (99, 0), "ALTER EXTENSION vector UPDATE"),
        ("OLDEST_POSTGRESQL", 99, "PostgreSQL 99 or newer is needed; this server is 18"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(migrations, bar, height)
            with pytest.raises(DatabaseNotReady, match=cure):
                migrations.upgrade(database)

    assert migrations.current(database) is None
    migrations.upgrade(database)


def test_the_schema_may_take_longer_than_a_statement(
    empty: Database, bystander: psycopg.Connection
) -> None:
    """An index on a large table takes minutes: no timeout, not even the database's own."""
    bystander.execute(f'ALTER DATABASE "{empty.url.database}" SET statement_timeout = 1234')

    with empty.schema_engine().connect() as connection:
        assert connection.scalar(text("SHOW statement_timeout")) == "0"
