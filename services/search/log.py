"""The durations of searches, logged off the request path."""

from __future__ import annotations

import random
from collections import deque
from datetime import UTC, datetime
from typing import Any, Final

from pgcorpus.db.engine import Database
from pgcorpus.db.search.page import Leg, SearchPage
from pgcorpus.db.settings import Settings
from pgcorpus.services.search.request import Request
from pgcorpus.services.search.write_behind import MAX_BUFFERED, WriteBehind

MAX_QUESTION_CHARACTERS: Final = 2000
"""The characters that are kept of a question."""

LEGS: Final = "legs"
OPTIONS: Final = "options"
"""Columns that hold what the search noted, until they are written as JSON."""


class SearchLog(WriteBehind):
    """Buffers timings of searches and writes them in batches, from a thread of its own.

    A search never waits for its log, and a log that cannot be written is a warning, not an error.
    Searches on a standby are not logged. Questions are logged where the settings ask for it, of
    slow searches alone, and never those of a tenant or a user.

    Args:
        database: Where to; its settings say whether, and which share of the searches.
    """

    def __init__(self, database: Database) -> None:
        super().__init__("search-log", database)
        self._buffer: deque[dict[str, Any]] = deque(maxlen=MAX_BUFFERED)

    def note(self, page: SearchPage, duration_ms: float, request: Request | None = None) -> None:
        """Note one search.

        Args:
            page: Its result.
            duration_ms: How long it took its caller.
            request: Its options, and its question.
        """
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
                "fusion": page.fusion,
                LEGS: page.legs,
                OPTIONS: request,
            }
        )
        self._schedule_flush(len(self._buffer))

    def _write_noted(self) -> None:
        noted = [self._buffer.popleft() for _ in range(len(self._buffer))]
        if not noted:
            return
        batch = [_make_row(each, self._database.settings) for each in noted]
        lost = f"{len(batch)} searches were not logged"
        with self._warning(lost), self._database.unit_of_work() as work:
            work.operations.require_writable()
            work.performance.log(batch)
            work.commit()


def _make_row(noted: dict[str, Any], settings: Settings) -> dict[str, Any]:
    """Make a row of the log; the search itself only noted what there is."""
    legs: tuple[Leg, ...] = noted.get(LEGS, ())
    request: Request | None = noted.get(OPTIONS)
    return noted | {
        "candidates": sum(leg.candidates for leg in legs),
        LEGS: {
            leg.name: {
                "status": leg.status,
                "candidates": leg.candidates,
                "duration_ms": leg.duration_ms,
            }
            for leg in legs
        },
        OPTIONS: None if request is None else _list_options(request),
        "question": _keep_question(request, noted["duration"], settings),
    }


def _keep_question(request: Request | None, duration_ms: float, settings: Settings) -> str | None:
    """Return the question of a search, where it may be kept."""
    if not settings.metrics_questions or duration_ms < settings.metrics_slow_ms:
        return None
    if request is None or request.scope is not None:
        return None
    storable = request.asked.replace("\0", "").encode(errors="replace").decode()
    return storable[:MAX_QUESTION_CHARACTERS]


def _list_options(request: Request) -> dict[str, Any]:
    """Return the options of a search by which it can be planned again, without any value of it."""
    options: dict[str, Any] = {"limit": request.limit, "offset": request.offset}
    if request.language is not None:
        options["language"] = request.language
    if request.group_by is not None:
        options["group_by"] = request.group_by
    if request.filters:
        options["filters"] = sorted(request.filters)
    if request.scope is not None:
        options["scoped"] = True
    return options
