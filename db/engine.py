"""The database: engines with the specification's pool, retry and TLS."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, Final, ParamSpec, Protocol, Self, TypeVar
from weakref import WeakSet

import psycopg
from pgvector.psycopg import register_vector, register_vector_async
from psycopg import sql
from psycopg.errors import ReadOnlySqlTransaction
from sqlalchemy import (
    URL,
    ColumnElement,
    Connection,
    Engine,
    ExceptionContext,
    NullPool,
    Pool,
    create_engine,
    event,
    func,
    select,
)
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.orm import sessionmaker
from sqlalchemy.util import await_only, greenlet_spawn
from sqlalchemy.util.concurrency import in_greenlet

from pgcorpus.db.base import lock_key
from pgcorpus.db.choices import APPLICATION_ROLE
from pgcorpus.db.connections import awaiting, connector, interruptibly
from pgcorpus.db.embedded import EmbeddedServer
from pgcorpus.db.errors import (
    DataLayerError,
    NoAnswer,
    SettingsError,
    TransactionConflict,
    translate_errors,
)
from pgcorpus.db.exchange import exchange, forget_session
from pgcorpus.db.pools import Places, PoolState, Throttle
from pgcorpus.db.repositories.search import KNOWN
from pgcorpus.db.scope import SETTINGS, STEPPED_DOWN, Scope, refuse_unsafe, step_down
from pgcorpus.db.search.driver import Sent, make_settings
from pgcorpus.db.search.known import KnownCorpora
from pgcorpus.db.search.pipeline import Driver, Rows
from pgcorpus.db.search.ranker import Ranker
from pgcorpus.db.settings import Settings
from pgcorpus.db.standbys import (
    FARTHEST,
    WRITTEN,
    Primary,
    Reader,
    Standby,
    Standbys,
    read_position,
)
from pgcorpus.db.tracing import span_exchange, watch_statements
from pgcorpus.db.turns import InTurn
from pgcorpus.db.uow import AsyncUnitOfWork, UnitOfWork, WorkSession

logger = logging.getLogger(__name__)

HIDE_PARAMETERS: Final = True
"""Errors go to logs and into ``jobs.last_error``: the texts of messages must not go with them."""

WITH_TEMPORARY_LAST: Final = (
    "concat_ws(', ', nullif(current_setting('search_path'), ''), 'pg_temp')"
)

OF_OTHERS: Final = (
    "SET LOCAL role TO DEFAULT",
    "SET LOCAL search_path TO DEFAULT",
    # A temporary table would hide the table of its name.
    f"SELECT set_config('search_path', {WITH_TEMPORARY_LAST}, true)",
    *(f"SET LOCAL {setting} = ''" for setting in (*SETTINGS, "app.actor", "app.identity")),
)
"""Statements that undo what other clients left in a session that a transaction pooler shares."""

STEP_DOWN: Final = f"SELECT set_config('role', {STEPPED_DOWN}, true)"

POLL_SECONDS: Final = 0.2
"""The wait between two tries to take a lock."""

PROBE_CONNECT_SECONDS: Final = 2
"""The time for a connection to a standby: the least that psycopg gives to an attempt."""

PROBE_MS: Final = 1000
"""The time after which the server ends a probe's statement."""

WRITABLE: Final = ("read-write", "primary")
"""Values of ``target_session_attrs`` that ask for the server that takes writes."""

P = ParamSpec("P")
T = TypeVar("T")


class made_once(cached_property[T]):  # noqa: N801 - as cached_property is written
    """A ``cached_property`` with a lock, which Python 3.12 took away.

    Two threads make no second value.
    """

    if not TYPE_CHECKING:  # its type is that of cached_property

        def __get__(self, instance: Any, owner: type[Any] | None = None) -> Any:
            if instance is None:
                return self
            with instance._making:  # noqa: SLF001 - the lock of the object whose property it is
                return super().__get__(instance, owner)


class Buffer(Protocol):
    """A buffer of notes that a service writes later."""

    def flush(self) -> object:
        """Write the notes now."""


