"""Reading Markdown."""

from __future__ import annotations

import pytest

from pgcorpus.services.documentation.reading import markdown
from pgcorpus.services.documentation.reading.document import Block, ReadDocument, Unreadable
from pgcorpus.services.documentation.reading.formats import read_document

BASE = "https://example.org/site/guide/start.md"


def read(text: str, base: str | None = None) -> ReadDocument:
    """Return the document that *text* is."""
    return read_document(text.encode(), name="a.md", base=base)


def blocks(text: str, base: str | None = None) -> list[tuple[str, str]]:
    """Return kind and text of each block."""
    return [(block.kind, block.text) for block in read(text, base).blocks]


def heading(text: str) -> Block:
    """Return the only block of *text*, a heading."""
    (block,) = read(text).blocks
    assert block.kind == "heading"
    return block


def test_an_empty_file_has_no_blocks() -> None:
    """Nor has one of blank lines."""
    assert read("").blocks == ()
    assert read(" \n\n\t\n").blocks == ()
    assert read("").title is None


def test_comments_in_code_fences_are_no_headings() -> None:
    """Two of five lines that look like headings are comments, in some trees."""
    text = "# Install\n\n```sh\n# first\n\n# second\npip install\n```\n\n~~~~\n# third\n~~~\n~~~~\n"

    assert blocks(text) == [
        ("heading", "# Install"),
        ("code", "```sh\n# first\n\n# second\npip install\n```"),
        ("code", "~~~~\n# third\n~~~\n~~~~"),
    ]


def test_a_fence_without_an_end_runs_to_the_end() -> None:
    """As CommonMark says; no heading within it."""
    assert blocks("a\n```\n# b\n\nc") == [("paragraph", "a"), ("code", "```\n# b\n\nc")]


def test_the_same_heading_twice_is_two_headings() -> None:
    """Anchors are made from them later."""
    titles = [block.title for block in read("# Usage\n\n# Usage\n").blocks]

    assert titles == ["Usage", "Usage"]


def test_underlined_headings_are_headings() -> None:
    """Of the first and the second level."""
    found = [(block.level, block.title) for block in read("One\n===\n\nTwo\nlines\n---\n").blocks]

    assert found == [(1, "One"), (2, "Two lines")]


@pytest.mark.parametrize(
    ("text", "title"),
    [
        ("## The `code` and *words* of [a link](b) ##", "The code and words of a link"),
        ("# 🎉", "🎉"),
        ("# ???", "???"),
        ("#", ""),
        ("# ![logo](a.png) Name", "logo Name"),
        ("# snake_case and 2 * 3 & more &amp; so", "snake_case and 2 * 3 & more & so"),
        ("# ~~Old~~ <b>new</b>", "Old new"),
        (r"# \*not marked\*", "*not marked*"),
    ],
)
def test_the_title_of_a_heading_is_its_words(text: str, title: str) -> None:
    """Without markup, whatever they are."""
    assert heading(text).title == title


@pytest.mark.parametrize(
    ("text", "title", "anchor"),
    [
        ("## Install {#setup}", "Install", "setup"),
        ("## Install {: .big #setup }", "Install", "setup"),
        ('## <a name="setup"></a>Install', "Install", "setup"),
        (
            '<h2 id="setup" align="center">Install <b>it</b> &amp; go</h2>',
            "Install it & go",
            "setup",
        ),
        ("## Install {not}", "Install {not}", None),
    ],
)
def test_an_anchor_that_the_document_names_is_kept(
    text: str, title: str, anchor: str | None
) -> None:
    """It leads there on every site, whatever makes the pages."""
    found = heading(text)

    assert (found.title, found.anchor) == (title, anchor)


def test_lists_tables_and_quotes_are_whole() -> None:
    """With all that is nested in them."""
    text = (
        "- a\n\n  ```\n  # code\n  ```\n\n  - b\n    - c\n\n- d\n\n"
        "| x | y |\n|---|---|\n| 1 | 2 |\n\n> # quoted\n>\n> - e\n"
    )

    assert blocks(text) == [
        ("list", "- a\n\n  ```\n  # code\n  ```\n\n  - b\n    - c\n\n- d"),
        ("table", "| x | y |\n|---|---|\n| 1 | 2 |"),
        ("quote", "> # quoted\n>\n> - e"),
    ]


