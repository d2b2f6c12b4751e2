"""Front matter."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgcorpus.services.documentation.reading.formats import read_document
from pgcorpus.services.documentation.reading.front_matter import split_front_matter

LAUGHS = "a: &a [x, x]\n" + "\n".join(
    f"{after}: &{after} [*{before}, *{before}, *{before}]"
    for before, after in zip("abcdefgh", "bcdefghi", strict=True)
)
MERGES = "a: &a {k: v}\n" + "\n".join(
    f"{after}: &{after}\n  <<: [*{before}, *{before}, *{before}]"
    for before, after in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "metadata"),
    [
        ("---\na: 1\n---\nb", {"a": 1}),
        ("--- \na: 1\n...\nb", {"a": 1}),
        (
            "+++\na = 1\nd = 2024-05-06T07:08:09Z\n+++\nb",
            {"a": 1, "d": "2024-05-06T07:08:09+00:00"},
        ),
        ("---\n---\nb", {}),
        ("---\n# only a comment\n---\nb", {}),
        ("---\n7: one\ntrue: yes\nnull: 2\n---\nb", {"7": "one", "true": True, "null": 2}),
        ("---\na: .nan\nb: .inf\nc: 1.5\n---\nb", {"a": "nan", "b": "inf", "c": 1.5}),
        ("---\na: {b: [{c: 2024-01-02}]}\n---\nb", {"a": {"b": [{"c": "2024-01-02"}]}}),
        ('---\na: "x\\0y"\n---\nb', {"a": "x\ufffdy"}),
    ],
)
def test_front_matter_becomes_values_of_json(text: str, metadata: dict[str, Any]) -> None:
    """Of YAML or TOML; keys are text, dates too, and nothing is what PostgreSQL cannot store."""
    found = split_front_matter(text)

    assert found.metadata == metadata
    assert text[found.start :] == "b"


@pytest.mark.parametrize(
    "inner",
    [
        "title: a: b",
        "title: [",
        "a: !!python/object/apply:os.system [echo]",
        "a: !!binary aGVsbG8=",
        "a: 0x" + "f" * 1_000,
        "a: " + "[" * 1_000 + "]" * 1_000,
        "a: [" + "1, " * 6_000 + "1]",
        "a: " + "x" * 20_000,
        "a: &a [*a]",
        LAUGHS,
        MERGES,
    ],
    ids=lambda inner: inner[:20],
)
def test_front_matter_that_cannot_be_read_stays_in_the_text(inner: str) -> None:
    """As code, and with no metadata: a document is not refused for it, nor a heading made of it."""
    text = f"---\n{inner}\n---\n\n# Title\n"

    document = read_document(text.encode(), name="a.md")

    assert document.text == text
    assert document.metadata == {}
    assert document.title == "Title"
    assert [(block.kind, block.text) for block in document.blocks] == [
        ("code", f"---\n{inner}\n---"),
        ("heading", "# Title"),
    ]


@pytest.mark.parametrize(
    "text",
    [
        "---\n\nProse, in a sentence.\n\n---\n",
        "---\nprose\n---\n",
        "---\na: b\n",
        "----\na: b\n---\n",
        "---",
        "",
    ],
)
def test_thematic_breaks_are_no_front_matter(text: str) -> None:
    """Nor is a block without an end."""
    assert split_front_matter(text).start == 0
    assert split_front_matter(text).broken_end == 0


@given(inner=st.text(st.characters(exclude_categories=["Cs"]), max_size=80))
def test_whatever_stands_there_is_read_or_left(inner: str) -> None:
    """No error, and metadata is JSON."""
    for fence in ("---", "+++"):
        found = split_front_matter(f"{fence}\na: {inner}\n{fence}\ntext")

        json.dumps(dict(found.metadata), allow_nan=False)
