"""Connections with a limit on every wait.

An answer must come in time, and attempts are repeated.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import os
import random
import re
import select
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import psycopg
from psycopg.conninfo import make_conninfo
from psycopg.errors import ConnectionTimeout
from psycopg.pq import Conninfo, PGconn, Ping, PollingStatus, TransactionStatus, abc
from sqlalchemy import Dialect
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.util import await_only

from pgcorpus.db.errors import DatabaseUnavailable, LoginRefused, NoAnswer, TooManyConnections
from pgcorpus.db.settings import Settings

T = TypeVar("T")

FIRST_PAUSE_SECONDS: Final = 0.1
LONGEST_PAUSE_SECONDS: Final = 2.0
SHORTEST_ATTEMPT_SECONDS: Final = 2
"""The least time that psycopg gives to an attempt."""

QUIET_SECONDS: Final = 2.0
"""The wait after which a person is told what is waited for."""

ANSWER_MARGIN_SECONDS: Final = 5.0
"""The server ends a statement after the statement timeout, and its word needs time to arrive."""

POLL_SECONDS: Final = 0.1
PING_SECONDS: Final = 3

FULL: Final = "53"
"""The class of SQLSTATEs for a server that has no connection, memory or disk left."""

AWAY: Final = ("57P", "08")
"""SQLSTATEs of starting up, shutting down and recovery, and of a pooler without a server. These
pass by themselves."""

CHECK: Final = "Check DATABASE_URL or the POSTGRES_* variables."

POOLER: Final = "startup parameter"
"""Messages with which poolers refuse a connection. They have no SQLSTATE of their own, and are in
English alone."""

POOLER_HINT: Final = (
    "What answers is a transaction pooler, such as PgBouncer: set DB_POOLER=transaction."
)

SQLSTATE: Final = re.compile(r'\tErrorResponse\t.*? C "([0-9A-Z]{5})"')


class _AnswersInTime:
    """A connection that waits for the server's next answer no longer than it may.

    The server ends a statement by its own timeout. Where not even that word comes, the peer is
    gone although its socket stays (a proxy that stalls, a machine that hangs), and TCP sees
    nothing wrong: nothing is unacknowledged. The connection is closed then.

    Attributes:
        answer_seconds: Longest silence within a statement, or None for ever.
        patient: Whether the transaction has lifted the statement timeout. It ends with it.
    """

    answer_seconds: float | None = None
    patient: bool = False
    pgconn: abc.PGconn

    def _limit_silence(self, waiting: Generator[Any, Any, T]) -> Generator[Any, Any, T]:
        if self.pgconn.transaction_status == TransactionStatus.IDLE:
            self.patient = False
        if self.answer_seconds is None or self.patient:
            return waiting
        return self._watch_silence(waiting, self.answer_seconds)

    def _watch_silence(
        self, waiting: Generator[Any, Any, T], seconds: float
    ) -> Generator[Any, Any, T]:
        deadline = time.monotonic() + seconds
        try:
            state = next(waiting)
            while True:
                if ready := (yield state):
                    deadline = time.monotonic() + seconds
                elif time.monotonic() > deadline:
                    self.pgconn.finish()
                    raise NoAnswer(seconds)
                state = waiting.send(ready)
        except StopIteration as end:
            result: T = end.value
            return result


class Connection(_AnswersInTime, psycopg.Connection[Any]):
    """psycopg's connection, with an end to each wait."""

    def wait(self, gen: Any, *how: Any, **named: Any) -> Any:
        """Wait for the driver's *gen*; a caller that names a time limits the wait by that alone."""
        return super().wait(gen if how or named else self._limit_silence(gen), *how, **named)


class AsyncConnection(_AnswersInTime, psycopg.AsyncConnection[Any]):
    """psycopg's connection for asyncio, with an end to each wait."""

    async def wait(self, gen: Any, *how: Any, **named: Any) -> Any:
        """Wait for the driver's *gen*; a caller that names a time limits the wait by that alone."""
        return await super().wait(gen if how or named else self._limit_silence(gen), *how, **named)


