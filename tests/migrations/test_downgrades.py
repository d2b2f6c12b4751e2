"""A downgrade says what it would delete, stops for what others built, and is one transaction."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import pytest
from sqlalchemy import Connection, text

from pgcorpus.db import migrations
from pgcorpus.db.engine import Database
from pgcorpus.db.errors import DatabaseNotReady
from pgcorpus.db.migrations import Loss
from pgcorpus.db.scope import Scope
from tests import factories
from tests.command import PGCORPUS, Command, run_command
from tests.conftest import Databases, settings_for
from tests.migrations.conftest import ROOT, Alembic, Dump


@pytest.fixture
def pgcorpus(database: Database, tmp_path: Path) -> Command:
    """Runs the installed command."""
    address = database.url.render_as_string(hide_password=False)
    environment = {"PATH": os.environ["PATH"], "DATABASE_URL": address}
    return lambda *arguments: run_command(environment, tmp_path, *arguments)


def execute(database: Database, *statements: str) -> None:
    """Run statements, each a transaction."""
    for statement in statements:
        with database.engine.begin() as connection:
            connection.execute(text(statement))


def remember(database: Database, number: int) -> None:
    """Keep memories of a user, which nobody else sees."""
    with database.unit_of_work() as work:
        user = work.tenancy.create_user(auth_provider="example.org", external_id="ada")
        work.commit()
    with database.unit_of_work() as work:
        work.enter(Scope.user(user.id))
        work.session.execute(
            text(
                "INSERT INTO memory_nodes"
                " (id, user_id, conversation_id, sequence_index, human_content, source)"
                " SELECT 'mem_' || lpad(n::text, 16, '0'), :user, 'c', n, 'said ' || n, 'native'"
                " FROM generate_series(1, :number) AS n"
            ),
            {"user": user.id, "number": number},
        )
        work.commit()


def revision_of(database: Database) -> str | None:
    """Return the newest revision of a database."""
    version = migrations.current(database)
    return version and version.revision


@dataclass(frozen=True)
class Apart:
    """A database as its owner sees it, who is no superuser, and as the administrator does."""

    owner: Database
    administrator: Database


@pytest.fixture
def apart(databases: Databases) -> Iterator[Apart]:
    """A database whose owner has LOGIN and CREATEROLE alone, as on hosted PostgreSQL."""
    url = databases.make()
    role = f"owner_{uuid4().hex[:12]}"
    administrator = Database(settings_for(url))
    owner = Database(settings_for(url.set(username=role, password="invented")))
    execute(
        administrator,
        f"CREATE ROLE {role} LOGIN CREATEROLE PASSWORD 'invented'",
        f'ALTER DATABASE "{url.database}" OWNER TO {role}',
        *(f"CREATE EXTENSION IF NOT EXISTS {each}" for each in ("vector", "pg_trgm", "pgcrypto")),
    )
    try:
        yield Apart(owner, administrator)
    finally:
        owner.close()
        execute(
            administrator,
            f"REASSIGN OWNED BY {role} TO CURRENT_USER",
            f"DROP OWNED BY {role}",
            f"DROP ROLE {role}",
        )
        administrator.close()
        databases.drop(url)


@pytest.fixture
def losses() -> list[Loss]:
    """Whatever a downgrade asked about."""
    return []


def test_rows_are_counted_and_asked_for_before_they_go(
    database: Database, schema_of: Dump, losses: list[Loss]
) -> None:
    """Tables that go with all their rows, and rows that go from tables that stay."""
    with database.unit_of_work() as work:
        factories.bind(work.session)
        for _ in range(3):
            factories.MessageFactory()
        work.commit()
    remember(database, 7)
    before = schema_of(database.url)

    def refuse(loss: Loss) -> None:
        losses.append(loss)
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        migrations.downgrade(database, "0003", agree=refuse)

    (loss,) = losses
    assert (loss.revision, loss.database) == ("0003", database.url.database)
    assert loss.host == f"{database.url.host}:{database.url.port}"
    assert loss.rows["messages"] == 3
    assert loss.rows["memory_nodes"] == 7
    assert loss.rows["users"] == 1
    assert loss.rows["jobs"] == 7  # those of memories; the table stays, and so do the others
    assert loss.rows["corpus_settings"] == 1
    assert not loss.rows.keys() & {"framework_documents", "episodic_memories", "pgcorpus_version"}
    assert "  memory_nodes  " in str(loss)
    assert schema_of(database.url) == before

    migrations.downgrade(database, "0003", agree=losses.append)

    assert len(losses) == 2
    assert revision_of(database) == "0003"


def test_row_security_hides_no_row_from_the_count(apart: Apart, losses: list[Loss]) -> None:
    """An owner who is no superuser sees no memory; the count is right, and nothing stays lifted."""
    migrations.upgrade(apart.owner)
    remember(apart.administrator, 5)
    with apart.owner.engine.connect() as connection:
        assert connection.scalar(text("SELECT count(*) FROM memory_nodes")) == 0

    def refuse(loss: Loss) -> None:
        losses.append(loss)
        raise RuntimeError("no")

    with pytest.raises(RuntimeError):
        migrations.downgrade(apart.owner, "0005", agree=refuse)

    assert losses[0].rows["memory_nodes"] == 5
    forced = "SELECT relforcerowsecurity FROM pg_class WHERE relname = 'memory_nodes'"
    with apart.owner.engine.connect() as connection:
        assert connection.scalar(text(forced)) is True
    migrations.downgrade(apart.owner, "0005")


def test_what_cannot_be_counted_is_said_to_be_unknown(
    apart: Apart, losses: list[Loss], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others read the table: it cannot be locked for counting. Nothing is made up."""
    monkeypatch.setattr(migrations, "LOCK_TIMEOUT", "100ms")
    migrations.upgrade(apart.owner)
    remember(apart.administrator, 5)
    count = migrations._count
    reader = apart.administrator.engine.connect()

    def count_while_read(connection: Connection, oid: int, table: str) -> int | None:
        reader.execute(text("SELECT count(*) FROM memory_nodes"))
        return count(connection, oid, table)

    def refuse(loss: Loss) -> None:
        losses.append(loss)
        raise RuntimeError("no")

    monkeypatch.setattr(migrations, "_count", count_while_read)
    with reader, pytest.raises(RuntimeError):
        migrations.downgrade(apart.owner, "0005", agree=refuse)

    assert losses[0].rows["memory_nodes"] is None
    assert "an unknown number of rows" in str(losses[0])


