"""Snippets made of what PostgreSQL marked: cut to a length, and with the caller's markers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from pgcorpus.db.search.page import Group, Hit, SearchPage
from pgcorpus.db.search.snippets import START, STOP

MAX_CHARACTERS: Final = 300
"""Characters of a snippet, ellipses and markers aside."""

ELLIPSIS: Final = "…"

COMPARED: Final = 20
"""Characters of either end of a snippet by which it is found in the text."""

LEAST_LEFT_OUT: Final = 10
"""Characters that an ellipsis stands for at least: fewer are shown."""


def add_snippets(
    page: SearchPage, marked: Mapping[Any, str], markers: tuple[str, str]
) -> SearchPage:
    """Return the page with a snippet for each hit.

    Args:
        page: Its hits have contents.
        marked: Hit's id → what PostgreSQL marked; the others begin as their contents do.
        markers: What is put before and after a word of the question.
    """

    def add(hit: Hit) -> Hit:
        snippet = shorten(_excerpt(hit.content, marked.get(hit.id, "")), MAX_CHARACTERS)
        start, stop = markers
        return replace(hit, snippet=snippet.translate({ord(START): start, ord(STOP): stop}))

    hits = {id(hit): add(hit) for hit in page.hits}
    groups: tuple[Group, ...] | None = None
    if page.groups is not None:
        groups = tuple(
            replace(group, hits=tuple(hits[id(hit)] for hit in group.hits)) for group in page.groups
        )
    return replace(page, hits=tuple(hits.values()), groups=groups)


def shorten(snippet: str, characters: int) -> str:
    """Cut a snippet with marks to *characters*, around the first mark."""
    if len(snippet) - snippet.count(START) - snippet.count(STOP) <= characters:
        return snippet
    first = max(snippet.find(START), 0)
    begin = max(0, min(first - characters // 3, len(snippet) - characters))
    begin = max(begin, snippet.find(" ", begin, first) + 1) if begin else 0
    before = f"{ELLIPSIS} " if begin else ""
    part = snippet[begin : begin + characters]
    if begin + characters >= len(snippet):
        return before + part
    space = part.rfind(" ")
    part = part[:space] if 2 * space > characters else part
    if part.rfind(START) > part.rfind(STOP):
        part += STOP
    return f"{before}{part} {ELLIPSIS}"


def _excerpt(content: str, marked: str) -> str:
    """Return what was marked of a content, on one line, or where nothing was, its beginning."""
    whole = _on_one_line(content.translate({ord(START): None, ord(STOP): None}))
    if START not in marked:
        return whole
    line = _on_one_line(marked)
    plain = line.translate({ord(START): None, ord(STOP): None})
    head, tail = plain[:COMPARED], plain[-COMPARED:]
    begin, end = whole.find(head), whole.rfind(tail) + len(tail)
    before = whole[:begin] if 0 <= begin <= LEAST_LEFT_OUT else f"{ELLIPSIS} "
    after = whole[end:] if len(whole) - end <= LEAST_LEFT_OUT else f" {ELLIPSIS}"
    return f"{before}{line}{after}"


def _on_one_line(text: str) -> str:
    return " ".join(text.split())
