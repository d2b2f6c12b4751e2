"""The groups of roles: of the whole server, made once, and taken back to what there was before."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import Connection, Row, create_engine, text

from pgcorpus.db import migrations
from pgcorpus.db.embedded import EmbeddedServer
from pgcorpus.db.engine import Database
from pgcorpus.db.errors import DatabaseNotReady
from tests.conftest import Databases, settings_for
from tests.db.test_embedded import share_programs
from tests.migrations.conftest import Alembic, Dump

BEFORE, ROLES = "0004", "0005"
GROUPS = ("rag_read_only", "rag_read_write", "rag_admin")


@pytest.fixture(scope="module")
def alone(server: EmbeddedServer) -> Iterator[Databases]:
    """Databases of a server that no other test uses: roles come and go with its last database."""
    folder = Path(tempfile.mkdtemp(prefix="pgcorpus-tests-"))
    folder.chmod(0o755)
    share_programs(server, folder)
    own = EmbeddedServer(folder, settings={"fsync": "off"})
    databases = Databases(own.start().set(database="postgres"))
    yield databases
    databases.close()
    own.destroy()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def fresh(alone: Databases) -> Iterator[Database]:
    """A database before its first revision, the only one of its server."""
    with alone.opened() as database:
        assert not set(GROUPS) & {role.rolname for role in roles_of(database)}
        yield database
        # Whatever a failed test has left would fail the next.
        execute(database, "DROP SCHEMA public CASCADE")
        for role in roles_of(database):
            if role.rolname != "postgres":
                execute(database, f"DROP OWNED BY {role.rolname} CASCADE")
                execute(database, f"DROP ROLE {role.rolname}")


def execute(database: Database, *statements: str) -> None:
    """Run statements, each in a transaction of its own."""
    with database.schema_engine().connect() as connection:
        for statement in statements:
            connection.execute(text(statement))
            connection.commit()


def roles_of(database: Database) -> list[Row]:
    """Every role of the server with its attributes, memberships and comment."""
    with database.schema_engine().connect() as connection:
        return list(
            connection.execute(
                text(
                    "SELECT rolname, rolsuper, rolcreaterole, rolcreatedb, rolcanlogin,"
                    " rolreplication, rolbypassrls, shobj_description(oid, 'pg_authid') AS comment,"
                    " ARRAY(SELECT roleid::regrole::text FROM pg_auth_members"
                    "       WHERE member = pg_roles.oid ORDER BY 1) AS member_of"
                    " FROM pg_roles WHERE rolname !~ '^pg_' ORDER BY 1"
                )
            )
        )


def access_of(database: Database) -> object:
    """Return the grants of the database itself, which ``pg_dump`` leaves to ``pg_dumpall``."""
    with database.schema_engine().connect() as connection:
        return connection.scalar(
            text(
                "SELECT array_agg(a::text ORDER BY a::text) FROM pg_database,"
                " aclexplode(coalesce(datacl, acldefault('d', datdba))) AS a"
                " WHERE datname = current_database()"
            )
        )


def privileges(connection: Connection, role: str, table: str) -> set[str]:
    """Return the privileges that were granted to the role itself on a table or sequence."""
    found = connection.scalars(
        text(
            "SELECT privilege_type FROM pg_class, aclexplode(relacl)"
            " WHERE oid = CAST(:table AS regclass) AND grantee = CAST(:role AS regrole)"
        ),
        {"table": table, "role": role},
    )
    return set(found)


@contextmanager
def lesser(database: Database, attributes: str = "") -> Iterator[Database]:
    """The same database for a login that owns it and is no superuser."""
    execute(
        database,
        f"CREATE ROLE deployer LOGIN PASSWORD 'invented' {attributes}",
        f'ALTER DATABASE "{database.url.database}" OWNER TO deployer',
        "CREATE EXTENSION vector",
        "CREATE EXTENSION pg_trgm",
    )
    own = Database(settings_for(database.url.set(username="deployer", password="invented")))
    yield own
    own.close()
    execute(database, f'ALTER DATABASE "{database.url.database}" OWNER TO postgres')


def test_the_groups_can_neither_log_in_nor_pass_over_row_security(fresh: Database) -> None:
    """They are what rights are given to, and say who made them."""
    migrations.upgrade(fresh, ROLES)

    made = [role for role in roles_of(fresh) if role.rolname in GROUPS]
    assert len(made) == len(GROUPS)
    for role in made:
        assert role[1:7] == (False,) * 6
        assert (role.comment, role.member_of) == ("made by pgcorpus", [])


def test_a_downgrade_takes_back_the_roles_and_every_right(fresh: Database, schema_of: Dump) -> None:
    """Not only the dump of the database is as before, but also what is of the whole server."""
    migrations.upgrade(fresh, BEFORE)
    before = (schema_of(fresh.url), roles_of(fresh), access_of(fresh))

    migrations.upgrade(fresh)
    assert access_of(fresh) != before[2]
    migrations.downgrade(fresh, BEFORE)

    assert (schema_of(fresh.url), roles_of(fresh), access_of(fresh)) == before


def test_a_group_that_was_there_before_keeps_what_it_had(fresh: Database, schema_of: Dump) -> None:
    """Its rights, attributes and members: not what it has is taken back, but what it was given."""
    migrations.upgrade(fresh, BEFORE)
    execute(
        fresh,
        "CREATE ROLE rag_read_only INHERIT CONNECTION LIMIT 7",
        "CREATE ROLE visitor LOGIN IN ROLE rag_read_only",
        f'GRANT CONNECT ON DATABASE "{fresh.url.database}" TO rag_read_only',
        "GRANT SELECT ON framework_documents TO rag_read_only WITH GRANT OPTION",
        "GRANT SELECT ON framework_documents TO visitor",
        "GRANT INSERT ON jobs TO rag_read_only",
        "GRANT USAGE ON SEQUENCE jobs_id_seq TO rag_read_only",
        "ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT SELECT ON TABLES TO rag_read_only",
    )
    before = (schema_of(fresh.url), roles_of(fresh), access_of(fresh))

    migrations.upgrade(fresh)
    migrations.downgrade(fresh, BEFORE)

    assert (schema_of(fresh.url), roles_of(fresh), access_of(fresh)) == before


def test_what_others_gave_a_group_since_stays_and_the_group_with_it(fresh: Database) -> None:
    """A role is dropped only if nothing needs it."""
    execute(fresh, "CREATE TABLE report ()")
    migrations.upgrade(fresh, ROLES)
    execute(fresh, "GRANT UPDATE ON report TO rag_read_only")

    migrations.downgrade(fresh, BEFORE)

    assert {role.rolname for role in roles_of(fresh)} == {"postgres", "rag_read_only"}
    with fresh.schema_engine().connect() as connection:
        assert privileges(connection, "rag_read_only", "report") == {"UPDATE"}


def test_a_group_with_members_stays(fresh: Database) -> None:
    """A login that somebody made is not left without what it logs in for."""
    migrations.upgrade(fresh, ROLES)
    execute(fresh, "CREATE ROLE visitor LOGIN IN ROLE rag_admin")

    migrations.downgrade(fresh, BEFORE)

    assert [role.rolname for role in roles_of(fresh)] == ["postgres", "rag_admin", "visitor"]
    assert roles_of(fresh)[-1].member_of == ["rag_admin"]


def test_groups_go_with_the_last_database_that_has_them(alone: Databases, fresh: Database) -> None:
    """Databases of one server share them: a downgrade of one takes nothing from another."""
    with alone.opened() as other:
        for database in (fresh, other):
            migrations.upgrade(database, ROLES)

        migrations.downgrade(fresh, BEFORE)
        assert len(roles_of(fresh)) == len(GROUPS) + 1
        with other.schema_engine().connect() as connection:
            assert privileges(connection, "rag_read_only", "messages") == {"SELECT"}

        migrations.downgrade(other, BEFORE)
        assert len(roles_of(fresh)) == 1


def test_databases_of_one_server_are_upgraded_at_the_same_moment(
    alone: Databases, alembic: Alembic
) -> None:
    """Each makes the groups, or finds them made, and drops them, or leaves them to the others."""
    rounds, databases = 8, 4
    up = alembic.run("upgrade", f"{BEFORE}:{ROLES}", "--sql").encode()
    down = alembic.run("downgrade", f"{ROLES}:{BEFORE}", "--sql").encode()

    def deploy(database: Database) -> None:
        dsn = database.url.set(drivername="postgresql").render_as_string(hide_password=False)
        with psycopg.connect(dsn, autocommit=True) as connection:
            for _ in range(rounds):
                connection.execute(up)
                given = "SELECT has_table_privilege('rag_read_only', 'messages', 'SELECT')"
                assert connection.execute(given).fetchone() == (True,)
                connection.execute(down)

    with ExitStack() as stack, ThreadPoolExecutor(databases) as threads:
        opened = [stack.enter_context(alone.opened()) for _ in range(databases)]
        for database in opened:
            migrations.upgrade(database, BEFORE)
        list(threads.map(deploy, opened))

        assert [role.rolname for role in roles_of(opened[0])] == ["postgres"]


def test_an_owner_who_may_not_make_roles_is_told_who_makes_them(
    fresh: Database, schema_of: Dump, alembic: Alembic
) -> None:
    """Statements for a superuser, then the same upgrade; the downgrade leaves the roles there."""
    with lesser(fresh) as owner:
        migrations.upgrade(owner, BEFORE)
        before = schema_of(fresh.url)
        complaint = alembic.fail("upgrade", ROLES, url=owner.url)
        assert "deployer may not make the roles of pgcorpus" in complaint
        with pytest.raises(DatabaseNotReady, match="A superuser makes them") as refused:
            migrations.upgrade(owner, ROLES)

        cure = str(refused.value).partition("with: ")[2].partition(".")[0]
        assert cure == "; ".join(f"CREATE ROLE {group} NOLOGIN" for group in GROUPS)
        execute(fresh, cure)
        with pytest.raises(DatabaseNotReady, match="may not make the role rag_search") as refused:
            migrations.upgrade(owner)
        searcher = f"rag_search_{fresh.url.database}"
        cure = str(refused.value).partition("with: ")[2].partition(". ")[0]
        assert cure == f"CREATE ROLE {searcher} NOLOGIN; GRANT {searcher} TO deployer"
        execute(fresh, cure)
        migrations.upgrade(owner)
        migrations.downgrade(owner, BEFORE)

        assert schema_of(fresh.url) == before
        there = {"postgres", "deployer", searcher, *GROUPS}
        assert {role.rolname for role in roles_of(fresh)} == there


def test_an_owner_who_may_make_roles_makes_and_drops_them(fresh: Database, schema_of: Dump) -> None:
    """CREATEROLE is enough. That PostgreSQL 16 makes the owner a member keeps no group alive."""
    with lesser(fresh, "CREATEROLE") as owner:
        migrations.upgrade(owner, BEFORE)
        before = (schema_of(fresh.url), roles_of(fresh), access_of(fresh))

        migrations.upgrade(owner)
        migrations.downgrade(owner, BEFORE)

        assert (schema_of(fresh.url), roles_of(fresh), access_of(fresh)) == before


def test_a_superuser_takes_back_what_the_owner_gave(fresh: Database, schema_of: Dump) -> None:
    """Default privileges are of the role that upgraded, whoever downgrades."""
    with lesser(fresh, "CREATEROLE") as owner:
        migrations.upgrade(owner, BEFORE)
        before = (schema_of(fresh.url), roles_of(fresh), access_of(fresh))

        migrations.upgrade(owner, ROLES)
        migrations.downgrade(fresh, BEFORE)

        assert (schema_of(fresh.url), roles_of(fresh), access_of(fresh)) == before


def test_nobody_else_may_upgrade_into_a_closed_database(fresh: Database) -> None:
    """If PUBLIC may not connect, the owner alone can let the groups in."""
    execute(
        fresh,
        f'REVOKE CONNECT ON DATABASE "{fresh.url.database}" FROM PUBLIC',
        "CREATE ROLE deployer LOGIN PASSWORD 'invented' CREATEROLE",
        f'GRANT CONNECT, CREATE ON DATABASE "{fresh.url.database}" TO deployer',
        "GRANT CREATE ON SCHEMA public TO deployer",
        "CREATE EXTENSION vector",
        "CREATE EXTENSION pg_trgm",
    )
    guest = Database(settings_for(fresh.url.set(username="deployer", password="invented")))
    migrations.upgrade(guest, BEFORE)
    with pytest.raises(DatabaseNotReady, match="may not let rag_read_only into the database"):
        migrations.upgrade(guest, ROLES)
    assert {role.rolname for role in roles_of(fresh)} == {"deployer", "postgres"}

    migrations.upgrade(fresh, ROLES)
    execute(fresh, "ALTER ROLE rag_read_only LOGIN PASSWORD 'invented'")
    url = fresh.url.set(username="rag_read_only", password="invented")
    engine = create_engine(url)
    with engine.connect() as connection:
        assert connection.scalar(text("SELECT count(*) FROM messages")) == 0
    engine.dispose()


def test_tables_of_later_revisions_have_the_same_rights(fresh: Database) -> None:
    """Whatever the role that upgraded makes in this schema; not what is made in another."""
    migrations.upgrade(fresh, ROLES)
    execute(
        fresh,
        "CREATE TABLE later (id integer GENERATED ALWAYS AS IDENTITY)",
        "CREATE SCHEMA other",
        "CREATE TABLE other.later ()",
    )

    with fresh.schema_engine().connect() as connection:
        for group in GROUPS:
            expected = privileges(connection, group, "messages")
            assert privileges(connection, group, "later") == expected
            of_sequence = privileges(connection, group, "jobs_id_seq")
            assert privileges(connection, group, "later_id_seq") == of_sequence
            assert privileges(connection, group, "other.later") == set()
        assert privileges(connection, "rag_admin", "messages") >= {"TRUNCATE", "MAINTAIN"}


def test_tables_of_others_are_not_given_away(fresh: Database) -> None:
    """The database may be shared: who searches here need not read what was there before."""
    execute(fresh, "CREATE TABLE salaries (amount integer)")

    migrations.upgrade(fresh)

    with fresh.schema_engine().connect() as connection:
        assert not any(privileges(connection, group, "salaries") for group in GROUPS)
