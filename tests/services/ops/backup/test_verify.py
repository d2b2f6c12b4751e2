"""A backup is restored, and what is restored is what was there."""

from __future__ import annotations

from dataclasses import replace

import pytest
from sqlalchemy import create_engine, text

from pgcorpus.db import migrations
from pgcorpus.db.engine import Database
from pgcorpus.db.errors import NotPermitted, NotRestored
from pgcorpus.services.ops.backup.restore import choose_name, restore
from pgcorpus.services.ops.backup.store import Backup
from pgcorpus.services.ops.backup.verify import compare, verify
from pgcorpus.services.search.service import SearchService
from tests.services.ops.backup.conftest import Shelf, silently
from tests.services.ops.backup.test_create import read_log
from tests.tenancy import KEYS, rows_of_all


def differences(shelf: Shelf, backup: Backup, restored: Database) -> dict[str, tuple[str, ...]]:
    """The differences, by the check that finds them."""
    found = compare(restored, backup, shelf.store.key, silently)
    return {each.name: each.differences for each in found.checks if each.differences}


def test_an_owner_verifies_a_backup_in_an_empty_database(shelf: Shelf) -> None:
    """Everything is the same; the database is empty afterwards, and can serve again."""
    backup, empty = shelf.back_up(), shelf.make_empty()
    for _ in range(2):
        found = verify(shelf.database, backup, None, silently, into=empty)
        assert {each.name: each.differences for each in found.checks if each.differences} == {}
        assert {each.name for each in found.checks if not each.compared} <= {"ten best hits"}
    assert [each.status for each in read_log(shelf.database)] == ["verified"]
    assert read_log(shelf.database)[0].verified_at is not None


def test_what_is_restored_is_usable_at_once(shelf: Shelf) -> None:
    """Searches work, the schema is that of the models, and each scope has its own rows."""
    before = shelf.tenancy.contents()
    empty = shelf.make_empty()
    restored = restore(shelf.database, shelf.back_up(), None, empty, silently)
    try:
        assert migrations.drift(restored) == []
        page = SearchService(restored).search("price anchor", corpus="knowledge", mode="text")
        assert page.hits
        with restored.engine.connect() as connection:
            after = {table: sorted(set(rows_of_all(connection, table))) for table in KEYS}
        assert after == before
    finally:
        restored.close()


def test_a_dump_of_many_objects_is_restored(shelf: Shelf) -> None:
    """Its list is longer than a pipe holds, and so is the dump that follows it."""
    with shelf.database.engine.begin() as connection:
        for number in range(150):
            name = f"a_table_with_a_long_name_of_an_application_{number:03}"
            connection.execute(text(f"CREATE TABLE {name} AS SELECT {number} AS n"))
    restored = restore(shelf.database, shelf.back_up(), None, shelf.make_empty(), silently)
    try:
        with restored.engine.connect() as connection:
            last = "SELECT n FROM a_table_with_a_long_name_of_an_application_149"
            assert connection.scalar(text(last)) == 149
    finally:
        restored.close()


def test_a_backup_of_an_older_server_lacks_no_right_that_it_did_not_know(shelf: Shelf) -> None:
    """An owner may maintain its tables by a right of its own since PostgreSQL 17."""
    backup = shelf.back_up()
    grants = [each for each in backup.manifest.grants if not each.startswith("MAINTAIN ")]
    older = replace(backup, manifest=replace(backup.manifest, server_major=16, grants=grants))
    restored = restore(shelf.database, backup, None, shelf.make_empty(), silently)
    try:
        assert "grants" not in differences(shelf, older, restored)
    finally:
        restored.close()


