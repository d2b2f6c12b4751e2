"""Writes of several statements that time out, or deadlock, in the midst: nothing half is seen."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from uuid import UUID

import pytest
from sqlalchemy import text

from pgcorpus.db.engine import Database
from pgcorpus.db.errors import StatementTimeout, TransactionConflict

TIMEOUT_SECONDS = 0.5
DEADLOCK_SECONDS = 1.0
"""The default of PostgreSQL's ``deadlock_timeout``."""

Record = Callable[[str, object], None]


@pytest.fixture
def talks(database: Database) -> list[UUID]:
    """Two conversations of one message each."""
    with database.unit_of_work() as work:
        made = [work.chat.create(f"talk {n}").id for n in range(2)]
        for talk in made:
            work.chat.append(talk, role="user", content="the first turn")
        work.commit()
    return made


def read_all(database: Database) -> dict[str, int]:
    """Count what a write of a message leaves."""
    tables = ("conversations", "messages", "jobs", "security_audit_log")
    with database.engine.connect() as connection:
        return {
            table: connection.scalar(text(f"SELECT count(*) FROM {table}")) or 0  # noqa: S608
            for table in tables
        }


def keep(database: Database, *talks: UUID, meet: Callable[[], object] = int) -> None:
    """Begin a conversation and append to others, one after the other, in one unit of work."""
    with database.unit_of_work() as work:
        work.chat.create("begun with the others")
        for number, talk in enumerate(talks):
            work.chat.append(talk, role="user", content="another turn")
            if number == 0:
                meet()
        work.commit()


@contextmanager
def locking(database: Database, talk: UUID) -> Iterator[None]:
    """Hold the lock of a conversation, as one who appends to it."""
    with database.unit_of_work() as work:
        work.chat.append(talk, role="user", content="never kept")
        yield


def test_a_statement_that_times_out_undoes_those_before_it(
    database: Database, talks: list[UUID], record_property: Record
) -> None:
    """Text, jobs and entries of the audit log; the same write succeeds when the lock is gone."""
    hasty = Database(replace(database.settings, statement_timeout_ms=int(TIMEOUT_SECONDS * 1000)))
    before = read_all(database)
    with locking(database, talks[1]):
        began = time.monotonic()
        with pytest.raises(StatementTimeout):
            keep(hasty, *talks)
        told = time.monotonic() - began
    record_property("told_after_seconds", told)

    assert read_all(database) == before
    assert TIMEOUT_SECONDS <= told < TIMEOUT_SECONDS + 5
    freed = time.monotonic()
    keep(hasty, *talks)
    record_property("recovery_seconds", time.monotonic() - freed)
    hasty.close()
    assert read_all(database)["messages"] == before["messages"] + 2


def test_of_two_that_deadlock_one_is_kept_and_one_is_told(
    database: Database, talks: list[UUID], record_property: Record
) -> None:
    """The one that is told leaves nothing, and succeeds when it is run again."""
    before = read_all(database)
    both_hold_one = threading.Barrier(2)
    told: dict[int, float] = {}
    kept: list[int] = []

    def append(number: int, meet: Callable[[], object] = both_hold_one.wait) -> None:
        order = talks if number == 0 else talks[::-1]
        began = time.monotonic()
        try:
            keep(database, *order, meet=meet)
            kept.append(number)
        except TransactionConflict:
            told[number] = time.monotonic() - began

    threads = [threading.Thread(target=append, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)

    assert not any(thread.is_alive() for thread in threads)
    assert (len(kept), len(told)) == (1, 1)
    assert max(told.values()) < DEADLOCK_SECONDS + 5
    record_property("told_after_seconds", max(told.values()))
    after_one = read_all(database)
    assert after_one["conversations"] == before["conversations"] + 1
    assert after_one["messages"] == before["messages"] + 2
    assert after_one["jobs"] == before["jobs"] + 2

    (victim,) = told
    began = time.monotonic()
    append(victim, meet=int)  # nobody is in its way
    record_property("recovery_seconds", time.monotonic() - began)
    assert sorted(kept) == [0, 1]
    assert read_all(database)["messages"] == before["messages"] + 4
