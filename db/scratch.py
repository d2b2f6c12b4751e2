"""Make a temporary schema or database for an evaluation, and drop it."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from traceback import clear_frames
from typing import Any, Final

from psycopg.errors import InsufficientPrivilege
from sqlalchemy import URL, Connection, Row, text
from sqlalchemy.exc import DBAPIError

from pgcorpus.db import migrations
from pgcorpus.db.choices import GROUPS
from pgcorpus.db.engine import Database
from pgcorpus.db.errors import (
    DatabaseNotReady,
    DataLayerError,
    NotPermitted,
    raise_translated,
    translate_errors,
)

logger = logging.getLogger(__name__)

PREFIX: Final = "pgcorpus_eval_"
"""The beginning of the names of all scratch schemas: only a killed process leaves one behind."""

IS_SUPERUSER: Final = text("SELECT rolsuper FROM pg_roles WHERE rolname = current_user")

HERE: Final = text("""
    SELECT quote_ident(current_user) AS me, quote_ident(current_database()) AS database,
           quote_ident(searcher) AS searcher,
           EXISTS (SELECT FROM pg_roles WHERE rolname = searcher) AS has_searcher,
           (SELECT count(*) = cardinality(CAST(:groups AS text[])) FROM pg_roles
            WHERE rolname = ANY (CAST(:groups AS text[]))) AS has_groups
    FROM (SELECT ('rag_search_' || current_database())::name AS searcher) AS named
""")
"""Names for statements. Searches run as the searcher; a database that was copied or renamed has
that of its former name."""

HOMES: Final = text("""
    SELECT DISTINCT quote_ident(nspname) AS name,
           has_schema_privilege('public', pg_namespace.oid, 'USAGE') AS open
    FROM pg_extension JOIN pg_namespace ON pg_namespace.oid = extnamespace
    WHERE extname IN ('vector', 'pg_trgm', 'pgcrypto') ORDER BY name
""")
"""The schemas of the extensions."""

MAY_USE: Final = text("SELECT has_schema_privilege(:role, to_regnamespace(:schema), 'USAGE')")

DROP_SEARCHER: Final = """
    DO $$
    DECLARE
        searcher CONSTANT name := 'rag_search_' || current_database();
        its_id CONSTANT regrole := to_regrole(quote_ident(searcher));
    BEGIN
        IF starts_with(shobj_description(its_id, 'pg_authid'), '{prefix}')
            AND NOT EXISTS (
                SELECT FROM pg_auth_members JOIN pg_roles ON pg_roles.oid = member
                WHERE roleid = its_id AND starts_with(rolname, '{prefix}')) THEN
            EXECUTE 'DROP ROLE ' || quote_ident(searcher);
        END IF;
    EXCEPTION WHEN dependent_objects_still_exist OR insufficient_privilege THEN
        NULL;  -- of an upgrade, or made by another login
    END $$
"""
"""The last evaluation in a database that has no searcher of its own drops the one that the first
made."""

PATIENCE: Final = text("SET LOCAL lock_timeout = '30s'")
"""The longest wait for a login that reads the schema. Where it is over, the caller is told what to
run then."""

END_OTHERS: Final = text("""
    SELECT pg_terminate_backend(pid, 5000)
    FROM (SELECT DISTINCT pid FROM pg_locks JOIN pg_class ON pg_class.oid = relation
          WHERE relnamespace = to_regnamespace(:name) AND pid <> pg_backend_pid()
              AND pg_locks.database = (SELECT oid FROM pg_database
                                       WHERE datname = current_database())) AS holding
    JOIN pg_stat_activity USING (pid) WHERE pg_has_role(usesysid, 'USAGE')
