"""The reader of reStructuredText, as docutils parses it and as Sphinx extends it."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, Final

from pgcorpus.services.documentation.reading.document import Kind, ReadDocument, Unreadable
from pgcorpus.services.documentation.reading.extraction import Extraction, draw_table
from pgcorpus.services.documentation.reading.extras import require_extra
from pgcorpus.services.documentation.reading.front_matter import find_source_url

if TYPE_CHECKING:
    from docutils import nodes

MAX_CHARACTERS: Final = 2 * 1024**2
"""docutils reads some 0.3 MB in a second. The longest changelogs have a megabyte."""

MAX_MARKS: Final = 300
"""Characters of markup in a paragraph. For each that nothing closes docutils looks at all others:
8,000 would take it four seconds. A paragraph with more stays as it is written."""

MAX_TABLE_LINES: Final = 2_000
"""Lines of a table: docutils takes time by their square. Real tables have a few hundred."""

MAX_RESCUES: Final = 10
"""Directives within one another that docutils does not know. Real ones have three; what is deeper
is read as code."""

_SETTINGS: Final = {
    "_disable_config": True,  # no docutils.conf of the folder or the user
    "file_insertion_enabled": False,
    "raw_enabled": False,
    "report_level": 5,  # nothing is printed
    "halt_level": 5,
    "warning_stream": "",
    "line_length_limit": MAX_CHARACTERS,
    "syntax_highlight": "none",
    "smart_quotes": False,
    "tab_width": 8,
}

_DIRECTIVE: Final = re.compile(r"\.\. +(?:\|[^|]*\| +)?([\w:+.-]+?)::[ \t]*([^\n]*)\n?")
_OPTION: Final = re.compile(r"[ \t]*:[\w-]+:(?:[ \t][^\n]*)?\n?")
_ROLE: Final = re.compile(r":[\w:+.-]{1,100}:`~?!?([^`<]*[^`<\s])(?:\s*<[^`>]*>)?`")
_CODE: Final = frozenset(
    "code code-block sourcecode highlight parsed-literal prompt productionlist doctest testcode "  # noqa: SIM905
    "ipython math graphviz mermaid".split()
)
_SILENT: Final = frozenset(
    "toctree contents include literalinclude raw image figure index tabularcolumns meta "  # noqa: SIM905
    "currentmodule module default-role highlightlang sectionauthor moduleauthor testsetup "
    "testcleanup autosummary".split()
)
"""Directives with no text for a reader: lists of files, pictures, settings."""


def read_restructuredtext(text: str) -> ReadDocument:
    """Read reStructuredText.

    Files are never included and raw parts are left out; links stay words. The text of directives
    that only Sphinx knows is read, too. The fields at the top are metadata.

    Args:
        text: With line feeds between lines.

    Raises:
        Unreadable: The extra ``documents`` is missing, it has more than ``MAX_CHARACTERS``, or is
            nested deeper than the parser can follow.
    """
    if len(text) > MAX_CHARACTERS:
        raise Unreadable(f"it has more than {MAX_CHARACTERS:,} characters: split it")
    _refuse_tables(text)
    page = _Page()
    try:
        page.read(_parse(text))
    except RecursionError as error:
        raise Unreadable("it is nested deeper than its parser can follow") from error
    return page.extraction.finish(
        "text/x-rst", metadata=page.metadata, source_url=find_source_url(page.metadata)
    )


def _refuse_tables(text: str) -> None:
    lines = 0
    for line in text.split("\n"):
        lines = lines + 1 if line.lstrip()[:1] in {"+", "|"} else 0
        if lines > MAX_TABLE_LINES:
            raise Unreadable(f"a table has more than {MAX_TABLE_LINES:,} lines: split it")


@cache
def _load_parser() -> tuple[Callable[[], Any], Any]:
    """Return what makes a parser, and its settings."""
    with require_extra():
        from docutils import nodes  # noqa: PLC0415
        from docutils.frontend import get_default_settings  # noqa: PLC0415
        from docutils.parsers.rst import Parser, states  # noqa: PLC0415

    class Inliner:
        """Reads the markup of paragraphs that do not have too much of it."""

        def __init__(self) -> None:
            self._inliner = states.Inliner()  # no base class: it looks for its patterns in its own

        def __getattr__(self, name: str) -> Any:
            return getattr(self._inliner, name)

        def parse(self, text: str, *arguments: Any) -> tuple[Any, Any]:
            if sum(map(text.count, "*`_|")) > MAX_MARKS:
                return [nodes.Text(text)], []
            found: tuple[Any, Any] = self._inliner.parse(text, *arguments)
            return found

    settings = get_default_settings(Parser)
    for name, value in _SETTINGS.items():
        setattr(settings, name, value)
    make_inliner: Callable[[], Any] = Inliner
    return lambda: Parser(inliner=make_inliner()), settings


def _parse(text: str) -> nodes.document:
    """Parse without the transforms: they resolve substitutions, of which bombs are made."""
    make_parser, settings = _load_parser()
    from docutils.utils import new_document  # noqa: PLC0415

    document = new_document("document", settings.copy())
    try:
        make_parser().parse(text, document)
    except RecursionError:
        raise
    except Exception as error:
        # docutils raises many kinds of errors for text that it did not expect.
        raise Unreadable(f"docutils cannot read it: {type(error).__name__}") from error
    return document


class _Page:
    """A document as its nodes are read."""

    def __init__(self) -> None:
        self.extraction = Extraction()
        self.metadata: dict[str, str] = {}
        self._rescues = 0

    def read(self, document: nodes.document) -> None:
        """Read a whole document."""
        for index, node in enumerate(document.children):
            if _is(node, "field_list") and (index == 0 or not self.extraction.has_blocks):
                self._read_fields(node)
            else:
                self._read(node, 0)

    def _read_fields(self, node: Any) -> None:
        for field in node.children:
            name, body = field.children[0].astext(), field.children[1].astext()
            self.metadata.setdefault(name.strip().lower(), " ".join(body.split()))

    def _read(self, node: Any, level: int) -> None:
        name = node.tagname
        kind = _KINDS.get(name)
        if name in _IGNORED or (name == "topic" and "contents" in node["classes"]):
            return
        if name == "section":
            anchor = next(iter(node["ids"]), None)
            self.extraction.add_heading(_words(node.children[0]), level + 1, anchor=anchor)
            self._read_all(node.children[1:], level + 1)
        elif name == "system_message":
            self._rescue(node, level)
        elif kind == "table":
            self._read_table(node)
        elif kind == "code":
            self.extraction.add("code", node.astext())
        elif kind == "paragraph":
            self.extraction.add("paragraph", _words(node))
        elif kind:
            self.extraction.add(kind, "\n".join(_lines(node, "")))
        else:
            self._read_all(node.children, level)

    def _read_all(self, nodes: Sequence[Any], level: int) -> None:
        for node in nodes:
            if not _is(node, "#text"):
                self._read(node, level)

    def _read_table(self, node: Any) -> None:
        groups = [group for group in node.children if _is(group, "tgroup")]
        for title in (child for child in node.children if _is(child, "title")):
            self.extraction.add("paragraph", _words(title))
        for group in groups:
            parts = {part.tagname: part for part in group.children}
            rows = [
                [_words(cell) for cell in row.children]
                for part in ("thead", "tbody")
                if part in parts
                for row in parts[part].children
            ]
            self.extraction.add("table", draw_table(rows, headed="thead" in parts))

    def _rescue(self, message: Any, level: int) -> None:
        """Read what docutils rejected: most often a directive that Sphinx knows."""
        literals = [child.astext() for child in message.children if _is(child, "literal_block")]
        self._rescues += 1
        for kind, text in (part for literal in literals for part in _unpack(literal)):
            if kind == "words":
                self.extraction.add("paragraph", _plain(text))
            elif kind == "code" or self._rescues > MAX_RESCUES:
                self.extraction.add("code", text)
            else:
                self._read_all(_parse(text).children, level)
        self._rescues -= 1


_IGNORED: Final = frozenset(
    "comment substitution_definition target pending raw meta image decoration transition "  # noqa: SIM905
    "docinfo header footer".split()
)
_KINDS: Final[dict[str, Kind]] = {
    **dict.fromkeys(
        "paragraph title subtitle rubric line_block caption term attribution".split(),  # noqa: SIM905
        "paragraph",
    ),
    **dict.fromkeys(("literal_block", "doctest_block", "math_block"), "code"),
    **dict.fromkeys(
        ("bullet_list", "enumerated_list", "field_list", "option_list"),
        "list",
    ),
    "block_quote": "quote",
    "table": "table",
}

_TEXTS: Final = frozenset(
    "paragraph literal_block doctest_block math_block term title attribution line".split()  # noqa: SIM905
)


def _is(node: Any, name: str) -> bool:
    return getattr(node, "tagname", "") == name


def _words(node: Any) -> str:
    if _is(node, "line_block"):
        return "\n".join(filter(None, map(_words, node.children)))
    return _plain(node.astext())


def _plain(text: str) -> str:
    """Return a text in which roles that only Sphinx knows are words."""
    return _ROLE.sub(r"\1", text) if "`" in text else text


def _lines(node: Any, indent: str) -> Iterator[str]:
    """Yield the lines of a list or a quote with all that is nested in it."""
    name = node.tagname
    if name in _IGNORED or name == "system_message":
        return
    if name in {"bullet_list", "enumerated_list"}:
        yield from _item_lines(node, indent)
    elif name in _TEXTS:
        yield from (indent + line for line in _plain(node.astext()).split("\n"))
    elif name in {"field", "option_list_item"}:
        words = " ".join(_plain(node.children[-1].astext()).split())
        yield f"{indent}{node.children[0].astext()}: {words}".rstrip()
    elif name == "table":
        rows = [[_words(cell) for cell in row.children] for row in node.findall(_is_row)]
        yield from (indent + line for line in draw_table(rows).split("\n"))
    else:
        inner = indent + "  " * (name == "definition")
        for child in node.children:
            yield from [indent + _plain(child)] if _is(child, "#text") else _lines(child, inner)


def _item_lines(node: Any, indent: str) -> Iterator[str]:
    for number, item in enumerate(node.children, node.get("start", 1)):
        mark = "- " if node.tagname == "bullet_list" else f"{number}. "
        inner = indent + " " * len(mark)
        lines = [line for child in item.children for line in _lines(child, inner)]
        yield indent + mark + "\n".join(lines).lstrip()


def _is_row(node: Any) -> bool:
    return _is(node, "row")


def _unpack(text: str) -> Iterator[tuple[str, str]]:
    """Yield the parts of a directive that docutils did not take: words, code, or markup."""
    directive = _DIRECTIVE.match(text)
    if directive is None:
        if not text.startswith(".. "):
            yield "words", text
        return
    name = directive[1].rpartition(":")[2].lower()
    if name in _SILENT:
        return
    rest = text[directive.end() :]
    while option := _OPTION.match(rest):
        rest = rest[option.end() :]
    body = textwrap.dedent(rest)
    if name in _CODE:
        yield "code", body
        return
    if directive[2].strip():
        yield "words", directive[2].strip()
    if body.strip():
        yield "markup", body
