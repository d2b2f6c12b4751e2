"""The way to the database: patience with a server that starts, none with one that refuses."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import psycopg
import pytest
from psycopg.adapt import PyFormat, Transformer
from psycopg.pq import Format, Ping
from sqlalchemy import URL, select, text
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.orm import Session

import pgcorpus.db.connections
import pgcorpus.db.engine
from pgcorpus.db.embedded import EmbeddedServer
from pgcorpus.db.engine import Database
from pgcorpus.db.errors import DatabaseUnavailable
from pgcorpus.db.models import ChunkEmbedding
from pgcorpus.db.settings import Settings
from tests import factories
from tests.conftest import settings_for
from tests.db.test_embedded import share_programs

ONE = text("SELECT 1")
SECRET = text("SELECT 1 / (length(CAST(:words AS text)) - 7)")
LONG = 3600  # seconds that no test waits: it would be noticed


@pytest.fixture(scope="module")
def own(server: EmbeddedServer) -> Iterator[EmbeddedServer]:
    """A server that tests may stop and start."""
    home = Path(tempfile.mkdtemp(prefix="pgcorpus-tests-"))
    home.chmod(0o755)
    share_programs(server, home)
    own = EmbeddedServer(home, settings={"fsync": "off"})
    own.start()
    yield own
    own.destroy()
    shutil.rmtree(home, ignore_errors=True)


@pytest.fixture
def stopped(own: EmbeddedServer) -> Iterator[URL]:
    """The address of that server, which does not run."""
    url = own.start()
    own.stop()
    yield url
    own.start()


def ask(database: Database) -> object:
    """One statement through the pool."""
    with database.engine.connect() as connection:
        return connection.scalar(ONE)


def ask_async(database: Database) -> object:
    """The same through the pool for asyncio."""

    async def answer() -> object:
        try:
            async with database.async_engine.connect() as connection:
                return await connection.scalar(ONE)
        finally:
            await database.aclose()

    return asyncio.run(answer())


def ask_secretly(database: Database) -> object:
    """A statement that fails, with a parameter that is nobody's business."""
    with database.engine.connect() as connection:
        return connection.scalar(SECRET, {"words": "private"})


def ask_secretly_async(database: Database) -> object:
    """The same through the pool for asyncio."""

    async def answer() -> object:
        try:
            async with database.async_engine.connect() as connection:
                return await connection.scalar(SECRET, {"words": "private"})
        finally:
            await database.aclose()

    return asyncio.run(answer())


def ask_for_schema(database: Database) -> object:
    """The same as an upgrade connects."""
    with database.schema_engine().connect() as connection:
        return connection.scalar(ONE)


ways = pytest.mark.parametrize("way", [ask, ask_async, ask_for_schema])


def test_a_connection_in_use_is_closed_when_it_comes_back_to_a_closed_database(
    shared: Database,
) -> None:
    """A thread at work ends its transaction, and leaves no connection that nobody holds."""
    database = Database(shared.settings)
    with database.engine.connect() as connection:
        held = connection.connection.driver_connection
        database.close()
        assert connection.scalar(ONE) == 1

    assert held is not None
    assert held.closed
    assert ask(database) == 1
    database.close()


def test_a_connection_of_asyncio_is_closed_when_it_comes_back_to_a_closed_database(
    shared: Database,
) -> None:
    """The same of a task at work."""
    database = Database(shared.settings)

    async def close_at_work() -> bool:
        async with database.async_engine.connect() as connection:
            held = (await connection.get_raw_connection()).driver_connection
            await database.aclose()
            assert await connection.scalar(ONE) == 1
        return bool(held.closed)

    assert asyncio.run(close_at_work())


