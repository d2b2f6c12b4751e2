"""The direction of imports, and a check of it that can fail."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import pgcorpus

ROOT = Path(pgcorpus.__file__).parents[1]


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the packages, to be spoilt."""
    for package in ("pgcorpus", "db", "services"):
        shutil.copytree(
            ROOT / package,
            tmp_path / package,
            symlinks=True,
            ignore=shutil.ignore_patterns("__pycache__"),
        )
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def lint_imports(folder: Path) -> subprocess.CompletedProcess[str]:
    """Run what ``make layers`` runs."""
    return subprocess.run(
        [sys.executable, "-c", "from importlinter.cli import lint_imports_command as c; c()"],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_imports_point_downwards() -> None:
    """Services use units of work, these use repositories, and so on down to the base."""
    done = lint_imports(ROOT)

    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("module", "forbidden"),
    [
        ("db/base.py", "pgcorpus.services.search.service"),
        ("db/search/legs.py", "pgcorpus.db.repositories.base"),
        ("db/models/embeddings.py", "pgcorpus.db.uow"),
    ],
)
def test_an_import_upwards_is_reported(copy: Path, module: str, forbidden: str) -> None:
    """By name of the two modules."""
    with (copy / module).open("a") as file:
        file.write(f"\nimport {forbidden}\n")

    done = lint_imports(copy)

    assert done.returncode == 1
    named = module.removesuffix(".py").replace("/", ".")
    assert f"pgcorpus.{named} -> {forbidden}" in " ".join(done.stdout.split())
