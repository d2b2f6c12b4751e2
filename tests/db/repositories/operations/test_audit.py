"""The audit log: nothing happens without it, nothing in it is changed, and no secret is in it."""

from __future__ import annotations

import base64
import hmac
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any, get_args
from uuid import UUID

import numpy as np
import pytest
from psycopg.errors import ExternalRoutineInvocationException
from sqlalchemy import URL, Connection, Engine, event, text
from sqlalchemy.exc import DBAPIError, ProgrammingError

from pgcorpus.db import migrations
from pgcorpus.db.base import Base
from pgcorpus.db.choices import Group
from pgcorpus.db.embedded import EmbeddedServer
from pgcorpus.db.engine import Database
from pgcorpus.db.errors import LogNotSealed, LogTampered, NotPermitted
from pgcorpus.db.models.audit import NOT_AUDITED, SecurityAuditLog
from pgcorpus.db.repositories.operations.diagnosis import DDL_EVENTS, Unrecorded
from pgcorpus.services.audit import AuditService, Remembered, Verification
from tests import factories
from tests.conftest import Databases, settings_for
from tests.db.test_embedded import share_programs
from tests.logins import PASSWORD, logged_in
from tests.migrations.conftest import Programs

KEY = "0123456789abcdef0123456789abcdef"
HASH = "hmac-sha256:"
GROUPS = get_args(Group)
DOCUMENTS = "framework_documents"
LOG = "security_audit_log"

ADD = text(
    "INSERT INTO framework_documents (chunk_id, source_file, section, title, content)"
    " SELECT prefix || n, 'f.md', 'Pricing', 'Title', 'Text ' || n"
    " FROM CAST(:prefix AS text) AS prefix, generate_series(1, :rows) AS n"
)

# What the log shows of rows that are somebody's. Whatever else is added must be hashed, or be here.
SHOWN = {
    "tenants": {"id", "name", "slug", "created_at"},
    "users": {"id", "tenant_id", "auth_provider", "created_at"},
    "memory_nodes": {
        "key", "id", "user_id", "tenant_id", "sequence_index", "source", "created_at",
        "intent_type", "complexity", "technical_depth", "emotional_valence", "urgency",
        "conversation_mode", "action_required", "has_code", "has_error", "cluster_id",
        "cluster_confidence", "duplicate_of", "language",
    },
    "episodic_memories": {
        "key", "id", "user_id", "tenant_id", "message_count", "source", "created_at", "updated_at",
        "duration_minutes", "dominant_intent", "avg_complexity", "avg_technical_depth",
        "has_code", "has_errors", "urgency_max", "memory_node_ids", "related_episode_ids",
        "language",
    },
    "memory_embeddings": {"id", "node_key", "scope", "model_name", "created_at"},
    "episode_embeddings": {"id", "episode_key", "scope", "model_name", "created_at"},
    "messages": {
        "id", "conversation_id", "branch", "position", "role", "created_at", "version", "language",
    },
    "message_embeddings": {"id", "message_id", "model_name", "created_at"},
    "conversations": {
        "id", "created_at", "source_id", "source_type", "source_updated_at", "is_saved",
        "imported_from",
    },
}  # fmt: skip


def run(database: Database, *statements: str) -> None:
    """Run SQL as the owner, each statement in a transaction of its own."""
    for statement in statements:
        with database.engine.begin() as connection:
            connection.exec_driver_sql(statement)


@pytest.fixture
def schema_recorded(superuser: Engine) -> None:
    """Let changes of the schema be recorded, as an administrator may and the owner may not."""
    with superuser.begin() as connection:
        for happening in DDL_EVENTS:
            remedy = Unrecorded(None, happening, disabled=False).remedy
            connection.exec_driver_sql(str(remedy))


def add(database: Database, rows: int = 1, prefix: str = "c") -> None:
    """Store some chunks, and commit."""
    with database.engine.begin() as connection:
        connection.execute(ADD, {"rows": rows, "prefix": prefix})


def entries(database: Database, table: str | None = None) -> list[SecurityAuditLog]:
    """Return the entries of the log in the order in which they were written."""
    with database.unit_of_work() as work:
        return list(reversed(work.audit.list_entries(table=table, limit=100_000)))


def actions(database: Database, table: str) -> list[str]:
    """Return the actions on a table, in order."""
    return [each.action for each in entries(database, table)]


def test_every_table_is_recorded_or_named_as_one_that_is_not(database: Database) -> None:
    """A new table has to choose; and each recorded one is for all four kinds of change."""
    found = text(
        "SELECT tgrelid::regclass::text AS table, count(*) AS triggers FROM pg_trigger"
        " WHERE tgfoid = 'audit_rows'::regproc AND tgenabled = 'O' GROUP BY 1"
    )
    with database.engine.connect() as connection:
        recorded = {row.table: row.triggers for row in connection.execute(found)}

    assert recorded == dict.fromkeys(Base.metadata.tables.keys() - NOT_AUDITED, 4)


def test_a_change_is_one_entry_with_what_changed(database: Database) -> None:
    """Whole rows where they come and go; columns before and after where they change."""
    add(database)
    run(
        database,
        "UPDATE framework_documents SET title = 'New', description = 'd'",
        "DELETE FROM framework_documents",
    )

    added, changed, removed = entries(database, DOCUMENTS)
    assert [each.action for each in (added, changed, removed)] == ["INSERT", "UPDATE", "DELETE"]
    assert added.record_id == changed.record_id == removed.record_id
    assert added.old_values is None
    assert added.new_values is not None
    assert (added.new_values["content"], added.new_values["chunk_id"]) == ("Text 1", "c1")
    assert changed.old_values == {"title": "Title", "description": None}
    assert changed.new_values == {"title": "New", "description": "d"}
    assert removed.new_values is None
    assert removed.old_values == added.new_values | {"title": "New", "description": "d"}
    assert not {"search_vector", "updated_at"} & removed.old_values.keys()


