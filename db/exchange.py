"""Exchanges: statements that read, as one transaction in one round trip, below any unit of work."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, Final
from weakref import WeakSet

import psycopg
from greenlet import getcurrent
from sqlalchemy import Engine
from sqlalchemy.exc import InvalidatePoolError
from sqlalchemy.pool import ConnectionPoolEntry

from pgcorpus.db.search.driver import Sent, as_sqlalchemy, send
from pgcorpus.db.search.pipeline import Driver, Rows

FORGET: Final = (
    "SET SESSION AUTHORIZATION DEFAULT; RESET ROLE; RESET ALL; CLOSE ALL; UNLISTEN *;"
    " SELECT pg_advisory_unlock_all(); DISCARD TEMPORARY; DISCARD SEQUENCES"
)
"""DISCARD ALL but for the statements that psycopg has prepared and counts on."""

USED: Final = "used"
"""The key in a connection's ``info``: whether a unit of work has had it since it was reset."""

_reading: Final[WeakSet[Any]] = WeakSet()
"""Greenlets that are taking a connection for one exchange of a search.

Each thread has one, and each call of ``Database.run``. Several tasks may share one context."""


def exchange(
    engine: Engine,
    begin: Callable[[Driver], list[Sent]],
    statements: Sequence[Sent],
    end: Sequence[Sent] = (),
) -> list[Rows]:
    """Send statements that read, and wait for the server once.

    What is sent together is a transaction, with neither BEGIN nor COMMIT: each statement costs
    some 30 µs of Python.

    Args:
        engine: Of the pool that the connection is taken from.
        begin: Returns the statements that come first, and say in which scope the others read.
        statements: Ours alone: the next exchange takes the connection without a reset.
        end: Those that come last.

    Returns:
        The rows of each of *statements*.

    Raises:
        DBAPIError: One failed, and the transaction with it.
    """
    _reading.add(getcurrent())
    try:
        connection = engine.raw_connection()
    finally:
        _reading.discard(getcurrent())
    driver: Any = connection.driver_connection
    try:
        before = begin(driver)
        rows = send(driver, [*before, *statements, *end])
    except psycopg.Error as error:
        if gone := bool(driver.closed):
            connection.invalidate(error)
        raise as_sqlalchemy(error, statements[-1][0], engine.dialect, gone=gone) from error
    except (asyncio.CancelledError, KeyboardInterrupt) as error:
        connection.invalidate(error)  # answers may be on their way, and be taken for others
        raise
    finally:
        connection.close()
    return rows[len(before) : len(before) + len(statements)]


def forget_session(connection: Any, record: ConnectionPoolEntry, _proxy: object) -> None:
    """Let nothing that was SET for the session reach the next user of a pooled connection.

    A scope above all: ours are of the transaction alone, but any caller may run a SET. And what was
    read within one: a cursor WITH HOLD outlives its transaction, a temporary table even hides the
    table of its name. One round trip, which proves the connection as pool_pre_ping would; the pool
    is made anew when it is lost.
    """
    reading = getcurrent() in _reading
    if reading and not record.info.get(USED, True):
        return  # nothing was SET since: an exchange has no statements but ours
    try:
        connection.autocommit = True
        cursor = connection.cursor()
        cursor.execute(FORGET)
        cursor.close()
        connection.autocommit = reading
    except psycopg.OperationalError as error:
        raise InvalidatePoolError from error
    record.info[USED] = not reading
