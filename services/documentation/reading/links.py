"""Links that lead from a document, made absolute."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import urljoin

from markdown_it.common.utils import normalizeReference

_LINK: Final = re.compile(
    r"""
      (?P<code>(?<!`)(?P<ticks>`{1,20})(?!`).{1,2000}?(?<!`)(?P=ticks)(?!`))
    | (?P<escaped>\\[\[\]\\`])
    | (?P<inline>\]\([ ]{0,9})(?P<target><[^<>\n]*>|[^\s()<>]*(?:\([^\s()]*\)[^\s()<>]*)*)
    | (?P<attribute>\b(?:href|src)=)(?P<quote>["'])(?P<value>[^"'<>\n]*)(?P=quote)
    | \[(?P<words>[^\[\]]{1,500})\](?:\[(?P<label>[^\[\]]{0,500})\])?(?![\(\[:])
    """,
    re.VERBOSE | re.IGNORECASE | re.DOTALL,
)
"""A link of Markdown with its target, or what only looks like one. Every part is bounded, or ends
where the next could begin."""

_FENCED: Final = re.compile(r"^(?P<before>[ \t>]*(?:[-*+]|\d{1,9}[.)])?[ \t>]*)(?:`{3,}|~{3,})")


def join(base: str, target: str) -> str:
    """Return *target* as it is meant in a document at *base*; what is no address stays as it is."""
    try:
        return urljoin(base, target)
    except ValueError:  # such as an open bracket in the host
        return target


def make_links_absolute(text: str, base: str, references: Mapping[str, Any]) -> str:
    """Return a block of Markdown with absolute links; code stays as it is.

    Args:
        text: The block.
        base: The address of the document.
        references: The definitions of the document by normalized label, as markdown-it has them.
            A link by reference becomes one with its target in place, since the definition stands
            in no block.
    """

    def replace(match: re.Match[str]) -> str:
        whole = match[0]
        if match["inline"]:
            target = match["target"]
            bare = target[1:-1] if target.startswith("<") else target
            joined = join(base, bare) if bare else bare
            return match["inline"] + (f"<{joined}>" if target != bare else joined)
        if match["attribute"]:
            quote = match["quote"]
            return f"{match['attribute']}{quote}{join(base, match['value'])}{quote}"
        if references and match["words"]:
            found = references.get(normalizeReference(match["label"] or match["words"]))
            if found is not None:
                return f"[{match['words']}]({join(base, found['href'])})"
        return whole

    has_tag = "<" in text and "=" in text
    if not ("](" in text or has_tag or (references and "[" in text)):
        return text  # most blocks
    if "```" not in text and "~~~" not in text:
        return _LINK.sub(replace, text)
    return "".join(
        piece if is_code else _LINK.sub(replace, piece) for is_code, piece in _split_fences(text)
    )


def _split_fences(text: str) -> list[tuple[bool, str]]:
    """Return the pieces of a list or a quote, and whether each stands between code fences."""
    pieces: list[tuple[bool, str]] = []
    held: list[str] = []
    within = False
    for line in text.splitlines(keepends=True):
        if _FENCED.match(line):
            if within:
                held.append(line)
            pieces.append((within, "".join(held)))
            held = [] if within else [line]
            within = not within
        else:
            held.append(line)
    pieces.append((within, "".join(held)))
    return pieces
