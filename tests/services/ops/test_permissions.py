"""Rights of every group: a login of each tries every kind of statement on every object.

Nothing here asks the catalog for rights. A statement is refused if its SQLSTATE is 42501, or if
PostgreSQL warns that it passed over it; whatever else becomes of it, the right to it was there.

The page docs/reference/permissions.md is what this test found: see tests/pages.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, closing
from typing import LiteralString, NamedTuple, cast

import psycopg
import pytest
from psycopg.errors import FeatureNotSupported, InsufficientPrivilege
from sqlalchemy import URL, text

from pgcorpus import ChatImporter, KnowledgeImporter, SearchService, Worker
from pgcorpus.db.choices import GROUPS, Group
from pgcorpus.db.engine import Database
from pgcorpus.db.errors import NotPermitted
from pgcorpus.services import samples
from pgcorpus.services.search.request import LEGS_OF
from tests.conftest import Databases
from tests.logins import logged_in
from tests.pages import check_page

LOGINS = (None, *GROUPS)

# What is tried, with what PostgreSQL cannot do for anybody left out: a view cannot be truncated.
TABLE = {
    "SELECT": "SELECT * FROM {name} LIMIT 0",
    "COPY TO": "COPY {name} TO STDOUT",
    "INSERT": "INSERT INTO {name} ({column}) SELECT NULL WHERE false",
    "COPY FROM": "COPY {name} ({column}) FROM STDIN",
    "UPDATE": "UPDATE {name} SET {column} = DEFAULT WHERE false",
    "DELETE": "DELETE FROM {name} WHERE false",
    "LOCK": "LOCK TABLE {name} IN EXCLUSIVE MODE",
    "TRUNCATE": "TRUNCATE {name} CASCADE",
    "ANALYZE": "ANALYZE {name}",
    "VACUUM": "VACUUM {name}",
    "REINDEX": "REINDEX TABLE {name}",
    "CREATE TRIGGER": "CREATE TRIGGER probe BEFORE INSERT ON {name}"
    " FOR EACH ROW EXECUTE FUNCTION set_updated_at()",
    "CREATE INDEX": "CREATE INDEX ON {name} ({column})",
    "CREATE POLICY": "CREATE POLICY probe ON {name}",
    "DISABLE TRIGGER": "ALTER TABLE {name} DISABLE TRIGGER USER",
    "ALTER": "ALTER TABLE {name} ADD COLUMN probe integer",
    "GRANT": "GRANT SELECT ON {name} TO PUBLIC",
    "DROP": "DROP TABLE {name} CASCADE",
}
VIEW = {
    "SELECT": "SELECT * FROM {name} LIMIT 0",
    "COPY TO": "COPY (SELECT * FROM {name} LIMIT 0) TO STDOUT",
    "CREATE OR REPLACE": "CREATE OR REPLACE VIEW {name} AS SELECT 1",
    "ALTER": "ALTER VIEW {name} RENAME TO probe",
    "GRANT": "GRANT SELECT ON {name} TO PUBLIC",
    "DROP": "DROP VIEW {name} CASCADE",
}
UPDATABLE = {
    "INSERT": "INSERT INTO {name} ({column}) SELECT NULL WHERE false",
    "UPDATE": "UPDATE {name} SET {column} = DEFAULT WHERE false",
    "DELETE": "DELETE FROM {name} WHERE false",
}
SEQUENCE = {
    "SELECT": "SELECT last_value FROM {name}",
    "nextval": "SELECT nextval('{name}')",
    "setval": "SELECT setval('{name}', 1)",
    "ALTER": "ALTER SEQUENCE {name} RESTART",
    "GRANT": "GRANT SELECT ON {name} TO PUBLIC",
    "DROP": "DROP SEQUENCE {name} CASCADE",
}
DATABASE = {
    "CREATE TEMPORARY TABLE": "CREATE TEMPORARY TABLE probe ()",
    "CREATE TABLE": "CREATE TABLE probe ()",
    "CREATE FUNCTION": "CREATE FUNCTION probe() RETURNS integer LANGUAGE sql AS 'SELECT 1'",
    "CREATE SCHEMA": "CREATE SCHEMA probe",
    "CREATE EXTENSION": "CREATE EXTENSION hstore",
    "CREATE EVENT TRIGGER": "CREATE EVENT TRIGGER probe ON sql_drop"
    " EXECUTE FUNCTION set_updated_at()",
    "CREATE ROLE": "CREATE ROLE probe",
    "ALTER ROLE of another": "ALTER ROLE postgres CONNECTION LIMIT 99",
    "ALTER DATABASE": "ALTER DATABASE {database} SET work_mem = '9MB'",
    "ALTER SYSTEM": "ALTER SYSTEM RESET work_mem",
    "ALTER DEFAULT PRIVILEGES of the owner": "ALTER DEFAULT PRIVILEGES FOR ROLE postgres"
    " GRANT SELECT ON TABLES TO PUBLIC",
    "SET session_replication_role": "SET LOCAL session_replication_role = replica",
    "COPY FROM PROGRAM": "COPY key_concepts FROM PROGRAM 'true'",
    "COPY TO a file": "COPY (SELECT 1) TO '/dev/null'",
    "read a file of the server": "SELECT pg_read_file('PG_VERSION')",
    "read passwords": "SELECT rolpassword FROM pg_authid",
    "CHECKPOINT": "CHECKPOINT",
    **{f"SET ROLE {role}": f"SET LOCAL ROLE {role}" for role in (*GROUPS, "postgres")},
}
ALONE = ("VACUUM", "ALTER SYSTEM")
"""Not in a transaction block, says PostgreSQL, before it looks at rights."""

READ = {"SELECT", "COPY TO"}
WRITE = READ | {"INSERT", "COPY FROM", "UPDATE", "DELETE", "LOCK"}
MAINTAIN = {"ANALYZE", "VACUUM", "REINDEX"}
ADMINISTER = WRITE | {"TRUNCATE"} | MAINTAIN

NOTHING: set[str] = set()
CONTENT = (NOTHING, READ, WRITE, ADMINISTER)
SETTING = (NOTHING, READ, READ, ADMINISTER)
# COPY FROM is for nobody whose rows are chosen by a policy.
SCOPED = (NOTHING, READ, WRITE - {"COPY FROM"}, ADMINISTER - {"COPY FROM"})
# What a job is about stays as it was enqueued, and a vector of a shared chunk stays with it: the
# first column is not written to.
QUEUE = (NOTHING, READ, WRITE - {"COPY FROM", "UPDATE"}, ADMINISTER - {"COPY FROM"})
RULED = (NOTHING, NOTHING, NOTHING, ADMINISTER - {"COPY FROM"})
READABLE = (NOTHING, READ, READ, READ)
COUNTED = (NOTHING, {"SELECT"}, {"SELECT", "nextval"}, {"SELECT", "nextval", "setval"})
ADDED_TO = {"INSERT", "COPY FROM"}
LOG = (NOTHING, NOTHING, NOTHING, READ)
ANYBODY = ({"EXECUTE"},) * 4
ADMINISTRATOR = (NOTHING, NOTHING, NOTHING, {"EXECUTE"})
MEMBER = (NOTHING, {"EXECUTE"}, {"EXECUTE"}, {"EXECUTE"})
WRITER = (NOTHING, NOTHING, {"EXECUTE"}, {"EXECUTE"})
NOBODY = (NOTHING,) * 4

EXPECTED: Mapping[str, tuple[set[str], ...]] = {
    "audit_seals": LOG,
    "audit_state": NOBODY,
    "backup_log": SETTING,
    "chunk_boosts": SCOPED,
    "chunk_embeddings": CONTENT,
    "chunks": SCOPED,
    "click_feedback": SCOPED,
    "conversations": CONTENT,
    "corpus_settings": SETTING,
    "document_concepts": CONTENT,
    "documentation_embeddings": QUEUE,
    "documents": SCOPED,
    "embedding_models": SETTING,
    "embedding_usage": RULED,
    "episode_embeddings": SCOPED,
    "episodic_memories": SCOPED,
    "framework_documents": CONTENT,
    "framework_metadata": CONTENT,
    "import_files": SCOPED,
    "import_rejects": SCOPED,
    "import_runs": SCOPED,
    "import_transformations": SCOPED,
    "jobs": QUEUE,
    "key_concepts": CONTENT,
    "learned_rankings": SCOPED,
    "maintenance_log": (NOTHING, NOTHING, NOTHING, ADMINISTER),
    "memory_embeddings": SCOPED,
    "memory_nodes": SCOPED,
    "message_embeddings": CONTENT,
    "messages": CONTENT,
    "pgcorpus_version": READABLE,
    "query_performance_archive": (NOTHING, NOTHING, NOTHING, ADMINISTER),
    "query_performance_log": (NOTHING, NOTHING, ADDED_TO, ADMINISTER),
    "security_audit_log": LOG,
    "security_audit_log (each partition)": LOG,
    "search_sessions": SCOPED,
    "source_lines": CONTENT,
    "tenants": SCOPED,
    "token_ceilings": RULED,
    "users": SCOPED,
    "chunks_with_embedding": READABLE,
    "conversation_summaries": READABLE,
    "embedding_coverage": READABLE,
    "memory_nodes_with_embedding": READABLE,
    "backup_log_id_seq": (NOTHING, NOTHING, NOTHING, COUNTED[-1]),
    "performance_dashboard": LOG,
    "import_transformations_id_seq": COUNTED,
    "jobs_id_seq": COUNTED,
    "maintenance_log_id_seq": (NOTHING, NOTHING, NOTHING, {"SELECT", "nextval", "setval"}),
    "query_performance_log_id_seq": COUNTED,
    "security_audit_log_position_seq": NOBODY,
    "announce_jobs()": ANYBODY,
    "app_scope()": ANYBODY,
    "append_message()": ANYBODY,
    "archive_searches(interval,integer)": WRITER,
    "audit_append_seal(text,bigint,bigint,bigint,jsonb)": NOBODY,
    "audit_ddl()": NOBODY,
    "audit_drop_month(date)": NOBODY,
    "audit_make_partitions()": ADMINISTRATOR,
    "audit_record_roles()": ADMINISTRATOR,
    "audit_refuse()": ANYBODY,
    "audit_rows()": NOBODY,
    "audit_seal(integer)": ADMINISTRATOR,
    "audit_sign(bigint,bytea)": ADMINISTRATOR,
    "chunk_text(text[],text)": ANYBODY,
    "chunks_alike(text,text[],real,integer)": MEMBER,
    "chunks_with_metadata(jsonb,integer)": MEMBER,
    "chunks_with_words(text[],text[],text[])": MEMBER,
    "decrypt_sensitive_data(text,text)": ANYBODY,
    "delete_archived_searches(interval,integer)": WRITER,
    "encrypt_sensitive_data(text,text)": ANYBODY,
    "documentation_embeddings_large_scopes(bigint)": ADMINISTRATOR,
    "enqueue_embedding()": NOBODY,
    "episode_embeddings_large_scopes(bigint)": ADMINISTRATOR,
    "episode_text(jsonb,jsonb)": ANYBODY,
    "episodic_memories_alike(text,text[],real,integer)": MEMBER,
    "episodic_memories_with_words(text[],text[],text[])": MEMBER,
    "forget_traces()": NOBODY,
    "forget_usage()": NOBODY,
    "heading_text(text[])": ANYBODY,
    "increment_version()": ANYBODY,
    "let_backups_read()": NOBODY,
    "lexeme_statistics(regclass,name,name,text)": ANYBODY,
    "memory_embeddings_large_scopes(bigint)": ADMINISTRATOR,
    "memory_nodes_alike(text,text[],real,integer)": MEMBER,
    "memory_nodes_with_words(text[],text[],text[])": MEMBER,
    "merge_pending_entries(text[])": WRITER,
    "metadata_terms(jsonb)": ANYBODY,
    "passages_to_embed(text,integer)": ANYBODY,
    "scope_keys(text,text[])": ANYBODY,
    "set_updated_at()": ANYBODY,
    "scope_has_ceiling()": MEMBER,
    "system_health_check(text[])": ANYBODY,
    "sign_up_tenant(text)": WRITER,
    "text_hash(text)": ANYBODY,
    "update_vector_statistics()": ADMINISTRATOR,
}
"""Rights of a login of no group, and of each of the groups. A new table gets its line."""

# How the page calls what may be done: each is a set of those above.
WORDS = {
    "-": NOTHING,
    "read": READ,
    "add rows": ADDED_TO,
    "write": WRITE,
    "write rows": WRITE - {"COPY FROM"},
    "work off": WRITE - {"COPY FROM", "UPDATE"},
    "administer": ADMINISTER,
    "administer rows": ADMINISTER - {"COPY FROM"},
}

EXPECTED_OF_DATABASE = (
    {"CREATE TEMPORARY TABLE"},
    {"CREATE TEMPORARY TABLE", "SET ROLE rag_read_only"},
    {"CREATE TEMPORARY TABLE", "SET ROLE rag_read_write"},
    {"CREATE TEMPORARY TABLE", "SET ROLE rag_admin"},
)

RELATIONS = """
    SELECT CASE WHEN relispartition
                THEN (SELECT inhparent::regclass::text FROM pg_inherits WHERE inhrelid = oid)
                    || ' (each partition)'
                ELSE relname END AS label,
           quote_ident(relname) AS name, relkind,
           relkind = 'v' AND pg_relation_is_updatable(oid, false) = 28 AS updatable,
           (SELECT quote_ident(attname) FROM pg_attribute
            WHERE attrelid = pg_class.oid AND attnum > 0 AND NOT attisdropped
              AND attgenerated = '' AND attidentity <> 'a' ORDER BY attnum LIMIT 1) AS column
    FROM pg_class
    WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p', 'v', 'm', 'S')
      AND NOT EXISTS (SELECT FROM pg_depend WHERE classid = 'pg_class'::regclass
                      AND objid = pg_class.oid AND deptype = 'e')
    ORDER BY array_position('{r,p,v,m,S}', relkind::text), 1, 2
