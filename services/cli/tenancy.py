"""pgcorpus tenants, pgcorpus users: the owners of scopes."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any, Final
from uuid import UUID, uuid4

import typer

from pgcorpus.db.choices import LEAST_CEILING, MOST_TOKENS
from pgcorpus.db.text import count_of
from pgcorpus.services.cli.output import AsJson, Limit, print_json, say, table, write
from pgcorpus.services.cli.scope import uuid_of

if TYPE_CHECKING:
    from pgcorpus.db.models.memory import Tenant, User
    from pgcorpus.db.uow import UnitOfWork


tenants = typer.Typer(
    help="Tenants: users of one share its memories, and no other user sees them.",
    no_args_is_help=True,
)
users = typer.Typer(
    help="Users: each has memories of their own, or shares those of their tenant.",
    no_args_is_help=True,
)

MAX_LISTED: Final = 50
LOCAL: Final = "local"
"""The ``auth_provider`` of a user whom no other provider knows."""

SLUG: Final = re.compile("[a-z0-9]+(-[a-z0-9]+)*")
EMAIL: Final = re.compile(r"[^@\s]+@[^@\s]+")
"""An email address by the constraint ``valid_email``, as ``SLUG`` is by ``valid_slug``."""

TENANT_FIELDS: Final = ("id", "name", "slug", "created_at")
USER_FIELDS: Final = (
    *("id", "tenant_id", "auth_provider", "external_id"),
    *("email", "display_name", "created_at"),
)


def _make_shape_check(
    pattern: re.Pattern[str], constraint: str
) -> Callable[[str | None], str | None]:
    def check(value: str | None) -> str | None:
        if value is not None and not pattern.fullmatch(value):
            from pgcorpus.db.errors import MEANINGS

            raise typer.BadParameter(MEANINGS[constraint])
        return value

    return check


def _check_filled(value: str | None) -> str | None:
    if value is not None and not value.strip():
        raise typer.BadParameter("it is blank; give at least one letter")
    return value


def _provider(value: str) -> str:
    if not value.strip() or ":" in value:
        raise typer.BadParameter("an auth_provider is not blank and has no colon")
    return value


AsSql = Annotated[
    bool, typer.Option("--sql", help="Print the statement instead of running it; no database.")
]
Key = Annotated[
    str | None, typer.Option("--id", metavar="UUID", help="Its key; by default a random one.")
]


@tenants.command("create")
def create_tenant(
    name: Annotated[str, typer.Argument(callback=_check_filled, help="The name that people read.")],
    slug: Annotated[
        str | None,
        typer.Option(
            callback=_make_shape_check(SLUG, "valid_slug"),
            help="Short name, unique; by default made of the name.",
        ),
    ] = None,
    key: Key = None,
    as_sql: AsSql = False,
    as_json: AsJson = False,
) -> None:
    """Add a tenant.

    Example: pgcorpus tenants create "Driscoll Ltd" --slug driscoll
    """
    from pgcorpus.db.models.memory import Tenant
    from pgcorpus.db.repositories.tenancy import tenant_sql

    tenant = Tenant(id=uuid_of(key) or uuid4(), name=name, slug=slug or _slug(name), settings={})
    if as_sql:
        _refuse_both(as_json)
        write(f"{tenant_sql(tenant)}\n")
    else:
        with _administering() as work:
            tenant = work.tenancy.create_tenant(name, slug=tenant.slug, tenant_id=tenant.id)
            work.commit()
    if as_json:
        print_json(_fields(tenant, TENANT_FIELDS))
        return
    say(f"tenant {tenant.slug}: {tenant.id}")
    say(f"add its users with: pgcorpus users create --email E --tenant {tenant.slug}")
    say(f"import its memories with: pgcorpus import memory DIR --tenant-id {tenant.id}")


@tenants.command("list")
def list_tenants(
    limit: Limit = MAX_LISTED,
    after: Annotated[
        str | None, typer.Option(metavar="SLUG", help="Go on behind this slug.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show the tenants, by slug."""
    with _administering() as work:
        found = work.tenancy.list_tenants(limit=limit + 1, after=after)
    shown = found[:limit]
    if as_json:
        print_json([_fields(tenant, TENANT_FIELDS) for tenant in shown])
    else:
        rows = [(each.id, each.slug, each.name, f"{each.created_at:%Y-%m-%d}") for each in shown]
        table(count_of(len(rows), "tenant"), ["id", "slug", "name", "since"], rows)
    if len(found) > limit:
        say(f"there are more: pgcorpus tenants list --after {shown[-1].slug}")


