"""A database of one's own for a while, on the server of another."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from traceback import clear_frames
from typing import Final

from psycopg.errors import InsufficientPrivilege
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from db import migrations
from db.engine import Database
from db.errors import DataLayerError, NotPermitted, raise_translated, translated

logger = logging.getLogger(__name__)

PREFIX: Final = "pgcorpus_eval_"
"""What the names of all such databases begin with: only a killed process leaves one behind."""


@contextmanager
def scratch_database(database: Database) -> Iterator[Database]:
    """Make a database with the newest schema, and drop it at the end, however that comes.

    Args:
        database: Any database of the server; nothing in it is read or changed.

    Raises:
        NotPermitted: The role may not create databases.
        DatabaseNotReady: The server lacks what the schema needs.
        DatabaseUnavailable: The server does not answer.
    """
    name = f"{PREFIX}{secrets.token_hex(6)}"
    scratch = Database(
        # Timings of these searches are nobody's, and would be written when there is no table.
        replace(
            database.settings,
            database_url=database.url.set(database=name),
            metrics_enabled=False,
        )
    )
    try:
        _create(database, name)
        migrations.upgrade(scratch)
        yield scratch
    except BaseException as error:
        # A Ctrl-C may come while a connection is being made. Its traceback keeps the socket open;
        # the server would wait a minute for the client's next word, and the drop for the server.
        clear_frames(error.__traceback__)
        raise
    finally:
        scratch.close()
        # In a thread, which a second Ctrl-C does not stop.
        with ThreadPoolExecutor(1, "drop") as thread:
            thread.submit(_drop, database, name).result()


def analyze(scratch: Database) -> None:
    """Renew the statistics of all tables, as autovacuum does in databases that live longer."""
    with translated():
        _run(scratch, "ANALYZE")


def _create(database: Database, name: str) -> None:
    try:
        # template0, as somebody may be connected to template1, which then cannot be copied.
        _run(database, f'CREATE DATABASE "{name}" TEMPLATE template0')
    except DBAPIError as error:
        if isinstance(error.orig, InsufficientPrivilege):
            role = database.url.username or "the role that connects"
            raise NotPermitted(
                f"an evaluation makes a database of its own, and {role} may not create one; "
                f'a superuser allows it with: ALTER ROLE "{role}" CREATEDB'
            ) from error
        raise_translated(error)


def _drop(database: Database, name: str) -> None:
    statement = f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)'
    try:
        _run(database, statement)
    except (DBAPIError, DataLayerError) as error:  # the end must not hide what ended it
        logger.warning("%s was not dropped (%s); do it with: %s", name, error, statement)


def _run(database: Database, statement: str) -> None:
    """Run a statement outside of any transaction, without a time limit."""
    with database.schema_engine().connect() as connection:
        connection.execution_options(isolation_level="AUTOCOMMIT").execute(text(statement))
