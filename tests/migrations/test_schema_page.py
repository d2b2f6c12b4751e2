"""The page docs/reference/schema.md: what a migrated database's catalogue has."""

from __future__ import annotations

import re
from collections.abc import Iterator
from inspect import getdoc
from typing import Any, Final

import pytest
from sqlalchemy import Connection, Row, text

from pgcorpus.db import models
from pgcorpus.db.engine import Database
from pgcorpus.db.errors import MEANINGS
from tests.conftest import Databases
from tests.pages import check_page, write_code, write_table, write_words

RELATIONS: Final = """
    SELECT oid, relname AS name, relkind = 'v' AS is_view, relrowsecurity AS secured,
           relforcerowsecurity AS forced, pg_get_partkeydef(oid) AS partitioned,
           'security_invoker=true' = ANY (reloptions) AS invoked
    FROM pg_class
    WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p', 'v')
      AND NOT relispartition
      AND NOT EXISTS (SELECT FROM pg_depend WHERE classid = 'pg_class'::regclass
                      AND objid = pg_class.oid AND deptype = 'e')
    ORDER BY relname
"""
COLUMNS: Final = """
    SELECT attname AS name, format_type(atttypid, atttypmod) AS type, attnotnull AS required,
           attgenerated <> '' AS generated, attidentity <> '' AS numbered,
           pg_get_expr(adbin, adrelid, true) AS value, col_description(attrelid, attnum) AS comment
    FROM pg_attribute LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum
    WHERE attrelid = :oid AND attnum > 0 AND NOT attisdropped ORDER BY attnum
"""
CONSTRAINTS: Final = """
    SELECT conname AS name, pg_get_constraintdef(oid, true) AS definition
    FROM pg_constraint WHERE conrelid = :oid AND contype IN ('p', 'u', 'x', 'f', 'c')
    ORDER BY array_position('{p,u,x,f,c}', contype::text), conname
"""
INDEXES: Final = """
    SELECT relname AS name, pg_get_indexdef(indexrelid, 0, true) AS definition
    FROM pg_index JOIN pg_class ON pg_class.oid = indexrelid
    WHERE indrelid = :oid AND NOT EXISTS (SELECT FROM pg_constraint
                                          WHERE conindid = indexrelid AND contype <> 'f')
    ORDER BY relname
"""
POLICIES: Final = """
    SELECT polname AS name, polpermissive AS permissive,
           CASE polcmd WHEN '*' THEN 'ALL' WHEN 'r' THEN 'SELECT' WHEN 'a' THEN 'INSERT'
                       WHEN 'w' THEN 'UPDATE' ELSE 'DELETE' END AS command,
           (SELECT string_agg(CASE role WHEN 0 THEN 'PUBLIC' ELSE role::regrole::text END, ', ')
            FROM unnest(polroles) AS role) AS roles,
           pg_get_expr(polqual, polrelid, true) AS visible,
           pg_get_expr(polwithcheck, polrelid, true) AS writable
    FROM pg_policy WHERE polrelid = :oid ORDER BY polname
"""
TRIGGERS: Final = """
    SELECT tgname AS name, pg_get_triggerdef(oid, true) AS definition
    FROM pg_trigger WHERE tgrelid = :oid AND NOT tgisinternal ORDER BY tgname
"""
TRIGGER: Final = re.compile(
    r"CREATE (?:CONSTRAINT )?TRIGGER \S+ (?P<when>BEFORE|AFTER) (?P<events>.+?) ON \S+ "
    r"(?:REFERENCING .+? )?FOR EACH (?P<each>ROW|STATEMENT) (?:WHEN \((?P<only>.+)\) )?"
    r"EXECUTE FUNCTION (?P<call>.+)",
    re.DOTALL,
)
FUNCTIONS: Final = """
    SELECT proname AS name, pg_get_function_identity_arguments(pg_proc.oid) AS arguments,
           pg_get_function_result(pg_proc.oid) AS result, prosecdef AS by_owner,
           proowner::regrole::text AS owner,
           obj_description(pg_proc.oid, 'pg_proc') AS comment
    FROM pg_proc
    WHERE pronamespace = 'public'::regnamespace
      AND NOT EXISTS (SELECT FROM pg_depend WHERE classid = 'pg_proc'::regclass
                      AND objid = pg_proc.oid AND deptype = 'e')
    ORDER BY proname
"""