@tenants.command("ceiling")
def set_ceiling(
    tenant: Annotated[str | None, typer.Argument(metavar="SLUG|UUID", help="The tenant.")] = None,
    user: Annotated[
        str | None, typer.Option(metavar="UUID", help="A user without a tenant instead.")
    ] = None,
    every: Annotated[
        bool, typer.Option("--every", help="All tenants and users without a ceiling of their own.")
    ] = False,
    tokens: Annotated[
        int | None,
        typer.Option(
            "--tokens-per-day",
            min=0,
            max=MOST_TOKENS,
            metavar="N",
            help=f"0, which embeds nothing, or at least {LEAST_CEILING}.",
        ),
    ] = None,
    remove: Annotated[bool, typer.Option("--remove", help="Take the ceiling away.")] = False,
    as_json: AsJson = False,
) -> None:
    """Set the tokens that a day may take to embed what a tenant wrote; or show what is set.

    Days begin at midnight UTC. What would pass the ceiling waits for the next day, without using
    up attempts; pgcorpus jobs stats shows it. Questions of searches are not counted.

    Examples: pgcorpus tenants ceiling driscoll --tokens-per-day 5000000

    pgcorpus tenants ceiling --every --tokens-per-day 1000000
    """
    named = sum((tenant is not None, user is not None, every))
    if tokens is not None and remove:
        raise typer.BadParameter("give --tokens-per-day or --remove, not both")
    if named > 1:
        raise typer.BadParameter("name a tenant, --user or --every, and only one of them")
    if bool(named) != (tokens is not None or remove):
        raise typer.BadParameter(
            "a ceiling is set for somebody: name a tenant, --user or --every, and give "
            "--tokens-per-day or --remove; without all of them the ceilings are shown"
        )
    if tokens and tokens < LEAST_CEILING:
        raise typer.BadParameter(
            f"{tokens} would be too few for a single long text; give 0 or at least {LEAST_CEILING}",
            param_hint="--tokens-per-day",
        )
    from pgcorpus.db.models.usage import EVERY_SCOPE
    from pgcorpus.db.repositories.tenancy import scope_of
    from pgcorpus.db.scope import Scope

    key = uuid_of(user)
    with _administering() as work:
        if named:
            scope = None
            if tenant is not None:
                scope = Scope.tenant(_tenant_of(work, tenant))
            elif key is not None:
                scope = scope_of(work.tenancy.get_user(key))
            work.usage.set_ceiling(tokens, scope)
            work.commit()
        ceilings = work.usage.list_ceilings()
    if as_json:
        print_json(ceilings)
        return
    if not ceilings:
        say(
            "there is no ceiling; set one with: pgcorpus tenants ceiling --every --tokens-per-day N"
        )
        return
    names = {EVERY_SCOPE: "every other"}
    rows = [(names.get(scope, scope), number) for scope, number in ceilings.items()]
    table("Ceilings", ["of", "tokens per day"], rows)


