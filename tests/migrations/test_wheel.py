"""A service that installed the wheel can upgrade its database without a checkout."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from zipfile import ZipFile

import pytest

from db.engine import Database
from tests.migrations.conftest import ROOT, Dump
from tests.migrations.test_deployments import HEAD

UPGRADE_AND_BACK = """
from pathlib import Path
import db
from db import migrations
from db.engine import Database

database = Database.from_env()
migrations.upgrade(database)
assert migrations.drift(database) == []
print(migrations.current(database).revision)
migrations.downgrade(database, "base")
print(Path(db.__file__).parents[1])
print(migrations._config().get_main_option("script_location"))
"""


def python(*arguments: str | Path, folder: Path, **variables: str) -> str:
    """Run Python in another folder; what it printed."""
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=os.environ | variables,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The wheel, as a release makes it."""
    folder = tmp_path_factory.mktemp("wheel")
    python("-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT, folder=folder)
    (built,) = folder.glob("*.whl")
    return built


def test_the_wheel_holds_what_runs_and_nothing_else(wheel: Path) -> None:
    """Code, revisions and samples; no tests, caches or settings."""
    with ZipFile(wheel) as archive:
        names = set(archive.namelist())
    packages = {name for name in names if ".dist-info/" not in name}

    assert {name.partition("/")[0] for name in packages} == {"db", "services"}
    assert {Path(name).suffix for name in packages} <= {".py", ".json", ".mako", ".typed"}
    assert any(name.endswith("/licenses/LICENSE") for name in names)
    for source in (ROOT / "alembic" / "versions").glob("*.py"):
        assert f"db/_alembic/versions/{source.name}" in names
    for source in (ROOT / "services" / "samples").rglob("*.json"):
        assert str(source.relative_to(ROOT)) in names


def test_an_installed_wheel_upgrades_and_downgrades(
    wheel: Path, empty: Database, schema_of: Dump, tmp_path: Path
) -> None:
    """With the revisions inside it, from a folder that has nothing else."""
    nothing = schema_of(empty.url)
    installed = tmp_path / "installed"
    # fmt: off
    python(
        "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-index",
        "--no-deps", "--target", installed, wheel,
        folder=tmp_path,
    )
    # fmt: on
    said = python(
        "-c",
        UPGRADE_AND_BACK,
        folder=tmp_path,
        PYTHONPATH=str(installed),
        DATABASE_URL=empty.url.render_as_string(hide_password=False),
    ).split()

    assert said[1:] == [str(installed), str(installed / "db" / "_alembic")]
    assert said[0] == HEAD
    assert schema_of(empty.url) == nothing