def connector(
    settings: Settings,
    run: Callable[..., Any],
    tell: Callable[[str], None],
    *,
    statement_timeout_ms: int,
) -> Callable[..., DBAPIConnection]:
    """Build a ``do_connect`` that repeats attempts while the server does not answer, or is full.

    A server that answers and refuses (a wrong password, an unknown database) refuses for good.
    libpq's ping and SQLSTATE tell the two apart, and no message but ``POOLER``.

    Args:
        settings: How long one attempt takes, and all of them.
        run: Calls a function that blocks: ``interruptibly``, or ``awaiting`` in a greenlet.
        tell: Called with what is waited for, once until a connection is there again.
        statement_timeout_ms: The connections' own; 0 is none, and then answers may take for ever.
    """
    waits = _Waits(tell)
    answer_seconds = statement_timeout_ms / 1000 + ANSWER_MARGIN_SECONDS

    def attempt(dialect: Dialect, args: list[Any], parameters: dict[str, Any]) -> DBAPIConnection:
        connection: Any
        if dialect.is_async:  # in a greenlet, which awaits it
            connection = dialect.connect(
                *args, **parameters, async_creator_fn=AsyncConnection.connect
            )
        else:
            connection = run(Connection.connect, *args, **parameters)
        driver = getattr(connection, "driver_connection", connection)
        driver.answer_seconds = answer_seconds if statement_timeout_ms else None
        made: DBAPIConnection = connection
        return made

    def connect(
        dialect: Dialect, _record: object, args: list[Any], parameters: dict[str, Any]
    ) -> DBAPIConnection:
        began = time.monotonic()
        with waits.announce(_place(parameters)):
            for tries in itertools.count():
                left = began + settings.connect_retry_seconds - time.monotonic()
                try:
                    return attempt(dialect, args, _shorten_timeout(parameters, settings, left))
                except psycopg.OperationalError as error:
                    away = isinstance(error, ConnectionTimeout)
                    said = Outcome(str(error)) if away else run(_diagnose, parameters, str(error))
                if said.connected and not tries:  # it came up after the attempt
                    continue
                if said.refused:
                    hint = POOLER_HINT if POOLER in said.message else CHECK
                    raise LoginRefused(f"{said.message}\n{hint}")
                pause = min(FIRST_PAUSE_SECONDS * 2**tries, LONGEST_PAUSE_SECONDS)
                pause *= random.uniform(0.5, 1.0)  # noqa: S311 - jitter, not a secret
                if time.monotonic() - began + pause > settings.connect_retry_seconds:
                    raise _describe_failure(said, settings.connect_retry_seconds)
                run(time.sleep, pause)
        raise AssertionError  # count() does not end

    return connect


@dataclass(frozen=True, slots=True)
class Outcome:
    """The outcome of an attempt to connect.

    Attributes:
        message: Its words, or libpq's.
        sqlstate: Of the error with which it refused, if it gave one.
        connected: Whether it let us in.
        refused: Whether it will refuse the next attempt, too.
    """

    message: str
    sqlstate: str | None = None
    connected: bool = False
    refused: bool = False


def _describe_failure(said: Outcome, seconds: int) -> DatabaseUnavailable:
    if said.sqlstate is not None and said.sqlstate.startswith(FULL):
        return TooManyConnections(
            f"{said.message}\nEvery connection that the server, the database or the role may have "
            f"is in use, for {seconds} s by now (DB_CONNECT_RETRY). Lower DB_POOL_SIZE, "
            "DB_MAX_OVERFLOW or the number of processes, or raise max_connections or the role's "
            "CONNECTION LIMIT."
        )
    return DatabaseUnavailable(
        f"{said.message}\nCheck DATABASE_URL or the POSTGRES_* variables; gave up after "
        f"{seconds} s (DB_CONNECT_RETRY)."
    )


def _shorten_timeout(parameters: dict[str, Any], settings: Settings, left: float) -> dict[str, Any]:
    """Shorten the timeout of an attempt to the time that is left for all of them."""
    if not settings.connect_retry_seconds:
        return parameters
    longest = max(SHORTEST_ATTEMPT_SECONDS, math.ceil(left))
    try:
        given = int(parameters["connect_timeout"])
    except ValueError:  # the address's own: psycopg says what is wrong with it
        return parameters
    return parameters | {"connect_timeout": min(given, longest) if given > 0 else longest}


def _diagnose(parameters: Mapping[str, Any], message: str) -> Outcome:
    """Find out why an attempt failed.

    A refusal is believed only from a server that answered before.
    """
    if ping(parameters) is not Ping.OK:
        return Outcome(message)
    return _probe(parameters)


def ping(parameters: Mapping[str, Any]) -> Ping:
    """Ask whether a server answers there, without logging in."""
    known = {k: v for k, v in parameters.items() if k in {"host", "port", "dbname", "user"}}
    conninfo = make_conninfo("", **known, connect_timeout=PING_SECONDS)
    return Ping(PGconn.ping(conninfo.encode()))


