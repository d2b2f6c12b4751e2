"""Logins for tests: roles are of the whole server, so each has a name of its own and is dropped."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from uuid import uuid4

from sqlalchemy import text

from pgcorpus.db.choices import Group
from pgcorpus.db.engine import Database

PASSWORD = "invented_with_a_'quote'_and_a_%"


@contextmanager
def logged_in(database: Database, group: Group | None) -> Iterator[Database]:
    """The same database for a new login of the group, or for one of no group at all."""
    name = f"{group or 'nobody'}_{uuid4().hex[:12]}"
    with database.unit_of_work() as work:
        work.roles.create_login(name, group or "rag_read_only", PASSWORD)
        if group is None:
            work.session.execute(text(f"REVOKE rag_read_only FROM {name}"))
        work.commit()
    url = database.url.set(username=name, password=PASSWORD)
    own = Database(replace(database.settings, database_url=url))
    try:
        yield own
    finally:
        own.close()
        with database.engine.begin() as connection:
            # On PostgreSQL 16 and newer whoever made a role may give it to itself.
            connection.execute(text(f"GRANT {name} TO CURRENT_USER"))
            connection.execute(text(f"DROP OWNED BY {name}"))
            connection.execute(text(f"DROP ROLE {name}"))
