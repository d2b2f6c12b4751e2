"""What every repository has: a session, and the fast way in."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import psycopg
from psycopg import sql
from sqlalchemy import TableClause, column, table, text
from sqlalchemy.orm import Session
from sqlalchemy.util import await_only


class Repository:
    """Reads and writes some tables through one session. It never commits."""

    def __init__(self, session: Session) -> None:
        self.session = session

    @contextmanager
    def staged(
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
        create = sql.SQL("CREATE TEMPORARY TABLE {} ({})").format(sql.Identifier(name), fields)
        copy = sql.SQL("COPY {} FROM STDIN (FORMAT BINARY)").format(sql.Identifier(name))
        connection: Any = self.session.connection().connection.driver_connection
        if isinstance(connection, psycopg.AsyncConnection):
            await_only(_load_async(connection, create, copy, list(columns.values()), rows))
        else:
            _load(connection, create, copy, list(columns.values()), rows)
        self.session.execute(text(f'ANALYZE "{name}"'))
        yield table(name, *(column(key) for key in columns))
        self.session.execute(text(f'DROP TABLE "{name}"'))


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
