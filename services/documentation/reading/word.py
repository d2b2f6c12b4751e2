"""The reader of Word's DOCX."""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Iterator, Mapping
from typing import Any, Final

from pgcorpus.services.documentation.reading.document import ReadDocument, Unreadable
from pgcorpus.services.documentation.reading.extraction import Extraction, draw_table
from pgcorpus.services.documentation.reading.extras import require_extra

MAX_UNPACKED_BYTES: Final = 256 * 1024**2
"""All members together, pictures included: python-docx unpacks them all."""

MAX_XML_BYTES: Final = 32 * 1024**2
"""A member that is parsed: as a tree it takes some ten times its size. Books have 5 MiB."""

MAX_MEMBERS: Final = 10_000
"""Files in the archive. Real documents have a few, and one for each picture."""

MAX_CELLS: Final = 200_000
"""Cells of one table, as in Markdown."""

MAX_STYLES_ABOVE: Final = 20
"""Styles that a style is based on, one on another. Word allows eleven."""

_W: Final = "{http://schemas.openxmlformats.org/wordprocessingml/2006/main}"
_FALLBACK: Final = "{http://schemas.openxmlformats.org/markup-compatibility/2006}Fallback"
_HEADING: Final = re.compile(r"heading ([1-9])", re.IGNORECASE)
_CONTENT_TYPE: Final = "application/vnd.openxmlformats-officedocument.wordprocessingml.document"
_PROPERTIES: Final = ("title", "author", "subject", "keywords", "language", "created", "modified")


def read_word(content: bytes) -> ReadDocument:
    """Read a DOCX: headings by their styles, paragraphs, lists, tables.

    What was deleted under revision, text in footnotes, headers and footers is left out.

    Raises:
        Unreadable: The extra ``documents`` is missing, the file is damaged or encrypted, or it
            unpacks to more than ``MAX_UNPACKED_BYTES``.
    """
    _refuse_bomb(content)
    with require_extra():
        import docx  # noqa: PLC0415
    try:
        document = docx.Document(io.BytesIO(content))
        properties = _read_properties(document.core_properties)
        levels = _find_levels(document.styles.element)
    except Unreadable:
        raise
    except Exception as error:
        # A damaged file makes python-docx raise anything, KeyError and AttributeError included.
        raise Unreadable(f"it is damaged, or no DOCX: {type(error).__name__}") from error
    extraction = Extraction()
    items: list[str] = []
    for element in _blocks(document.element.body):
        if element.tag == f"{_W}tbl":
            _close_list(extraction, items)
            extraction.add("table", draw_table(list(_rows(element))))
            continue
        text = _words(element)
        if not text.strip():
            continue
        style = _value(element, "pPr/pStyle")
        level = levels.get(style, 0)
        if level:
            _close_list(extraction, items)
            extraction.add_heading(text, level)
        elif (depth := _find_list_depth(element, style)) is not None:
            items.append("  " * min(depth, 9) + "- " + " ".join(text.split()))
        else:
            _close_list(extraction, items)
            extraction.add("paragraph", text)
    _close_list(extraction, items)
    return extraction.finish(_CONTENT_TYPE, title=properties.get("title"), metadata=properties)


def _refuse_bomb(content: bytes) -> None:
    """Raise if the archive unpacks to too much. Python reads no more of a member than it says."""
    if content.startswith(b"\xd0\xcf\x11\xe0"):
        raise Unreadable("it is encrypted, or of Word before 2007: save it as DOCX, unprotected")
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError, EOFError) as error:
        raise Unreadable("it is damaged, or no DOCX: it is no zip archive") from error
    if len(members) > MAX_MEMBERS:
        raise Unreadable(f"it holds more than {MAX_MEMBERS:,} files")
    if sum(member.file_size for member in members) > MAX_UNPACKED_BYTES:
        raise Unreadable(f"it unpacks to more than {MAX_UNPACKED_BYTES // 1024**2} MiB")
    parsed = (m for m in members if m.filename.lower().endswith((".xml", ".rels")))
    if any(member.file_size > MAX_XML_BYTES for member in parsed):
        raise Unreadable(f"its text unpacks to more than {MAX_XML_BYTES // 1024**2} MiB")


