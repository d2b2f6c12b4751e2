"""The logins of the three groups, and their rights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from psycopg import sql
from psycopg.errors import (
    DependentObjectsStillExist,
    DuplicateObject,
    InsufficientPrivilege,
    ObjectInUse,
    UndefinedObject,
    UniqueViolation,
)
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from pgcorpus.db.choices import GROUPS, Group
from pgcorpus.db.errors import (
    AlreadyExists,
    DatabaseNotReady,
    InvalidValue,
    NotFound,
    NotPermitted,
    RoleInUse,
)
from pgcorpus.db.repositories.base import Repository

PUBLIC: Final = "public"
"""Every role of the server, in the functions that ask for privileges."""

MAX_NAME_BYTES: Final = 63
"""Bytes of a role's name; PostgreSQL cuts longer ones."""

RESERVED: Final = frozenset({*GROUPS, PUBLIC, "none"})
"""Names that mean something else to PostgreSQL, or to pgcorpus."""

UNPRIVILEGED: Final = sql.SQL(
    "LOGIN INHERIT NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS"
)

RIGHTS_ON_RELATIONS: Final = text("""
    SELECT CASE relkind WHEN 'S' THEN 'sequence' WHEN 'v' THEN 'view' WHEN 'm' THEN 'view'
                        ELSE 'table' END AS kind,
           relname::text AS name, relrowsecurity AS row_security,
           jsonb_object_agg(asked.role, ARRAY(
               SELECT privilege FROM unnest(string_to_array(CASE
                   WHEN relkind = 'S' THEN 'USAGE,SELECT,UPDATE'
                   WHEN current_setting('server_version_num')::integer < 170000
                       THEN 'SELECT,INSERT,UPDATE,DELETE,TRUNCATE,REFERENCES,TRIGGER'
                   ELSE 'SELECT,INSERT,UPDATE,DELETE,TRUNCATE,REFERENCES,TRIGGER,MAINTAIN'
               END, ',')) WITH ORDINALITY AS each (privilege, place)
               WHERE CASE relkind
                   WHEN 'S' THEN has_sequence_privilege(asked.role, pg_class.oid, privilege)
                   ELSE has_table_privilege(asked.role, pg_class.oid, privilege) END
               ORDER BY place)) AS rights
    FROM pg_class, unnest(CAST(:roles AS name[])) AS asked (role)
    WHERE relnamespace = (SELECT oid FROM pg_namespace WHERE nspname = current_schema())
      AND relkind IN ('r', 'p', 'v', 'm', 'S', 'f') AND NOT relispartition
      AND NOT EXISTS (SELECT FROM pg_depend WHERE classid = 'pg_class'::regclass
                      AND objid = pg_class.oid AND deptype = 'e')
    GROUP BY pg_class.oid, relkind, relname, relrowsecurity
    ORDER BY array_position(ARRAY['table', 'view', 'sequence'],
                            CASE relkind WHEN 'S' THEN 'sequence' WHEN 'v' THEN 'view'
                                         WHEN 'm' THEN 'view' ELSE 'table' END), relname
""")
"""Privileges on relations, but for those that extensions made; a partition has those of its
table."""

RIGHTS_ON_FUNCTIONS: Final = text("""
    SELECT 'function' AS kind, CAST(CAST(pg_proc.oid AS regprocedure) AS text) AS name,
           false AS row_security,
           jsonb_object_agg(asked.role, CASE
               WHEN has_function_privilege(asked.role, pg_proc.oid, 'EXECUTE')
               THEN ARRAY['EXECUTE'] ELSE ARRAY[]::text[] END) AS rights
    FROM pg_proc, unnest(CAST(:roles AS name[])) AS asked (role)
    WHERE pronamespace = (SELECT oid FROM pg_namespace WHERE nspname = current_schema())
      AND NOT EXISTS (SELECT FROM pg_depend WHERE classid = 'pg_proc'::regclass
                      AND objid = pg_proc.oid AND deptype = 'e')
    GROUP BY pg_proc.oid ORDER BY 2
""")

