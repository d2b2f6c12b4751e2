"""How long searches take, noted off the request path."""

from __future__ import annotations

import atexit
import logging
import random
import threading
import weakref
from collections import deque
from datetime import UTC, datetime
from typing import Any, Final

from sqlalchemy.exc import SQLAlchemyError

from db.engine import Database
from db.errors import DataLayerError
from db.search.page import SearchPage

logger = logging.getLogger(__name__)

BATCH: Final = 200
FLUSH_SECONDS: Final = 5.0
MAX_BUFFERED: Final = 10_000
"""Searches that are kept while the database does not take them; older ones are dropped."""


class SearchLog:
    """Buffers timings of searches and writes them in batches, from a thread of its own.

    A search never waits for its log, and a log that cannot be written is a warning, not an error.

    Args:
        database: Where to; its settings say whether, and which share of the searches.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._buffer: deque[dict[str, Any]] = deque(maxlen=MAX_BUFFERED)
        self._wake = threading.Event()
        self._lock = threading.Lock()
        self._writer: threading.Thread | None = None

    def note(self, page: SearchPage, duration_ms: float) -> None:
        """Note one search."""
        settings = self._database.settings
        if not settings.metrics_enabled:
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
        if self._writer is None:
            self._start()
        if len(self._buffer) >= BATCH:
            self._wake.set()

    def flush(self) -> None:
        """Write what is buffered, now."""
        with self._lock:
            batch = [self._buffer.popleft() for _ in range(len(self._buffer))]
            if not batch:
                return
            try:
                with self._database.unit_of_work() as work:
                    work.operations.log_searches(batch)
                    work.commit()
            except (DataLayerError, SQLAlchemyError) as error:
                logger.warning("%d searches were not logged: %s", len(batch), error)

    def _start(self) -> None:
        with self._lock:
            if self._writer is None:
                # Neither the thread nor the exit hook keeps a service alive that nobody uses.
                log = weakref.ref(self)
                self._writer = threading.Thread(
                    target=_write, args=(log, self._wake), name="search-log", daemon=True
                )
                self._writer.start()
                atexit.register(_flush, log)
                weakref.finalize(self, self._wake.set)


def _write(log: weakref.ref[SearchLog], wake: threading.Event) -> None:
    while log() is not None:
        wake.wait(FLUSH_SECONDS)
        wake.clear()
        _flush(log)


def _flush(log: weakref.ref[SearchLog]) -> None:
    if (found := log()) is not None:
        found.flush()
