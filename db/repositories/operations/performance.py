"""The logs and statistics that the system keeps of its own running."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any, Final, NamedTuple

from sqlalchemy import func, insert, select, text

from pgcorpus.db.base import Base, table_of
from pgcorpus.db.errors import READ_ONLY, DatabaseReadOnly, NotFound
from pgcorpus.db.models.operations import QueryPerformance
from pgcorpus.db.repositories.base import Repository
from pgcorpus.db.search.corpora import list_corpora

OUTDATED_STATISTICS: Final = text("""
    SELECT relname FROM pg_stat_user_tables
    WHERE relname = ANY (:tables) AND schemaname = ANY (current_schemas(false))
      AND n_mod_since_analyze > greatest(:least, :share * n_live_tup)
    ORDER BY relname
""")

TIMES: Final = text("""
    SELECT query_type, date_trunc('hour', timestamp, 'UTC') AS hour, count(*) AS searches,
           count(*) FILTER (WHERE degraded) AS degraded,
           percentile_cont(0.5) WITHIN GROUP (ORDER BY duration) AS p50_ms,
           percentile_cont(0.95) WITHIN GROUP (ORDER BY duration) AS p95_ms,
           percentile_cont(0.99) WITHIN GROUP (ORDER BY duration) AS p99_ms,
           max(duration) AS slowest_ms
    FROM (SELECT query_type, timestamp, duration, degraded, corpus FROM query_performance_log
          UNION ALL
          SELECT query_type, timestamp, duration, degraded, corpus FROM query_performance_archive
         ) AS searches
    WHERE timestamp >= :since AND (CAST(:corpus AS text) IS NULL OR corpus = :corpus)
    GROUP BY GROUPING SETS (
        (query_type), (query_type, date_trunc('hour', timestamp, 'UTC')))
    ORDER BY query_type, hour NULLS FIRST
""")

DASHBOARD: Final = text("SELECT metric, value, unit FROM performance_dashboard")


class Metric(NamedTuple):
    """A metric of the dashboard.

    Attributes:
        metric: Its name.
        value: Figure of the last hour; None where nothing was measured.
        unit: ``ms``, ``searches`` or ``%``.
    """

    metric: str
    value: float | None
    unit: str


class Times(NamedTuple):
    """The durations of the searches of a type.

    Attributes:
        query_type: The type, such as ``hybrid_search``.
        hour: Start of the hour in which they ended, in UTC; None for all hours.
        searches: Number of searches that were logged.
        degraded: Number of these that lacked a leg.
        p50_ms: Duration that half of them did not exceed; interpolated between two durations.
        p95_ms: The same of 95 % of them.
        p99_ms: The same of 99 % of them.
        slowest_ms: The longest duration.
    """

    query_type: str
    hour: datetime | None
    searches: int
    degraded: int
    p50_ms: float
    p95_ms: float
    p99_ms: float
    slowest_ms: float


class PerformanceRepository(Repository):
    """The log of how long searches took, its archive and its figures.

    Members of ``rag_admin`` and the owner of the schema read it. A service adds to it.
    """

    def log(self, searches: Sequence[dict[str, Any]]) -> None:
        """Store the durations of searches.

        Args:
            searches: Columns of ``QueryPerformance``; one statement for all.
        """
        # Inline: whoever may add rows may not read one, and so cannot be told its id.
        self.session.execute(insert(table_of(QueryPerformance)).inline(), searches)

    def archive(self, *, older_than: timedelta, limit: int = 10_000) -> int:
        """Move some of the old durations of searches into the archive.

        Args:
            older_than: How long ago at least; a day is the least.
            limit: At most this many: call it again until it says 0.

        Returns:
            How many were moved.

        Raises:
            InvalidValue: *older_than* is less than a day.
        """
        moved = func.archive_searches(older_than, limit)
        return self.session.scalar(select(moved)) or 0

    def delete_archived(self, *, older_than: timedelta, limit: int = 10_000) -> int:
        """Delete some of the durations in the archive.

        Args:
            older_than: How long ago at least; 30 days are the least.
            limit: At most this many: call it again until it says 0.

        Returns:
            How many were deleted.

        Raises:
            InvalidValue: *older_than* is less than 30 days.
        """
        deleted = func.delete_archived_searches(older_than, limit)
        return self.session.scalar(select(deleted)) or 0

    def list_metrics(self) -> list[Metric]:
        """Return the metrics of ``performance_dashboard``."""
        return [Metric(*row) for row in self.session.execute(DASHBOARD)]

    def list_times(self, *, since: datetime, corpus: str | None = None) -> list[Times]:
        """Return the percentiles of durations, per type of search and hour.

        Args:
            since: Searches that ended then or later, in the log and in the archive.
            corpus: Those of this corpus alone.

        Returns:
            Per type: first the figures of all its hours, then of each hour that has searches.
        """
        found = self.session.execute(TIMES, {"since": since, "corpus": corpus})
        return [Times(*row) for row in found]

    def list_slow(
        self, *, least_ms: float, since: datetime, corpus: str | None = None, limit: int = 20
    ) -> Sequence[QueryPerformance]:
        """List slow searches of the log, the slowest first.

        Args:
            least_ms: Those that took this long or longer.
            since: Those that ended then or later.
            corpus: Those of this corpus alone.
            limit: At most this many.
        """
        log = QueryPerformance
        slow = (
            select(log)
            .where(log.timestamp >= since, log.duration >= least_ms)
            .order_by(log.duration.desc(), log.id.desc())
            .limit(limit)
        )
        if corpus is not None:
            slow = slow.where(log.corpus == corpus)
        return self.session.scalars(slow).all()

    def get(self, search_id: int) -> QueryPerformance:
        """Return a search of the log.

        Raises:
            NotFound: The log has none of that id.
        """
        found = self.session.get(QueryPerformance, search_id)
        if found is None:
            raise NotFound(
                f"the log of searches has none with the id {search_id}; see: "
                "pgcorpus performance --slow"
            )
        return found


class OperationsRepository(Repository):
    """Statistics that are renewed off the request path."""

    def require_writable(self) -> None:
        """Refuse to write where the transaction is read-only, as every one on a standby is.

        The server logs each statement that it refuses; this one it answers.

        Raises:
            DatabaseReadOnly: It is.
        """
        if self.session.scalar(select(func.current_setting("transaction_read_only"))) == "on":
            raise DatabaseReadOnly(f"the database is read-only: {READ_ONLY}")

    def list_outdated_statistics(self, *, least: int, share: float) -> Sequence[str]:
        """List the tables of which much was changed since their last ANALYZE.

        Args:
            least: More rows than this were changed.
            share: And more than this share of the rows, in [0, 1].

        Returns:
            Names, sorted.
        """
        values = {"tables": sorted(list_tables()), "least": least, "share": share}
        return self.session.scalars(OUTDATED_STATISTICS, values).all()

    def analyze(self, table: str) -> None:
        """Renew the statistics of a table; a table that the role does not own is skipped.

        Args:
            table: One of ``list_outdated_statistics``.
        """
        if table in list_tables():
            self.renew_statistics(table, skip_locked=True)


def list_tables() -> set[str]:
    """Return the names of our tables, and of those that an application's corpora have."""
    of_corpora = (table for each in list_corpora() for table in (each.passages, each.vectors))
    return {*Base.metadata.tables, *(table.name for table in of_corpora)}