"""
FUNCTIONS = """
    SELECT pg_proc.oid::regprocedure::text AS label, proname AS name, prokind,
           coalesce((SELECT string_agg('(SELECT NULL::' || format_type(type, NULL) || ')', ', ')
                     FROM unnest(proargtypes) AS type), '') AS arguments
    FROM pg_proc
    WHERE pronamespace = 'public'::regnamespace
      AND NOT EXISTS (SELECT FROM pg_depend WHERE classid = 'pg_proc'::regclass
                      AND objid = pg_proc.oid AND deptype = 'e')
    ORDER BY 1
"""


class Found(NamedTuple):
    """The statements that each of the LOGINS was not refused, per object; and the count."""

    of_objects: dict[str, tuple[set[str], ...]]
    kinds: dict[str, str]
    of_database: tuple[set[str], ...]
    tried: int


class Intruder:
    """A login that tries what it may do, and leaves no trace of it."""

    def __init__(self, database: Database) -> None:
        dsn = database.url.set(drivername="postgresql").render_as_string(hide_password=False)
        self._connection = psycopg.connect(dsn, autocommit=True)
        self._connection.execute("SET client_min_messages = warning")
        self._warnings: list[str] = []
        self._connection.add_notice_handler(
            lambda notice: self._warnings.append(notice.message_primary or "")
        )
        self.tried = 0

    def close(self) -> None:
        """Log out."""
        self._connection.close()

    def may_do(self, statements: Iterable[tuple[str, str]]) -> set[str]:
        """The kinds of which no statement is refused."""
        answers = [(kind, self.may(kind, statement)) for kind, statement in statements]
        return {kind for kind, _ in answers} - {kind for kind, allowed in answers if not allowed}

    def may(self, kind: str, statement: str) -> bool:
        """Return whether the statement is not refused."""
        self.tried += 1
        self._warnings.clear()
        try:
            if kind in ALONE:
                self._run(statement)
            else:
                with self._connection.transaction(force_rollback=True):
                    self._run(statement)
        except InsufficientPrivilege:
            return False
        except FeatureNotSupported:
            return kind != "COPY FROM"  # with row security there is none
        except psycopg.Error as error:
            if error.sqlstate is None:  # not the server's answer
                raise
            return True
        return not any(
            words in warning
            for warning in self._warnings
            for words in ("permission denied", "no privileges were granted", "database owner can")
        )

    def _run(self, statement: str) -> None:
        query = cast("LiteralString", statement).encode()
        if "STDIN" in statement or "STDOUT" in statement:
            with self._connection.cursor().copy(query) as copy:
                if "STDOUT" in statement:
                    list(copy)
        else:
            self._connection.execute(query)


@pytest.fixture(scope="module")
def guarded(databases: Databases, hosted: URL) -> Iterator[Database]:
    """A database of this module's own: what is refused, and what is not, changes nothing in it."""
    with databases.opened(hosted.database or "", owner=hosted) as database:
        yield database


