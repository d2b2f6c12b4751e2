"""Numbers in sentences."""

from __future__ import annotations

import pytest

from pgcorpus.db.text import count_of


@pytest.mark.parametrize(
    ("number", "said"), [(0, "0 memories"), (1, "1 memory"), (2, "2 memories")]
)
def test_a_number_has_its_noun_in_the_right_form(number: int, said: str) -> None:
    """One is one."""
    assert count_of(number, "memory", "memories") == said
    assert count_of(number, "tenant") == f"{number} tenant{'' if number == 1 else 's'}"
