"""Reads from standbys: from those that are near enough to the primary, and else from the primary.

How far each has come is asked by threads of their own, and never by a search, but for one that
must see a certain commit.
"""

from __future__ import annotations

import asyncio
import logging
import re
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Final, TypeVar

from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.util import await_only
from sqlalchemy.util.concurrency import in_greenlet

from pgcorpus.db.errors import (
    DatabaseExhausted,
    DatabaseNotReady,
    DatabaseUnavailable,
    DataLayerError,
    InvalidSearch,
    TransactionConflict,
    translate,
)
from pgcorpus.db.scope import Scope
from pgcorpus.db.search.driver import Sent
from pgcorpus.db.search.pipeline import Rows
from pgcorpus.db.search.ranker import Ranker
from pgcorpus.db.uow import UnitOfWork

if TYPE_CHECKING:
    from pgcorpus.db.engine import Database

logger = logging.getLogger(__name__)

T = TypeVar("T")

PROBE_SECONDS: Final = 1.0
"""The time between two looks at a server."""

FRESH_SECONDS: Final = 5.0
"""The age of a look from which on a standby is not used: it may have stalled since."""

WAIT_SECONDS: Final = 0.5
"""The longest wait for a standby to have a commit; then the primary answers."""

POLL_SECONDS: Final = 0.01

LEAVE_SECONDS: Final = 1.0
"""The longest wait, at the close, for a look that is under way."""

WRITTEN: Final = "SELECT CAST(pg_current_wal_insert_lsn() AS text) AS position"
"""A position that every commit before it precedes."""

FLUSHED: Final = "SELECT CAST(pg_current_wal_flush_lsn() AS text) AS position"
"""The position up to which the primary sends."""

REPLAYED: Final = """
    SELECT CASE WHEN pg_is_in_recovery() THEN CAST(pg_last_wal_replay_lsn() AS text) END AS position
"""

POSITION: Final = re.compile("([0-9A-F]{1,8})/([0-9A-F]{1,8})")

FARTHEST: Final = "FFFFFFFF/FFFFFFFF"
"""A token that no standby comes up to: the primary answers."""

ELSEWHERE: Final = (DatabaseUnavailable, DatabaseExhausted, DatabaseNotReady, TransactionConflict)
"""Failures of a standby that another server may not have. The last is a read that was in the way of
replay, the one before a schema that is not there yet."""

Failure = DBAPIError | DataLayerError | PoolTimeout


def read_position(token: str) -> int:
    """Return a position in the write-ahead log as a number.

    Raises:
        InvalidSearch: No commit gave this token.
    """
    found = POSITION.fullmatch(token) if isinstance(token, str) else None
    if found is None:
        raise InvalidSearch(
            f"after={token!r} is no token; pass on what commit() returned, as '16/B374D848'"
        )
    return int(found[1], 16) << 32 | int(found[2], 16)


def find_later(*tokens: str | None) -> str | None:
    """Return the token that is after all others, if there is any.

    Raises:
        InvalidSearch: One of them is no token.
    """
    return max(filter(None, tokens), key=read_position, default=None)


@dataclass(frozen=True, kw_only=True)
class StandbyState:
    """The state of a standby, as it was seen last.

    Attributes:
        name: Its host and port.
        lag_seconds: The seconds by which it is behind the primary, or None where that is not known.
        in_use: Whether searches are sent there.
        problem: Why it could not be asked, or None.
    """

    name: str
    lag_seconds: float | None
    in_use: bool
    problem: str | None


class Primary:
    """The positions that the primary had lately.

    Args:
        database: The primary, for probes alone.
        seconds: How far back they are known.
    """

    def __init__(self, database: Database, seconds: int) -> None:
        self.database = database
        self._positions: deque[tuple[float, int]] = deque(maxlen=int(seconds / PROBE_SECONDS) + 2)

    def look(self) -> None:
        """Note the present position. While the primary does not answer, the last one stands."""
        began = time.monotonic()
        try:
            position = _ask(self.database, FLUSHED)
        except (DBAPIError, DataLayerError, PoolTimeout):
            return
        if position is not None:
            self._positions.appendleft((began, position))

    def measure_lag(self, replayed: int) -> float | None:
        """Return the seconds by which a standby is behind, or None where it is more than known."""
        positions = tuple(self._positions)
        if positions and replayed >= positions[0][1]:
            return 0.0
        reached = next((at for at, position in positions if position <= replayed), None)
        return None if reached is None else time.monotonic() - reached

    def tell_bytes_behind(self, replayed: int) -> int:
        """Return how many bytes a standby has still to replay, as far as is known."""
        positions = tuple(self._positions)
        return max(0, positions[0][1] - replayed) if positions else 0


