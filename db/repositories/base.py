"""The base of all repositories: a session, its scope, and bulk loads."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Final

import psycopg
from psycopg import sql
from psycopg.errors import DiskFull, OutOfMemory
from sqlalchemy import (
    ColumnElement,
    Table,
    TableClause,
    Text,
    column,
    exists,
    func,
    literal,
    select,
    table,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.exc import DBAPIError, OperationalError, ProgrammingError
from sqlalchemy.orm import Session
from sqlalchemy.util import await_only

from pgcorpus.db.base import set_local
from pgcorpus.db.choices import ADMINISTRATORS_ROLE
from pgcorpus.db.errors import TransactionConflict
from pgcorpus.db.scope import SCOPE, Scope
from pgcorpus.db.search.corpus import Corpus

INDEX_BUILD_MEMORY: Final = "256MB"
"""The engineering specification's ``maintenance_work_mem``."""

LEAST_SHARED: Final = "1MB"
"""A table from which on several processes build an index. PostgreSQL's 8 MB do not count what is
stored out of line: 40,000 vectors of 1,024 dimensions take less."""

NEVER_SHARED: Final = "1TB"
"""The same for an index on columns as they are, and a foreign key: several processes took longer
for 10,000 rows, and for 100,000 nearly as long with more work."""

NO_PAGES: Final = text("""
    SELECT coalesce(sum(pg_relation_size(filled)), 0) = 0
    FROM unnest(CAST(CAST(:tables AS text[]) AS regclass[])) AS filled
""")

REBUILT: Final = text("""
    WITH filled AS (SELECT CAST(CAST(:tables AS text[]) AS regclass[]) AS tables)
    SELECT format('DROP INDEX %s', indexrelid::regclass) AS leave,
           concat_ws('; ', pg_get_indexdef(indexrelid), (
               SELECT string_agg(format('ALTER INDEX %s ALTER COLUMN %s SET STATISTICS %s',
                                        indexrelid::regclass, attnum, attstattarget), '; ')
               FROM pg_attribute WHERE attrelid = indexrelid AND attstattarget >= 0)) AS build
    FROM pg_index, filled
    WHERE indrelid = ANY (tables)
      AND NOT EXISTS (SELECT FROM pg_constraint WHERE conindid = indexrelid)
    UNION ALL
    SELECT format('ALTER TABLE %s DROP CONSTRAINT %I', conrelid::regclass, conname),
           format('ALTER TABLE %s ADD CONSTRAINT %I %s', conrelid::regclass, conname,
                  pg_get_constraintdef(oid))
    FROM pg_constraint, filled
    WHERE contype = 'f' AND conrelid = ANY (tables) AND confrelid = ANY (tables)
    ORDER BY 2
""")
"""Indexes that no constraint needs, and foreign keys among the tables: how to leave and build them.
``ALTER`` sorts before ``CREATE``: the keys are checked before the indexes are built. What an index
samples of its expressions is no part of its definition: see ``UNSAMPLED`` of revision 0006."""


