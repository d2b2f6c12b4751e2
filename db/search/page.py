"""What a search gives back: hits with their reasons, and what each leg did."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

LegName = Literal["vector", "text", "fuzzy"]
Status = Literal["ok", "failed", "timed_out", "skipped"]


@dataclass(frozen=True, kw_only=True)
class Leg:
    """What one leg of a search did.

    Attributes:
        name: ``vector``, ``text`` or ``fuzzy``.
        status: Whether it answered.
        candidates: Passages it found, at most the depth it was asked for.
        duration_ms: Its share of the statement's time, or None when it did not run or found none.
        reason: Why it did not answer, or what its answer lacks.
    """

    name: LegName
    status: Status
    candidates: int = 0
    duration_ms: float | None = None
    reason: str | None = None


@dataclass(frozen=True, kw_only=True)
class Hit:
    """One passage that was found, and why it stands where it stands.

    Attributes:
        id: The passage's key.
        score: Sum of the contributions.
        title: Of the passage.
        content: Of the passage.
        ranks: Leg → place in that leg, from 1. A leg that did not find the passage is absent.
        scores: Leg → the leg's own score in [0, 1].
        contributions: Leg → what it added to ``score``.
        metadata: The corpus's further columns.
    """

    id: Any
    score: float
    title: str
    content: str
    ranks: Mapping[str, int]
    scores: Mapping[str, float]
    contributions: Mapping[str, float]
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class SearchPage:
    """A page of hits, honest about how it came to be.

    Attributes:
        corpus: What was searched.
        mode: The mode asked for.
        fusion: How legs are joined, where the mode has several.
        question: As asked.
        degraded: Whether a leg that the mode calls for did not answer.
        legs: What each leg did.
        hits: Best first.
        note: What a reader should know: why there are fewer hits than asked for, what was left out
            of the question, which leg stood in for another.
    """

    corpus: str
    mode: str
    fusion: str
    question: str
    degraded: bool
    legs: tuple[Leg, ...]
    hits: tuple[Hit, ...]
    note: str | None = None

    def as_json(self) -> dict[str, Any]:
        """The page as the command line prints it."""
        return asdict(self)