@pytest.fixture(scope="module")
def found(guarded: Database) -> Found:
    """Every attempt of every login."""
    with guarded.engine.connect() as connection:
        relations = connection.execute(text(RELATIONS)).all()
        functions = connection.execute(text(FUNCTIONS)).all()
    attempts: dict[str, list[tuple[str, str]]] = {}
    kinds = {}
    for each in relations:
        kinds[each.label], tried = {
            "v": ("view", VIEW | (UPDATABLE if each.updatable else {})),
            "S": ("sequence", SEQUENCE),
        }.get(each.relkind, ("table", TABLE))
        attempts.setdefault(each.label, []).extend(
            (kind, statement.format(name=each.name, column=each.column))
            for kind, statement in tried.items()
        )
    for each in functions:
        kinds[each.label] = "function"
        # A constant null would be answered by the planner, without a look at the right.
        attempts[each.label] = [("EXECUTE", f'SELECT "{each.name}"({each.arguments})')]
    of_database = [
        (kind, statement.format(database=guarded.url.database))
        for kind, statement in DATABASE.items()
    ]

    with ExitStack() as stack:
        intruders = [
            stack.enter_context(closing(Intruder(stack.enter_context(logged_in(guarded, group)))))
            for group in LOGINS
        ]
        return Found(
            {
                label: tuple(intruder.may_do(statements) for intruder in intruders)
                for label, statements in attempts.items()
            },
            kinds,
            tuple(intruder.may_do(of_database) for intruder in intruders),
            sum(intruder.tried for intruder in intruders),
        )