class Repository:
    """Reads and writes some tables through one session. It never commits."""

    def __init__(self, session: Session) -> None:
        self.session = session

    @property
    def scope(self) -> Scope | None:
        """The scope that the unit of work reads and writes in."""
        scope: Scope | None = self.session.info.get(SCOPE)
        return scope

    def get_scope(self, corpus: Corpus) -> Scope:
        """Return the scope.

        Raises:
            MissingScope: The unit of work has none, and passages of *corpus* have.
        """
        corpus.refuse_without(self.scope)
        assert self.scope is not None  # noqa: S101 - it was just refused
        return self.scope

    def in_scope(self, corpus: Corpus, table: Table) -> tuple[ColumnElement[bool], ...]:
        """Restrict *table* to the scope; without one, all rows are kept that the role may see."""
        return () if self.scope is None else corpus.of_scope(table, self.scope)

    @contextmanager
    def lock_connection(self, key: ColumnElement[int], refusal: str) -> Iterator[None]:
        """Hold an advisory lock, outside of a transaction.

        The lock is the connection's: a build that the server goes on with after its client was
        killed still holds it.

        Args:
            key: Of the lock.
            refusal: The message where another session has it.

        Raises:
            TransactionConflict: Another session has it.
        """
        connection = self.session.connection()
        if not connection.scalar(select(func.pg_try_advisory_lock(key))):
            raise TransactionConflict(refusal)
        try:
            yield
        finally:
            with suppress(DBAPIError):  # the connection is gone, and its lock with it
                if not connection.invalidated:
                    connection.execute(select(func.pg_advisory_unlock(key)))

    @contextmanager
    def driver(self) -> Iterator[psycopg.Connection[Any] | psycopg.AsyncConnection[Any]]:
        """Give the driver's own connection. A caller interrupted in here loses it for good.

        The answers to what was sent may be on their way, and would be taken for others.
        """
        connection = self.session.connection()
        try:
            yield connection.connection.driver_connection  # type: ignore[misc]
        except (asyncio.CancelledError, KeyboardInterrupt) as error:
            connection.invalidate(error)
            raise

    @contextmanager
    def as_login(self) -> Iterator[None]:
        """Work with all rights of the login for a while: only the owner may change tables.

        On the embedded server units of work write rows as the administrators' role: see
        ``step_down``. Write none in here.
        """
        if self.session.scalar(select(func.current_setting("role"))) != ADMINISTRATORS_ROLE:
            yield
            return
        self.session.execute(set_local({"role": "none"}))
        try:
            yield
        finally:
            with suppress(DBAPIError):  # the transaction has failed, and the role ends with it
                self.session.execute(set_local({"role": ADMINISTRATORS_ROLE}))

    def lift_timeout(self) -> None:
        """Lift the statement timeout until the transaction ends.

        The statement timeout is there for questions.
        """
        connection = self.session.connection()
        connection.execute(set_local({"statement_timeout": "0"}))
        driver: Any = connection.connection.driver_connection
        driver.patient = True  # pgcorpus.db.connections: nor does the client give up waiting

    def renew_statistics(self, *tables: str, skip_locked: bool = False) -> None:
        """Renew the planner's statistics, which the ranking of words reads too; without timeout.

        Args:
            tables: Names, of ours.
            skip_locked: Pass over a table that is locked instead of waiting for it.
        """
        self.lift_timeout()
        options = "(SKIP_LOCKED) " if skip_locked else ""
        with self.as_login():  # before PostgreSQL 17 this is the owner's
            self.session.execute(text(f"ANALYZE {options}{', '.join(tables)}"))

    def merge_pending_entries(self, *tables: str) -> None:
        """Sort what was written last into the GIN indexes of tables; without timeout.

        Until then every search by words reads it row by row.

        Args:
            tables: Names, of ours.
        """
        self.lift_timeout()
        names = literal(list(tables), ARRAY(Text))
        self.session.execute(select(func.merge_pending_entries(names)))

    @contextmanager
    def stage(
        self, name: str, columns: Mapping[str, str], rows: Iterable[Sequence[Any]]
    ) -> Iterator[TableClause]:
        """Load *rows* into a temporary table by binary COPY, and drop it afterwards.

        Args:
            name: Of the temporary table.
            columns: Name → PostgreSQL type, in the order of the values.
            rows: Values of exactly these types: ``Jsonb`` or ``Json`` for JSON, arrays for
                vectors, ``bytes`` for ``bytea``.

        Yields:
            The table, for the statement that merges it.
        """
        fields = sql.SQL(", ").join(
            sql.SQL("{} {}").format(sql.Identifier(column), sql.SQL(kind))
            for column, kind in columns.items()
        )
        create = sql.SQL("CREATE TEMPORARY TABLE {} ({}) ON COMMIT DROP").format(
            sql.Identifier(name), fields
        )
        copy = sql.SQL("COPY {} FROM STDIN (FORMAT BINARY)").format(sql.Identifier(name))
        with self.driver() as connection:
            if isinstance(connection, psycopg.AsyncConnection):
                await_only(_load_async(connection, create, copy, list(columns.values()), rows))
            else:
                _load(connection, create, copy, list(columns.values()), rows)
        yield table(name, *(column(key) for key in columns))
        self.session.execute(text(f'DROP TABLE "{name}"'))

    def are_empty(self, *tables: Table) -> bool:
        """Return whether the tables have no row of any scope, as far as the role can tell.

        Row security makes a SELECT lie. What takes no space on disk holds nothing; of the rest only
        who passes over row security knows.
        """
        if self.session.scalar(NO_PAGES, {"tables": [each.name for each in tables]}):
            return True
        asking = self.session.begin_nested()
        try:
            # From here on a SELECT that would leave rows out is an error.
            self.session.execute(set_local({"row_security": "off"}))
            return not any(
                self.session.scalar(select(exists().select_from(each))) for each in tables
            )
        except ProgrammingError:
            return False
        finally:
            asking.rollback()

    def lock_at_once(self, *tables: Table) -> None:
        """Lock tables exclusively until the transaction ends, or fail at once.

        Raises:
            OperationalError: Another session uses one of them.
            ProgrammingError: One of them is another role's.
        """
        names = ", ".join(each.name for each in tables)
        self.session.execute(text(f"LOCK TABLE {names} IN ACCESS EXCLUSIVE MODE NOWAIT"))

    @contextmanager
    def first_load(self, *tables: Table) -> Iterator[None]:
        """Fill empty tables without indexes and foreign keys, and build these at the end.

        Building an index costs a third of keeping it up row by row, and one join checks a foreign
        key faster than a trigger for each row. The tables are locked until the transaction ends,
        which disturbs no reader while they are empty; a failed transaction leaves all as it was.
        Where a table has rows, belongs to another role or is in use at this moment, nothing is
        dropped and rows go in as ever.

        Args:
            tables: Those that are about to be filled.
        """
        with self.as_login():
            empty = self.are_empty(*tables)
        if not empty:
            yield
            return
        try:
            with self.as_login(), self.session.begin_nested():
                self.lock_at_once(*tables)
                rebuilt = self.session.execute(
                    REBUILT, {"tables": [each.name for each in tables]}
                ).all()
                for each in rebuilt:
                    self.session.connection().exec_driver_sql(each.leave)
        except (OperationalError, ProgrammingError):  # in use, or another role's
            rebuilt = []
        yield
        if rebuilt:
            with self.as_login():
                for each in rebuilt:
                    self.build(each.build)

    def build(self, statement: str, *, memory: str = INDEX_BUILD_MEMORY) -> None:
        """Build an index or a foreign key.

        An index on an expression is built with as many processes as the server can spare; if these
        lack memory, with one.

        Several share their memory in ``/dev/shm``, which containers keep at 64 MB.

        Args:
            statement: Makes an index or a foreign key.
            memory: ``maintenance_work_mem``.
        """
        self.session.execute(
            set_local(
                {
                    "maintenance_work_mem": memory,
                    "min_parallel_table_scan_size": LEAST_SHARED
                    if is_computed(statement)
                    else NEVER_SHARED,
                }
            )
        )
        try:
            with self.session.begin_nested():
                self.session.connection().exec_driver_sql(statement)
        except OperationalError as error:
            if not isinstance(error.orig, DiskFull | OutOfMemory):
                raise
            self.session.execute(set_local({"max_parallel_maintenance_workers": "0"}))
            self.session.connection().exec_driver_sql(statement)


def is_computed(statement: str) -> bool:
    """Return whether a statement makes an index on an expression, which is most of its work."""
    _, _, keys = statement.partition(" USING ")
    first = keys.partition("(")[2].partition(")")[0]
    return "(" in first


def _load(
    connection: psycopg.Connection[Any],
    create: sql.Composed,
    copy: sql.Composed,
    types: list[str],
    rows: Iterable[Sequence[Any]],
) -> None:
    with connection.cursor() as cursor:
        cursor.execute(create)
        with cursor.copy(copy) as stream:
            stream.set_types(types)
            for row in rows:
                stream.write_row(row)


async def _load_async(
    connection: psycopg.AsyncConnection[Any],
    create: sql.Composed,
    copy: sql.Composed,
    types: list[str],
    rows: Iterable[Sequence[Any]],
) -> None:
    async with connection.cursor() as cursor:
        await cursor.execute(create)
        async with cursor.copy(copy) as stream:
            stream.set_types(types)
            for row in rows:
                await stream.write_row(row)