class Database:
    """A database and the pools of connections to it.

    Args:
        settings: Where it is and how to connect. Without a ``database_url`` the embedded server is
            started on first use; it is made by ``make_server`` alone.

    Attributes:
        on_wait: Called with a sentence when a connection is waited for; by default it is logged.
        observers: Called after each search; see ``pgcorpus.services.search.observer``.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.on_wait: Callable[[str], None] = logger.warning
        self.observers: tuple[Any, ...] = ()
        self._safe = False
        self._known = KnownCorpora()
        self._making = threading.RLock()
        self._buffers: WeakSet[Buffer] = WeakSet()

    @classmethod
    def from_env(cls) -> Self:
        """Return the database that the environment names, or the embedded one."""
        return cls(Settings.from_env())

    @made_once
    def url(self) -> URL:
        """The address of the database. Starts the embedded server when there is no other.

        Raises:
            SettingsError: There is no other, and the embedded server was never made.
        """
        if self.settings.database_url is not None:
            return self.settings.database_url
        server = EmbeddedServer(self.settings.home)
        if not server.exists:
            raise SettingsError(
                "there is no database: DATABASE_URL (or POSTGRES_HOST) is not set, and no embedded "
                f"server was made in {server.home}. Set DATABASE_URL, or make a server here with: "
                "pgcorpus server start (then: pgcorpus db upgrade), or with the samples in it: "
                "pgcorpus demo"
            )
        if not server.status().running:
            logger.info("starting the embedded server in %s", server.home)
        return server.start()

    def make_server(self) -> bool:
        """Make and start the embedded server where no other is named and none was made.

        Returns:
            Whether it was made now.
        """
        server = EmbeddedServer(self.settings.home)
        if self.settings.database_url is not None or server.exists:
            return False
        logger.info("making an embedded server in %s", server.home)
        server.start()
        return True

    @made_once
    def engine(self) -> Engine:
        """The pool of connections."""
        timeout_ms = self.settings.statement_timeout_ms
        engine = create_engine(self.url, **self._pool(), **self._options(self.url, timeout_ms))
        event.listen(engine, "connect", _register_vector)
        connect = connector(
            self.settings, interruptibly, self._waits, statement_timeout_ms=timeout_ms
        )
        self._places.watch(engine, connect, time.sleep)
        self._keep_apart(engine, timeout_ms)
        return engine

    @made_once
    def async_engine(self) -> AsyncEngine:
        """The pool of connections for asyncio. It belongs to the event loop that first uses it."""
        timeout_ms = self.settings.statement_timeout_ms
        engine = create_async_engine(
            self.url, **self._pool(), **self._options(self.url, timeout_ms)
        )
        event.listen(engine.sync_engine, "connect", _register_vector_async)
        connect = connector(self.settings, awaiting, self._waits, statement_timeout_ms=timeout_ms)
        self._places.watch(
            engine.sync_engine, connect, lambda seconds: await_only(asyncio.sleep(seconds))
        )
        self._keep_apart(engine.sync_engine, timeout_ms)
        return engine

    def schema_engine(self) -> Engine:
        """Make an engine for administration: no pool, no pooler, no statement timeout.

        Raises:
            SettingsError: A transaction pooler is all that is known of the database.
        """
        return self._session_engine(statement_timeout_ms=0)

    @property
    def has_sessions(self) -> bool:
        """True if a connection past any transaction pooler can be made."""
        return not self.settings.is_pooled or self.settings.admin_url is not None

    def _session_engine(self, statement_timeout_ms: int) -> Engine:
        if not self.has_sessions:
            raise SettingsError(
                "this needs a session of the server, which DB_POOLER=transaction does not give; "
                "set DATABASE_ADMIN_URL to the address of the server itself, past the pooler"
            )
        return self._engine_aside(statement_timeout_ms)

    def _engine_aside(self, statement_timeout_ms: int) -> Engine:
        """Make an engine outside of the pools, whose connections a process may have used up."""
        url = self.settings.admin_url or self.url
        engine = create_engine(url, poolclass=NullPool, **self._options(url, statement_timeout_ms))
        event.listen(
            engine,
            "do_connect",
            connector(
                self.settings,
                interruptibly,
                self._waits,
                statement_timeout_ms=statement_timeout_ms,
            ),
        )
        if self._is_pooled(url):
            self._keep_apart(engine, statement_timeout_ms)
        return engine

    def unit_of_work(self, scope: Scope | None = None, *, actor: str | None = None) -> UnitOfWork:
        """Return a transaction with its repositories; kept only by ``commit()``.

        Within ``run`` its statements are awaited.

        Args:
            scope: Whose memories it reads and writes. Its first statement raises ``UnsafeRole``
                when the login passes over row security.
            actor: Who is behind it: the audit log has it beside the login.
        """
        sessions = self._async_sessions if in_greenlet() else self._sessions
        return self._make_work(sessions, scope, actor)

    def async_unit_of_work(
        self, scope: Scope | None = None, *, actor: str | None = None
    ) -> AsyncUnitOfWork:
        """Return a unit of work for asyncio."""
        return AsyncUnitOfWork(self._make_work(self._async_sessions, scope, actor))

    def _make_work(
        self, sessions: Callable[[], WorkSession], scope: Scope | None, actor: str | None
    ) -> UnitOfWork:
        return UnitOfWork(sessions, scope=scope, actor=actor, guard=self._guard, token=self.token)

    def reader(self, *, after: str | None = None) -> Reader:
        """Return what one search, or another read, is done with: a standby, or this database.

        Args:
            after: The token of a commit that the read must see: a standby that has not come so far
                is waited for, at most half a second, and then this database is asked.

        Raises:
            InvalidSearch: That is no token.
        """
        if not self.settings.read_urls:
            if after is not None:
                read_position(after)
            return Reader((), self)
        return Reader(self.standbys.choose(after), self)

    def token(self) -> str | None:
        """Return a token for ``after`` of searches that must see what was committed until now.

        Returns:
            A short text that fits into a header of HTTP; None where ``DATABASE_READ_URLS`` is not
            set, as searches then see every commit. ``UnitOfWork.commit`` returns the same.
        """
        if not self.settings.read_urls:
            return None
        try:
            ((row,),) = self._exchange(None, [(WRITTEN, None)])
        except (DBAPIError, DataLayerError, PoolTimeout):
            return FARTHEST  # what was committed is: a search asks the primary for it
        position: str = row["position"]
        return position

    @made_once
    def standbys(self) -> Standbys:
        """The standbys of ``DATABASE_READ_URLS``."""
        settings = self.settings
        longest = settings.read_max_lag_seconds
        primary = Primary(_make_probe(replace(settings, read_urls=())), longest)

        def make(url: URL) -> Standby:
            seconds = min(settings.connect_timeout_seconds, PROBE_CONNECT_SECONDS)
            there = replace(
                settings,
                database_url=url,
                admin_url=None,
                read_urls=(),
                ssl_mode=str(url.query.get("sslmode", settings.ssl_mode)),
                # Another server answers where this one does not.
                connect_timeout_seconds=seconds,
                connect_retry_seconds=0,
            )
            return Standby(_quiet(Database(there)), _make_probe(there), primary, longest)

        return Standbys(primary, [make(url) for url in settings.read_urls])

    def ranker(self, scope: Scope | None = None) -> Ranker:
        """Return what ranks passages below any unit of work: each exchange is a transaction.

        Args:
            scope: Whose passages are searched, too. The first exchange raises ``UnsafeRole`` when
                the login passes over row security.
        """
        return Ranker(partial(self._exchange, scope), scope, self._known)

    def _exchange(
        self,
        scope: Scope | None,
        statements: Sequence[Sent],
        settings: Mapping[str, str] | None = None,
    ) -> list[Rows]:
        """Run statements that read in a transaction of their own, and one round trip.

        A connection that was lost while the pool kept it is replaced, as nothing is lost with it.

        Raises:
            DBAPIError: A statement failed.
        """
        if scope is not None and self.settings.database_url is not None and not self._safe:
            with self.unit_of_work(scope) as work:
                work.session.connection()  # the guard looks at the login
        engine = self.async_engine.sync_engine if in_greenlet() else self.engine
        begin = partial(self._begin_reading, scope, settings or {})
        end: list[Sent] = [("COMMIT", None)] if self.settings.is_pooled else []
        with span_exchange(engine, statements), self._throttle.take_turn():
            try:
                return exchange(engine, begin, statements, end)
            except DBAPIError as error:
                if not error.connection_invalidated or isinstance(error.orig, NoAnswer):
                    raise
            _replace_pool(engine).dispose()
            return exchange(engine, begin, statements, end)

    def _begin_reading(
        self, scope: Scope | None, settings: Mapping[str, str], driver: Driver
    ) -> list[Sent]:
        """Return the statements that begin a transaction, with its settings and its scope."""
        begin: list[Sent] = []
        if self.settings.is_pooled:  # SET LOCAL asks for a BEGIN
            of_pooled = _list_settings_of_pooled(self.settings.statement_timeout_ms)
            begin += [(each, None) for each in ("BEGIN", *of_pooled)]
        settings = {**settings} if scope is None else {**settings, **scope.settings}
        if self.settings.database_url is None:
            if scope is not None:
                settings["role"] = APPLICATION_ROLE
            elif driver.info.parameter_status("is_superuser") == "on":
                begin.append((STEP_DOWN, None))
        return [*begin, *make_settings(settings)]

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call a synchronous *function* from asyncio: what it waits for here is awaited.

        That is the statements of each ``unit_of_work`` that it opens, on connections of the pool
        for asyncio, and what it hands to ``call``. All else of it runs in the event loop's thread,
        a few milliseconds at a time: see ``InTurn``.
        """
        return await InTurn(greenlet_spawn(partial(function, *args, **kwargs)))

    @staticmethod
    def call(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call a *function* that takes long, as a model does; within ``run``, in another thread."""
        if not in_greenlet():
            return function(*args, **kwargs)
        return await_only(asyncio.to_thread(function, *args, **kwargs))

    @contextmanager
    def autocommitting(self) -> Iterator[UnitOfWork]:
        """Work without a transaction and a statement timeout, on a connection of its own.

        For statements that build beside running work, as CREATE INDEX CONCURRENTLY does.
        """
        connection = self.schema_engine().connect()
        with (
            connection.execution_options(isolation_level="AUTOCOMMIT"),
            # Bound to the one connection: locks are that connection's.
            UnitOfWork(_sessions_of(connection)) as work,
        ):
            yield work

    @contextmanager
    def snapshot(self) -> Iterator[UnitOfWork]:
        """Read in one snapshot for as long as it takes, as the login, past any pooler."""
        connection = self.schema_engine().connect()
        with (
            connection.execution_options(isolation_level="REPEATABLE READ"),
            UnitOfWork(_sessions_of(connection)) as work,
        ):
            yield work

    def beside(self, name: str) -> Database:
        """Return another database of the same server, with the same settings and past any pooler.

        Timings of searches in it are not kept.
        """
        url = (self.settings.admin_url or self.url).set(database=name)
        return Database(
            replace(
                self.settings,
                database_url=url,
                admin_url=None,
                read_urls=(),
                pooler="none",
                metrics_enabled=False,
            )
        )

    @contextmanager
    def exclusively(self, doing: str, *, wait: bool = False) -> Iterator[None]:
        """Hold a lock that one process at a time has, outside of any transaction.

        Args:
            doing: The name of the work; the same names exclude each other.
            wait: Wait for the lock rather than raise. It is polled: a statement that waits for a
                lock holds a snapshot, for which any CREATE INDEX CONCURRENTLY waits.

        Raises:
            TransactionConflict: Another process is doing it.
        """
        # A transaction's lock, which a transaction pooler carries, too. It has no snapshot.
        lock = select(
            func.pg_try_advisory_xact_lock(lock_key(doing)),
            func.set_config("idle_in_transaction_session_timeout", "0", True),
        )
        # Outside of the pool, which may be of one connection, for what is done.
        with translate_errors(), self._engine_aside(statement_timeout_ms=0).connect() as connection:
            while not connection.scalar(lock):
                connection.rollback()
                if not wait:
                    raise TransactionConflict(
                        f"another process is {doing}; wait until it has ended"
                    )
                time.sleep(POLL_SECONDS)
            try:
                yield
            finally:
                with suppress(DBAPIError):  # the connection is gone, and its lock with it
                    connection.rollback()

    @contextmanager
    def listening(self, channel: str) -> Iterator[Callable[[float], bool]]:
        """Provide a wait for notifications, on a connection that serves nothing else.

        Args:
            channel: An identifier, as ``NOTIFY`` has it.

        Yields:
            A function that waits for so many seconds at most and says whether one came. It raises
            ``DatabaseUnavailable`` when the connection is lost.

        Raises:
            SettingsError: A transaction pooler is all that is known of the database.
        """
        # With a statement timeout: without one, LISTEN might wait for its answer for ever.
        engine = self._session_engine(self.settings.statement_timeout_ms)
        with translate_errors(), engine.connect() as connection:
            driver: Any = connection.connection.driver_connection
            driver.autocommit = True
            listen = sql.SQL("LISTEN {}").format(sql.Identifier(channel))

            def wait(timeout_seconds: float) -> bool:
                with translate_errors():
                    driver.execute(listen)  # again and again: it proves the connection
                    return any(True for _ in driver.notifies(timeout=timeout_seconds, stop_after=1))

            try:
                yield wait
            finally:
                connection.invalidate()  # the pool would roll back, and log that it is lost
                driver.close()

    @property
    def pool_state(self) -> PoolState:
        """The use of this process's connections; nothing is asked of the database."""
        return self._places.state

    def flush_before_close(self, buffer: Buffer) -> None:
        """Flush *buffer* before connections are closed, unless it is gone by then."""
        with self._making:
            self._buffers.add(buffer)

    def close(self) -> None:
        """Close all connections, those in use when they come back.

        What services have buffered is written before. The database can be used again afterwards.
        """
        with self._making:
            buffers = list(self._buffers)
        try:
            for buffer in buffers:
                buffer.flush()
        finally:
            with self._making:
                standbys: Standbys | None = self.__dict__.pop("standbys", None)
            if standbys is not None:
                standbys.close()
            if "engine" in self.__dict__:
                _replace_pool(self.engine).dispose()

    async def aclose(self) -> None:
        """Close all connections, those for asyncio too."""
        if "async_engine" in self.__dict__:
            pool = _replace_pool(self.async_engine.sync_engine)
            await greenlet_spawn(pool.dispose)
        if "standbys" in self.__dict__:
            await self.standbys.aclose()
        try:
            await asyncio.to_thread(self.close)
        except RuntimeError:  # at the interpreter's end there are no new threads
            self.close()

    @made_once
    def _sessions(self) -> sessionmaker[WorkSession]:
        return _sessions_of(self.engine, {KNOWN: self._known})

    @made_once
    def _async_sessions(self) -> sessionmaker[WorkSession]:
        return _sessions_of(self.async_engine.sync_engine, {KNOWN: self._known})

    def _guard(self, connection: Connection, *, serving: bool) -> str | ColumnElement[str] | None:
        """Return the role of a transaction, where it is not that of the login."""
        if self.settings.database_url is None:  # the embedded server has its superuser alone
            return APPLICATION_ROLE if serving else step_down(connection)
        if not serving:
            return None
        if not self._safe:
            refuse_unsafe(connection)
            self._safe = True
        return None

    def _waits(self, message: str) -> None:
        self.on_wait(message)

    @made_once
    def _places(self) -> Places:
        """The limit that the connections of both pools share."""
        settings = self.settings
        return Places(settings.pool_size + settings.max_overflow, settings.pool_timeout_seconds)

    @made_once
    def _throttle(self) -> Throttle:
        """The limit of exchanges at once: as many as the pool keeps connections."""
        return Throttle(self.settings.pool_size, self.settings.pool_timeout_seconds)

    def _is_pooled(self, url: URL) -> bool:
        return self.settings.is_pooled and url is not self.settings.admin_url

    def _keep_apart(self, engine: Engine, statement_timeout_ms: int) -> None:
        """Keep settings of other users of a connection from reaching a transaction."""
        watch_statements(engine)
        if engine.url.query.get("target_session_attrs") in WRITABLE:
            event.listen(engine, "handle_error", _leave_read_only)
        if self.settings.is_pooled:
            event.listen(engine, "checkout", _leave_begin_to_us)
            begin = "; ".join(_list_settings_of_pooled(statement_timeout_ms))
            event.listen(engine, "begin", _begin_with(begin))
        else:
            event.listen(engine, "checkout", forget_session)

    def _pool(self) -> dict[str, Any]:
        return {
            "pool_size": self.settings.pool_size,
            "max_overflow": self.settings.max_overflow,
            "pool_timeout": self.settings.pool_timeout_seconds,
            "pool_recycle": self.settings.pool_recycle_seconds,
        }

    def _options(self, url: URL, statement_timeout_ms: int) -> dict[str, Any]:
        """Return the options of an engine."""
        return {
            "connect_args": self._connect_args(url, statement_timeout_ms),
            "hide_parameters": HIDE_PARAMETERS,
        }

    def _connect_args(self, url: URL, statement_timeout_ms: int) -> dict[str, Any]:
        settings = self.settings
        of_address = url.query
        arguments: dict[str, Any] = {
            "connect_timeout": settings.connect_timeout_seconds,
            "application_name": settings.application_name,
            "ssl_min_protocol_version": settings.ssl_min_protocol_version,
            "keepalives": 1,
            "keepalives_idle": settings.keepalives_idle_seconds,
            "keepalives_interval": settings.keepalives_interval_seconds,
            "keepalives_count": settings.keepalives_count,
            "tcp_user_timeout": settings.tcp_user_timeout_ms,
        }
        if settings.ssl_ca_cert is not None:
            arguments["sslrootcert"] = str(settings.ssl_ca_cert)
        # What the address itself says is not overruled; its sslmode was weighed by the settings.
        arguments = {key: value for key, value in arguments.items() if key not in of_address}
        arguments["sslmode"] = settings.ssl_mode
        if url is settings.admin_url and "sslmode" in of_address:
            del arguments["sslmode"]
        if self._is_pooled(url):
            # Options and prepared statements are a session's, which serves another client next.
            return arguments | {"autocommit": True, "prepare_threshold": None}
        return arguments | {
            "options": f"{of_address.get('options', '')} "
            f"-c statement_timeout={statement_timeout_ms}",
        }


def _make_probe(settings: Settings) -> Database:
    """Return a database of one connection, for short questions."""
    probe = replace(
        settings,
        pool_size=1,
        max_overflow=0,
        connect_timeout_seconds=PROBE_CONNECT_SECONDS,
        connect_retry_seconds=0,
        statement_timeout_ms=PROBE_MS,
        application_name=f"{settings.application_name} probe",
    )
    return _quiet(Database(probe))


def _quiet(database: Database) -> Database:
    """Let a database whose absence is no news say nothing of it."""
    database.on_wait = lambda _: None
    return database


def _sessions_of(
    bind: Engine | Connection, info: dict[Any, Any] | None = None
) -> sessionmaker[WorkSession]:
    return sessionmaker(bind, class_=WorkSession, expire_on_commit=False, info=info or {})


def _list_settings_of_pooled(statement_timeout_ms: int) -> list[str]:
    """Return the settings with which a transaction behind a pooler begins."""
    return [f"SET LOCAL statement_timeout = {statement_timeout_ms}", *OF_OTHERS]


def _leave_begin_to_us(connection: Any, _record: object, _proxy: object) -> None:
    """Keep psycopg from beginning transactions, whatever the last user of it asked for."""
    if not connection.autocommit:
        connection.autocommit = True


def _begin_with(settings: str) -> Callable[[Connection], None]:
    """Begin each transaction together with its settings, in one round trip.

    It proves the connection as well: where it is lost, so far nothing was lost with it.
    """

    def begin(connection: Connection) -> None:
        isolation_level = connection.get_execution_options().get("isolation_level")
        if isolation_level == "AUTOCOMMIT":
            return
        # The driver begins a transaction of an isolation level of its own.
        statement = settings if isolation_level else f"BEGIN; {settings}"
        try:
            connection.exec_driver_sql(statement)
        except DBAPIError as error:
            if not error.connection_invalidated:
                connection.close()  # or it would go on without a transaction
                raise
            connection.exec_driver_sql(statement)

    return begin


def _replace_pool(engine: Engine) -> Pool:
    """Give *engine* a new pool.

    Returns:
        The former one. Connections that threads return to it are closed: no other thread would
        take them from there.
    """
    pool = engine.pool
    engine.dispose(close=False)
    event.listen(pool, "checkin", lambda _, record: record.invalidate())
    return pool


def _leave_read_only(failure: ExceptionContext) -> None:
    """Replace the pool when its server turns out to read only: another one takes the writes now."""
    if isinstance(failure.original_exception, ReadOnlySqlTransaction):
        failure.is_disconnect = True


@contextmanager
def _close_unless_ready(connection: Any) -> Iterator[None]:
    """Close a new connection whose preparation is given up, which the pool would forget unclosed.

    By libpq's connection, which asks for no event loop.
    """
    try:
        yield
    except BaseException:
        connection.pgconn.finish()
        raise


def _register_vector(connection: Any, _record: object) -> None:
    with _close_unless_ready(connection):
        with suppress(psycopg.ProgrammingError):  # no vector type before the first revision
            register_vector(connection)
        connection.rollback()  # the look-up opened a transaction


def _register_vector_async(connection: Any, _record: object) -> None:
    async def register(driver_connection: psycopg.AsyncConnection[Any]) -> None:
        with _close_unless_ready(driver_connection):
            with suppress(psycopg.ProgrammingError):  # as above
                await register_vector_async(driver_connection)
            await driver_connection.rollback()

    connection.run_async(register)
