"""A database for rehearsals: one transaction, which is always rolled back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property

from sqlalchemy import Connection
from sqlalchemy.orm import sessionmaker

from pgcorpus.db.engine import Database
from pgcorpus.db.errors import translate_errors
from pgcorpus.db.scope import Scope
from pgcorpus.db.search.driver import Sent
from pgcorpus.db.search.pipeline import Rows
from pgcorpus.db.uow import WorkSession


class Rehearsal(Database):
    """A database whose units of work all take place within one transaction.

    They see what earlier ones did, and their commits are savepoints. They work as the role that the
    transaction has, whatever that is: no login is refused.

    Args:
        database: Which.
        connection: In the transaction.
    """

    def __init__(self, database: Database, connection: Connection) -> None:
        # Timings of a rehearsal are not kept.
        super().__init__(replace(database.settings, metrics_enabled=False))
        self.connection = connection

    @cached_property
    def _sessions(self) -> sessionmaker[WorkSession]:
        return sessionmaker(
            self.connection,
            class_=WorkSession,
            join_transaction_mode="create_savepoint",
            expire_on_commit=False,
        )

    @cached_property
    def _async_sessions(self) -> sessionmaker[WorkSession]:
        raise RuntimeError("a rehearsal has one connection, which is not asyncio's")

    def _exchange(
        self,
        scope: Scope | None,
        statements: Sequence[Sent],
        settings: Mapping[str, str] | None = None,
    ) -> list[Rows]:
        """Search within the transaction, where what was done here can be found."""
        with self.unit_of_work(scope) as work:
            rows = work.searches.exchange(statements, settings)
            work.commit()
        return rows

    def _guard(self, connection: Connection, *, serving: bool) -> None:  # noqa: ARG002
        return None


@contextmanager
def rehearsal(database: Database) -> Iterator[Rehearsal]:
    """Provide a live database in a transaction that is rolled back at the end, also after an error.

    All statements see one snapshot and what was done here, not what others do meanwhile. Rows that
    are written stay locked until the end.
    """
    engine = database.engine.execution_options(isolation_level="REPEATABLE READ")
    with translate_errors(), engine.connect() as connection, connection.begin() as transaction:
        try:
            yield Rehearsal(database, connection)
        finally:
            transaction.rollback()
