"""The durations of searches, logged off the request path."""

from __future__ import annotations

import random
from collections import deque
from datetime import UTC, datetime
from typing import Any

from pgcorpus.db.engine import Database
from pgcorpus.db.search.page import SearchPage
from pgcorpus.services.search.write_behind import MAX_BUFFERED, WriteBehind


class SearchLog(WriteBehind):
    """Buffers timings of searches and writes them in batches, from a thread of its own.

    A search never waits for its log, and a log that cannot be written is a warning, not an error.
    Searches on a standby are not logged.

    Args:
        database: Where to; its settings say whether, and which share of the searches.
    """

    def __init__(self, database: Database) -> None:
        super().__init__("search-log", database)
        self._buffer: deque[dict[str, Any]] = deque(maxlen=MAX_BUFFERED)

    def note(self, page: SearchPage, duration_ms: float) -> None:
        """Note one search."""
        settings = self._database.settings
        if not settings.metrics_enabled or self._refused:
            return
        if random.uniform(0, 100) >= settings.metrics_sample_percent:  # noqa: S311 - a sample
            return
        self._buffer.append(
            {
                "timestamp": datetime.now(UTC),
                "query_type": f"{page.mode}_search",
                "corpus": page.corpus,
                "duration": duration_ms,
                "hits": len(page.hits),
                "degraded": page.degraded,
            }
        )
        self._schedule_flush(len(self._buffer))

    def _write_noted(self) -> None:
        batch = [self._buffer.popleft() for _ in range(len(self._buffer))]
        if not batch:
            return
        lost = f"{len(batch)} searches were not logged"
        with self._warning(lost), self._database.unit_of_work() as work:
            work.operations.require_writable()
            work.operations.log_searches(batch)
            work.commit()
