"""Reading HTML."""

from __future__ import annotations

import pytest

from pgcorpus.services.documentation.reading.document import ReadDocument, Unreadable
from pgcorpus.services.documentation.reading.formats import read_document

BASE = "https://example.org/docs/a.html"


def read(text: str, base: str | None = None) -> ReadDocument:
    """Return the document that *text* is."""
    return read_document(text.encode(), name="a.html", base=base)


def blocks(text: str, base: str | None = None) -> list[tuple[str, str]]:
    """Return kind and text of each block."""
    return [(block.kind, block.text) for block in read(text, base).blocks]


def test_what_is_no_text_of_the_page_is_dropped() -> None:
    """Scripts, styles, navigation, footers, hidden parts."""
    page = (
        "<title>T</title><style>a</style><nav><h1>Menu</h1></nav><script>if (a<b) '<p>x'</script>"
        "<div role=navigation>n</div><p hidden>h</p><p>shown<script>1</script> text</p>"
        "<template><p>t</p></template><!-- c --><footer>f</footer>"
    )

    assert blocks(page) == [("paragraph", "shown text")]


def test_only_the_main_part_is_read_where_it_is_marked() -> None:
    """The rest of a page is the same on all pages."""
    assert blocks("<div>side</div><main><p>a</p></main><p>c") == [("paragraph", "a")]


def test_headings_have_the_anchors_of_the_page() -> None:
    """Their own, those of their section, or of a name just before or within."""
    page = (
        '<h1 id="one">One<a class="headerlink" href="#one">¶</a></h1><section id="two"><h2>Two</h2>'
        '<p>x</p></section><a name="three"></a><h3>Three</h3><h3><a id="four">Four</a></h3><h3>No'
    )
    found = [
        (block.level, block.title, block.anchor)
        for block in read(page).blocks
        if block.kind == "heading"
    ]

    assert found == [
        (1, "One", "one"),
        (2, "Two", "two"),
        (3, "Three", "three"),
        (3, "Four", "four"),
        (3, "No", None),
    ]


def test_tables_lists_and_code_are_whole() -> None:
    """Tables as Markdown has them, code with its lines."""
    page = (
        "<table><caption>C</caption><tr><th>x<th>y<tr><td>1|2<td>a <b>b</b></table>"
        "<ul><li>a<ul><li>b</ul><li>c</ul><ol start=3><li><p>d</p></ol>"
        "<pre>\n  x = 1\n\n  # no\n</pre><blockquote>q<p>r</blockquote>"
    )

    assert blocks(page) == [
        ("paragraph", "C"),
        ("table", "| x | y |\n|---|---|\n| 1\\|2 | a b |"),
        ("list", "- a\n  - b\n- c"),
        ("list", "3. d"),
        ("code", "  x = 1\n\n  # no"),
        ("quote", "q\nr"),
    ]


def test_a_table_with_headings_in_it_is_layout() -> None:
    """Its headings are found."""
    page = "<table><tr><td>side</td><td><h1>Title</h1><p>words</table><p>more"

    assert [text for _, text in blocks(page)][-3:] == ["Title", "words", "more"]
    assert [block.level for block in read(page).blocks][-3] == 1


def test_links_lead_where_they_led() -> None:
    """Links are made absolute where the base is known; else their words remain."""
    page = '<p>See <a href="b c.html">the b</a>, <a href="#x">x</a>.'

    assert blocks(page) == [("paragraph", "See the b, x.")]
    assert blocks(page, BASE) == [
        ("paragraph", "See [the b](https://example.org/docs/b%20c.html), x.")
    ]


def test_the_head_is_metadata() -> None:
    """Title, language, description, and where the page came from."""
    document = read(
        '<html lang="de"><head><title> A\n title </title><meta name="Description" content="d">'
        '<link rel="canonical" href="https://example.org/x/y"></head><p><a href="z">z</a>'
    )

    assert document.title == "A title"
    assert document.metadata == {"language": "de", "description": "d"}
    assert document.source_url == "https://example.org/x/y"
    assert document.text == "[z](https://example.org/x/z)"


def test_a_page_may_declare_its_encoding() -> None:
    """As old ones do; but none that is no encoding of text."""
    page = '<meta charset="iso-8859-1"><p>caf\xe9'.encode("latin-1")

    assert read_document(page, name="a.html").text == "café"
    for other in ("utf-7", "hex", "idna", "unicode_escape"):
        with pytest.raises(Unreadable, match="not UTF-8: byte 0xe9 at offset"):
            read_document(page.replace(b"iso-8859-1", other.encode()), name="a.html")


def test_entities_are_not_expanded_and_nothing_is_loaded() -> None:
    """A billion laughs is a few letters."""
    page = (
        '<!DOCTYPE html [<!ENTITY a "ha"><!ENTITY b "&a;&a;"><!ENTITY f SYSTEM "file:///etc/passwd">]>'
        "<p>x &b; &f; &lt;</p>"
    )

    assert "haha" not in read(page).text
    assert "root:" not in read(page).text


@pytest.mark.parametrize(
    "page", ["<div>" * 100_000, "<ul><li>" * 100_000, "<table><tr><td>" * 100_000, "<b>" * 100_000]
)
def test_elements_nested_without_end_are_refused(page: str) -> None:
    """Before they cost time or stack."""
    with pytest.raises(Unreadable, match="nested deeper than 1,000"):
        read(page)


@pytest.mark.parametrize(
    "page",
    [
        "<" * 100_000,
        "<!--" * 50_000,
        "&a" * 100_000,
        "<p " + "a=b " * 50_000 + ">x",
        "<p>x" * 50_000,
    ],
    ids=lambda page: page[:5],
)
def test_tags_without_sense_are_read_in_time(page: str) -> None:
    """There may be nothing in them."""
    assert len(read(page).text) <= 4 * len(page)
