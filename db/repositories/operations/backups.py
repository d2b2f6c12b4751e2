"""Backups: their log, the role that reads every row, and what a copy is compared by."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any, Final, NamedTuple

import psycopg
from psycopg import sql
from psycopg.errors import InsufficientPrivilege
from sqlalchemy import ARRAY, CursorResult, Text, cast, func, select, text, update
from sqlalchemy.exc import DBAPIError

from pgcorpus.db.base import set_local
from pgcorpus.db.errors import NotPermitted, raise_translated
from pgcorpus.db.models.audit import AuditSeal
from pgcorpus.db.models.operations import BackupLog
from pgcorpus.db.repositories.base import Repository
from pgcorpus.db.search.corpus import Corpus

TITLE_CHARACTERS: Final = 80

NEAREST: Final = 10
"""Neighbours of a stored vector that a copy must have in the same order."""

AS_WRITTEN: Final = {
    "timezone": "UTC",
    "datestyle": "ISO, YMD",
    "intervalstyle": "postgres",
    "extra_float_digits": "1",
    "bytea_output": "hex",
    "search_path": "pg_catalog",
}
"""Settings with which values are written as text: the same on every server."""

SCHEMAS: Final = "nspname <> 'information_schema' AND nspname !~ '^(pg_|pgcorpus_eval_)'"
"""All schemas but the system's, and those that evaluations make for a while."""

EVALUATIONS: Final = "pgcorpus_eval_*"
"""The same as a pattern of ``pg_dump``."""

USERS: Final = f"""
    {SCHEMAS}
    AND NOT EXISTS (SELECT FROM pg_depend WHERE classid = 'pg_class'::regclass
                    AND objid = pg_class.oid AND deptype = 'e')
"""
"""Tables, views and sequences of those schemas that are not an extension's."""

PASSES: Final = text("""
    SELECT rolsuper OR rolbypassrls FROM pg_roles WHERE rolname = current_user
""")

READER: Final = text("""
    SELECT min(rolname::text) FROM pg_policy JOIN pg_roles ON pg_roles.oid = ANY (polroles)
    WHERE polname = 'backup' AND starts_with(rolname, 'rag_backup_')
""")

MAY: Final = text("""
    SELECT pg_has_role(CAST(:role AS name), CASE
        WHEN :how = 'SET' AND current_setting('server_version_num')::integer < 160000
        THEN 'MEMBER' ELSE :how END)
""")

LEFT_LENT: Final = text("""
    SELECT EXISTS (
        SELECT FROM pg_auth_members
        WHERE roleid = (SELECT oid FROM pg_roles WHERE rolname = :role) AND NOT admin_option
            AND member = quote_ident(current_user)::regrole AND grantor = member)
""")
"""A membership that this login gave itself, as of a process that was killed while it had it."""

HIDDEN: Final = text(f"""
    SELECT pg_class.oid::regclass::text FROM pg_class
    JOIN pg_namespace ON pg_namespace.oid = relnamespace
    CROSS JOIN LATERAL (
        SELECT bool_or(polpermissive AND condition = 'true') AS shown,
               bool_or(NOT polpermissive AND strpos(condition, 'rag_backup_') = 0) AS restricted
        FROM (SELECT polpermissive, coalesce(pg_get_expr(polqual, polrelid), '') AS condition
              FROM pg_policy
              WHERE polrelid = pg_class.oid AND polcmd IN ('r', '*') AND EXISTS (
                  SELECT FROM unnest(polroles) AS of (role)
                  WHERE role = 0 OR pg_has_role(role, 'USAGE'))) AS asked) AS policies
    WHERE relkind IN ('r', 'p') AND {USERS} AND row_security_active(pg_class.oid)
        AND (shown IS NOT TRUE OR restricted)
    ORDER BY 1
""")  # noqa: S608 - a constant
"""Tables of which a policy may hide rows from the present role.

Counting cannot tell: what hides rows from a dump hides them from a count. So it is the catalogue
that must say that a policy shows them all, and that none takes any away."""

