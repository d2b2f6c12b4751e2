"""The site of the documentation: built without a warning, whole, and read without a network."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Final

from lxml import html

import pgcorpus
from pgcorpus.db.repositories.base import Repository
from pgcorpus.db.uow import UnitOfWork, repository
from tests.pages import DOCS, READER, REFERENCE, ROOT, list_links

PYTHON: Final = REFERENCE / "python"
PAGES: Final = sorted(DOCS.rglob("*.md"))
TAGS: Final = ("h1", "h2", "h3", "h4", "ul", "ol", "li", "table", "tr", "td", "pre", "code")
"""Elements of which a page of the site has as many as GitHub shows."""

FETCHED: Final = re.compile(r"""(?:src|href|action|data)=["']?(?:https?:)?//|url\(["']?https?:""")
"""Sign of a script, a style or a picture from elsewhere, in a tag that loads one."""


def build_site(folder: Path) -> None:
    """Build the site into a folder as ``make docs`` does; fail at the first warning."""
    done = subprocess.run(
        [Path(sys.executable).with_name("mkdocs"), "build", "--strict", "--site-dir", folder],
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def find_built(page: Path, site: Path) -> Path:
    """Return the file of the site that shows a page."""
    return site / page.relative_to(DOCS).with_suffix(".html")


def count_tags(tree: html.HtmlElement) -> Counter[str]:
    """Return how many elements of each kind a text has."""
    return Counter(each.tag for each in tree.iter(*TAGS))


def find_differences(page: Path, built: html.HtmlElement) -> list[str]:
    """Return the kinds of elements that the site and GitHub show differently often."""
    (article,) = built.find_class("md-content__inner")
    here, there = (
        count_tags(article),
        count_tags(html.fragment_fromstring(READER.render(page.read_text()), create_parent="div")),
    )
    return [
        f"{page.relative_to(ROOT)}: {here[tag]} <{tag}>, and {there[tag]} on GitHub; indent blocks "
        "in lists by four spaces, and set an empty line before a list and behind such a block"
        for tag in TAGS
        if here[tag] != there[tag]
    ]


def list_fetched(tree: html.HtmlElement) -> list[str]:
    """Return what a browser would fetch from elsewhere to show a page."""
    loading = tree.xpath("//script | //link | //img | //iframe | //style | //source | //object")
    tags = (html.tostring(each, encoding="unicode", with_tail=False) for each in loading)
    return [tag for tag in tags if FETCHED.search(tag)]


def test_the_site_is_whole_and_needs_no_network(tmp_path: Path) -> None:
    """Every page is in it and in its navigation, as GitHub shows it; built once for all of that."""
    build_site(tmp_path)

    trees = {page: html.parse(find_built(page, tmp_path)).getroot() for page in PAGES}
    (navigation,) = trees[DOCS / "index.md"].find_class("md-nav--primary")
    linked = {str(each.get("href")) for each in navigation.iter("a")}
    paths = {str(page.relative_to(DOCS).with_suffix(".html")) for page in PAGES}
    assert paths - linked == set()

    differences = [
        difference
        for page, tree in trees.items()
        if PYTHON not in page.parents
        for difference in find_differences(page, tree)
    ]
    assert differences == []

    assert [tag for tree in trees.values() for tag in list_fetched(tree)] == []

    index = (tmp_path / "search" / "search_index.js").read_text()
    assert [path for path in paths if f'"{path}' not in index] == []

    shown = {each for tree in trees.values() for each in tree.xpath("//h2/@id | //h3/@id")}
    names = {f"pgcorpus.{name}" for name in pgcorpus.__all__ if name != "errors"}
    methods = {"pgcorpus.SearchService.search", "pgcorpus.UnitOfWork.commit"}
    assert (names | methods) - shown == set()


def test_every_repository_is_on_a_page() -> None:
    """A program reaches them through a unit of work, and so they are public."""
    pages = "".join(page.read_text() for page in PYTHON.glob("*.md"))
    kinds = {value._kind for value in vars(UnitOfWork).values() if isinstance(value, repository)}

    assert all(issubclass(kind, Repository) for kind in kinds)
    assert [
        kind.__name__ for kind in kinds if f"::: {kind.__module__}.{kind.__name__}\n" not in pages
    ] == []


def test_every_page_is_found_from_the_first_one() -> None:
    """Also by those who read the pages where there is no navigation."""
    first = {DOCS / link.partition("#")[0] for link in list_links(DOCS / "index.md")}
    python = {PYTHON / link.partition("#")[0] for link in list_links(PYTHON / "index.md")}

    assert [page for page in PAGES if page not in {DOCS / "index.md", *first, *python}] == []
