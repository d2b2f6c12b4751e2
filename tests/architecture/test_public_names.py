"""The one name that applications import, and what is in it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import pgcorpus

ROOT = Path(pgcorpus.__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def run_python(code: str, folder: Path, path: Path) -> str:
    """Run *code* in a folder, with *path* before what is installed; return what it printed."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_public_names_are_these() -> None:
    """A name that goes is missed, and one that comes is meant."""
    assert pgcorpus.__all__ == [
        "AsyncDocumentService",
        "AsyncMemoryService",
        "AsyncSearchService",
        "AsyncUnitOfWork",
        "ChatApi",
        "ChatExporter",
        "ChatImporter",
        "Corpus",
        "Database",
        "DocumentService",
        "DocumentationImporter",
        "EmbeddingService",
        "Filter",
        "KnowledgeImporter",
        "MemoryImporter",
        "MemoryService",
        "Metrics",
        "Order",
        "Scope",
        "SearchService",
        "Settings",
        "UnitOfWork",
        "ValidationService",
        "Worker",
        "errors",
        "migrations",
        "register",
        "samples",
    ]
    assert dir(pgcorpus) == sorted(pgcorpus.__all__)


@pytest.mark.parametrize("name", pgcorpus.__all__)
def test_a_public_name_is_that_of_its_module(name: str) -> None:
    """Types are read from the imports for type checkers, values from a table: they agree."""
    source = Path(pgcorpus.__file__).read_text()
    (module,) = re.findall(rf"^    from (pgcorpus\S*) import .*\b{name}\b", source, re.MULTILINE)

    assert getattr(pgcorpus, name) is getattr(import_module(module), name)


def test_an_unknown_name_is_an_error_that_names_it() -> None:
    """As of any module."""
    with pytest.raises(AttributeError, match="'pgcorpus' has no attribute 'Databse'"):
        _ = pgcorpus.Databse  # type: ignore[attr-defined]


def test_what_the_pages_import_from_the_package_is_public() -> None:
    """Whoever copies an example depends on promised names alone."""
    used = {
        name.strip()
        for page in PAGES
        for names in re.findall(r"from pgcorpus import \(?([\w,\s]+?)(?:\)|\n)", page.read_text())
        for name in names.split(",")
        if name.strip()
    }

    assert "Database" in used
    assert used <= set(pgcorpus.__all__)


def test_the_short_name_in_a_checkout_gives_the_same_class() -> None:
    """Whoever imports ``db`` there has no second database."""
    code = "from db import Database; import pgcorpus; print(Database is pgcorpus.Database)"

    assert run_python(code, ROOT, ROOT) == "True"


def test_a_checkout_without_links_works(tmp_path: Path) -> None:
    """On Windows, and unpacked from an archive, links are missing or files."""
    (tmp_path / "pgcorpus").mkdir()
    shutil.copy(ROOT / "pgcorpus" / "__init__.py", tmp_path / "pgcorpus")
    (tmp_path / "pgcorpus" / "services").write_text("../services")  # as git checks a link out
    for folder in ("db", "services"):
        shutil.copytree(ROOT / folder, tmp_path / folder)

    code = "import pgcorpus; from pgcorpus.services import samples; print(samples.__file__)"

    assert run_python(code, tmp_path, tmp_path) == str(tmp_path / "services/samples/__init__.py")
