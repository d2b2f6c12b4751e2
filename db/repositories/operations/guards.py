"""Guards of row security against inference, as the catalogue has them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from sqlalchemy import text

from pgcorpus.db.repositories.base import Repository

ADMINISTRATORS: Final = "rag_admin"
ADMINISTERED: Final = (
    "tenants",
    "users",
    "jobs",
    "import_runs",
    "import_files",
    "import_transformations",
    "import_rejects",
    "click_feedback",
    "search_sessions",
    "token_ceilings",
    "embedding_usage",
)
"""Tables whose rows of all scopes administrators see; memories they do not."""

EXPRESSIONS: Final = (
    "tsquery",
    "jsonpath",
    "refcursor",
    "lquery",
    "ltxtquery",
    "query_int",
    "anyelement",
    "anyarray",
    "anycompatible",
    "record",
)
"""Types of arguments that are more than data: what is evaluated on a row may fail for it."""

CATEGORIES: Final = (
    "corpus",
    "kind",
    "rule",
    "field",
    "auth_provider",
    "worker_id",
    "model_name",
)
"""Columns of texts that no user wrote: how frequent each is may be known."""

LEAKPROOF: Final = text("""
    SELECT p.oid::regprocedure::text AS name
    FROM pg_proc AS p WHERE proleakproof AND p.xmin::text <> '1' ORDER BY 1
""")
"""LEAKPROOF functions that initdb wrote, by their transaction 1; ALTER FUNCTION, even back and
forth, writes one anew."""

BYPASSES: Final = text("""
    SELECT polrelid::regclass::text AS table, polname::text AS name, rolname::text AS role,
           array_remove(ARRAY[
               CASE WHEN rolcanlogin THEN 'it may log in' END,
               CASE WHEN rolsuper OR rolbypassrls OR rolcreaterole
                   THEN 'it may do more than search' END,
               CASE WHEN NOT starts_with(rolname, 'rag_backup_')
                       AND NOT EXISTS (SELECT FROM pg_proc WHERE proowner = asked.oid)
                   THEN 'it owns no function that searches' END,
               (SELECT min(member::regrole::text) || ' may become it, or has its rights'
                FROM pg_auth_members AS held
                WHERE roleid = asked.oid
                    AND NOT (SELECT rolsuper FROM pg_roles WHERE oid = member)
                    AND NOT to_jsonb(held) @> '{"inherit_option": false, "set_option": false}'
                HAVING count(*) > 0),
               (SELECT 'it owns ' || min(pg_describe_object(classid, objid, objsubid))
                FROM pg_shdepend
                WHERE refclassid = 'pg_authid'::regclass AND refobjid = asked.oid
                    AND deptype = 'o' AND classid <> 'pg_proc'::regclass
                    AND dbid = (SELECT oid FROM pg_database WHERE datname = current_database())
                HAVING count(*) > 0),
               (SELECT 'it owns ' || min(p.oid::regprocedure::text)
                    || ', which does not run as it, has no search_path, or takes more than data'
                FROM pg_proc AS p
                WHERE proowner = asked.oid AND NOT (
                    prosecdef
                    AND array_to_string(coalesce(proconfig, '{}'), ',') LIKE '%search_path=%'
                    AND NOT EXISTS (
                        SELECT FROM unnest(proargtypes) AS of (each)
                        WHERE format_type(each, NULL) = ANY (CAST(:expressions AS text[]))))
                HAVING count(*) > 0)], NULL) AS faults
    FROM pg_policy
    JOIN pg_roles AS asked ON asked.oid = ANY (polroles)
    JOIN pg_class ON pg_class.oid = polrelid
    WHERE polpermissive AND relname = ANY (:tables)
        AND relnamespace = (SELECT oid FROM pg_namespace WHERE nspname = current_schema())
        AND NOT (rolname = :administrators AND relname = ANY (CAST(:administered AS text[])))
        AND NOT EXISTS (
            SELECT FROM pg_depend WHERE classid = 'pg_policy'::regclass
                AND objid = pg_policy.oid AND refclassid = 'pg_proc'::regclass
                AND refobjid = to_regproc('app_scope'))
    ORDER BY 1, 2, 3
""")

SAMPLED: Final = text("""
    WITH columns AS (
        SELECT attrelid, attname, attnum, atttypid, attstattarget, false AS is_index,
               '' AS computed
        FROM pg_attribute JOIN pg_class ON pg_class.oid = attrelid
        WHERE relname = ANY (:tables) AND attnum > 0 AND NOT attisdropped
            AND relnamespace = (SELECT oid FROM pg_namespace WHERE nspname = current_schema())
        UNION ALL
        SELECT attrelid, attname, attnum, atttypid, attstattarget, true,
               pg_get_indexdef(attrelid, attnum, true)
        FROM pg_index JOIN pg_class AS guarded ON guarded.oid = indrelid
        JOIN pg_attribute ON attrelid = indexrelid
        WHERE relname = ANY (:tables) AND attnum <= indnkeyatts AND indkey[attnum - 1] = 0
            -- of rows that are everybody's a sample may be kept
            AND pg_get_expr(indpred, indrelid) IS DISTINCT FROM '(scope = ''shared''::text)'
            AND relnamespace = (SELECT oid FROM pg_namespace WHERE nspname = current_schema())
    )
    SELECT attrelid::regclass::text AS table, attname::text AS column, attnum AS place,
           is_index
    FROM columns
    WHERE coalesce(attstattarget, -1) <> 0
        AND (atttypid = ANY (ARRAY['text', 'varchar', 'bpchar', 'bytea']::regtype[])
             OR attname LIKE '%\\_hash')
        AND attname <> 'scope' AND NOT attname = ANY (CAST(:categories AS text[]))
        AND computed !~ '''(corpus|kind)'''
        AND NOT EXISTS (
            SELECT FROM pg_constraint
            WHERE conrelid = attrelid AND conkey = ARRAY[attnum]
                AND (contype = 'f' OR contype = 'c'
                     AND pg_get_constraintdef(pg_constraint.oid) LIKE '%= ANY (%'))
    UNION ALL
    SELECT stxrelid::regclass::text, stxname::text, 0, false
    FROM pg_statistic_ext JOIN pg_class ON pg_class.oid = stxrelid
    WHERE relname = ANY (:tables)
        AND relnamespace = (SELECT oid FROM pg_namespace WHERE nspname = current_schema())
        AND stxkind && ARRAY['m', 'e']::"char"[]
    ORDER BY 1, 2