@pytest.mark.parametrize(
    ("way", "prepares"),
    [(ask, "register_vector"), (ask_async, "register_vector_async")],
)
def test_a_connection_whose_preparation_is_given_up_is_closed(
    shared: Database,
    monkeypatch: pytest.MonkeyPatch,
    way: Callable[[Database], object],
    prepares: str,
) -> None:
    """Ctrl-C, or a task that is cancelled, leaves no connection open that nobody holds."""
    database = Database(shared.settings)
    prepare, given = getattr(pgcorpus.db.engine, prepares), []

    def give_up(connection: psycopg.Connection | psycopg.AsyncConnection) -> object:
        given.append(connection)
        if len(given) == 1:
            raise KeyboardInterrupt
        return prepare(connection)

    monkeypatch.setattr(pgcorpus.db.engine, prepares, give_up)

    with pytest.raises(KeyboardInterrupt):
        way(database)

    assert given[0].closed
    assert way(database) == 1
    database.close()


def before_the_ping(monkeypatch: pytest.MonkeyPatch, do: Callable[[], object]) -> None:
    """Do something after an attempt to connect has failed, before the server is pinged."""
    ping = pgcorpus.db.connections.ping

    def first(parameters: dict[str, object]) -> Ping:
        do()
        return ping(parameters)

    monkeypatch.setattr(pgcorpus.db.connections, "ping", first)


@pytest.mark.parametrize("way", [ask, ask_async])
def test_a_server_that_starts_late_is_waited_for(
    own: EmbeddedServer,
    stopped: URL,
    way: Callable[[Database], object],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Neither a refused connection nor "is starting up" is the end."""
    database = Database(replace(settings_for(stopped), connect_retry_seconds=60))
    refused = threading.Event()
    before_the_ping(monkeypatch, refused.set)
    starter = threading.Thread(target=lambda: (refused.wait(60), own.start()))
    starter.start()

    assert way(database) == 1

    starter.join()
    database.close()


def test_a_server_that_comes_up_between_attempt_and_ping_does_not_refuse(
    own: EmbeddedServer, stopped: URL, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The failed attempt was before the answer, so it says nothing about it."""
    before_the_ping(monkeypatch, own.start)
    database = Database(replace(settings_for(stopped), connect_retry_seconds=0))

    assert ask(database) == 1
    database.close()


@ways
def test_a_server_that_stays_away_is_unavailable(
    stopped: URL, way: Callable[[Database], object]
) -> None:
    """After the retry time, with the cause, the cure and no password."""
    database = Database(replace(settings_for(stopped), connect_retry_seconds=1))

    with pytest.raises(DatabaseUnavailable) as raised:
        way(database)

    message = str(raised.value)
    assert "Connection refused" in message
    assert "Check DATABASE_URL or the POSTGRES_* variables; gave up after 1 s" in message
    assert stopped.password is not None
    assert stopped.password not in message


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"password": "guessed"}, "password authentication failed"),
        ({"username": "nobody-known"}, "password authentication failed"),
        ({"database": "no-such-database"}, 'database "no-such-database" does not exist'),
    ],
    ids=["password", "user", "database"],
)
@ways
def test_a_refusal_is_final(
    administrator: URL, way: Callable[[Database], object], wrong: dict[str, str], said: str
) -> None:
    """A server that answers is not asked again for an hour."""
    settings = replace(settings_for(administrator.set(**wrong)), connect_retry_seconds=LONG)

    with pytest.raises(DatabaseUnavailable, match=said) as raised:
        way(Database(settings))

    assert "gave up" not in str(raised.value)
    assert "guessed" not in str(raised.value)


def test_connections_have_the_specification_s_settings(shared: Database) -> None:
    """A statement timeout, and a name in pg_stat_activity."""
    settings = Settings(database_url=shared.url)
    database = Database(settings)
    with database.engine.connect() as connection:
        assert connection.scalar(text("SHOW statement_timeout")) == "30s"
        assert connection.scalar(text("SHOW application_name")) == "pgcorpus"
    database.close()
    with database.schema_engine().connect() as connection:
        assert connection.scalar(text("SHOW statement_timeout")) == "0"
        assert connection.scalar(text("SHOW application_name")) == "pgcorpus"


def test_a_statement_that_runs_too_long_is_ended(shared: Database) -> None:
    """By the server, so that the connection is good for the next."""
    database = Database(replace(shared.settings, statement_timeout_ms=20))
    with database.engine.connect() as connection:
        with pytest.raises(OperationalError, match="due to statement timeout"):
            connection.execute(text("SELECT pg_sleep(3600)"))
        connection.rollback()
        assert connection.scalar(ONE) == 1
    database.close()