class Standby:
    """A standby, and how far it has come.

    Args:
        database: For searches.
        probe: The same server, for probes alone.
        primary: The server that it follows.
        max_lag_seconds: The lag up to which it is used.
    """

    def __init__(
        self, database: Database, probe: Database, primary: Primary, max_lag_seconds: int
    ) -> None:
        self.database = database
        self.probe = probe
        self.replayed = 0
        self.problem: str | None = "it was not asked yet"
        self._primary = primary
        self._max_lag_seconds = max_lag_seconds
        self._lag_seconds: float | None = None
        self._seen = 0.0
        self._told: bool | None = None

    def look(self) -> None:
        """See how far it has come, and log where that decides whether searches read from it."""
        self._look()
        near = self.is_near
        if near != self._told and (self._told is not None or not near):
            if near:
                logger.warning("searches read from the standby %s again", self.name)
            else:
                reason = self.problem or f"it is more than {self._max_lag_seconds} s behind"
                logger.warning("searches do not read from the standby %s: %s", self.name, reason)
        self._told = near

    def _look(self) -> None:
        try:
            replayed = _ask(self.probe, REPLAYED)
        except (DBAPIError, DataLayerError, PoolTimeout) as error:
            self.leave(error)
            return
        if replayed is None:
            self._lag_seconds = None
            self.problem = "it is no standby, but takes writes itself"
            return
        self.replayed, self._seen = replayed, time.monotonic()
        self._lag_seconds = self._primary.measure_lag(replayed)
        self.problem = None

    def leave(self, error: Failure) -> None:
        """Use it no more until it is seen to answer again."""
        self._lag_seconds = None
        self.problem = str(translate(error) or error).splitlines()[0]

    @property
    def is_near(self) -> bool:
        """True if searches may read there."""
        lag = self._lag_seconds
        return (
            lag is not None
            and lag <= self._max_lag_seconds
            and time.monotonic() - self._seen <= FRESH_SECONDS
        )

    @property
    def name(self) -> str:
        """The host and port."""
        url = self.database.url
        host, port = url.host or url.query.get("host"), url.port or url.query.get("port", "5432")
        return f"{host}:{port}"

    @property
    def state(self) -> StandbyState:
        """The state as it was seen last."""
        return StandbyState(
            name=self.name,
            lag_seconds=self._lag_seconds,
            in_use=self.is_near,
            problem=self.problem,
        )

    def tell_bytes_behind(self) -> int:
        """Return how many bytes it has still to replay, as far as is known."""
        return self._primary.tell_bytes_behind(self.replayed)

    def wait_for(self, position: int) -> bool:
        """Wait until it has come up to a position; return whether it has in time."""
        deadline = time.monotonic() + WAIT_SECONDS
        while self.replayed < position:
            if time.monotonic() > deadline:
                return False
            try:
                replayed = _ask(self.database, REPLAYED)
            except (DBAPIError, DataLayerError, PoolTimeout) as error:
                self.leave(error)
                return False
            if replayed is None:
                return False
            self.replayed = max(self.replayed, replayed)
            if replayed < position:
                _pause()
        return True


