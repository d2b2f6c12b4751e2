"""The options that say whose memories a command is about."""

from __future__ import annotations

from typing import Annotated

import typer

from db.base import as_uuid
from db.engine import Database
from db.errors import MissingScope
from db.scope import Scope

TenantId = Annotated[
    str | None,
    typer.Option(metavar="UUID", help="The tenant whose memories; see: pgcorpus tenants list."),
]
UserId = Annotated[
    str | None,
    typer.Option(
        metavar="UUID",
        help="The user whose personal memories, or who of the tenant; see: pgcorpus users list.",
    ),
]


def find_scope(database: Database, tenant_id: str | None, user_id: str | None) -> Scope | None:
    """The scope that the options name, or None where there are none.

    Raises:
        MissingScope: One of them is no UUID, or the user's memories are a tenant's.
        NotFound: There is no such tenant or user, or the user is not of the tenant.
    """
    ids = {}
    for option, given in (("tenant_id", tenant_id), ("user_id", user_id)):
        ids[option] = None if given is None else as_uuid(given)
        if given is not None and ids[option] is None:
            raise MissingScope(
                f"Invalid UUID format: {given!r}; "
                "one looks like 11111111-1111-1111-1111-111111111111"
            )
    if not any(ids.values()):
        return None
    scope = Scope(**ids)
    with database.unit_of_work() as work:
        work.enter(scope)
        work.tenancy.require_scope()
    return scope


def named_scope(database: Database, tenant_id: str | None, user_id: str | None) -> Scope:
    """The scope that the options name.

    Raises:
        MissingScope: They name none, one of them is no UUID, or the user's memories are a tenant's.
        NotFound: There is no such tenant or user, or the user is not of the tenant.
    """
    scope = find_scope(database, tenant_id, user_id)
    if scope is None:
        raise MissingScope("say whose memories: name --user-id UUID or --tenant-id UUID")
    return scope
