"""Position bias, estimated from clicks of simulated users."""

from __future__ import annotations

import numpy as np
import pytest

from pgcorpus.services.learning.impressions import Impression, Rows, Shown
from pgcorpus.services.learning.propensities import (
    MAX_WEIGHT,
    Propensities,
    estimate_propensities,
    weigh_clicks,
)
from tests.services.learning.simulation import PAGE, TODAY, World

POSITIONS = np.arange(1, PAGE + 1)
LEGS = tuple(TODAY.weights)
NEARLY_FLAT, USUAL = POSITIONS**-0.5, POSITIONS**-1.0
FOLDED = np.array([1.0, 0.8, 0.65, 0.55, 0.5, 0.15, 0.12, 0.1, 0.1, 0.1])
"""No power law: what is below the fold is hardly looked at."""


@pytest.mark.parametrize("examined", [NEARLY_FLAT, USUAL, FOLDED], ids=["flat", "usual", "folded"])
def test_the_bias_that_users_have_is_recovered(examined: np.ndarray) -> None:
    """From passages that one query showed at several positions, as other modes do."""
    rows = Rows.of(World(1).record(1500, examined=examined), LEGS)

    found = estimate_propensities(rows)

    assert np.abs(found.at(POSITIONS) - examined).max() < 0.11
    assert np.abs(found.at(POSITIONS) - examined).mean() < 0.05


def test_without_passages_that_moved_the_prior_stands() -> None:
    """Clicks fall with relevance, too, and may not be taken for the bias."""
    rows = Rows.of(World(1).record(500, elsewhere=0), LEGS)

    found = estimate_propensities(rows)

    assert found.evidence == 0
    assert found.at(np.array([1, 2, 10])).tolist() == pytest.approx([1, 0.5, 0.1])


def test_without_passages_that_moved_the_bias_is_no_steeper_than_the_clicks() -> None:
    """Else random clicks of users who look at everything would turn the ranking upside down."""
    rows = Rows.of(World(1).record(1500, elsewhere=0, examined=NEARLY_FLAT, random=True), LEGS)

    found = estimate_propensities(rows)

    assert found.evidence == 0
    assert np.abs(found.at(POSITIONS) - NEARLY_FLAT).max() < 0.08


def test_few_clicks_hardly_move_the_prior() -> None:
    """A handful of voices stands against it, whose users look at every position."""
    rows = Rows.of(World(1).record(5, elsewhere=0.5, examined=[1.0] * PAGE), LEGS)

    found = estimate_propensities(rows)

    assert found.at(np.array([2, 10])).tolist() == pytest.approx([0.5, 0.1], abs=0.15)


def test_weights_of_clicks_are_clipped() -> None:
    """The limit holds for one click, and for all of one page."""
    page = Impression(
        session="s",
        voice="s",
        query="q",
        weights={},
        shown=tuple(Shown(position, position, {}) for position in (1, 2, 50, 100)),
        clicked=frozenset({2, 50, 100}),
    )

    weights = weigh_clicks(Rows.of([page], ()), Propensities(eta=1.0))

    assert weights.sum() == pytest.approx(MAX_WEIGHT)
    assert weights[0] == 0
    assert weights[2] == weights[3] == 5 * weights[1]


def test_a_position_of_any_depth_has_a_propensity() -> None:
    """By the power law, beyond those that may deviate from it."""
    some = Propensities(eta=1.0, deviations=np.log([1.0, 0.5]))

    assert some.at(np.array([1, 2, 3, 1000])).tolist() == pytest.approx([1, 0.25, 1 / 3, 0.001])
