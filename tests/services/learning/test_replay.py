"""Replays of recorded pages under another ranking."""

from __future__ import annotations

import numpy as np
import pytest

from pgcorpus.db.errors import Misuse
from pgcorpus.services.learning.impressions import Impression, Rows, Shown
from pgcorpus.services.learning.propensities import Propensities
from pgcorpus.services.learning.replay import Ranking, Replay, estimate_change, replay

LEGS = ("vector", "text")
TODAY = Ranking(weights={"vector": 0.0, "text": 1.0})
PAGE = Impression(
    session="s",
    voice="s",
    query="q",
    weights=TODAY.weights,
    shown=(
        Shown("a", 1, {"vector": 0.1, "text": 0.9}),
        Shown("b", 2, {"vector": 0.5, "text": 0.5}),
        Shown("c", 3, {"vector": 0.9, "text": 0.4}),
    ),
    clicked=frozenset("c"),
)


@pytest.mark.parametrize(
    ("other", "place"),
    [
        (TODAY, 3),
        (Ranking(weights={"vector": 1.0, "text": 0.0}), 1),
        (Ranking(weights=TODAY.weights, boosts={"c": 0.2}), 2),
        (Ranking(weights=TODAY.weights, boosts={"c": 0.1}), 3),  # a tie stays as it was shown
    ],
)
def test_a_page_is_ranked_anew(other: Ranking, place: int) -> None:
    """The click stood third, and so weighs three; its discount is that of its new place."""
    found = replay(Rows.of([PAGE], LEGS), TODAY, other, Propensities(eta=1.0))

    assert found.weight.tolist() == pytest.approx([3])
    assert found.before.tolist() == pytest.approx([3 / np.log2(4)])
    assert found.after.tolist() == pytest.approx([3 / np.log2(1 + place)])


def test_the_interval_holds_the_true_change_as_often_as_it_says() -> None:
    """Of 100 samples of 100 voices whose mean gain is known; voices weigh differently."""
    chance = np.random.default_rng(1)
    held = 0
    for _ in range(100):
        weight = chance.choice([1.0, 5.0], 100)
        gain = chance.normal(0.02, 0.1, 100)
        found = estimate_change(Replay(weight, 0.5 * weight, (0.5 + gain) * weight))
        held += found.low <= 0.02 <= found.high

    assert held >= 96  # 99 % of them, but for chance and so few voices


def test_a_ranking_without_a_leg_is_refused() -> None:
    """As a search refuses it."""
    with pytest.raises(Misuse, match="one above 0"):
        Ranking(weights={"vector": 0.0, "text": 0.0})
    with pytest.raises(Misuse, match="not be negative"):
        Ranking(weights={"vector": 1.5, "text": -0.5})
