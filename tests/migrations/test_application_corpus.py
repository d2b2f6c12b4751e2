"""A corpus of an application, as docs/how-to/add-a-corpus.md adds it, beside an installed wheel."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pgcorpus.db.engine import Database
from tests.migrations.conftest import ROOT, Dump, python

MODES = ("vector", "text", "fuzzy", "hybrid")
COMMAND = "from pgcorpus.services.cli import main; main()"
Run = Callable[..., str]


@pytest.fixture
def helpdesk(environment: Path, empty: Database, tmp_path: Path) -> Run:
    """The application of the page, installed; runs its commands in its folder."""
    folder = tmp_path / "helpdesk-1.0"
    page = (ROOT / "docs" / "how-to" / "add-a-corpus.md").read_text()
    for name, code in re.findall(r"```(?:python|toml)\n# (\S+)\n(.*?)```", page, re.DOTALL):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(code)
    (folder / "helpdesk" / "__init__.py").touch()
    (folder / "alembic.ini").write_text("[alembic]\nscript_location = %(here)s/migrations\n")
    (packages,) = environment.glob("lib/python*/site-packages")
    # fmt: off
    python(
        "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-index",
        "--no-deps", "--no-build-isolation", "--target", packages, folder,
        folder=tmp_path,
    )
    # fmt: on
    url = empty.url.render_as_string(hide_password=False)

    def run(*arguments: str, may_fail: bool = False) -> str:
        done = subprocess.run(
            [environment / "bin" / "python", *arguments],
            cwd=folder,
            env=os.environ | {"DATABASE_URL": url, "OPENAI_API_KEY": ""},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0 or may_fail, done.stdout + done.stderr
        return done.stdout

    return run


def pgcorpus(run: Run, *arguments: str) -> Any:
    """Run our command, and read its JSON."""
    return json.loads(run("-c", COMMAND, *arguments, "--json"))


def test_a_corpus_of_an_application_is_served_like_ours(
    helpdesk: Run, empty: Database, schema_of: Dump
) -> None:
    """Outbox, worker, searches, models and doctor; and its downgrade leaves no trace."""
    pgcorpus(helpdesk, "db", "upgrade")
    before = schema_of(empty.url)
    helpdesk("-m", "alembic", "upgrade", "head")
    helpdesk("write.py")

    assert pgcorpus(helpdesk, "worker", "--once")["completed"] >= 2
    found = {
        mode: pgcorpus(
            helpdesk, "search", "burnt printer", "--corpus", "tickets", "--mode", mode,
            "--filter", "status=open",
        )
        for mode in MODES
    }  # fmt: skip
    assert {page["hits"][0]["title"] for page in found.values()} == {"Printer on fire"}
    assert {page["hits"][0]["metadata"]["status"] for page in found.values()} == {"open"}
    assert not any(page["degraded"] for page in found.values())

    assert pgcorpus(helpdesk, "validate", "tickets")["checks"] == [
        {"name": "embedding_count", "passed": True, "expected": 2, "found": 2, "where": None}
    ]
    covered = {each["name"]: each["coverage"] for each in pgcorpus(helpdesk, "models", "list")}
    assert covered["hashing"]["tickets"]["embedded"] == 2
    pgcorpus(helpdesk, "models", "add", "small", "--dimensions", "64", "--provider", "hashing")
    pgcorpus(helpdesk, "models", "backfill", "small", "--corpus", "tickets")
    pgcorpus(helpdesk, "models", "use", "tickets", "small")
    page = pgcorpus(helpdesk, "search", "burnt printer", "--corpus", "tickets", "--mode", "vector")
    assert page["hits"][0]["title"] == "Printer on fire"
    pgcorpus(helpdesk, "models", "rollback", "tickets")

    # Of the whole server it finds this and that.
    said = helpdesk("-c", COMMAND, "doctor", "--json", may_fail=True)
    findings = json.loads(said)["findings"]
    assert [each for each in findings if each["corpus"] == "tickets"]
    assert not [
        each for each in findings if each["corpus"] == "tickets" and each["status"] == "failed"
    ]
    assert pgcorpus(helpdesk, "db", "check")["differences"] == []

    pgcorpus(helpdesk, "models", "drop", "small", "--yes")
    helpdesk("-m", "alembic", "downgrade", "base")
    with empty.unit_of_work() as work:
        work.session.connection().exec_driver_sql("DROP TABLE helpdesk_version")
        work.commit()
    assert schema_of(empty.url) == before
