"""Files of the repository, and their names."""

from __future__ import annotations

import re
from pathlib import Path

import pgcorpus

ROOT = Path(pgcorpus.__file__).parents[1]
CODE = [
    path for top in ("db", "services", "tests", "alembic") for path in ROOT.glob(f"{top}/**/*.py")
]
VAGUE = re.compile(r"(.*_)?(common|helpers?|managers?|misc|tools|util(s|ities)?)")
DECISION = re.compile(r"(?P<number>\d{4})-[a-z0-9]+(-[a-z0-9]+)*\.md")


def test_the_revisions_are_no_package() -> None:
    """A package of that name would shadow the library."""
    assert not list((ROOT / "alembic").rglob("__init__.py"))


def test_modules_say_what_they_hold() -> None:
    """A module for everything soon holds everything."""
    names = {name for path in CODE for name in (path.stem, path.parent.name)}

    assert "embedded" in names
    assert not [name for name in names if VAGUE.fullmatch(name)]


def test_decisions_are_numbered_in_a_row() -> None:
    """No number twice, none left out."""
    pages = [path.name for path in (ROOT / "docs" / "decisions").iterdir()]
    numbers = [int(found["number"]) for page in pages if (found := DECISION.fullmatch(page))]

    assert len(numbers) == len(pages)
    assert sorted(numbers) == list(range(1, len(pages) + 1))


def test_pages_named_in_the_code_exist() -> None:
    """Comments and messages send their readers to pages that are there."""
    named = {
        page for path in CODE for page in re.findall(r"\bdocs/[\w/-]+\.md\b", path.read_text())
    }

    assert named
    assert not [page for page in named if not (ROOT / page).exists()]