def _read_properties(properties: Any) -> dict[str, str]:
    found = {}
    for name in _PROPERTIES:
        try:
            value = getattr(properties, name)
        except ValueError:  # a date that is none
            continue
        if value:
            found[name] = value.isoformat() if hasattr(value, "isoformat") else str(value).strip()
    return {name: value for name, value in found.items() if value}


def _find_levels(styles: Any) -> dict[str, int]:
    """Return the level of each style of headings. Their names are English in every language."""
    above: dict[str, str] = {}
    levels: dict[str, int] = {}
    for style in styles.iterchildren(f"{_W}style"):
        key = style.get(f"{_W}styleId", "")
        above[key] = _value(style, "basedOn")
        name = _value(style, "name").lower()
        heading = _HEADING.fullmatch(name)
        outline = _value(style, "pPr/outlineLvl")
        if heading:
            levels[key] = int(heading[1])
        elif name == "title":
            levels[key] = 1
        elif outline in set("012345678"):
            levels[key] = int(outline) + 1
    return {key: level for key in above if (level := _inherit(key, above, levels))}


def _inherit(key: str, above: Mapping[str, str], levels: Mapping[str, int]) -> int:
    for _ in range(MAX_STYLES_ABOVE):
        if key in levels:
            return levels[key]
        key = above.get(key, "")
    return 0


def _value(element: Any, path: str) -> str:
    for name in path.split("/"):
        element = element.find(_W + name)
        if element is None:
            return ""
    return element.get(f"{_W}val") or ""


def _blocks(body: Any) -> Iterator[Any]:
    """Yield the paragraphs and tables of a body, those in content controls included."""
    left = [body.iterchildren()]
    while left:
        element = next(left[-1], None)
        if element is None:
            left.pop()
        elif element.tag in {f"{_W}p", f"{_W}tbl"}:
            yield element
        elif element.tag in {f"{_W}sdt", f"{_W}sdtContent", f"{_W}customXml", f"{_W}ins"}:
            left.append(element.iterchildren())


def _rows(table: Any) -> Iterator[list[str]]:
    """Yield the texts of a table's cells as they are stored: a merged cell once."""
    count = 0
    for row in table.iter(f"{_W}tr"):
        if next(row.iterancestors(f"{_W}tbl")) is not table:
            continue  # of a table in a cell, whose words the cell has
        cells = [_words(cell) for cell in row.iterchildren(f"{_W}tc", f"{_W}sdt")]
        count += len(cells)
        if count > MAX_CELLS:
            raise Unreadable(f"a table has more than {MAX_CELLS:,} cells")
        yield cells


def _words(element: Any) -> str:
    """Return the words of a paragraph or a cell. Deleted ones are elements of another name."""
    found = []
    for each in element.iter(f"{_W}t", f"{_W}tab", f"{_W}br", f"{_W}cr", f"{_W}p"):
        if each.tag == f"{_W}t":
            if next(each.iterancestors(_FALLBACK), None) is None:  # else said twice
                found.append(each.text or "")
        elif each.tag == f"{_W}tab":
            if each.getparent().tag == f"{_W}r":  # not a tab stop
                found.append("\t")
        elif each is not element:
            found.append("\n")
    return "".join(found).strip("\n")


def _find_list_depth(element: Any, style: str) -> int | None:
    numbering = element.find(f"{_W}pPr/{_W}numPr")
    if numbering is not None and _value(numbering, "numId") != "0":  # 0 takes it out of the list
        level = _value(numbering, "ilvl")
        return int(level) if level in set("0123456789") else 0
    return 0 if style.startswith("List") and numbering is None else None


def _close_list(extraction: Extraction, items: list[str]) -> None:
    extraction.add("list", "\n".join(items))
    items.clear()
