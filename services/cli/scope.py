"""The options that name the scope of a command."""

from __future__ import annotations

from collections.abc import Mapping
from inspect import Parameter
from typing import TYPE_CHECKING, Annotated, Any
from uuid import UUID

import typer

from pgcorpus.services.cli.derive import parameter
from pgcorpus.services.corpus import CorpusServices, Scoping

if TYPE_CHECKING:
    from pgcorpus.db.engine import Database
    from pgcorpus.db.scope import Scope


TenantId = Annotated[
    str | None,
    typer.Option(
        metavar="UUID", help="The tenant that the command is about; see: pgcorpus tenants list."
    ),
]
UserId = Annotated[
    str | None,
    typer.Option(
        metavar="UUID",
        help="The user of the personal memories, or one of the tenant; see: pgcorpus users list.",
    ),
]


def scope_parameters(scoping: Scoping) -> list[Parameter]:
    """Return the parameters that name the scope of the items that a command is about."""
    tenant = parameter("tenant_id", TenantId)
    match scoping:
        case "none":
            return []
        case "optional":
            return [tenant]
        case "required":
            return [parameter("user_id", UserId), tenant]


def read_scope(services: CorpusServices, given: Mapping[str, Any]) -> list[Scope | None]:
    """Read the scope of a command's items, for the services of a corpus.

    Returns:
        The scope, or None for shared items; nothing for a corpus without scopes.

    Raises:
        BadParameter: It is no UUID, or none is given and the corpus has no shared items.
    """
    from pgcorpus.db.scope import Scope

    if services.scoping == "none":
        return []
    user, tenant = uuid_of(given.get("user_id")), uuid_of(given["tenant_id"])
    if user is not None or tenant is not None:
        return [Scope(tenant, user)]
    if services.scoping == "required":
        raise typer.BadParameter(
            f"{services.name} belongs to a user or a tenant: give --user-id or --tenant-id; "
            "see: pgcorpus users list, pgcorpus tenants list"
        )
    return [None]


def uuid_of(value: str | None) -> UUID | None:
    """Parse a key, for options that take one.

    Raises:
        BadParameter: It is no UUID.
    """
    from pgcorpus.db.base import as_uuid

    if value is None:
        return None
    uuid = as_uuid(value)
    if uuid is None:
        raise typer.BadParameter(
            f"Invalid UUID format: {value!r}; it looks like 11111111-1111-1111-1111-111111111111"
        )
    return uuid


def find_scope(database: Database, tenant_id: str | None, user_id: str | None) -> Scope | None:
    """Return the scope that the options name, or None where there are none.

    Raises:
        BadParameter: One of them is no UUID.
        MissingScope: The user's memories are a tenant's.
        NotFound: There is no such tenant or user, or the user is not of the tenant.
    """
    from pgcorpus.db.scope import Scope

    tenant, user = uuid_of(tenant_id), uuid_of(user_id)
    if tenant is None and user is None:
        return None
    scope = Scope(tenant, user)
    with database.unit_of_work() as work:
        work.enter(scope)
        work.tenancy.require_scope()
    return scope


def require_scope(database: Database, tenant_id: str | None, user_id: str | None) -> Scope:
    """Return the scope that the options name.

    Raises:
        BadParameter: One of them is no UUID.
        MissingScope: They name none, or the user's memories are a tenant's.
        NotFound: There is no such tenant or user, or the user is not of the tenant.
    """
    from pgcorpus.db.errors import MissingScope

    scope = find_scope(database, tenant_id, user_id)
    if scope is None:
        raise MissingScope(
            "memories belong to a user or a tenant: give --user-id UUID or --tenant-id UUID"
        )
    return scope
