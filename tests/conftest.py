"""A real PostgreSQL for every test, with the schema that the revisions make."""

from __future__ import annotations

import logging
import os
import signal
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import Final, get_args
from uuid import uuid4

import pytest
from sqlalchemy import URL, Dialect, Engine, create_engine, make_url, text
from sqlalchemy.exc import DBAPIError

from pgcorpus.db.choices import Group
from pgcorpus.db.embedded import EmbeddedServer
from pgcorpus.db.engine import Database
from pgcorpus.db.migrations import upgrade
from pgcorpus.db.settings import Settings
from pgcorpus.db.uow import UnitOfWork, WorkSession
from tests import factories
from tests.pooler import PgBouncer

pooler: PgBouncer | None = None
"""Before the test server, with ``--pooler``."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Run any tests as behind a transaction pooler."""
    parser.addoption("--pooler", action="store_true", help="put PgBouncer before the test server")


def pytest_configure(config: pytest.Config) -> None:
    """Refuse to stand before a server that is not ours."""
    if config.getoption("--pooler") and os.environ.get("PROVE_DATABASE_URL"):
        raise pytest.UsageError("--pooler is for the test server alone: unset PROVE_DATABASE_URL")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip behind a pooler what is of a session of one's own."""
    if config.getoption("--pooler"):
        for item in items:
            if direct := item.get_closest_marker("direct"):
                item.add_marker(pytest.mark.skip(reason=f"not behind a pooler: {direct.args[0]}"))


@pytest.fixture(scope="session", autouse=True)
def _no_settings_of_the_machine() -> None:
    """Tests see no database, key or model but those they name themselves."""
    for variable in tuple(os.environ):
        if variable.startswith(("DATABASE_", "POSTGRES_", "DB_", "SSL_", "OPENAI_", "EMBEDDING_")):
            del os.environ[variable]


@pytest.fixture(autouse=True)
def _levels_of_logs() -> Iterator[None]:
    """Undo what a command set in this process: the next test looks at logs of any level."""
    yield
    logging.getLogger("pgcorpus").setLevel(logging.NOTSET)


@pytest.fixture(scope="session", autouse=True)
def _interruptible() -> None:
    """A script ignores Ctrl-C for what it starts in the background, and so would our commands."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def server(pytestconfig: pytest.Config) -> Iterator[EmbeddedServer]:
    """One server for the whole run. Nothing on it outlives the run, so it need not sync."""
    home = Path(tempfile.mkdtemp(prefix="pgcorpus-tests-"))
    home.chmod(0o755)  # PostgreSQL runs as another account when the tests run as root
    server = EmbeddedServer(home, settings={"fsync": "off"})
    server.start()
    with ExitStack() as stack:
        if pytestconfig.getoption("--pooler"):
            global pooler  # noqa: PLW0603 - settings_for() is no fixture
            pooler = stack.enter_context(PgBouncer(server))
        yield server
    server.destroy()


@pytest.fixture(scope="session")
def administrator(request: pytest.FixtureRequest) -> URL:
    """The server where databases are made and dropped: that of ``make prove``, or ours."""
    if given := os.environ.get("PROVE_DATABASE_URL"):
        return make_url(given).set(drivername="postgresql+psycopg")
    server: EmbeddedServer = request.getfixturevalue("server")
    return server.url.set(database="postgres")


EXTENSIONS: Final = ("vector", "pg_trgm", "pgcrypto")
"""Extensions that an administrator makes in a database before its owner upgrades it."""


class Databases:
    """Makes databases on a server, and drops them.

    Args:
        administrator: A superuser's address.
    """

    def __init__(self, administrator: URL) -> None:
        self._administrator = administrator
        self._engine = create_engine(administrator, isolation_level="AUTOCOMMIT")

    @cached_property
    def version(self) -> int:
        """The server's major version."""
        with self._engine.connect() as connection:
            return version_of(connection.dialect)

    def make(self, template: str = "template1", *, owner: URL | None = None) -> URL:
        """A new database, a copy of *template*.

        Args:
            template: The other database.
            owner: One of ``make_owner``, whose it is; the superuser's without.
        """
        name = f"test_{uuid4().hex}"
        login = owner or self._administrator
        self._run(f'CREATE DATABASE "{name}" TEMPLATE "{template}" OWNER "{login.username}"')
        return login.set(database=name)

    def make_owner(self) -> URL:
        """A role that owns databases on a hosted server: LOGIN and CREATEROLE, and no more."""
        name = f"pgcorpus_owner_{uuid4().hex[:12]}"
        self._run(f"CREATE ROLE {name} LOGIN CREATEROLE PASSWORD 'invented'")
        return self._administrator.set(username=name, password="invented")

    def let_give_groups(self, owner: URL) -> None:
        """Let an owner make logins of the groups, also where a superuser or another made these."""
        for group in get_args(Group):
            with suppress(DBAPIError):
                self._run(f"CREATE ROLE {group} NOLOGIN")
            self._run(f"GRANT {group} TO {owner.username} WITH ADMIN OPTION")

    def superuser_of(self, url: URL) -> URL:
        """The same database for the superuser: what a hosted server keeps to itself."""
        return self._administrator.set(database=url.database)

    def make_extensions(self, url: URL) -> None:
        """Do what the administrator of a hosted server does for the owner of a database."""
        engine = create_engine(self.superuser_of(url))
        with engine.begin() as connection:
            for extension in EXTENSIONS:
                connection.execute(text(f"CREATE EXTENSION IF NOT EXISTS {extension}"))
        engine.dispose()

    def drop_owner(self, owner: URL) -> None:
        """Drop a role of ``make_owner`` where nothing needs it any more."""
        with suppress(DBAPIError):
            self._run(f"DROP ROLE {owner.username}")

    def drop(self, url: URL) -> None:
        """Drop a database, whoever is connected."""
        self._run(f'DROP DATABASE "{url.database}" WITH (FORCE)')

    @contextmanager
    def opened(
        self, template: str = "template1", *, owner: URL | None = None
    ) -> Iterator[Database]:
        """A new database, dropped at the end."""
        url = self.make(template, owner=owner)
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


