"""Reading DOCX."""

from __future__ import annotations

import io
import zipfile

import docx
import pytest

from pgcorpus.services.documentation.reading.document import ReadDocument, Unreadable
from pgcorpus.services.documentation.reading.formats import read_document


def make_word() -> bytes:
    """Return a document with a heading, a list and a table."""
    made = docx.Document()
    made.core_properties.title = "The title"
    made.add_heading("Part one", 1)
    made.add_paragraph("Some words.")
    made.add_paragraph("a", style="List Bullet")
    made.add_paragraph("b", style="List Bullet")
    made.add_heading("Part two", 2)
    table = made.add_table(rows=2, cols=2)
    table.cell(0, 0).text, table.cell(0, 1).text = "x", "y"
    table.cell(1, 0).text, table.cell(1, 1).text = "1", "2"
    held = io.BytesIO()
    made.save(held)
    return held.getvalue()


def change(content: bytes, name: str, new: bytes) -> bytes:
    """Return the archive with another member of that name."""
    held = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(content)) as old,
        zipfile.ZipFile(held, "w", zipfile.ZIP_DEFLATED) as made,
    ):
        for member in old.namelist():
            if member != name:
                made.writestr(member, old.read(member))
        made.writestr(name, new)
    return held.getvalue()


def read_body(body: str, prolog: str = "") -> ReadDocument:
    """Return the document with *body*, which is XML of Word."""
    xml = (
        f"<?xml version='1.0'?>{prolog}<w:document xmlns:w='http://schemas.openxmlformats.org/"
        f"wordprocessingml/2006/main'><w:body>{body}</w:body></w:document>"
    )
    return read_document(change(make_word(), "word/document.xml", xml.encode()), name="a.docx")


def test_headings_lists_and_tables_are_found() -> None:
    """By the styles of their paragraphs."""
    document = read_document(make_word(), name="a.docx")

    assert document.title == "The title"
    assert [(block.kind, block.level, block.text) for block in document.blocks] == [
        ("heading", 1, "Part one"),
        ("paragraph", 0, "Some words."),
        ("list", 0, "- a\n- b"),
        ("heading", 2, "Part two"),
        ("table", 0, "| x | y |\n| 1 | 2 |"),
    ]
    assert all(b.text == document.text[b.start : b.end] for b in document.blocks)


def test_controls_and_insertions_are_read_and_deletions_are_not() -> None:
    """As a reader sees the document with all revisions accepted."""
    document = read_body(
        "<w:sdt><w:sdtContent><w:p><w:r><w:t>in a control</w:t></w:r></w:p></w:sdtContent></w:sdt>"
        "<w:p><w:ins><w:r><w:t>new</w:t></w:r></w:ins><w:del><w:r><w:delText>old</w:delText></w:r>"
        "</w:del></w:p>"
    )

    assert document.text == "in a control\n\nnew"


def test_a_bomb_is_refused_before_it_is_unpacked() -> None:
    """By the sizes that the archive states."""
    zeros = b"<a>" + b" " * (40 * 1024**2) + b"</a>"

    with pytest.raises(Unreadable, match="its text unpacks to more than 32 MiB"):
        read_document(change(make_word(), "word/document.xml", zeros), name="a.docx")


def test_entities_are_neither_expanded_nor_loaded() -> None:
    """A billion laughs, and a file of the server."""
    laughs = "<!ENTITY a 'ha'>" + "".join(
        f"<!ENTITY {after} '{f'&{before};' * 10}'>"
        for before, after in zip("abcdefgh", "bcdefghi", strict=True)
    )
    prolog = f"<!DOCTYPE d [{laughs}<!ENTITY f SYSTEM 'file:///etc/passwd'>]>"
    try:
        text = read_body("<w:p><w:r><w:t>x &i; &f;</w:t></w:r></w:p>", prolog).text
    except Unreadable:
        text = ""

    assert "haha" not in text
    assert "root:" not in text


def test_cells_that_claim_to_span_a_million_columns_are_one() -> None:
    """The text is as stored."""
    text = "<w:p><w:r><w:t>x</w:t></w:r></w:p>"
    cell = f"<w:tc><w:tcPr><w:gridSpan w:val='1000000000'/></w:tcPr>{text}</w:tc>"

    assert read_body(f"<w:tbl><w:tr>{cell}{cell}</w:tr></w:tbl>").text == "| x | x |"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "no zip archive"),
        (b"PK\x03\x04 rubbish", "no zip archive"),
        (make_word()[:5_000], "no zip archive"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "encrypted, or of Word before 2007"),
        (change(make_word(), "word/document.xml", b"<w"), "damaged"),
        (change(make_word(), "word/document.xml", b"<a>" * 100_000), "damaged"),
    ],
)
def test_a_damaged_file_is_refused(content: bytes, reason: str) -> None:
    """With what is known of it."""
    with pytest.raises(Unreadable, match=reason):
        read_document(content, name="a.docx")