RELATIONS_WITHOUT_MODEL: Final = {
    "audit_state": "The one row of what sealing remembers from one time to the next.",
    "chunks_with_embedding": "Chunks of documents with the vector of the active model.",
    "conversation_summaries": "Conversations with what a list shows of them, of the main branch.",
    "embedding_coverage": "Passages of each corpus and model: how many have a vector of it.",
    "memory_nodes_with_embedding": "Memories with the vector of the active model.",
    "performance_dashboard": "Figures of searches and of the server, one in each row.",
    "pgcorpus_version": "The revision of the schema, as Alembic writes it.",
}
"""Descriptions of the views, and of the tables that no model maps."""

FUNCTIONS_WITHOUT_COMMENT: Final = {
    "announce_jobs": "notifies the workers that listen that jobs were enqueued",
    "append_message": "gives a message without a position the next one of its branch",
    "archive_searches": "moves old rows of the performance log into its archive",
    "audit_append_seal": "appends a seal, which holds the hash of the one before",
    "audit_ddl": "records changes of the schema; only a superuser's upgrade attaches it",
    "audit_drop_month": "drops a month of the audit log, and seals that it did",
    "audit_make_partitions": "makes the audit log's partitions of this month and the next two",
    "audit_record_roles": "records roles that were made, changed or dropped since the last time",
    "audit_refuse": "refuses to change or delete a row",
    "audit_rows": "records changes of rows: arguments are the key, columns kept as a hash, and "
    "columns left out",
    "audit_seal": "seals the entries since the last time",
    "audit_sign": "stores the signature of a seal",
    "chunk_text": "the headings and the text of a chunk, whose trigrams are indexed",
    "decrypt_sensitive_data": "decrypts what encrypt_sensitive_data encrypted",
    "delete_archived_searches": "deletes old rows of the performance log's archive",
    "encrypt_sensitive_data": "encrypts a text with a passphrase: OpenPGP, AES-256",
    "enqueue_embedding": "enqueues a job for each passage that is new or changed: arguments are "
    "the corpus, the columns that are embedded, the key, and the scope",
    "episode_text": "the summary and the turns of an episode, whose words are indexed",
    "forget_traces": "deletes the jobs of passages that are deleted",
    "heading_text": "the headings of a chunk in a row",
    "increment_version": "counts the versions of a message",
    "lexeme_statistics": "how often ANALYZE found lexemes of a language, for BM25",
    "passages_to_embed": "the first passages of a corpus whose vectors are still to be made",
    "set_updated_at": "sets `updated_at` to now",
    "system_health_check": "the health of each component: see [health](health.md)",
    "update_vector_statistics": "runs ANALYZE on all tables, and writes to the maintenance log",
}
"""Descriptions of functions that have none in the catalogue."""


def list_rows(connection: Connection, query: str, relation: Row[Any]) -> list[Row[Any]]:
    """Return what the catalogue has about a relation."""
    return [*connection.execute(text(query), {"oid": relation.oid})]


def describe_tables() -> dict[str, str]:
    """Return the first line of each model's docstring, by the name of its table."""
    mapped = [getattr(models, name) for name in models.__all__]
    return {
        each.__tablename__: (getdoc(each) or "").splitlines()[0]
        for each in mapped
        if hasattr(each, "__tablename__")
    }


def describe_column(column: Row[Any], *, of_view: bool) -> Iterator[str]:
    """Yield the cells of a column's line."""
    yield write_code(column.name)
    yield write_code(column.type)
    if of_view:
        return
    yield "no" if column.required else "yes"
    if column.numbered:
        yield "the next number"
    elif column.generated:
        yield f"always {write_code(column.value)}"
    else:
        yield write_code(column.value) if column.value else ""
    yield write_words(column.comment)


def describe_triggers(found: list[Row[Any]]) -> Iterator[str]:
    """Yield an item for the triggers that call the same function in the same way."""
    alike: dict[str, list[tuple[str, str]]] = {}
    for each in found:
        parts = TRIGGER.fullmatch(each.definition)
        assert parts, each.definition
        how = f"for each {parts['each'].lower()}"
        if parts["only"]:
            how += f" where {write_code(parts['only'])}"
        how += f": {write_code(parts['call'])}"
        alike.setdefault(how, []).append((each.name, f"{parts['when'].lower()} {parts['events']}"))
    for how, triggers in alike.items():
        names = ", ".join(f"{write_code(name)} {when}" for name, when in triggers)
        yield f"- {names}, {how}"


def name_roles(roles: str) -> str:
    """Return roles with a database's own called alike in all databases."""
    return re.sub(r'"?\brag_search_\w+"?', "rag_search_DATABASE", roles)


def describe_policies(found: list[Row[Any]]) -> Iterator[str]:
    """Yield an item for each policy."""
    for each in found:
        restricts = "" if each.permissive else ", restrictive"
        who = write_code(name_roles(each.roles))
        item = f"- {write_code(each.name)}, {each.command} by {who}{restricts}"
        if each.visible:
            item += f"; rows where {write_code(each.visible)}"
        if each.writable and each.writable != each.visible:
            item += f"; written if {write_code(each.writable)}"
        yield item


