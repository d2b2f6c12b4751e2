"""Learning as a whole: weights and boosts are fitted, and adopted only where they help."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Final
from zlib import crc32

import numpy as np

from pgcorpus.services.learning.boosts import fit_boosts
from pgcorpus.services.learning.impressions import Impression, Rows
from pgcorpus.services.learning.propensities import Propensities, estimate_propensities
from pgcorpus.services.learning.replay import Estimate, Ranking, Replay, estimate_change, replay
from pgcorpus.services.learning.weights import fit_weights

FOLDS: Final = 5
"""Parts of the voices; each is replayed under what the others taught."""

LEAST_VOICES: Final = 50
"""The fewest voices that must have clicked.

Intervals from fewer are narrower than they should be."""


@dataclass(frozen=True, kw_only=True)
class Learned:
    """The result of learning: a ranking, and its expected worth.

    Attributes:
        ranking: Weights and boosts for searches; today's where nothing was learned.
        is_new: Whether it is another than today's.
        reason: Why it is, or why not.
        estimate: Expected change for voices that were held out, or None where it was not tried.
        propensities: The position bias that was corrected for.
        impressions: How many had passages.
        clicks: How many passages were clicked, each once a page.
        voices: How many clicked.
    """

    ranking: Ranking
    is_new: bool
    reason: str
    estimate: Estimate | None
    propensities: Propensities
    impressions: int
    clicks: int
    voices: int

    def as_json(self) -> dict[str, Any]:
        """Return what was learned as the command line prints it; boosts as pairs."""
        return vars(self) | {
            "ranking": asdict(self.ranking) | {"boosts": [*self.ranking.boosts.items()]},
            "estimate": None if self.estimate is None else self.estimate._asdict(),
            "propensities": self.propensities.as_json(),
        }


def learn(impressions: Iterable[Impression], today: Ranking) -> Learned:
    """Learn weights and boosts from impressions, and keep today's unless others are better.

    The voices are parted; what the others teach is replayed on each part. Only where the interval
    of the change is above zero is anything changed, and then all voices teach together.

    Args:
        impressions: Of one corpus and of searches whose scores are absolute.
        today: The ranking in use. Its legs are those whose weights are learned.

    Raises:
        Misuse: scipy is not installed.
    """
    rows = Rows.of(impressions, tuple(today.weights))
    propensities = estimate_propensities(rows)
    voices = rows.clicking_voices
    if voices < LEAST_VOICES:
        reason = f"nothing to learn: {voices} voices clicked, and {LEAST_VOICES} are needed"
        estimate, is_new = None, False
    else:
        estimate = estimate_change(_cross_fit(rows, today))
        is_new = estimate.low > 0
        interval = f"{estimate.low:+.4f} to {estimate.high:+.4f}"
        reason = (
            f"held-out voices gain {estimate.change:+.4f} ({interval})"
            if is_new
            else f"nothing to learn: held-out voices gain {interval}, which is not above zero"
        )
    return Learned(
        ranking=_fit(rows, today, propensities) if is_new else today,
        is_new=is_new,
        reason=reason,
        estimate=estimate,
        propensities=propensities,
        impressions=int(np.unique(rows.page).size),
        clicks=int(rows.clicked.sum()),
        voices=voices,
    )


def _fit(rows: Rows, today: Ranking, propensities: Propensities) -> Ranking:
    weights = fit_weights(rows, today.weights, propensities)
    return Ranking(weights=weights, boosts=fit_boosts(rows, weights, propensities))


def _cross_fit(rows: Rows, today: Ranking) -> Replay:
    """Replay each part of the voices under what the other parts teach."""
    # By name, so that a voice is in the same part however many others there are.
    fold = np.array([crc32(voice.encode()) % FOLDS for voice in rows.voices])[rows.voice]
    parts = []
    for number in range(FOLDS):
        others = rows.take(fold != number)
        propensities = estimate_propensities(others)
        ranking = _fit(others, today, propensities)
        parts.append(replay(rows.take(fold == number), today, ranking, propensities))
    return Replay(*(np.sum(sums, axis=0) for sums in zip(*parts, strict=True)))