def test_what_changes_nothing_is_not_recorded(database: Database) -> None:
    """Though ``updated_at`` moves; and how often a memory was recalled is no news."""
    add(database)
    with database.unit_of_work() as work:
        factories.bind(work.session)
        node = factories.MemoryNodeFactory()
        work.commit()
    before = entries(database)
    run(
        database,
        "UPDATE framework_documents SET title = title",
        "UPDATE framework_documents SET title = 'x' WHERE false",
        "DELETE FROM framework_documents WHERE false",
    )
    recalled = "UPDATE memory_nodes SET access_count = access_count + 1, last_accessed = now()"
    with database.unit_of_work() as work, factories.in_scope(work.session, node.scope):
        assert work.session.scalars(text(f"{recalled} RETURNING id")).all() == [node.id]
        work.commit()

    assert len(entries(database)) == len(before)


def by_orm(database: Database) -> None:
    """One row, through the session."""
    with database.unit_of_work() as work:
        factories.bind(work.session)
        factories.KeyConceptFactory(concept_name="a concept")
        work.commit()


def by_copy(database: Database) -> None:
    """Two rows, as bulk loads do."""
    with database.engine.begin() as connection:
        cursor: Any = connection.connection.cursor()
        with cursor.copy("COPY key_concepts (concept_name) FROM STDIN") as copy:
            copy.write_row(("a concept",))
            copy.write_row(("b concept",))


def by_upsert(database: Database) -> None:
    """A row that is there, and one that is not."""
    run(
        database,
        "INSERT INTO key_concepts (concept_name) VALUES ('a concept')",
        "INSERT INTO key_concepts (concept_name) VALUES ('a concept'), ('b concept')"
        " ON CONFLICT (concept_name) DO UPDATE SET created_at = '2001-01-01'",
        "INSERT INTO key_concepts (concept_name) VALUES ('a concept') ON CONFLICT DO NOTHING",
    )


def by_merge(database: Database) -> None:
    """Another way to say so, and to delete."""
    run(
        database,
        "INSERT INTO key_concepts (concept_name) VALUES ('a concept')",
        "MERGE INTO key_concepts USING (VALUES ('a concept'), ('b concept')) AS new (name)"
        " ON concept_name = name WHEN MATCHED THEN DELETE"
        " WHEN NOT MATCHED THEN INSERT (concept_name) VALUES (name)",
    )


def by_truncate(database: Database) -> None:
    """All at once."""
    run(
        database,
        "INSERT INTO key_concepts (concept_name) VALUES ('a concept')",
        "TRUNCATE key_concepts CASCADE",
    )


@pytest.mark.parametrize(
    ("write", "expected"),
    [
        (by_orm, ["INSERT"]),
        (by_copy, ["INSERT", "INSERT"]),
        (by_upsert, ["INSERT", "INSERT", "UPDATE"]),
        (by_merge, ["DELETE", "INSERT", "INSERT"]),
        (by_truncate, ["INSERT", "TRUNCATE"]),
    ],
    ids=lambda each: getattr(each, "__name__", ""),
)
def test_every_way_to_write_is_recorded(
    database: Database, write: Callable[[Database], None], expected: list[str]
) -> None:
    """Once for each row, whatever wrote it."""
    write(database)

    assert sorted(actions(database, "key_concepts")) == expected


def test_psql_is_recorded_as_who_it_is(database: Database, server: EmbeddedServer) -> None:
    """Login, address and program."""
    Programs(server).execute(database.url, "INSERT INTO key_concepts (concept_name) VALUES ('x')")

    (entry,) = entries(database, "key_concepts")
    assert entry.user_name == database.url.username
    assert str(entry.ip_address) == "127.0.0.1"
    assert entry.application_name == "psql"
    assert entry.actor is None


def test_what_a_deletion_takes_with_it_is_recorded(database: Database) -> None:
    """A cascade is a statement for each parent, and an entry for each child."""
    with database.unit_of_work() as work:
        factories.bind(work.session)
        for _ in range(3):
            conversation = factories.ConversationFactory()
            factories.MessageFactory.create_batch(2, conversation=conversation)
        work.commit()
    run(database, "DELETE FROM conversations")

    assert actions(database, "messages") == ["INSERT"] * 6 + ["DELETE"] * 6
    removed = {each.record_id for each in entries(database, "messages")[6:]}
    assert removed == {each.record_id for each in entries(database, "messages")[:6]}


def test_a_row_that_gets_another_key_is_two_halves(database: Database) -> None:
    """The old key lost its values, the new one has them; composite keys are written in full."""
    with database.unit_of_work() as work:
        factories.bind(work.session)
        link = factories.DocumentConceptFactory()
        other = factories.KeyConceptFactory()
        work.session.flush()
        work.session.execute(
            text("UPDATE document_concepts SET concept_id = :other"), {"other": other.id}
        )
        work.commit()

    _, *halves = entries(database, "document_concepts")
    of_key = {each.record_id: each for each in halves}
    assert [each.action for each in halves] == ["UPDATE", "UPDATE"]
    gone = of_key[f"{link.document_id},{link.concept_id}"]
    come = of_key[f"{link.document_id},{other.id}"]
    assert gone.new_values is None
    assert come.old_values is None
    assert come.new_values == (gone.old_values or {}) | {"concept_id": str(other.id)}


def test_what_is_rolled_back_is_not_in_the_log(database: Database) -> None:
    """The entry is of the same transaction, and of the same savepoint."""
    with database.unit_of_work() as work:
        work.session.execute(ADD, {"rows": 1, "prefix": "kept"})
        with work.session.begin_nested() as savepoint:
            work.session.execute(ADD, {"rows": 1, "prefix": "lost"})
            savepoint.rollback()
        work.commit()
        work.session.execute(ADD, {"rows": 1, "prefix": "lost too"})

    (entry,) = entries(database, DOCUMENTS)
    assert (entry.new_values or {})["chunk_id"] == "kept1"


def test_the_actor_is_that_of_the_unit_of_work(database: Database) -> None:
    """Beside the login, and not of the next transaction on the same connection."""
    with database.unit_of_work(actor="ada@example.com") as work:
        work.session.execute(ADD, {"rows": 1, "prefix": "a"})
        work.commit()
        work.session.execute(ADD, {"rows": 1, "prefix": "b"})
        work.commit()
    add(database, prefix="c")

    assert [each.actor for each in entries(database)] == ["ada@example.com"] * 2 + [None]
    with database.unit_of_work() as work:
        assert len(work.audit.list_entries(actor="ada@example.com")) == 2
        assert len(work.audit.list_entries(login=database.url.username)) == 3


