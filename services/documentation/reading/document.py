"""A document as its reader gives it: a text, and the blocks that the text is made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

Kind = Literal["heading", "paragraph", "code", "table", "list", "quote"]


@dataclass(frozen=True, kw_only=True)
class Block:
    """A block of a document: what a chunker keeps whole where it fits.

    Attributes:
        kind: What it is.
        text: Its text as a chunk has it. Of formats that are text themselves it is
            ``document.text[start:end]``, apart from links that were made absolute.
        start: Offset of its first character in the document's text.
        end: Offset after its last character.
        level: Of a heading, 1 (the highest) to 6; else 0.
        title: Of a heading, its words without markup; else empty.
        anchor: The fragment that leads to it, where the document names one itself.
        page: Number of the page on which it begins, from 1, in formats that have pages.
    """

    kind: Kind
    text: str
    start: int
    end: int
    level: int = 0
    title: str = ""
    anchor: str | None = None
    page: int | None = None


@dataclass(frozen=True, kw_only=True)
class ReadDocument:
    """A document that was read.

    Attributes:
        text: Its text without front matter, with line feeds between lines: of text formats the
            characters of the file, of others what was extracted. Offsets count its characters.
        blocks: In the order of the text, not within one another.
        content_type: Such as ``text/markdown``.
        title: Of its metadata, else its first heading of the highest level, else None.
        metadata: Front matter and the like: values of JSON alone.
        source_url: Where it came from, if it says so itself.
    """

    text: str
    blocks: tuple[Block, ...]
    content_type: str
    title: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    source_url: str | None = None


class Unreadable(Exception):
    """A file that is no document of its format, or goes beyond a limit; the message says why."""