def test_empty_tables_go_unasked(empty: Database, losses: list[Loss]) -> None:
    """Nobody has to agree to nothing."""
    migrations.upgrade(empty, "0004")
    migrations.downgrade(empty, "0003", agree=losses.append)

    assert losses == []
    assert revision_of(empty) == "0003"


DEPENDANTS = {
    "CREATE TABLE orders (chunk uuid CONSTRAINT of_chunk REFERENCES framework_documents (id))": (
        "constraint of_chunk on table orders"
    ),
    "CREATE VIEW recent AS SELECT title FROM conversations": "view recent",
    "CREATE TABLE notes (updated_at timestamptz)": "",
    "CREATE TRIGGER touched BEFORE UPDATE ON notes FOR EACH ROW EXECUTE FUNCTION "
    "set_updated_at()": ("trigger touched on table notes"),
    "CREATE POLICY mine ON notes USING ((SELECT count(*) FROM users) > 0)": (
        "policy mine on table notes"
    ),
    "CREATE FUNCTION depth() RETURNS bigint LANGUAGE sql BEGIN ATOMIC SELECT count(*) FROM jobs; "
    "END": "function depth()",
    "CREATE VIEW scoped AS SELECT scope FROM import_runs": "view scoped",
}


def test_dependants_of_others_are_all_named_before_the_first_drop(
    database: Database, schema_of: Dump, pgcorpus: Command
) -> None:
    """Foreign keys, views, triggers, policies, functions, of tables, functions and columns."""
    execute(database, *DEPENDANTS)
    before = schema_of(database.url)

    with pytest.raises(DatabaseNotReady) as refused:
        migrations.downgrade(database, "base", agree=lambda _: pytest.fail("it was asked for"))
    told = pgcorpus("db", "downgrade", "base", "--yes")

    for dependant in DEPENDANTS.values():
        assert dependant in str(refused.value)
    assert "nothing was changed" in str(refused.value)
    assert "ALTER TABLE ... DROP CONSTRAINT" in str(refused.value)
    assert told.returncode == 1
    assert "constraint of_chunk on table orders" in told.stderr
    assert schema_of(database.url) == before


