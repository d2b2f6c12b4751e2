"""The block rules of markdown-it, asked only about lines with which they can begin.

The parser asks every rule about every line, and most lines begin with a letter, which most rules
refuse after some work. A look at the first character before gives the same blocks in about half the
time; a test compares them with those of the parser as it is.
"""

from __future__ import annotations

from typing import Final

from markdown_it import MarkdownIt, rules_block
from markdown_it.parser_block import RuleFuncBlockType
from markdown_it.rules_block import StateBlock

_ANYWHERE: Final = ["paragraph", "reference", "blockquote", "list"]
_OUTSIDE_LISTS: Final = ["paragraph", "reference", "blockquote"]

_BEGINNINGS: Final[dict[str, tuple[RuleFuncBlockType, str, list[str]]]] = {
    "fence": (rules_block.fence, "`~", _ANYWHERE),
    "blockquote": (rules_block.blockquote, ">", _ANYWHERE),
    "hr": (rules_block.hr, "*-_", _ANYWHERE),
    "list": (rules_block.list_block, "*+-0123456789", _OUTSIDE_LISTS),
    "reference": (rules_block.reference, "[", []),
    "html_block": (rules_block.html_block, "<", _OUTSIDE_LISTS),
    "heading": (rules_block.heading, "#", _OUTSIDE_LISTS),
}
"""Name of a rule → the rule, the characters it can begin with, and what it can interrupt."""

_MARKS: Final = frozenset("=|:" + "".join(beginnings for _, beginnings, _ in _BEGINNINGS.values()))
"""Characters with which a line may do else than go on with a paragraph."""


def make_parser() -> MarkdownIt:
    """Return a parser of CommonMark with GitHub's tables that finds blocks alone.

    What is within the blocks stays as the author wrote it. The text must have line feeds between
    its lines, and no NUL.
    """
    parser = MarkdownIt("commonmark").enable("table")
    parser.disable(["normalize", "inline", "text_join"])
    ruler = parser.block.ruler
    for name, (rule, beginnings, interrupts) in _BEGINNINGS.items():
        ruler.at(name, _ask_at(rule, beginnings), {"alt": interrupts})
    ruler.at("code", _find_code)
    ruler.at("table", _find_table, {"alt": ["paragraph", "reference"]})
    ruler.at("lheading", _find_underlined)
    return parser


def _ask_at(rule: RuleFuncBlockType, beginnings: str) -> RuleFuncBlockType:
    first = frozenset(beginnings)

    def ask(state: StateBlock, start: int, end: int, silent: bool) -> bool:
        position = state.bMarks[start] + state.tShift[start]
        return state.src[position : position + 1] in first and rule(state, start, end, silent)

    return ask


def _find_code(state: StateBlock, start: int, end: int, silent: bool) -> bool:
    indented = state.sCount[start] - state.blkIndent > 3  # noqa: PLR2004 - as CommonMark says
    return indented and rules_block.code(state, start, end, silent)


def _find_table(state: StateBlock, start: int, end: int, silent: bool) -> bool:
    """Look at the line below, which draws the columns."""
    if start + 2 > end:
        return False
    position = state.bMarks[start + 1] + state.tShift[start + 1]
    return state.src[position : position + 1] in {"|", "-", ":"} and rules_block.table(
        state, start, end, silent
    )


def _find_underlined(state: StateBlock, start: int, end: int, silent: bool) -> bool:
    """Look for a line below that could underline a heading, or begin something else."""
    source, begins, shifts, ends = state.src, state.bMarks, state.tShift, state.eMarks
    for line in range(start + 1, end):
        position = begins[line] + shifts[line]
        if position >= ends[line]:
            return False
        if source[position] in _MARKS:
            return rules_block.lheading(state, start, end, silent)
    return False
