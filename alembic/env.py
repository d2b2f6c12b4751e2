"""The run of revisions: one deployment at a time, no long waits, no row dropped unasked.

Up, each revision is a transaction. Down, all of them are one, and run once before to see what would
go with them.
"""

from __future__ import annotations

import sys
from functools import partial
from typing import TYPE_CHECKING

from alembic import context
from alembic.util import CommandError
from sqlalchemy import text

import pgcorpus.db.models  # fills the metadata that `alembic check` compares
import pgcorpus.db.operations  # noqa: F401 - registers the operations of revisions
from pgcorpus.db.base import Base
from pgcorpus.db.engine import Database
from pgcorpus.db.errors import DataLayerError
from pgcorpus.db.migrations import (
    VERSION_TABLE,
    Loss,
    one_at_a_time,
    refuse_unknown_revision,
    rehearse,
    require_server,
)

if TYPE_CHECKING:
    from sqlalchemy import Connection
    from sqlalchemy.schema import SchemaItem


def is_ours(_object: SchemaItem, name: str | None, kind: str, reflected: bool, to: object) -> bool:
    """Leave out tables of others, and indexes `pgcorpus models` makes for models added later."""
    if not reflected or to is not None:
        return True
    return kind != "table" and not (kind == "index" and "_hnsw_" in (name or ""))


OPTIONS = {
    "target_metadata": Base.metadata,
    "version_table": VERSION_TABLE,
    "transaction_per_migration": True,
    "compare_type": True,
    "compare_server_default": True,
    "include_object": is_ours,
    # CHECK constraints are compared, by name, only on request.
    "autogenerate_plugins": ["alembic.autogenerate.*", "alembic.ext.checkconstraint_byname"],
}


def run(connection: Connection) -> None:
    """Run what the command line asked for, on one connection, and tell those who typed it."""
    require_server(connection)
    with one_at_a_time(connection):
        context.configure(connection=connection, **OPTIONS)
        before = refuse_unknown_revision(context.get_context(), context.script)
        after = run_alone(connection)
    if find_command() in {"upgrade", "downgrade"}:
        context.config.attributes.get("tell", lambda _before, _after: None)(before, after)


def run_alone(connection: Connection) -> tuple[str, ...]:
    """Run the revisions while no other deployment does; return those that it ended at."""
    if find_command() != "downgrade":
        heads = migrate(connection)
        connection.commit()
        return heads
    loss = rehearse(connection, partial(migrate, connection))
    if loss.rows:
        context.config.attributes.get("agree", ask)(loss)
    with connection.begin():
        return migrate(connection)


def find_command() -> str:
    """Return the name of Alembic's command."""
    return str(context.get_context().opts["fn"].__name__)


def migrate(connection: Connection) -> tuple[str, ...]:
    """Run the revisions; within a transaction, if there is one, and return those it ended at."""
    context.configure(connection=connection, **OPTIONS)
    with context.begin_transaction():
        context.run_migrations()
    heads = context.get_context().get_current_heads()
    if not heads:  # the base keeps no trace, not even of the versions
        connection.execute(text(f"DROP TABLE IF EXISTS {VERSION_TABLE}"))
    return heads


def ask(loss: Loss) -> None:
    """Ask whoever typed ``alembic downgrade``."""
    if context.get_x_argument(as_dictionary=True).get("yes") == "true":
        return
    if not sys.stdin.isatty():
        raise CommandError(f"{loss}\nTo agree: alembic -x yes=true downgrade ...")
    sys.stderr.write(f"{loss}\nGo on? [y/N] ")
    if input().strip().lower() not in {"y", "yes"}:
        raise CommandError("nothing was changed")


def tell(before: tuple[str, ...], after: tuple[str, ...]) -> None:
    """Tell whoever typed ``alembic upgrade`` or ``alembic downgrade`` what it did."""
    names = [", ".join(heads) or "nothing" for heads in (before, after)]
    if before == after:
        sys.stderr.write(f"the schema was at {names[1]} already: nothing was done\n")
    else:
        sys.stderr.write(f"the schema went from {names[0]} to {names[1]}\n")


if context.is_offline_mode():
    context.configure(dialect_name="postgresql", literal_binds=True, **OPTIONS)
    with context.begin_transaction():
        context.run_migrations()
    if context.get_revision_argument() is None:  # to the base: no trace, as in run()
        context.execute(f"DROP TABLE {VERSION_TABLE}")
elif (given := context.config.attributes.get("connection")) is not None:
    run(given)
else:
    try:
        database = Database.from_env()
        typed = context.config.cmd_opts
        if typed and typed.cmd[0].__name__ == "upgrade" and database.make_server():
            sys.stderr.write(f"an embedded PostgreSQL was made in {database.settings.home}\n")
        context.config.attributes["tell"] = tell
        with database.schema_engine().connect() as own:
            run(own)
    except DataLayerError as error:
        raise CommandError(str(error)) from error  # the command line shows it without a trace