def test_a_vector_column_of_others_keeps_the_extension(empty: Database) -> None:
    """Their data would go with it."""
    migrations.upgrade(empty)
    execute(empty, "CREATE TABLE pictures (embedding vector)")
    with empty.engine.connect() as connection:
        ours = connection.scalar(
            text(
                "SELECT obj_description(oid, 'pg_extension') = 'made by pgcorpus'"
                " FROM pg_extension WHERE extname = 'vector'"
            )
        )

    if not ours:  # an administrator made it, and it stays
        migrations.downgrade(empty, "base")
        return
    with pytest.raises(DatabaseNotReady, match="column embedding of table pictures"):
        migrations.downgrade(empty, "base")


def test_a_downgrade_that_fails_in_the_middle_undoes_all_of_its_steps(
    database: Database, schema_of: Dump, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody gets between the rehearsal and the first drop."""
    before, rows = schema_of(database.url), models_of(database)

    def meddle(_: Loss) -> None:
        execute(
            database,
            "CREATE TABLE orders (chunk uuid REFERENCES framework_documents (id))",
        )

    with pytest.raises(Exception, match="other objects depend on it"):
        migrations.downgrade(database, "base", agree=meddle)

    execute(database, "DROP TABLE orders")
    assert schema_of(database.url) == before
    assert models_of(database) == rows
    assert migrations.drift(database) == []


def models_of(database: Database) -> int | None:
    """Count what the registry of models holds."""
    with database.engine.connect() as connection:
        return connection.scalar(text("SELECT count(*) FROM embedding_models"))


def test_a_script_says_yes_or_is_refused(database: Database, pgcorpus: Command) -> None:
    """Exit code 2, what would go, and how to agree."""
    refused = pgcorpus("db", "downgrade", "base")
    assert refused.returncode == 2
    assert "embedding_models" in refused.stderr
    assert str(database.url.database) in refused.stderr
    assert "pgcorpus db downgrade base --yes" in refused.stderr
    assert revision_of(database) is not None

    assert pgcorpus("db", "downgrade", "base", "--yes").returncode == 0
    assert revision_of(database) is None


@pytest.mark.parametrize(("answer", "code"), [("n", 1), ("y", 0)])
def test_a_person_is_asked(database: Database, answer: str, code: int) -> None:
    """At a terminal."""
    said, returned = type_answer(database, answer, str(PGCORPUS), "db", "downgrade", "base")

    assert "for good" in said
    assert returned == code
    assert (revision_of(database) is None) == (code == 0)


def test_alembic_itself_asks_the_same(database: Database, alembic: Alembic) -> None:
    """``alembic downgrade`` as typed: refused in a script, asked at a terminal, agreed with -x."""
    complaint = alembic.fail("downgrade", "base", url=database.url)
    assert "embedding_models" in complaint
    assert "alembic -x yes=true downgrade" in complaint
    ini = ROOT / "alembic.ini"
    said, returned = type_answer(
        database, "n", sys.executable, "-m", "alembic", "-c", str(ini), "downgrade", "base"
    )
    assert "Go on?" in said
    assert returned != 0
    assert revision_of(database) is not None

    alembic.run("-x", "yes=true", "downgrade", "base", url=database.url)
    assert revision_of(database) is None


def type_answer(database: Database, answer: str, *command: str) -> tuple[str, int]:
    """Run a command at a terminal and answer its question."""
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        command,
        stdin=theirs,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={
            "PATH": os.environ["PATH"],
            "DATABASE_URL": database.url.render_as_string(hide_password=False),
        },
        cwd="/",
    ) as process:
        os.write(ours, f"{answer}\n".encode())
        said, _ = process.communicate(timeout=60)
    os.close(theirs)
    os.close(ours)
    return said, process.returncode
