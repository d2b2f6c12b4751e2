"""The beginning of a text as a list shows it: without Markdown, cut between words."""

from __future__ import annotations

import re
from typing import Final

MARKS: Final = re.compile(
    r"""
    # A block of code, perhaps left open, or a span: what looks like Markdown inside is none.
    ^[ ]{0,3}(?P<fence>`{3,}|~{3,})[^\n]*\n?(?P<block>.*?)(?:^[ ]{0,3}(?P=fence)[`~]*[ \t]*$|\Z)
    | (?P<ticks>`+)(?P<span>.+?)(?P=ticks)
    # A link or an image, perhaps with its end cut off.
    | !?\[(?P<text>[^\]\n]*)\](?:\([^)\n]*\)?|\[[^\]\n]*\])
    # Emphasis: a mark beside a letter, and an underscore not within a word.
    | \*{1,3}(?=\S) | (?<=\S)\*{1,3} | (?<!\w)_{1,3}(?=\S) | (?<=\S)_{1,3}(?!\w) | ~~
    # What makes a line a rule, the underline of a title, a quotation, a heading, an item of a list.
    | ^[ \t]*(?:(?:[-*_][ \t]*){3,}$ | (?:=+|-+)[ \t]*$
        | (?:>[ \t]?)*(?:\#{1,6}[ \t]+ | [-*+][ \t]+(?:\[[ xX]\][ \t]+)? | \d{1,9}[.)][ \t]+)?)
    """,
    re.MULTILINE | re.DOTALL | re.VERBOSE,
)

DOTS: Final = "..."


def plain(markdown: str) -> str:
    """Return the text without the marks of Markdown, on one line."""
    return " ".join(_without_marks(markdown).split())


def shorten(text: str, most: int, *, goes_on: bool = False) -> str:
    """Shorten a text between two words, marked with dots; whole if it fits.

    White space that it begins with is left out: it would push away what is to be read.

    Args:
        text: A text without spaces is cut wherever it must be.
        most: Characters, the dots included.
        goes_on: Whether the text was cut already, perhaps within its last word.
    """
    text = text.lstrip()
    if len(text) <= most and not goes_on:
        return text
    head = text[: most - len(DOTS)]
    if head and not text[len(head) :][:1].isspace():
        head = head.rsplit(maxsplit=1)[0]
    return head.rstrip() + DOTS


def _without_marks(markdown: str) -> str:
    return MARKS.sub(_show_mark, markdown)


def _show_mark(mark: re.Match[str]) -> str:
    if mark["text"] is not None:
        return _without_marks(mark["text"])
    return mark["block"] or mark["span"] or ""
