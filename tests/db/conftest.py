"""Fixtures that the tests of the data layer share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import URL

from pgcorpus.db.engine import Database
from tests.conftest import Databases, settings_for
from tests.tenancy import Tenancy, settled


@pytest.fixture(scope="module")
def tenancy(databases: Databases, hosted: URL) -> Iterator[Tenancy]:
    """Rows of three scopes, committed; tests leave them as they are, or roll back."""
    with (
        databases.opened(hosted.database or "", owner=hosted) as database,
        settled(database) as tenancy,
    ):
        yield tenancy


@pytest.fixture
def unbound(databases: Databases, tenancy: Tenancy) -> Iterator[Database]:
    """The database of the tenancy for a superuser, whom row security does not bind."""
    unbound = Database(settings_for(databases.superuser_of(tenancy.owner.url)))
    yield unbound
    unbound.close()