def page(found: Found) -> str:
    """The page of the reference that tells what was found."""

    def in_words(allowed: set[str]) -> str:
        words = {frozenset(kinds): word for word, kinds in WORDS.items()}
        return words.get(frozenset(allowed)) or ", ".join(sorted(allowed))

    def rows(*of: str) -> Iterator[str]:
        for label, allowed in found.of_objects.items():
            if found.kinds[label] in of:
                yield f"| `{label}` | {' | '.join(map(in_words, allowed[1:]))} |"

    def list_objects(kinds: set[str]) -> str:
        return ", ".join(kind for kind in TABLE if kind in kinds)

    others = {
        label: allowed
        for label, allowed in found.of_objects.items()
        if allowed[0] and found.kinds[label] != "function"
    }
    assert not others, "the page says that without a group nothing can be read"
    head = f"| | {' | '.join(GROUPS)} |\n|---|---|---|---|"
    executable, closed = (
        ", ".join(
            f"`{label}`"
            for label, allowed in found.of_objects.items()
            if found.kinds[label] == "function" and allowed == rights
        )
        for rights in (ANYBODY, NOBODY)
    )
    special = "\n".join(
        row
        for row in rows("function")
        if not row.endswith(("| EXECUTE | EXECUTE | EXECUTE |", "| - | - | - |"))
    )
    made = "\n".join(
        f"| {kind} | "
        + " | ".join("yes" if kind in allowed else "-" for allowed in found.of_database)
        + " |"
        for kind in DATABASE
    )
    return f"""# Permissions

A test wrote this page. It logs in once as a member of each group, and once as a member of none, and
tries every kind of statement on every table, view, sequence and function of the database
({found.tried:,} attempts). `pgcorpus roles show` shows the rights in your own database. How to use
the groups: [roles](../how-to/roles.md).

| word | statements |
|---|---|
| read | {list_objects(READ)} |
| write | read, and {list_objects(WRITE - READ)} |
| write rows | write, but without COPY FROM, which row security does not allow |
| work off | write rows, but UPDATE only of the columns with a job's state, or with a vector |
| administer | write, and {list_objects(ADMINISTER - WRITE)} |
| administer rows | administer, but without COPY FROM |

Refused on every table, to every group: {list_objects(set(TABLE) - ADMINISTER)}.
Only the owner of the tables, which is the role that upgrades the schema, may run these. Before
PostgreSQL 17, ANALYZE, VACUUM and REINDEX are for the owner only, too. A login in no group can read
none of the tables.

## Tables and views

{head}
{chr(10).join(rows("table", "view"))}

In tables with row security, policies also restrict the rows that a login reads and writes: see
[isolation](../explanation/isolation.md).

## Sequences

{head}
{chr(10).join(rows("sequence"))}

## Functions

Every role may call {executable},
and the functions of the extensions. They run with the rights of their caller, or return only data
that the caller may read.

Only the owner may call {closed},
or attach them to a table, because they write with the owner's rights.
{f"{chr(10)}{head}{chr(10)}{special}{chr(10)}" if special else ""}
## The database and the server

| | without a group | {" | ".join(GROUPS)} |
|---|---|---|---|---|
{made}
"""