""")
"""Ends the connections that were left open, as DROP DATABASE ... WITH (FORCE) does."""


@contextmanager
def scratch_database(database: Database) -> Iterator[Database]:
    """Provide a database with the newest schema and no rows.

    It is dropped at the end, also after an error.

    A superuser gets a database of its own. Who is none may not make the extensions in one, and
    gets a schema beside the others of the same database. There all work is done as a role that
    owns the schema and has no right to anything else in the database.

    Args:
        database: Any database of the server, for a superuser; else one that was upgraded. No
            table of its schema is changed but the audit log, where changes of the schema are noted.

    Raises:
        NotPermitted: The role may make neither.
        DatabaseReadOnly: It is a standby.
        DatabaseNotReady: The server lacks what the schema needs, or was not upgraded.
        DatabaseUnavailable: The server does not answer.
        SettingsError: A transaction pooler is all that is known of the database.
    """
    name = f"{PREFIX}{secrets.token_hex(6)}"
    with translate_errors(), database.autocommitting() as work:
        work.operations.require_writable()  # or the drop of what was not made would warn
        by_superuser = bool(work.session.scalar(IS_SUPERUSER))
    create, drop = (_create, _drop) if by_superuser else (_create_schema, _drop_schema)
    scratch: Database | None = None
    try:
        scratch = _with_address(database, create(database, name))
        migrations.upgrade(scratch)
        yield scratch
    except BaseException as error:
        # A Ctrl-C may come while a connection is being made. Its traceback keeps the socket open;
        # the server would wait a minute for the client's next word, and the drop for the server.
        clear_frames(error.__traceback__)
        raise
    finally:
        if scratch is not None:
            scratch.close()
        # In a thread, which a second Ctrl-C does not stop.
        with ThreadPoolExecutor(1, "drop") as thread:
            thread.submit(drop, database, name).result()


def analyze(scratch: Database) -> None:
    """Renew the statistics of all tables, as autovacuum does in databases that live longer."""
    with translate_errors():
        _run(scratch, "ANALYZE")


def _with_address(database: Database, url: URL) -> Database:
    """Return the same settings for another address.

    It is past a pooler, and knows neither names nor options.

    Timings of these searches are not kept: they would be written when there is no table.
    """
    return Database(
        replace(
            database.settings,
            database_url=url,
            admin_url=None if database.settings.admin_url is None else url,
            pooler="none",
            metrics_enabled=False,
        )
    )


def _address(database: Database) -> URL:
    """Return the server's own address."""
    return database.settings.admin_url or database.url


def _create(database: Database, name: str) -> URL:
    """Make a database."""
    with translate_errors():
        # template0, as another may be connected to template1, which then cannot be copied.
        _run(database, f'CREATE DATABASE "{name}" TEMPLATE template0')
    return _address(database).set(database=name)


def _drop(database: Database, name: str) -> None:
    """Drop a database, and the role that its searches ran as."""
    statements = (
        f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)',
        f'DROP ROLE IF EXISTS "rag_search_{name}"',
    )
    try:
        for statement in statements:
            _run(database, statement)
    except (DBAPIError, DataLayerError) as error:  # the end must not hide what ended it
        _warn_of_leftover(name, error, "; ".join(statements))


def _create_schema(database: Database, name: str) -> URL:
    """Make a schema and its owner, and return the address at which that owner works in it."""
    with translate_errors(), database.schema_engine().begin() as connection:
        here = connection.execute(HERE, {"groups": [*GROUPS]}).one()
        if not here.has_groups:
            raise DatabaseNotReady(
                "the server lacks the roles of pgcorpus, which an evaluation needs; make them "
                "with: pgcorpus db upgrade"
            )
        me = here.me
        may_make_roles = f"ALTER ROLE {me} CREATEROLE"
        for statement, remedy in (
            # NOINHERIT: it becomes the searcher in an upgrade, and has none of its rights itself.
            (f'CREATE ROLE "{name}" NOLOGIN NOINHERIT', may_make_roles),
            (f'GRANT "{name}" TO CURRENT_USER', may_make_roles),
            *(() if here.has_searcher else _statements_for_searcher(here, name, may_make_roles)),
            (
                f'GRANT {here.searcher} TO "{name}"',
                f"GRANT {here.searcher} TO {me} WITH ADMIN OPTION",
            ),
            (
                f'CREATE SCHEMA "{name}" AUTHORIZATION "{name}"',
                f"GRANT CREATE ON DATABASE {here.database} TO {me}",
            ),
        ):
            _make(connection, statement, remedy)
        homes = connection.execute(HOMES).all()
        for home in homes:
            if not home.open:
                _let_use(connection, me, name, home.name)
        # Without it Alembic would see the version of the schema beside.
        connection.execute(text(f'SET LOCAL role TO "{name}"'))
        connection.execute(
            text(f"""
                CREATE TABLE "{name}".{migrations.VERSION_TABLE} (
                    version_num varchar(32) CONSTRAINT {migrations.VERSION_TABLE}_pkc PRIMARY KEY)
            """)
        )
    path = ",".join((name, *(home.name for home in homes)))
    options = f"-c role={name} -c search_path={_escape_option(path)}"
    url = _address(database)
    before = url.normalized_query.get("options", ())
    return url.update_query_dict({"options": " ".join((*before, options))})