def describe_relation(connection: Connection, relation: Row[Any], about: str) -> Iterator[str]:
    """Yield the parts of a table's or a view's section."""
    yield f"### {relation.name}"
    if relation.partitioned:
        about += f" Key of its partitions: {write_code(relation.partitioned)}."
    if relation.is_view and relation.invoked:
        about += " It has the rights and the scope of its caller."
    yield about
    columns = list_rows(connection, COLUMNS, relation)
    heads = ("column", "type") + (() if relation.is_view else ("null", "default", "meaning"))
    yield write_table(heads, (describe_column(each, of_view=relation.is_view) for each in columns))
    secured = "forced, of its owner, too" if relation.forced else "not of its owner"
    lists = {
        "Constraints": [
            f"- {write_code(each.name)}: {write_code(each.definition)}"
            + (f": {write_words(MEANINGS[each.name])}" if each.name in MEANINGS else "")
            for each in list_rows(connection, CONSTRAINTS, relation)
        ],
        "Indexes": [
            f"- {write_code(each.name)}: "
            + ("unique, " if each.definition.startswith("CREATE UNIQUE") else "")
            + write_code(each.definition.partition(" USING ")[2])
            for each in list_rows(connection, INDEXES, relation)
        ],
        f"Policies (row security, {secured})": [
            *describe_policies(list_rows(connection, POLICIES, relation))
        ],
        "Triggers": [*describe_triggers(list_rows(connection, TRIGGERS, relation))],
    }
    for title, items in lists.items():
        assert bool(items) == relation.secured or not title.startswith("Policies")
        if items:
            yield f"{title}:\n\n" + "\n".join(items)


def describe_functions(connection: Connection) -> Iterator[tuple[str, ...]]:
    """Yield the cells of each function's line."""
    described = dict(FUNCTIONS_WITHOUT_COMMENT)
    for each in connection.execute(text(FUNCTIONS)):
        about = write_words(each.comment) if each.comment else described.pop(each.name)
        owner = name_roles(each.owner)
        of_schema = "the owner of the schema" if owner == each.owner else write_code(owner)
        yield (
            write_code(f"{each.name}({each.arguments})"),
            write_code(each.result),
            of_schema if each.by_owner else "the caller",
            about,
        )
    assert not described, "a description of no function, or of one that has its comment"


def describe_schema(connection: Connection) -> str:
    """Return the page."""
    about = describe_tables() | RELATIONS_WITHOUT_MODEL
    relations = [*connection.execute(text(RELATIONS))]
    assert RELATIONS_WITHOUT_MODEL.keys() <= {each.name for each in relations}
    tables = [each for each in relations if not each.is_view]
    views = [each for each in relations if each.is_view]

    def list_all(some: list[Row[Any]]) -> str:
        return write_table(
            ("name", "each row"),
            ((f"[`{each.name}`](#{each.name})", about[each.name]) for each in some),
        )

    def describe_all(some: list[Row[Any]]) -> str:
        return "\n\n".join(
            part for each in some for part in describe_relation(connection, each, about[each.name])
        )

    heads = ("function", "returns", "with the rights of", "what it does or returns")
    return f"""# Schema

Every table, view and function of a database at the newest revision, as PostgreSQL 18 shows it. The
rights of each group stand in [permissions](permissions.md), the reasons for the policies in
[isolation](../explanation/isolation.md), and the triggers `audit_...` in
[the audit log](../explanation/audit.md). A column without a meaning has one in its name. In
policies, `rag_search_DATABASE` stands for the role by which the functions of a search read; it ends
with the name of the database. Each month has its partition of `security_audit_log`.

{list_all(tables)}

{list_all(views)}

## Tables

{describe_all(tables)}

## Views

{describe_all(views)}

## Functions

Those that return `trigger` are called by triggers alone.

{write_table(heads, describe_functions(connection))}

## Roles

A revision makes three groups: `rag_read_only`, `rag_read_write` and `rag_admin`; logins are
[members of one of them](../how-to/roles.md). A database has two roles of its own, by which nobody
logs in: `rag_search_DATABASE` reads for the functions of a search, and `rag_backup_DATABASE` for
backups.
"""


def test_the_page_of_the_schema_is_current(shared: Database, databases: Databases) -> None:
    """A revision that changes the schema changes the page with it."""
    if databases.version != 18:
        pytest.skip("the page shows the schema as PostgreSQL 18 writes it")
    with shared.engine.connect() as connection:
        page = describe_schema(connection)

    check_page("schema.md", __file__, page)