MEMBERS: Final = text("""
    WITH RECURSIVE memberships (member, role) AS (
        SELECT oid, oid FROM pg_roles
        UNION
        SELECT memberships.member, roleid FROM memberships
        JOIN pg_auth_members ON pg_auth_members.member = memberships.role
    )
    SELECT pg_roles.rolname::text AS name, pg_roles.rolcanlogin AS can_log_in,
           pg_roles.rolsuper AS superuser, pg_roles.rolbypassrls AS bypasses_security,
           ARRAY(SELECT relname::text FROM pg_class
                 WHERE relowner = pg_roles.oid AND relkind IN ('r', 'p')
                   AND relnamespace = (SELECT oid FROM pg_namespace
                                       WHERE nspname = current_schema())
                 ORDER BY 1) AS owns,
           coalesce(array_agg(of.rolname::text ORDER BY of.rolname) FILTER (
               WHERE of.oid <> pg_roles.oid AND of.rolname = ANY (CAST(:groups AS name[]))), '{}')
               AS groups,
           coalesce(array_agg(of.rolname::text ORDER BY of.rolname) FILTER (
               WHERE of.oid <> pg_roles.oid AND of.rolname <> ALL (CAST(:groups AS name[]))), '{}')
               AS others
    FROM pg_roles JOIN memberships ON memberships.member = pg_roles.oid
    JOIN pg_roles AS of ON of.oid = memberships.role
    GROUP BY pg_roles.oid, pg_roles.rolname, pg_roles.rolcanlogin, pg_roles.rolsuper,
             pg_roles.rolbypassrls
    HAVING bool_or(of.rolname = ANY (CAST(:groups AS name[])))
    ORDER BY 1
""")


class Member(NamedTuple):
    """A group, or a role that is in one.

    Attributes:
        name: Of the role.
        can_log_in: Whether it is a login; a group should be none.
        superuser: Whether nothing is forbidden to it.
        bypasses_security: Whether row security does not bind it.
        owns: Tables of this schema that belong to it: their owner may do anything with them.
        groups: Those of ``GROUPS`` that it is in, itself or through other roles.
        others: Other roles that it is in.
    """

    name: str
    can_log_in: bool
    superuser: bool
    bypasses_security: bool
    owns: Sequence[str]
    groups: Sequence[str]
    others: Sequence[str]

    @property
    def dangers(self) -> tuple[str, ...]:
        """The rights beyond those of the group, a few words each."""
        found = {
            "is a superuser": self.superuser,
            "passes over row security (BYPASSRLS)": self.bypasses_security,
            f"owns {len(self.owns)} of the tables": bool(self.owns),
            "is a group, and can log in": self.can_log_in and self.name in GROUPS,
        }
        return tuple(danger for danger, there in found.items() if there)


@dataclass(frozen=True)
class Rights:
    """The rights of each group on one object.

    Attributes:
        kind: ``table``, ``view``, ``sequence`` or ``function``.
        name: Of the object; a function's with the types of its arguments.
        row_security: Whether policies decide which of its rows are seen.
        of: Privileges, as ``GRANT`` calls them, by group; ``public`` is every role there is.
    """

    kind: str
    name: str
    row_security: bool
    of: Mapping[str, Sequence[str]]


