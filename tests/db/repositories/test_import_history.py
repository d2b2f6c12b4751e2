"""The history of a scope's imports belongs to that scope as its rows do."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import text

from pgcorpus.db.engine import Database
from pgcorpus.db.models.imports import ImportFile
from pgcorpus.db.repositories.imports import Change, Changed, Refused
from pgcorpus.db.scope import Scope
from pgcorpus.db.uow import UnitOfWork
from tests.logins import logged_in
from tests.tenancy import Tenancy, settled

TABLES = ("import_runs", "import_files", "import_transformations", "import_rejects")
FILE = "/data/corpus/nodes.json"
CHANGE = Changed("$[0]", "mem_0", [Change("urgency", None, "low", "choice")], once=True)
REFUSED = [Refused(f"$[{n}]", "refused", {"id": f"mem_{n}"}, None) for n in (1, 9)]


def record(work: UnitOfWork) -> None:
    """A run with a file, a change and two refusals, in the scope of the unit of work."""
    run_id = work.imports.start_run("memory", {"paths": [FILE]})
    work.imports.add_file(ImportFile(run_id=run_id, file=FILE))
    work.imports.record_changes(run_id, FILE, [CHANGE])
    work.imports.record_refusals(run_id, "memory", FILE, REFUSED)
    work.imports.finish_run(run_id)


@pytest.fixture
def tenancy(database: Database) -> Iterator[Tenancy]:
    """Two scopes for which the same file was imported, by a login of the application."""
    with settled(database) as tenancy:
        with database.engine.begin() as connection:  # what everybody has there already
            connection.execute(text(f"TRUNCATE {', '.join(TABLES)}"))
        for scope in (tenancy.ours, tenancy.theirs):
            with tenancy.application.unit_of_work(scope) as work:
                record(work)
                work.commit()
        yield tenancy


def counts(database: Database, scope: Scope | None = None) -> list[int]:
    """Rows of the TABLES that a login sees, as SQL alone shows them."""
    with database.unit_of_work(scope) as work:
        asked = (text(f"SELECT count(*) FROM {table}") for table in TABLES)  # noqa: S608 - names from above
        return [work.session.scalar(each) or 0 for each in asked]


def rows(tenancy: Tenancy, scope: Scope) -> list[int]:
    """Rows of the TABLES that are a scope's."""
    with tenancy.owner.unit_of_work() as work:
        asked = (
            text(f"SELECT count(*) FROM {table} WHERE scope = :scope")  # noqa: S608 - as above
            for table in TABLES
        )
        return [work.session.scalar(each, {"scope": str(scope)}) or 0 for each in asked]


def test_a_scope_sees_its_own_imports_and_those_of_nobody(tenancy: Tenancy) -> None:
    """Paths and identifiers of another tenant are in no application's reach."""
    application = tenancy.application

    assert counts(application, tenancy.ours) == counts(application, tenancy.theirs) == [1, 1, 1, 2]
    assert counts(application, tenancy.person) == counts(application) == [0, 0, 0, 0]
    with application.unit_of_work() as work:
        run_id = work.imports.start_run("knowledge", {})
        work.imports.record_refusals(run_id, "knowledge", FILE, REFUSED)
        work.commit()
    assert counts(application, tenancy.ours) == [2, 1, 1, 4]
    assert counts(application) == [1, 0, 0, 2]


def test_operators_see_the_imports_of_all_and_of_a_scope_they_enter(tenancy: Tenancy) -> None:
    """The superuser and members of rag_admin; what they enter narrows it, whoever they are."""
    with logged_in(tenancy.owner, "rag_admin") as administrator:
        for operator in (tenancy.owner, administrator):
            with operator.unit_of_work() as work:
                seen = [work.imports.list_changes("memory"), work.imports.list_runs("memory")]
                refused = work.imports.list_rejects("memory")
                work.enter(tenancy.ours)
                own = work.imports.list_changes("memory")
                own_refused = work.imports.list_rejects("memory")

            assert [len(each) for each in seen] == [2, 2]
            assert len(refused) == 4
            assert {each.scope for each in (*own, *own_refused)} == {str(tenancy.ours)}


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize(
    "attack", ["UPDATE {} SET scope = NULL", "UPDATE {} SET id = DEFAULT", "DELETE FROM {}"]
)
def test_imports_of_another_scope_cannot_be_changed(
    tenancy: Tenancy, table: str, attack: str
) -> None:
    """Not without a scope either, nor by name."""
    before = rows(tenancy, tenancy.theirs)
    named = text(f"{attack.format(table)} WHERE scope = :theirs")

    for scope in (tenancy.ours, None):
        with tenancy.application.unit_of_work(scope) as work:
            done = work.session.execute(named, {"theirs": str(tenancy.theirs)})
            assert done.rowcount == 0  # type: ignore[attr-defined]
            work.commit()

    assert rows(tenancy, tenancy.theirs) == before


@pytest.mark.parametrize("who", ["owner", "application"])
def test_an_import_drops_and_repeats_its_own_refusals_alone(tenancy: Tenancy, who: str) -> None:
    """The same place of the same file is refused once in each scope."""
    database: Database = getattr(tenancy, who)
    with database.unit_of_work() as work:
        work.enter(tenancy.ours)
        record(work)
        again = len(work.imports.list_refused("memory", FILE))
        run_id = work.imports.start_run("memory", {})
        work.imports.forget_refusals(run_id, "memory", FILE)
        left = work.imports.list_refused_files("memory")
        work.commit()

    assert (again, left) == (2, [])
    assert rows(tenancy, tenancy.ours) == [3, 2, 1, 0]
    assert rows(tenancy, tenancy.theirs) == [1, 1, 1, 2]


def test_what_is_forgotten_is_forgotten_by_the_history_too(tenancy: Tenancy) -> None:
    """By its id within its scope; the same id elsewhere, and what never went in, stays."""
    with tenancy.application.unit_of_work(tenancy.ours) as work:
        work.session.execute(text("DELETE FROM memory_nodes"))
        left = [each.payload for each in work.imports.list_rejects("memory")]
        work.commit()

    assert left == [{"id": "mem_9"}]
    assert rows(tenancy, tenancy.ours) == [1, 1, 0, 1]
    assert rows(tenancy, tenancy.theirs) == [1, 1, 1, 2]


def test_nothing_of_the_history_outlives_its_tenant(tenancy: Tenancy) -> None:
    """Nor a user on their own."""
    with tenancy.application.unit_of_work(tenancy.person) as work:
        record(work)
        work.commit()
    with tenancy.owner.unit_of_work() as work:
        assert tenancy.ours.tenant_id is not None
        assert tenancy.person.user_id is not None
        work.tenancy.delete_tenant(tenancy.ours.tenant_id)
        work.tenancy.delete_user(tenancy.person.user_id)
        work.commit()

    assert rows(tenancy, tenancy.ours) == rows(tenancy, tenancy.person) == [0, 0, 0, 0]
    assert rows(tenancy, tenancy.theirs) == [1, 1, 1, 2]
