"""The health of a service and its database, told within a bounded time.

Liveness is about this process alone: a restart mends it. Readiness is whether the database can
serve searches now: a load balancer sends them elsewhere until it can. The other checks are for an
operator. docs/reference/health.md has every check.
"""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Final, Literal

from pgcorpus.db import migrations
from pgcorpus.db.connections import ANSWER_MARGIN_SECONDS
from pgcorpus.db.embedded import EmbeddedServer
from pgcorpus.db.engine import Database
from pgcorpus.db.errors import (
    DatabaseUnavailable,
    DataLayerError,
    InvalidValue,
    StatementTimeout,
    translate_errors,
)
from pgcorpus.db.repositories.operations.health import Grade
from pgcorpus.db.settings import Settings
from pgcorpus.db.uow import UnitOfWork
from pgcorpus.services.awaited import Awaited, awaited

Kind = Literal["liveness", "readiness", "health"]
Status = Literal["ok", "warning", "critical", "unknown"]
Verdict = Literal["healthy", "degraded", "not_ready", "not_live"]

TIME_LIMIT_SECONDS: Final = 4.5
"""The time for all checks. A probe that waits 5 s then still hears the answer."""

CHECK_SECONDS: Final = 1.0
"""The time after which the server ends the statement of one check."""

CONNECT_SECONDS: Final = 2
"""The time for a connection: the least that psycopg gives to an attempt."""

FEW_BYTES_FREE: Final = 0.10
NO_BYTES_FREE: Final = 0.05
"""Shares of a disk. At 5 % free, file systems begin to refuse, or to scatter what is written."""

BYTES_OF_GB: Final = 10**9

NOT_REACHED: Final = "not reached"
"""The detail of a check that was not begun: the database did not answer one before."""

COMPONENTS: Final[Mapping[str, str | None]] = {
    "pgvector_extension": "ALTER EXTENSION vector UPDATE;",
    "embedding_completeness": "pgcorpus worker, or: pgcorpus embed --corpus CORPUS",
    "vector_index_health": "pgcorpus doctor",
    "invalid_indexes": "pgcorpus doctor",
    "replication_lag": "SELECT * FROM pg_stat_replication;  -- on the primary",
    "queue_age": "pgcorpus jobs stats; pgcorpus worker; pgcorpus jobs list --status failed",
    "embedding_staleness": "pgcorpus worker, or: pgcorpus embed --corpus CORPUS",
    "disk": None,
    "connections": "pgcorpus doctor",
    "transaction_id_age": "vacuumdb --freeze --all",
    "last_backup": "make a backup, and test that it can be restored",
    "audit_chain": "pgcorpus audit verify; pgcorpus worker --once --kinds maintenance",
}
"""Component of ``system_health_check`` → the command that mends it, or helps to find out."""

GRADES: Final[Mapping[Grade, Status]] = {
    "HEALTHY": "ok",
    "WARNING": "warning",
    "CRITICAL": "critical",
    "UNKNOWN": "unknown",
}


@dataclass(frozen=True, kw_only=True)
class Check:
    """The result of one check.

    Attributes:
        check: Stable, for scripts.
        kind: The question that it belongs to.
        status: ``critical`` where something does not work; ``warning`` where it soon may not;
            ``unknown`` where the check could not see it, or had no time.
        detail: What was found.
        remedy: A command that mends it, or helps to find the cause; None where nothing is wrong.
        duration_ms: Time that the check took; None where it did not end.
    """

    check: str
    kind: Kind
    status: Status
    detail: str
    remedy: str | None = None
    duration_ms: float | None = None


