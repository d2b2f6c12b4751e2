"""The formats of documents, and the reader of each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Final, Literal

from pgcorpus.services.documentation.reading.decoding import decode
from pgcorpus.services.documentation.reading.document import ReadDocument, Unreadable
from pgcorpus.services.documentation.reading.html import read_html
from pgcorpus.services.documentation.reading.markdown import read_markdown
from pgcorpus.services.documentation.reading.notebook import read_notebook
from pgcorpus.services.documentation.reading.pdf import read_pdf
from pgcorpus.services.documentation.reading.plain import read_plain
from pgcorpus.services.documentation.reading.restructuredtext import read_restructuredtext
from pgcorpus.services.documentation.reading.source import CONTENT_TYPES, read_source
from pgcorpus.services.documentation.reading.word import read_word

Format = Literal[
    "markdown", "html", "restructuredtext", "plain", "pdf", "word", "notebook", "source"
]

MAX_DOCUMENT_BYTES: Final = 64 * 1024**2
"""A larger file is refused. Books with pictures have 50 MB; of text, most readers take less."""

SUFFIXES: Final[dict[str, Format]] = {
    ".md": "markdown",
    ".markdown": "markdown",
    ".mdown": "markdown",
    ".mdx": "markdown",
    ".mkd": "markdown",
    ".html": "html",
    ".htm": "html",
    ".xhtml": "html",
    ".rst": "restructuredtext",
    ".txt": "plain",
    ".text": "plain",
    ".pdf": "pdf",
    ".docx": "word",
    ".ipynb": "notebook",
    **dict.fromkeys(CONTENT_TYPES, "source"),
}
"""The format of a file by its suffix, in lower case."""

_HEAD_BYTES: Final = 1024


def is_readable(name: str) -> bool:
    """Return whether a file of that name is of a known format, by its suffix.

    A file without a suffix is not taken from a folder, but is read where it is asked for.
    """
    return PurePosixPath(name).suffix.lower() in SUFFIXES


def read_document(content: bytes, *, name: str, base: str | None = None) -> ReadDocument:
    """Read a document. The same bytes give the same document; nothing is executed or fetched.

    Args:
        content: The bytes of the file.
        name: Its name or path. The suffix says the format; without one, the content does.
        base: The address of the document itself, by which its relative links are made absolute. It
            goes before an address that the document names as its own.

    Raises:
        Unreadable: It is of no known format, no text, damaged, or beyond a limit of its format.
    """
    if len(content) > MAX_DOCUMENT_BYTES:
        raise Unreadable(
            f"the file has {len(content) / 1024**2:,.0f} MiB; at most "
            f"{MAX_DOCUMENT_BYTES // 1024**2} are read: split it"
        )
    suffix = PurePosixPath(name).suffix.lower()
    kind = SUFFIXES.get(suffix) if suffix else _find_format(content)
    if kind is None:
        known = " ".join(sorted(SUFFIXES))
        raise Unreadable(f"the suffix {suffix} is of no known format; known are {known}")
    return _READERS[kind](_File(content, suffix, base))


@dataclass(frozen=True)
class _File:
    content: bytes
    suffix: str
    base: str | None

    @property
    def text(self) -> str:
        return decode(self.content)


_READERS: Final[dict[Format, Callable[[_File], ReadDocument]]] = {
    "markdown": lambda file: read_markdown(file.text, base=file.base),
    "html": lambda file: read_html(decode(file.content, may_declare=True), base=file.base),
    "restructuredtext": lambda file: read_restructuredtext(file.text),
    "plain": lambda file: read_plain(file.text),
    "pdf": lambda file: read_pdf(file.content),
    "word": lambda file: read_word(file.content),
    "notebook": lambda file: read_notebook(file.text, base=file.base),
    "source": lambda file: read_source(file.text, suffix=file.suffix),
}


def _find_format(content: bytes) -> Format:
    """Return the format of a file that has no suffix."""
    head = content[:_HEAD_BYTES].removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if head.startswith(b"%pdf-"):
        return "pdf"
    if head.startswith(b"pk\x03\x04"):
        return "word"
    if head.startswith((b"<!doctype html", b"<html")):
        return "html"
    return "source" if head.startswith(b"#!") else "plain"
