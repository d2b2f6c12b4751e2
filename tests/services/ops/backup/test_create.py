"""Backups hold every row of every scope, or there are none."""

from __future__ import annotations

import csv
import gzip
import stat

import pytest
from sqlalchemy import Engine, create_engine, select, text

from pgcorpus.db.engine import Database
from pgcorpus.db.errors import BackupError, NotPermitted, RowsMissing
from pgcorpus.db.models.operations import BackupLog
from pgcorpus.services.ops.backup.create import create
from pgcorpus.services.ops.backup.manifest import DUMP, SCHEMA
from tests.logins import logged_in
from tests.services.ops.backup.conftest import Shelf, silently
from tests.tenancy import KEYS


def count_all(superuser: Engine) -> dict[str, int]:
    """Rows of each scoped table, as the superuser sees them."""
    with superuser.connect() as connection:
        return {
            table: connection.scalar(text(f"SELECT count(*) FROM {table}")) or 0  # noqa: S608
            for table in KEYS
        }


def read_log(database: Database) -> list[BackupLog]:
    """The log of backups, the oldest first."""
    with database.unit_of_work() as work:
        return list(work.session.scalars(select(BackupLog).order_by(BackupLog.id)))


def test_an_owner_who_is_no_superuser_backs_up_the_rows_of_every_scope(
    shelf: Shelf, superuser: Engine
) -> None:
    """Row security hides most of them from the owner: the dump has what the superuser counts."""
    with shelf.database.engine.connect() as connection:
        seen = connection.scalar(text("SELECT count(*) FROM memory_nodes"))
    there = count_all(superuser)
    backup = shelf.back_up()
    tables = backup.manifest.tables
    assert seen == 0
    assert there["memory_nodes"] == 9
    assert {table: tables[f"public.{table}"].rows for table in KEYS} == there


def test_what_is_backed_up_is_private_and_complete(shelf: Shelf) -> None:
    """The schema can be read as SQL, and vectors as the knowledge base's specification has them."""
    backup = shelf.back_up()
    assert stat.S_IMODE(backup.path.stat().st_mode) == 0o700
    assert all(stat.S_IMODE(each.stat().st_mode) == 0o600 for each in backup.path.iterdir())
    assert "CREATE TABLE public.framework_documents" in (backup.path / SCHEMA).read_text()
    assert (backup.path / DUMP).read_bytes().startswith(b"PGDMP")
    with gzip.open(backup.path / "vectors_knowledge.csv.gz", "rt") as file:
        header, *rows = csv.reader(file)
    assert header == ["chunk_id", "model_name", "embedding"]
    assert len(rows) == 12
    with gzip.open(backup.path / "vectors_memory.csv.gz", "rt") as file:
        assert len(list(csv.reader(file))) == 1 + 9


def test_nobody_can_become_the_role_of_backups_afterwards(shelf: Shelf) -> None:
    """It is lent to the owner for the time of a backup."""
    shelf.back_up()
    with shelf.database.engine.connect() as connection:
        reader = connection.scalar(
            text("SELECT 'rag_backup_' || current_database()"),
        )
        may = text("""
            SELECT count(*) FROM pg_roles
            WHERE NOT rolsuper AND rolname <> :reader AND pg_has_role(rolname, :reader, :how)
        """)
        major = int(connection.scalar(text("SHOW server_version_num")) or 0) // 10000
        how = "MEMBER" if major < 16 else "SET"
        assert connection.scalar(may, {"reader": reader, "how": how}) == 0
        assert connection.scalar(may, {"reader": reader, "how": "USAGE"}) == 0


