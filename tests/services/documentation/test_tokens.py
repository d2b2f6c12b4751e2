"""Tokens are estimated so that a text can be cut at any of them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgcorpus.services.documentation.tokens import TOKEN, count_tokens


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("", 0),
        (" \n\t ", 0),
        ("price", 1),
        ("prices", 2),
        ("a b, c.", 5),
        ("123456", 2),
        ("文書を切る。", 6),
        ("слово", 3),
        ("snake_case", 3),
    ],
)
def test_words_digits_and_signs_are_counted(text: str, tokens: int) -> None:
    """Letters in fives, digits in threes, signs and ideographs alone."""
    assert count_tokens(text) == tokens


@given(st.text())
def test_a_text_cut_at_a_token_has_as_many_tokens_as_before(text: str) -> None:
    """So that counts of parts add up; nothing that is no white space is left out."""
    ends = [each.end() for each in TOKEN.finditer(text)]

    assert all(count_tokens(text[:end]) + count_tokens(text[end:]) == len(ends) for end in ends)
    assert "".join(TOKEN.findall(text)) == "".join(text.split())
