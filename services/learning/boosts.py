"""Boosts of passages that are clicked more, or less, than their scores lead to expect."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from pgcorpus.services.learning.impressions import Rows
from pgcorpus.services.learning.optimum import find_minimum
from pgcorpus.services.learning.propensities import Propensities

MAX_BOOST: Final = 0.05
"""Added to, or taken from, a score in [0, 1]."""

LEAST_STRENGTH: Final = 20.0
"""Examinations that the prior of a passage is worth, at least."""

LEAST_VOICES: Final = 10
"""The fewest voices that must have seen a passage before it is boosted at all."""

STANDARD_DEVIATIONS: Final = 2.0
"""The distance by which a rate must be off before it counts; only what is beyond does."""

LEAST_STEEPNESS: Final = 1.0
MAX_STEEPNESS: Final = 100.0
"""Limits of what a score higher by 1 adds to the log-odds of a click on what is examined."""

_EDGE: Final = 1e-6


def fit_boosts(
    rows: Rows, weights: Mapping[str, float], propensities: Propensities
) -> dict[Any, float]:
    """Fit what must be added to the scores of passages to explain how often they are clicked.

    A logistic curve tells how often a passage of some score is clicked once it is examined. A
    passage's own rate has a beta prior around what the curve gives for its scores, as strong as
    the passages differ from the curve beyond chance. What is left of the difference, less
    ``STANDARD_DEVIATIONS`` of the posterior, is turned into a score by the curve.

    Args:
        rows: Of any impressions. All that one voice saw of a passage counts as one.
        weights: Leg → weight, of the scores that are boosted.
        propensities: Of the positions.

    Returns:
        Passage → boost in [-``MAX_BOOST``, ``MAX_BOOST``], to be added to Σ weight · score over
        Σ weight; passages without a boost are left out.

    Source:
        Robbins 1956, "An empirical Bayes approach to statistics"; the spread of the prior by the
        method of moments, as Kleinman 1973, "Proportions with extraneous variance".
    """
    if not rows.clicked.any():
        return {}
    scores = rows.fuse(np.array([weights[leg] for leg in rows.legs]))
    examined = propensities.at(rows.positions)
    intercept, steepness = _fit_curve(rows, scores, examined)
    expected = _logistic(intercept + steepness * scores)

    seen = rows.passage * len(rows.voices) + rows.voice
    seen_once, each, times = np.unique(seen, return_inverse=True, return_counts=True)
    passage = seen_once // len(rows.voices)
    size = len(rows.passages)

    def add_up(values: np.ndarray) -> np.ndarray:
        return np.bincount(passage, np.bincount(each, values) / times, size)

    voices = np.bincount(passage, minlength=size)
    enough = voices >= LEAST_VOICES
    examinations, clicks = add_up(examined)[enough], add_up(rows.clicked * 1.0)[enough]
    prior = np.clip(add_up(examined * expected)[enough] / examinations, _EDGE, 1 - _EDGE)
    chance = add_up(examined * expected * (1 - examined * expected))[enough]
    strength = _estimate_strength(examinations, clicks, prior, chance)

    rate = np.clip((strength * prior + clicks) / (strength + examinations), _EDGE, 1 - _EDGE)
    deviation = np.sqrt(rate * (1 - rate) / (strength + examinations + 1))
    beyond = np.maximum(np.abs(rate - prior) - STANDARD_DEVIATIONS * deviation, 0.0)
    moved = prior + np.sign(rate - prior) * beyond
    boosts = np.clip((_logit(moved) - _logit(prior)) / steepness, -MAX_BOOST, MAX_BOOST)
    return {
        rows.passages[number]: float(boost)
        for number, boost in zip(np.flatnonzero(enough), boosts, strict=True)
        if boost
    }


def _fit_curve(rows: Rows, scores: np.ndarray, examined: np.ndarray) -> tuple[float, float]:
    """Fit intercept and steepness of P(click) = examined · logistic(intercept + steepness · s)."""

    def lose(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        rate = _logistic(parameters[0] + parameters[1] * scores)
        click = np.clip(examined * rate, _EDGE, 1 - _EDGE)
        likelihood = np.where(rows.clicked, np.log(click), np.log1p(-click))
        slope = np.where(rows.clicked, 1 / click, -1 / (1 - click)) * examined * rate * (1 - rate)
        gradient = -rows.share * slope
        return -float((rows.share * likelihood).sum()), np.array(
            [gradient.sum(), (gradient * scores).sum()]
        )

    start = np.array([-2.0, LEAST_STEEPNESS])
    found = find_minimum(lose, start, [(-MAX_STEEPNESS, 10.0), (LEAST_STEEPNESS, MAX_STEEPNESS)])
    return float(found[0]), float(found[1])


def _estimate_strength(
    examinations: np.ndarray, clicks: np.ndarray, prior: np.ndarray, chance: np.ndarray
) -> float:
    """Estimate how many examinations the prior is worth, from how far rates are off beyond chance.

    Returns:
        At least ``LEAST_STRENGTH``; 1 / ``_EDGE`` where chance alone explains all differences.
    """
    spread = prior * (1 - prior) @ examinations**2
    extra = float(np.sum((clicks - examinations * prior) ** 2 - chance))
    share = max(extra / spread, _EDGE) if spread > 0 else _EDGE
    return max(1 / share - 1, LEAST_STRENGTH)


def _logistic(x: np.ndarray) -> np.ndarray:
    return np.asarray(1 / (1 + np.exp(-np.clip(x, -500.0, 500.0))))


def _logit(p: np.ndarray) -> np.ndarray:
    return np.asarray(np.log(p) - np.log1p(-p))