def test_what_the_address_says_stays(shared: Database) -> None:
    """Options in DATABASE_URL are added to, and not replaced."""
    query = {"options": "-c search_path=elsewhere", "application_name": "billing"}
    database = Database(replace(shared.settings, database_url=shared.url.update_query_dict(query)))
    with database.engine.connect() as connection:
        assert connection.scalar(text("SHOW search_path")) == "elsewhere"
        assert connection.scalar(text("SHOW application_name")) == "billing"
        assert connection.scalar(text("SHOW statement_timeout")) == "30s"
    database.close()


def test_a_role_that_the_address_names_is_that_of_every_transaction(shared: Database) -> None:
    """Settings of other clients go, and those that the connection began with stay."""
    own = shared.settings.admin_url or shared.url
    url = own.update_query_dict({"options": "-c role=rag_read_only"})
    database = Database(replace(shared.settings, database_url=url, pooler="none", pool_size=1))
    roles = []
    for _ in range(3):
        with database.engine.begin() as connection:
            roles.append(connection.scalar(text("SELECT current_user")))
            connection.execute(text("RESET ROLE; SET ROLE rag_read_write"))
    database.close()

    assert roles == ["rag_read_only"] * 3


def test_a_closed_database_can_be_used_again(shared: Database) -> None:
    """Closing gives the connections back, and no more."""
    database = Database(shared.settings)
    assert ask(database) == 1
    database.close()
    assert database.engine.pool.checkedin() == 0

    assert ask(database) == 1
    database.close()


def test_vectors_are_sent_in_binary(shared: Database) -> None:
    """On the wire four bytes a number, and not its digits."""
    with shared.engine.connect() as connection:
        transformer = Transformer(connection.connection.driver_connection)
        dumper = transformer.get_dumper(np.ones(3, dtype=np.float32), PyFormat.AUTO)

        assert dumper.format is Format.BINARY
        assert len(dumper.dump(np.ones(3, dtype=np.float32)) or b"") == 2 + 2 + 3 * 4


def test_vectors_are_sent_in_binary_by_asyncio_too(shared: Database) -> None:
    """The adapters are registered on both kinds of connection."""

    async def dump_vector() -> object:
        database = Database(shared.settings)
        async with database.async_engine.connect() as connection:
            driver = (await connection.get_raw_connection()).driver_connection
            dumper = Transformer(driver).get_dumper(np.ones(3, dtype=np.float32), PyFormat.AUTO)
        await database.aclose()
        return dumper.format

    assert asyncio.run(dump_vector()) is Format.BINARY


def test_a_vector_comes_back_bit_by_bit(session: Session) -> None:
    """Numbers that no short decimal can write, and the smallest of all."""
    limits = np.finfo(np.float32)
    vector = np.random.default_rng(1).standard_normal(384).astype(np.float32)
    vector[:5] = [0.1, 1 / 3, limits.tiny, limits.smallest_subnormal, -65504]
    row = factories.ChunkEmbeddingFactory(embedding=vector)
    session.expire_all()

    stored = session.scalar(select(ChunkEmbedding.embedding).where(ChunkEmbedding.id == row.id))

    assert stored is not None
    assert stored.dtype == np.float32
    assert stored.tobytes() == vector.tobytes()


@pytest.mark.superuser  # makes the extension
def test_a_connection_older_than_the_extension_still_reads_vectors(empty: Database) -> None:
    """It was opened before the first revision, when there was no such type."""
    with empty.engine.connect() as connection:
        connection.execute(text("CREATE EXTENSION vector"))
        connection.commit()
        vector = text("SELECT '[1,2,3]'::vector AS embedding").columns(
            embedding=ChunkEmbedding.embedding.type
        )

        assert list(connection.scalar(vector)) == [1, 2, 3]


# TLS


