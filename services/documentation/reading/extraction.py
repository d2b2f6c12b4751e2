"""Texts put together of blocks, of formats that are no text themselves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final

from pgcorpus.services.documentation.reading.document import (
    Block,
    Kind,
    ReadDocument,
    Unreadable,
)

MAX_BLOCKS: Final = 200_000
"""The largest books have some 20,000 paragraphs. Each block takes about 0.3 kB beside its text."""

MAX_TEXT_CHARACTERS: Final = 64 * 1024**2
"""Characters of a file's text, as many as it may have bytes: unpacked text does not outgrow it."""

LOWEST_LEVEL: Final = 6
"""The lowest level of a heading, as in HTML; deeper ones count as this."""

_BETWEEN: Final = "\n\n"


class Extraction:
    """A text that grows block by block, an empty line between them."""

    def __init__(self) -> None:
        self._texts: list[str] = []
        self._blocks: list[Block] = []
        self._length = 0

    @property
    def has_blocks(self) -> bool:
        """Return whether there is any text."""
        return bool(self._blocks)

    def add(
        self,
        kind: Kind,
        text: str,
        *,
        level: int = 0,
        title: str = "",
        anchor: str | None = None,
        page: int | None = None,
    ) -> None:
        """Append a block. White space around it is removed, and a block of nothing is left out.

        Raises:
            Unreadable: There are more than ``MAX_BLOCKS`` blocks, or ``MAX_TEXT_CHARACTERS``.
        """
        text = text.replace("\0", "").strip("\n").rstrip()  # not the indentation of code
        if not text:
            return
        start = self._length + (len(_BETWEEN) if self._texts else 0)
        end = start + len(text)
        if end > MAX_TEXT_CHARACTERS:
            raise Unreadable(f"it has more than {MAX_TEXT_CHARACTERS:,} characters of text")
        self._texts.append(text)
        self._length = end
        self._blocks.append(
            Block(
                kind=kind,
                text=text,
                start=start,
                end=end,
                level=min(level, LOWEST_LEVEL),
                title=title,
                anchor=anchor,
                page=page,
            )
        )
        refuse_too_many(self._blocks)

    def add_heading(
        self, title: str, level: int, *, anchor: str | None = None, page: int | None = None
    ) -> None:
        """Append a heading, whose text is its title."""
        title = " ".join(title.split())
        self.add("heading", title, level=level, title=title, anchor=anchor, page=page)

    def finish(
        self,
        content_type: str,
        *,
        title: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        source_url: str | None = None,
    ) -> ReadDocument:
        """Return the document. Without a *title*, its first heading of the highest level has it."""
        return ReadDocument(
            text=_BETWEEN.join(self._texts),
            blocks=tuple(self._blocks),
            content_type=content_type,
            title=title or find_title(self._blocks),
            metadata=MappingProxyType(dict(metadata or {})),
            source_url=source_url,
        )


def refuse_too_many(blocks: Sequence[Block]) -> None:
    """Raise if there are more blocks than a document may have.

    Raises:
        Unreadable: There are more than ``MAX_BLOCKS``.
    """
    if len(blocks) > MAX_BLOCKS:
        raise Unreadable(f"it has more than {MAX_BLOCKS:,} paragraphs: split it")


def find_title(blocks: Sequence[Block]) -> str | None:
    """Return the title of the first heading of the highest level, or None."""
    headings = [block for block in blocks if block.kind == "heading" and block.title]
    return min(headings, key=lambda heading: heading.level).title if headings else None


def draw_table(rows: Sequence[Sequence[str]], *, headed: bool = False) -> str:
    """Return rows of cells as a table of Markdown.

    Args:
        rows: The text of each cell. Line breaks become spaces.
        headed: Whether the first row names the columns.
    """
    lines = [
        "| " + " | ".join(" ".join(cell.split()).replace("|", "\\|") for cell in row) + " |"
        for row in rows
        if any(cell.strip() for cell in row)
    ]
    if headed and len(lines) > 1:
        lines.insert(1, "|" + "---|" * len(rows[0]))
    return "\n".join(lines)
