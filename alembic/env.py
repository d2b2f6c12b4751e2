"""How revisions run: one deployment at a time, each revision a transaction, no long waits."""

from __future__ import annotations

from typing import TYPE_CHECKING

from alembic import context
from alembic.util import CommandError
from sqlalchemy import text

import db.models  # noqa: F401 - fills the metadata that `alembic check` compares
from db.base import Base
from db.engine import Database
from db.errors import DataLayerError
from db.migrations import VERSION_TABLE, one_at_a_time, refuse_unknown_revision, require_server

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
    """Run what the command line asked for, on one connection."""
    require_server(connection)
    with one_at_a_time(connection):
        context.configure(connection=connection, **OPTIONS)
        refuse_unknown_revision(context.get_context(), context.script)
        with context.begin_transaction():
            context.run_migrations()
        # A database that was downgraded to its base keeps no trace, not even of the versions.
        if not context.get_context().get_current_heads():
            connection.execute(text(f"DROP TABLE IF EXISTS {VERSION_TABLE}"))
        connection.commit()


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
        with Database.from_env().schema_engine().connect() as own:
            run(own)
    except DataLayerError as error:
        raise CommandError(str(error)) from error  # the command line shows it without a trace