def certificate(folder: Path) -> tuple[Path, Path]:
    """A self-signed certificate of 127.0.0.1, and its key."""
    file, key = folder / "server.crt", folder / "server.key"
    # fmt: off
    subprocess.run(
        [  # noqa: S607 - where it is varies
            "openssl", "req", "-x509", "-nodes", "-days", "2", "-subj", "/CN=pgcorpus test",
            "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1",
            "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", file,
        ],
        check=True,
        capture_output=True,
    )
    # fmt: on
    return file, key


@pytest.fixture
def encrypted(own: EmbeddedServer) -> Iterator[tuple[URL, Path]]:
    """The address of a server that speaks TLS, and its certificate."""
    if shutil.which("openssl") is None:
        pytest.skip("the certificate is made by openssl, which this machine does not have")
    own.stop()
    file, key = certificate(own.home)
    for path in (file, key):
        path.chmod(0o600)
        own._give(path)
    settings = {"ssl": "on", "ssl_cert_file": str(file), "ssl_key_file": str(key)}
    yield EmbeddedServer(own.home, settings=own.settings | settings).start(), file
    own.stop()
    for path in (file, key):
        path.unlink()


def over(url: URL, **variables: str) -> tuple[bool, str | None]:
    """Return whether a connection with these settings is encrypted, and its protocol."""
    address = url.render_as_string(hide_password=False)
    database = Database(Settings.from_env({"DATABASE_URL": address} | variables))
    try:
        with database.engine.connect() as connection:
            used = "SELECT ssl, version FROM pg_stat_ssl WHERE pid = pg_backend_pid()"
            return tuple(connection.execute(text(used)).one())
    finally:
        database.close()


def test_tls_is_spoken_and_verified(encrypted: tuple[URL, Path], tmp_path: Path) -> None:
    """Required, verified against an authority, and in no older version than asked for."""
    url, authority = encrypted

    assert over(url, SSL_REQUIRE="true")[0]
    assert over(url, SSL_REQUIRE="true", SSL_CA_CERT=str(authority))[0]
    assert over(url, SSL_REQUIRE="true", SSL_MIN_PROTOCOL_VERSION="TLSv1.3") == (True, "TLSv1.3")

    stranger, _ = certificate(tmp_path)
    with pytest.raises(DatabaseUnavailable, match="certificate verify failed"):
        over(url, SSL_REQUIRE="true", SSL_CA_CERT=str(stranger))
    with pytest.raises(DatabaseUnavailable, match="localhost"):  # not what the certificate names
        over(url.set(host="localhost"), SSL_REQUIRE="true", SSL_CA_CERT=str(authority))


def test_a_plain_server_is_refused_where_tls_is_required(administrator: URL) -> None:
    """At once, however long the patience: it answers, and it will not learn TLS."""
    assert over(administrator) == (False, None)
    with pytest.raises(DatabaseUnavailable, match="server does not support SSL"):
        over(administrator, SSL_REQUIRE="true", DB_CONNECT_RETRY=str(LONG))


@pytest.mark.parametrize("ask_for", [ask_secretly, ask_secretly_async], ids=["sync", "async"])
def test_a_failing_statement_says_nothing_of_its_parameters(
    shared: Database, ask_for: Callable[[Database], object]
) -> None:
    """They are texts of people, and errors go to logs and into the queue."""
    with pytest.raises(DBAPIError, match="division by zero") as raised:
        ask_for(shared)

    assert "private" not in str(raised.value)
    assert "private" not in repr(raised.value)


def test_a_notification_is_heard_once_and_a_lost_connection_is_told(database: Database) -> None:
    """On a connection of its own: the pool's are not left listening."""
    with database.listening("news") as wait:
        assert not wait(0.01)
        with database.engine.begin() as connection:
            connection.execute(text("NOTIFY news"))
        assert wait(30)
        assert not wait(0.01)
        with database.engine.begin() as connection:
            connection.execute(
                text(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                    " WHERE datname = current_database() AND pid <> pg_backend_pid()"
                )
            )
        with pytest.raises(DatabaseUnavailable, match="lost"):
            wait(30)
    with database.engine.connect() as connection:
        assert connection.scalars(text("SELECT pg_listening_channels()")).all() == []
