"""Anchors of headings, as GitHub makes them."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from typing import Final

from pgcorpus.services.documentation.reading.document import Block

MAX_ANCHOR: Final = 500
"""Characters of an anchor, without its number: every chunk of the section carries it."""

_DOUBTFUL: Final = re.compile(r"[^a-z0-9_ -]")

_KEPT: Final = frozenset(("Nd", "Nl", "Pc"))
"""Categories of characters, beside letters and marks, that an anchor keeps."""


def name_anchors(headings: Iterable[Block]) -> tuple[str, ...]:
    """Name the anchor of each heading; no two are the same.

    An anchor that the document names itself is kept as it stands, and taken before any that is
    made of words. One that is taken has ``-1`` appended, or the next number that is free.

    Returns:
        In the order of *headings*. Of headings without a letter or digit, such as an emoji, the
        first has an empty anchor and the second ``-1``.

    Source:
        github-slugger 2.0, for the characters that are dropped and for the numbers.
    """
    blocks = tuple(headings)
    taken: dict[str, int] = {}
    own = [_number(each.anchor[:MAX_ANCHOR], taken) if each.anchor else None for each in blocks]
    return tuple(
        _number(slug(block.title[:MAX_ANCHOR]), taken) if anchor is None else anchor
        for block, anchor in zip(blocks, own, strict=True)
    )


def slug(title: str) -> str:
    """Turn a title into a fragment: lower case, hyphens for spaces, without punctuation."""
    return _DOUBTFUL.sub(_keep, title.strip().lower()).replace(" ", "-")


def _keep(match: re.Match[str]) -> str:
    """Return the character if it is a letter, a digit or a mark of any script, else nothing."""
    category = unicodedata.category(match[0])
    return match[0] if category[0] in "LM" or category in _KEPT else ""


def _number(anchor: str, taken: dict[str, int]) -> str:
    """Take *anchor*, with the next free number where it is taken already."""
    free = anchor
    while free in taken:
        taken[anchor] += 1
        free = f"{anchor}-{taken[anchor]}"
    taken[free] = 0
    return free
