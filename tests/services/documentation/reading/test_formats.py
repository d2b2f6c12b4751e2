"""Choosing a reader, and what all readers have in common."""

from __future__ import annotations

import io
import subprocess
import sys
import zipfile

import pytest

from pgcorpus.services.documentation.reading import formats, restructuredtext
from pgcorpus.services.documentation.reading.document import Unreadable
from pgcorpus.services.documentation.reading.formats import SUFFIXES, is_readable, read_document


@pytest.mark.parametrize(
    ("name", "content", "content_type"),
    [
        ("a/b.MD", b"a", "text/markdown"),
        ("a.htm", b"a", "text/html"),
        ("a.rst", b"a", "text/x-rst"),
        ("a.txt", b"# a", "text/plain"),
        ("a.py", b"# a", "text/x-python"),
        ("README", b"# a", "text/plain"),
        ("page", b"<!DOCTYPE html><p>a", "text/html"),
        ("script", b"#!/bin/sh\n", "text/plain"),
    ],
)
def test_the_suffix_says_the_format_or_else_the_content(
    name: str, content: bytes, content_type: str
) -> None:
    """In any case of letters."""
    assert read_document(content, name=name).content_type == content_type


def test_source_code_is_parted_at_its_top_level() -> None:
    """A function stays with its body; comments are no headings."""
    code = b"# One\nimport a\n\n\ndef f():\n    x = 1\n\n    return (\n\n)\n\nclass B:\n    pass\n"

    assert [block.text for block in read_document(code, name="a.py").blocks] == [
        "# One\nimport a",
        "def f():\n    x = 1\n\n    return (\n\n)",
        "class B:\n    pass",
    ]


def test_readable_files_are_known_by_their_suffix() -> None:
    """A folder's other files are passed over."""
    assert is_readable("a/b.MD")
    assert is_readable("a.pdf")
    assert not is_readable("a.exe")
    assert not is_readable("LICENSE")
    assert all(suffix == suffix.lower() for suffix in SUFFIXES)


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.exe", b"", r"the suffix \.exe is of no known format; known are .*\.md"),
        ("a.md", b"ab\xffc", "not UTF-8: byte 0xff at offset 2"),
        ("a.md", b"\xef\xbb\xbfab\xff", "not UTF-8: byte 0xff at offset 5"),
        ("a.txt", b"\xff\xfea\x00b", "not UTF-16: byte 0x62 at offset 4"),
        ("a.txt", b"ab\0c", "it is no text: a NUL at character 2"),
        ("README", b"\x7fELF\x00\x01", "it is no text"),
    ],
)
def test_what_is_no_text_is_refused_with_its_place(name: str, content: bytes, reason: str) -> None:
    """So that it can be found and mended."""
    with pytest.raises(Unreadable, match=reason):
        read_document(content, name=name)


def test_a_file_that_is_too_large_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unread."""
    monkeypatch.setattr(formats, "MAX_DOCUMENT_BYTES", 1024)

    with pytest.raises(Unreadable, match="split it"):
        read_document(b"a" * 1025, name="a.md")


@pytest.mark.parametrize(
    ("name", "parser"), [("a.rst", "docutils"), ("a.pdf", "pypdf"), ("a.docx", "docx")]
)
def test_a_parser_that_is_not_installed_is_named(
    name: str, parser: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the command that installs it."""
    restructuredtext._load_parser.cache_clear()
    for module in [each for each in sys.modules if each.partition(".")[0] == parser]:
        monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setitem(sys.modules, parser, None)
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w") as archive:
        archive.writestr("a", "")
    content = held.getvalue() if parser == "docx" else b"a"

    with pytest.raises(Unreadable, match=r"needs pip install 'pgcorpus\[documents\]'"):
        read_document(content, name=name)


def test_heavy_parsers_are_imported_when_they_are_needed() -> None:
    """Reading Markdown takes none of them."""
    program = (
        "import sys; from pgcorpus.services.documentation.reading.formats import read_document; "
        "read_document(b'# a', name='a.md'); "
        "print({'docutils', 'pypdf', 'docx', 'lxml'} & set(sys.modules))"
    )

    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)

    assert done.stdout.strip() == b"set()"
