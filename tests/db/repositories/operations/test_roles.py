"""Logins are made without a word of their password, and dropped when nothing needs them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from uuid import uuid4

import pytest
from sqlalchemy import Engine, event, text

from pgcorpus.db.choices import GROUPS
from pgcorpus.db.engine import Database
from pgcorpus.db.errors import (
    AlreadyExists,
    DatabaseNotReady,
    DatabaseUnavailable,
    InvalidValue,
    NotFound,
    NotPermitted,
    RoleInUse,
)
from pgcorpus.db.repositories.operations.roles import PUBLIC
from pgcorpus.db.uow import UnitOfWork
from tests.conftest import version_of
from tests.logins import PASSWORD, logged_in


@pytest.fixture
def name(database: Database) -> Iterator[str]:
    """A name that no role has, for one that is gone afterwards."""
    name = f"Login {uuid4().hex[:8]}; \"DROP\" % 'é'"
    yield name
    with database.engine.connect() as connection:
        quoted = connection.scalar(text("SELECT quote_ident(:name)"), {"name": name})
        connection.exec_driver_sql(f"DROP ROLE IF EXISTS {quoted}".replace("%", "%%"))
        connection.commit()


def create(database: Database, name: str, group: str = "rag_read_only") -> None:
    """Make a login, and keep it."""
    with database.unit_of_work() as work:
        work.roles.create_login(name, group, PASSWORD)
        work.commit()


def login(database: Database, name: str, password: str = PASSWORD) -> Database:
    """The database as the login sees it."""
    url = database.url.set(username=name, password=password)
    return Database(replace(database.settings, database_url=url))


def test_a_login_has_the_rights_of_its_group_and_no_other(database: Database, name: str) -> None:
    """It logs in by its password alone, whatever characters that and the name are made of."""
    create(database, name)

    own = login(database, name)
    with own.unit_of_work() as work:
        assert work.session.scalar(text("SELECT current_user")) == name
        assert work.jobs.list_jobs(kind="embed") == []
    with pytest.raises(NotPermitted), own.unit_of_work() as work:
        work.jobs.enqueue("test")
    own.close()

    stranger = login(database, name, "guessed")
    with pytest.raises(DatabaseUnavailable, match="password authentication failed"):
        stranger.engine.connect()
    stranger.close()


@pytest.mark.superuser  # reads pg_authid
def test_the_password_stays_with_the_client(database: Database, name: str) -> None:
    """No statement holds it: what the server is told is a SCRAM verifier, which it keeps."""
    said = []
    event.listen(database.engine, "before_cursor_execute", lambda *told: said.append(told[2]))

    create(database, name)

    assert any("SCRAM-SHA-256$" in statement for statement in said)
    assert not any("invented" in statement for statement in said)
    with database.engine.connect() as connection:
        kept = connection.scalar(
            text("SELECT rolpassword FROM pg_authid WHERE rolname = :name"), {"name": name}
        )
    assert kept.startswith("SCRAM-SHA-256$")


def test_a_login_is_nothing_more_than_a_login(database: Database, name: str) -> None:
    """No attribute of power, one group, nothing that it owns."""
    create(database, name, "rag_admin")

    with database.unit_of_work() as work:
        (member,) = [each for each in work.roles.list_members() if each.name == name]
        powers = work.session.execute(
            text(
                "SELECT rolsuper, rolcreaterole, rolcreatedb, rolreplication, rolbypassrls"
                " FROM pg_roles WHERE rolname = :name"
            ),
            {"name": name},
        ).one()
    assert not any(powers)
    assert (member.can_log_in, member.dangers, member.groups) == (True, (), ["rag_admin"])


@pytest.mark.parametrize(
    "name",
    ["", "x" * 64, "é" * 32, "nul\0", "pg_reader", "rag_admin", "rag_read_only", "public", "none"],
    ids=lambda name: name[:10] or "empty",
)
def test_a_name_that_cannot_be_a_login_is_refused(work: UnitOfWork, name: str) -> None:
    """Too long, empty, or of the groups, of PostgreSQL or of everybody."""
    with pytest.raises(InvalidValue, match=r"cannot be the name|reserved name"):
        work.roles.create_login(name, "rag_read_only", PASSWORD)


@pytest.mark.parametrize("password", ["", "a\0b"])
def test_an_impossible_password_is_refused(work: UnitOfWork, password: str) -> None:
    """PostgreSQL would take an empty one, and let nobody in."""
    with pytest.raises(InvalidValue, match="password"):
        work.roles.create_login("somebody", "rag_read_only", password)


def test_a_name_is_given_once(database: Database, name: str) -> None:
    """The second is told so, and the unit of work can go on."""
    create(database, name)

    with database.unit_of_work() as work:
        with pytest.raises(AlreadyExists, match="already"):
            work.roles.create_login(name, "rag_admin", PASSWORD)
        (member,) = [each for each in work.roles.list_members() if each.name == name]
    assert member.groups == ["rag_read_only"]


def test_who_may_not_make_logins_is_told_who_lets_them(database: Database, name: str) -> None:
    """The statement that the message names is run once by a superuser; then it works."""
    with logged_in(database, "rag_admin") as own:
        with pytest.raises(NotPermitted, match="may not make logins of rag_read_only") as refused:
            create(own, name)

        cure = str(refused.value).partition("with: ")[2]
        with database.engine.begin() as connection:
            for statement in cure.split("; "):
                connection.execute(text(statement))
        create(own, name)

        with own.unit_of_work() as work:
            assert name in {each.name for each in work.roles.list_members()}
            work.roles.drop_login(name)
            work.commit()


def test_who_may_not_drop_a_login_is_told_so(database: Database, name: str) -> None:
    """It was made by somebody else."""
    create(database, name)

    with (
        logged_in(database, "rag_admin") as own,
        own.unit_of_work() as work,
        pytest.raises(NotPermitted, match="may not drop"),
    ):
        work.roles.drop_login(name)


def test_a_dropped_login_is_gone(database: Database, name: str) -> None:
    """Nobody logs in by that name any more."""
    create(database, name)

    with database.unit_of_work() as work:
        work.roles.drop_login(name)
        work.commit()

        assert name not in {each.name for each in work.roles.list_members()}
        with pytest.raises(NotFound, match="there is no login"):
            work.roles.drop_login(name)


@pytest.mark.parametrize("name", [*GROUPS, "postgres", "nobody at all"])
def test_only_logins_of_the_groups_are_dropped(work: UnitOfWork, name: str) -> None:
    """Neither the groups themselves nor roles that others made."""
    with pytest.raises(NotFound):
        work.roles.drop_login(name)


def test_a_login_that_is_needed_stays_and_what_needs_it_is_said(
    database: Database, superuser: Engine
) -> None:
    """Its tables, rights of its own, other groups it is in, and the connection it is used by."""
    with logged_in(database, "rag_read_write") as own:
        name = own.url.username or ""

        def find_refusal() -> str:
            with database.unit_of_work() as work:
                with pytest.raises(RoleInUse) as refusal:
                    work.roles.drop_login(name)
                assert name in {each.name for each in work.roles.list_members()}
            return str(refusal.value)

        with superuser.begin() as connection:
            connection.execute(text(f"CREATE TABLE notes (); ALTER TABLE notes OWNER TO {name}"))
        assert "owner of table notes" in (said := find_refusal())
        assert f"DROP OWNED BY {name}" in said

        with superuser.begin() as connection:
            connection.execute(text("DROP TABLE notes"))
            connection.execute(text(f"GRANT pg_monitor TO {name}"))
        assert "pg_monitor" in find_refusal()

        with superuser.begin() as connection:
            connection.execute(text(f"REVOKE pg_monitor FROM {name}"))
            connection.execute(text(f"ALTER ROLE {name} CREATEROLE"))
        with own.unit_of_work() as work, pytest.raises((RoleInUse, NotPermitted)):
            work.roles.drop_login(name)


def test_what_makes_a_member_dangerous_is_named(database: Database, superuser: Engine) -> None:
    """Powers that row security or rights do not bind, and tables of its own."""
    with logged_in(database, "rag_read_only") as own:
        name = own.url.username or ""
        with superuser.begin() as connection:
            connection.execute(text(f"ALTER ROLE {name} SUPERUSER BYPASSRLS"))
            connection.execute(text(f"ALTER TABLE messages OWNER TO {name}"))

        with database.unit_of_work() as work:
            (member,) = [each for each in work.roles.list_members() if each.name == name]
        with superuser.begin() as connection:
            connection.execute(text(f"ALTER TABLE messages OWNER TO {database.url.username}"))
            connection.execute(text(f"ALTER ROLE {name} NOSUPERUSER"))  # or its maker keeps it

    assert member.dangers == (
        "is a superuser",
        "passes over row security (BYPASSRLS)",
        "owns 1 of the tables",
    )


def test_rights_are_those_of_the_catalog(work: UnitOfWork) -> None:
    """Tables, views, sequences and functions of this schema, and nothing of the extensions."""
    rights = {(each.kind, each.name): each.of for each in work.roles.list_rights()}

    messages = rights["table", "messages"]
    assert messages["rag_read_only"] == ["SELECT"]
    assert messages["rag_read_write"] == ["SELECT", "INSERT", "UPDATE", "DELETE"]
    maintain = ["MAINTAIN"] if version_of(work.session.get_bind().dialect) >= 17 else []
    assert messages["rag_admin"][4:] == ["TRUNCATE", *maintain]
    assert messages[PUBLIC] == []
    assert rights["view", "embedding_coverage"]["rag_admin"] == ["SELECT"]
    assert rights["sequence", "jobs_id_seq"]["rag_read_write"] == ["USAGE", "SELECT"]
    assert rights["function", "set_updated_at()"][PUBLIC] == ["EXECUTE"]
    assert rights["function", "enqueue_embedding()"]["rag_admin"] == []
    assert not any("hnsw" in name or "similarity" in name for _, name in rights)


def test_a_database_before_the_groups_says_so(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the command that makes them."""
    monkeypatch.setattr("pgcorpus.db.repositories.operations.roles.GROUPS", ("rag_missing",))

    with database.unit_of_work() as work, pytest.raises(DatabaseNotReady, match="db upgrade"):
        work.roles.list_rights()
    with database.unit_of_work() as work, pytest.raises(DatabaseNotReady, match="db upgrade"):
        work.roles.create_login("somebody", "rag_missing", PASSWORD)


def test_logins_are_made_from_asyncio_too(database: Database, name: str) -> None:
    """The same repository, awaited."""

    async def make() -> None:
        async with database.async_unit_of_work() as work:
            await work.run(lambda inner: inner.roles.create_login(name, "rag_admin", PASSWORD))
            await work.commit()
        await database.aclose()

    asyncio.run(make())

    own = login(database, name)
    with own.unit_of_work() as work:
        assert work.session.scalar(text("SELECT session_user")) == name
    own.close()
