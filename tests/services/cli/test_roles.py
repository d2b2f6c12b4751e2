"""pgcorpus roles, as a person and as a script use it: real processes, real logins."""

from __future__ import annotations

import json
import os
import subprocess
import termios
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import pytest
from sqlalchemy import Engine, text

from pgcorpus.db.engine import Database
from pgcorpus.db.errors import DatabaseUnavailable
from tests.command import PGCORPUS, Command, run_command
from tests.conftest import version_of
from tests.logins import logged_in

TYPED = b"typed twice"


@pytest.fixture
def environment(database: Database) -> dict[str, str]:
    """The environment of the command."""
    address = database.url.render_as_string(hide_password=False)
    return os.environ | {"DATABASE_URL": address, "COLUMNS": "160"}


@pytest.fixture
def pgcorpus(environment: dict[str, str], tmp_path: Path) -> Command:
    """Runs the installed command on a database of the test's own; there is no terminal."""

    def run(*arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
        return run_command(environment | more, tmp_path, "roles", *arguments, timeout=60)

    return run


@pytest.fixture
def name(database: Database) -> Iterator[str]:
    """A name that no role has, for one that is gone afterwards."""
    name = f"shop_{uuid4().hex[:12]}"
    yield name
    with database.engine.begin() as connection:
        connection.execute(text(f"DROP ROLE IF EXISTS {name}"))


def whoami(database: Database, name: str, password: str) -> str | None:
    """Return the name of the login that one is after logging in."""
    url = database.url.set(username=name, password=password)
    own = Database(replace(database.settings, database_url=url))
    try:
        with own.engine.connect() as connection:
            return connection.scalar(text("SELECT current_user"))
    finally:
        own.close()


def test_a_generated_password_is_printed_once_and_opens_the_door(
    pgcorpus: Command, database: Database, name: str
) -> None:
    """Stdout has nothing but the password, so that it goes where it should."""
    made = pgcorpus("create-user", name, "--role", "rag_read_write", "--generate")

    assert made.returncode == 0, made.stderr
    (password,) = made.stdout.splitlines()
    assert len(password) == 32
    assert password not in made.stderr
    assert whoami(database, name, password) == name


def test_a_password_comes_from_the_environment(
    pgcorpus: Command, database: Database, name: str
) -> None:
    """It is not shown again, not even to scripts."""
    made = pgcorpus(
        "create-user", name, "--role", "rag_admin", "--json", PGCORPUS_NEW_PASSWORD="invented one"
    )

    assert json.loads(made.stdout) == {"name": name, "role": "rag_admin", "password": None}
    assert "invented" not in made.stdout + made.stderr
    assert whoami(database, name, "invented one") == name


def test_a_person_is_asked_twice(
    environment: dict[str, str], database: Database, name: str, tmp_path: Path
) -> None:
    """The password is not shown as it is typed; two that differ are asked for again."""
    keyboard, terminal = os.openpty()
    process = subprocess.Popen(
        [PGCORPUS, "roles", "create-user", name, "--role", "rag_read_only"],
        env=environment,
        stdin=terminal,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        cwd=tmp_path,
    )
    os.close(terminal)
    with process:
        assert process.stderr is not None
        assert process.stdout is not None
        said = b""
        first, second = b"Password of the new login", b"Repeat for confirmation"
        for prompt, typed in ((first, b"one"), (second, b"other"), (first, TYPED), (second, TYPED)):
            asked = said.count(prompt)
            while said.count(prompt) == asked:
                heard = process.stderr.read1()
                assert heard, said
                said += heard
            while termios.tcgetattr(keyboard)[3] & termios.ECHO:
                time.sleep(0.01)  # what is typed before that is thrown away
            os.write(keyboard, typed + b"\n")
        said += process.stderr.read()
        shown = process.stdout.read()
    os.close(keyboard)

    assert process.returncode == 0, said
    assert TYPED not in said + shown
    assert b"do not match" in said
    assert whoami(database, name, TYPED.decode()) == name


@pytest.mark.parametrize(
    ("arguments", "variables", "code", "complaint"),
    [
        (["--role", "rag_read_only"], {}, 2, "there is no terminal to ask for a password"),
        (["--role", "postgres", "--generate"], {}, 2, "is not one of 'rag_read_only'"),
        (["--generate"], {}, 2, "missing option '--role'"),
        (
            ["--role", "rag_admin", "--generate"],
            {"PGCORPUS_NEW_PASSWORD": "x"},
            2,
            "PGCORPUS_NEW_PASSWORD is set, too",
        ),
        (["--role", "rag_admin"], {"PGCORPUS_NEW_PASSWORD": ""}, 1, "a password must not be empty"),
    ],
)
def test_a_command_that_cannot_be_done_says_why(  # noqa: PLR0917 - pytest passes by name
    pgcorpus: Command,
    name: str,
    arguments: list[str],
    variables: dict[str, str],
    code: int,
    complaint: str,
) -> None:
    """Used wrongly is 2, refused is 1; never a stack trace."""
    done = pgcorpus("create-user", name, *arguments, **variables)

    assert (done.returncode, done.stdout) == (code, "")
    assert complaint in " ".join(done.stderr.replace("│", " ").split())
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("reserved", ["rag_admin", "pg_reader", "public", "x" * 64, ""])
def test_reserved_and_impossible_names_are_refused(pgcorpus: Command, reserved: str) -> None:
    """Before the server is asked."""
    done = pgcorpus("create-user", reserved, "--role", "rag_read_only", "--generate")

    assert (done.returncode, done.stdout) == (1, "")
    assert "error:" in done.stderr


def test_a_login_is_made_once_and_dropped_once(pgcorpus: Command, name: str) -> None:
    """The second of each fails with a sentence."""
    create = ("create-user", name, "--role", "rag_read_only", "--generate", "--json")
    assert pgcorpus(*create).returncode == 0
    again = pgcorpus(*create)
    assert (again.returncode, again.stdout) == (1, "")
    assert f"the server has a role '{name}' already" in again.stderr

    unasked = pgcorpus("drop-user", name)
    assert (unasked.returncode, "give --yes" in unasked.stderr) == (2, True)
    dropped = pgcorpus("drop-user", name, "--yes", "--json")
    assert json.loads(dropped.stdout) == {"name": name, "dropped": True}
    gone = pgcorpus("drop-user", name, "--yes")
    assert (gone.returncode, f"there is no login '{name}'" in gone.stderr) == (1, True)


def test_a_login_without_the_right_is_told_who_gives_it(
    pgcorpus: Command, database: Database, name: str
) -> None:
    """Exit code 1, and what a superuser says."""
    with logged_in(database, "rag_admin") as own:
        done = pgcorpus(
            "create-user",
            name,
            "--role",
            "rag_admin",
            "--generate",
            DATABASE_URL=own.url.render_as_string(hide_password=False),
        )

    assert (done.returncode, done.stdout) == (1, "")
    assert "WITH ADMIN OPTION" in done.stderr
    with pytest.raises(DatabaseUnavailable):
        whoami(database, name, "x")


def test_show_is_a_matrix_for_people_and_for_scripts(
    pgcorpus: Command, database: Database, superuser: Engine
) -> None:
    """Every login may look; what is more than a group is a warning, and no failure."""
    with logged_in(database, "rag_read_only") as own:
        name = own.url.username or ""
        with superuser.begin() as connection:
            connection.execute(text(f"ALTER ROLE {name} BYPASSRLS"))
            connection.execute(text("GRANT INSERT ON jobs TO PUBLIC"))
        address = own.url.render_as_string(hide_password=False)
        scripted = pgcorpus("show", "--json", DATABASE_URL=address)
        shown = pgcorpus("show", DATABASE_URL=address)

    found = json.loads(scripted.stdout)
    assert found.keys() == {"rights", "members", "warnings"}
    rights = {each["name"]: each for each in found["rights"]}
    maintain = ["MAINTAIN"] if version_of(database.engine.dialect) >= 17 else []
    assert rights["messages"] == {
        "kind": "table",
        "name": "messages",
        "row_security": False,
        "of": {
            "rag_read_only": ["SELECT"],
            "rag_read_write": ["SELECT", "INSERT", "UPDATE", "DELETE"],
            "rag_admin": ["SELECT", "INSERT", "UPDATE", "DELETE", "TRUNCATE", *maintain],
            "public": [],
        },
    }
    (member,) = [each for each in found["members"] if each["name"] == name]
    assert member == {
        "name": name,
        "can_log_in": True,
        "superuser": False,
        "bypasses_security": True,
        "owns": [],
        "groups": ["rag_read_only"],
    }
    (owner,) = [each for each in found["members"] if each["name"] == database.url.username]
    assert "messages" in owner["owns"]
    warnings = [
        f"{owner['name']} owns {len(owner['owns'])} of the tables",
        f"{name} passes over row security (BYPASSRLS)",
        "every role may INSERT table jobs",
    ]
    assert found["warnings"] == warnings
    assert (scripted.returncode, shown.returncode) == (0, 0)
    assert all(f"warning: {each}" in shown.stderr for each in warnings)
    row = next(line for line in shown.stdout.splitlines() if " messages " in line)
    cells = [cell.strip() for cell in row.strip("│").split("│")]
    assert cells == ["messages", "S", "SIUD", "SIUDTM" if maintain else "SIUDT", ""]
