"""Blocks and the text that they are of, whatever the text is."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgcorpus.services.documentation.reading.document import ReadDocument
from pgcorpus.services.documentation.reading.formats import read_document

PIECES = (
    "# Title",
    "## A *marked* heading ##",
    "Setext\n======",
    "Lower\n---",
    "A paragraph of words.",
    "two\nlines",
    "- a\n- b\n  - c\n\n  more",
    "1. one\n2. two",
    "* tight\n* list\nlazy",
    "```python\n# no heading\n\nx = 1\n```",
    "~~~\nopen",
    "    indented code",
    "| a | b |\n|---|---|\n| 1 | 2 |",
    "> quoted\nlazily\n> # inside",
    "<div>\n# raw\n</div>",
    "<!-- a comment -->",
    "[label]: https://example.org",
    "---",
    "***",
    "\ttab",
    "emoji 🎉 and é",
    "",
    "   ",
)
markdown = st.lists(st.sampled_from(PIECES) | st.text(max_size=30)).map("\n\n".join) | st.lists(
    st.sampled_from(PIECES)
).map("\n".join)
TEXTUAL = ("a.md", "a.txt", "a.py", "a.html", "a.rst", "README")


def assert_blocks_are_of_the_text(document: ReadDocument) -> None:
    """Blocks are slices of the text, not empty, in order and apart."""
    after = 0
    for block in document.blocks:
        assert after <= block.start < block.end <= len(document.text)
        assert block.text == document.text[block.start : block.end]
        assert block.text.strip()
        assert (block.kind == "heading") == (block.level > 0)
        after = block.end


@pytest.mark.parametrize("name", TEXTUAL)
@given(text=markdown)
def test_blocks_are_slices_of_the_text_in_order_and_apart(name: str, text: str) -> None:
    """Whatever the format: a chunk can be found in its document by its offsets."""
    content = text.replace("\0", "").encode(errors="replace")

    document = read_document(content, name=name)

    assert_blocks_are_of_the_text(document)
    assert read_document(content, name=name) == document


@given(
    headings=st.lists(
        st.tuples(
            st.integers(1, 6), st.text(st.sampled_from("abc xyz0 12"), min_size=1, max_size=20)
        ).filter(lambda heading: heading[1].strip()),
        max_size=8,
    ),
    filling=st.sampled_from([each for each in PIECES if "~~~" not in each and "\n-" not in each]),
)
def test_every_heading_is_found_at_its_line(headings: list[tuple[int, str]], filling: str) -> None:
    """With its level and its words, whatever stands between headings."""
    lines = [f"{'#' * level} {words}\n\n{filling}\n\n" for level, words in headings]
    text = "".join(lines)

    document = read_document(text.encode(), name="a.md")

    offset = 0
    found = {block.start: block for block in document.blocks if block.kind == "heading"}
    for (level, words), line in zip(headings, lines, strict=True):
        assert found[offset].level == level
        assert found[offset].title == " ".join(words.split())
        offset += len(line)


@given(text=markdown)
def test_no_word_of_plain_text_is_lost(text: str) -> None:
    """Only white space is in no block."""
    content = text.replace("\0", "").encode(errors="replace")

    for name in ("a.txt", "a.py"):
        document = read_document(content, name=name)
        blocks = "".join(block.text for block in document.blocks)

        assert "".join(blocks.split()) == "".join(document.text.split())
