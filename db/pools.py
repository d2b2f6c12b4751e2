"""Limits of a process: its connections, whichever pool opens them, and exchanges at once."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final
from weakref import WeakKeyDictionary

from sqlalchemy import Dialect, Engine, event
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import DisconnectionError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.pool import ConnectionPoolEntry
from sqlalchemy.util import await_only
from sqlalchemy.util.concurrency import in_greenlet

PAUSE_SECONDS: Final = 0.02
"""The wait between two looks for a place that another pool gives up."""


@dataclass(frozen=True)
class PoolState:
    """The use of the connections of a process, of all its pools together.

    Attributes:
        in_use: Connections that are lent, or being made.
        idle: Connections that wait in a pool.
        limit: How many there may be.
        seconds_since_return: Time for which none has come back, at most since the first was made.
    """

    in_use: int
    idle: int
    limit: int
    seconds_since_return: float

    @property
    def full(self) -> bool:
        """True if whoever wants a connection now must wait."""
        return self.in_use >= self.limit


Connect = Callable[[Dialect, Any, list[Any], dict[str, Any]], DBAPIConnection]


class Places:
    """The connections that all pools of a process may have open, together.

    Each pool keeps to the limit by itself; this keeps their sum to it. A pool that finds no place
    closes a connection that another keeps idle, and the other connects anew when it must.

    Args:
        limit: How many connections may be open.
        timeout_seconds: How long a new connection waits for a place.
    """

    def __init__(self, limit: int, timeout_seconds: float) -> None:
        self._limit = limit
        self._timeout_seconds = timeout_seconds
        self._lock = threading.Lock()
        self._connecting = 0
        self._returned: float | None = None
        # psycopg's connections that are open, and whether they are idle; the longest idle first
        self._idle: WeakKeyDictionary[Any, bool] = WeakKeyDictionary()

    def watch(self, engine: Engine, connect: Connect, pause: Callable[[float], object]) -> None:
        """Hold an engine to the limit.

        Args:
            engine: Before its first connection.
            connect: Makes a connection, as a listener to ``do_connect``.
            pause: Waits for a number of seconds.
        """

        def connect_in_turn(
            dialect: Dialect, record: object, args: list[Any], parameters: dict[str, Any]
        ) -> DBAPIConnection:
            self._take(pause)
            if self._returned is None:
                self._returned = time.monotonic()
            connection = None
            try:
                connection = connect(dialect, record, args, parameters)
            finally:
                with self._lock:
                    self._connecting -= 1
                    if connection is not None:
                        self._idle[dialect.get_driver_connection(connection)] = False
            return connection

        event.listen(engine, "do_connect", connect_in_turn)
        event.listen(engine, "checkin", self._check_in)
        event.listen(engine, "checkout", self._check_out)

    def _take(self, pause: Callable[[float], object]) -> None:
        """Take a place for a connection that is about to be made.

        Raises:
            PoolTimeout: All connections stayed in use.
        """
        deadline = time.monotonic() + self._timeout_seconds
        while not self._find_place():
            if time.monotonic() > deadline:
                raise PoolTimeout(f"all {self._limit} connections of the process are in use")
            pause(PAUSE_SECONDS)

    def _find_place(self) -> bool:
        with self._lock:
            if len(self._idle) + self._connecting >= self._limit:
                for lost in [each for each in self._idle if each.closed]:
                    del self._idle[lost]
            if len(self._idle) + self._connecting >= self._limit:
                unused = next((each for each, idle in self._idle.items() if idle), None)
                if unused is None:
                    return False
                del self._idle[unused]
                unused.pgconn.finish()  # libpq's, which asks for no event loop
            self._connecting += 1
            return True

    @property
    def state(self) -> PoolState:
        """The use of the connections now."""
        with self._lock:
            states = [idle for each, idle in self._idle.items() if not each.closed]
            waited = 0.0 if self._returned is None else time.monotonic() - self._returned
            return PoolState(
                in_use=states.count(False) + self._connecting,
                idle=states.count(True),
                limit=self._limit,
                seconds_since_return=waited,
            )

    def _check_in(self, _connection: object, record: ConnectionPoolEntry) -> None:
        self._returned = time.monotonic()
        driver = record.driver_connection  # None when it was lost
        with self._lock:
            if driver is not None and self._idle.pop(driver, None) is not None:
                self._idle[driver] = True

    def _check_out(self, _connection: object, record: ConnectionPoolEntry, _proxy: object) -> None:
        with self._lock:
            if record.driver_connection in self._idle:
                self._idle[record.driver_connection] = False
                return
        raise DisconnectionError("its place was given to another pool")


class Throttle:
    """A limit on how many threads or tasks do something at once; the others wait for their turn.

    A pool closes the connections that it opened beyond its size as soon as they come back. If all
    tasks that search took one, most would connect for one search alone.

    Args:
        most: How many at once: of threads, and of the tasks of each event loop.
        timeout_seconds: How long one waits for its turn.
    """

    def __init__(self, most: int, timeout_seconds: float) -> None:
        self._most = max(most, 1)
        self._timeout_seconds = timeout_seconds
        self._threads = threading.BoundedSemaphore(self._most)
        self._tasks: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.BoundedSemaphore] = (
            WeakKeyDictionary()
        )

    @contextmanager
    def take_turn(self) -> Iterator[None]:
        """Wait for a turn, and hold it.

        Raises:
            PoolTimeout: There was none in time.
        """
        turns = self._take_of_loop() if in_greenlet() else self._take_of_threads()
        try:
            yield
        finally:
            turns.release()

    def _take_of_threads(self) -> threading.BoundedSemaphore:
        if not self._threads.acquire(timeout=self._timeout_seconds):
            raise PoolTimeout(f"{self._most} threads are searching")
        return self._threads

    def _take_of_loop(self) -> asyncio.BoundedSemaphore:
        loop = asyncio.get_running_loop()
        turns = self._tasks.setdefault(loop, asyncio.BoundedSemaphore(self._most))
        await_only(self._wait_for(turns))
        return turns

    async def _wait_for(self, turns: asyncio.BoundedSemaphore) -> None:
        try:
            async with asyncio.timeout(self._timeout_seconds):
                await turns.acquire()
        except TimeoutError:
            raise PoolTimeout(f"{self._most} tasks are searching") from None
