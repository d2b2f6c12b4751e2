"""The corpora of applications, beside ours."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from pgcorpus.db.errors import InvalidCorpus
from pgcorpus.db.search.corpora import KNOWLEDGE, get_corpus, list_corpora, register


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """A folder in which an application is installed that names a corpus."""
    (tmp_path / "helpdesk-1.0.dist-info").mkdir()
    (tmp_path / "helpdesk-1.0.dist-info" / "METADATA").write_text("Name: helpdesk\nVersion: 1.0\n")
    return tmp_path


def run_python(installed: Path, names: str, module: str, code: str) -> str:
    """Run *code* beside the application, whose module and entry points are given."""
    points = f"[pgcorpus.corpora]\n{names}\n"
    (installed / "helpdesk-1.0.dist-info" / "entry_points.txt").write_text(points)
    (installed / "helpdesk.py").write_text(module)
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(installed)!r})\n{code}"],
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.strip() or done.stderr.strip().splitlines()[-1]


def test_a_name_is_of_one_corpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """Registered again, the same corpus is no other."""
    monkeypatch.setattr("pgcorpus.db.search.corpora._registered", {"knowledge": KNOWLEDGE})
    tickets = replace(KNOWLEDGE, name="tickets")

    register(tickets)
    register(tickets)

    assert get_corpus("tickets") is tickets
    assert list_corpora() == (KNOWLEDGE, tickets)
    with pytest.raises(InvalidCorpus, match="another corpus is called 'tickets'"):
        register(replace(KNOWLEDGE, name="tickets"))


def test_the_filter_on_free_metadata_keeps_its_name() -> None:
    """A filter of the same name would hide it without a word."""
    filters = {**KNOWLEDGE.filters, "metadata": KNOWLEDGE.filters["section"]}
    with pytest.raises(InvalidCorpus, match="'tickets' has a metadata_column and a filter"):
        register(replace(KNOWLEDGE, name="tickets", filters=filters))


def test_our_corpora_are_there_whatever_an_application_names(installed: Path) -> None:
    """A broken application hides none of them."""
    code = "from pgcorpus.db.search.corpora import get_corpus; print(get_corpus('chat').name)"

    assert run_python(installed, "tickets = helpdesk:TICKETS", "1/0", code) == "chat"


def test_the_corpora_of_installed_applications_are_found(installed: Path) -> None:
    """The application's module imports from ours while its corpus is loaded."""
    module = (
        "from dataclasses import replace\n"
        "from pgcorpus.db.search.corpora import KNOWLEDGE\n"
        "TICKETS = replace(KNOWLEDGE, name='tickets')\n"
    )
    code = "from pgcorpus.db.search.corpora import *; print([each.name for each in list_corpora()])"

    found = run_python(installed, "tickets = helpdesk:TICKETS", module, code)

    assert found == "['knowledge', 'documentation', 'chat', 'memory', 'episodes', 'tickets']"


@pytest.mark.parametrize(
    ("names", "module", "reason"),
    [
        ("tickets = helpdesk:TICKETS", "1/0", "ZeroDivisionError: division by zero"),
        ("tickets = helpdesk:MISSING", "", "no attribute 'MISSING'"),
        ("tickets = helpdesk:TICKETS", "TICKETS = 1", "is no Corpus"),
    ],
)
def test_a_corpus_that_cannot_be_loaded_is_named(
    installed: Path, names: str, module: str, reason: str
) -> None:
    """With the place, and why: a broken application must not hide behind a missing corpus."""
    code = "from pgcorpus.db.search.corpora import list_corpora; list_corpora()"

    said = run_python(installed, names, module, code)

    assert "InvalidCorpus" in said
    assert "'tickets'" in said
    assert reason in said
