"""Anchors are those of GitHub, and no two of a document are the same."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgcorpus.services.documentation.anchors import name_anchors, slug
from pgcorpus.services.documentation.reading.document import Block


def heading(title: str, anchor: str | None = None) -> Block:
    """Return a heading of these words."""
    return Block(kind="heading", text=title, start=0, end=0, level=1, title=title, anchor=anchor)


@pytest.mark.parametrize(
    ("title", "expected"),
    [
        ("Hello World", "hello-world"),
        ("Fusion & legs: a/b (2.0)", "fusion--legs-ab-20"),
        ("snake_case and kebab-case", "snake_case-and-kebab-case"),
        ("Größe über alles", "größe-über-alles"),
        ("日本語 の見出し", "日本語-の見出し"),
        ("हिन्दी", "हिन्दी"),
        ("🎉 Party", "-party"),
        ("🎉", ""),
        ("!!!", ""),
        ("a\tb", "ab"),
        ("x² ½", "x-"),
        ("Привет non-latin 你好", "привет-non-latin-你好"),
    ],
)
def test_a_slug_is_that_of_github(title: str, expected: str) -> None:
    """As github-slugger 2.0 gives them."""
    assert slug(title) == expected


@pytest.mark.parametrize(
    ("titles", "expected"),
    [
        ("foo foo foo", "foo foo-1 foo-2"),
        ("foo foo foo-1", "foo foo-1 foo-1-1"),
        ("foo foo-1 foo", "foo foo-1 foo-2"),
        ("foo-1 foo foo", "foo-1 foo foo-2"),
        ("foo Foo FOO!", "foo foo-1 foo-2"),
    ],
)
def test_the_same_heading_again_is_numbered(titles: str, expected: str) -> None:
    """Past numbers that another heading has of itself."""
    assert name_anchors(map(heading, titles.split())) == tuple(expected.split())


def test_headings_without_a_letter_have_anchors_of_their_own() -> None:
    """The first is empty, as on GitHub."""
    assert name_anchors([heading("🎉"), heading("!"), heading("🚀")]) == ("", "-1", "-2")


def test_an_anchor_of_the_document_itself_goes_first() -> None:
    """Another heading of these words has to make way, even if it stands before."""
    headings = [heading("foo"), heading("bar", "foo"), heading("baz", "foo")]

    assert name_anchors(headings) == ("foo-2", "foo", "foo-1")


@given(
    st.lists(
        st.tuples(st.sampled_from(["a", "a-1", "a-1-1", "!", ""]), st.sampled_from([None, "a"]))
    )
)
def test_no_two_anchors_of_a_document_are_the_same(pairs: list[tuple[str, str | None]]) -> None:
    """Whatever headings collide."""
    anchors = name_anchors(heading(*pair) for pair in pairs)

    assert len(set(anchors)) == len(anchors) == len(pairs)


def test_a_hundred_thousand_headings_of_the_same_words_are_numbered_in_time() -> None:
    """Each number is tried once."""
    assert name_anchors([heading("foo")] * 100_000)[-1] == "foo-99999"