def _probe(parameters: Mapping[str, Any]) -> Outcome:
    """Try to connect, and read the SQLSTATE of the server's refusal.

    libpq keeps the SQLSTATE of a failed connection to itself, and the message is in the server's
    language: it is read from libpq's trace of the protocol, in memory, where that can be had.
    """
    options = {each.keyword.decode() for each in Conninfo.get_defaults()}
    conninfo = make_conninfo("", **{k: v for k, v in parameters.items() if k in options})
    deadline = time.monotonic() + PING_SECONDS
    # libpq's trace and files in memory are both Linux's.
    trace = os.memfd_create("pgcorpus") if hasattr(os, "memfd_create") else None
    connection = PGconn.connect_start(conninfo.encode())
    try:
        if trace is not None:
            connection.trace(trace)
        while (state := connection.connect_poll()) not in {PollingStatus.OK, PollingStatus.FAILED}:
            if time.monotonic() > deadline:
                return Outcome("the server did not complete the login")
            reads = state == PollingStatus.READING
            ready = [connection.socket]
            select.select(ready if reads else [], [] if reads else ready, [], POLL_SECONDS)
        message = connection.get_error_message().strip()
        if trace is not None:
            connection.untrace()  # writes what is buffered
    finally:
        connection.finish()
        told = _read(trace)
    if state == PollingStatus.OK:
        return Outcome(message, connected=True)
    found = SQLSTATE.findall(told)
    sqlstate = found[-1] if found else None
    if sqlstate is None:
        # libpq itself refuses: no TLS, or a standby where a primary is wanted. The latter passes.
        passes = parameters.get("target_session_attrs", "any") != "any"
    else:
        passes = sqlstate.startswith((FULL, *AWAY)) and POOLER not in message
    return Outcome(message, sqlstate, refused=not passes)


def _read(trace: int | None) -> str:
    if trace is None:
        return ""
    with os.fdopen(trace, "rb") as file:
        file.seek(0)
        return file.read().decode(errors="replace")


def _place(parameters: Mapping[str, Any]) -> str:
    hosts = str(parameters.get("host") or parameters.get("hostaddr") or "localhost").split(",")
    ports = str(parameters.get("port") or 5432).split(",")
    return ", ".join(map(":".join, zip(hosts, itertools.cycle(ports), strict=False)))


class _Waits:
    """Announces a wait for the server, once until a connection is there again."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        self._tell = tell
        self._told = False
        self._connected = 0.0

    @contextmanager
    def announce(self, place: str) -> Iterator[None]:
        """Announce after a moment that *place* is waited for, unless the wait ends before."""
        began = time.monotonic()

        def tell() -> None:
            if not self._told and self._connected < began:
                self._told = True
                self._tell(f"waiting for {place} …")

        timer = threading.Timer(QUIET_SECONDS, tell)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()
        self._told = False
        self._connected = time.monotonic()


def interruptibly(call: Callable[..., T], *args: Any, **named: Any) -> T:
    """Call a function so that Ctrl-C ends the wait for it at once.

    A look-up of a name and libpq's ping run in C, where no signal is heard: in the main thread,
    the only one that hears them, another thread makes the call.
    """
    if threading.current_thread() is not threading.main_thread():
        return call(*args, **named)
    future = _start_thread(call, *args, **named)
    try:
        return future.result()
    except BaseException:
        future.cancel()
        raise


def awaiting(call: Callable[..., T], *args: Any) -> T:
    """Await a blocking function from a greenlet; a cancelled call does not hold up the loop."""
    result: T = await_only(asyncio.wrap_future(_start_thread(call, *args)))
    return result


def _start_thread(call: Callable[..., T], *args: Any, **named: Any) -> Future[T]:
    """Call a function in a daemon thread, for which no process waits when it ends."""
    future: Future[T] = Future()

    def work() -> None:
        try:
            result = call(*args, **named)
        except BaseException as error:  # noqa: BLE001 - the waiting thread gets it
            if future.set_running_or_notify_cancel():
                future.set_exception(error)
        else:
            if future.set_running_or_notify_cancel():
                future.set_result(result)
            elif isinstance(result, psycopg.Connection):
                result.close()  # no call waits for it any more

    threading.Thread(target=work, daemon=True, name="connect").start()
    return future
