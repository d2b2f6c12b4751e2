"""The logs and statistics that the system keeps of its own running."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any, Final

from sqlalchemy import delete, func, insert, select, text

from pgcorpus.db.base import Base
from pgcorpus.db.errors import READ_ONLY, DatabaseReadOnly
from pgcorpus.db.models.operations import QueryPerformance
from pgcorpus.db.repositories.base import Repository
from pgcorpus.db.search.corpora import list_corpora

OUTDATED_STATISTICS: Final = text("""
    SELECT relname FROM pg_stat_user_tables
    WHERE relname = ANY (:tables) AND schemaname = ANY (current_schemas(false))
      AND n_mod_since_analyze > greatest(:least, :share * n_live_tup)
    ORDER BY relname
""")


class OperationsRepository(Repository):
    """Logs and statistics written off the request path."""

    def require_writable(self) -> None:
        """Refuse to write where the transaction is read-only, as every one on a standby is.

        The server logs each statement that it refuses; this one it answers.

        Raises:
            DatabaseReadOnly: It is.
        """
        if self.session.scalar(select(func.current_setting("transaction_read_only"))) == "on":
            raise DatabaseReadOnly(f"the database is read-only: {READ_ONLY}")

    def log_searches(self, searches: Sequence[dict[str, Any]]) -> None:
        """Store the durations of searches.

        Args:
            searches: Columns of ``QueryPerformance``; one statement for all.
        """
        self.session.execute(insert(QueryPerformance), searches)

    def delete_searches(self, *, older_than_seconds: float, limit: int = 10_000) -> int:
        """Delete some of the old durations of searches.

        Args:
            older_than_seconds: How long ago at least.
            limit: At most this many: call it again until it says 0.

        Returns:
            How many were deleted.
        """
        some = (
            select(QueryPerformance.id)
            .where(QueryPerformance.timestamp < func.now() - timedelta(seconds=older_than_seconds))
            .order_by(QueryPerformance.timestamp)
            .limit(limit)
        )
        deleted = self.session.execute(
            delete(QueryPerformance)
            .where(QueryPerformance.id.in_(some))
            .returning(QueryPerformance.id),
            execution_options={"synchronize_session": False},
        )
        return len(deleted.all())

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
