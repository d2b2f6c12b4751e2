"""Impressions as values and as arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pgcorpus.db.errors import Misuse
from pgcorpus.services.learning.impressions import Impression, Rows, Shown

LEGS = ("vector", "text")


def page(voice: str = "one", clicked: frozenset[Any] = frozenset(), **scores: float) -> Impression:
    """Two passages, of which the first is said by *scores*."""
    shown = (Shown("a", 1, scores or {"vector": 0.5, "text": 0.5}), Shown("b", 2, {"text": 0.2}))
    return Impression(
        session=voice, voice=voice, query="q", weights={}, shown=shown, clicked=clicked
    )


@pytest.mark.parametrize(
    ("shown", "clicked", "said"),
    [
        ((Shown("a", 1, {}), Shown("a", 2, {})), frozenset(), "twice"),
        ((Shown("a", 1, {}),), frozenset("b"), "not shown"),
        ((Shown("a", 0, {}),), frozenset(), "counted from 1"),
        ((Shown("a", 1, {"text": float("nan")}),), frozenset(), "no finite number"),
    ],
)
def test_an_impossible_page_is_refused(
    shown: tuple[Shown, ...], clicked: frozenset[str], said: str
) -> None:
    """With the session and the reason."""
    with pytest.raises(Misuse, match=said):
        Impression(session="s", voice="s", query="q", weights={}, shown=shown, clicked=clicked)


def test_all_impressions_of_a_voice_count_as_one() -> None:
    """However many pages it saw."""
    rows = Rows.of([page("busy")] * 4 + [page("calm")], LEGS)

    assert np.bincount(rows.voice, rows.share).tolist() == [2.0, 2.0]  # two passages a page


def test_a_click_is_paired_with_every_other_passage_of_its_page_alone() -> None:
    """Passages of other pages say nothing about it."""
    rows = Rows.of([page(), page(clicked=frozenset("b")), page()], LEGS)

    better, other = rows.pair_clicks()

    assert (better.tolist(), other.tolist()) == ([3], [2])


def test_weights_are_scaled_over_the_legs_that_answered() -> None:
    """As a search does where a leg is silent for the whole page; else a leg gives 0."""
    rows = Rows.of([page(text=0.4), page(vector=1.0, text=0.5)], LEGS)

    scores = rows.fuse(np.array([0.3, 0.7]))

    assert scores.tolist() == pytest.approx([0.4, 0.2, 0.65, 0.14])


def test_nothing_shown_makes_no_rows() -> None:
    """And everything that is computed from them is empty."""
    rows = Rows.of([], LEGS)

    assert rows.scores.shape == (0, 2)
    assert rows.clicking_voices == 0
    assert rows.pair_clicks()[0].size == 0
