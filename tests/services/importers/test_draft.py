"""The rules of all importers, and the page that describes them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pgcorpus.services.importers.draft import Rule

ROOT = Path(__file__).parents[3]
SECTIONS = {
    "knowledge": "Rules that change a value",
    "chat": "Rules for conversations",
    "memory": "Rules for memories and episodes",
    "documentation": "Rules for old SQLite files",
}


def list_documented(corpus: str) -> set[str]:
    """Return the rules in the tables of a corpus's part of the page."""
    page = (ROOT / "docs" / "reference" / "import-rules.md").read_text()
    _, _, part = page.partition(f"\n## {SECTIONS[corpus]}\n")
    for other in SECTIONS.values():
        part = part.partition(f"\n## {other}\n")[0]
    cells = re.findall(r"^\| `([a-z_]+)` \||\| `([a-z_]+)` \|$", part, re.MULTILINE)
    return {name for found in cells for name in found if name}


@pytest.mark.parametrize("corpus", SECTIONS)
def test_every_rule_of_a_corpus_is_documented(corpus: str) -> None:
    """Under the corpus that has it."""
    sources = [path.read_text() for path in (ROOT / "services" / corpus).rglob("*.py")]
    used = {Rule[name].value for text in sources for name in re.findall(r"\bRule\.([A-Z_]+)", text)}

    assert used
    assert used - list_documented(corpus) == set()


def test_every_documented_rule_exists() -> None:
    """And each is documented somewhere."""
    assert set.union(*map(list_documented, SECTIONS)) == set(Rule)
