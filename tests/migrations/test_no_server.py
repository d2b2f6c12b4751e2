"""A folder without a server stays one: only what says so makes a server."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pgcorpus.db import migrations
from pgcorpus.db.embedded import EmbeddedServer
from pgcorpus.db.engine import Database
from pgcorpus.db.errors import SettingsError
from pgcorpus.db.settings import Settings
from tests.command import run_command
from tests.migrations.conftest import Alembic
from tests.migrations.test_deployments import HEAD

SOMEBODY = "11111111-1111-1111-1111-111111111111"
COMMANDS = [
    "search x",
    "embed",
    "chat show native:x",
    f"memory recall x --user-id {SOMEBODY}",
    "tenants list",
    "jobs stats",
    "worker --once",
    "import knowledge .",
    "verify-isolation",
    "doctor",
    "metrics serve",
    "audit show",
    "db current",
    "db check",
    "db downgrade base",
]


@pytest.mark.parametrize("command", COMMANDS)
def test_no_other_command_makes_a_server(tmp_path: Path, command: str) -> None:
    """It says that there is none, and three ways to one."""
    done = run_command({"PATH": os.environ["PATH"]}, tmp_path, *command.split())

    assert done.returncode == 2
    assert "there is no database" in done.stderr
    for way in ("DATABASE_URL", "pgcorpus server start", "pgcorpus demo"):
        assert way in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_library_makes_none_unasked(tmp_path: Path) -> None:
    """Neither by an address that is asked for nor by a transaction."""
    home = tmp_path / "home"
    database = Database(Settings(home=home))

    with pytest.raises(SettingsError, match="there is no database"):
        _ = database.url
    with pytest.raises(SettingsError, match=f"was made in {home}"), database.unit_of_work():
        pass
    with pytest.raises(SettingsError):
        migrations.current(database)
    assert not home.exists()


def test_alembic_makes_one_for_an_upgrade_alone(home: Path, alembic: Alembic) -> None:
    """And says so."""
    assert "there is no database" in alembic.fail("current", PGCORPUS_HOME=str(home))
    assert "there is no database" in alembic.fail("downgrade", "base", PGCORPUS_HOME=str(home))
    assert not EmbeddedServer(home).exists

    upgrade = alembic.start("upgrade", "head", PGCORPUS_HOME=str(home))
    code, _, told = alembic.end(upgrade)

    assert code == 0
    assert f"an embedded PostgreSQL was made in {home}" in told
    assert f"{HEAD} (head)" in alembic.run("current", PGCORPUS_HOME=str(home))


def test_an_upgrade_makes_one_and_any_command_starts_it_again(home: Path, tmp_path: Path) -> None:
    """Both are told; what names another database makes none."""
    environment = {"PATH": os.environ["PATH"], "PGCORPUS_HOME": str(home)}

    made = run_command(environment, tmp_path, "db", "upgrade")
    again = run_command(environment, tmp_path, "db", "upgrade")
    EmbeddedServer(home).stop()
    started = run_command(environment, tmp_path, "jobs", "stats")

    assert (made.returncode, again.returncode, started.returncode) == (0, 0, 0)
    assert f"making an embedded server in {home}" in made.stderr
    assert "making" not in again.stderr
    assert f"starting the embedded server in {home}" in started.stderr