UNREADABLE: Final = text(f"""
    SELECT pg_class.oid::regclass::text FROM pg_class
    JOIN pg_namespace ON pg_namespace.oid = relnamespace
    WHERE relkind IN ('r', 'p', 'S') AND {USERS} AND relpersistence = 'p'
        AND NOT (has_schema_privilege(relnamespace, 'USAGE') AND CASE WHEN relkind = 'S'
            THEN has_sequence_privilege(pg_class.oid, 'SELECT')
            ELSE has_table_privilege(pg_class.oid, 'SELECT') END)
    ORDER BY 1
""")  # noqa: S608 - a constant

TABLES: Final = text(f"""
    SELECT nspname::text AS schema, relname::text AS name, reltuples::bigint AS about,
           ARRAY(
               SELECT CASE WHEN typname IN ('vector', 'halfvec', 'sparsevec')
                   THEN typsend::regproc || '(' || quote_ident(attname) || ')'
                   ELSE quote_ident(attname) END
               FROM pg_attribute JOIN pg_type ON pg_type.oid = atttypid
               WHERE attrelid = pg_class.oid AND attnum > 0 AND NOT attisdropped
                   AND attgenerated = ''
               ORDER BY attname) AS columns
    FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace
    WHERE relkind = 'r' AND relpersistence = 'p' AND {USERS}
    ORDER BY 1, 2
""")  # noqa: S608 - a constant

OWN_TABLES: Final = text(f"""
    SELECT pg_class.oid::regclass::text FROM pg_class
    JOIN pg_namespace ON pg_namespace.oid = relnamespace
    WHERE relkind IN ('r', 'p', 'm') AND NOT relispartition AND {USERS}
        AND pg_has_role(relowner, 'USAGE')
    ORDER BY 1
""")  # noqa: S608 - a constant

SEQUENCES: Final = text(f"""
    SELECT quote_ident(nspname) || '.' || quote_ident(relname) AS name,
           coalesce(pg_sequence_last_value(pg_class.oid::regclass), 0) AS last
    FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace
    WHERE relkind = 'S' AND relpersistence = 'p' AND {USERS} ORDER BY 1
""")  # noqa: S608 - a constant

INDEXES: Final = text(f"""
    SELECT own.oid::regclass::text AS name, indisvalid AND indisready AS valid
    FROM pg_index JOIN pg_class AS own ON own.oid = indexrelid
    JOIN pg_class ON pg_class.oid = indrelid
    JOIN pg_namespace ON pg_namespace.oid = pg_class.relnamespace
    WHERE {USERS} ORDER BY 1
""")  # noqa: S608 - a constant

AS_STORED: Final = r"::[a-z]+( varying)?(\[\])?|[()\s]"
"""Casts, parentheses and spaces. PostgreSQL writes some conditions with others than it reads."""

GRANTS: Final = text(f"""
    SELECT concat_ws(' ', privilege_type, 'on', kind, object, 'to',
                     CASE grantee WHEN 0 THEN 'public' ELSE grantee::regrole::text END,
                     CASE WHEN is_grantable THEN 'with grant option' END)
    FROM (
        SELECT CASE relkind WHEN 'S' THEN 'sequence' ELSE 'table' END AS kind,
               pg_class.oid::regclass::text AS object,
               coalesce(relacl, acldefault(CASE relkind WHEN 'S' THEN 's' ELSE 'r' END::"char",
                                           relowner)) AS acl
        FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace
        WHERE relkind IN ('r', 'p', 'v', 'm', 'S') AND {USERS}
        UNION ALL
        SELECT 'column', attrelid::regclass || '.' || quote_ident(attname), attacl
        FROM pg_attribute JOIN pg_class ON pg_class.oid = attrelid
        JOIN pg_namespace ON pg_namespace.oid = relnamespace
        WHERE attacl IS NOT NULL AND NOT attisdropped AND {USERS}
        UNION ALL
        SELECT 'function', pg_proc.oid::regprocedure::text,
               coalesce(proacl, acldefault('f', proowner))
        FROM pg_proc JOIN pg_namespace ON pg_namespace.oid = pronamespace
        WHERE {SCHEMAS}
            AND NOT EXISTS (SELECT FROM pg_depend WHERE classid = 'pg_proc'::regclass
                            AND objid = pg_proc.oid AND deptype = 'e')
        UNION ALL
        SELECT 'schema', nspname::text, nspacl FROM pg_namespace
        WHERE {SCHEMAS}
    ) AS secured, aclexplode(acl)
    ORDER BY 1
""")  # noqa: S608 - a constant

