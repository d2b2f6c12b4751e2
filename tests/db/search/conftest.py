"""Fixtures that the tests of searches share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import URL

from tests.conftest import Databases
from tests.db.search import crowd as crowds


@pytest.fixture(scope="session")
def crowd(databases: Databases, hosted: URL) -> Iterator[crowds.Crowd]:
    """A corpus with enough passages for an index to be worth it. No test commits a change."""
    with databases.opened(hosted.database or "", owner=hosted) as database:
        yield crowds.fill(database)
