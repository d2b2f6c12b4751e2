"""The performance of searches: percentiles from their log, slow ones, and their plans."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from pgcorpus.db.base import in_utc
from pgcorpus.db.engine import Database
from pgcorpus.db.errors import InvalidSearch
from pgcorpus.db.models.operations import QueryPerformance
from pgcorpus.db.repositories.operations.performance import Metric, Times
from pgcorpus.db.scope import Scope
from pgcorpus.db.search.page import Explanation
from pgcorpus.services.awaited import Awaited, awaited
from pgcorpus.services.search.service import SearchOptions, SearchService

SEARCH: Final = "_search"
"""The end of every ``query_type``; a mode stands before it."""


@dataclass(frozen=True, kw_only=True)
class Performance:
    """The figures of a time.

    Attributes:
        since: Its beginning; it ends now.
        corpus: The corpus, or None for all.
        metrics: The metrics of ``performance_dashboard``, of the last hour and all corpora.
        times: The figures of each type of search, first of all hours, then of each.
    """

    since: datetime
    corpus: str | None
    metrics: tuple[Metric, ...]
    times: tuple[Times, ...]

    def as_json(self) -> dict[str, Any]:
        """Return the figures as the command line prints them."""
        rows = [each._asdict() for each in self.times]
        return {
            "since": self.since,
            "corpus": self.corpus,
            "dashboard": [each._asdict() for each in self.metrics],
            "query_types": [
                {k: v for k, v in row.items() if k != "hour"} for row in rows if row["hour"] is None
            ],
            "hours": [row for row in rows if row["hour"] is not None],
        }


class PerformanceService:
    """Reads the log of searches; members of ``rag_admin`` and the owner of the schema may.

    Args:
        database: Which.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._search = SearchService(database)

    def summarise(self, *, since: datetime, corpus: str | None = None) -> Performance:
        """Return the percentiles of durations, per type of search and hour, and the dashboard.

        Args:
            since: Searches that ended then or later; without a time zone it is in UTC.
            corpus: Those of this corpus alone.

        Raises:
            NotPermitted: The login may not read the log.
        """
        since = in_utc(since) or since
        with self._database.unit_of_work() as work:
            metrics = work.performance.list_metrics()
            times = work.performance.list_times(since=since, corpus=corpus)
        return Performance(since=since, corpus=corpus, metrics=tuple(metrics), times=tuple(times))

    def list_slow(
        self,
        *,
        since: datetime,
        least_ms: float | None = None,
        corpus: str | None = None,
        limit: int = 20,
    ) -> Sequence[QueryPerformance]:
        """List slow searches, the slowest first.

        Args:
            since: Those that ended then or later; without a time zone it is in UTC.
            least_ms: Those that took this long or longer; by default ``METRICS_SLOW_MS``.
            corpus: Those of this corpus alone.
            limit: At most this many, 1 or more.

        Raises:
            NotPermitted: The login may not read the log.
        """
        if least_ms is None:
            least_ms = self._database.settings.metrics_slow_ms
        with self._database.unit_of_work() as work:
            return work.performance.list_slow(
                least_ms=least_ms, since=in_utc(since) or since, corpus=corpus, limit=limit
            )

    def plan(
        self,
        search_id: int,
        *,
        question: str | None = None,
        filters: Mapping[str, Any] | None = None,
        scope: Scope | None = None,
        analyze: bool = False,
    ) -> tuple[QueryPerformance, Explanation]:
        """Plan a search of the log again, as the database would run it now.

        Args:
            search_id: Its id in the log.
            question: Its question; by default the one that the log has kept.
            filters: The filters that it had: the log has their names, and never a value.
            scope: Of the tenant or user that searched; the log has none.
            analyze: Run it, too, and tell times and buffers.

        Returns:
            The search, and the statement with PostgreSQL's plan of it.

        Raises:
            NotFound: There is no such search in the log.
            InvalidSearch: The log has kept no question and none was given, or the filters are not
                those of the search.
            NotPermitted: The login may not read the log.
        """
        with self._database.unit_of_work() as work:
            found = work.performance.get(search_id)
        kept = found.options or {}
        names = kept.get("filters")
        given = set(filters or {})
        had = set(map(str, names)) if isinstance(names, list) else set()
        if given != had:
            raise InvalidSearch(
                f"search {search_id} had "
                + (f"filters on {', '.join(sorted(had))}" if had else "no filters")
                + "; the log keeps their names, and no values: give the same ones with --filter"
            )
        asked = question if question is not None else found.question
        if asked is None:
            raise InvalidSearch(
                f"the question of search {search_id} was not kept (METRICS_QUESTIONS=true keeps "
                "those of slow searches without a scope); give one with --question"
            )
        options: SearchOptions = {"mode": found.query_type.removesuffix(SEARCH)}  # type: ignore[typeddict-item]
        if found.fusion is not None:
            options["fusion"] = found.fusion  # type: ignore[typeddict-item]
        options["limit"], options["offset"] = kept.get("limit", 10), kept.get("offset", 0)
        options["language"], options["group_by"] = (
            str(kept[name]) if kept.get(name) is not None else None
            for name in ("language", "group_by")
        )
        options["filters"], options["scope"] = dict(filters or {}), scope
        plan = self._search.plan(asked, corpus=found.corpus, analyze=analyze, **options)
        return found, plan


class AsyncPerformanceService(Awaited[PerformanceService]):
    """Reads the log of searches, for asyncio."""

    def __init__(self, database: Database) -> None:
        super().__init__(database, PerformanceService(database))

    summarise = awaited(PerformanceService.summarise)
    list_slow = awaited(PerformanceService.list_slow)
    plan = awaited(PerformanceService.plan)
