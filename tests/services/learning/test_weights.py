"""Weights of legs, fitted to clicks of simulated users."""

from __future__ import annotations

import pytest

from pgcorpus.services.learning.impressions import Impression, Rows, Shown
from pgcorpus.services.learning.propensities import Propensities, estimate_propensities
from pgcorpus.services.learning.replay import Ranking
from pgcorpus.services.learning.weights import fit_weights
from tests.services.learning.simulation import TODAY, TRUTH, World

LEGS = tuple(TODAY.weights)
FLAT = Propensities(eta=0.0)
"""Propensities as if every position were looked at."""


@pytest.mark.parametrize("seed", range(3))
def test_without_the_correction_the_weights_would_be_worse(seed: int) -> None:
    """Users click what today's ranking shows first, and so seem to agree with it."""
    world = World(seed)
    rows = Rows.of(world.record(800), LEGS)

    corrected = fit_weights(rows, TODAY.weights, estimate_propensities(rows))
    uncorrected = fit_weights(rows, TODAY.weights, FLAT)

    assert TODAY.weights["vector"] < uncorrected["vector"] < corrected["vector"]
    assert corrected["vector"] < TRUTH["vector"] + 0.05
    assert world.judge(Ranking(weights=corrected)) > world.judge(Ranking(weights=uncorrected))


def test_weights_keep_their_sum_and_are_not_negative() -> None:
    """Clicks that follow one leg alone take nearly everything from the other."""
    rows = Rows.of(
        World(1, truth={"vector": 2.0, "text": -1.0}).record(400, examined=[1.0] * 10), LEGS
    )

    weights = fit_weights(rows, {"vector": 0.6, "text": 1.4}, FLAT)

    assert sum(weights.values()) == pytest.approx(2)
    assert 0 <= weights["text"] < 0.4


def test_a_few_voices_hardly_move_the_weights() -> None:
    """They are shrunk towards today's."""
    rows = Rows.of(World(1).record(3), LEGS)

    weights = fit_weights(rows, TODAY.weights, FLAT)

    assert weights["vector"] == pytest.approx(TODAY.weights["vector"], abs=0.05)


def test_pages_that_lack_a_leg_say_nothing_of_weights() -> None:
    """A page of one leg alone is in its order whatever the weights are."""
    shown = (Shown("a", 1, {"text": 0.9}), Shown("b", 2, {"text": 0.1}))
    pages = [
        Impression(
            session=str(n),
            voice=str(n),
            query="q",
            weights={"text": 1.0},
            shown=shown,
            clicked=frozenset("a"),
        )
        for n in range(100)
    ]

    assert fit_weights(Rows.of(pages, LEGS), TODAY.weights, FLAT) == TODAY.weights


def test_clicks_against_every_leg_leave_the_weights() -> None:
    """No weights put the worse passage first."""
    shown = (Shown("a", 1, {"vector": 0.9, "text": 0.9}), Shown("b", 2, {"vector": 0, "text": 0}))
    pages = [
        Impression(
            session=str(n), voice=str(n), query="q", weights={}, shown=shown, clicked=frozenset("b")
        )
        for n in range(100)
    ]

    weights = fit_weights(Rows.of(pages, LEGS), TODAY.weights, FLAT)

    assert weights == pytest.approx(dict(TODAY.weights), abs=0.01)
