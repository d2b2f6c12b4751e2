"""The reports of what teaches weights, for people and scripts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pgcorpus.services.learning.learn import Learned


@dataclass(frozen=True, kw_only=True)
class WeightsReport:
    """Weights of the legs beside those of today, as callers give them to a search.

    Attributes:
        corpus: Whose passages are ranked.
        scope: ``shared``, or the scope that learns.
        today: Leg → weight of the ranking in use; their sum is 1.
        today_version: The learned version in use, in words, or None.
        weights: Leg → weight of what was found; *today* where that is nothing.
        applied: The version that was stored, or None.
    """

    corpus: str
    scope: str
    today: Mapping[str, float]
    today_version: str | None
    weights: Mapping[str, float]
    applied: int | None = None


@dataclass(frozen=True, kw_only=True)
class LearningReport(WeightsReport):
    """The result of learning from clicks.

    Attributes:
        learned: What was learned, for the scores as they are.
        boosts: How many passages what was learned boosts.
        pages: How many pages were recorded.
        is_limited: Whether only the latest were read, for there are too many.
        left_out: Reason → how many pages or clicks were left out.
    """

    learned: Learned
    boosts: int
    pages: int
    is_limited: bool
    left_out: Mapping[str, int]

    def as_json(self) -> dict[str, Any]:
        """Return the report as the command line prints it; boosts are counted, not listed."""
        learned = self.learned.as_json()
        kept = ("is_new", "reason", "estimate", "propensities", "impressions", "clicks", "voices")
        return vars(self) | {"learned": {each: learned[each] for each in kept}}
