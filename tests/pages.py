"""Pages of the reference that tests write, and keep current.

After a change that is meant, ``make pages`` writes them all anew.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Final

from markdown_it import MarkdownIt

ROOT: Final = Path(__file__).parents[1]
DOCS: Final = ROOT / "docs"
REFERENCE: Final = DOCS / "reference"
PAGES: Final = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]
"""Pages that people read."""

READER: Final = MarkdownIt("commonmark").enable("table")
"""The reader of Markdown as GitHub has it."""

MARK: Final = "<!-- Written by {writer}; anew with: make pages -->"
STALE: Final = "docs/reference/{name} is not current; write it anew with: make pages"


def check_page(name: str, writer: str, text: str) -> None:
    """Fail where a page of the reference is not *text*; write it with ``PAGES=write``.

    Args:
        name: Of its file.
        writer: ``__file__`` of the test.
        text: All of it, with the title in the first line.
    """
    title, _, rest = text.strip().partition("\n")
    mark = MARK.format(writer=Path(writer).relative_to(ROOT))
    page, whole = REFERENCE / name, f"{title}\n\n{mark}\n{rest}\n"
    if os.environ.get("PAGES") == "write":
        page.write_text(whole)
    assert page.read_text() == whole, STALE.format(name=name)


def list_links(page: Path) -> list[str]:
    """Return the links and pictures of a page that lead to files and headings of ours."""
    inline = [each for token in READER.parse(page.read_text()) for each in token.children or ()]
    targets = (str(each.attrGet("href") or each.attrGet("src") or "") for each in inline)
    return [target for target in targets if target and not re.match(r"[a-z]+:", target)]


@cache
def list_anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub and the site make them."""
    tokens = READER.parse(page.read_text())
    headings = (
        "".join(each.content for each in heading.children or ())
        for opened, heading in pairwise(tokens)
        if opened.type == "heading_open"
    )
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def write_code(text: str) -> str:
    """Write code on one line, also in a cell of a table."""
    line = " ".join(text.split())
    if not re.search(r"[`|]", line):
        return f"`{line}`"
    escaped = line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    for sign in "`|*_[]\\":
        escaped = escaped.replace(sign, f"&#{ord(sign)};")
    return f"<code>{escaped}</code>"


def write_words(text: str | None) -> str:
    """Write words on one line, so that nothing in them is a mark of Markdown."""
    line = " ".join((text or "").split())
    return re.sub(r"([\\`*|\[\]])", r"\\\1", line).replace("<", "&lt;")


def write_table(heads: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Write a table whose cells are Markdown already."""
    lines = [[*heads], *([*row] for row in rows)]
    lines.insert(1, ["---"] * len(lines[0]))
    return "\n".join(
        f"| {' | '.join(cells)} |" if cells[0] != "---" else f"|{'|'.join(cells)}|"
        for cells in lines
    )
