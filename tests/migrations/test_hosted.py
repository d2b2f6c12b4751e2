"""Servers where no role of ours is a superuser, and others made extensions and groups."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
from sqlalchemy import create_engine, text

from pgcorpus.db.engine import Database
from pgcorpus.db.errors import DatabaseNotReady, NotPermitted
from pgcorpus.db.migrations import drift, upgrade
from pgcorpus.db.scratch import scratch_database
from tests.conftest import Databases, settings_for
from tests.logins import logged_in


def test_who_may_not_make_extensions_is_told_what_an_administrator_runs(
    databases: Databases,
) -> None:
    """The whole list at once, with the database's name; after it the upgrade goes through."""
    with databases.opened(owner=databases.make_owner()) as database:
        with pytest.raises(DatabaseNotReady) as refused:
            upgrade(database)
        said = str(refused.value)
        assert "may not make the extension vector" in said
        assert f"once in the database {database.url.database}, with: " in said
        assert "as the owner" not in said

        engine = create_engine(databases.superuser_of(database.url))
        with engine.begin() as connection:
            connection.execute(text(said.partition("with: ")[2]))
        engine.dispose()
        upgrade(database)
        assert drift(database) == []


def test_an_owner_upgrades_where_another_made_the_groups(
    databases: Databases, hosted: object, prepared: str
) -> None:
    """It makes logins once an administrator lets it, as the refusal says.

    Before PostgreSQL 16 CREATEROLE was enough for that.
    """
    second = databases.make_owner()
    url = databases.make(prepared, owner=second)
    database = Database(settings_for(url))
    try:
        upgrade(database)
        assert drift(database) == []
        with scratch_database(database) as scratch:  # an evaluation needs no more
            assert drift(scratch) == []
        with database.engine.connect() as connection:
            searcher = text("SELECT to_regrole('rag_search_' || current_database()) IS NOT NULL")
            assert connection.scalar(searcher)
        unless_let = (
            nullcontext()
            if databases.version < 16
            else pytest.raises(NotPermitted, match=r"GRANT rag_read_only TO .* WITH ADMIN OPTION")
        )
        with unless_let, database.unit_of_work() as work:
            work.roles.create_login("nobody_yet", "rag_read_only", "invented")
        databases._run(f"GRANT rag_read_only TO {second.username} WITH ADMIN OPTION")
        with logged_in(database, "rag_read_only") as reader, reader.unit_of_work() as work:
            assert work.roles.list_members()
    finally:
        database.close()
        databases.drop(url)
