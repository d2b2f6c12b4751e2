"""What the system notes about its own running."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import insert

from db.models.operations import QueryPerformance
from db.repositories.base import Repository


class OperationsRepository(Repository):
    """Logs that nobody waits for."""

    def log_searches(self, searches: Sequence[dict[str, Any]]) -> None:
        """Keep how long searches took.

        Args:
            searches: Columns of ``QueryPerformance``; one statement for all.
        """
        self.session.execute(insert(QueryPerformance), searches)
