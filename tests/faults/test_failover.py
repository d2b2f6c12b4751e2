"""Failover: the primary dies under load, and searches and workers go on with its standby."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from typing import NamedTuple

import pytest
from sqlalchemy import text

from pgcorpus.db.embedded import EmbeddedServer
from pgcorpus.db.engine import Database
from pgcorpus.db.errors import DatabaseReadOnly
from tests.conftest import settings_for
from tests.faults.servers import ask
from tests.faults.standbys import Pair, address, either, kill, promote, standby_of
from tests.prove import proofs
from tests.prove.failover import MOST_SECONDS, keep_searching

pytestmark = pytest.mark.direct("a pooler stands before one server, and these are two others")


class Couple(NamedTuple):
    """A primary that may die, and its standby."""

    primary: EmbeddedServer
    standby: EmbeddedServer


@pytest.fixture
def couple(pair: Pair) -> Iterator[Couple]:
    """Two servers for one test, with the samples."""
    with ExitStack() as stack:
        primary = stack.enter_context(standby_of(pair.primary))
        promote(primary)
        yield Couple(primary, stack.enter_context(standby_of(primary)))


def test_searches_and_workers_outlive_the_primary(couple: Couple) -> None:
    """It is killed under load and its standby promoted: no job is lost, and none done twice."""
    settings = replace(settings_for(either(*couple)), connect_retry_seconds=30)
    database = Database(settings)
    reading = Database(replace(settings, read_urls=(address(couple.standby),)))
    reading.standbys.look()

    def fail_over() -> None:
        kill(couple.primary)
        promote(couple.standby)

    try:
        with keep_searching(database) as pauses, keep_searching(reading) as of_standby:
            proof = proofs.each_job_once(
                database, jobs=1000, workers=2, restart=fail_over, batch_size=50, batch_seconds=0.05
            )
    finally:
        database.close()
        reading.close()

    assert proof.holds, proof
    assert pauses.longest < MOST_SECONDS
    assert pauses.errors <= {"DatabaseUnavailable"}
    assert of_standby.longest < MOST_SECONDS
    assert of_standby.errors == set()


def test_a_server_that_takes_no_writes_any_more_is_left(pair: Pair) -> None:
    """Its connections are discarded at the first refusal, and the next call goes to the other."""
    write = text("INSERT INTO conversations (title) VALUES ('after')")

    def commit() -> None:
        with database.unit_of_work() as work:
            work.session.execute(write)
            work.commit()

    with standby_of(pair.primary) as former:
        promote(former)
        database = Database(settings_for(either(former, pair.primary)))
        commit()
        ask(former, "ALTER SYSTEM SET default_transaction_read_only = on")
        ask(former, "SELECT pg_reload_conf()")
        while ask(former, "SHOW default_transaction_read_only") != "on":
            time.sleep(0.02)
        with pytest.raises(DatabaseReadOnly):
            commit()
        commit()
        database.close()

    count = "SELECT count(*) FROM conversations WHERE title = 'after'"
    assert ask(pair.primary, count) == 1
