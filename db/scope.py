"""The scope of a unit of work: a tenant, or a single user."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Protocol, Self
from uuid import UUID

from sqlalchemy import ColumnElement, Connection, Text, literal_column, text

from pgcorpus.db.base import as_uuid
from pgcorpus.db.choices import APPLICATION_ROLE
from pgcorpus.db.errors import MissingScope, UnsafeRole

SCOPE: Final = "scope"
"""The key in a session's ``info`` of the scope of its unit of work."""

SETTINGS: Final = ("app.tenant_id", "app.user_id")
"""The settings that row security reads."""


class Guard(Protocol):
    """Checks a login, and returns the role to work as instead, or None.

    ``serving`` says whether the transaction is a service's, in the scope that it asked for.
    """

    def __call__(  # noqa: D102 - above
        self, connection: Connection, *, serving: bool
    ) -> str | ColumnElement[str] | None: ...


LOGIN: Final = text("""
    SELECT current_user AS name, rolsuper AS superuser, rolbypassrls AS bypasses,
           (SELECT min(able.rolname::text) FROM pg_roles AS able
            WHERE (able.rolsuper OR able.rolbypassrls)
              AND pg_has_role(current_user, able.oid, 'MEMBER')) AS could_be,
           (SELECT min(relname::text) FROM pg_class
            WHERE relforcerowsecurity AND relnamespace = current_schema()::regnamespace
              AND pg_has_role(current_user, relowner, 'MEMBER')) AS owned,
           (SELECT min(relname::text) FROM pg_class, pg_roles AS able
            WHERE relforcerowsecurity AND relnamespace = current_schema()::regnamespace
              AND pg_has_role(current_user, able.oid, 'MEMBER')
              AND has_table_privilege(able.oid, pg_class.oid, 'TRUNCATE, TRIGGER')) AS administered
    FROM pg_roles WHERE rolname = current_user
""")


@dataclass(frozen=True)
class Scope:
    """The tenant or user whose rows a unit of work reads and writes.

    Users of a tenant share its rows; a user without one sees their own.

    Attributes:
        tenant_id: The tenant, or None for a user without one.
        user_id: The user; beside a tenant, who of it writes.
    """

    tenant_id: UUID | None
    user_id: UUID | None

    def __post_init__(self) -> None:
        for value in (self.tenant_id, self.user_id):
            if not isinstance(value, UUID | None):
                raise MissingScope(f"a scope has the UUID of a tenant or a user, not {value!r}")
        if self.tenant_id is None and self.user_id is None:
            raise MissingScope("a scope has a tenant or a user, and neither was given; name one")

    @classmethod
    def tenant(cls, tenant_id: UUID, *, user_id: UUID | None = None) -> Self:
        """Return the scope of a tenant; *user_id* is the member who writes."""
        return cls(tenant_id, user_id)

    @classmethod
    def user(cls, user_id: UUID) -> Self:
        """Return the scope of a single user."""
        return cls(None, user_id)

    @classmethod
    def parse(cls, written: str) -> Self:
        """Parse a scope as the database writes it: ``tenant:<uuid>`` or ``user:<uuid>``.

        Raises:
            MissingScope: It is neither.
        """
        kind, _, key = written.partition(":")
        uuid = as_uuid(key)
        if uuid is None or kind not in {"tenant", "user"}:
            raise MissingScope(f"{written!r} is no scope; it is tenant:UUID or user:UUID")
        return cls.tenant(uuid) if kind == "tenant" else cls.user(uuid)

    def __str__(self) -> str:
        return f"user:{self.user_id}" if self.tenant_id is None else f"tenant:{self.tenant_id}"

    @property
    def settings(self) -> dict[str, str]:
        """The settings that row security reads, for one transaction."""
        ids = (self.tenant_id, self.user_id)
        return {
            setting: "" if each is None else str(each)
            for setting, each in zip(SETTINGS, ids, strict=True)
        }


STEPPED_DOWN: Final[ColumnElement[str]] = literal_column(
    """coalesce((
        SELECT rolname::text FROM pg_roles WHERE rolname = 'rag_admin'
            AND has_table_privilege(oid, to_regclass('episode_embeddings'), 'INSERT')
    ), current_setting('role'))""",
    Text,
)
"""The administrators' role, or none as long as the schema is not there for it."""


def step_down(connection: Connection) -> ColumnElement[str] | None:
    """Return the role as which a superuser's login works: triggers fire with that role's rights.

    A trigger, a default or a rule is made by any role that may change the table, and what it calls
    runs as the role that writes. The server reports by itself whether that is a superuser now.
    """
    driver: Any = connection.connection.driver_connection
    if driver.info.parameter_status("is_superuser") != "on":
        return None
    return STEPPED_DOWN


def refuse_unsafe(connection: Connection) -> None:
    """Raise if row security does not bind the login.

    Raises:
        UnsafeRole: It does not, or they could switch it off.
    """
    login = connection.execute(LOGIN).one()
    if login.superuser:
        why = "it is a superuser"
    elif login.bypasses:
        why = "it has BYPASSRLS"
    elif login.could_be is not None:
        why = f"it may become {login.could_be}, which does"
    elif login.owned is not None:
        why = f"it owns {login.owned}, or may act as its owner"
    elif login.administered is not None:
        why = f"it may TRUNCATE {login.administered}, or put a trigger on it"
    else:
        return
    raise UnsafeRole(
        f"the role {login.name} passes over row security: {why}. A service that works for tenants "
        f"logs in as a member of {APPLICATION_ROLE}; make one with: pgcorpus roles create-user "
        f"NAME --role {APPLICATION_ROLE}"
    )
