"""A first load goes in without indexes, and leaves them as it found them."""

from __future__ import annotations

import pytest
from sqlalchemy import text

from db.engine import Database
from db.models import FrameworkDocument
from db.repositories.base import Repository
from db.uow import UnitOfWork
from tests import factories

TABLE = FrameworkDocument.__table__


def indexes(work: UnitOfWork) -> list[tuple[str, str]]:
    """The definitions of all indexes on documents."""
    rows = work.session.execute(
        text(
            "SELECT indexname, indexdef FROM pg_indexes WHERE tablename = 'framework_documents'"
            " ORDER BY 1"
        )
    )
    return [tuple(row) for row in rows]


def names(work: UnitOfWork) -> set[str]:
    """The names alone."""
    return {name for name, _ in indexes(work)}


def test_the_indexes_are_gone_while_loading_and_the_same_afterwards(work: UnitOfWork) -> None:
    """Those that constraints need stay; rows that went in meanwhile are found by all."""
    before = indexes(work)

    with Repository(work.session).first_load(TABLE):
        during = names(work)
        factories.FrameworkDocumentFactory(details=False, content="zeugma")

    assert during == {"pk_framework_documents", "uq_framework_documents_chunk_id"}
    assert indexes(work) == before
    work.session.execute(text("SET LOCAL enable_seqscan = off"))
    found = "SELECT count(*) FROM framework_documents WHERE search_vector @@ 'zeugma'"
    assert work.session.scalar(text(found)) == 1


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
    """Who may write but owns nothing imports all the same."""
    with database.unit_of_work() as work:
        before = indexes(work)
        work.session.execute(text("CREATE ROLE first_load_writer"))
        try:
            work.session.execute(text("GRANT ALL ON framework_documents TO first_load_writer"))
            work.session.execute(text("SET LOCAL ROLE first_load_writer"))
            with Repository(work.session).first_load(TABLE):
                assert indexes(work) == before
        finally:
            work.rollback()


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