def fill(database: Database) -> None:
    """A row of every factory: every audited table has one."""
    with database.unit_of_work() as work:
        factories.bind(work.session)
        for factory in factories.ALL:
            if factory._meta.model.__tablename__ not in NOT_AUDITED:
                factory()
        work.commit()


def test_of_what_people_say_the_log_has_hashes_alone(database: Database) -> None:
    """Only columns that were looked at are shown; whatever else comes must be hashed."""
    fill(database)

    written = entries(database)
    assert {each.table_name for each in written} >= SHOWN.keys()
    for entry in written:
        if entry.table_name in SHOWN:
            values = entry.new_values or {}
            plain = {
                name for name, value in values.items() if not str(value or HASH).startswith(HASH)
            }
            assert plain <= SHOWN[entry.table_name], entry.table_name
        assert entry.table_name != "chunk_embeddings" or str(
            (entry.new_values or {})["embedding"]
        ).startswith(HASH)


def test_a_memory_leaves_no_text_behind(database: Database) -> None:
    """Remembered, changed and forgotten: the log has it, and not a word of it."""
    with database.unit_of_work() as work:
        factories.bind(work.session)
        node = factories.MemoryNodeFactory(
            human_content="xyzzy", assistant_content="plugh", tags={"topics": ["frobozz"]}
        )
        work.commit()
        record = f"{node.scope},{node.id}"
        with factories.in_scope(work.session, node.scope):
            work.session.execute(text("UPDATE memory_nodes SET human_content = 'grue'"))
            work.session.execute(text("DELETE FROM memory_nodes"))
        work.commit()

    assert actions(database, "memory_nodes") == ["INSERT", "UPDATE", "DELETE"]
    with database.unit_of_work() as work:
        assert len(work.audit.list_entries(table="memory_nodes", record=record)) == 3
        assert len(work.audit.list_entries(record=node.id)) == 3
        assert work.audit.list_entries(record=f"tenant:{UUID(int=1)},{node.id}") == []
        whole = work.session.scalar(
            text("SELECT string_agg(log::text, '') FROM security_audit_log log")
        )
    assert not [word for word in ("xyzzy", "plugh", "frobozz", "grue") if word in whole]


def test_a_document_leaves_no_text_behind(database: Database) -> None:
    """Nor its chunks: of texts, names, metadata and what is made of them there are hashes alone."""
    secret = "xyzzy"
    with database.unit_of_work() as work:
        factories.bind(work.session)
        for tenant in (None, factories.TenantFactory()):
            document = factories.DocumentFactory(
                tenant=tenant,
                path=secret,
                title=secret,
                source_url=secret,
                hash=sha256(secret.encode()).hexdigest(),
                details={secret: secret},
            )
            chunk = factories.ChunkFactory(
                document=document,
                chunk_id=secret,
                heading=secret,
                anchor=secret,
                heading_path=[secret],
                text=secret,
                url=secret,
                hash=sha256(secret.encode()).hexdigest(),
                details={secret: secret},
            )
            factories.DocumentationEmbeddingFactory(chunk=chunk)
        work.commit()
        work.session.execute(text("UPDATE chunks SET text = 'plugh'"))
        work.session.execute(text("DELETE FROM documents"))
        work.commit()

    recorded = {
        "documents": ["INSERT", "INSERT", "DELETE"],
        "chunks": ["INSERT", "INSERT", "UPDATE", "DELETE"],
        "documentation_embeddings": ["INSERT", "INSERT", "DELETE"],
    }
    assert {table: actions(database, table) for table in recorded} == recorded
    with database.unit_of_work() as work:
        whole = work.session.scalar(
            text("SELECT string_agg(log::text, '') FROM security_audit_log log")
        )
    hashed = sha256(secret.encode()).hexdigest()
    assert not [word for word in (secret, "plugh", hashed) if word in whole]


def test_hashes_are_keyed_and_can_be_made_again_by_the_owner_alone(database: Database) -> None:
    """HMAC-SHA256: who may read the log cannot try e-mail addresses."""
    with database.unit_of_work() as work:
        factories.bind(work.session)
        factories.UserFactory(email="ada@example.com")
        vector = factories.ChunkEmbeddingFactory().embedding
        work.commit()
        block = work.session.scalar(text("SELECT inner_block FROM audit_state")) or b""
    key = bytes(byte ^ 0x36 for byte in block)

    def hash_content(content: bytes) -> str:
        return HASH + hmac.digest(key, content, "sha256").hex()

    (user,) = entries(database, "users")
    (embedding,) = entries(database, "chunk_embeddings")
    binary = len(vector).to_bytes(2, "big") + bytes(2) + np.asarray(vector, ">f4").tobytes()
    assert (user.new_values or {})["email"] == hash_content(b"ada@example.com")
    assert (embedding.new_values or {})["embedding"] == hash_content(binary)
    assert len(set(key)) > 16


def test_many_writers_are_recorded_once_each_and_do_not_wait(database: Database) -> None:
    """One transaction stays open the whole time: sixteen others write past it."""
    writers, each_writes = 16, 20
    patient = Database(replace(database.settings, pool_size=writers + 2))

    def write(writer: int) -> None:
        for number in range(each_writes):
            add(patient, prefix=f"{writer}-{number}-")

    with database.engine.connect() as held, ThreadPoolExecutor(writers) as threads:
        held.execute(ADD, {"rows": 1, "prefix": "held"})
        list(threads.map(write, range(writers), timeout=60))
        written = entries(database, DOCUMENTS)
        held.rollback()
    patient.close()

    assert len(written) == writers * each_writes
    assert len({each.record_id for each in written}) == writers * each_writes