def test_each_login_may_do_what_its_group_may_and_nothing_else(
    found: Found, databases: Databases
) -> None:
    """On every table, view, sequence and function that the catalog has."""
    unknown = MAINTAIN if databases.version < 17 else NOTHING
    expected = {
        label: tuple(may - unknown for may in of_groups) for label, of_groups in EXPECTED.items()
    }
    different = {
        label: (found.of_objects.get(label), expected.get(label))
        for label in found.of_objects.keys() | expected.keys()
        if found.of_objects.get(label) != expected.get(label)
    }

    assert different == {}


def test_no_login_gets_beyond_its_group(found: Found) -> None:
    """It makes only temporary tables, takes no other role, reads no file and runs no program."""
    assert found.of_database == EXPECTED_OF_DATABASE


def test_the_page_of_the_reference_is_what_was_found(found: Found, databases: Databases) -> None:
    """Whoever changes a right changes the page with it."""
    if databases.version < 17:
        pytest.skip("the page shows the rights of PostgreSQL 17 and later")

    check_page("permissions.md", __file__, page(found))


def test_functions_of_extensions_are_for_everybody(guarded: Database) -> None:
    """A search needs their operators, whoever runs it."""
    with guarded.engine.connect() as connection:
        closed = connection.scalars(
            text(
                "SELECT pg_proc.oid::regprocedure::text FROM pg_proc JOIN pg_depend"
                " ON classid = 'pg_proc'::regclass AND objid = pg_proc.oid AND deptype = 'e'"
                " WHERE pronamespace = 'public'::regnamespace"
                " AND NOT has_function_privilege('public', pg_proc.oid, 'EXECUTE')"
            )
        ).all()

    assert closed == []


