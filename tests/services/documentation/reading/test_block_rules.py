"""The quick block rules, beside those of the parser as it is."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from pgcorpus.services.documentation.reading.block_rules import make_parser

AS_IT_IS = MarkdownIt("commonmark").enable("table").disable(["inline", "text_join"])
QUICK = make_parser()

lines = st.lists(
    st.text(st.sampled_from("ab \t#>-=+*_`~|:[]()<>!1.)\\&"), max_size=12)
    | st.sampled_from(["", "- a", "  b", "> c", "a", "===", "---", "|a|b|", "|-|-|", "[a]: b"])
).map("\n".join)


@given(text=lines)
def test_quick_rules_find_the_same_blocks(text: str) -> None:
    """Token by token, definitions of links included."""
    mine: dict[str, Any] = {}
    theirs: dict[str, Any] = {}

    found = [token.as_dict() for token in QUICK.parse(text, mine)]

    assert found == [token.as_dict() for token in AS_IT_IS.parse(text, theirs)]
    assert mine == theirs
