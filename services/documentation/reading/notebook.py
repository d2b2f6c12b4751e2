"""The reader of Jupyter notebooks."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, Final

from pgcorpus.services.documentation.reading.document import ReadDocument, Unreadable
from pgcorpus.services.documentation.reading.extraction import Extraction
from pgcorpus.services.documentation.reading.markdown import find_blocks

MAX_OUTPUT_CHARACTERS: Final = 2_000
"""Characters of a cell's output: enough for a result, not for a log. The rest is left out."""

_ESCAPE: Final = re.compile(r"\x1b\[[0-9;?]{0,20}[A-Za-z]")
_ATTACHED: Final = re.compile(r"\(data:[^)\s]*\)|\(attachment:[^)\s]*\)")


def read_notebook(text: str, *, base: str | None = None) -> ReadDocument:
    """Read a notebook: cells of Markdown as Markdown, code and what it printed as code.

    Pictures and other data are left out, and nothing is run.

    Args:
        text: JSON, of version 3 or 4 of the format.
        base: The address of the notebook, by which its links are made absolute.

    Raises:
        Unreadable: It is no JSON, or no notebook.
    """
    try:
        notebook = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Unreadable("it is no notebook: it is not JSON, or nested too deep") from error
    extraction = Extraction()
    for cell in _cells(notebook):
        kind = cell.get("cell_type")
        source = _join(cell.get("source", cell.get("input")))
        if kind == "markdown":
            for block in find_blocks(_ATTACHED.sub("()", source), base=base):
                extraction.add(
                    block.kind,
                    block.text,
                    level=block.level,
                    title=block.title,
                    anchor=block.anchor,
                )
        elif kind == "heading":  # of version 3
            level = cell.get("level")
            extraction.add_heading(source, level if isinstance(level, int) and level > 0 else 1)
        elif kind == "code":
            extraction.add("code", source)
            extraction.add("code", _read_outputs(cell))
        elif kind == "raw":
            extraction.add("paragraph", source)
    return extraction.finish("application/x-ipynb+json", metadata=_read_metadata(notebook))


def _cells(notebook: Any) -> Iterator[dict[str, Any]]:
    held = notebook.get("cells") if isinstance(notebook, dict) else None
    if held is None and isinstance(notebook, dict):
        sheets = notebook.get("worksheets")
        if isinstance(sheets, list):
            held = [cell for sheet in sheets for cell in _list(sheet, "cells")]
    if not isinstance(held, list):
        raise Unreadable("it is no notebook: it has no cells")
    yield from (cell for cell in held if isinstance(cell, dict))


def _list(value: Any, key: str) -> list[Any]:
    found = value.get(key) if isinstance(value, dict) else None
    return found if isinstance(found, list) else []


def _join(source: Any) -> str:
    """Return a text that is stored as one, or as its lines."""
    if isinstance(source, list):
        source = "".join(line for line in source if isinstance(line, str))
    if not isinstance(source, str):
        return ""
    return source.replace("\r\n", "\n").encode(errors="replace").decode()


def _read_outputs(cell: dict[str, Any]) -> str:
    texts = []
    for output in _list(cell, "outputs"):
        if isinstance(output, dict):
            data = output.get("data")
            plain = data.get("text/plain") if isinstance(data, dict) else None
            texts.append(_join(output.get("text") or plain))
    text = _ESCAPE.sub("", "\n".join(filter(None, texts)))
    if len(text) > MAX_OUTPUT_CHARACTERS:
        text = text[:MAX_OUTPUT_CHARACTERS].rstrip() + "\n…"
    return text


def _read_metadata(notebook: dict[str, Any]) -> dict[str, str]:
    metadata = notebook.get("metadata")
    found = {}
    if isinstance(metadata, dict):
        for section, key in (("kernelspec", "language"), ("language_info", "name")):
            held = metadata.get(section)
            name = held.get(key) if isinstance(held, dict) else None
            if isinstance(name, str):
                found["programming_language"] = name
        if isinstance(metadata.get("title"), str):
            found["title"] = metadata["title"]
    return found
