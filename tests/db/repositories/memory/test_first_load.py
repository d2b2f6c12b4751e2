"""A first load goes in without indexes, and leaves them as it found them."""

from __future__ import annotations

import pytest
from sqlalchemy import func, select, text
from sqlalchemy.exc import IntegrityError

from pgcorpus.db.base import Base
from pgcorpus.db.engine import Database
from pgcorpus.db.models import FrameworkDocument, FrameworkMetadata
from pgcorpus.db.models.memory import MemoryNode
from pgcorpus.db.repositories.base import Repository
from pgcorpus.db.uow import UnitOfWork
from tests import factories

TABLE = FrameworkDocument.__table__


def indexes(work: UnitOfWork, table: str = "framework_documents") -> list[tuple[str, str]]:
    """The definitions of all indexes on a table."""
    rows = work.session.execute(
        text("SELECT indexname, indexdef FROM pg_indexes WHERE tablename = :table ORDER BY 1"),
        {"table": table},
    )
    return [tuple(row) for row in rows]


def keys(work: UnitOfWork) -> list[tuple[str, str]]:
    """The definitions of all foreign keys."""
    rows = work.session.execute(
        text(
            "SELECT conname, pg_get_constraintdef(oid) FROM pg_constraint WHERE contype = 'f'"
            " ORDER BY 1"
        )
    )
    return [tuple(row) for row in rows]


def names(work: UnitOfWork) -> set[str]:
    """The names alone."""
    return {name for name, _ in indexes(work)}


def test_the_indexes_are_gone_while_loading_and_the_same_afterwards(work: UnitOfWork) -> None:
    """Indexes that constraints need stay; rows that went in meanwhile are found by all."""
    before = indexes(work)

    with Repository(work.session).first_load(TABLE):
        during = names(work)
        factories.FrameworkDocumentFactory(details=False, content="zeugma")

    assert during == {"pk_framework_documents", "uq_framework_documents_chunk_id"}
    assert indexes(work) == before
    work.session.execute(text("SET LOCAL enable_seqscan = off"))
    found = "SELECT count(*) FROM framework_documents WHERE search_vector @@ 'zeugma'"
    assert work.session.scalar(text(found)) == 1


def test_the_foreign_keys_are_the_same_afterwards(work: UnitOfWork) -> None:
    """Keys between the tables are gone meanwhile; keys that lead elsewhere stay."""
    before = keys(work)

    with Repository(work.session).first_load(TABLE, FrameworkMetadata.__table__):
        during = keys(work)
        factories.FrameworkDocumentFactory()

    gone = {name for name, _ in before} - {name for name, _ in during}
    assert gone == {"fk_framework_metadata_document_id"}
    assert keys(work) == before


def test_what_indexes_sample_is_the_same_afterwards(work: UnitOfWork) -> None:
    """Of an expression over what somebody said: nothing. It is no part of the definition."""
    # Rows that other tests took back have left space: the owner cannot tell it from rows.
    work.session.execute(text("TRUNCATE memory_nodes CASCADE"))
    targets = text("""
        SELECT attrelid::regclass::text, attname, attstattarget
        FROM pg_attribute JOIN pg_index ON indexrelid = attrelid
        WHERE indrelid = 'memory_nodes'::regclass AND attstattarget >= 0
    """)
    before = set(work.session.execute(targets))

    with Repository(work.session).first_load(MemoryNode.__table__):
        assert work.session.execute(targets).all() == []

    names = ("idx_memory_nodes_scope_words", "idx_memory_nodes_scope_trigrams")
    assert before == {(name, "scope_keys", 0) for name in names}
    assert set(work.session.execute(targets)) == before


def test_a_row_without_its_parent_fails_the_load(work: UnitOfWork) -> None:
    """The key is checked when it is built."""
    orphan = text(
        "INSERT INTO framework_metadata (document_id, character_count, word_count, chunk_type)"
        " VALUES (gen_random_uuid(), 30, 3, 'supporting')"
    )

    with pytest.raises(IntegrityError), work.session.begin_nested():  # noqa: SIM117
        with Repository(work.session).first_load(TABLE, FrameworkMetadata.__table__):
            work.session.execute(orphan)


def test_a_table_with_rows_keeps_its_indexes(work: UnitOfWork) -> None:
    """Others search it."""
    factories.FrameworkDocumentFactory(details=False)
    before = indexes(work)

    with Repository(work.session).first_load(TABLE):
        assert indexes(work) == before


def test_a_table_in_use_keeps_its_indexes(database: Database) -> None:
    """The load does not wait for a reader, and the reader not for the load."""
    with database.unit_of_work() as reader, database.unit_of_work() as work:
        reader.session.execute(text("SELECT FROM framework_documents"))
        before = indexes(work)

        with Repository(work.session).first_load(TABLE):
            assert indexes(work) == before
        work.commit()


def test_a_table_of_another_role_keeps_its_indexes(database: Database) -> None:
    """A role that may write but owns nothing imports all the same."""
    with database.unit_of_work() as work:
        before = indexes(work)
        work.session.execute(text("CREATE ROLE first_load_writer"))
        work.session.execute(text("GRANT first_load_writer TO CURRENT_USER"))
        try:
            work.session.execute(text("GRANT ALL ON framework_documents TO first_load_writer"))
            work.session.execute(text("SET LOCAL ROLE first_load_writer"))
            with Repository(work.session).first_load(TABLE):
                assert indexes(work) == before
        finally:
            work.rollback()


def test_a_table_of_which_row_security_shows_nothing_keeps_its_indexes(work: UnitOfWork) -> None:
    """An owner that row security binds must not take another tenant's rows for none."""
    table = Base.metadata.tables["memory_nodes"]
    factories.MemoryNodeFactory()
    before = indexes(work, "memory_nodes")

    assert work.session.scalar(select(func.count()).select_from(table)) == 0
    assert not Repository(work.session).are_empty(table)
    with Repository(work.session).first_load(table):
        assert indexes(work, "memory_nodes") == before


def test_a_table_that_takes_no_space_is_empty_for_whoever_asks(work: UnitOfWork) -> None:
    """Its owner, whom row security binds, loads it without indexes."""
    work.session.execute(text("TRUNCATE memory_nodes CASCADE"))
    work.session.execute(text("SET LOCAL ROLE rag_read_write"))

    assert Repository(work.session).are_empty(Base.metadata.tables["memory_nodes"])


def test_rows_that_were_taken_back_do_not_count(work: UnitOfWork) -> None:
    """A load that was stopped leaves space behind; the next is a first load again."""
    factories.FrameworkDocumentFactory(details=False)
    work.session.execute(text("DELETE FROM framework_documents"))

    assert Repository(work.session).are_empty(TABLE)
    assert work.session.scalar(text("SHOW row_security")) == "on"


def test_where_processes_cannot_share_memory_one_builds_alone(work: UnitOfWork) -> None:
    """Containers keep 64 MB for it."""
    build = """DO $$ BEGIN
        IF current_setting('max_parallel_maintenance_workers') <> '0' THEN RAISE disk_full;
        END IF;
        CREATE INDEX built ON framework_documents (section);
    END $$"""

    Repository(work.session).build(build, memory="64MB")

    assert "built" in names(work)


def test_a_load_that_fails_leaves_the_indexes(database: Database) -> None:
    """All of it is one transaction."""
    with database.unit_of_work() as work:
        before = indexes(work)

    with (
        pytest.raises(RuntimeError),
        database.unit_of_work() as work,
        Repository(work.session).first_load(TABLE),
    ):
        raise RuntimeError

    with database.unit_of_work() as work:
        assert indexes(work) == before