@users.command("create")
def create_user(
    email: Annotated[
        str | None,
        typer.Option(
            callback=_make_shape_check(EMAIL, "valid_email"), help="The user's email address."
        ),
    ] = None,
    tenant: Annotated[
        str | None,
        typer.Option(
            metavar="SLUG|UUID",
            help="The user's tenant; without, the user has memories of their own.",
        ),
    ] = None,
    provider: Annotated[
        str, typer.Option(callback=_provider, help="The auth_provider that knows them.")
    ] = LOCAL,
    external_id: Annotated[
        str | None,
        typer.Option(
            callback=_check_filled, help="The user's key at the provider; by default the address."
        ),
    ] = None,
    display_name: Annotated[str | None, typer.Option(help="The name that people read.")] = None,
    key: Key = None,
    as_sql: AsSql = False,
    as_json: AsJson = False,
) -> None:
    """Add a user.

    Examples: pgcorpus users create --email ann@example.com

    pgcorpus users create --email bob@driscoll.com --tenant driscoll --sql | psql "$DATABASE_URL"
    """
    from pgcorpus.db.base import as_uuid
    from pgcorpus.db.models.memory import User
    from pgcorpus.db.repositories.tenancy import user_sql

    identity = external_id or email
    if identity is None:
        raise typer.BadParameter(
            "a user needs a key: give --email or --external-id", param_hint="--email"
        )
    user_id, tenant_id = uuid_of(key) or uuid4(), None if tenant is None else as_uuid(tenant)
    if as_sql:
        _refuse_both(as_json)
        user = User(
            id=user_id,
            tenant_id=tenant_id,
            auth_provider=provider,
            external_id=identity,
            email=email,
            display_name=display_name,
        )
        statement = user_sql(user, tenant_slug=tenant if tenant_id is None else None)
        write(f"{statement}\n")
    else:
        with _administering() as work:
            user = work.tenancy.create_user(
                auth_provider=provider,
                external_id=identity,
                email=email,
                display_name=display_name,
                tenant_id=None if tenant is None else _tenant_of(work, tenant),
                user_id=user_id,
            )
            work.commit()
    if as_json:
        print_json(_fields(user, USER_FIELDS))
        return
    say(f"user {user.external_id}: {user.id}")
    if tenant is None:
        say(f"import their memories with: pgcorpus import memory DIR --user-id {user.id}")
    else:
        of = user.tenant_id or "UUID"
        say(f"import the tenant's memories with: pgcorpus import memory DIR --tenant-id {of}")


@users.command("list")
def list_users(
    tenant: Annotated[
        str | None, typer.Option(metavar="SLUG|UUID", help="Only users of this tenant.")
    ] = None,
    limit: Limit = MAX_LISTED,
    after: Annotated[
        str | None, typer.Option(metavar="UUID", help="Go on behind this user.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show the users, in the order in which they came."""
    last = uuid_of(after)
    with _administering() as work:
        found = work.tenancy.list_users(
            tenant_id=None if tenant is None else _tenant_of(work, tenant),
            limit=limit + 1,
            after=None if last is None else work.tenancy.get_user(last),
        )
        shown = found[:limit]
        keys = {each.tenant_id for each in shown}
        slugs = {key: work.tenancy.get_tenant(key).slug for key in keys if key is not None}
    if as_json:
        print_json([_fields(user, USER_FIELDS) for user in shown])
    else:
        rows = [
            (each.id, each.tenant_id and slugs[each.tenant_id], _list_names(each)) for each in shown
        ]
        table(count_of(len(rows), "user"), ["id", "tenant", "known as"], rows)
    if len(found) > limit:
        of = "" if tenant is None else f" --tenant {tenant}"
        say(f"there are more: pgcorpus users list{of} --after {shown[-1].id}")


@contextmanager
def _administering() -> Iterator[UnitOfWork]:
    """Provide a unit of work that sees all tenants and users."""
    from pgcorpus.db.engine import Database

    with Database.from_env().unit_of_work() as work:
        work.tenancy.require_administrator()
        yield work


def _tenant_of(work: UnitOfWork, name: str) -> UUID:
    """Return the tenant of a slug or a key."""
    from pgcorpus.db.base import as_uuid
    from pgcorpus.db.errors import NotFound

    key = as_uuid(name)
    found = work.tenancy.find_tenant(name) if key is None else work.tenancy.get_tenant(key)
    if found is None:
        raise NotFound(f"there is no tenant {name!r}; see: pgcorpus tenants list")
    return found.id


def _slug(name: str) -> str:
    from pgcorpus.db.errors import InvalidValue
    from pgcorpus.db.repositories.tenancy import slug_of

    try:
        return slug_of(name)
    except InvalidValue as error:
        raise typer.BadParameter(str(error), param_hint="--slug") from error


def _refuse_both(as_json: bool) -> None:
    if as_json:
        raise typer.BadParameter(
            "--sql prints a statement, which is no JSON; give one of the two", param_hint="--sql"
        )


def _fields(row: Tenant | User, names: tuple[str, ...]) -> dict[str, Any]:
    return {name: getattr(row, name) for name in names}


def _list_names(user: User) -> str:
    """List the name, address and identity of a user, each once."""
    identity = user.external_id
    if user.auth_provider != LOCAL:
        identity = f"{user.auth_provider}:{identity}"
    names = (user.display_name, user.email, identity)
    return ", ".join(dict.fromkeys(name for name in names if name))
