"""A database with the rows of three scopes, and a folder for its backups."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from sqlalchemy import URL, create_engine, text

from pgcorpus.db.engine import Database
from pgcorpus.services.audit import AuditService
from pgcorpus.services.ops.backup.create import create
from pgcorpus.services.ops.backup.store import Backup, Store
from tests import factories
from tests.conftest import Databases
from tests.tenancy import Tenancy, settled


def silently(_stage: str, _done: int, _total: int | None) -> None:
    """Show no progress."""


@pytest.fixture(scope="session")
def programs(request: pytest.FixtureRequest) -> Path | None:
    """The folder of programs that fit the test server."""
    if os.environ.get("PROVE_DATABASE_URL"):
        return None
    bin_folder: Path = request.getfixturevalue("server").bin
    return bin_folder


@dataclass
class Shelf:
    """A database, the store of its backups, and empty databases to restore into.

    Attributes:
        database: For its owner, who is no superuser.
        tenancy: The rows of its scopes.
        store: Where its backups are kept.
        make_empty: Makes an empty database with the extensions, as an administrator does.
        superuser: The address of a database for the superuser.
    """

    database: Database
    tenancy: Tenancy
    store: Store
    make_empty: Callable[[], str]
    superuser: Callable[[str], URL]

    def back_up(self) -> Backup:
        """Make a backup."""
        return create(self.database, self.store, silently)


@pytest.fixture
def shelf(
    database: Database,
    databases: Databases,
    prepared: str,
    programs: Path | None,
    tmp_path: Path,
) -> Iterator[Shelf]:
    """A database of three scopes whose audit log is sealed."""
    made: list[URL] = []

    def make_empty() -> str:
        made.append(databases.make(prepared, owner=database.url))
        assert made[-1].database is not None
        return made[-1].database

    with settled(database) as tenancy:
        with database.unit_of_work() as work:
            factories.bind(work.session)
            for number in range(12):
                document = factories.FrameworkDocumentFactory(
                    title=f"Price anchor {number}", content="Ask for more than you expect. " * 3
                )
                factories.ChunkEmbeddingFactory(document=document)
            work.commit()
        AuditService(database).seal()
        own = Database(replace(database.settings, programs=programs))
        try:
            yield Shelf(
                own,
                tenancy,
                Store(tmp_path / "backups", None),
                make_empty,
                lambda name: databases.superuser_of(database.url.set(database=name)),
            )
        finally:
            own.close()
            for url in made:
                databases.drop(url)
            _drop_reader(databases.superuser_of(database.url))


def _drop_reader(superuser: URL) -> None:
    """Drop the role that a backup has made, which outlives its database."""
    engine = create_engine(superuser)
    with engine.begin() as connection:
        reader = f'"rag_backup_{superuser.database}"'
        if connection.scalar(text("SELECT to_regrole(:reader) IS NOT NULL"), {"reader": reader}):
            connection.execute(text(f"DROP OWNED BY {reader}"))
            connection.execute(text(f"DROP ROLE {reader}"))
    engine.dispose()
