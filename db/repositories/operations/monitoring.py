"""The figures of a running database, for whoever watches it. Nothing is changed."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Final, NamedTuple

from sqlalchemy import text

from pgcorpus.db.base import set_local
from pgcorpus.db.repositories.base import Repository

SERVER: Final = text("""
    SELECT (SELECT coalesce(sum(numbackends), 0)::bigint FROM pg_stat_database),
           CAST(current_setting('max_connections') AS int)
               - CAST(current_setting('superuser_reserved_connections') AS int)
               - CAST(coalesce(current_setting('reserved_connections', true), '0') AS int),
           pg_database_size(oid),
           age(datfrozenxid),
           pg_is_in_recovery()
    FROM pg_database WHERE datname = current_database()
""")

SEARCHES: Final = text("""
    SELECT corpus, replace(query_type, '_search', ''), count(*),
           count(*) FILTER (WHERE degraded),
           percentile_cont(ARRAY[0.5, 0.95, 0.99]) WITHIN GROUP (ORDER BY duration / 1000)
    FROM query_performance_log
    WHERE timestamp > statement_timestamp() - make_interval(secs => :seconds)
      AND corpus = ANY (:corpora) AND query_type = ANY (:types)
    GROUP BY 1, 2 ORDER BY 1, 2
""")

READABLE: Final = text("""
    SELECT coalesce(has_table_privilege(to_regclass(:table), 'SELECT'), false)
""")


BACKUPS: Final = text("""
    SELECT max(finished_at) FILTER (WHERE status IN ('complete', 'verified')),
           max(finished_at) FILTER (WHERE status = 'verified'),
           coalesce((SELECT status = 'failed' FROM backup_log WHERE status <> 'running'
                     ORDER BY started_at DESC LIMIT 1), false)
    FROM backup_log
""")

LAST_SEAL: Final = text("""
    WITH last AS (SELECT max(number) AS number, max(sealed_at) AS sealed_at,
                         coalesce(max(last_position), 0) AS position FROM audit_seals)
    SELECT number, sealed_at, coalesce(extract(epoch FROM statement_timestamp() - (
        SELECT timestamp FROM security_audit_log
        WHERE security_audit_log.position > last.position
        ORDER BY security_audit_log.position LIMIT 1)), 0)::float8
    FROM last
""")


class ServerFigures(NamedTuple):
    """The server and the database.

    Attributes:
        connections: Connections to the server, of all its databases.
        most_connections: Connections that the server allows to roles that are no superusers.
        size_bytes: Size of the database on disk.
        frozen_age: Transactions since the oldest that is not frozen; at 2 billion writes stop.
        is_standby: Whether it is a standby.
    """

    connections: int
    most_connections: int
    size_bytes: int
    frozen_age: int
    is_standby: bool


class SearchFigures(NamedTuple):
    """The searches of some minutes, of all processes that log them.

    Attributes:
        corpus: What was searched.
        mode: How.
        searches: Number of searches.
        degraded: Number of those of which a leg did not answer.
        seconds: Duration at the quantiles 0.5, 0.95 and 0.99.
    """

    corpus: str
    mode: str
    searches: int
    degraded: int
    seconds: Sequence[float]


class BackupFigures(NamedTuple):
    """The backups.

    Attributes:
        succeeded_at: End of the last one that was completed, or None.
        verified_at: End of the last one that was verified, or None.
        failed: Whether the last one that ended has failed.
    """

    succeeded_at: datetime | None
    verified_at: datetime | None
    failed: bool


class SealFigures(NamedTuple):
    """The seals of the audit log.

    Attributes:
        number: Number of the last one, or None before the first.
        sealed_at: Its time, or None.
        unsealed_seconds: Age of the oldest entry that no seal covers; 0 if there is none.
    """

    number: int | None
    sealed_at: datetime | None
    unsealed_seconds: float


class MonitoringRepository(Repository):
    """Reads what an operator watches."""

    def begin(self, timeout_ms: int) -> None:
        """Make the transaction read-only, and end each statement in time; must come first.

        Args:
            timeout_ms: Longest duration of one statement.
        """
        self.session.execute(text("SET TRANSACTION READ ONLY"))
        self.session.execute(set_local({"statement_timeout": str(timeout_ms)}))

    def get_server(self) -> ServerFigures:
        """Return the figures of the server."""
        return ServerFigures(*self.session.execute(SERVER).one())

    def list_searches(
        self, corpora: Sequence[str], modes: Sequence[str], *, seconds: float
    ) -> list[SearchFigures]:
        """Return the figures of recent searches, as far as they were logged.

        Args:
            corpora: Names of those that are told.
            modes: The same.
            seconds: How far back.
        """
        types = [f"{mode}_search" for mode in modes]
        values = {"corpora": [*corpora], "types": types, "seconds": seconds}
        return [SearchFigures(*row) for row in self.session.execute(SEARCHES, values)]

    def may_read(self, table: str) -> bool:
        """Return whether there is a table of this name that the role may read."""
        return bool(self.session.scalar(READABLE, {"table": table}))

    def get_backups(self) -> BackupFigures:
        """Return the figures of the log of backups."""
        return BackupFigures(*self.session.execute(BACKUPS).one())

    def get_last_seal(self) -> SealFigures:
        """Return the state of the audit log's seals, for a role that may read it."""
        return SealFigures(*self.session.execute(LAST_SEAL).one())