@pytest.fixture(scope="module")
def served(databases: Databases, hosted: URL) -> Iterator[Database]:
    """The samples of two corpora, imported by one login and embedded by another's worker."""
    with databases.opened(hosted.database or "", owner=hosted) as database:
        with logged_in(database, "rag_read_write") as writer:
            for importer in (KnowledgeImporter(writer), ChatImporter(writer)):
                report = importer.run([samples.folder(importer.corpus)]).as_json()
                assert (report["added"] > 0, report["rejected"]) == (True, 0)
        with logged_in(database, "rag_admin") as administrator:
            assert set(Worker(administrator).run(once=True).counts) == {"completed"}
        yield database


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("mode", LEGS_OF)
@pytest.mark.parametrize("corpus", ["knowledge", "chat"])
def test_every_group_searches(served: Database, group: Group, mode: str, corpus: str) -> None:
    """By words, vectors and typos, with every leg, and with the statistics that ranking reads."""
    with logged_in(served, group) as own:
        service = SearchService(own)
        page = service.search("raising prices for customers", corpus=corpus, mode=mode)
        service.flush_log()

    assert page.hits
    assert {leg.status for leg in page.legs} == {"ok"}
    assert not page.degraded


def test_searches_are_timed_for_who_may_write_and_said_not_to_be_for_others(
    served: Database, caplog: pytest.LogCaptureFixture
) -> None:
    """The search is answered; that it is not timed is a warning, given once and not per search."""
    for group, timed in {"rag_read_write": 2, "rag_read_only": 0}.items():
        with served.engine.begin() as connection:
            connection.execute(text("TRUNCATE query_performance_log"))
        caplog.clear()
        with logged_in(served, group) as own:
            service = SearchService(own)
            for _ in range(2):
                assert service.search("raising prices", corpus="knowledge").hits
                service.flush_log()
        with served.engine.connect() as connection:
            logged = connection.scalar(text("SELECT count(*) FROM query_performance_log"))

        assert logged == timed
        assert len([r for r in caplog.records if "no right" in r.message]) == (timed == 0)