""")

SHARED_GRAPHS: Final = text("""
    SELECT indexrelid::regclass::text
    FROM pg_index JOIN pg_class AS own ON own.oid = indexrelid JOIN pg_am ON pg_am.oid = own.relam
    JOIN pg_class AS guarded ON guarded.oid = indrelid
    WHERE guarded.relname = ANY (:tables) AND amname IN ('hnsw', 'ivfflat')
        AND guarded.relnamespace = (SELECT oid FROM pg_namespace WHERE nspname = current_schema())
        AND coalesce(pg_get_expr(indpred, indrelid), '') !~ '\\mscope = ''(shared''|tenant:|user:)'
    ORDER BY 1
""")

TAKING: Final = text("""
    SELECT p.oid::regprocedure::text
    FROM pg_proc AS p
    WHERE prosecdef AND has_function_privilege(CAST(:role AS name), p.oid, 'EXECUTE')
        AND pronamespace = (SELECT oid FROM pg_namespace WHERE nspname = current_schema())
        AND prorettype NOT IN ('trigger'::regtype, 'event_trigger'::regtype)
        AND EXISTS (SELECT FROM unnest(proargtypes) AS of (each)
                    WHERE format_type(each, NULL) = ANY (CAST(:expressions AS text[])))
    ORDER BY 1
""")

WATCHES: Final = text("""
    SELECT rolname::text FROM pg_roles
    WHERE rolname IN ('pg_monitor', 'pg_read_all_stats', 'pg_read_server_files',
                      'pg_write_server_files', 'pg_execute_server_program')
        AND pg_has_role(CAST(:role AS name), oid, 'MEMBER')
    ORDER BY 1
""")
"""Groups that see statements of all logins, or files of the server."""


class Bypass(NamedTuple):
    """A policy that shows a role rows of every scope.

    Attributes:
        table: Whose policy it is.
        name: Of the policy.
        role: Who sees them.
        faults: Why another role could see them, too.
    """

    table: str
    name: str
    role: str
    faults: Sequence[str]


class Sampled(NamedTuple):
    """A column, or an expression of an index, of which ANALYZE keeps values; or such statistics.

    Attributes:
        table: Of the column, or the index.
        column: Its name, or that of the extended statistics.
        place: Of the column, from 1; 0 for extended statistics.
        is_index: Whether an index computes it.
    """

    table: str
    column: str
    place: int
    is_index: bool

    @property
    def remedy(self) -> str:
        """The SQL that deletes them."""
        if not self.place:
            return f"DROP STATISTICS {self.column};"
        kind, which = ("INDEX", str(self.place)) if self.is_index else ("TABLE", self.column)
        return f"ALTER {kind} {self.table} ALTER COLUMN {which} SET STATISTICS 0;"


class GuardRepository(Repository):
    """Finds missing guards against inference."""

    def list_leakproof(self) -> list[str]:
        """List functions marked LEAKPROOF, in all schemas, that PostgreSQL did not ship so."""
        return list(self.session.scalars(LEAKPROOF))

    def list_bypasses(self, tables: Sequence[str]) -> list[Bypass]:
        """List policies that show the rows of all scopes to a role that is not administrators'."""
        found = self.session.execute(
            BYPASSES,
            {
                "tables": list(tables),
                "expressions": list(EXPRESSIONS),
                "administrators": ADMINISTRATORS,
                "administered": list(ADMINISTERED),
            },
        )
        return [Bypass(*row) for row in found]

    def list_sampled(self, tables: Sequence[str]) -> list[Sampled]:
        """List columns of texts, and what is computed of them, whose values ANALYZE keeps."""
        given = {"tables": list(tables), "categories": list(CATEGORIES)}
        return [Sampled(*row) for row in self.session.execute(SAMPLED, given)]

    def list_shared_graphs(self, tables: Sequence[str]) -> list[str]:
        """List approximate indexes that hold vectors of more than one scope.

        Those of the scope ``shared`` alone are everybody's.
        """
        return list(self.session.scalars(SHARED_GRAPHS, {"tables": list(tables)}))

    def list_taking_expressions(self, role: str) -> list[str]:
        """List functions that run as their owner, and evaluate an expression of the role's."""
        given = {"role": role, "expressions": list(EXPRESSIONS)}
        return list(self.session.scalars(TAKING, given))

    def list_watches(self, role: str) -> list[str]:
        """List groups by which a role sees statements of other logins, or files of the server."""
        return list(self.session.scalars(WATCHES, {"role": role}))
