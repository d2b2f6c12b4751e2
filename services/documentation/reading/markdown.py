"""The reader of Markdown, as CommonMark and GitHub have it."""

from __future__ import annotations

import re
from collections.abc import Iterator, MutableMapping, Sequence
from html import unescape
from itertools import accumulate
from types import MappingProxyType
from typing import Any, Final

from markdown_it import MarkdownIt
from markdown_it.token import Token

from pgcorpus.services.documentation.reading.block_rules import make_parser
from pgcorpus.services.documentation.reading.document import Block, Kind, ReadDocument, Unreadable
from pgcorpus.services.documentation.reading.extraction import find_title, refuse_too_many
from pgcorpus.services.documentation.reading.front_matter import (
    find_source_url,
    find_text,
    split_front_matter,
)
from pgcorpus.services.documentation.reading.links import make_links_absolute

MAX_CHARACTERS: Final = 8 * 1024**2
"""The parser reads some 4 MB in a second, and hostile headings 0.4. The longest changelogs have
two."""

MAX_LINES: Final = 200_000
"""The parser takes up to 50 µs and 2 kB for a line: some ten seconds, and 400 MB. The longest
changelogs have 50,000 lines."""

MAX_CELLS: Final = 200_000
"""Bars between cells of tables: the parser makes three tokens of a cell, of some 0.5 kB each."""

_PARSER: Final = make_parser()
_INLINE: Final = MarkdownIt("commonmark").enable("strikethrough")
"""Reads what headings say."""

_KINDS: Final[dict[str, Kind]] = {
    "heading_open": "heading",
    "paragraph_open": "paragraph",
    "fence": "code",
    "code_block": "code",
    "table_open": "table",
    "bullet_list_open": "list",
    "ordered_list_open": "list",
    "blockquote_open": "quote",
    "html_block": "paragraph",
}

_MARKED: Final = re.compile(r"[\\`*_\[\]<>&!~]")
_MAX_TITLE_CHARACTERS: Final = 300
"""The markup of a longer heading stays: what is not closed takes time by its square."""

_NAMED: Final = re.compile(r"\s*\{:?[^{}#]{0,200}#([^\s{}]{1,200})[^{}]{0,200}\}\s*$")
_ANCHOR: Final = re.compile(r"""<a\s+(?:name|id)\s*=\s*["']?([^\s"'>]{1,200})""", re.IGNORECASE)
_ID: Final = re.compile(r"""\s(?:id|name)\s*=\s*["']?([^\s"'>]{1,200})""", re.IGNORECASE)
_HTML_HEADING: Final = re.compile(
    r"\s*<h([1-6])(\s[^>]*)?>((?:(?!</h[1-6]>).){0,2000})</h\1>\s*", re.IGNORECASE | re.DOTALL
)
_HTML_COMMENT: Final = re.compile(r"<!--.*?(?:-->|\Z)", re.DOTALL)
_HTML_TAG: Final = re.compile(r"<[^<>]*>")
_HTML_KINDS: Final[dict[str, Kind]] = {
    "<table": "table",
    "<pre": "code",
    "<ul": "list",
    "<ol": "list",
    "<blockquote": "quote",
}


def read_markdown(text: str, *, base: str | None = None) -> ReadDocument:
    """Read Markdown, with front matter.

    Blocks are those of the top level: a list with all that is nested in it is one. Definitions of
    links, thematic breaks and comments of HTML are in no block. A heading written in HTML is one.
    Front matter that cannot be read is a block of code, so that its lines become no headings.

    Args:
        text: With line feeds between lines.
        base: The address of the document; else the one that its front matter names.

    Raises:
        Unreadable: It has more than ``MAX_CHARACTERS``, ``MAX_LINES``, or ``MAX_CELLS`` of tables.
    """
    front = split_front_matter(text)
    text = text[front.start :]
    source_url = find_source_url(front.metadata)
    blocks = find_blocks(text, base=base or source_url, skip=front.broken_end)
    return ReadDocument(
        text=text,
        blocks=blocks,
        content_type="text/markdown",
        title=find_text(front.metadata, "title") or find_title(blocks),
        metadata=MappingProxyType(dict(front.metadata)),
        source_url=source_url,
    )