ROW_SECURITY: Final = text(f"""
    SELECT pg_class.oid::regclass::text || CASE WHEN relforcerowsecurity THEN ': forced'
               WHEN relrowsecurity THEN ': enabled' ELSE ': off' END
    FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace
    WHERE relkind IN ('r', 'p') AND {USERS} AND (relrowsecurity OR relforcerowsecurity)
    UNION ALL
    SELECT concat_ws(' ', 'policy', polname, 'on', polrelid::regclass, polcmd,
                     CASE WHEN polpermissive THEN 'permissive' ELSE 'restrictive' END, 'to',
                     (SELECT string_agg(CASE role WHEN 0 THEN 'public'
                                        ELSE role::regrole::text END, ', ' ORDER BY role::text)
                      FROM unnest(polroles) AS of (role)),
                     regexp_replace(
                         concat_ws(' check ', pg_get_expr(polqual, polrelid),
                                   pg_get_expr(polwithcheck, polrelid)),
                         :as_stored, '', 'g'))
    FROM pg_policy JOIN pg_class ON pg_class.oid = polrelid
    JOIN pg_namespace ON pg_namespace.oid = relnamespace WHERE {USERS}
    ORDER BY 1
""")  # noqa: S608 - a constant

ROLES: Final = text("""
    SELECT rolname::text FROM pg_roles WHERE rolname !~ '^(pg_|pgcorpus_eval_)' AND oid IN (
        SELECT refobjid FROM pg_shdepend
        WHERE refclassid = 'pg_authid'::regclass
            AND dbid = (SELECT oid FROM pg_database WHERE datname = current_database())
        UNION SELECT datdba FROM pg_database WHERE datname = current_database()
        UNION SELECT grantee FROM pg_database, aclexplode(datacl)
        WHERE datname = current_database())
    ORDER BY 1
""")
"""Roles that own something in the database, or have a right in it."""

OWNERS: Final = text("""
    SELECT DISTINCT rolname::text FROM pg_shdepend JOIN pg_roles ON pg_roles.oid = refobjid
    WHERE refclassid = 'pg_authid'::regclass AND deptype = 'o'
        AND rolname !~ '^(pg_|pgcorpus_eval_)'
        AND dbid = (SELECT oid FROM pg_database WHERE datname = current_database())
    ORDER BY 1
""")

DATABASE: Final = text("""
    SELECT datname::text AS name, pg_encoding_to_char(encoding)::text AS encoding,
           datcollate::text AS collate, datctype::text AS ctype,
           current_setting('server_version') AS server_version,
           current_setting('server_version_num')::integer / 10000 AS server_major,
           pg_database_size(oid) AS bytes,
           (SELECT jsonb_object_agg(extname, extversion) FROM pg_extension) AS extensions,
           (SELECT coalesce(jsonb_agg(jsonb_build_array(rolname, privilege_type) ORDER BY 1), '[]')
            FROM aclexplode(datacl) JOIN pg_roles ON pg_roles.oid = grantee
            WHERE grantee <> datdba) AS grants
    FROM pg_database WHERE datname = current_database()
""")

