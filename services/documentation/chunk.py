"""A chunk of a document: the passage that is stored, embedded and found."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """A chunk, before it is stored.

    Attributes:
        position: From 0, in the order of the document.
        text: Never empty.
        heading: The heading that it stands under, without markup; None before the first.
        anchor: The fragment of that heading as GitHub makes it, unique in the document.
        heading_path: The headings from the highest level down to its own.
        start: Offset of its first character in the document's text.
        end: Offset after its last character.
        token_count: Length in tokens, estimated as the chunker counts them.
        page: Number of the page on which it begins, from 1, in formats that have pages.
    """

    position: int
    text: str
    heading: str | None
    anchor: str | None
    heading_path: tuple[str, ...]
    start: int
    end: int
    token_count: int
    page: int | None = None
