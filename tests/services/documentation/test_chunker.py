"""Documents are cut by headings first, then where their blocks allow it; nothing is lost."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from itertools import accumulate, pairwise, zip_longest
from typing import Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from pgcorpus.db.errors import InvalidValue
from pgcorpus.services.documentation.chunk import Chunk
from pgcorpus.services.documentation.chunker import (
    CHUNKER_VERSION,
    MAX_HEADING,
    ChunkerConfig,
    chunk_document,
)
from pgcorpus.services.documentation.identity import chunk_ids
from pgcorpus.services.documentation.reading.document import Block, Kind, ReadDocument
from pgcorpus.services.documentation.tokens import count_tokens

PARSER: Final = MarkdownIt("commonmark").enable("table")
KINDS: Final[dict[str, Kind]] = {
    "heading_open": "heading",
    "paragraph_open": "paragraph",
    "html_block": "paragraph",
    "bullet_list_open": "list",
    "ordered_list_open": "list",
    "blockquote_open": "quote",
    "table_open": "table",
    "fence": "code",
    "code_block": "code",
}
SMALL: Final = ChunkerConfig(max_tokens=16, overlap_tokens=4)
BARE: Final = ChunkerConfig(max_tokens=16, overlap_tokens=0)


def read(text: str) -> ReadDocument:
    """Return the blocks of a text in Markdown, as its reader does but for links."""
    starts = [0, *accumulate(map(len, text.splitlines(keepends=True)))]
    blocks = []
    tokens = PARSER.parse(text)
    for token, inner in zip_longest(tokens, tokens[1:]):
        if token.level or token.type not in KINDS or token.map is None:
            continue
        start = starts[token.map[0]]
        source = text[start : starts[token.map[1]]].rstrip()
        heading = token.type == "heading_open" and inner is not None
        blocks.append(
            Block(
                kind=KINDS[token.type],
                text=source,
                start=start,
                end=start + len(source),
                level=int(token.tag[1]) if heading else 0,
                title="".join(each.content for each in inner.children or ())
                if heading and inner
                else "",
            )
        )
    return ReadDocument(text=text, blocks=tuple(blocks), content_type="text/markdown")


def cut(text: str, config: ChunkerConfig = SMALL) -> tuple[Chunk, ...]:
    """Return the chunks of a text in Markdown, each of which is within the limit."""
    chunks = chunk_document(read(text), config)
    assert all(count_tokens(each.text) == each.token_count for each in chunks)
    assert all(0 < each.token_count <= config.max_tokens for each in chunks)
    return chunks


def document_of(kind: Kind, text: str) -> ReadDocument:
    """Return a document of one block."""
    block = Block(kind=kind, text=text, start=0, end=len(text))
    return ReadDocument(text=text, blocks=(block,), content_type="text/plain")


def texts(chunks: Sequence[Chunk]) -> list[str]:
    """Return the texts of chunks."""
    return [each.text for each in chunks]


def test_an_empty_document_has_no_chunks() -> None:
    """Neither has one of white space."""
    assert cut("") == cut("\n \n") == chunk_document(document_of("paragraph", " \n")) == ()


def test_a_chunk_never_spans_two_sections() -> None:
    """Each says under which headings it stands; text before the first has none."""
    chunks = cut("Before.\n\n# A\n\nOne.\n\n### C\n\nTwo.\n\n## B\n\nThree.\n\n# D\n\nFour.")

    assert [(each.text, each.heading, each.anchor, each.heading_path) for each in chunks] == [
        ("Before.", None, None, ()),
        ("One.", "A", "a", ("A",)),
        ("Two.", "C", "c", ("A", "C")),
        ("Three.", "B", "b", ("A", "B")),
        ("Four.", "D", "d", ("D",)),
    ]
    assert [each.position for each in chunks] == [0, 1, 2, 3, 4]


def test_comments_in_code_are_no_headings() -> None:
    """Nor do they make an anchor."""
    (chunk,) = cut("# A\n\n```sh\n# install\nmake\n```")

    assert (chunk.text, chunk.heading_path) == ("```sh\n# install\nmake\n```", ("A",))


def test_the_same_heading_twice_has_two_anchors() -> None:
    """The second is numbered, as on GitHub."""
    assert [each.anchor for each in cut("# A\n\nx\n\n# A\n\ny\n\n# 🎉\n\nz\n\n# !\n\nz")] == [
        "a",
        "a-1",
        "",
        "-1",
    ]


@pytest.mark.parametrize("end", ["", "\n", "\n\n## Next\n\nText."])
def test_a_heading_without_a_body_is_found_by_its_words(end: str) -> None:
    """It is the text of a chunk if it is in no path of a section below."""
    chunk = cut(f"# A\n\n## Lonely words{end}")[0]

    assert (chunk.text, chunk.heading_path) == ("## Lonely words", ("A", "Lonely words"))


def test_a_body_of_white_space_is_none() -> None:
    """The heading above it is the text of a chunk."""
    blocks = (
        Block(kind="heading", text="# A", start=0, end=3, level=1, title="A"),
        Block(kind="paragraph", text=" ", start=4, end=5),
    )

    document = ReadDocument(text="# A\n ", blocks=blocks, content_type="text/markdown")
    assert texts(chunk_document(document)) == ["# A"]


def test_a_heading_without_a_body_is_in_the_path_of_the_section_below() -> None:
    """It has no chunk of its own."""
    assert [each.heading_path for each in cut("# A\n\n## B\n\nText.")] == [("A", "B")]


def test_a_heading_without_words_opens_no_section() -> None:
    """There is nothing that a path could say; those above are not lost by it."""
    assert [
        (each.text, each.heading_path) for each in cut("# A\n\n## \n\nText.\n\n# B\n\n## ")
    ] == [
        ("Text.", ("A",)),
        ("# B", ("B",)),
    ]


def test_a_heading_too_long_for_a_path_is_text_as_well() -> None:
    """Every chunk of its section carries the path; one carries the rest."""
    title = "word " * 1000
    chunks = cut(f"# {title}\n\nText.")

    assert all(len(each.heading or "") <= MAX_HEADING for each in chunks)
    assert all(len(each.anchor or "") <= MAX_HEADING for each in chunks)
    assert sum(each.text.count("word") for each in chunks) >= 1000


def test_paragraphs_are_kept_whole_where_they_fit() -> None:
    """Then the text is that of the document, as it stands."""
    text = "One two three four five.\n\nSix seven eight nine.\n\nTen more words follow here now.\n"
    chunks = cut(text, BARE)

    assert texts(chunks) == [
        "One two three four five.\n\nSix seven eight nine.",
        "Ten more words follow here now.",
    ]
    assert all(text[each.start : each.end] == each.text for each in chunks)


def test_a_long_paragraph_is_cut_between_sentences() -> None:
    """Not after an abbreviation before a small letter, and not within a number."""
    text = "It costs 3.50 in all, i.e. little. Then it rains all day long. Why? Nobody knows it."

    assert texts(cut(text, BARE)) == [
        "It costs 3.50 in all, i.e. little.",
        "Then it rains all day long. Why? Nobody knows it.",
    ]


def test_chinese_is_cut_between_sentences_without_spaces() -> None:
    """And within one that is too long."""
    assert texts(cut("文書を切る。" * 4, BARE)) == ["文書を切る。" * 2] * 2
    assert "".join(texts(cut("文" * 40, BARE))) == "文" * 40


def test_a_long_sentence_is_cut_between_words() -> None:
    """A word is cut only where it is too long itself."""
    text = "onwards " * 20

    assert set(" ".join(texts(cut(text, BARE))).split()) == {"onwards"}
    assert "".join(texts(cut("x" * 1000, BARE))) == "x" * 1000


def test_the_next_chunk_of_a_section_repeats_the_last_sentences() -> None:
    """Whole ones, as far as the overlap reaches, and none of another section."""
    config = ChunkerConfig(max_tokens=16, overlap_tokens=8)
    text = "# A\n\nOne two six ten red. Dog cat owl. Sun day. Low sea now too.\n\n# B\n\nEnd."

    assert texts(cut(text, config)) == [
        "One two six ten red. Dog cat owl. Sun day.",
        "Dog cat owl. Sun day. Low sea now too.",
        "End.",
    ]


def test_a_chunk_with_repeated_sentences_is_the_text_of_the_document() -> None:
    """Its offsets begin with what is repeated."""
    text = "One two. Six ten. " * 20 + "\n\n" + "Red dog. Big cat! " * 20
    chunks = cut(text, ChunkerConfig(max_tokens=32, overlap_tokens=8))

    assert all(text[each.start : each.end] == each.text for each in chunks)
    assert all(one.start < two.start <= one.end for one, two in pairwise(chunks))


def test_a_list_is_cut_between_items() -> None:
    """At the outermost ones first."""
    text = "- one two\n  - three four\n  - five\n- six seven\n  - eight\n- nine ten\n  - eleven"

    assert texts(cut(text, BARE)) == [
        "- one two\n  - three four\n  - five\n- six seven\n  - eight",
        "- nine ten\n  - eleven",
    ]


def test_code_is_cut_between_lines_at_blank_ones_first() -> None:
    """Indentation stays."""
    text = "```\nif a:\n    b()\n\nif c:\n    d()\n    e()\n```"

    assert texts(cut(text, BARE)) == ["```\nif a:\n    b()", "if c:\n    d()\n    e()\n```"]
    assert texts(cut("```\nif a:\n" + "    b()\n" * 5 + "```", BARE))[1].startswith("    b()\n")


def test_the_header_of_a_table_is_repeated() -> None:
    """In every chunk that goes on with its rows; offsets are of the rows alone."""
    config = ChunkerConfig(max_tokens=40, overlap_tokens=8)
    rows = [f"| r{at} | {at} |" for at in range(10)]
    text = "\n".join(["|a|b|", "|-|-|", *rows])
    chunks = cut(text, config)

    assert len(chunks) > 1
    assert all(each.text.startswith("|a|b|\n|-|-|\n| r") for each in chunks)
    assert text[chunks[1].start : chunks[1].end] == chunks[1].text.removeprefix("|a|b|\n|-|-|\n")
    assert [row for each in chunks for row in each.text.splitlines()[2:]] == rows


def test_a_header_that_leaves_no_room_is_not_repeated() -> None:
    """The rows are what a table has to say."""
    text = "| a long header | of words |\n|---|---|\n" + "| x | y |\n" * 10

    assert sum(each.text.count("header") for each in cut(text)) == 1


def test_html_is_kept_as_it_stands() -> None:
    """It is a paragraph to the chunker."""
    assert texts(cut("<div>\n<b>x</b>\n</div>")) == ["<div>\n<b>x</b>\n</div>"]


def test_parts_of_a_block_whose_links_were_made_absolute_have_the_lines_of_the_source() -> None:
    """And of one whose lines differ those of the whole block."""
    source = "\n".join(f"- [a](b{at})" for at in range(9))
    text = source.replace("(b", "(http://x/b")
    same = Block(kind="list", text=text, start=4, end=4 + len(source))
    other = dataclasses.replace(same, text=text.replace("\n", "\n\n"))
    config = ChunkerConfig(max_tokens=40, overlap_tokens=0)

    def spans(block: Block) -> list[str]:
        document = ReadDocument(text=f"Abc\n{source}\n", blocks=(block,), content_type="x")
        return [document.text[each.start : each.end] for each in chunk_document(document, config)]

    assert len(spans(same)) > 1
    assert "\n".join(spans(same)) == source
    assert set(spans(other)) == {source}


def test_a_chunk_begins_on_the_page_of_its_first_block() -> None:
    """Even if it goes on to the next."""
    text = "One.\n\nTwo."
    blocks = (
        Block(kind="paragraph", text="One.", start=0, end=4, page=3),
        Block(kind="paragraph", text="Two.", start=6, end=10, page=4),
    )
    document = ReadDocument(text=text, blocks=blocks, content_type="application/pdf")

    (chunk,) = chunk_document(document)
    assert (chunk.text, chunk.page) == (text, 3)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"max_tokens": 7, "overlap_tokens": 0}, "max_tokens must be 8 to 8192, not 7"),
        ({"max_tokens": 10_000}, "max_tokens must be 8 to 8192, not 10000"),
        ({"overlap_tokens": -1}, "overlap_tokens must be 0 to half of max_tokens, here 256"),
        ({"max_tokens": 100}, "overlap_tokens must be 0 to half of max_tokens, here 50, not 64"),
    ],
)
def test_sizes_that_cannot_be_are_refused(sizes: dict[str, int], message: str) -> None:
    """The message names the setting and its bounds."""
    with pytest.raises(InvalidValue, match=message):
        ChunkerConfig(**sizes)


def test_a_section_inserted_at_the_top_changes_no_other_name() -> None:
    """So nothing else is embedded again."""
    text = "# A\n\n" + "One two. Six ten. " * 9 + "\n\n# B\n\nThree.\n\n# B\n\nThree."
    before = chunk_ids("f.md", cut(text))
    after = chunk_ids("f.md", cut(f"# New\n\nText.\n\n{text}"))

    assert after[1:] == before


def test_an_edited_section_changes_only_the_names_of_its_chunks() -> None:
    """However many chunks it has before and after."""
    start, end = "# A\n\nOne.\n\n", "\n\n# C\n\nThree."
    before = chunk_ids("f.md", cut(f"{start}# B\n\nTwo.{end}"))
    after = chunk_ids("f.md", cut(start + "# B\n\n" + "Two and more. " * 9 + end))

    assert (after[0], after[-1]) == (before[0], before[-1])
    assert not set(after[1:-1]) & set(before)


KIND: Final = st.sampled_from(tuple(dict.fromkeys(KINDS.values())))
WORDS: Final = st.text(st.sampled_from("ab1 \n\t.!?。文-*|>#`é"), max_size=120)


@st.composite
def documents(draw: st.DrawFn) -> ReadDocument:
    """Return a document of any blocks with any white space between them."""
    text, blocks = "", []
    for kind, words in draw(st.lists(st.tuples(KIND, WORDS), max_size=8)):
        blocks.append(
            Block(
                kind=kind,
                text=words,
                start=len(text),
                end=len(text) + len(words),
                level=draw(st.integers(1, 6)) if kind == "heading" else 0,
                title=words if kind == "heading" else "",
            )
        )
        text += words + draw(st.sampled_from(["\n", "\n\n", "\n\n\n", " "]))
    return ReadDocument(text=text, blocks=tuple(blocks), content_type="text/plain")


@settings(deadline=None)
@given(documents(), st.integers(8, 40), st.integers(0, 4))
def test_nothing_is_lost_and_no_chunk_is_too_long(
    document: ReadDocument, max_tokens: int, overlap_tokens: int
) -> None:
    """Chunks are in order, none is empty, and all words are in one, or in a path."""
    config = ChunkerConfig(max_tokens=max_tokens, overlap_tokens=overlap_tokens)
    chunks = chunk_document(document, config)

    assert chunks == chunk_document(document, config)
    assert [each.position for each in chunks] == list(range(len(chunks)))
    assert all(each.text.strip() for each in chunks)
    assert all(count_tokens(each.text) == each.token_count <= max_tokens for each in chunks)
    assert all(one.start < two.start and one.end < two.end for one, two in pairwise(chunks))
    covered = {at for each in chunks for at in range(each.start, each.end)}
    paths = {title for each in chunks for title in each.heading_path}
    for block in document.blocks:
        words = {at for at in range(block.start, block.end) if not document.text[at].isspace()}
        assert words <= covered or block.title.strip() in paths


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("paragraph", "lorem ipsum dolor sit amet. " * 20_000),
        ("paragraph", "x" * 500_000),
        ("paragraph", "." * 200_000),
        ("paragraph", "a" + " " * 500_000 + "b"),
        ("paragraph", "a. " * 50_000),
        ("paragraph", ".)" * 100_000),
        ("quote", "\n>" * 100_000 + "x"),
        ("list", "- item\n" * 40_000),
        ("code", "x = 1\n" * 40_000),
        ("code", "\n" * 500_000 + "x"),
        ("code", "\n" + " " * 500_000 + "x"),
        ("table", "|a|\n|-|\n" + "|x|\n" * 40_000),
        ("table", "|" * 200_000),
        ("table", "a\n" + "-" * 200_000 + "x"),
        ("table", "a\n" + "|" * 200_000),
    ],
    ids=lambda value: str(value)[:8],
)
def test_a_huge_block_is_cut_in_time(kind: Kind, text: str) -> None:
    """Time grows with the length, and not with its square: that would take minutes."""
    chunks = chunk_document(document_of(kind, text))

    assert all(each.token_count <= 512 for each in chunks)


def test_a_large_file_with_few_headings_is_cut_into_chunks_of_full_size() -> None:
    """110 kB under eleven headings: no chunk but the last of a section is small."""
    paragraph = "The quick brown fox jumps over the lazy dog, and nobody minds. " * 4
    text = "".join(f"# Part {at}\n\n" + f"{paragraph}\n\n" * 40 for at in range(11))
    chunks = cut(text, ChunkerConfig())

    assert len(text) > 110_000
    assert all(one.token_count > 400 for one, two in pairwise(chunks) if one.anchor == two.anchor)


def test_another_version_cuts_otherwise() -> None:
    """A change of this checksum changes CHUNKER_VERSION, so that chunks are made anew."""
    text = (
        "Before.\n\n# A *title*\n\n" + "One two, three. Four! " * 12 + "\n\n## B\n\n## C\n\n"
        "- one\n- two\n  three\n\n```\n# x\n\ny = 1\n" + "z()\n" * 20 + "```\n\n# C\n\n"
        "|a|b|\n|-|-|\n" + "|1|2|\n" * 20 + "\n> quote\n> on\n\n文書を切る。文書を切る。\n\n# 🎉\n"
    )
    chunks = cut(text, ChunkerConfig(max_tokens=32, overlap_tokens=8))
    found = json.dumps([dataclasses.astuple(each) for each in chunks])

    assert (CHUNKER_VERSION, hashlib.sha256(found.encode()).hexdigest()[:16]) == (
        "1",
        "72f6cc6057a814b8",
    )
