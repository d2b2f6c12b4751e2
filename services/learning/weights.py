"""The weights of the legs, fitted to clicks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np

from pgcorpus.services.learning.impressions import Rows
from pgcorpus.services.learning.optimum import find_minimum
from pgcorpus.services.learning.propensities import Propensities, weigh_clicks

SHRINKAGE: Final = 10.0
"""Pull towards today's weights: what a move by 1 costs, squared, where a voice whose clicks are
told no better than by chance costs ln 2."""

STEEPNESS: Final = 10.0
"""The first guess of what a score higher by 1 adds to the log-odds of a click."""

TRACE: Final = 1e-3
"""The share of today's weight that a leg keeps: clicks that follow no leg change no weights."""


def fit_weights(
    rows: Rows, today: Mapping[str, float], propensities: Propensities
) -> dict[str, float]:
    """Fit the weights under which clicked passages stand before others of their page.

    Minimises Σ weight of the click · mean over the page's other passages of
    ln(1 + exp(-u · (scores of the clicked - scores of the other))) for u ≥ 0, plus
    ``SHRINKAGE`` · |u / Σ u - today|². Other passages are all others, clicked or not: to leave
    out clicked ones would count two relevant passages unequally, for the upper is clicked more.

    Args:
        rows: Of whole pages; those that lack a leg say nothing of weights and are left out.
        today: Leg → weight, one for each of ``rows.legs``, not negative, not all 0.
        propensities: Of the positions.

    Returns:
        Leg → weight, not negative; their sum is that of *today*.

    Source:
        Joachims, Swaminathan and Schnabel 2017, "Unbiased Learning-to-Rank with Biased Feedback",
        for the weighted pairs; Burges et al. 2005, "Learning to Rank using Gradient Descent", for
        the logistic loss.
    """
    total = sum(today[leg] for leg in rows.legs)
    start = np.array([today[leg] for leg in rows.legs]) / total
    whole = rows.take(np.asarray(rows.answered.all(axis=1)))
    better, other = whole.pair_clicks()
    if not better.size:
        return dict(today)
    clicks = weigh_clicks(whole, propensities)
    weight = clicks[better] / np.bincount(better)[better]
    weight *= _count_effective(np.bincount(whole.voice, clicks)) / weight.sum()
    differences = whole.scores[better] - whole.scores[other]

    def lose(u: np.ndarray) -> tuple[float, np.ndarray]:
        lead = np.einsum("ij,j->i", differences, u)
        loss = np.einsum("i,i->", weight, np.logaddexp(0.0, -lead))
        wrong = weight / (1 + np.exp(np.minimum(lead, 500.0)))
        direction = u / u.sum()
        away = direction - start
        turn = (away - away @ direction) / u.sum()
        slope = 2 * SHRINKAGE * turn - np.einsum("ij,i->j", differences, wrong)
        return float(loss + SHRINKAGE * (away @ away)), slope

    bounds = [(TRACE * weight, None) for weight in start.tolist()]
    found = find_minimum(lose, STEEPNESS * start, bounds)
    return dict(zip(rows.legs, (found / found.sum() * total).tolist(), strict=True))


def _count_effective(weights: np.ndarray) -> float:
    """Return how many voices of equal weight tell as much as those of *weights* do (Kish)."""
    return float(weights.sum() ** 2 / (weights @ weights))