def find_blocks(text: str, *, base: str | None = None, skip: int = 0) -> tuple[Block, ...]:
    """Return the blocks of Markdown without front matter.

    Args:
        text: With line feeds between lines.
        base: The address of the document, by which links are made absolute.
        skip: Offset of a line's end up to which the text is one block of code.

    Raises:
        Unreadable: It has more than ``MAX_CHARACTERS``, ``MAX_LINES``, or ``MAX_CELLS`` of tables.
    """
    if len(text) > MAX_CHARACTERS:
        raise Unreadable(f"it has more than {MAX_CHARACTERS:,} characters: split it")
    if text.count("\n") >= MAX_LINES:
        raise Unreadable(f"it has more than {MAX_LINES:,} lines: split it")
    if text.count("|") > MAX_CELLS:
        raise Unreadable(f"its tables have more than {MAX_CELLS:,} cells: split it")
    references: MutableMapping[str, Any] = {}
    tokens = _PARSER.parse(text[skip:], references)
    blocks = tuple(_blocks(tokens, text, base, references.get("references", {}), skip))
    refuse_too_many(blocks)
    return blocks


def _blocks(
    tokens: Sequence[Token], text: str, base: str | None, references: dict[str, Any], skip: int
) -> Iterator[Block]:
    if skip:
        yield Block(kind="code", text=text[:skip], start=0, end=skip)
    starts = [*accumulate((len(line) + 1 for line in text[skip:].split("\n")), initial=skip)]
    for index, token in enumerate(tokens):
        kind = _KINDS.get(token.type)
        if token.level or token.map is None or kind is None:
            continue
        start = starts[token.map[0]]
        whole = text[start : starts[token.map[1]] - 1].rstrip()
        level, title, anchor = 0, "", None
        if token.type == "heading_open":
            level = int(token.tag[1])
            title, anchor = _read_heading(tokens[index + 1].content, references)
        elif token.type == "html_block":
            kind, level, title, anchor = _read_html(whole)
        if not kind or not whole:
            continue
        yield Block(
            kind=kind,
            text=make_links_absolute(whole, base, references) if base and kind != "code" else whole,
            start=start,
            end=start + len(whole),
            level=level,
            title=title,
            anchor=anchor,
        )


def _read_html(text: str) -> tuple[Kind | None, int, str, str | None]:
    """Return kind, level, title and anchor of a block of HTML; no kind for mere comments."""
    if heading := _HTML_HEADING.fullmatch(text):
        title = " ".join(unescape(_HTML_TAG.sub(" ", heading[3])).split())
        anchor = _ID.search(heading[2] or "") or _ANCHOR.search(heading[3])
        return "heading", int(heading[1]), title, anchor[1] if anchor else None
    if not _HTML_COMMENT.sub("", text).strip():
        return None, 0, "", None
    opening = text.lstrip().lower()
    kinds = (kind for tag, kind in _HTML_KINDS.items() if opening.startswith(tag))
    return next(kinds, "paragraph"), 0, "", None


def _read_heading(content: str, references: dict[str, Any]) -> tuple[str, str | None]:
    """Return the words of a heading, and the anchor that it names."""
    anchor = None
    if content.endswith("}") and (named := _NAMED.search(content)):
        content, anchor = content[: named.start()], named[1]
    if len(content) > _MAX_TITLE_CHARACTERS or not _MARKED.search(content):
        return " ".join(content.split()), anchor
    tokens = _INLINE.parseInline(content, {"references": references})
    title = " ".join("".join(_words(tokens[0].children or ())).split())
    if anchor is None and (found := _ANCHOR.search(content)):
        anchor = found[1]
    return title, anchor


def _words(tokens: Sequence[Token]) -> Iterator[str]:
    for token in tokens:
        if token.type in {"text", "code_inline", "text_special"}:
            yield token.content
        elif token.type == "image":
            yield from _words(token.children or ())
        elif token.type in {"softbreak", "hardbreak"}:
            yield " "
