"""The weights of the legs, tuned to judged questions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np

from pgcorpus.services.learning.replay import (
    Estimate,
    Replay,
    estimate_change,
    resample_changes,
)

SHARES: Final = np.linspace(0.0, 1.0, 101)
"""Shares of the weights that the vector leg may have. Each question is ranked under every one: its
quality jumps where two passages change places, and has no slope to follow."""

DEPTH: Final = 10
"""The places that count."""

TEMPERATURE: Final = 0.6
"""The difference of the summed nDCG that makes a share e times as likely. A question changes by 0.1
to 0.2 between far shares, mostly by chance. With 0.4 to 0.8 held-out questions gain the same."""

DEVIATION: Final = 0.4
"""Standard deviation of the shares around today's, as they are expected without any question."""

LEAST_QUESTIONS: Final = 20
"""The fewest judged questions; 50 and more are better."""

LEAST_CHANCE: Final = 0.2
"""The least share of resamples in which held-out questions must gain. It may be low, as the fewer
questions there are, the nearer the shares stay to today's. With 20 to 50 % other questions gained
0.005 on the mean, with either of two models; of one of them, with less they mostly lost. With a
bound of 0.5 seven collections gained a quarter less."""

CONFIDENCE: Final = 0.9
"""The confidence of the interval of a gain."""


@dataclass(frozen=True, kw_only=True)
class Judged:
    """A question's candidates with the score of each leg, and the judgments of documents.

    Attributes:
        key: The question's own.
        documents: Of each candidate, its document; of several candidates the best one counts.
        vector: float64 of shape ``(candidates,)``: scores of the vector leg.
        text: The same of the text leg, or None where it had no word to look up.
        boosts: What a learned ranking adds to each.
        grades: Document → grade. At least one is above 0.
    """

    key: str
    documents: Sequence[str]
    vector: np.ndarray
    text: np.ndarray | None
    boosts: np.ndarray
    grades: Mapping[str, int]

    def measure(self) -> np.ndarray:
        """Return the question's nDCG@10 under each of ``SHARES``, float64 of that shape."""
        gains = sorted((max(grade, 0) for grade in self.grades.values()), reverse=True)[:DEPTH]
        best = float(np.array(gains) @ _discounts(len(gains)))
        names = sorted(set(self.documents))
        place = {name: row for row, name in enumerate(names)}
        text = self.vector if self.text is None else self.text
        fused = np.outer(self.vector, SHARES) + np.outer(text, 1 - SHARES) + self.boosts[:, None]
        scores = np.full((len(names), len(SHARES)), -np.inf)
        np.maximum.at(scores, [place[name] for name in self.documents], fused)
        order = np.argsort(-scores, axis=0, kind="stable")[:DEPTH]
        grades = np.array([max(self.grades.get(name, 0), 0) for name in names], dtype=float)
        return np.asarray(_discounts(len(order)) @ grades[order] / best)


@dataclass(frozen=True, kw_only=True)
class Tuned:
    """The result of tuning.

    Attributes:
        share: Of the vector leg, in [0, 1]; today's where nothing was found.
        is_new: Whether it is another than today's.
        reason: Why it is, or why not.
        questions: How many were judged.
        curve: Share → mean nDCG@10 of all questions, in tenths: how much there may be to gain.
        estimate: What held-out questions gain, with the interval of ``CONFIDENCE``; None where it
            was not tried.
        chance: Share of resamples in which they gain, or None.
    """

    share: float
    is_new: bool
    reason: str
    questions: int
    curve: Mapping[float, float]
    estimate: Estimate | None = None
    chance: float | None = None

    def as_json(self) -> dict[str, Any]:
        """Return the result as the command line prints it."""
        return vars(self) | {"estimate": None if self.estimate is None else self.estimate._asdict()}


def tune(judged: Sequence[Judged], today: float) -> Tuned:
    """Tune the share of the vector leg, and keep today's unless another is better.

    Each question is ranked under the share that all others teach. Only where that gains in
    ``LEAST_CHANCE`` of the resamples is anything changed, and then all questions teach together.

    Args:
        judged: The questions; at least one.
        today: The share of the vector leg in use, in [0, 1].
    """
    curves = np.stack([each.measure() for each in judged])
    tenths = zip(SHARES[::10].round(1).tolist(), curves.mean(axis=0)[::10].tolist(), strict=True)
    kept = Tuned(
        share=today,
        is_new=False,
        reason=f"nothing to tune by: {len(judged)} judged questions, and {LEAST_QUESTIONS} needed",
        questions=len(judged),
        curve=dict(tenths),
    )
    if len(judged) < LEAST_QUESTIONS:
        return kept
    total = curves.sum(axis=0)
    taught = _find_columns(fit_share(total - curves, today))
    held_out = Replay(
        weight=np.ones(len(judged)),
        before=curves[:, _find_columns(np.array(today))],
        after=curves[np.arange(len(judged)), taught],
    )
    estimate = estimate_change(held_out, confidence=CONFIDENCE)
    chance = float((resample_changes(held_out) > 0).mean())
    is_new = chance >= LEAST_CHANCE
    gain = (
        f"held-out questions gain {estimate.change:+.4f} ({estimate.low:+.4f} to "
        f"{estimate.high:+.4f}), in {chance:.0%} of resamples"
    )
    return replace(
        kept,
        share=float(fit_share(total, today)) if is_new else today,
        is_new=is_new,
        reason=gain if is_new else f"nothing to gain: {gain}",
        estimate=estimate,
        chance=chance,
    )


def fit_share(summed: np.ndarray, today: float) -> np.ndarray:
    """Fit the share of the vector leg to the summed nDCG of questions.

    The mean of the shares, each as likely as exp(summed nDCG / ``TEMPERATURE``) times a normal
    density around *today* makes it: few questions, and those that all shares rank alike, leave it
    near today's.

    Args:
        summed: float64 of shape ``(..., len(SHARES))``: for each set of questions the sum.
        today: The share in use.

    Returns:
        The shares, float64 of shape ``(...)``.

    Source:
        Catoni 2007, "PAC-Bayesian Supervised Classification", for the posterior that a loss makes
        of a prior.
    """
    evidence = summed / TEMPERATURE - (SHARES - today) ** 2 / (2 * DEVIATION**2)
    likely = np.exp(evidence - evidence.max(axis=-1, keepdims=True))
    return np.asarray(likely @ SHARES / likely.sum(axis=-1))


def _find_columns(shares: np.ndarray) -> np.ndarray:
    """Find the places of the nearest of ``SHARES``."""
    return np.asarray(np.abs(SHARES - shares[..., None]).argmin(axis=-1))


def _discounts(places: int) -> np.ndarray:
    return np.asarray(1 / np.log2(np.arange(2, places + 2)))