PRIVILEGES: Final = frozenset(("CONNECT", "CREATE", "TEMPORARY"))
"""Rights on a database: a manifest cannot name others."""

MISSING_ROLES: Final = text("""
    SELECT name FROM unnest(CAST(:names AS text[])) AS name
    WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = name) ORDER BY 1
""")

MAY_MAKE: Final = text("""
    SELECT rolsuper OR rolcreatedb FROM pg_roles WHERE rolname = current_user
""")

EXISTS: Final = text("SELECT EXISTS (SELECT FROM pg_database WHERE datname = :name)")

OBJECTS: Final = text(f"""
    SELECT count(*) FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace
    WHERE {USERS}
""")  # noqa: S608 - a constant

MAJOR: Final = text("SELECT current_setting('server_version_num')::integer / 10000")

EXTENSIONS: Final = text("SELECT extname::text FROM pg_extension")

VECTORS_OF_KNOWLEDGE: Final = sql.Composed(
    [
        sql.SQL("""
    COPY (SELECT chunk_id, model_name, embedding FROM chunk_embeddings
          JOIN framework_documents ON framework_documents.id = document_id)
    TO STDOUT (FORMAT csv, HEADER true)
""")
    ]
)


class TableOf(NamedTuple):
    """A table to be backed up, or a partition of one.

    Attributes:
        schema: Its schema.
        name: Its name there.
        about: Number of its rows, as the planner believes; -1 if it knows nothing.
        columns: Expressions of the columns that are compared, in the order of their names.
    """

    schema: str
    name: str
    about: int
    columns: Sequence[str]

    @property
    def key(self) -> str:
        """Its name in a manifest."""
        return f"{self.schema}.{self.name}"


class Fingerprint(NamedTuple):
    """The content of a table, whatever the order of its rows.

    Attributes:
        rows: Number of rows.
        checksum: Sum over the 64-bit hashes of all rows.
    """

    rows: int
    checksum: str


