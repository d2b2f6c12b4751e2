"""Feedback of users: the pages that they were shown, and what they clicked."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from itertools import groupby
from typing import Any, Final, get_args
from uuid import UUID, uuid4

from pgcorpus.db.engine import Database
from pgcorpus.db.errors import InvalidValue
from pgcorpus.db.repositories.documentation.feedback import ClickStatistics
from pgcorpus.db.scope import Scope
from pgcorpus.db.search.corpora import DOCUMENTATION
from pgcorpus.db.search.page import LegName, SearchPage
from pgcorpus.services.awaited import Awaited, awaited
from pgcorpus.services.search.write_behind import MAX_BUFFERED, WriteBehind

LEGS: Final = get_args(LegName)


class FeedbackService:
    """Records what users were shown and what they clicked, for ``pgcorpus learn``.

    Args:
        database: Where the documents are.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._pages = _PageLog(database)

    def record_shown(
        self,
        page: SearchPage,
        *,
        session_id: str,
        user_id: str | None = None,
        scope: Scope | None = None,
        later: bool = False,
    ) -> UUID:
        """Record a page of hits that a user was shown.

        Args:
            page: The result of a search in documentation.
            session_id: The visit; one visit may search many times.
            user_id: The user, where one is known: all visits of a user together are one voice.
            scope: As of the search.
            later: Write it from another thread within some seconds. Then a failure is a warning
                in the log, and no error.

        Returns:
            The key of its row in ``search_sessions``.

        Raises:
            InvalidValue: The page is of another corpus, or the session's name is blank or too long.
            DatabaseUnavailable: The database did not answer.
        """
        if page.corpus != DOCUMENTATION.name:
            raise InvalidValue(f"feedback is on pages of documentation, not of {page.corpus}")
        if not session_id.strip():
            raise InvalidValue("session_id is blank; name the visit that the page was shown in")
        key = uuid4()
        row: dict[str, Any] = {
            "key": key,
            "session_id": session_id,
            "user_id": user_id,
            "query": _clean(page.question),
            "mode": page.mode,
            "fusion": page.fusion,
            "weights": page.weights,
            "shown": list(_describe_hits(page)),
            "shown_at": datetime.now(UTC),
        }
        if later:
            self._pages.note(scope, row)
        else:
            with self._database.unit_of_work(scope) as work:
                work.feedback.record_page(**row)
                work.commit()
        return key

    def record_click(
        self,
        chunk_id: str | UUID,
        *,
        query: str,
        position: int,
        session_id: str | None = None,
        user_id: str | None = None,
        dwell_time: float | None = None,
        clicked: bool = True,
        scope: Scope | None = None,
    ) -> UUID:
        """Record that a user opened a hit, or was shown it and passed it over.

        Args:
            chunk_id: The chunk: a hit's ``id``, or its ``chunk_id``.
            query: The question, as the page has it.
            position: Place of the hit, from 1 on the first page.
            session_id: The visit, as of ``record_shown``; nothing is learned from a click without.
            user_id: The user, where one is known.
            dwell_time: Seconds until the user came back, if that is known.
            clicked: False for what was passed over.
            scope: As of the search.

        Returns:
            The key of its row in ``click_feedback``.

        Raises:
            NotFound: The scope has no such chunk, and none is shared.
            ConstraintViolated: The position or the duration is none.
        """
        with self._database.unit_of_work(scope) as work:
            key = work.feedback.record_click(
                chunk_id,
                query=_clean(query),
                position=position,
                session_id=session_id,
                user_id=user_id,
                dwell_time=dwell_time,
                clicked=clicked,
            )
            work.commit()
        return key

    def get_statistics(
        self, query: str | None = None, *, days: int = 30, scope: Scope | None = None
    ) -> ClickStatistics:
        """Return figures of the clicks within the scope.

        Args:
            query: Of one query alone.
            days: Of the last days.
            scope: The tenant; None: of searches without a scope.
        """
        with self._database.unit_of_work(scope) as work:
            return work.feedback.get_statistics(query, days=days)

    def flush(self) -> None:
        """Write the pages that were recorded for later, now."""
        self._database.call(self._pages.flush)


class AsyncFeedbackService(Awaited[FeedbackService]):
    """Records what users were shown and what they clicked, for asyncio."""

    def __init__(self, database: Database) -> None:
        super().__init__(database, FeedbackService(database))

    record_shown = awaited(FeedbackService.record_shown)
    record_click = awaited(FeedbackService.record_click)
    get_statistics = awaited(FeedbackService.get_statistics)
    flush = awaited(FeedbackService.flush)


class _PageLog(WriteBehind):
    """Buffers pages that were shown, and writes them in one transaction for each scope."""

    def __init__(self, database: Database) -> None:
        super().__init__("pages-shown", database)
        self._noting = threading.Lock()
        self._noted: deque[tuple[Scope | None, Mapping[str, Any]]] = deque(maxlen=MAX_BUFFERED)

    def note(self, scope: Scope | None, row: Mapping[str, Any]) -> None:
        """Note a page of a scope, as ``record_page`` takes it."""
        if self._refused:
            return
        with self._noting:
            self._noted.append((scope, row))
        self._schedule_flush(len(self._noted))

    def _write_noted(self) -> None:
        with self._noting:
            noted = list(self._noted)
            self._noted.clear()
        by_scope = sorted(noted, key=lambda each: str(each[0]))
        for scope, pages in groupby(by_scope, key=lambda each: each[0]):
            self._write(scope, [row for _, row in pages])

    def _write(self, scope: Scope | None, pages: Iterable[Mapping[str, Any]]) -> None:
        pages = list(pages)
        lost = f"{len(pages)} pages that were shown were not recorded"
        with self._warning(lost), self._database.unit_of_work(scope) as work:
            work.operations.require_writable()
            for each in pages:
                work.feedback.record_page(**each)
            work.commit()


def _describe_hits(page: SearchPage) -> Iterator[dict[str, Any]]:
    """Describe what was shown: the passages, their positions, and what each leg gave."""
    for position, hit in enumerate(page.hits, start=page.offset + 1):
        scores = {leg: score for leg, score in hit.scores.items() if leg in LEGS}
        yield {"id": str(hit.id), "position": position, "scores": scores}


def _clean(query: str) -> str:
    """Return a query without what no column can hold, so that page and click have the same."""
    return query.replace("\0", " ").encode("utf-8", "replace").decode()