def test_what_a_writer_may_not_do_for_the_planner_an_administrator_does(
    databases: Databases, hosted: URL
) -> None:
    """ANALYZE passes over tables for whoever may not; the maintenance of a worker renews them."""
    with databases.opened(hosted.database or "", owner=hosted) as database:
        factory = "INSERT INTO key_concepts (concept_name) SELECT 'c ' || n"
        analysed = text("SELECT reltuples FROM pg_class WHERE relname = 'key_concepts'")
        with logged_in(database, "rag_read_write") as own, own.unit_of_work() as work:
            work.session.execute(text(f"{factory} FROM generate_series(1, 5000) AS n"))
            work.operations.analyze("key_concepts")
            work.commit()
        with database.engine.connect() as connection:
            assert connection.scalar(analysed) <= 0
            connection.execute(text("SELECT pg_stat_force_next_flush()"))

        with logged_in(database, "rag_admin") as own:
            own_worker = Worker(own, kinds={"maintenance"})
            assert own_worker.run(once=True).counts == {"completed": 1}
        with database.engine.connect() as connection:
            may_maintain = databases.version >= 17  # before, it is left to autovacuum
            assert connection.scalar(analysed) == (5000 if may_maintain else -1)


def test_models_are_switched_by_administrators_alone(served: Database) -> None:
    """Of the registry an application only reads."""
    for group in ("rag_read_only", "rag_read_write"):
        with (
            logged_in(served, group) as own,
            pytest.raises(NotPermitted),
            own.unit_of_work() as work,
        ):
            work.models.use_model("knowledge", "hashing")
    with logged_in(served, "rag_admin") as own, own.unit_of_work() as work:
        work.models.use_model("knowledge", "hashing")
