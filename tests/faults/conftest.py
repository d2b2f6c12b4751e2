"""A primary and its standby, for all tests of faults that need two servers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from pgcorpus.db.embedded import EmbeddedServer
from pgcorpus.db.engine import Database
from tests.conftest import settings_for
from tests.faults.servers import ask, home_of
from tests.faults.standbys import KEPT_LOG, Pair, fill, standby_of


@pytest.fixture(scope="package")
def pair(server: EmbeddedServer) -> Iterator[Pair]:
    """A primary and its standby. The server of the other tests lends them its programs."""
    with ExitStack() as stack:
        primary = stack.enter_context(home_of(server, **KEPT_LOG))
        database = Database(settings_for(primary.start()))
        scope = fill(database)
        database.close()
        ask(primary, "ANALYZE")
        yield Pair(primary, stack.enter_context(standby_of(primary)), scope)
