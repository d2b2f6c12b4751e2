"""The first of the two commands, as a newcomer types it: in a clean clone, with an empty HOME."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


@pytest.fixture
def clone(tmp_path: Path) -> Iterator[Path]:
    """A checkout of what is committed, and nothing else.

    Its virtual environment sees the packages of this one, so that ``make demo`` installs the clone
    without asking an index: tests contact nothing outside of this machine.
    """
    clone = tmp_path / "clone"
    subprocess.run(["git", "clone", "--quiet", ROOT, clone], check=True)  # noqa: S607 - of PATH
    subprocess.run([sys.executable, "-m", "venv", clone / ".venv"], check=True)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    packages = clone / ".venv" / "lib" / version / "site-packages"
    (packages / "shared.pth").write_text(sysconfig.get_path("purelib"))
    yield clone
    subprocess.run(
        [clone / ".venv/bin/pgcorpus", "server", "destroy", "--yes"], cwd=clone, check=True
    )


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not a git checkout: nothing to clone")
def test_the_demo_runs_in_a_clean_clone_and_again(clone: Path, tmp_path: Path) -> None:
    """Everything is imported, embedded, found and valid; the second time nothing is new."""
    home = tmp_path / "home"
    home.mkdir()
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(home),
        "COLUMNS": "120",
        "PIP_NO_INDEX": "1",
        "PIP_NO_BUILD_ISOLATION": "0",  # 0 is how pip spells "no isolation" in a variable
    }

    def demo() -> str:
        ran = subprocess.run(
            ["make", "demo", f"PYTHON={sys.executable}"],  # noqa: S607 - of PATH
            cwd=clone,
            env=environment,
            check=False,
            capture_output=True,
            text=True,
        )
        assert ran.returncode == 0, ran.stdout + ran.stderr
        return ran.stdout + ran.stderr

    first, second = demo(), demo()

    assert "the offline model 'hashing' stands in" in first
    assert "27 embedded, 0 failed" in first
    assert "read it in docs/" in first
    assert "all 10 checks passed" in first
    # Where it embeds (twice, and the worker), and not with each search.
    assert first.count("the offline model 'hashing' stands in") == 3
    assert all(f"1. 0.{digit}" in first for digit in (3, 4, 5))
    assert "no statistics yet" not in first
    assert "0 embedded, 0 failed" in second
    assert "all 10 checks passed" in second