@dataclass(frozen=True, kw_only=True)
class Health:
    """The results of all checks that were asked for.

    Attributes:
        checks: The results, in a fixed order.
        duration_ms: Time that they took together.
    """

    checks: tuple[Check, ...]
    duration_ms: float

    @property
    def live(self) -> bool:
        """True if a restart of the process would mend nothing."""
        return not self._is_critical("liveness")

    @property
    def ready(self) -> bool:
        """True if searches can be served: no check of readiness failed, or had no answer."""
        checks = [each for each in self.checks if each.kind == "readiness"]
        return self.live and all(each.status in {"ok", "warning"} for each in checks)

    @property
    def verdict(self) -> Verdict:
        """The worst that was found; warnings and what is unknown do not count."""
        if not self.live:
            return "not_live"
        if not self.ready:
            return "not_ready"
        return "degraded" if self._is_critical("health") else "healthy"

    def _is_critical(self, kind: Kind) -> bool:
        return any(each.kind == kind and each.status == "critical" for each in self.checks)

    def as_json(self) -> dict[str, Any]:
        """Return the health as the command line prints it."""
        return {
            "status": self.verdict,
            "live": self.live,
            "ready": self.ready,
            "duration_ms": self.duration_ms,
            "checks": [asdict(each) for each in self.checks],
        }


Examine = Callable[[UnitOfWork], Check]


class HealthService:
    """Tells the health of this process and of its database, each time within a bounded time.

    The database is asked on a connection of the check's own: a pool that is used up, or holds
    connections whose other side is gone, neither hides nor delays the answer.

    Args:
        database: Which. Its pool is looked at, and not used.
        time_limit_seconds: For all checks of one call, 0.1 to 60.

    Raises:
        InvalidValue: The time limit is out of range.
    """

    def __init__(
        self, database: Database, *, time_limit_seconds: float = TIME_LIMIT_SECONDS
    ) -> None:
        if not 0.1 <= time_limit_seconds <= 60:  # noqa: PLR2004 - as said above
            raise InvalidValue(f"a time limit is 0.1 to 60 seconds, not {time_limit_seconds}")
        self._database = database
        self._limit = time_limit_seconds

    def check_liveness(self) -> Health:
        """Check this process, and ask nothing of the database."""
        return self._report((self._pool(),), time.monotonic())

    def check_readiness(self, *, writes: bool = False) -> Health:
        """Check this process, and that the database can serve searches now.

        Args:
            writes: It must take writes, too.

        Raises:
            SettingsError: No database is named, and no embedded server was made.
        """
        return self._database.call(self._examine, writes, ())

    def check(self, *, writes: bool = False) -> Health:
        """Run every check.

        Args:
            writes: As of ``check_readiness``.

        Raises:
            SettingsError: As of ``check_readiness``.
        """
        return self._database.call(self._examine, writes, tuple(COMPONENTS))

    def _examine(self, writes: bool, components: tuple[str, ...]) -> Health:
        """Examine the database in another thread, and report what is known at the time limit.

        The thread may wait for a name server, or for a peer that says nothing, and cannot be
        ended: it ends by itself when its own limits have passed.
        """
        began = time.monotonic()
        settings = self._database.settings
        if settings.database_url is None and not EmbeddedServer(settings.home).exists:
            _ = self._database.url  # raises, and says what to do
        run = _Run(settings, writes, components, deadline=began + self._limit)
        thread = threading.Thread(target=run.work, name="health", daemon=True)
        thread.start()
        thread.join(self._limit)
        return self._report((self._pool(), *run.report(self._limit)), began)

    def _pool(self) -> Check:
        """Check that connections of this process come back."""
        state, settings = self._database.pool_state, self._database.settings
        longest = settings.statement_timeout_ms / 1000 + ANSWER_MARGIN_SECONDS
        longest = max(longest, settings.pool_timeout_seconds)
        detail = f"{state.in_use} of {state.limit} connections of this process are in use"
        if not state.full:
            return Check(check="pool", kind="liveness", status="ok", detail=detail, duration_ms=0.0)
        stuck = bool(settings.statement_timeout_ms) and state.seconds_since_return > longest
        return Check(
            check="pool",
            kind="liveness",
            status="critical" if stuck else "warning",
            detail=f"{detail}, and none has come back for {state.seconds_since_return:.0f} s",
            remedy="end units of work sooner, or raise DB_POOL_SIZE; a restart frees what leaked",
            duration_ms=0.0,
        )

    @staticmethod
    def _report(checks: tuple[Check, ...], began: float) -> Health:
        return Health(checks=checks, duration_ms=_milliseconds_since(began))