class RoleRepository(Repository):
    """Makes and drops logins of the three groups, and shows their rights.

    Roles are of the whole server; what the groups may do is of this database.
    """

    def create_login(self, name: str, group: Group, password: str) -> None:
        """Make a role that can log in, and is in one of the groups and nothing else.

        The password is hashed here (SCRAM-SHA-256): it never reaches the server or its log.

        Args:
            name: Of the role, at most 63 bytes of UTF-8; taken as it is, upper case too.
            group: What it may do.
            password: Any text but an empty one.

        Raises:
            AlreadyExists: The server has a role of that name.
            InvalidValue: The name or the password cannot be one.
            NotPermitted: The role that is connected may not make logins of the group.
            DatabaseNotReady: The server has no such group.
        """
        _check_name(name)
        if not password or "\0" in password:
            raise InvalidValue("a password must not be empty or hold a NUL character")
        connection: Any = self.session.connection().connection.driver_connection
        verifier = connection.pgconn.encrypt_password(
            password.encode(), name.encode(), b"scram-sha-256"
        ).decode()
        try:
            self._execute(
                sql.SQL("CREATE ROLE {} {} PASSWORD {} IN ROLE {}").format(
                    sql.Identifier(name),
                    UNPRIVILEGED,
                    sql.Literal(verifier),
                    sql.Identifier(group),
                )
            )
        except DBAPIError as error:
            match error.orig:
                case DuplicateObject() | UniqueViolation():
                    raise AlreadyExists(
                        f"the server has a role {name!r} already; choose another name"
                    ) from error
                case UndefinedObject():
                    raise _no_groups() from error
                case InsufficientPrivilege():
                    me = self._quote(self._current_user())
                    raise NotPermitted(
                        f"{me} may not make logins of {group}; a superuser allows it with: "
                        f"ALTER ROLE {me} CREATEROLE; GRANT {group} TO {me} WITH ADMIN OPTION"
                    ) from error
                case _:
                    raise

    def drop_login(self, name: str) -> None:
        """Drop a login that is in the groups alone. Its open connections are not ended.

        Raises:
            NotFound: There is no such role, or it is no login of the groups.
            RoleInUse: It owns something, was given rights of its own, or is in other roles; or it
                is the role that is connected.
            NotPermitted: The role that is connected may not drop it.
        """
        member = next((each for each in self.list_members() if each.name == name), None)
        if member is None or name in GROUPS or not member.can_log_in:
            raise NotFound(
                f"there is no login {name!r} in {', '.join(GROUPS)}; see: pgcorpus roles show"
            )
        if member.others:
            raise RoleInUse(
                f"{name!r} is in other roles, too, whose rights a program may need: "
                f"{', '.join(member.others)}; take them back first with: REVOKE role FROM {name}"
            )
        try:
            self._execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(name)))
        except DBAPIError as error:
            match error.orig:
                case DependentObjectsStillExist() as refusal:
                    quoted = self._quote(name)
                    raise RoleInUse(
                        f"{name!r} is needed: {refusal.diag.message_detail}\nIn each database that "
                        f"has such objects, hand them over with: REASSIGN OWNED BY {quoted} TO "
                        f"SOMEBODY; and take its rights back with: DROP OWNED BY {quoted}"
                    ) from error
                case ObjectInUse():
                    raise RoleInUse(
                        f"{name!r} is the role that is connected; drop it as another one"
                    ) from error
                case InsufficientPrivilege():
                    raise NotPermitted(
                        f"{self._quote(self._current_user())} may not drop {name!r}: since "
                        "PostgreSQL 16 only its maker and superusers may"
                    ) from error
                case _:
                    raise

    def list_members(self) -> list[Member]:
        """Return the groups, and every role that is in one of them, by name.

        Raises:
            DatabaseNotReady: The server lacks one of the groups.
        """
        found = [Member(*row) for row in self.session.execute(MEMBERS, {"groups": list(GROUPS)})]
        if not set(GROUPS) <= {member.name for member in found}:
            raise _no_groups()
        return found

    def list_rights(self) -> list[Rights]:
        """List the rights of the groups, and of PUBLIC, on each table, view, sequence and function.

        Raises:
            DatabaseNotReady: The server lacks one of the groups.
        """
        self.list_members()
        asked = {"roles": [*GROUPS, PUBLIC]}
        return [
            Rights(row.kind, row.name, row.row_security, row.rights)
            for query in (RIGHTS_ON_RELATIONS, RIGHTS_ON_FUNCTIONS)
            for row in self.session.execute(query, asked)
        ]

    def _execute(self, statement: sql.Composed) -> None:
        # In a savepoint: the error is read, and what it says of the role is asked for after it.
        try:
            with self.as_login(), self.session.begin_nested():
                self.session.connection().exec_driver_sql(
                    statement.as_string(), execution_options={"no_parameters": True}
                )
        except DBAPIError as error:
            error.statement = None  # it may hold a verifier, and errors go to logs
            raise

    def _current_user(self) -> str:
        return str(self.session.scalar(text("SELECT current_user")))

    def _quote(self, name: str) -> str:
        return str(self.session.scalar(text("SELECT quote_ident(:name)"), {"name": name}))


def _check_name(name: str) -> None:
    if not name or "\0" in name or len(name.encode()) > MAX_NAME_BYTES:
        raise InvalidValue(
            f"{name!r} cannot be the name of a role: that has 1 to {MAX_NAME_BYTES} bytes"
        )
    if name in RESERVED or name.startswith("pg_"):
        raise InvalidValue(f"{name!r} is a reserved name; choose another for the login")


def _no_groups() -> DatabaseNotReady:
    return DatabaseNotReady(
        f"the server lacks the roles {', '.join(GROUPS)}; make them with: pgcorpus db upgrade"
    )
