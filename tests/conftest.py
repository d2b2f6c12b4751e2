"""A real PostgreSQL for every test, with the schema that the revisions make."""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import pytest
from sqlalchemy import URL, create_engine, text
from sqlalchemy.orm import Session

from db.embedded import EmbeddedServer
from db.engine import Database
from db.migrations import upgrade
from db.settings import Settings
from db.uow import UnitOfWork
from tests import factories


@pytest.fixture(scope="session", autouse=True)
def _no_settings_of_the_machine() -> None:
    """Tests see no database, key or model but those they name themselves."""
    for variable in tuple(os.environ):
        if variable.startswith(("DATABASE_", "POSTGRES_", "DB_", "SSL_", "OPENAI_", "EMBEDDING_")):
            del os.environ[variable]


@pytest.fixture(scope="session", autouse=True)
def _interruptible() -> None:
    """A script ignores Ctrl-C for what it starts in the background, and so would our commands."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def server() -> Iterator[EmbeddedServer]:
    """One server for the whole run. Nothing on it outlives the run, so it need not sync."""
    home = Path(tempfile.mkdtemp(prefix="pgcorpus-tests-"))
    home.chmod(0o755)  # PostgreSQL runs as another account when the tests run as root
    server = EmbeddedServer(home, settings={"fsync": "off"})
    server.start()
    yield server
    server.destroy()


@pytest.fixture(scope="session")
def administrator(server: EmbeddedServer) -> Iterator[URL]:
    """Where databases are made and dropped."""
    return server.url.set(database="postgres")


class Databases:
    """Makes databases on the test server, and drops them."""

    def __init__(self, administrator: URL) -> None:
        self._administrator = administrator
        self._engine = create_engine(administrator, isolation_level="AUTOCOMMIT")

    def make(self, template: str = "template1") -> URL:
        """A new database, a copy of *template*."""
        name = f"test_{uuid4().hex}"
        self._run(f'CREATE DATABASE "{name}" TEMPLATE "{template}"')
        return self._administrator.set(database=name)

    def drop(self, url: URL) -> None:
        """Drop a database, whoever is connected."""
        self._run(f'DROP DATABASE "{url.database}" WITH (FORCE)')

    @contextmanager
    def opened(self, template: str = "template1") -> Iterator[Database]:
        """A new database, dropped at the end."""
        url = self.make(template)
        database = Database(settings_for(url))
        try:
            yield database
        finally:
            database.close()
            self.drop(url)

    def close(self) -> None:
        """Give the connections back."""
        self._engine.dispose()

    def _run(self, statement: str) -> None:
        with self._engine.connect() as connection:
            connection.execute(text(statement))


@pytest.fixture(scope="session")
def databases(administrator: URL) -> Iterator[Databases]:
    """A maker of databases."""
    databases = Databases(administrator)
    yield databases
    databases.close()


def settings_for(url: URL) -> Settings:
    """Settings of a test: small pools, and no patience with a server that is gone."""
    return Settings(database_url=url, pool_size=2, connect_retry_seconds=2, environment="test")


@pytest.fixture(scope="session")
def migrated(databases: Databases) -> Iterator[URL]:
    """A database with the newest schema, copied by others: nobody else connects to it."""
    url = databases.make()
    database = Database(settings_for(url))
    upgrade(database)
    database.close()
    yield url
    databases.drop(url)


@pytest.fixture
def empty(databases: Databases) -> Iterator[Database]:
    """A database before its first revision."""
    with databases.opened() as database:
        yield database


@pytest.fixture
def database(databases: Databases, migrated: URL) -> Iterator[Database]:
    """A database of the test's own, with the newest schema: for commits, locks and threads."""
    with databases.opened(migrated.database or "") as database:
        yield database


@pytest.fixture(scope="session")
def shared(databases: Databases, migrated: URL) -> Iterator[Database]:
    """The database of the tests that keep nothing."""
    with databases.opened(migrated.database or "") as database:
        yield database


@pytest.fixture
def session(shared: Database) -> Iterator[Session]:
    """A session in a transaction that never commits; its commits are savepoints."""
    with shared.engine.connect() as connection:
        transaction = connection.begin()
        with Session(
            connection, join_transaction_mode="create_savepoint", expire_on_commit=False
        ) as session:
            factories.bind(session)
            yield session
        transaction.rollback()


@pytest.fixture
def work(session: Session) -> Iterator[UnitOfWork]:
    """A unit of work that is rolled back with the session's transaction."""
    with UnitOfWork(lambda: session) as work:
        yield work