class _Run:
    """The checks of a database, one after the other, with a record of how far they came."""

    def __init__(
        self, settings: Settings, writes: bool, components: tuple[str, ...], *, deadline: float
    ) -> None:
        self._settings = settings
        self._deadline = deadline
        self._done: list[Check] = []
        self._waiting: str | None = None
        self._todo: list[tuple[str, Kind, Examine]] = [
            ("database", "readiness", _ping),
            ("schema", "readiness", _schema),
            ("tables", "readiness", _tables),
            ("writes", "readiness", lambda work: _writes(work, needed=writes)),
            *((name, "health", self._component(name)) for name in components),
        ]

    def work(self) -> None:
        """Run the checks until one shows that the database does not answer."""
        try:
            database = self._connect()
        except DataLayerError as error:
            self._done.append(_fail("database", "readiness", str(error)))
            return
        try:
            for name, kind, examine in self._todo:
                if not self._run(database, name, kind, examine):
                    break
        finally:
            database.close()

    def report(self, limit_seconds: float) -> Iterator[Check]:
        """Yield what is known of each check by now."""
        done = list(self._done)
        yield from done
        for name, kind, _ in self._todo[len(done) :]:
            if name == self._waiting:
                yield _fail(name, kind, f"there was no answer within {limit_seconds:g} s")
            else:
                yield Check(check=name, kind=kind, status="unknown", detail=NOT_REACHED)

    def _connect(self) -> Database:
        """Return the same database with short waits, and one connection.

        Raises:
            DatabaseUnavailable: The embedded server is stopped, and stays so.
        """
        settings = self._settings
        embedded = settings.database_url is None
        if embedded and not EmbeddedServer(settings.home).status().running:
            raise DatabaseUnavailable(
                f"the embedded server in {settings.home} is stopped; start it with: "
                "pgcorpus server start"
            )
        database = Database(
            replace(
                settings,
                connect_timeout_seconds=CONNECT_SECONDS,
                connect_retry_seconds=0,
                statement_timeout_ms=int(CHECK_SECONDS * 1000),
                pool_size=1,
                max_overflow=0,
                pool_timeout_seconds=CONNECT_SECONDS,
                application_name=f"{settings.application_name} health",
            )
        )
        database.on_wait = lambda _: None  # the report says it
        return database

    def _run(self, database: Database, name: str, kind: Kind, examine: Examine) -> bool:
        """Run one check; return whether the next may be run."""
        began = time.monotonic()
        if began >= self._deadline:
            return False
        self._waiting = name
        try:
            with translate_errors(), database.unit_of_work() as work:
                found = examine(work)
            answers = True
        except Exception as error:  # noqa: BLE001 - whatever it is, the others are still told
            found = _describe_failure(name, kind, error)
            answers = name != "database" and not isinstance(error, DatabaseUnavailable)
        self._done.append(replace(found, duration_ms=_milliseconds_since(began)))
        return answers

    def _component(self, name: str) -> Examine:
        if name == "disk":
            return lambda work: _disk(work, self._settings)
        return lambda work: examine_component(work, name)


def _describe_failure(name: str, kind: Kind, error: Exception) -> Check:
    """Report a check that the database refused, or did not answer."""
    detail = str(error) if isinstance(error, DataLayerError) else repr(error)
    if isinstance(error, StatementTimeout):
        detail = f"the check took longer than {CHECK_SECONDS:g} s, and was ended"
    if kind == "readiness" or isinstance(error, DatabaseUnavailable):
        return _fail(name, kind, detail)
    return Check(check=name, kind=kind, status="unknown", detail=detail)


def _ping(work: UnitOfWork) -> Check:
    work.health.ping()
    return Check(check="database", kind="readiness", status="ok", detail="answers")


