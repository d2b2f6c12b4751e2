"""Tenants and users, and the scopes that they see."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any, Final
from uuid import UUID, uuid4

from psycopg import sql
from psycopg.errors import InsufficientPrivilege
from psycopg.types.json import Jsonb
from sqlalchemy import Select, delete, func, select, text, tuple_, union
from sqlalchemy.exc import ProgrammingError

from pgcorpus.db.base import set_local
from pgcorpus.db.errors import AlreadyExists, InvalidValue, MissingScope, NotFound, NotPermitted
from pgcorpus.db.models.imports import ImportRun
from pgcorpus.db.models.jobs import Job
from pgcorpus.db.models.memory import Tenant, User
from pgcorpus.db.repositories.base import NO_PAGES, Repository
from pgcorpus.db.scope import SETTINGS, Scope

MAX_SLUG: Final = 100
"""Characters of ``tenants.slug``."""

ADMINISTRATION_ROLE: Final = "rag_admin"

SEES_ALL_SCOPES: Final = text("""
    SELECT NOT row_security_active('users') OR EXISTS (
        SELECT FROM pg_roles
        WHERE rolname = :role AND pg_has_role(current_user, oid, 'USAGE'))
""").bindparams(role=ADMINISTRATION_ROLE)

MAY_ADD_USERS: Final = text("SELECT has_table_privilege('users', 'INSERT')")
"""A login that may, and was refused, was refused by row security."""

NO_SCOPE: Final = dict.fromkeys(SETTINGS, "")


class TenancyRepository(Repository):
    """Tenants, users and their scopes.

    Tenants are made and listed by members of ``rag_admin``. Other logins see, within a scope, its
    tenant and its users; without one, the user that ``sign_in`` has named.
    """

    def create_tenant(
        self,
        name: str,
        *,
        slug: str | None = None,
        settings: Mapping[str, Any] | None = None,
        tenant_id: UUID | None = None,
    ) -> Tenant:
        """Add a tenant.

        Args:
            name: As people say it.
            slug: Its short name; by default as ``slug_of`` makes it of the name.
            settings: JSON object.
            tenant_id: Its key; by default a random one.

        Raises:
            InvalidValue: The name gives no slug.
            IntegrityError: The unit of work turns it into ``AlreadyExists`` or ``InvalidValue``.
        """
        tenant = Tenant(
            id=tenant_id or uuid4(),
            name=name,
            slug=slug_of(name) if slug is None else slug,
            settings=dict(settings or {}),
        )
        self.session.add(tenant)
        self.session.flush()
        return tenant

    def create_user(
        self,
        *,
        auth_provider: str,
        external_id: str,
        email: str | None = None,
        display_name: str | None = None,
        tenant_id: UUID | None = None,
        user_id: UUID | None = None,
    ) -> User:
        """Add a user, of a tenant or alone.

        A service adds whom it has just signed in, or a user of the tenant in whose scope it works;
        ``sign_up`` does the first.

        Args:
            auth_provider: Who knows them, without a colon.
            external_id: Their key there.
            email: Their address, or None.
            display_name: As people say it, or None.
            tenant_id: Their enterprise, or None.
            user_id: Their key; by default a random one.

        Raises:
            InvalidValue: The provider has a colon.
            NotPermitted: Row security binds the login, and it neither signed this identity in nor
                works in the scope of the tenant.
            IntegrityError: The unit of work turns it into ``AlreadyExists``, ``MissingReference``
                or ``InvalidValue``.
        """
        identity = _identity(auth_provider, external_id)
        user = User(
            id=user_id or uuid4(),
            tenant_id=tenant_id,
            auth_provider=auth_provider,
            external_id=external_id,
            email=email,
            display_name=display_name,
        )
        try:
            with self.session.begin_nested():
                self.session.add(user)
        except ProgrammingError as error:
            if isinstance(error.orig, InsufficientPrivilege) and self.session.scalar(MAY_ADD_USERS):
                raise NotPermitted(_describe_way(identity, tenant_id)) from error
            raise
        return user

    def sign_up(
        self,
        auth_provider: str,
        external_id: str,
        *,
        email: str | None = None,
        display_name: str | None = None,
        tenant_name: str | None = None,
    ) -> User:
        """Add a user whom a provider has identified, alone or as the first of a new tenant.

        A service does this with the rights of ``rag_read_write``. Nothing limits how many it adds:
        limit sign-ups where they arrive, as by address.

        Args:
            auth_provider: Who knows them, without a colon.
            external_id: Their key there.
            email: Their address, or None.
            display_name: As people say it, or None.
            tenant_name: The name of their enterprise, which is made, or None for a user alone. Its
                slug is made of the name and of a random key.

        Returns:
            The user. Whose memories they see is ``scope_of`` the user.

        Raises:
            AlreadyExists: There is a user of that identity.
            InvalidValue: The provider has a colon, or a text is blank or too long.
        """
        if self.sign_in(auth_provider, external_id) is not None:
            raise AlreadyExists(
                f"there is a user {external_id!r} of {auth_provider!r}: sign them in",
                constraint="uq_users_auth_provider_external_id",
            )
        tenant_id = None
        if tenant_name is not None:
            # Which enters the tenant's scope: its first user is added there.
            tenant_id = self.session.scalar(select(func.sign_up_tenant(tenant_name)))
        user = self.create_user(
            auth_provider=auth_provider,
            external_id=external_id,
            email=email,
            display_name=display_name,
            tenant_id=tenant_id,
        )
        if tenant_id is not None:
            before = NO_SCOPE if self.scope is None else self.scope.settings
            self.session.execute(set_local(before))
        return user

    def sign_in(self, auth_provider: str, external_id: str) -> User | None:
        """Find the user whom a provider has identified.

        Until the transaction ends row security shows this user's row, and lets it be added where
        there is none. Whose memories they see is ``scope_of`` the user.

        Raises:
            InvalidValue: The provider has a colon.
        """
        identity = _identity(auth_provider, external_id)
        self.session.execute(set_local({"app.identity": identity}))
        return self.find_identity(auth_provider, external_id)

    def get_tenant(self, tenant_id: UUID) -> Tenant:
        """Return the tenant of that key.

        Raises:
            NotFound: There is none.
        """
        tenant = self.session.get(Tenant, tenant_id)
        if tenant is None:
            raise NotFound(f"there is no tenant {tenant_id}; see: pgcorpus tenants list")
        return tenant

    def find_tenant(self, slug: str) -> Tenant | None:
        """Return the tenant of that slug, or None."""
        return self.session.scalar(
            select(Tenant).where(func.text_hash(Tenant.slug) == func.text_hash(slug))
        )

    def get_user(self, user_id: UUID) -> User:
        """Return the user of that key.

        Raises:
            NotFound: There is none.
        """
        user = self.session.get(User, user_id)
        if user is None:
            raise NotFound(f"there is no user {user_id}; see: pgcorpus users list")
        return user

    def find_identity(self, auth_provider: str, external_id: str) -> User | None:
        """Return the user with that key at that provider, or None."""
        return self.session.scalar(
            select(User).where(
                func.text_hash(User.identity) == func.text_hash(f"{auth_provider}:{external_id}")
            )
        )

    def list_tenants(self, *, limit: int = 100, after: str | None = None) -> Sequence[Tenant]:
        """List tenants by slug, page by page.

        Args:
            limit: At most this many.
            after: The last slug of the page before.
        """
        tenants: Select[Tenant] = select(Tenant).order_by(Tenant.slug).limit(limit)
        if after is not None:
            tenants = tenants.where(Tenant.slug > after)
        return self.session.scalars(tenants).all()

    def list_users(
        self, *, tenant_id: UUID | None = None, limit: int = 100, after: User | None = None
    ) -> Sequence[User]:
        """List users in the order in which they came, page by page.

        Args:
            tenant_id: Only those of this tenant.
            limit: At most this many.
            after: The last user of the page before.
        """
        order = (User.created_at, User.id)
        users: Select[User] = select(User).order_by(*order).limit(limit)
        if tenant_id is not None:
            users = users.where(User.tenant_id == tenant_id)
        if after is not None:
            users = users.where(tuple_(*order) > (after.created_at, after.id))
        return self.session.scalars(users).all()

    def list_scopes(self) -> list[Scope]:
        """List every scope that has or may have rows: of tenants, and of users without one.

        Raises:
            NotPermitted: Row security would hide some.
        """
        # Of tables without a page nothing is hidden: an evaluation's schema has no tenants.
        if self.session.scalar(NO_PAGES, {"tables": ["tenants", "users"]}):
            return []
        self.require_administrator()
        of_tenants = select(func.concat("tenant:", Tenant.id).label("scope"))
        of_users = select(User.scope).where(User.tenant_id.is_(None))
        scopes = union(of_tenants, of_users).subquery()
        found = self.session.scalars(select(scopes.c.scope).order_by(scopes.c.scope))
        return [Scope.parse(scope) for scope in found]

    def require_scope(self) -> None:
        """Raise if the scope of the unit of work has no tenant or user.

        Row security shows a scope its own tenant and users. The tenant of a user of another scope
        is told only to logins that see all.

        Raises:
            NotFound: There is no such tenant, or it has no such user; or there is no user without a
                tenant of that key, as far as the role sees.
            MissingScope: The user belongs to a tenant, which is not named.
        """
        if self.scope is None:
            return
        tenant_id, user_id = self.scope.tenant_id, self.scope.user_id
        if tenant_id is not None:
            self.get_tenant(tenant_id)
        user = None if user_id is None else self.session.get(User, user_id)
        if tenant_id is None and user is None:
            raise NotFound(
                f"there is no user {user_id} without a tenant; memories of users of a tenant "
                "are the tenant's: use --tenant-id; see: pgcorpus users list"
            )
        if tenant_id is None and user is not None and user.tenant_id is not None:
            raise MissingScope(
                f"the user {user.id} belongs to a tenant, and so do their memories; use "
                f"--tenant-id {user.tenant_id}"
            )
        if user_id is not None and (user is None or user.tenant_id != tenant_id):
            raise NotFound(
                f"the tenant {tenant_id} has no user {user_id}; see: pgcorpus users list"
            )

    def require_administrator(self) -> None:
        """Raise for work on all tenants where row security would hide most of them.

        Raises:
            NotPermitted: The login is neither a superuser nor a member of ``rag_admin``.
        """
        if not self.session.scalar(SEES_ALL_SCOPES):
            raise NotPermitted(
                f"only a member of {ADMINISTRATION_ROLE} sees all tenants and users; log in as "
                f"one, or make one with: pgcorpus roles create-user NAME --role "
                f"{ADMINISTRATION_ROLE}"
            )

    def delete_tenant(self, tenant_id: UUID) -> None:
        """Erase a tenant: users, memories, episodes, documents, vectors, clicks, jobs, imports.

        Its ceiling and the tokens that it used go with it, by a trigger.

        Raises:
            NotFound: There is none.
        """
        erased = delete(Tenant).where(Tenant.id == tenant_id).returning(Tenant.id)
        if self.session.scalar(erased) is None:
            raise NotFound(f"there is no tenant {tenant_id}; see: pgcorpus tenants list")
        self._forget_work(Scope.tenant(tenant_id))

    def delete_user(self, user_id: UUID) -> None:
        """Erase a user with the memories and episodes they wrote, their vectors and jobs.

        Of a user on their own, imports too; those of a tenant stay with it.

        Raises:
            NotFound: There is none.
        """
        erased = delete(User).where(User.id == user_id).returning(User.id)
        if self.session.scalar(erased) is None:
            raise NotFound(f"there is no user {user_id}; see: pgcorpus users list")
        self._forget_work(Scope.user(user_id))

    def _forget_work(self, scope: Scope) -> None:
        """Erase the jobs and the import history of a scope, which refer to no tenant or user.

        Files, changes and refusals go with their runs.
        """
        for kind in (Job, ImportRun):
            self.session.execute(
                delete(kind).where(kind.scope == str(scope)),
                execution_options={"synchronize_session": False},
            )


def scope_of(user: User) -> Scope:
    """Return the scope of a user: that of the tenant, or else their own."""
    if user.tenant_id is None:
        return Scope.user(user.id)
    return Scope.tenant(user.tenant_id, user_id=user.id)


def _describe_way(identity: str, tenant_id: UUID | None) -> str:
    """Say how a service adds a user, where row security refused it."""
    if tenant_id is None:
        return (
            f"the login adds only users whom it has identified, and {identity!r} is not signed in; "
            "use work.tenancy.sign_up(), or call work.tenancy.sign_in() with the same identity "
            "before; an administrator adds anybody with: pgcorpus users create"
        )
    return (
        f"the login adds users of a tenant only in the scope of that tenant; open the unit of work "
        f"with Scope.tenant({str(tenant_id)!r}), or make the tenant with its first user by "
        "work.tenancy.sign_up(); an administrator adds anybody with: pgcorpus users create"
    )


def slug_of(name: str) -> str:
    """Make a short name for addresses and files.

    Raises:
        InvalidValue: The name has no letter or digit that one could be made of.
    """
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().lower()
    slug = re.sub("[^a-z0-9]+", "-", plain).strip("-")[:MAX_SLUG].rstrip("-")
    if not slug:
        raise InvalidValue(
            f"the name {name!r} gives no slug; name one with --slug", constraint="valid_slug"
        )
    return slug


def tenant_sql(tenant: Tenant) -> str:
    """Write the statement that adds a tenant, to be run elsewhere."""
    return _insert_sql(tenant)


def user_sql(user: User, *, tenant_slug: str | None = None) -> str:
    """Write the statement that adds a user, to be run elsewhere.

    Args:
        user: The user.
        tenant_slug: Their tenant, where its key is not known: without such a tenant the statement
            adds nobody.
    """
    return _insert_sql(user, tenant_slug=tenant_slug)


def _identity(auth_provider: str, external_id: str) -> str:
    """Format the identity of a user as row security compares it."""
    if ":" in auth_provider:  # or two identities could be written alike
        raise InvalidValue(f"the auth_provider {auth_provider!r} has a colon; leave it out")
    return f"{auth_provider}:{external_id}"


def _insert_sql(row: Tenant | User, *, tenant_slug: str | None = None) -> str:
    values: dict[str, sql.Composable] = {
        column.name: sql.Literal(Jsonb(value) if isinstance(value, dict) else str(value))
        for column in row.__table__.columns
        if (value := getattr(row, column.name)) is not None
    }
    if tenant_slug is None:
        source = sql.SQL("VALUES ({values})")
    else:
        values["tenant_id"] = sql.Identifier("tenants", "id")
        source = sql.SQL("SELECT {values} FROM tenants WHERE slug = {slug}")
    return (
        sql.SQL("INSERT INTO {table} ({columns}) {source};")
        .format(
            table=sql.Identifier(row.__tablename__),
            columns=sql.SQL(", ").join(map(sql.Identifier, values)),
            source=source.format(
                values=sql.SQL(", ").join(values.values()), slug=sql.Literal(tenant_slug)
            ),
        )
        .as_string(None)
    )