def test_a_policy_that_hides_rows_from_the_backup_stops_it(shelf: Shelf) -> None:
    """A dump that silently lacks rows is worse than none."""
    with shelf.database.engine.begin() as connection:
        connection.execute(text("SELECT let_backups_read()"))
        connection.execute(text("ALTER POLICY backup ON memory_nodes USING (source <> 'x')"))
    with pytest.raises(RowsMissing, match="memory_nodes"):
        shelf.back_up()
    assert shelf.store.list_backups() == []
    assert not list(shelf.store.folder.iterdir())
    assert [(each.status, each.bytes) for each in read_log(shelf.database)] == [("failed", None)]


def test_a_restrictive_policy_stops_it_too(shelf: Shelf) -> None:
    """Of permissive policies one is enough; a restrictive one takes from all of them."""
    with shelf.database.engine.begin() as connection:
        connection.execute(
            text("CREATE POLICY less ON episodic_memories AS RESTRICTIVE USING (title <> 'x')")
        )
    with pytest.raises(RowsMissing, match="episodic_memories"):
        shelf.back_up()


def test_a_table_that_an_application_isolates_later_is_backed_up(shelf: Shelf) -> None:
    """The next backup lets its role read it."""
    with shelf.database.engine.begin() as connection:
        for statement in (
            "CREATE TABLE notes (scope text, note text)",
            "INSERT INTO notes VALUES ('tenant:a', 'one'), ('tenant:b', 'two')",
            "ALTER TABLE notes ENABLE ROW LEVEL SECURITY",
            "ALTER TABLE notes FORCE ROW LEVEL SECURITY",
            "CREATE POLICY own_scope ON notes USING (scope = app_scope())",
        ):
            connection.execute(text(statement))
    assert shelf.back_up().manifest.tables["public.notes"].rows == 2


@pytest.mark.parametrize("group", ["rag_read_only", "rag_read_write", "rag_admin"])
def test_a_login_that_owns_nothing_makes_no_backup(shelf: Shelf, group: str) -> None:
    """It would see the rows of no scope."""
    with logged_in(shelf.database, group) as login, pytest.raises(NotPermitted):  # type: ignore[arg-type]
        create(login, shelf.store, silently)
    assert shelf.store.list_backups() == []


def test_a_backup_is_logged_and_is_not_in_itself(shelf: Shelf) -> None:
    """Its snapshot is older than its entry, which would say for ever that it is running."""
    backup = shelf.back_up()
    (entry,) = read_log(shelf.database)
    assert entry.status == "complete"
    assert (entry.location, entry.rows, entry.bytes) == (
        backup.name,
        backup.manifest.rows,
        backup.manifest.size_bytes,
    )
    assert backup.manifest.tables["public.backup_log"].rows == 0
    assert not entry.encrypted


def test_a_service_reads_the_age_of_the_last_backup_and_cannot_claim_one(shelf: Shelf) -> None:
    """Health is told by the log."""
    shelf.back_up()
    with logged_in(shelf.database, "rag_read_write") as service:
        with service.unit_of_work() as work:
            assert work.backups.find_last_good() is not None
        with service.unit_of_work() as work, pytest.raises(NotPermitted), work.savepoint():
            work.backups.begin_log("forged", encrypted=False)


def test_a_folder_that_cannot_be_written_to_is_told(shelf: Shelf) -> None:
    """A file stands where the folder should be."""
    shelf.store.folder.write_text("")
    with pytest.raises(BackupError, match="no backup can be made in"):
        shelf.back_up()


def test_rows_of_a_superuser_are_counted_without_that_role(shelf: Shelf) -> None:
    """A superuser passes over row security by itself."""
    own = Database(
        type(shelf.database.settings)(
            database_url=shelf.superuser(shelf.database.url.database or ""),
            programs=shelf.database.settings.programs,
            environment="test",
        )
    )
    try:
        backup = create(own, shelf.store, silently)
    finally:
        own.close()
    engine = create_engine(shelf.superuser(shelf.database.url.database or ""))
    try:
        there = count_all(engine)
    finally:
        engine.dispose()
    assert {t: backup.manifest.tables[f"public.{t}"].rows for t in KEYS} == there