def version_of(dialect: Dialect) -> int:
    """The major version of a server that was connected to."""
    return dialect.server_version_info[0]


def settings_for(url: URL) -> Settings:
    """Settings of a test: small pools, and no patience with a server that is gone."""
    settings = Settings(database_url=url, pool_size=2, connect_retry_seconds=2, environment="test")
    return settings if pooler is None else pooler.settings(settings)


@pytest.fixture(scope="session")
def owner(databases: Databases) -> Iterator[URL]:
    """The owner of the databases of tests: no superuser, as on hosted servers."""
    owner = databases.make_owner()
    databases.let_give_groups(owner)
    yield owner
    databases.drop_owner(owner)


@pytest.fixture(scope="session")
def prepared(databases: Databases) -> Iterator[str]:
    """A database with the extensions alone, as an administrator hands it over."""
    url = databases.make()
    databases.make_extensions(url)
    yield url.database or ""
    databases.drop(url)


@pytest.fixture(scope="session")
def hosted(databases: Databases, prepared: str, owner: URL) -> Iterator[URL]:
    """A database with the newest schema, made by an owner: copied, and never connected to."""
    url = databases.make(prepared, owner=owner)
    database = Database(settings_for(url))
    upgrade(database)
    database.close()
    yield url
    databases.drop(url)


@pytest.fixture(scope="session")
def migrated(databases: Databases) -> Iterator[URL]:
    """The same as ``hosted``, made by a superuser."""
    url = databases.make()
    database = Database(settings_for(url))
    upgrade(database)
    database.close()
    yield url
    databases.drop(url)


def _by_superuser(request: pytest.FixtureRequest) -> bool:
    """Return whether the test names the superuser, the exception."""
    return request.node.get_closest_marker("superuser") is not None


@pytest.fixture
def empty(
    request: pytest.FixtureRequest, databases: Databases, prepared: str, owner: URL
) -> Iterator[Database]:
    """A database before its first revision."""
    template, login = ("template1", None) if _by_superuser(request) else (prepared, owner)
    with databases.opened(template, owner=login) as database:
        yield database


@pytest.fixture
def database(request: pytest.FixtureRequest, databases: Databases) -> Iterator[Database]:
    """A database of the test's own, with the newest schema: for commits, locks and threads."""
    by_superuser = _by_superuser(request)
    template: URL = request.getfixturevalue("migrated" if by_superuser else "hosted")
    login = None if by_superuser else template
    with databases.opened(template.database or "", owner=login) as database:
        yield database


@pytest.fixture
def superuser(databases: Databases, database: Database) -> Iterator[Engine]:
    """The test's own database for the superuser: what a test does that its owner may not."""
    engine = create_engine(databases.superuser_of(database.url))
    yield engine
    engine.dispose()


@pytest.fixture(scope="session")
def _shared_of_owner(databases: Databases, hosted: URL) -> Iterator[Database]:
    with databases.opened(hosted.database or "", owner=hosted) as database:
        yield database


@pytest.fixture(scope="session")
def _shared_of_superuser(databases: Databases, migrated: URL) -> Iterator[Database]:
    with databases.opened(migrated.database or "") as database:
        yield database


@pytest.fixture
def shared(request: pytest.FixtureRequest) -> Database:
    """The database of the tests that keep nothing."""
    of_whom = "superuser" if _by_superuser(request) else "owner"
    database: Database = request.getfixturevalue(f"_shared_of_{of_whom}")
    return database


@pytest.fixture
def session(shared: Database) -> Iterator[WorkSession]:
    """A session in a transaction that never commits; its commits are savepoints."""
    with shared.engine.connect() as connection:
        transaction = connection.begin()
        with WorkSession(
            connection, join_transaction_mode="create_savepoint", expire_on_commit=False
        ) as session:
            factories.bind(session)
            yield session
        transaction.rollback()


@pytest.fixture
def work(session: WorkSession) -> Iterator[UnitOfWork]:
    """A unit of work that is rolled back with the session's transaction."""
    with UnitOfWork(lambda: session) as work:
        yield work
