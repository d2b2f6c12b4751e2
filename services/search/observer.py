"""The interface of who watches searches."""

from __future__ import annotations

from typing import Protocol

from pgcorpus.db.errors import DataLayerError
from pgcorpus.db.search.page import SearchPage
from pgcorpus.services.search.request import Prepared, Request


class SearchObserver(Protocol):
    """Watches the searches of a database that has it among its ``observers``.

    It is called by the thread, or in the event loop, that searches: it waits for nothing, and
    raises nothing.
    """

    def note_search(self, prepared: Prepared, page: SearchPage, seconds: float) -> None:
        """Note a search that was answered.

        Args:
            prepared: The search as it went to the database, with the question's vector.
            page: Its answer.
            seconds: Duration as its caller saw it, embedding the question included.
        """
        ...

    def note_failure(self, request: Request, error: DataLayerError) -> None:
        """Note a search that had no answer.

        Args:
            request: The search, which was allowed.
            error: Raised to the caller.
        """
        ...
