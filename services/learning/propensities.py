"""Position bias: how likely a passage is to be looked at where it stood."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from pgcorpus.services.learning.impressions import Rows
from pgcorpus.services.learning.optimum import find_minimum

PRIOR_ETA: Final = 1.0
"""The exponent of the power law 1 / position^eta before data, as Joachims et al. 2017 have it."""

ETA_SPREAD: Final = 0.5
DEVIATION_SPREAD: Final = 0.3
"""Standard deviations of what is thought likely before data: of eta, and of the logarithm of one
position's examination beside the power law."""

FREE_POSITIONS: Final = 20
"""Positions that may deviate from the power law; further ones are seen too seldom to tell."""

MAX_ETA: Final = 3.0

MAX_WEIGHT: Final = 10.0
"""The most that a click, or a page, weighs: clipping trades a little bias for much variance."""


@dataclass(frozen=True, kw_only=True)
class Propensities:
    """The probability that a position is examined, as a share of the first position's.

    Attributes:
        eta: Exponent of the power law 1 / position^eta.
        deviations: float64 of shape ``(n,)``: what is added to the logarithm of the power law at
            positions 1 to n; nothing beyond.
        evidence: Clicks, each voice's together at most one page's, on passages that one query
            showed at several positions: what the estimate stands on.
    """

    eta: float
    deviations: np.ndarray = field(default_factory=lambda: np.zeros(1))
    evidence: float = 0.0

    def at(self, positions: np.ndarray) -> np.ndarray:
        """Return the probabilities, float64 in (0, 1], at positions counted from 1."""
        beyond = np.append(self.deviations, 0.0)
        added = beyond[np.minimum(positions - 1, len(self.deviations))]
        return np.asarray(np.minimum(np.exp(added - self.eta * np.log(positions)), 1.0))

    def as_json(self) -> dict[str, Any]:
        """Return the estimate, with the probabilities of the first ten positions."""
        return {
            "eta": self.eta,
            "evidence": self.evidence,
            "examined": self.at(np.arange(1, 11)).tolist(),
        }


def estimate_propensities(rows: Rows) -> Propensities:
    """Estimate the position bias from passages that one query showed at several positions.

    A click is the product of examination, which depends on the position alone, and relevance,
    which depends on query and passage alone. Of the clicks on one passage of one query, those at
    position k are then the share n_k · examined_k / Σ n · examined, whatever its relevance: no
    model of relevance is needed. Modes, weights, filters and new passages move passages about.

    The power law is shrunk towards ``PRIOR_ETA``, or towards the slope of the click rates
    themselves where that is less: examination falls no faster than clicks do, unless today's
    ranking were worse than chance.

    Args:
        rows: Of any impressions.

    Returns:
        The estimate; the prior where nothing was shown at several positions.

    Source:
        Agarwal et al. 2019, "Estimating Position Bias without Intrusive Interventions", for the
        harvested interventions; Hausman, Hall and Griliches 1984, "Econometric Models for Count
        Data", for the conditional likelihood; Wooldridge 1999, "Distribution-free estimation of
        some nonlinear panel data models", for its consistency whatever the distribution; Wang
        et al. 2018, "Position Bias Estimation for Unbiased Learning to Rank in Personal Search",
        for the model of clicks.
    """
    everything = _Cells(np.zeros_like(rows.pair), rows)
    slope = everything.fit(PRIOR_ETA, 1).eta if everything.evidence else PRIOR_ETA
    return _Cells(rows.pair, rows).fit(min(PRIOR_ETA, slope), FREE_POSITIONS)


def weigh_clicks(rows: Rows, propensities: Propensities) -> np.ndarray:
    """Weigh clicks by the inverse of their propensities.

    Args:
        rows: Of whole pages.
        propensities: Of their positions.

    Returns:
        float64 of shape ``(rows,)``: 0 where nothing was clicked, else share of the voice /
        propensity. No click, and no page's clicks together, weigh more than ``MAX_WEIGHT`` shares.

    Source:
        Joachims, Swaminathan and Schnabel 2017, "Unbiased Learning-to-Rank with Biased Feedback".
    """
    weights = np.where(rows.clicked, 1 / propensities.at(rows.positions), 0.0)
    weights = np.minimum(weights, MAX_WEIGHT)
    _, page = np.unique(rows.page, return_inverse=True)
    total = np.bincount(page, weights)[page] if len(page) else weights
    return rows.share * weights * np.minimum(1.0, MAX_WEIGHT / np.maximum(total, 1.0))


class _Cells:
    """Impressions and clicks by group and position, of groups that were at several positions.

    Args:
        group: int64 of shape ``(rows,)``: the relevance of a group is the same at all positions.
        rows: What was shown.
    """

    def __init__(self, group: np.ndarray, rows: Rows) -> None:
        keys = np.stack([group, rows.positions], axis=1)
        cells, number = np.unique(keys, axis=0, return_inverse=True)
        shown = np.bincount(number, rows.share, len(cells))
        clicks = np.bincount(number, rows.share * rows.clicked, len(cells))
        _, groups = np.unique(cells[:, 0], return_inverse=True)
        moved = np.bincount(groups) > 1
        tells = (moved & (np.bincount(groups, clicks) > 0))[groups]
        _, self._groups = np.unique(groups[tells], return_inverse=True)
        self._positions = cells[tells, 1]
        self._shown, self._clicks = shown[tells], clicks[tells]
        self.evidence = float(self._clicks.sum())

    def fit(self, eta: float, free: int) -> Propensities:
        """Fit the power law, shrunk towards *eta*, and *free* positions beside it."""
        if not self.evidence:
            return Propensities(eta=eta)
        logarithms = np.log(self._positions)
        slot = np.minimum(self._positions - 1, free)  # the last is of all positions beyond
        of_group = np.bincount(self._groups, self._clicks)

        def lose(parameters: np.ndarray) -> tuple[float, np.ndarray]:
            added = np.append(parameters[1:], 0.0)
            utility = added[slot] - parameters[0] * logarithms
            weighed = self._shown * np.exp(utility)
            split = weighed / np.bincount(self._groups, weighed)[self._groups]
            off_by = of_group[self._groups] * split - self._clicks
            prior = np.append((parameters[0] - eta) / ETA_SPREAD, parameters[1:] / DEVIATION_SPREAD)
            spreads = np.append(ETA_SPREAD, np.full(free, DEVIATION_SPREAD))
            slope = np.append(-off_by @ logarithms, np.bincount(slot, off_by, free + 1)[:free])
            loss = -(self._clicks @ np.log(np.maximum(split, np.finfo(float).tiny)))
            return float(loss + prior @ prior / 2), slope + prior / spreads

        # All is relative to the first position, which therefore deviates by nothing.
        bounds = [(0.0, MAX_ETA), (0.0, 0.0), *[(None, None)] * (free - 1)]
        found = find_minimum(lose, np.append(eta, np.zeros(free)), bounds)
        return Propensities(eta=float(found[0]), deviations=found[1:], evidence=self.evidence)