class Standbys:
    """The standbys of a database, and threads that look at each.

    The threads begin with the first search, and do not keep it alive.

    Args:
        primary: The server that they follow.
        standbys: The standbys.
    """

    def __init__(self, primary: Primary, standbys: Sequence[Standby]) -> None:
        self.primary = primary
        self.all = tuple(standbys)
        self._turns = count()
        self._closed = threading.Event()
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []
        weakref.finalize(self, self._closed.set)

    def choose(self, after: str | None) -> list[Standby]:
        """Return the standbys that a search may read from, the one whose turn it is first.

        Args:
            after: A commit that it must see. Where none is that far, one of them is waited for.

        Raises:
            InvalidSearch: That is no token.
        """
        position = 0 if after is None else read_position(after)
        if not self._threads:
            self._start()
        near = [each for each in self.all if each.is_near]
        if not near or after == FARTHEST:
            return []
        turn = next(self._turns) % len(near)
        near = [*near[turn:], *near[:turn]]
        reached = [each for each in near if each.replayed >= position]
        return reached or (near[:1] if near[0].wait_for(position) else [])

    @property
    def is_watched(self) -> bool:
        """True if a search has been made, and each is looked at since."""
        return bool(self._threads)

    def look(self) -> None:
        """Look at every server now."""
        self.primary.look()
        for each in self.all:
            each.look()

    def close(self) -> None:
        """End the threads, and close all connections."""
        self._closed.set()
        for thread in self._threads:
            thread.join(LEAVE_SECONDS)
        self.primary.database.close()
        for each in self.all:
            each.probe.close()
            each.database.close()

    async def aclose(self) -> None:
        """Close the connections for asyncio."""
        for each in self.all:
            await each.database.aclose()

    def _start(self) -> None:
        with self._lock:
            if self._threads:
                return
            servers: list[Primary | Standby] = [self.primary, *self.all]
            threads = [
                threading.Thread(
                    target=_watch,
                    args=(weakref.ref(each), self._closed),
                    name="standbys",
                    daemon=True,
                )
                for each in servers
            ]
            for thread in threads:
                thread.start()
            self._threads = threads


class Reader:
    """Reads for one caller: from a standby, and elsewhere when that fails.

    Args:
        standbys: Those to be tried, in this order.
        primary: The database that is asked at last.
    """

    def __init__(self, standbys: Sequence[Standby], primary: Database) -> None:
        self._standbys = list(standbys)
        self._primary = primary

    def ranker(self, scope: Scope | None = None) -> Ranker:
        """Return what ranks passages; see ``Database.ranker``."""
        ranker = self._server.ranker(scope)
        if self._standbys:
            ranker.exchange = partial(self._exchange, scope)
        return ranker

    def read(self, function: Callable[[UnitOfWork], T], scope: Scope | None = None) -> T:
        """Call a function with a unit of work. It only reads, and may be called again."""

        def call(server: Database) -> T:
            with server.unit_of_work(scope) as work:
                result = function(work)
                work.session.commit()  # a rollback would make psycopg forget prepared statements
            return result

        return self._try(call)

    @property
    def _server(self) -> Database:
        return self._standbys[0].database if self._standbys else self._primary

    def _exchange(
        self,
        scope: Scope | None,
        statements: Sequence[Sent],
        settings: Mapping[str, str] | None = None,
    ) -> list[Rows]:
        return self._try(lambda server: server.ranker(scope).exchange(statements, settings))

    def _try(self, attempt: Callable[[Database], T]) -> T:
        """Try a read on each server until one can."""
        while self._standbys:
            standby = self._standbys[0]
            try:
                return attempt(standby.database)
            except (DBAPIError, DataLayerError) as error:
                failure = translate(error) or error
                if not isinstance(failure, ELSEWHERE):
                    raise
                if not isinstance(failure, TransactionConflict):
                    standby.leave(failure)
                logger.debug("read elsewhere than on %s: %s", standby.name, failure)
            self._standbys.pop(0)
        return attempt(self._primary)


def _ask(database: Database, statement: str) -> int | None:
    """Return a server's position, or None where it has none of this kind."""
    ((row,),) = database.ranker().exchange([(statement, None)])
    position: str | None = row["position"]
    return None if position is None else read_position(position)


def _pause() -> None:
    if in_greenlet():
        await_only(asyncio.sleep(POLL_SECONDS))
    else:
        time.sleep(POLL_SECONDS)


def _watch(watched: weakref.ref[Primary | Standby], closed: threading.Event) -> None:
    """Look at a server until nobody needs it any more."""
    while not closed.is_set() and (server := watched()) is not None:
        began = time.monotonic()
        server.look()
        del server
        closed.wait(max(0.0, began + PROBE_SECONDS - time.monotonic()))
