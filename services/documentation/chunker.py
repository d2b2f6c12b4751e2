"""A chunker that goes by headings, then by paragraphs, then by sentences.

* A chunk never spans two sections: what stands under one heading, up to the next of any level.
  Small sections stay chunks of their own, as joining them would make the chunks of one section
  depend on its neighbours.
* A chunk's text is the body of its section; the heading path is stored, embedded and searched
  beside it. A heading without a body is in the path of the sections below it; where there are
  none, its own line is the text of a chunk. So is a heading that is too long for a path.
* Blocks are packed up to the limit in their order. One that is longer than a chunk is cut where
  its kind is cut best: prose between paragraphs, then sentences, then lines; lists between items;
  code at blank lines, then between lines; tables between rows. What is longer still is cut between
  words, and where there are none, between tokens.
* Where a section goes on in a second chunk, that one begins with the last sentences of the first,
  as far as the overlap reaches. Lines of code are repeated only within their block. Rows of a
  table are not, but its header is, if it is short.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby, islice
from operator import attrgetter
from typing import Final

from pgcorpus.db.errors import InvalidValue
from pgcorpus.services.choices import (
    CHUNK_TOKENS,
    MAX_CHUNK_TOKENS,
    MIN_CHUNK_TOKENS,
    OVERLAP_TOKENS,
)
from pgcorpus.services.documentation.anchors import name_anchors
from pgcorpus.services.documentation.chunk import Chunk
from pgcorpus.services.documentation.reading.document import Block, Kind, ReadDocument
from pgcorpus.services.documentation.tokens import TOKEN, count_tokens

CHUNKER_VERSION: Final = "1"
"""Changes whenever the same document would be cut otherwise: its chunks are then made anew."""


MAX_HEADING: Final = 500
"""Characters of a heading in a path: every chunk of its section, and below, carries them."""


MAX_GAP: Final = 8
"""Characters of white space between two blocks that a chunk keeps as they are."""


@dataclass(frozen=True, kw_only=True)
class ChunkerConfig:
    """Sizes of chunks.

    Args:
        max_tokens: Tokens of a chunk at most, as ``count_tokens`` estimates them.
        overlap_tokens: Tokens at most that a chunk repeats from the one before it.

    Raises:
        InvalidValue: ``max_tokens`` is not 8 to 8192, or ``overlap_tokens`` not 0 to half of it.
    """

    max_tokens: int = CHUNK_TOKENS
    overlap_tokens: int = OVERLAP_TOKENS

    def __post_init__(self) -> None:
        if not MIN_CHUNK_TOKENS <= self.max_tokens <= MAX_CHUNK_TOKENS:
            raise InvalidValue(
                f"max_tokens must be {MIN_CHUNK_TOKENS} to {MAX_CHUNK_TOKENS}, "
                f"not {self.max_tokens!r}"
            )
        if not 0 <= self.overlap_tokens <= self.max_tokens // 2:
            raise InvalidValue(
                f"overlap_tokens must be 0 to half of max_tokens, here {self.max_tokens // 2}, "
                f"not {self.overlap_tokens!r}"
            )

    def as_json(self) -> dict[str, int]:
        """Return the value of the column ``chunker_config``."""
        return {"max_tokens": self.max_tokens, "overlap_tokens": self.overlap_tokens}


DEFAULT_CONFIG: Final = ChunkerConfig()

# Where a block may be cut: after a match. Each is linear in the text, however hostile that is.
_BLANK: Final = re.compile(r"\n(?:[ \t>]*+\n)++")
_LINE: Final = re.compile(r"\n")
_ITEM: Final = re.compile(r"\n(?=(?:[-*+•]|\d{1,9}[.)])[ \t])")
_INNER_ITEM: Final = re.compile(r"\n(?=[ \t]*+(?:[-*+•]|\d{1,9}[.)])[ \t])")
_SENTENCE: Final = re.compile(
    r"(?<![.!?…])[.!?…]++[\"'”’»)\]*_`]*+\s++(?![a-z])|[。！？｡]++[」』”’）】]*+\s*+"  # noqa: RUF001
)
_PROSE: Final = (_BLANK, _SENTENCE, _LINE)
_CUTS: Final[Mapping[Kind, tuple[re.Pattern[str], ...]]] = {
    "heading": _PROSE,
    "paragraph": _PROSE,
    "quote": _PROSE,
    "list": (_ITEM, _INNER_ITEM, *_PROSE),
    "code": (_BLANK, _LINE),
    "table": (_LINE,),
}
"""Best first."""

_HEADER: Final = re.compile(r"\s*+[^\n]*+\n[ \t]*+\|?+(?=[^\n]*-)[-:|+ \t]++(?:\n|\Z)")
"""The header of a table: its first row, where a row of hyphens follows."""

_BLANK_START: Final = re.compile(r"(?:[^\S\n]*+\n)*+")


@dataclass(slots=True)
class _Section:
    """A heading and the blocks that stand under it.

    Attributes:
        path: Titles of the headings down to its own.
        anchor: None before the first heading.
        blocks: Without the heading, unless that is searched as text.
    """

    path: tuple[str, ...] = ()
    anchor: str | None = None
    blocks: list[Block] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Piece:
    """A part of a block that is not cut further, or a block.

    Attributes:
        block: The block of which it is a part.
        begin: Offset of its first character in the block's text.
        stop: Offset after its last.
        tokens: Its length.
        header: Of a table's rows, the header that is repeated where they begin a chunk.
        header_tokens: The header's length.
    """

    block: Block
    begin: int
    stop: int
    tokens: int
    header: str = ""
    header_tokens: int = 0


def chunk_document(
    document: ReadDocument, config: ChunkerConfig = DEFAULT_CONFIG
) -> tuple[Chunk, ...]:
    """Cut a document into chunks, by the rules at the head of this module.

    Args:
        document: As a reader gives it. Its blocks are not checked.
        config: Sizes of chunks; none is longer than ``max_tokens``.

    Returns:
        In the order of the document, the same for the same document and config. A chunk's text is
        ``document.text[start:end]`` where its blocks have the text of the document and nothing
        but a little white space between them; other gaps become a blank line. Where a block
        differs from the document's text (its links were made absolute), offsets of its parts are
        those of whole lines; where its lines differ, too, those of the whole block. Where a part
        of a table begins a chunk, its header precedes it in the text and is not within the
        offsets. Every character of a block that is no white space is within the offsets of a
        chunk, but for headings that are in the path of one.
    """
    places = _Places(document)
    return tuple(
        _make_chunk(position, section, pack, places)
        for position, (section, pack) in enumerate(
            (section, pack)
            for section in _divide(document.blocks)
            for pack in _pack(section.blocks, config)
        )
    )


def _divide(blocks: Sequence[Block]) -> Iterator[_Section]:
    """Yield the sections of a document, one after the other; a heading without words opens none."""
    anchors = iter(name_anchors(each for each in blocks if each.kind == "heading"))
    section = _Section()
    above: list[Block] = []
    for block in blocks:
        if block.kind != "heading":
            if block.text.strip():
                section.blocks.append(block)
            continue
        anchor = next(anchors)
        if not block.title.strip():
            continue
        if above and not section.blocks and block.level <= above[-1].level:
            section.blocks.append(above[-1])
        yield section
        above = [*(each for each in above if each.level < block.level), block]
        section = _Section(tuple(each.title.strip()[:MAX_HEADING] for each in above), anchor)
        if len(block.title) > MAX_HEADING:
            section.blocks.append(block)
    if above and not section.blocks:
        section.blocks.append(above[-1])
    yield section


def _pack(blocks: Sequence[Block], config: ChunkerConfig) -> Iterator[list[_Piece]]:
    """Yield the pieces of each chunk of a section, those that are repeated first."""
    pack: list[_Piece] = []
    tokens = 0
    for block in blocks:
        for piece in _cut(block, config.max_tokens):
            if pack and tokens + piece.tokens > config.max_tokens:
                yield pack
                pack = _repeat(pack, piece, config)
                tokens = sum(each.tokens for each in pack) + piece.header_tokens
            pack.append(piece)
            tokens += piece.tokens
    if pack:
        yield pack


def _repeat(pack: Sequence[_Piece], following: _Piece, config: ChunkerConfig) -> list[_Piece]:
    """Return the end of a chunk that the next one begins with; never all of it."""
    most = config.overlap_tokens
    room = min(most, config.max_tokens - following.tokens)
    repeated: list[_Piece] = []
    for piece in reversed(pack if most else ()):
        kind, text = piece.block.kind, piece.block.text
        if kind == "table" or (kind == "code" and piece.block is not following.block):
            break
        begin = max(piece.begin, piece.stop - 8 * most)  # no need to look further back
        parts = [*_split(text, begin, piece.stop, _CUTS[kind], most)]
        within = begin > piece.begin
        for part in reversed(parts[within:]):
            room -= part[-1]
            if room < 0:
                return repeated[::-1]
            repeated.append(_Piece(piece.block, *part))
        if within:
            break
    return repeated[::-1]


def _cut(block: Block, limit: int) -> Iterator[_Piece]:
    """Yield a block whole if it fits, else in parts of at most *limit* tokens."""
    text, cuts = block.text, _CUTS[block.kind]
    tokens = _count(text, 0, len(text), limit)
    if tokens <= limit:
        if tokens:
            yield _Piece(block, 0, len(text), tokens)
        return
    header = _HEADER.match(text) if block.kind == "table" else None
    header_tokens = count_tokens(header[0]) if header else 0
    if not header or header_tokens > limit // 4:
        for part in _split(text, 0, len(text), cuts, limit):
            yield _Piece(block, *part)
        return
    repeated = header[0].strip() + "\n"
    for begin, stop, tokens in _split(text, 0, len(text), cuts, limit - header_tokens):
        if begin < header.end():
            yield _Piece(block, begin, stop, tokens)
        else:
            yield _Piece(block, begin, stop, tokens, repeated, header_tokens)


def _split(
    text: str, begin: int, end: int, cuts: Sequence[re.Pattern[str]], limit: int
) -> Iterator[tuple[int, int, int]]:
    """Yield parts of ``text[begin:end]`` of at most *limit* tokens, as begin, stop and tokens.

    Parts follow one another without a gap, but for white space.
    """
    tokens = _count(text, begin, end, limit)
    if tokens > limit:
        while cuts and not cuts[0].search(text, begin, end):
            cuts = cuts[1:]
        if not cuts:
            yield from _split_between_words(text, begin, end, limit)
            return
        start = begin
        for cut in cuts[0].finditer(text, begin, end):
            yield from _split(text, start, cut.end(), cuts[1:], limit)
            start = cut.end()
        yield from _split(text, start, end, cuts[1:], limit)
    elif tokens:
        yield begin, end, tokens


def _split_between_words(
    text: str, begin: int, end: int, limit: int
) -> Iterator[tuple[int, int, int]]:
    """Yield parts as ``_split`` does, cut at white space, or anywhere where there is none.

    They have an eighth of the limit, so that a chunk is filled well, and may repeat some.
    """
    most = max(1, limit // 8)
    while spans := [each.span() for each in islice(TOKEN.finditer(text, begin, end), most + 1)]:
        words = (at for at in range(most, 0, -1) if spans[at][0] > spans[at - 1][1])
        tokens = next(words, most) if len(spans) > most else len(spans)
        yield begin, spans[tokens - 1][1], tokens
        begin = spans[tokens][0] if tokens < len(spans) else end


def _count(text: str, begin: int, end: int, limit: int) -> int:
    """Count the tokens of ``text[begin:end]``, but no further than one past *limit*."""
    if end - begin > 8 * limit:
        if len(TOKEN.findall(text, begin, begin + 8 * limit)) > limit:
            return limit + 1
        return sum(1 for _ in islice(TOKEN.finditer(text, begin, end), limit + 1))
    return len(TOKEN.findall(text, begin, end))


class _Places:
    """Offsets in a document of what stands in its blocks.

    Args:
        document: The document.
    """

    def __init__(self, document: ReadDocument) -> None:
        self.text = document.text
        self._block: Block | None = None
        self._exact = False
        self._lines: tuple[list[int], list[int]] = ([], [])

    def locate(self, block: Block, begin: int, stop: int) -> tuple[int, int]:
        """Return the offsets in the document's text of a part of a block's text."""
        if block is not self._block:
            self._compare(block)
        if self._exact:
            return block.start + begin, block.start + stop
        own, source = self._lines
        if len(own) != len(source):
            return block.start, block.end
        last = bisect_right(own, stop - 1)
        end = block.start + source[last] - 1 if last < len(source) else block.end
        return block.start + source[bisect_right(own, begin) - 1], end

    def _compare(self, block: Block) -> None:
        """Compare a block's text with the document's, once for all parts of the block."""
        source = self.text[block.start : block.end]
        self._block = block
        self._exact = source == block.text
        if not self._exact:
            self._lines = _line_starts(block.text), _line_starts(source)


def _line_starts(text: str) -> list[int]:
    """Return the offset of the first character of each line."""
    return [0, *(each.end() for each in _LINE.finditer(text))]


def _make_chunk(position: int, section: _Section, pack: Sequence[_Piece], places: _Places) -> Chunk:
    """Make the chunk of *pack*."""
    first = pack[0]
    text = first.header
    start = end = -1
    for block, pieces in groupby(pack, attrgetter("block")):
        parts = tuple(pieces)
        begin, stop = _trim(block.text, parts[0].begin, parts[-1].stop)
        here, until = places.locate(block, begin, stop)
        if start < 0:
            start = here
        else:
            gap = places.text[end:here]
            text += gap if gap.isspace() and len(gap) <= MAX_GAP else "\n\n"
        text += block.text[begin:stop]
        end = until
    return Chunk(
        position=position,
        text=text,
        heading=section.path[-1] if section.path else None,
        anchor=section.anchor,
        heading_path=section.path,
        start=start,
        end=end,
        token_count=first.header_tokens + sum(each.tokens for each in pack),
        page=first.block.page,
    )


def _trim(text: str, begin: int, stop: int) -> tuple[int, int]:
    """Return the offsets of ``text[begin:stop]`` without blank lines at its ends."""
    part = text[begin:stop]
    blank = _BLANK_START.match(part)
    return begin + (blank.end() if blank else 0), begin + len(part.rstrip())