@pytest.mark.parametrize(
    ("asked", "index"),
    [
        ({"record": "c1"}, "split_part"),
        ({"table": "key_concepts"}, "table_name_timestamp"),
        ({"actor": "ada"}, "actor_timestamp"),
        ({"since": "now"}, "pkey"),
    ],
    ids=lambda each: next(iter(each)) if isinstance(each, dict) else "",
)
def test_what_is_asked_for_is_found_by_an_index(
    database: Database, asked: dict[str, Any], index: str
) -> None:
    """Among any number of entries of others."""
    add(database, rows=5000)
    if "since" in asked:
        # Of this month: in the next one's partition, which has no rows, nothing needs an index.
        asked = {"since": datetime.now(UTC)}
    sent: list[tuple[str, Any]] = []

    def note(_c: object, _cursor: object, statement: str, parameters: Any, *_: object) -> None:
        sent.append((statement, parameters))

    with database.unit_of_work() as work:
        work.session.execute(text("ANALYZE security_audit_log"))
        connection = work.session.connection()
        event.listen(connection, "before_cursor_execute", note)
        work.audit.list_entries(**asked)
        event.remove(connection, "before_cursor_execute", note)
        ((statement, parameters),) = sent
        driver: Any = connection.connection.driver_connection
        plan = str(driver.execute(f"EXPLAIN {statement}", parameters).fetchall())

    assert index in plan
    assert f"Seq Scan on {LOG}_{datetime.now(UTC):%Y_%m}" not in plan


# The log


FORBIDDEN = {
    "INSERT": "INSERT INTO {} DEFAULT VALUES",
    "UPDATE": "UPDATE {0} SET {1} = NULL",
    "DELETE": "DELETE FROM {}",
    "TRUNCATE": "TRUNCATE {}",
    "COPY": "COPY {} FROM STDIN",
    "DROP": "DROP TABLE {}",
    "TRIGGER": "CREATE TRIGGER t AFTER INSERT ON {} EXECUTE FUNCTION audit_refuse()",
    "ALTER": "ALTER TABLE {} DISABLE TRIGGER ALL",
    "MAINTAIN": "LOCK TABLE {} IN ACCESS EXCLUSIVE MODE",
}


def find_refusal(connection: Connection, statement: str) -> str | None:
    """Return the SQLSTATE with which a statement is refused, or None where it is not."""
    try:
        with connection.begin_nested():
            connection.exec_driver_sql(statement)
    except DBAPIError as error:
        return str(getattr(error.orig, "sqlstate", None))
    return None


@pytest.mark.parametrize("group", GROUPS)
def test_no_role_changes_the_log_or_forges_an_entry(database: Database, group: Group) -> None:
    """Nor any partition of it, nor its seals; read it may rag_admin alone."""
    add(database)
    AuditService(database).seal()
    with database.unit_of_work() as work:
        partitions = [each.name for each in work.audit.list_partitions()]
    assert len(partitions) == 4
    columns = dict.fromkeys((LOG, *partitions), "actor")
    columns |= {"audit_seals": "signature", "audit_state": "roles"}
    with logged_in(database, group) as login, login.engine.connect() as connection:
        allowed = [
            (kind, table)
            for table, column in columns.items()
            for kind, statement in FORBIDDEN.items()
            if find_refusal(connection, statement.format(table, column)) != "42501"
        ]
        assert allowed == []
        for statement in (
            "SELECT nextval('security_audit_log_position_seq')",
            "SELECT setval('security_audit_log_position_seq', 1)",
            "SELECT inner_block FROM audit_state",
            "SELECT audit_drop_month('2020-01-01')",
            "SELECT audit_append_seal('rows', 1, 1, 1, '{}')",
            (
                "CREATE TEMPORARY TABLE own (id int);"
                "CREATE TRIGGER forged AFTER INSERT ON own REFERENCING NEW TABLE AS current"
                " FOR EACH STATEMENT EXECUTE FUNCTION audit_rows('id', '', '')"
            ),
            "ALTER TABLE key_concepts DISABLE TRIGGER audit_insert",
            "SET session_replication_role = replica",
        ):
            assert find_refusal(connection, statement) == "42501", statement
        readable = {
            table
            for table in columns
            if find_refusal(connection, f"SELECT * FROM {table}") is None  # noqa: S608 - from above
        }
        assert readable == (columns.keys() - {"audit_state"} if group == "rag_admin" else set())


def test_not_even_the_owner_changes_an_entry_by_mistake(database: Database) -> None:
    """A trigger of every partition is in the way; who disables it is found by the seals."""
    add(database)
    with database.engine.connect() as connection:
        for table in (LOG, f"{LOG}_{datetime.now(UTC):%Y_%m}"):
            for kind in ("UPDATE", "DELETE", "TRUNCATE"):
                assert find_refusal(connection, FORBIDDEN[kind].format(table, "actor")) == "42501"


@pytest.mark.usefixtures("schema_recorded")
def test_the_owner_excuses_nothing_by_the_flag_of_upkeep(database: Database) -> None:
    """It was enough to change entries and the schema, and to put the flag back, without a trace."""
    add(database)
    run(database, "UPDATE audit_state SET upkeep = true")
    with database.engine.connect() as connection:
        for table in (LOG, f"{LOG}_{datetime.now(UTC):%Y_%m}", "audit_seals"):
            column = "signature" if table == "audit_seals" else "actor"
            assert find_refusal(connection, FORBIDDEN["TRUNCATE"].format(table, column)) == "42501"
            if table != "audit_seals":
                for kind in ("UPDATE", "DELETE"):
                    assert (
                        find_refusal(connection, FORBIDDEN[kind].format(table, column)) == "42501"
                    )
    run(
        database,
        f"ALTER TABLE {DOCUMENTS} DISABLE TRIGGER audit_insert",
        f"ALTER TABLE {DOCUMENTS} ENABLE TRIGGER audit_insert",
        "UPDATE audit_state SET upkeep = false",
        "UPDATE audit_state SET roles = NULL, inner_block = outer_block",
    )

    assert actions(database, DOCUMENTS)[-2:] == ["ALTER TABLE", "ALTER TABLE"]
    flags = [
        (each.old_values or {}).get("upkeep") for each in entries(database, "audit_state")[-3:]
    ]
    assert flags == [False, True, None]
    last = entries(database, "audit_state")[-1].new_values or {}
    assert last.keys() == {"roles", "inner_block"}
    assert str(last["inner_block"]).startswith(HASH)


