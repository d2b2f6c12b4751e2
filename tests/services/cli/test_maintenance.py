"""``pgcorpus maintenance``: as an operator and as a timer use it."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
from sqlalchemy import text

from pgcorpus.db.engine import Database
from pgcorpus.services.ops.maintenance.report import OPERATIONS
from pgcorpus.services.ops.maintenance.schedule import make_units
from tests.command import Command, run_command


@pytest.fixture
def maintenance(database: Database, tmp_path: Path) -> Command:
    """Runs the installed command at 80 columns, on a database of the test's own."""

    def run(*arguments: str, typed: str = "") -> subprocess.CompletedProcess[str]:
        address = database.url.render_as_string(hide_password=False)
        environment = {"PATH": os.defpath, "COLUMNS": "80", "DATABASE_URL": address}
        return run_command(environment, tmp_path, "maintenance", *arguments, typed=typed)

    return run


def test_a_week_is_shown_and_logged(maintenance: Command) -> None:
    """A line for each task, and sizes, within 80 columns; the log has every step."""
    assert "begin with: pgcorpus maintenance weekly" in maintenance("log").stderr
    week = maintenance("weekly")
    log = json.loads(maintenance("log", "--json", "--limit", "1000").stdout)

    assert week.returncode == 0, week.stderr
    for operation in OPERATIONS:
        assert (operation in week.stdout) == (operation != "extension_updates")
    assert max(len(line) for line in week.stdout.splitlines()) <= 80
    assert {row["operation"] for row in log} == set(OPERATIONS) - {"extension_updates"}
    assert len({row["run"] for row in log}) == 1
    shown = maintenance("log", "--task", "vacuum", "--limit", "3").stdout.splitlines()
    assert [line.split(": ")[1].split(",")[0] for line in shown[::2]] == ["completed"] * 3


def test_json_is_for_scripts(maintenance: Command) -> None:
    """One document, with every step."""
    done = json.loads(maintenance("monthly", "--json").stdout)

    assert (done["failed"], done["interrupted"]) == (0, [])
    assert done["completed"] + done["skipped"] == len(done["steps"]) > 50
    assert set(done["steps"][0]) == {
        "operation", "subject", "status", "duration_ms", "detail", "error",
    }  # fmt: skip


def test_a_step_that_fails_fails_the_run_and_no_other_step(
    maintenance: Command, database: Database
) -> None:
    """The table's statistics need a function that raises; exit code 1, and a sentence."""
    make = (
        "CREATE OR REPLACE FUNCTION broken(kind text) RETURNS text LANGUAGE plpgsql IMMUTABLE"
        " AS $$ BEGIN {} END $$"
    )
    with database.engine.begin() as connection:
        connection.execute(text(make.format("RETURN kind;")))
        connection.execute(text("CREATE INDEX broken_index ON jobs (broken(kind))"))
        connection.execute(text(make.format("RAISE EXCEPTION 'it is broken';")))
    done = maintenance("weekly")
    as_json = json.loads(maintenance("now", "statistics_update", "--json").stdout)

    assert done.returncode == 1
    assert "error: statistics_update jobs: " in done.stderr
    assert "it is broken" in done.stderr
    assert "Traceback" not in done.stderr
    (failed,) = [step for step in as_json["steps"] if step["status"] == "failed"]
    assert failed["subject"] == "jobs"
    assert as_json["completed"] == len(as_json["steps"]) - 1
    (logged,) = json.loads(
        maintenance("log", "--json", "--task", "statistics_update", "--limit", "1000").stdout
    )[-1:]
    assert logged["error"] is None or "broken" in logged["error"]


def test_misuse_is_told(maintenance: Command) -> None:
    """Exit code 2, and what would be right."""
    for arguments, said in (
        (("now", "nothing"), "bloat_report"),
        (("now", "vacuum", "--full"), "--only TABLE"),
        (("now", "reindex", "--full", "--only", "pk_jobs"), "--only TABLE"),
        (("now", "reindex", "--only", "jobs"), "no table or index"),
        (("schedule", "cron"), "pg_cron"),
        (("log", "--limit", "0"), "greater than or equal to 1"),
    ):
        done = maintenance(*arguments)
        assert done.returncode == 2, arguments
        assert said in done.stderr


def test_vacuum_full_asks(maintenance: Command, database: Database) -> None:
    """Searches of the table would wait: without an answer nothing is done."""
    node = text("SELECT pg_relation_filenode('framework_documents')")
    with database.engine.connect() as connection:
        before = connection.scalar(node)
    full = ("now", "vacuum", "--full", "--only", "framework_documents")
    refused = maintenance(*full, typed="n\n")
    with database.engine.connect() as connection:
        assert connection.scalar(node) == before
    done = maintenance(*full, "--yes")

    assert (refused.returncode, done.returncode) == (1, 0)
    with database.engine.connect() as connection:
        assert connection.scalar(node) != before


def test_units_are_printed_for_the_command_of_the_server(maintenance: Command) -> None:
    """By default that which prints them."""
    printed = maintenance("schedule", "systemd", "--command", "/opt/bin/pgcorpus")
    default = maintenance("schedule", "systemd").stdout

    for name, unit in make_units(Path("/opt/bin/pgcorpus")).items():
        assert f"# /etc/systemd/system/{name}" in printed.stdout
        assert unit in printed.stdout
    assert "systemctl enable --now pgcorpus-maintenance-weekly.timer" in printed.stderr
    assert "/bin/pgcorpus maintenance %i" in default