@pytest.mark.parametrize(
    ("statement", "check"),
    [
        ("DELETE FROM chunk_embeddings", "rows of tables"),
        ("UPDATE framework_documents SET title = 'other'", "checksums of tables"),
        ("DROP INDEX idx_backup_log_finished_at", "indexes"),
        ("GRANT DELETE ON memory_nodes TO rag_read_only", "grants"),
        ("ALTER TABLE memory_nodes NO FORCE ROW LEVEL SECURITY", "row security"),
        ("ALTER POLICY own_scope ON memory_nodes USING (true)", "row security"),
        ("ALTER SEQUENCE jobs_id_seq RESTART", "sequences"),
        ("UPDATE chunk_embeddings SET embedding = embedding + embedding", "checksums of tables"),
        (
            """
            ALTER TABLE security_audit_log DISABLE TRIGGER append_only;
            UPDATE security_audit_log SET user_name = 'other'
            """,
            "audit log",
        ),
        ("ALTER TABLE framework_documents DROP COLUMN section CASCADE", "schema"),
    ],
)
def test_a_difference_is_found(shelf: Shelf, statement: str, check: str) -> None:
    """Each check can fail."""
    backup, empty = shelf.back_up(), shelf.make_empty()
    restored = restore(shelf.database, backup, None, empty, silently)
    engine = create_engine(shelf.superuser(empty))
    try:
        with engine.begin() as connection:
            connection.exec_driver_sql(statement)
        assert check in differences(shelf, backup, restored)
    finally:
        engine.dispose()
        restored.close()


def test_a_database_that_is_not_empty_stays_as_it_is(shelf: Shelf) -> None:
    """The original is never restored over."""
    backup = shelf.back_up()
    before = shelf.tenancy.contents()
    with pytest.raises(NotRestored, match="is not empty"):
        restore(shelf.database, backup, None, backup.manifest.database, silently)
    assert shelf.tenancy.contents() == before


def test_an_owner_without_the_right_is_told_who_makes_a_database(shelf: Shelf) -> None:
    """CREATEDB, or an empty one."""
    with pytest.raises(NotPermitted, match="CREATEDB"):
        verify(shelf.database, shelf.back_up(), None, silently)


def test_missing_extensions_are_told_and_the_database_is_dropped(shelf: Shelf) -> None:
    """Pgvector is a superuser's to make."""
    backup = shelf.back_up()
    engine = create_engine(shelf.superuser("postgres"), isolation_level="AUTOCOMMIT")
    me = shelf.database.url.username
    try:
        with engine.connect() as connection:
            connection.execute(text(f"ALTER ROLE {me} CREATEDB"))
            with pytest.raises(NotRestored, match="CREATE EXTENSION vector"):
                restore(shelf.database, backup, None, choose_name(backup), silently)
            there = text("SELECT count(*) FROM pg_database WHERE datname = :name")
            assert connection.scalar(there, {"name": choose_name(backup)}) == 0
            connection.execute(text(f"ALTER ROLE {me} NOCREATEDB"))
    finally:
        engine.dispose()


def test_roles_that_the_server_lacks_are_told_with_what_makes_them(shelf: Shelf) -> None:
    """Roles are of the whole server: on another one they must be made first."""
    backup = shelf.back_up()
    moved = replace(backup.manifest, roles=[*backup.manifest.roles, "a role of elsewhere"])
    with pytest.raises(NotRestored, match='CREATE ROLE "a role of elsewhere" NOLOGIN;'):
        restore(shelf.database, replace(backup, manifest=moved), None, "any", silently)


def test_a_superuser_verifies_a_backup_of_another_owner(shelf: Shelf) -> None:
    """A database is made for it, and dropped."""
    backup = shelf.back_up()
    url = shelf.superuser(shelf.database.url.database or "")
    superuser = Database(replace(shelf.database.settings, database_url=url))
    try:
        found = verify(superuser, backup, None, silently)
        assert {each.name: each.differences for each in found.checks if each.differences} == {}
        with superuser.engine.connect() as connection:
            left = text("SELECT count(*) FROM pg_database WHERE datname LIKE 'pgcorpus_verify_%'")
            assert connection.scalar(left) == 0
    finally:
        superuser.close()
