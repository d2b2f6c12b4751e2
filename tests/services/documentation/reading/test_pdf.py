"""Reading PDF."""

from __future__ import annotations

import io
import random

import pypdf
import pytest

from pgcorpus.services.documentation.reading import pdf
from pgcorpus.services.documentation.reading.document import Unreadable
from pgcorpus.services.documentation.reading.formats import read_document

_SHAPE = "/MediaBox [0 0 612 792] /Resources << /Font << /F1 3 0 R >> >>"


def make_pdf(*pages: str) -> bytes:
    """Return a PDF with a text layer, a line of it for each line."""
    count = len(pages)
    kids = " ".join(f"{4 + 2 * index} 0 R" for index in range(count))
    objects = [
        "<< /Type /Catalog /Pages 2 0 R >>",
        f"<< /Type /Pages /Kids [{kids}] /Count {count} >>",
        "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    for index, page in enumerate(pages):
        shown = " ".join(f"({line}) Tj T*" for line in page.split("\n"))
        stream = f"BT /F1 12 Tf 14 TL 72 720 Td {shown} ET"
        objects += [
            f"<< /Type /Page /Parent 2 0 R /Contents {5 + 2 * index} 0 R {_SHAPE} >>",
            f"<< /Length {len(stream)} >>\nstream\n{stream}\nendstream",
        ]
    content, offsets = b"%PDF-1.4\n", []
    for number, each in enumerate(objects, 1):
        offsets.append(len(content))
        content += f"{number} 0 obj\n{each}\nendobj\n".encode()
    table = "".join(f"{offset:010} 00000 n \n" for offset in offsets)
    tail = f"xref\n0 {len(offsets) + 1}\n0000000000 65535 f \n{table}"
    tail += (
        f"trailer << /Size {len(offsets) + 1} /Root 1 0 R >>\nstartxref\n{len(content)}\n%%EOF\n"
    )
    return content + tail.encode()


def encrypt(content: bytes, password: str) -> bytes:
    """Return the same PDF behind a password."""
    writer = pypdf.PdfWriter(clone_from=io.BytesIO(content))
    writer.encrypt(password, owner_password="owner", algorithm="RC4-128")
    held = io.BytesIO()
    writer.write(held)
    return held.getvalue()


def test_blocks_have_the_numbers_of_their_pages() -> None:
    """And words that a line divided are whole."""
    document = read_document(make_pdf("A docu-\nment here", "Second"), name="a.pdf")

    assert [(block.page, block.text) for block in document.blocks] == [
        (1, "A document here"),
        (2, "Second"),
    ]
    assert document.metadata["pages"] == 2
    assert all(b.text == document.text[b.start : b.end] for b in document.blocks)


def test_a_file_behind_a_password_is_refused() -> None:
    """One that only forbids printing is read."""
    content = make_pdf("words")

    assert read_document(encrypt(content, ""), name="a.pdf").text == "words"
    with pytest.raises(Unreadable, match="encrypted: save it without its password"):
        read_document(encrypt(content, "secret"), name="a.pdf")


def test_a_scan_is_refused() -> None:
    """It has no text."""
    with pytest.raises(Unreadable, match="no text layer"):
        read_document(make_pdf(""), name="a.pdf")


def test_a_damaged_file_is_refused_or_read() -> None:
    """Never with an error of the parser's own."""
    content = make_pdf("some words", "more")
    flipped = bytearray(content)
    for position in random.Random(1).sample(range(len(flipped)), 40):  # noqa: S311 - a fixed seed
        flipped[position] ^= 0x55
    for damaged in (b"", b"%PDF-1.4", content[: len(content) // 2], bytes(flipped)):
        answer = pdf.extract(damaged)

        assert "unreadable" in answer or "pages" in answer
    with pytest.raises(Unreadable, match="damaged, or no PDF"):
        read_document(b"%PDF-1.4 rubbish", name="a.pdf")


def test_a_file_with_too_many_pages_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """With what to do about it."""
    monkeypatch.setattr(pdf, "MAX_PAGES", 1)

    assert pdf.extract(make_pdf("a", "b")) == {"unreadable": "it has more than 1 pages: split it"}


def test_a_file_that_keeps_the_parser_busy_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a time; the child does not outlive it."""
    monkeypatch.setattr(pdf, "MAX_SECONDS", 0.01)

    with pytest.raises(Unreadable, match=r"more than 0\.01 seconds"):
        read_document(make_pdf("a"), name="a.pdf")
