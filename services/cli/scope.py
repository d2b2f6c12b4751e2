"""The options that say whose memories a command is about."""

from __future__ import annotations

from typing import Annotated

import typer

from db.base import as_uuid
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


def find_scope(tenant_id: str | None, user_id: str | None) -> Scope | None:
    """The scope that the options name, or None where there are none.

    Raises:
        MissingScope: One of them is no UUID.
    """
    ids = {}
    for option, given in (("tenant_id", tenant_id), ("user_id", user_id)):
        ids[option] = None if given is None else as_uuid(given)
        if given is not None and ids[option] is None:
            raise MissingScope(
                f"Invalid UUID format: {given!r}; "
                "one looks like 11111111-1111-1111-1111-111111111111"
            )
    return Scope(**ids) if any(ids.values()) else None


def named_scope(tenant_id: str | None, user_id: str | None) -> Scope:
    """The scope that the options name.

    Raises:
        MissingScope: They name none, or one of them is no UUID.
    """
    scope = find_scope(tenant_id, user_id)
    if scope is None:
        raise MissingScope("say whose memories: name --user-id UUID or --tenant-id UUID")
    return scope
