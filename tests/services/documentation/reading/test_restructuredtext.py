"""Reading reStructuredText."""

from __future__ import annotations

import pytest

from pgcorpus.services.documentation.reading.document import ReadDocument, Unreadable
from pgcorpus.services.documentation.reading.formats import read_document


def read(text: str) -> ReadDocument:
    """Return the document that *text* is."""
    return read_document(text.encode(), name="a.rst")


def blocks(text: str) -> list[tuple[str, str]]:
    """Return kind and text of each block."""
    return [(block.kind, block.text) for block in read(text).blocks]


def test_sections_are_headings_and_fields_metadata() -> None:
    """Levels by nesting, anchors as docutils makes them."""
    document = read(":Author: A B\n\nTitle\n=====\n\nwords\n\nPart *one*\n-----------\n\nx\n")
    found = [(b.level, b.title, b.anchor) for b in document.blocks if b.kind == "heading"]

    assert document.title == "Title"
    assert document.metadata == {"author": "A B"}
    assert found == [(1, "Title", "title"), (2, "Part one", "part-one")]


def test_code_lists_and_tables_are_whole() -> None:
    """With what is nested in them."""
    text = (
        "Code::\n\n    # no heading\n\n    x\n\n- a\n\n  - b\n- c\n\n3. d\n\n"
        "=== ===\nx   y\n=== ===\n1   2\n=== ===\n\n"
        ".. code-block:: python\n   :linenos:\n\n   y = 1\n"
    )

    assert blocks(text) == [
        ("paragraph", "Code:"),
        ("code", "# no heading\n\nx"),
        ("list", "- a\n  - b\n- c"),
        ("list", "3. d"),
        ("table", "| x | y |\n|---|---|\n| 1 | 2 |"),
        ("code", "y = 1"),
    ]


def test_directives_and_roles_of_sphinx_are_read() -> None:
    """Their text is what a reader looks for; lists of files are not."""
    text = (
        ".. toctree::\n   :maxdepth: 2\n\n   a\n   b\n\n"
        ".. py:function:: open(path)\n   :async:\n\n"
        "   Opens :class:`~io.File` at :ref:`a place <x>`.\n\n"
        "   .. versionadded:: 3.2\n"
    )

    assert blocks(text) == [
        ("paragraph", "open(path)"),
        ("paragraph", "Opens io.File at a place."),
        ("paragraph", "3.2"),
    ]


def test_nothing_is_inserted_and_nothing_printed(capfd: pytest.CaptureFixture[str]) -> None:
    """Neither files nor raw parts, and errors of the markup stay quiet."""
    text = (
        ".. include:: /etc/passwd\n\n.. raw:: html\n   :file: /etc/passwd\n\n"
        ".. csv-table::\n   :file: /etc/passwd\n\n.. figure:: http://127.0.0.1:1/a.png\n\n"
        "*open `open |open| `a <b\n\nTitle\n==\n"
    )

    found = read(text).text

    assert "root" not in found
    assert "open" in found
    assert capfd.readouterr() == ("", "")


def test_substitutions_are_not_multiplied() -> None:
    """Forty doublings would be 10¹² words."""
    text = "\n".join(f".. |a{n}| replace:: |a{n + 1}| |a{n + 1}|" for n in range(40)) + "\n\n|a0|\n"

    assert read(text).text == "a0"


@pytest.mark.parametrize(
    "text", ["*a " * 20_000, "`a " * 20_000, "|a " * 20_000, "`<" * 20_000, "a_ " * 20_000]
)
def test_markup_without_an_end_is_read_in_time(text: str) -> None:
    """A paragraph with too much of it stays as it is written."""
    assert read(text).text == text.strip()


def test_a_table_that_would_take_minutes_is_refused() -> None:
    """With what to do about it."""
    with pytest.raises(Unreadable, match="2,000 lines: split it"):
        read("+-+\n" + "| |\n+-+\n" * 2_000)


def test_what_is_nested_too_deep_is_refused_or_read() -> None:
    """Without a stack overflow."""
    text = "\n\n".join("  " * depth + "- a" for depth in range(400))

    with pytest.raises(Unreadable, match="nested deeper"):
        read(text)