def _statements_for_searcher(here: Row[Any], name: str, remedy: str) -> Iterator[tuple[str, str]]:
    """Yield the statements that make the role of searches, marked to be dropped with the schema."""
    yield f"CREATE ROLE {here.searcher} NOLOGIN NOINHERIT", remedy
    yield f"COMMENT ON ROLE {here.searcher} IS '{name}'", remedy


def _make(connection: Connection, statement: str, remedy: str) -> None:
    """Run a statement.

    Raises:
        NotPermitted: The role may not, with what an administrator may run.
    """
    try:
        connection.execute(text(statement))
    except DBAPIError as error:
        if isinstance(error.orig, InsufficientPrivilege):
            raise NotPermitted(
                "an evaluation makes a schema of its own and a role that owns it: log in as the "
                f"owner of the database. This login may not ({error.orig.diag.message_primary}); "
                f"an administrator allows it with: {remedy}"
            ) from error
        raise_translated(error)


def _let_use(connection: Connection, me: str, role: str, schema: str) -> None:
    """Grant a role the use of an extension's schema, where it is not open to all."""
    grant = f"GRANT USAGE ON SCHEMA {schema} TO"
    remedy = f"{grant} {me} WITH GRANT OPTION"
    _make(connection, f'{grant} "{role}"', remedy)
    # To who may not grant it PostgreSQL only gives a warning.
    if not connection.scalar(MAY_USE, {"role": role, "schema": schema}):
        raise NotPermitted(
            f"an evaluation's role needs the extensions in the schema {schema}, which is not open "
            f"to it; an administrator allows it with: {remedy}"
        )


def _drop_schema(database: Database, name: str) -> None:
    """Drop a schema and its owner, where they were made."""
    statements = (
        f'SET LOCAL ROLE "{name}"',  # a login need not inherit what it owns
        f'DROP SCHEMA IF EXISTS "{name}" CASCADE',
        f'DROP OWNED BY "{name}"',
        "RESET ROLE",
        f'DROP ROLE "{name}"',
    )
    try:
        with translate_errors(), database.schema_engine().begin() as connection:
            connection.execute(PATIENCE)
            opened = [home.name for home in connection.execute(HOMES) if not home.open]
            connection.execute(END_OTHERS, {"name": name})
            if connection.scalar(text("SELECT to_regrole(:name) IS NOT NULL"), {"name": name}):
                for home in opened:  # by this login, which DROP OWNED would have to be again
                    connection.execute(text(f'REVOKE USAGE ON SCHEMA {home} FROM "{name}"'))
                for statement in statements:
                    connection.execute(text(statement))
                connection.execute(text(DROP_SEARCHER.format(prefix=PREFIX)))
    except (DBAPIError, DataLayerError) as error:  # the end must not hide what ended it
        _warn_of_leftover(name, error, "; ".join(statements))


def _warn_of_leftover(name: str, error: Exception, statement: str) -> None:
    logger.warning("%s was not dropped (%s); do it with: %s", name, error, statement)


def _escape_option(value: str) -> str:
    """Escape a value among the options of an address, where a space ends it."""
    return value.replace("\\", "\\\\").replace(" ", "\\ ")


def _run(database: Database, statement: str) -> None:
    """Run a statement outside of any transaction, without a time limit."""
    with database.schema_engine().connect() as connection:
        connection.execution_options(isolation_level="AUTOCOMMIT").execute(text(statement))
