"""Learning as a whole, proved on a world whose truth is known; ``make prove`` has more of it."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest

from pgcorpus.db.errors import Misuse
from pgcorpus.services.learning.boosts import fit_boosts
from pgcorpus.services.learning.impressions import Impression, Rows, Shown
from pgcorpus.services.learning.learn import LEAST_VOICES, learn
from pgcorpus.services.learning.propensities import Propensities, estimate_propensities
from pgcorpus.services.learning.replay import Ranking
from pgcorpus.services.learning.weights import fit_weights
from tests.services.learning.simulation import TODAY, TRUTH, World


@pytest.mark.parametrize("seed", range(3))
def test_the_learned_ranking_is_better_on_queries_that_nobody_asked(seed: int) -> None:
    """By the true relevance, and by more than half of what there was to gain."""
    world = World(seed)

    learned = learn(world.record(800), TODAY)

    assert learned.is_new
    assert learned.estimate is not None
    assert learned.estimate.low > 0
    best = world.judge(Ranking(weights=TRUTH))
    assert world.judge(learned.ranking) > (world.judge(TODAY) + best) / 2


def test_random_clicks_change_nothing() -> None:
    """In 19 of 20 worlds at least; ``make prove`` tries 200."""
    learned = [learn(World(seed, asked=20).record(80, random=True), TODAY) for seed in range(20)]

    assert sum(each.is_new for each in learned) <= 1
    assert all(each.ranking is TODAY for each in learned if not each.is_new)


def test_what_is_right_already_stays() -> None:
    """Users agree with today's weights."""
    learned = learn(World(2, truth=TODAY.weights, quality=0).record(300), TODAY)

    assert learned.ranking is TODAY
    assert "nothing to learn" in learned.reason


def test_ten_thousand_clicks_of_one_session_count_as_one_voice() -> None:
    """The same as a single click of it, to the last digit that matters, and that is little."""
    honest = World(1).record(400)
    bad = Impression(
        session="insistent",
        voice="insistent",
        query="asked 0",
        weights=TODAY.weights,
        shown=tuple(
            Shown(n, 1 + n, {"vector": 0.9 - 0.09 * n, "text": 0.09 * n}) for n in range(10)
        ),
        clicked=frozenset({9}),
    )

    without, once, often = (
        Rows.of([*honest, *[bad] * times], tuple(TODAY.weights)) for times in (0, 1, 10_000)
    )
    weights = [
        fit_weights(rows, TODAY.weights, estimate_propensities(rows))["vector"]
        for rows in (without, once, often)
    ]
    boosts = [fit_boosts(rows, TODAY.weights, Propensities(eta=1.0)) for rows in (once, often)]
    one, same = (learn([*honest, *[bad] * times], TODAY) for times in (1, 10_000))

    assert weights[2] == pytest.approx(weights[1], abs=1e-4)
    assert weights[2] == pytest.approx(weights[0], abs=0.05)
    assert boosts[1] == pytest.approx(boosts[0], abs=1e-4)
    assert same.voices == one.voices
    assert one.estimate == pytest.approx(same.estimate, abs=1e-4)


def test_a_few_voices_teach_nothing() -> None:
    """And the reason says how many are needed."""
    learned = learn(World(1).record(10), TODAY)

    assert learned.ranking is TODAY
    assert learned.estimate is None
    assert f"{LEAST_VOICES} are needed" in learned.reason


def test_no_impressions_teach_nothing() -> None:
    """An empty corpus is no error."""
    assert learn([], TODAY).ranking is TODAY


def test_the_same_impressions_teach_the_same_in_any_order() -> None:
    """No chance is in it; a voice is in the same part however the others come."""
    impressions = World(4).record(120)
    shuffled = [impressions[n] for n in np.random.default_rng(0).permutation(len(impressions))]

    one, other = learn(impressions, TODAY), learn(shuffled, TODAY)

    assert one.estimate is not None
    assert other.estimate is not None
    assert one.estimate.change == pytest.approx(other.estimate.change, abs=1e-4)


def test_what_was_learned_prints_as_json() -> None:
    """With the estimate and the bias that was corrected for."""
    shown = json.loads(json.dumps(learn(World(1).record(400), TODAY).as_json()))

    assert shown["ranking"]["weights"].keys() == TODAY.weights.keys()
    assert shown["estimate"].keys() == {"before", "change", "low", "high"}
    assert shown["propensities"]["examined"][0] == 1


def test_without_scipy_the_message_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is an extra: nothing but learning needs it."""
    monkeypatch.setitem(sys.modules, "scipy.optimize", None)

    with pytest.raises(Misuse, match=r"pip install 'pgcorpus\[learn\]'"):
        learn(World(1).record(60), TODAY)
