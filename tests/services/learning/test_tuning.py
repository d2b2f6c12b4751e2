"""Weights tuned to judged questions, on questions whose best weights are known."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

from pgcorpus.services.evaluation.metrics import ndcg
from pgcorpus.services.learning.tuning import LEAST_QUESTIONS, SHARES, Judged, fit_share, tune

CANDIDATES = 40
TODAY = 0.3


def ask(count: int, truth: float | None, *, seed: int = 0) -> list[Judged]:
    """Make questions whose three best candidates are relevant under the share *truth*.

    Without a truth any three are. What is judged is blurred, so that no share is right for all.
    """
    chance = np.random.default_rng(seed)
    judged = []
    for number in range(count):
        vector, text, blur = chance.random((3, CANDIDATES))
        score = blur if truth is None else truth * vector + (1 - truth) * text + 0.1 * blur
        best = np.argsort(-score)[:3]
        judged.append(
            Judged(
                key=f"q{number}",
                documents=[f"d{n}" for n in range(CANDIDATES)],
                vector=vector,
                text=text,
                boosts=np.zeros(CANDIDATES),
                grades={f"d{n}": 1 for n in best},
            )
        )
    return judged


@pytest.mark.parametrize("truth", [0.05, 0.6, 0.95])
def test_fifty_questions_find_the_weights_that_they_were_made_with(truth: float) -> None:
    """Questions that nobody has judged gain nearly all that there is, and what was told.

    The interval holds what they gain as often as it says.
    """
    others = np.mean([each.measure() for each in ask(400, truth, seed=99)], axis=0)
    gain = others - np.interp(TODAY, SHARES, others)

    tuned = [tune(ask(50, truth, seed=seed), TODAY) for seed in range(20)]

    assert all(each.is_new for each in tuned)
    assert [each.share for each in tuned] == pytest.approx([truth] * 20, abs=0.08)
    gained = np.interp([each.share for each in tuned], SHARES, gain)
    assert gained.min() > 0.9 * gain.max()
    told = [each.estimate for each in tuned if each.estimate is not None]
    assert np.mean([each.change for each in told]) == pytest.approx(gained.mean(), abs=0.02)
    held = [each.low < gain < each.high for each, gain in zip(told, gained, strict=True)]
    assert sum(held) >= 16


def test_weights_that_are_right_already_stay_nearly_as_they_are() -> None:
    """Questions that gain something by chance move them a little."""
    for seed in range(5):
        assert tune(ask(50, TODAY, seed=seed), TODAY).share == pytest.approx(TODAY, abs=0.06)


def test_questions_that_favour_no_weights_often_change_nothing() -> None:
    """The reason is told, with the interval."""
    tuned = [tune(ask(50, None, seed=seed), TODAY) for seed in range(20)]

    kept = [each for each in tuned if not each.is_new]
    assert len(kept) >= 6
    for each in kept:
        assert each.share == TODAY
        assert each.reason.startswith("nothing to gain: held-out questions gain")
        assert each.estimate is not None
        assert each.estimate.low < 0


def test_too_few_questions_are_told() -> None:
    """Nothing is tried."""
    tuned = tune(ask(LEAST_QUESTIONS - 1, 0.9), TODAY)

    assert (tuned.is_new, tuned.share, tuned.estimate) == (False, TODAY, None)
    assert tuned.reason == "nothing to tune by: 19 judged questions, and 20 needed"


def test_fewer_questions_move_the_weights_less() -> None:
    """And none do not at all, but for what the ends of the range cut off."""
    curves = np.stack([each.measure() for each in ask(80, 0.9)])

    shares = [float(fit_share(curves[:count].sum(axis=0), TODAY)) for count in (1, 5, 20, 80)]

    assert shares == sorted(shares)
    assert shares[-1] == pytest.approx(0.9, abs=0.06)
    assert float(fit_share(np.zeros(len(SHARES)), 0.5)) == pytest.approx(0.5)


def rank(judged: Judged, share: float) -> list[str]:
    """Rank documents by the best of their passages, one at a time."""
    text = judged.vector if judged.text is None else judged.text
    best: dict[str, float] = {}
    for name, v, t, boost in zip(judged.documents, judged.vector, text, judged.boosts, strict=True):
        best[name] = max(best.get(name, -1.0), share * v + (1 - share) * t + boost)
    return sorted(best, key=lambda name: -best[name])


def test_each_share_ranks_as_the_fusion_does() -> None:
    """Passages of one document, boosts, grades and candidates that are not judged included."""
    chance = np.random.default_rng(7)
    grades: Mapping[str, int] = {"d1": 3, "d2": 1, "d5": 0, "d7": -1, "lost": 2}
    for words in (True, False):
        judged = Judged(
            key="q",
            documents=[f"d{n % 15}" for n in range(CANDIDATES)],
            vector=chance.random(CANDIDATES),
            text=chance.random(CANDIDATES) if words else None,
            boosts=chance.uniform(-0.05, 0.05, CANDIDATES),
            grades=grades,
        )

        measured = judged.measure()

        for share, quality in zip(SHARES, measured, strict=True):
            assert quality == pytest.approx(ndcg(rank(judged, share), grades, 10))


def test_a_question_that_finds_nothing_is_worth_nothing_under_any_weights() -> None:
    """It counts for the mean."""
    nothing = np.array([])
    judged = Judged(
        key="q", documents=[], vector=nothing, text=nothing, boosts=nothing, grades={"d": 1}
    )

    assert not judged.measure().any()
