"""Reading notebooks."""

from __future__ import annotations

import json
from typing import Any

import pytest

from pgcorpus.services.documentation.reading.document import ReadDocument, Unreadable
from pgcorpus.services.documentation.reading.formats import read_document


def read(*cells: dict[str, Any], base: str | None = None) -> ReadDocument:
    """Return the document of a notebook with *cells*."""
    notebook = {"cells": cells, "metadata": {"language_info": {"name": "python"}}, "nbformat": 4}
    return read_document(json.dumps(notebook).encode(), name="a.ipynb", base=base)


def test_cells_are_read_in_order() -> None:
    """Markdown as Markdown; comments in code are no headings."""
    document = read(
        {"cell_type": "markdown", "source": ["# Title\n", "\n", "[a](b)"]},
        {
            "cell_type": "code",
            "source": "# comment\nx",
            "outputs": [
                {"output_type": "stream", "text": ["\x1b[31m1\x1b[0m\n"]},
                {"data": {"image/png": "AAAA", "text/plain": "2"}},
            ],
        },
        base="https://example.org/n/a.ipynb",
    )

    assert [(block.kind, block.text) for block in document.blocks] == [
        ("heading", "# Title"),
        ("paragraph", "[a](https://example.org/n/b)"),
        ("code", "# comment\nx"),
        ("code", "1\n\n2"),
    ]
    assert document.title == "Title"
    assert document.metadata == {"programming_language": "python"}


def test_what_was_printed_is_bounded() -> None:
    """A log is no document."""
    document = read({"cell_type": "code", "source": "", "outputs": [{"text": "x" * 100_000}]})

    assert len(document.text) == 2_002


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"{}", b'{"cells": 1}', b'{"cells": ' + b"[" * 100_000, b'"x"', b"nul"]
)
def test_what_is_no_notebook_is_refused(content: bytes) -> None:
    """Whatever it is."""
    with pytest.raises(Unreadable, match="it is no notebook"):
        read_document(content, name="a.ipynb")


@pytest.mark.parametrize(
    "cell", [{}, {"cell_type": "code", "source": 1, "outputs": 2}, {"source": {}}]
)
def test_cells_without_sense_are_passed_over(cell: dict[str, Any]) -> None:
    """They have no text."""
    assert read(cell).blocks == ()
