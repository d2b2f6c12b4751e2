"""The reader of HTML: a stream of tags, of which no tree is made."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from pgcorpus.services.documentation.reading.document import Kind, ReadDocument, Unreadable
from pgcorpus.services.documentation.reading.extraction import Extraction, draw_table
from pgcorpus.services.documentation.reading.front_matter import is_web_address
from pgcorpus.services.documentation.reading.links import join

if TYPE_CHECKING:
    from lxml.etree import HTMLParser

MAX_HTML_BYTES: Final = 16 * 1024**2
"""A page of a megabyte is a long book. What is refused would take seconds."""

MAX_DEPTH: Final = 1_000
"""Elements within one another. Real pages have fifty; closing tags that nothing opened cost the
parser time by the depth."""

MAX_CELLS: Final = 200_000
"""Cells of one table, as in Markdown."""

_PIECE_CHARACTERS: Final = 64 * 1024

_DROPPED: Final = frozenset(
    "script style template noscript svg math iframe object nav footer button select textarea "  # noqa: SIM905
    "canvas dialog audio video map".split()
)
_DROPPED_ROLES: Final = frozenset({"navigation", "banner", "contentinfo", "search", "menu"})
_DROPPED_CLASSES: Final = frozenset({"headerlink", "linenos", "toctree-wrapper", "breadcrumb"})
_VOID: Final = frozenset(
    "area base br col embed hr img input link meta param source track wbr".split()  # noqa: SIM905
)
_INLINE: Final = frozenset(
    "a abbr acronym b bdi bdo big cite code data del dfn em font i ins kbd label mark q rp rt ruby "  # noqa: SIM905
    "s samp small span strike strong sub sup time tt u var".split()
)
_HEADINGS: Final = {f"h{level}": level for level in range(1, 7)}
_REGIONS: Final[dict[str, Kind]] = {
    "pre": "code",
    "table": "table",
    "ul": "list",
    "ol": "list",
    "blockquote": "quote",
    **dict.fromkeys(_HEADINGS, "heading"),
}
_META: Final = frozenset({"description", "keywords", "author", "generator"})
_PILCROWS: Final = " \t\n¶#🔗"
_SPACES: Final = re.compile(r"\s+")


def read_html(text: str, *, base: str | None = None) -> ReadDocument:
    """Read a page of HTML.

    Scripts, styles, navigation and footers are dropped; where a page marks its main part, only that
    is read. Tables become tables of Markdown, links ``[words](address)`` where the address is
    known. A table or a list that holds headings is taken for layout.

    Args:
        text: The page.
        base: Its address; else its canonical link.

    Raises:
        Unreadable: It is larger than ``MAX_HTML_BYTES``, or nested deeper than ``MAX_DEPTH``.
    """
    if len(text) > MAX_HTML_BYTES:
        raise Unreadable(
            f"the page has {len(text) / 1024**2:,.0f} MiB; at most "
            f"{MAX_HTML_BYTES // 1024**2} are read: split it"
        )
    from lxml import etree  # noqa: PLC0415 - 20 ms, for who reads HTML alone

    page = _Page(base)
    parser: HTMLParser = etree.HTMLParser(
        target=page, encoding="utf-8", no_network=True, remove_comments=True, remove_pis=True
    )
    try:
        # In pieces, so that what is refused ends the work.
        for start in range(0, len(text), _PIECE_CHARACTERS):
            piece = text[start : start + _PIECE_CHARACTERS]
            parser.feed(piece.encode("utf-8", errors="replace"))
        if text:
            parser.close()
    except etree.LxmlError as error:
        raise Unreadable(f"it is no HTML: {error}") from error
    return page.finish()


class _Page:
    """A page as it is read: what lxml's parser calls with each tag and each text."""

    def __init__(self, base: str | None) -> None:
        self._base = base
        self._extraction = Extraction()  # of the page
        self._main = Extraction()  # of its main part
        self._metadata: dict[str, str] = {}
        self._title: list[str] = []
        self._source_url: str | None = None
        self._depth = 0
        self._dropped_at = 0  # depth of the element that is dropped with all within, or 0
        self._main_at = 0
        self._in_title = False
        self._words: list[str] = []
        self._link: tuple[str, int] | None = None
        self._anchor: str | None = None  # named just before, with no text since
        self._region: Kind | None = None
        self._region_at = 0
        self._level = 1  # of the heading that is read
        self._pre_at = 0
        self._lists: list[int] = []  # of each list around: the next number, or 0 without numbers
        self._rows: list[list[str]] = []
        self._cells = 0
        self._tables = 0
        self._headed = False

    def start(self, tag: str, attributes: Mapping[str, str]) -> None:
        """Begin an element."""
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise Unreadable(f"it is nested deeper than {MAX_DEPTH:,} levels")
        if self._dropped_at:
            return
        if _is_dropped(tag, attributes):
            self._dropped_at = self._depth
            return
        if tag == "title":
            self._in_title = not self._title
        elif tag in {"html", "meta", "link", "base"}:
            self._read_head(tag, attributes)
        elif tag in _INLINE or tag in _VOID:
            self._start_inline(tag, attributes)
        else:
            self._start_block(tag, attributes)

    def end(self, tag: str) -> None:
        """End an element."""
        depth = self._depth
        self._depth -= 1
        if self._dropped_at:
            if depth == self._dropped_at:
                self._dropped_at = 0
            return
        if tag == "title":
            self._in_title = False
        elif tag == "a":
            self._close_link()
        elif tag not in _INLINE and tag not in _VOID:
            self._end_block(tag, depth)

    def data(self, text: str) -> None:
        """Take in a text."""
        if self._dropped_at:
            return
        if self._in_title:
            self._title.append(text)
        elif self._pre_at:
            self._words.append(text)
        else:
            words = _SPACES.sub(" ", text)
            if words != " ":
                if self._region != "heading":
                    self._anchor = None
                self._words.append(words)
            elif self._words:
                self._words.append(words)

    def close(self) -> None:
        """End the page."""
        self._close_region() if self._region else self._flush()

    def finish(self) -> ReadDocument:
        """Return the document."""
        extraction = self._main if self._main.has_blocks else self._extraction
        return extraction.finish(
            "text/html",
            title=" ".join("".join(self._title).split()),
            metadata=self._metadata,
            source_url=self._source_url,
        )

    def _read_head(self, tag: str, attributes: Mapping[str, str]) -> None:
        if tag == "html":
            if attributes.get("lang"):
                self._metadata["language"] = attributes["lang"]
        elif tag == "meta":
            name, content = attributes.get("name", "").lower(), attributes.get("content", "")
            if name in _META and content.strip():
                self._metadata.setdefault(name, " ".join(content.split()))
        elif href := attributes.get("href", "").strip():
            if tag == "base":
                self._base = join(self._base or "", href)
            elif "canonical" in attributes.get("rel", "").lower().split():
                address = join(self._base or "", href)
                if is_web_address(address):
                    self._source_url = self._source_url or address
                    self._base = self._base or address

    def _start_inline(self, tag: str, attributes: Mapping[str, str]) -> None:
        if tag == "br":
            self._words.append("\n")
        elif tag == "img":
            self._words.append(attributes.get("alt", ""))
        elif name := attributes.get("id") or (attributes.get("name") if tag == "a" else None):
            self._anchor = self._anchor or name
        if tag == "a":
            self._close_link()
            href = attributes.get("href", "").strip()
            if href and not href.startswith("#") and not self._pre_at and self._region != "heading":
                address = join(self._base or "", href)
                if is_web_address(address):
                    self._link = address, len(self._words)

    def _close_link(self) -> None:
        if self._link is None:
            return
        (address, begin), self._link = self._link, None
        words = "".join(self._words[begin:])
        if words.strip():
            for character, escape in ((" ", "%20"), ("(", "%28"), (")", "%29")):
                address = address.replace(character, escape)
            lead = " " if words[0].isspace() else ""
            tail = " " if words[-1].isspace() else ""
            self._words[begin:] = [f"{lead}[{words.strip()}]({address}){tail}"]

    def _start_block(self, tag: str, attributes: Mapping[str, str]) -> None:
        named = attributes.get("id")
        if tag == "main" or attributes.get("role") == "main":
            self._flush()
            self._main_at = self._main_at or self._depth
        if tag in _HEADINGS:
            self._close_region() if self._region else self._flush()
            self._anchor, self._level = named or self._anchor, _HEADINGS[tag]
        elif named and self._region != "heading":
            self._anchor = named
        # A table around what is set as code, before any word: line numbers, or layout.
        if tag == "pre" and self._region == "table" and not self._has_words():
            self._region = None
        if self._region is None and tag in _REGIONS:
            self._flush()
            self._region, self._region_at = _REGIONS[tag], self._depth
            self._lists, self._rows, self._headed = [], [], False
            self._tables = self._cells = 0
        if tag == "pre" and self._region != "table":
            self._break_line()
            self._pre_at = self._pre_at or self._depth
        elif self._region == "table":
            self._start_in_table(tag)
        elif self._region is None:
            self._flush()
        elif self._region != "heading":
            self._start_in_list(tag, attributes)

    def _start_in_table(self, tag: str) -> None:
        if tag == "table":
            self._tables += 1
        if self._tables > 1:  # a table in a cell is part of its text
            self._words.append(" ")
        elif tag == "tr":
            self._close_cell()
            self._rows.append([])
        elif tag in {"td", "th"}:
            self._close_cell()
            if not self._rows:
                self._rows.append([])
            self._headed = self._headed or (tag == "th" and len(self._rows) == 1)
            self._rows[-1].append("")
            self._cells += 1
            if self._cells > MAX_CELLS:
                raise Unreadable(f"a table has more than {MAX_CELLS:,} cells")
        else:
            self._words.append(" ")

    def _start_in_list(self, tag: str, attributes: Mapping[str, str]) -> None:
        if tag in {"ul", "ol"}:
            start = attributes.get("start", "")
            number = int(start) if start.isascii() and start.isdigit() and len(start) < 10 else 1  # noqa: PLR2004
            self._lists.append(number if tag == "ol" else 0)
        elif tag == "li":
            self._break_line()
            number = self._lists[-1] if self._lists else 0
            mark = f"{number}. " if number else "- "
            if number:
                self._lists[-1] += 1
            self._words.append("  " * (min(len(self._lists), 20) - 1) + mark)
        elif not (self._words and self._words[-1].endswith(("- ", ". "))):
            self._break_line()

    def _end_block(self, tag: str, depth: int) -> None:
        if self._pre_at == depth:
            self._pre_at = 0
            if self._region != "code":
                self._words.append("\n")
        if self._region is None:
            self._flush()
        elif depth == self._region_at:
            self._close_region()
        elif self._region == "table":
            self._tables -= tag == "table"
            self._words.append(" ")
        elif tag in {"ul", "ol"} and self._lists:
            self._lists.pop()
        if depth == self._main_at:
            self._flush()
            self._main_at = 0

    def _has_words(self) -> bool:
        return any(word.strip() for word in self._words) or any(map(any, self._rows))

    def _break_line(self) -> None:
        if self._words and not self._words[-1].endswith("\n"):
            self._words.append("\n")

    def _close_cell(self) -> None:
        text = self._take_words()
        if self._rows and self._rows[-1]:
            self._rows[-1][-1] = f"{self._rows[-1][-1]} {text}".strip()
        elif text.strip():  # a caption
            self._add("paragraph", _trim_lines(text))

    def _take_words(self) -> str:
        self._close_link()
        text = "".join(self._words)
        self._words = []
        return text

    def _flush(self) -> None:
        """Make a paragraph of the words so far."""
        if self._words:
            self._add("paragraph", _trim_lines(self._take_words()))

    def _close_region(self) -> None:
        """Make a block of the region, whether it ended or turned out to be layout."""
        kind, self._region, self._region_at = self._region, None, 0
        if kind == "table":
            self._close_cell()
            width = max(map(len, self._rows), default=0)
            # A table of one cell is a frame around a text.
            if width > 1 or len(self._rows) > 1:
                self._add("table", draw_table(self._rows, headed=self._headed))
            elif width:
                self._add("paragraph", _trim_lines(self._rows[0][0]))
            self._rows = []
            return
        text = self._take_words()
        if kind == "code":
            self._pre_at = 0
            self._add("code", text)
        elif kind == "list":
            self._add("list", "\n".join(filter(str.strip, map(str.rstrip, text.split("\n")))))
        elif kind:
            self._add(kind, _trim_lines(text))

    def _add(self, kind: Kind, text: str) -> None:
        extraction = self._main if self._main_at else self._extraction
        if kind != "heading":
            extraction.add(kind, text)
            return
        extraction.add_heading(text.strip(_PILCROWS), self._level, anchor=self._anchor)
        self._anchor = None


def _is_dropped(tag: str, attributes: Mapping[str, str]) -> bool:
    return (
        tag in _DROPPED
        or "hidden" in attributes
        or attributes.get("aria-hidden") == "true"
        or attributes.get("role") in _DROPPED_ROLES
        or not _DROPPED_CLASSES.isdisjoint(attributes.get("class", "").split())
    )


def _trim_lines(text: str) -> str:
    lines = (" ".join(line.split()) for line in text.split("\n"))
    return "\n".join(line for line in lines if line)