@pytest.mark.usefixtures("schema_recorded")
def test_entries_go_where_they_belong_also_when_maintenance_was_late(database: Database) -> None:
    """An administrator's login makes partitions, and moves what went past them; seals hold."""
    service = AuditService(database)
    with database.unit_of_work() as work:
        factories.bind(work.session)
        for day in ("2020-01-31T23:59:59+00:00", "2020-02-01T00:00:00+00:00"):
            factories.SecurityAuditLogFactory(timestamp=datetime.fromisoformat(day))
        work.commit()
    service.seal()
    with logged_in(database, "rag_admin") as login, login.unit_of_work() as work:
        assert work.audit.make_partitions() == [f"{LOG}_2020_01", f"{LOG}_2020_02"]
        assert work.audit.make_partitions() == []
        work.commit()

    with database.unit_of_work() as work:
        found = {
            each.name: work.audit.digest(each)[0].rows
            for each in work.audit.list_partitions()
            if work.audit.digest(each)
        }
    assert (found[f"{LOG}_2020_01"], found[f"{LOG}_2020_02"]) == (1, 1)
    assert f"{LOG}_default" not in found
    assert service.verify().intact
    made = [each.record_id for each in entries(database) if each.action == "CREATE TABLE"]
    assert made == [f"public.{LOG}_2020_01", f"public.{LOG}_2020_02"]


# Seals


@pytest.mark.parametrize("batch", ["0", "-1", "NULL"])
def test_a_batch_of_nothing_is_not_sealed(database: Database, batch: str) -> None:
    """It was sealed again and again, until the statement was cancelled."""
    add(database)
    with (
        logged_in(database, "rag_admin") as login,
        login.engine.connect() as connection,
        pytest.raises(DBAPIError, match="the batch is 1 or more, not") as error,
    ):
        connection.exec_driver_sql(f"SELECT audit_seal({batch})")
    assert error.value.orig.sqlstate == "22023"  # type: ignore[union-attr]


def test_what_is_sealed_and_untouched_is_intact(database: Database) -> None:
    """Entries since are counted, and nothing is said about them."""
    service = AuditService(database)
    assert service.verify().seals == 0
    add(database, rows=2500)
    made = service.seal()
    add(database, rows=3, prefix="later")

    found = service.verify(remembered=Remembered(made[0].number, made[0].hash.hex()))

    assert found.intact
    assert (found.seals, found.sealed, found.unsealed) == (3, 2500, 3)
    assert found.last_seal == Remembered(made[-1].number, made[-1].hash.hex())
    assert service.seal()
    assert service.seal() == []
    assert service.verify().unsealed == 0


def test_a_transaction_in_flight_is_sealed_when_it_has_ended(database: Database) -> None:
    """Its entries are older than others that are sealed: they are not taken for forged."""
    service = AuditService(database)
    with database.engine.connect() as early, database.engine.connect() as late:
        early.execute(ADD, {"rows": 3, "prefix": "early"})
        add(database, prefix="before")
        service.seal()
        assert service.verify().unsealed == 1
        late.execute(ADD, {"rows": 2, "prefix": "late"})
        early.commit()
        service.seal()
        assert (service.verify().sealed, service.verify().unsealed) == (4, 0)
        late.commit()
        service.seal()

    found = service.verify()
    assert found.intact
    assert (found.sealed, found.unsealed) == (6, 0)


def test_writers_and_sealers_at_once_leave_every_entry_under_one_seal(database: Database) -> None:
    """Whatever order transactions begin, write and end in; some are rolled back."""
    service = AuditService(database)
    wide = Database(replace(database.settings, pool_size=10))

    def write(writer: int) -> None:
        for number in range(15):
            with wide.unit_of_work() as work:
                for part in "ab":
                    work.session.execute(ADD, {"rows": 2, "prefix": f"{writer}-{number}{part}"})
                if number % 3:
                    work.commit()

    def seal(_: int) -> None:
        for _ in range(15):
            AuditService(wide).seal()

    with ThreadPoolExecutor(8) as threads:
        sealers = threads.submit(seal, 0)
        list(threads.map(write, range(6), timeout=120))
        sealers.result()
    wide.close()
    service.seal()

    found = service.verify()
    assert found.tampering == ()
    assert (found.sealed, found.unsealed) == (6 * 10 * 4, 0)


def tamper(database: Database, superuser: Engine, statement: str) -> Verification:
    """Run a statement as a superuser on a sealed log, past every trigger; return what is found."""
    with superuser.begin() as connection:
        connection.exec_driver_sql(f"SET LOCAL session_replication_role = replica; {statement}")
    return AuditService(database).verify()