def _schema(work: UnitOfWork) -> Check:
    """Check that the schema is the one that this code was written for."""
    schema = migrations.compare(work)
    match schema.state:
        case "current":
            return Check(
                check="schema", kind="readiness", status="ok", detail=f"revision {schema.revision}"
            )
        case "ahead":
            # A deployment upgrades the database first, while the release before still serves.
            return Check(
                check="schema",
                kind="readiness",
                status="warning",
                detail=f"revision {schema.revision} is of a newer release than this one, whose "
                f"newest is {schema.newest}",
                remedy="install the release that upgraded the database",
            )
        case _:
            found = f"revision {schema.revision}" if schema.revision else "no revision"
            return _fail(
                "schema",
                "readiness",
                f"the database has {found}, and this release needs {schema.newest}",
                "pgcorpus db upgrade",
            )


def _tables(work: UnitOfWork) -> Check:
    """Check that the login may read what searches read."""
    if not (unreadable := work.health.list_unreadable()):
        return Check(
            check="tables",
            kind="readiness",
            status="ok",
            detail="all that searches read is readable",
        )
    return _fail(
        "tables",
        "readiness",
        f"the login may not read {', '.join(unreadable[:5])}"
        + (f" and {len(unreadable) - 5} more" if len(unreadable) > 5 else ""),  # noqa: PLR2004
        "pgcorpus roles create-user NAME --role rag_read_write",
    )


def _writes(work: UnitOfWork, *, needed: bool) -> Check:
    """Check whether the database takes writes."""
    if not work.health.is_read_only():
        return Check(check="writes", kind="readiness", status="ok", detail="takes writes")
    if not needed:
        return Check(
            check="writes", kind="readiness", status="ok", detail="read-only: it serves reads alone"
        )
    return _fail(
        "writes",
        "readiness",
        "the database is read-only: it is a standby, or default_transaction_read_only is on",
        "name the primary in DATABASE_URL",
    )


def examine_component(work: UnitOfWork, name: str) -> Check:
    """Return what a component of ``system_health_check`` finds, as a check."""
    found = work.health.examine(name)
    status = GRADES[found.status]
    remedy = COMPONENTS[name] if status in {"warning", "critical"} else None
    return Check(check=name, kind="health", status=status, detail=found.details, remedy=remedy)


def _disk(work: UnitOfWork, settings: Settings) -> Check:
    """Check the disk: the embedded server's own, or one whose size the settings tell."""
    sizes = work.health.measure_sizes()
    taken = sizes.database_bytes + (sizes.wal_bytes or 0)
    what = "the database takes" if sizes.wal_bytes is None else "the database and the WAL take"
    if settings.database_url is None:
        usage = shutil.disk_usage(settings.home)
        size, free = usage.total, usage.free
    elif settings.disk_gb:
        size = settings.disk_gb * BYTES_OF_GB
        free = max(size - taken, 0)
    else:
        return examine_component(work, "disk")
    share = free / size
    status: Status = "ok"
    if share < FEW_BYTES_FREE:
        status = "critical" if share < NO_BYTES_FREE else "warning"
    return Check(
        check="disk",
        kind="health",
        status=status,
        detail=f"{what} {taken / BYTES_OF_GB:,.1f} GB; {free / BYTES_OF_GB:,.1f} of "
        f"{size / BYTES_OF_GB:,.0f} GB are free ({share:.0%})",
        remedy="enlarge the disk, or drop what is not needed" if status != "ok" else None,
    )


def _fail(check: str, kind: Kind, detail: str, remedy: str | None = None) -> Check:
    return Check(check=check, kind=kind, status="critical", detail=detail, remedy=remedy)


def _milliseconds_since(began: float) -> float:
    return round((time.monotonic() - began) * 1000, 1)


class AsyncHealthService(Awaited[HealthService]):
    """Tells the health of this process and of its database, for asyncio."""

    def __init__(
        self, database: Database, *, time_limit_seconds: float = TIME_LIMIT_SECONDS
    ) -> None:
        super().__init__(database, HealthService(database, time_limit_seconds=time_limit_seconds))

    check_liveness = awaited(HealthService.check_liveness)
    check_readiness = awaited(HealthService.check_readiness)
    check = awaited(HealthService.check)
