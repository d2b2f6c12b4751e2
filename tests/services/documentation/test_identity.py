"""Names of chunks stay when chunks move within their document."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from pgcorpus.services.documentation.chunk import Chunk
from pgcorpus.services.documentation.identity import chunk_ids


def chunk(text: str, *path: str, position: int = 0) -> Chunk:
    """Return a chunk that says *text* under the headings *path*."""
    return Chunk(
        position=position,
        text=text,
        heading=path[-1] if path else None,
        anchor=None,
        heading_path=path,
        start=position,
        end=position + len(text),
        token_count=1,
    )


def test_a_name_does_not_depend_on_the_position() -> None:
    """Only on the path, the heading path and the text."""
    one, two = chunk("a", "H"), chunk("a", "H", position=7)

    assert chunk_ids("f.md", [one]) == chunk_ids("f.md", [two])
    assert len({chunk_ids("f.md", [each])[0] for each in (one, chunk("a"), chunk("H", "a"))}) == 3


def test_another_path_changes_only_the_beginning_of_a_name() -> None:
    """The rest tells that a renamed document says the same."""
    (here,), (there,) = chunk_ids("a.md", [chunk("x")]), chunk_ids("b.md", [chunk("x")])

    assert here != there
    assert here.split("-")[1:] == there.split("-")[1:]


def test_twins_are_numbered() -> None:
    """An edit of one of them leaves the others' names."""
    first, second, third = chunk_ids("f.md", [chunk("x"), chunk("x"), chunk("x")])

    assert (second, third) == (f"{first}-1", f"{first}-2")


@given(
    st.text(st.characters()),
    st.lists(st.tuples(st.sampled_from("ab"), st.text(st.characters(), max_size=2))),
)
def test_names_are_unique_short_and_safe_in_a_url(path: str, texts: list[tuple[str, str]]) -> None:
    """Whatever the path and the texts hold, lone surrogates included."""
    names = chunk_ids(path, [chunk(*each) for each in texts])

    assert len(set(names)) == len(texts)
    assert all(re.fullmatch(r"[0-9a-f-]{49,64}", each) for each in names)