OF_LAST = "WHERE position = (SELECT max(position) FROM security_audit_log)"
TAMPERINGS = {
    "an entry changed": (
        "UPDATE security_audit_log SET new_values = '{}' LAST", {"entries_changed"},
    ),
    "who did it changed": (
        "UPDATE security_audit_log SET user_name = 'somebody' LAST", {"entries_changed"},
    ),
    "when it was changed": (
        "UPDATE security_audit_log SET timestamp = timestamp - interval '1s' LAST",
        {"entries_changed"},
    ),
    "its transaction changed": (
        "UPDATE security_audit_log SET transaction_id = 1 LAST", {"entries_changed"},
    ),
    "an entry removed": ("DELETE FROM security_audit_log LAST", {"entries_missing"}),
    "all of a seal removed": (
        "DELETE FROM security_audit_log WHERE position <= 1000", {"entries_missing"},
    ),
    "an entry inserted": (
        ("INSERT INTO security_audit_log (position, user_name, action, transaction_id)"
        " OVERRIDING SYSTEM VALUE VALUES (5, 'x', 'INSERT', 5)"),
        {"entries_added"},
    ),
    "an entry inserted into a month that had none": (
        ("INSERT INTO security_audit_log (position, timestamp, user_name, action, transaction_id)"
        " OVERRIDING SYSTEM VALUE VALUES (5, '2020-01-01', 'x', 'INSERT', 5)"),
        {"entries_added"},
    ),
    "a month dropped": (
        ("DO $$ BEGIN EXECUTE 'DROP TABLE security_audit_log_'"
        " || to_char(now() AT TIME ZONE 'UTC', 'YYYY_MM'); END $$"),
        {"month_missing"},
    ),
    "the first seal removed": (
        "DELETE FROM audit_seals WHERE number = 1", {"seal_missing", "entries_added"},
    ),
    "a seal in the middle removed": (
        "DELETE FROM audit_seals WHERE number = 2", {"seal_missing", "entries_added"},
    ),
    "a seal changed": (
        "UPDATE audit_seals SET sealed_by = 'x' WHERE number = 2", {"seal_changed"},
    ),
    "a seal changed with its hash": (
        "UPDATE audit_seals SET hash = sha256('x') WHERE number = 2", {"seal_changed"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("tampering", TAMPERINGS)
def test_what_a_superuser_did_is_found(
    database: Database, superuser: Engine, tampering: str
) -> None:
    """By its kind, its month and its seal, to a thousand positions."""
    add(database, rows=2500)
    AuditService(database).seal()
    statement, kinds = TAMPERINGS[tampering]

    found = tamper(database, superuser, statement.replace("LAST", OF_LAST))

    assert not found.intact
    assert kinds <= {each.kind for each in found.tampering}
    assert len(found.tampering) <= 3
    assert all(each.seal or each.month for each in found.tampering)


def test_seals_cut_off_the_end_are_missed_by_who_remembers_one(
    database: Database, superuser: Engine
) -> None:
    """Within the database nothing is left to tell it: that is what is noted elsewhere for."""
    add(database, rows=10)
    service = AuditService(database)
    service.seal()
    add(database, rows=10, prefix="late")
    last = service.seal()[-1]

    found = tamper(
        database,
        superuser,
        "DELETE FROM audit_seals WHERE number = 2;"
        "DELETE FROM security_audit_log WHERE position > 10",
    )

    assert found.intact
    again = service.verify(remembered=Remembered(last.number, last.hash.hex()))
    assert [each.kind for each in again.tampering] == ["not_as_remembered"]


REWRITE = """
    DELETE FROM audit_seals;
    UPDATE security_audit_log SET user_name = 'somebody else';
"""


@contextmanager
def with_key(database: Database, key: str = KEY, *former: str) -> Iterator[Database]:
    """The same database, for a process that has a key, and knows those before it."""
    own = Database(replace(database.settings, audit_key=key, audit_former_keys=former))
    yield own
    own.close()


def test_whoever_seals_anew_lacks_the_key(database: Database, superuser: Engine) -> None:
    """Without signatures a superuser can rewrite log and seals; with them it shows."""
    add(database, rows=10)
    with with_key(database) as service_side:
        service = AuditService(service_side)
        service.seal()
        assert service.verify().signatures == "checked"
        assert service.verify().intact
        assert AuditService(database).verify().signatures == "unchecked"

        assert tamper(database, superuser, REWRITE).seals == 0
        AuditService(database).seal()

        assert AuditService(database).verify().intact
        assert [each.kind for each in service.verify().tampering] == ["signature_missing"]
        with pytest.raises(LogNotSealed, match="--trust-unsigned"):
            service.seal()
        with with_key(database, "another key of more than 32 letters") as other:
            AuditService(other).seal(trust_unsigned=True)
            add(database, prefix="more")
            AuditService(other).seal()
        assert {each.kind for each in service.verify().tampering} == {"signature_invalid"}
        with pytest.raises(LogTampered, match="not of this PGCORPUS_AUDIT_KEY"):
            service.seal()


def test_a_key_that_comes_later_signs_from_there_on(database: Database) -> None:
    """Once it was said that the seals before are to be trusted; its signature stands for them."""
    add(database)
    AuditService(database).seal()
    add(database, prefix="later")
    with with_key(database) as service_side:
        service = AuditService(service_side)
        service.seal(trust_unsigned=True)

        found = service.verify()
        assert found.intact
        assert found.seals == 2
        run(database, "UPDATE key_concepts SET concept_name = 'x'")
        with pytest.raises(ProgrammingError, match="only appended"):
            run(database, "UPDATE audit_seals SET signature = NULL")


def test_a_key_is_replaced_by_another(database: Database) -> None:
    """Seals of the former key stay valid; once the new one signed, the former signs no more."""
    newer = KEY[::-1]
    with with_key(database) as before, with_key(database, newer, KEY) as after:
        add(database)
        AuditService(before).seal()
        found = AuditService(after).verify()
        assert [each.kind for each in found.tampering] == ["signature_former"]

        add(database, prefix="later")
        AuditService(after).seal()
        assert AuditService(after).verify().intact
        with pytest.raises(LogTampered, match="not of this PGCORPUS_AUDIT_KEY"):
            AuditService(before).seal()

        add(database, prefix="forged")
        AuditService(database).seal()
        with before.unit_of_work() as work:  # as one who has found the former key
            forged = work.audit.find_last_seal()
            assert forged is not None
            work.audit.sign(forged.number, hmac.digest(KEY.encode(), forged.hash, "sha256"))
            work.commit()
        found = AuditService(after).verify()
        assert [each.kind for each in found.tampering] == ["signature_invalid", "signature_former"]
        assert "a key that had been replaced" in found.tampering[0].detail


@pytest.fixture
def backup(database: Database, superuser: Engine) -> Iterator[URL]:
    """A login for backups, as an administrator makes it: the owner may not dump memories."""
    name = f"backup_{database.url.database}"[:63]
    with superuser.begin() as connection:
        connection.exec_driver_sql(
            f"CREATE ROLE {name} LOGIN BYPASSRLS PASSWORD '{KEY}' IN ROLE pg_read_all_data"
        )
    yield database.url.set(username=name, password=KEY)
    with superuser.begin() as connection:
        connection.exec_driver_sql(f"DROP ROLE {name}")


def test_a_log_that_was_restored_elsewhere_stays_verifiable(
    database: Database, backup: URL, server: EmbeddedServer
) -> None:
    """On a server that counts its transactions from lower on, old and new are told apart."""
    service, programs = AuditService(database), Programs(server)
    add(database, rows=5, prefix="sealed")
    service.seal()
    with database.engine.connect() as connection:
        connection.execution_options(isolation_level="AUTOCOMMIT")
        for _ in range(3000):
            connection.execute(text("SELECT pg_current_xact_id()"))
        searcher = connection.scalar(
            text(
                "SELECT CAST(proowner::regrole AS text) FROM pg_proc"
                " WHERE proname = 'memory_embeddings_large_scopes'"
            )
        )
    add(database, rows=5, prefix="not yet")
    dump = programs.dump(backup)
    home = Path(tempfile.mkdtemp(prefix="pgcorpus-tests-"))
    home.chmod(0o755)
    share_programs(server, home)
    elsewhere = EmbeddedServer(home, settings={"fsync": "off"})
    url = elsewhere.start()
    try:
        roles = "".join(
            f"CREATE ROLE {each};" for each in (*GROUPS, searcher, database.url.username)
        )
        programs.execute(url, roles + dump)
        restored = Database(settings_for(url))
        with restored.engine.connect() as connection:
            newest = connection.scalar(
                text("SELECT CAST(CAST(pg_current_xact_id() AS text) AS int)")
            )
        oldest = min(each.transaction_id for each in entries(restored, DOCUMENTS)[5:])
        assert newest is not None
        assert newest < oldest

        copy = AuditService(restored)
        assert (copy.verify().intact, copy.verify().unsealed) == (True, 5)
        add(restored, rows=5, prefix="new")
        with restored.engine.connect() as flying:
            flying.execute(ADD, {"rows": 5, "prefix": "in flight"})
            copy.seal()
            flying.commit()
        copy.seal()
        found = copy.verify()
        restored.close()
    finally:
        elsewhere.destroy()

    assert found.intact
    assert found.unsealed == 0
    assert found.sealed >= 20


# Retention


def age(database: Database, months: int) -> None:
    """Some entries of so many months ago, in their partition."""
    past = datetime.now(UTC).replace(day=1) - timedelta(days=30 * months)
    with database.unit_of_work() as work:
        factories.bind(work.session)
        factories.SecurityAuditLogFactory.create_batch(3, timestamp=past)
        work.commit()
        work.audit.make_partitions()
        work.commit()


@pytest.fixture
def aged(database: Database) -> Database:
    """A sealed log with entries of today, of three months and of a year ago."""
    add(database)
    for months in (3, 12):
        age(database, months)
    AuditService(database).seal()
    return database


@pytest.mark.usefixtures("schema_recorded")
def test_months_that_are_dropped_are_known_and_the_rest_is_still_proved(
    aged: Database, superuser: Engine
) -> None:
    """By whom, when and how many; what comes back into one is forged."""
    service = AuditService(aged)
    (dropped,) = service.retain(6)

    found = service.verify()
    assert found.intact
    assert found.dropped == (dropped,)
    assert (dropped.rows, dropped.dropped_by) == (3, aged.url.username)
    assert service.retain(6) == []
    left = [each.action for each in entries(aged) if each.table_name != "audit_state"]
    assert left.count("DROP TABLE") == 1
    assert len([each for each in left if each in {"INSERT", "UPDATE", "DELETE"}]) == 4

    forged = tamper(
        aged,
        superuser,
        "INSERT INTO security_audit_log (position, timestamp, user_name, action, transaction_id)"  # noqa: S608 - as found
        f" OVERRIDING SYSTEM VALUE VALUES (2, '{dropped.month}-02', 'x', 'INSERT', 5)",
    )
    assert [(each.kind, each.month) for each in forged.tampering] == [
        ("entries_added", dropped.month)
    ]


def test_what_is_not_sealed_or_not_intact_is_not_dropped(aged: Database, superuser: Engine) -> None:
    """Evidence stays."""
    age(aged, 12)
    service = AuditService(aged)
    with pytest.raises(LogNotSealed, match="pgcorpus audit seal"):
        service.retain(6)
    service.seal()
    tamper(aged, superuser, "UPDATE security_audit_log SET actor = 'x' WHERE position = 1")
    with pytest.raises(LogTampered):
        service.retain(6)

    assert len(service.list_droppable(6)) == 1


def test_only_the_owner_drops_months(aged: Database) -> None:
    """For rag_admin the log is append-only, too."""
    with logged_in(aged, "rag_admin") as login, pytest.raises(NotPermitted):
        AuditService(login).retain(6)


def test_maintenance_needs_no_more_than_an_administrators_login(database: Database) -> None:
    """Partitions, roles and seals; a login without that group is refused."""
    add(database)
    with with_key(database) as service_side:
        with logged_in(service_side, "rag_admin") as login:
            AuditService(login).maintain()
            assert AuditService(login).verify().intact
        with logged_in(database, "rag_read_write") as login, pytest.raises(NotPermitted):
            AuditService(login).maintain()

    assert AuditService(database).verify().signatures == "unchecked"


# The schema, rights and roles


@pytest.mark.usefixtures("schema_recorded")
def test_changes_of_the_schema_and_of_rights_are_recorded(database: Database) -> None:
    """With their statement, where that is all there was; not those of temporary objects."""
    run(
        database,
        "CREATE TABLE diary (id int PRIMARY KEY)",
        "ALTER TABLE diary ADD COLUMN mood text",
        "GRANT SELECT ON diary TO rag_admin",
        "CREATE POLICY own ON diary USING (true)",
        "DO $$ BEGIN CREATE INDEX moods ON diary (mood); END $$",
        "CREATE TEMPORARY TABLE scratch (id int); CREATE INDEX ON scratch (id); DROP TABLE scratch",
        "DROP TABLE diary",
    )

    found = [
        (each.action, each.table_name, (each.new_values or {}).get("statement"))
        for each in entries(database)
        if not str(each.record_id).endswith("pkey")
    ]
    assert found == [
        ("CREATE TABLE", "diary", "CREATE TABLE diary (id int PRIMARY KEY)"),
        ("ALTER TABLE", "diary", "ALTER TABLE diary ADD COLUMN mood text"),
        ("GRANT", None, "GRANT SELECT ON diary TO rag_admin"),
        ("CREATE POLICY", "diary", "CREATE POLICY own ON diary USING (true)"),
        ("CREATE INDEX", "diary", None),
        ("DROP TABLE", "diary", "DROP TABLE diary"),
    ]


@pytest.mark.usefixtures("schema_recorded")
@pytest.mark.parametrize(
    "statement",
    [
        "CREATE FUNCTION f() RETURNS text LANGUAGE sql AS $$ SELECT 'the Password' $$",
        "CREATE TABLE t (id int); INSERT INTO key_concepts (concept_name) VALUES ('xyzzy')",
        "COMMENT ON TABLE key_concepts IS 'their secret'",
    ],
)
def test_a_statement_that_may_hold_a_secret_is_not_kept(database: Database, statement: str) -> None:
    """Only that it happened."""
    run(database, statement)

    found = [each.new_values for each in entries(database) if each.action != "INSERT"]
    assert found
    assert not [each for each in found if "statement" in (each or {})]


@pytest.mark.usefixtures("schema_recorded")
def test_a_log_that_is_broken_locks_nobody_out(database: Database) -> None:
    """Changes of the schema go on, with a warning, however little of it is left."""
    hide = f"ALTER TABLE {LOG} RENAME TO hidden"
    run(database, hide, "CREATE TABLE diary (id int)", "DROP TABLE diary")

    with database.engine.connect() as connection:
        notices: list[str] = []
        driver: Any = connection.connection.driver_connection
        driver.add_notice_handler(lambda notice: notices.append(notice.message_primary))
        connection.execute(text("CREATE TABLE diary (id int)"))
    assert any("is not in security_audit_log" in each for each in notices)


def test_changes_of_roles_are_recorded_by_maintenance(
    database: Database, superuser: Engine
) -> None:
    """Each difference from the last look is an entry; the server's own log knows who made it."""
    role = f"{database.url.database}_role"

    def look() -> list[tuple[str, Any, Any]]:
        with database.unit_of_work() as work:
            work.audit.record_roles()
            work.commit()
            found = work.audit.list_entries(table="pg_roles", record=role)
        return [(each.action, each.old_values, each.new_values) for each in reversed(found)]

    assert look() == []
    try:
        run(database, f"CREATE ROLE {role} LOGIN PASSWORD '{KEY}'")
        ((action, _, new),) = look()
        assert (action, new["rolcanlogin"], new["member_of"]) == ("CREATE ROLE", True, [])
        run(database, f"GRANT rag_admin TO {role}")
        with superuser.begin() as connection:  # who may not make databases lets nobody make them
            connection.exec_driver_sql(f"ALTER ROLE {role} CREATEDB")
        assert look()[1:] == [
            (
                "ALTER ROLE",
                {"rolcreatedb": False, "member_of": []},
                {"rolcreatedb": True, "member_of": ["rag_admin"]},
            )
        ]
    finally:
        run(database, f"DROP ROLE {role}")
    assert look()[-1][0] == "DROP ROLE"
    assert not [each for each in look() if KEY in str(each) or PASSWORD in str(each)]


def test_an_owner_who_is_no_superuser_upgrades_without_event_triggers(databases: Databases) -> None:
    """Rows are recorded, changes of the schema are not, and the upgrade says so."""
    url = databases.make()
    owner = f"{url.database}_owner"
    superuser = Database(settings_for(url))
    run(
        superuser,
        f"CREATE ROLE {owner} LOGIN CREATEROLE PASSWORD '{KEY}'",
        f'ALTER DATABASE "{url.database}" OWNER TO {owner}',
        "CREATE EXTENSION vector",
    )
    database = Database(settings_for(url.set(username=owner, password=KEY)))
    try:
        migrations.upgrade(database)
        add(database)
        run(database, "CREATE TABLE diary (id int)")
        AuditService(database).maintain()
        found = AuditService(database).verify()

        assert actions(database, DOCUMENTS) == ["INSERT"]
        assert actions(database, "diary") == []
        assert found.intact
        assert found.sealed >= 1
        with database.engine.connect() as connection:
            assert find_refusal(connection, FORBIDDEN["DELETE"].format(LOG)) == "42501"
        migrations.downgrade(database, "0006")
        with database.engine.connect() as connection:
            assert connection.scalar(text("SELECT to_regclass('security_audit_log')")) is None
    finally:
        database.close()
        run(
            superuser,
            f"REASSIGN OWNED BY {owner} TO CURRENT_USER",
            f"DROP OWNED BY {owner}",
            f"DROP ROLE {owner}",
        )
        superuser.close()
        databases.drop(url)


# Encryption


ENCRYPT = text("SELECT encrypt_sensitive_data(:data, :key)")
DECRYPT = text("SELECT decrypt_sensitive_data(:data, :key)")


def test_what_is_encrypted_is_read_with_its_key_alone(database: Database) -> None:
    """Twice the same text is two ciphers; a wrong key or a changed byte is an error, not a text."""
    said = "Grüße, 你好"
    with database.engine.connect() as connection:
        one, two = (str(connection.scalar(ENCRYPT, {"data": said, "key": KEY})) for _ in range(2))
        assert one != two
        assert connection.scalar(DECRYPT, {"data": one, "key": KEY}) == said
        assert connection.scalar(ENCRYPT, {"data": None, "key": KEY}) is None
        middle = len(one) // 2
        damaged = one[:middle] + ("A" if one[middle] != "A" else "B") + one[middle + 1 :]
        for data, key in ((one, KEY + "x"), (damaged, KEY)):
            with pytest.raises(DBAPIError) as caught, connection.begin_nested():
                connection.scalar(DECRYPT, {"data": data, "key": key})
            assert isinstance(caught.value.orig, ExternalRoutineInvocationException)
            assert "Wrong key or corrupt data" in str(caught.value.orig)


def test_encryption_is_what_the_decision_says(database: Database) -> None:
    """AES-256, the key salted and hashed four million bytes long, and a check of integrity."""
    with database.engine.connect() as connection:
        packet = base64.b64decode(str(connection.scalar(ENCRYPT, {"data": "x", "key": KEY})))

    # RFC 4880: tag 3 (session key): version 4, cipher 9 = AES-256, S2K 3 with hash 8 = SHA-256
    assert packet[0] & 0x3F == 3
    assert tuple(packet[2:6]) == (4, 9, 3, 8)
    count = packet[14]
    assert (16 + (count & 15)) << ((count >> 4) + 6) >= 2**22
    # tag 18: encrypted and integrity protected
    assert packet[2 + packet[1]] & 0x3F == 18
