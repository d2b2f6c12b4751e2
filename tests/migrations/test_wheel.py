"""A service that installed the wheel can upgrade its database without a checkout."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from zipfile import ZipFile

from pgcorpus.db.engine import Database
from tests.migrations.conftest import ROOT, Dump, python
from tests.migrations.test_deployments import HEAD

UPGRADE_AND_BACK = """
from pathlib import Path
import pgcorpus
from pgcorpus import Database, migrations

database = Database.from_env()
migrations.upgrade(database)
assert migrations.drift(database) == []
print(migrations.current(database).revision)
migrations.downgrade(database, "base")
print(Path(pgcorpus.__file__).parents[1])
print(migrations._config().get_main_option("script_location"))
"""

NEIGHBOUR = """
import db
import services
from pgcorpus import Database, MemoryService, Scope, SearchService, migrations

search: SearchService = SearchService(Database.from_env())
scope: Scope = Scope.user(db.NOBODY)
remember = MemoryService(Database.from_env()).remember
state = migrations.current(Database.from_env())
print(db.__file__, services.__file__, SearchService.__module__)
reveal_type(search.search("prices", corpus="knowledge").hits[0].score)
"""


def test_the_wheel_holds_what_runs_and_nothing_else(wheel: Path) -> None:
    """Code, revisions and samples; no tests, caches or settings."""
    with ZipFile(wheel) as archive:
        names = set(archive.namelist())
    packages = {name for name in names if ".dist-info/" not in name}

    assert {name.partition("/")[0] for name in packages} == {"pgcorpus"}
    pages = {name for name in packages if "/services/samples/documentation/" in name}
    assert {Path(name).suffix for name in packages - pages} <= {".py", ".json", ".mako", ".typed"}
    assert {Path(name).suffix for name in pages} <= {".json", ".md", ".png"}
    assert "pgcorpus/services/samples/documentation/index.md" in pages
    assert "pgcorpus/py.typed" in names
    assert any(name.endswith("/licenses/LICENSE") for name in names)
    for source in (ROOT / "alembic" / "versions").glob("*.py"):
        assert f"pgcorpus/db/_alembic/versions/{source.name}" in names
    for source in (ROOT / "services" / "samples").rglob("*.json"):
        assert f"pgcorpus/{source.relative_to(ROOT)}" in names


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

    assert said[1:] == [str(installed), str(installed / "pgcorpus" / "db" / "_alembic")]
    assert said[0] == HEAD
    assert schema_of(empty.url) == nothing


def test_an_application_may_have_packages_called_db_and_services(
    environment: Path, empty: Database, tmp_path: Path
) -> None:
    """Its own are found, ours are typed, and mypy is as strict with it as with us."""
    application = tmp_path / "application"
    for package in ("db", "services"):
        (application / package).mkdir(parents=True)
        (application / package / "__init__.py").write_text(
            "from uuid import UUID\nNOBODY = UUID(int=0)\n"
        )
    (application / "main.py").write_text(NEIGHBOUR)

    types = python(
        "-m",
        "mypy",
        "--strict",
        "--python-executable",
        environment / "bin" / "python",
        "main.py",
        folder=application,
    )
    code = NEIGHBOUR.replace("reveal_type", "str").partition("str(search")[0]
    done = subprocess.run(
        [environment / "bin" / "python", "-c", code],
        cwd=application,
        env=os.environ | {"DATABASE_URL": empty.url.render_as_string(hide_password=False)},
        capture_output=True,
        text=True,
        check=False,
    )

    assert re.search(r'Revealed type is "(builtins\.)?float"', types)
    assert "Success" in types
    assert done.stdout.split() == [
        str(application / "db" / "__init__.py"),
        str(application / "services" / "__init__.py"),
        "pgcorpus.services.search.service",
    ], done.stderr
