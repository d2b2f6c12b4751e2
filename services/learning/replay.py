"""Replays of recorded pages: what another ranking would have made of the same clicks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import numpy as np

from pgcorpus.db.errors import Misuse
from pgcorpus.services.learning.impressions import Rows
from pgcorpus.services.learning.propensities import Propensities, weigh_clicks

CONFIDENCE: Final = 0.99
RESAMPLES: Final = 1000


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """The order of a search's hits: Σ weight · score over Σ weight, plus the passage's boost.

    Attributes:
        weights: Leg → weight, not negative, not all 0.
        boosts: Passage → boost; others have none.

    Raises:
        Misuse: The weights leave no leg.
    """

    weights: Mapping[str, float]
    boosts: Mapping[Any, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not sum(self.weights.values()) > 0 or min(self.weights.values()) < 0:
            raise Misuse(f"weights must not be negative, and one above 0, not {self.weights!r}")

    def score(self, rows: Rows) -> np.ndarray:
        """Return the scores of shown passages, float64 of shape ``(rows,)``."""
        boosts = np.array([self.boosts.get(passage, 0.0) for passage in rows.passages])
        fused = rows.fuse(np.array([self.weights[leg] for leg in rows.legs]))
        return np.asarray(fused + boosts[rows.passage])

    def discount(self, rows: Rows) -> np.ndarray:
        """Return 1 / log2(1 + place) of each row among the passages of its page.

        Equal scores stay in the order in which they were shown.
        """
        order = np.lexsort((rows.positions, -self.score(rows), rows.page))
        _, begin, page = np.unique(rows.page, return_index=True, return_inverse=True)
        places = np.empty(len(order), dtype=np.int64)
        places[order] = np.arange(len(order)) - begin[page] + 1
        return np.asarray(1 / np.log2(1 + places))


class Replay(NamedTuple):
    """The sums of each voice, float64 of shape ``(voices,)``.

    Attributes:
        weight: Σ weight of its clicks.
        before: Σ weight · discount of the clicked passage under today's ranking.
        after: The same under another.
    """

    weight: np.ndarray
    before: np.ndarray
    after: np.ndarray


class Estimate(NamedTuple):
    """The expected change of the mean discount of a relevant passage.

    Attributes:
        before: The mean discount under today's ranking, in (0, 1]: 1 is the first place.
        change: What the other ranking adds.
        low: Lower end of the interval of ``CONFIDENCE``.
        high: Upper end.
    """

    before: float
    change: float
    low: float
    high: float


def replay(rows: Rows, today: Ranking, other: Ranking, propensities: Propensities) -> Replay:
    """Rank the recorded pages anew, by today's ranking and by another.

    Args:
        rows: Of whole pages.
        today: What is compared with; pages may have been shown by yet another ranking.
        other: What is tried.
        propensities: Of the positions at which the clicks were made.
    """
    weights = weigh_clicks(rows, propensities)
    size = len(rows.voices)
    return Replay(
        weight=np.bincount(rows.voice, weights, size),
        before=np.bincount(rows.voice, weights * today.discount(rows), size),
        after=np.bincount(rows.voice, weights * other.discount(rows), size),
    )


def estimate_change(voices: Replay, *, confidence: float = CONFIDENCE) -> Estimate:
    """Estimate the expected change, with the percentile bootstrap over voices.

    Args:
        voices: At least one of them has a weight.
        confidence: Of the interval.

    Returns:
        Σ weight · change of the discount over Σ weight (self-normalised inverse propensities),
        with an interval. The same voices give the same interval.

    Source:
        Swaminathan and Joachims 2015, "The Self-Normalized Estimator for Counterfactual Learning";
        Efron 1979, "Bootstrap Methods".
    """
    total = voices.weight.sum()
    tails = (1 - confidence) / 2
    low, high = np.quantile(resample_changes(voices), [tails, 1 - tails])
    return Estimate(
        before=float(voices.before.sum() / total),
        change=float((voices.after - voices.before).sum() / total),
        low=float(low),
        high=float(high),
    )


def resample_changes(voices: Replay) -> np.ndarray:
    """Return the change in each of ``RESAMPLES`` draws of the voices, with replacement."""
    clicked = voices.weight > 0
    weight, before, after = (each[clicked] for each in voices)
    gain = after - before
    chance = np.random.default_rng(0)
    size = len(weight)
    draws = (
        np.bincount(chance.integers(size, size=size), minlength=size) for _ in range(RESAMPLES)
    )
    return np.array([(times @ gain) / (times @ weight) for times in draws])
