"""The health of a live database: whether it can serve, and what its function of health finds."""

from __future__ import annotations

from collections.abc import Collection
from typing import Final, Literal, NamedTuple

from sqlalchemy import func, literal_column, select, text

from pgcorpus.db.base import Base
from pgcorpus.db.repositories.base import Repository
from pgcorpus.db.search.corpora import list_corpora

Grade = Literal["HEALTHY", "WARNING", "CRITICAL", "UNKNOWN"]

COMPONENT: Final = text("SELECT status, details FROM system_health_check(ARRAY[:component])")

UNREADABLE: Final = text("""
    SELECT name FROM unnest(CAST(:tables AS text[])) AS name
    WHERE CASE WHEN to_regclass(name) IS NULL THEN true
          ELSE NOT has_table_privilege(to_regclass(name), 'SELECT') END
    ORDER BY 1
""")

DATABASE_SIZE: Final = text("""
    SELECT pg_database_size(current_database()),
           has_function_privilege('pg_ls_waldir()', 'EXECUTE') AS sees_wal
""")
WAL_SIZE: Final = text("SELECT CAST(sum(size) AS bigint) FROM pg_ls_waldir()")

READ_BY_ADMINISTRATORS: Final = frozenset(
    (
        "audit_seals",
        "audit_state",
        "embedding_usage",
        "maintenance_log",
        "query_performance_archive",
        "query_performance_log",
        "security_audit_log",
        "token_ceilings",
    )
)
"""Tables that no search reads, and most logins may not."""


class Component(NamedTuple):
    """A component of the function ``system_health_check``.

    Attributes:
        status: Its grade.
        details: A sentence.
    """

    status: Grade
    details: str


class Sizes(NamedTuple):
    """The sizes of what the server keeps on its disk.

    Attributes:
        database_bytes: Size of this database.
        wal_bytes: Size of the write-ahead log; None for a login that is not told.
    """

    database_bytes: int
    wal_bytes: int | None


class HealthRepository(Repository):
    """Examines whether a database can serve; every method is one short statement."""

    def ping(self) -> None:
        """Ask for an answer."""
        self.session.execute(select(literal_column("1")))

    def list_unreadable(self) -> list[str]:
        """List the tables that searches read and the login may not read, or which are missing."""
        of_corpora = (table for each in list_corpora() for table in (each.passages, each.vectors))
        tables: Collection[str] = {
            *(Base.metadata.tables.keys() - READ_BY_ADMINISTRATORS),
            *(table.name for table in of_corpora),
        }
        return list(self.session.scalars(UNREADABLE, {"tables": sorted(tables)}))

    def is_read_only(self) -> bool:
        """Return whether the database takes no writes, as a standby takes none."""
        return self.session.scalar(select(func.current_setting("transaction_read_only"))) == "on"

    def examine(self, component: str) -> Component:
        """Ask the function ``system_health_check`` for one component.

        Args:
            component: Its name.

        Raises:
            InvalidValue: There is none of that name.
            StatementTimeout: It took too long.
        """
        return Component(*self.session.execute(COMPONENT, {"component": component}).one())

    def measure_sizes(self) -> Sizes:
        """Return the sizes of what is on the server's disk."""
        database_bytes, sees_wal = self.session.execute(DATABASE_SIZE).one()
        return Sizes(database_bytes, self.session.scalar(WAL_SIZE) if sees_wal else None)
