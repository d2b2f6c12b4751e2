"""The reader of plain text."""

from __future__ import annotations

from collections.abc import Callable

from pgcorpus.services.documentation.reading.document import Block, Kind, ReadDocument
from pgcorpus.services.documentation.reading.extraction import refuse_too_many


def read_plain(text: str) -> ReadDocument:
    """Read plain text: a block is a paragraph, between empty lines.

    Args:
        text: With line feeds between lines.

    Raises:
        Unreadable: It has too many paragraphs.
    """
    return split_text(text, kind="paragraph", content_type="text/plain")


def split_text(
    text: str,
    *,
    kind: Kind,
    content_type: str,
    begins: Callable[[str], bool] = lambda _line: True,
) -> ReadDocument:
    """Return a document whose blocks are parted by empty lines.

    Args:
        text: With line feeds between lines.
        kind: Of all blocks.
        content_type: Of the document.
        begins: Whether a line that follows an empty one begins a block.

    Raises:
        Unreadable: There are too many blocks.
    """
    blocks: list[Block] = []
    start = end = offset = 0
    after_empty = True

    def close() -> None:
        if end > start:
            blocks.append(Block(kind=kind, text=text[start:end], start=start, end=end))
            refuse_too_many(blocks)

    for line in text.split("\n"):
        filled = len(line.rstrip())
        if filled:
            if after_empty and (end == 0 or begins(line)):
                close()
                start = offset
            end = offset + filled
        after_empty = not filled
        offset += len(line) + 1
    close()
    return ReadDocument(text=text, blocks=tuple(blocks), content_type=content_type)