class BackupRepository(Repository):
    """Reads what a backup must hold, and keeps the log of backups."""

    # The role that reads every row.

    def passes_row_security(self) -> bool:
        """Return whether the role sees every row by itself: a superuser, or one with BYPASSRLS."""
        return bool(self.session.scalar(PASSES))

    def is_superuser(self) -> bool:
        """Return whether the role is a superuser."""
        return self.session.scalar(select(func.current_setting("is_superuser"))) == "on"

    def find_login(self) -> str:
        """Return the name of the role."""
        return str(self.session.scalar(select(func.current_user())))

    def find_reader(self) -> str | None:
        """Return the role that the database lets read every row for a backup, or None."""
        found: str | None = self.session.scalar(READER)
        return found

    def let_reader_read(self) -> Sequence[str]:
        """Let the role of backups read each table of this login; return those it could not.

        Raises:
            NotPermitted: The login does not own the schema.
        """
        return self.session.scalars(text("SELECT let_backups_read()")).all()

    @contextmanager
    def lend(self, *roles: str, inherited: bool = False) -> Iterator[None]:
        """Let this login become *roles*, until the end; outside of any transaction.

        Args:
            roles: Their names.
            inherited: Whether it has their rights without becoming them, as their objects' owner.

        Raises:
            NotPermitted: The login may not give itself one of them.
        """
        given: list[str] = []
        try:
            for role in roles:
                how = "USAGE" if inherited else "SET"
                may = self.session.scalar(MAY, {"role": role, "how": how})
                if not may:
                    self._grant(role, inherited=inherited)
                if not may or self.session.scalar(LEFT_LENT, {"role": role}):
                    given.append(role)
            yield
        finally:
            for role in given:
                self._run(sql.SQL("REVOKE {} FROM CURRENT_USER").format(sql.Identifier(role)))

    def _grant(self, role: str, *, inherited: bool) -> None:
        old = self.find_major() < 16  # noqa: PLR2004 - where options of a membership begin
        options = sql.SQL("" if old else f" WITH INHERIT {inherited}, SET TRUE")
        try:
            self._run(sql.SQL("GRANT {} TO CURRENT_USER{}").format(sql.Identifier(role), options))
        except DBAPIError as error:
            if isinstance(error.orig, InsufficientPrivilege):
                # Without the others the owner would see the rows of all scopes at any time.
                how = "ADMIN OPTION" if old else "ADMIN TRUE, INHERIT FALSE, SET FALSE"
                raise NotPermitted(
                    f"this login may not become {role}, which reads or owns what is backed up. "
                    "Log in as the owner of the schema, or let an administrator run: "
                    f'GRANT "{role}" TO "{self.find_login()}" WITH {how}'
                ) from error
            raise_translated(error)

    def become(self, role: str) -> None:
        """Become a role, until the transaction ends."""
        self.session.execute(set_local({"role": role}))

    def list_hidden(self) -> Sequence[str]:
        """List the tables of which row security may hide rows from the present role."""
        return self.session.scalars(HIDDEN).all()

    def list_unreadable(self) -> Sequence[str]:
        """List the tables and sequences that the present role may not read."""
        return self.session.scalars(UNREADABLE).all()

    # What a backup holds.

    def export_snapshot(self) -> str:
        """Return the name under which other sessions see what this transaction sees."""
        return str(self.session.scalar(select(func.pg_export_snapshot())))

    def describe_database(self) -> Mapping[str, Any]:
        """Return name, encoding, locale, versions, size and rights of the database."""
        return dict(self.session.execute(DATABASE).mappings().one())

    def find_major(self) -> int:
        """Return the server's major version."""
        return int(self.session.scalar(MAJOR) or 0)

    def list_roles(self) -> Sequence[str]:
        """List the roles that own something in the database or have a right in it."""
        return self.session.scalars(ROLES).all()

    def list_owners(self) -> Sequence[str]:
        """List the roles that own something in the database."""
        return self.session.scalars(OWNERS).all()

    def write_alike(self) -> None:
        """Write values as text as every server does, until the transaction ends."""
        self.session.execute(set_local(AS_WRITTEN))

    def list_tables(self) -> list[TableOf]:
        """List the tables that hold rows, partitions one by one; after ``write_alike``."""
        return [TableOf(*row) for row in self.session.execute(TABLES)]

    def take_fingerprint(self, table: TableOf) -> Fingerprint:
        """Read a whole table; after ``write_alike``."""
        statement = sql.SQL(
            "SELECT count(*) AS rows, coalesce(sum(hashtextextended(ROW({})::text, 0)::numeric), 0)"
            "::text AS checksum"
            " FROM ONLY {} AS t"
        ).format(
            sql.SQL(", ").join(map(sql.SQL, table.columns)),  # quoted by the server
            sql.Identifier(table.schema, table.name),
        )
        found = self._run(statement).mappings().one()
        return Fingerprint(rows=found["rows"], checksum=found["checksum"])

    def list_sequences(self) -> dict[str, int]:
        """Return the sequences, with the last number that each gave; 0 before the first."""
        return {row.name: row.last for row in self.session.execute(SEQUENCES)}

    def list_indexes(self) -> dict[str, bool]:
        """Return the indexes, and whether each is valid; after ``write_alike``."""
        return {row.name: row.valid for row in self.session.execute(INDEXES)}

    def list_grants(self) -> Sequence[str]:
        """List the rights of all roles, a line each; after ``write_alike``."""
        return self.session.scalars(GRANTS).all()

    def list_row_security(self) -> Sequence[str]:
        """List tables with row security and their policies, a line each; after ``write_alike``."""
        return self.session.scalars(ROW_SECURITY, {"as_stored": AS_STORED}).all()

    def find_last_seal(self) -> tuple[int, str] | None:
        """Return number and hash of the newest seal of the audit log that is seen, or None."""
        newest = select(AuditSeal.number, AuditSeal.hash).order_by(AuditSeal.number.desc())
        found = self.session.execute(newest.limit(1)).first()
        return None if found is None else (found.number, found.hash.hex())

    def list_titles(self, corpus: Corpus, *, limit: int) -> Sequence[str]:
        """List titles of passages, or how those begin that have none, as questions to search by."""
        hits = corpus.hits.subquery()
        titles = select(func.coalesce(hits.c.title, func.left(hits.c.content, TITLE_CHARACTERS)))
        return self.session.scalars(titles.order_by(hits.c.id).limit(limit)).all()

    def list_nearest(self, corpus: Corpus, *, probes: int) -> dict[str, list[str]]:
        """Return the nearest neighbours of some stored vectors, by an exact comparison.

        Args:
            corpus: Whose vectors.
            probes: Number of vectors whose neighbours are looked for, at most.

        Returns:
            Passage and model of a vector → the passages of its ``NEAREST``, the nearest first.
        """
        vectors, others = corpus.vectors.alias(), corpus.vectors.alias()
        item = corpus.item.name
        some = (
            select(vectors)
            .order_by(cast(vectors.c[item], Text), vectors.c.model_name)
            .limit(probes)
            .subquery()
        )
        distance = others.c.embedding.op("<=>")(some.c.embedding)
        nearest = (
            select(cast(others.c[item], Text))
            .where(others.c.model_name == some.c.model_name)
            .order_by(distance, cast(others.c[item], Text))
            .limit(NEAREST)
            .correlate(some)
        )
        found = self.session.execute(
            select(
                cast(some.c[item], Text),
                some.c.model_name,
                func.array(nearest.scalar_subquery(), type_=ARRAY(Text)),
            )
        )
        return {f"{passage} {model}": list(near) for passage, model, near in found}

    def copy_vectors(self, corpus: Corpus, write: Callable[[bytes], object]) -> None:
        """Stream the vectors of a corpus as CSV: the passage, the model and the vector."""
        statement = sql.SQL(
            "COPY (SELECT {}, model_name, embedding FROM {}) TO STDOUT (FORMAT csv, HEADER true)"
        ).format(sql.Identifier(corpus.item.name), sql.Identifier(corpus.vectors.name))
        if corpus.name == "knowledge":
            statement = VECTORS_OF_KNOWLEDGE
        with self.driver() as connection:
            assert isinstance(connection, psycopg.Connection)  # noqa: S101 - no backup is awaited
            with connection.cursor() as cursor, cursor.copy(statement) as stream:
                for block in stream:
                    write(bytes(block))

    # Databases that are restored into.

    def list_missing_roles(self, names: Sequence[str]) -> Sequence[str]:
        """List the roles of *names* that the server does not have."""
        return self.session.scalars(MISSING_ROLES, {"names": list(names)}).all()

    def may_make_databases(self) -> bool:
        """Return whether the login may create databases."""
        return bool(self.session.scalar(MAY_MAKE))

    def has_database(self, name: str) -> bool:
        """Return whether the server has a database of that name."""
        return bool(self.session.scalar(EXISTS, {"name": name}))

    def make_database(self, name: str, *, encoding: str, collate: str, ctype: str) -> None:
        """Create an empty database; outside of any transaction."""
        self._run(
            sql.SQL(
                "CREATE DATABASE {} TEMPLATE template0 ENCODING {} LC_COLLATE {} LC_CTYPE {}"
            ).format(
                sql.Identifier(name), sql.Literal(encoding), sql.Literal(collate),
                sql.Literal(ctype),
            )
        )  # fmt: skip

    def drop_database(self, name: str) -> None:
        """Drop a database, whoever is connected; outside of any transaction."""
        self._run(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))

    def is_empty(self) -> bool:
        """Return whether the database has no table, view or sequence but those of extensions."""
        return not self.session.scalar(OBJECTS)

    def list_extensions(self) -> set[str]:
        """Return the extensions that the database has."""
        return set(self.session.scalars(EXTENSIONS))

    def list_closed_extensions(self, names: Sequence[str]) -> Sequence[str]:
        """List the extensions of *names* that this login may not make here, by trying.

        Hosted servers let roles make some that elsewhere are a superuser's to make.
        """
        closed = []
        for name in names:
            trying = self.session.begin_nested()
            try:
                self._run(sql.SQL("CREATE EXTENSION {} CASCADE").format(sql.Identifier(name)))
            except DBAPIError:  # not permitted, or the server does not have it
                closed.append(name)
            finally:
                trying.rollback()
        return closed

    def let_make_in_public(self, *roles: str, allowed: bool) -> None:
        """Let roles make objects in the schema ``public``, or take that back."""
        verb, word = ("GRANT", "TO") if allowed else ("REVOKE", "FROM")
        for role in roles:
            self._run(
                sql.SQL("{} CREATE ON SCHEMA public {} {}").format(
                    sql.SQL(verb), sql.SQL(word), sql.Identifier(role)
                )
            )

    def give_database_rights(self, name: str, grants: Sequence[tuple[str, str]]) -> None:
        """Give roles rights on a database: those of ``PRIVILEGES`` alone."""
        for role, privilege in grants:
            if privilege in PRIVILEGES:
                self._run(
                    sql.SQL("GRANT {} ON DATABASE {} TO {}").format(
                        sql.SQL(privilege), sql.Identifier(name), sql.Identifier(role)
                    )
                )

    def analyze_all(self) -> None:
        """Renew the statistics of all tables of this login."""
        for name in self.session.scalars(OWN_TABLES).all():
            self._run(sql.SQL("ANALYZE {}").format(sql.SQL(name)))  # quoted by the server

    # The log.

    def begin_log(self, location: str, *, encrypted: bool) -> int:
        """Note that a backup began; return the number of the note."""
        log = BackupLog(location=location, encrypted=encrypted)
        self.session.add(log)
        self.session.flush()
        return log.id

    def complete_log(self, number: int, *, size_bytes: int, rows: int) -> None:
        """Note that a backup is complete."""
        self._change(
            BackupLog.id == number,
            status="complete", finished_at=func.clock_timestamp(), bytes=size_bytes, rows=rows,
        )  # fmt: skip

    def fail_log(self, number: int, error: str) -> None:
        """Note why a backup failed."""
        self._change(
            BackupLog.id == number,
            status="failed", finished_at=func.clock_timestamp(), error=error,
        )  # fmt: skip

    def fail_abandoned(self) -> None:
        """Note of backups whose process was killed that they failed, when none is running."""
        self._change(
            BackupLog.status == "running",
            status="failed",
            finished_at=func.clock_timestamp(),
            error="the process was ended from outside",
        )

    def note_verified(self, location: str) -> None:
        """Note that a backup was verified, if the log knows it."""
        self._change(
            BackupLog.location == location, BackupLog.status.in_(("complete", "verified")),
            status="verified", verified_at=func.clock_timestamp(),
        )  # fmt: skip

    def find_last_good(self) -> datetime | None:
        """Return when the newest complete backup ended, or None before the first."""
        good = BackupLog.status.in_(("complete", "verified"))
        found: datetime | None = self.session.scalar(
            select(func.max(BackupLog.finished_at)).where(good)
        )
        return found

    def _change(self, *which: Any, **values: Any) -> None:
        statement = update(BackupLog).where(*which).values(values)
        self.session.execute(statement, execution_options={"synchronize_session": False})

    def _run(self, statement: sql.Composed) -> CursorResult[Any]:
        return self.session.connection().exec_driver_sql(statement.as_string())