def test_html_in_markdown_stays_and_its_comments_go() -> None:
    """A table written in HTML is a table."""
    text = "<!-- hidden\n\n# no -->\n\n<table>\n<tr><td>1\n</table>\n\n<div>\nwords\n</div>\n"

    assert blocks(text) == [
        ("table", "<table>\n<tr><td>1\n</table>"),
        ("paragraph", "<div>\nwords\n</div>"),
    ]


def test_line_ends_and_byte_order_marks_change_nothing() -> None:
    """Files from Windows give the same document."""
    text = "---\ntitle: T\n---\n# A\n\nb\nc\n"
    content = text.encode()

    for other in (
        b"\xef\xbb\xbf" + content,
        content.replace(b"\n", b"\r\n"),
        content.replace(b"\n", b"\r"),
        text.encode("utf-16"),
    ):
        assert read_document(other, name="a.md") == read(text)


def test_front_matter_is_metadata_and_no_text() -> None:
    """Offsets count from the text after it."""
    document = read("---\ntitle: A guide\ntags: [a, b]\ndate: 2024-05-06\n---\n\n# Other\n")

    assert document.title == "A guide"
    assert document.metadata == {"title": "A guide", "tags": ["a", "b"], "date": "2024-05-06"}
    assert document.text == "\n# Other\n"
    assert document.blocks[0].start == 1


def test_the_title_is_the_first_heading_of_the_highest_level() -> None:
    """The front matter has none here."""
    assert read("### Low\n\n## High\n\n## Next").title == "High"


def test_links_are_absolute_where_a_base_is_known() -> None:
    """In the blocks; the text stays as it is, and so do offsets and code."""
    text = (
        'See [a](../b.md#c), [d](<e f.md> "t"), ![i](/i.png), '
        "[x](https://x.org/), [m](mailto:a@b).\n"
        "\n"
        '- `[no](no.md)` <a href="k.html">k</a> [l][ref] [Ref] [h](#here) [p](a(1).md)\n'
        "  ```\n  [no](no.md)\n  ```\n"
        "\n[ref]: r.md\n"
    )
    document = read(text, base=BASE)

    assert document.text == text
    assert document.blocks[0].text == (
        "See [a](https://example.org/site/b.md#c), "
        '[d](<https://example.org/site/guide/e f.md> "t"), ![i](https://example.org/i.png), '
        "[x](https://x.org/), [m](mailto:a@b)."
    )
    assert document.blocks[1].text == (
        '- `[no](no.md)` <a href="https://example.org/site/guide/k.html">k</a> '
        "[l](https://example.org/site/guide/r.md) [Ref](https://example.org/site/guide/r.md) "
        "[h](https://example.org/site/guide/start.md#here) "
        "[p](https://example.org/site/guide/a(1).md)\n  ```\n  [no](no.md)\n  ```"
    )
    assert document.blocks[0].end == text.index("\n")


def test_front_matter_can_name_the_base() -> None:
    """A given base goes before it."""
    text = f"---\nsource_url: {BASE}\n---\n[a](b)"

    assert read(text).source_url == BASE
    assert blocks(text) == [("paragraph", "[a](https://example.org/site/guide/b)")]
    assert blocks(text, "https://other.org/") == [("paragraph", "[a](https://other.org/b)")]


@pytest.mark.parametrize(
    "text",
    [
        ">" * 100_000 + " a",
        "- " * 100_000 + "a",
        "[" * 100_000,
        "# " + "*a " * 100_000,
        "`a ``b ```c " * 20_000,
        "a" * 1_000_000,
        "<div>\n" * 50_000,
        "[a](" * 50_000,
        " " * 1_000_000 + "a",
    ],
    ids=lambda text: text[:5],
)
def test_markup_without_an_end_is_read_in_time(text: str) -> None:
    """However deep or long: within a second or two, with a base and without."""
    for base in (None, BASE):
        assert read(text, base).text == text


def test_a_file_beyond_a_limit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """With what to do about it."""
    monkeypatch.setattr(markdown, "MAX_LINES", 10)
    monkeypatch.setattr(markdown, "MAX_CELLS", 10)
    monkeypatch.setattr(markdown, "MAX_CHARACTERS", 100)

    for text, limit in (("a\n" * 10, "10 lines"), ("|" * 11, "10 cells"), ("a" * 101, "100 char")):
        with pytest.raises(Unreadable, match=f"more than {limit}.*split it"):
            read(text)
