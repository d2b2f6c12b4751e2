"""Impressions: what searches showed and what was clicked, as values and as arrays."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import count
from math import isfinite
from typing import Any, Self

import numpy as np

from pgcorpus.db.errors import Misuse


@dataclass(frozen=True)
class Shown:
    """A passage as a page showed it.

    Attributes:
        passage: Its key; hashable.
        position: From 1, over all pages of the search.
        scores: Leg → the leg's own score in [0, 1].
    """

    passage: Any
    position: int
    scores: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Impression:
    """A page that was shown, and the clicks on it.

    Attributes:
        session: The session it was shown in.
        voice: Counts as one, however much it clicks: the user where one is known, else the session.
        query: As asked; equal ones are the same query.
        weights: Leg → weight of the search.
        shown: The passages, each once.
        clicked: Keys of those that were clicked.

    Raises:
        Misuse: A passage is shown twice, a click is on none that was shown, a position is below 1,
            or a score is no finite number.
    """

    session: str
    voice: str
    query: str
    weights: Mapping[str, float]
    shown: tuple[Shown, ...]
    clicked: frozenset[Any] = frozenset()

    def __post_init__(self) -> None:
        passages = {each.passage for each in self.shown}
        if len(passages) < len(self.shown):
            raise Misuse(f"session {self.session!r}: a page shows a passage twice")
        if self.clicked - passages:
            raise Misuse(f"session {self.session!r}: a click is on a passage that was not shown")
        if any(each.position < 1 for each in self.shown):
            raise Misuse(f"session {self.session!r}: positions are counted from 1")
        if not all(isfinite(score) for each in self.shown for score in each.scores.values()):
            raise Misuse(f"session {self.session!r}: a leg's score is no finite number")


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Shown passages as arrays, one row each, those of a page together.

    Attributes:
        legs: Names of the legs, in the order of the columns of ``scores``.
        passages: Keys of the passages, in the order of their numbers.
        voices: Names of the voices, in the order of their numbers.
        scores: float64 of shape ``(rows, legs)``; 0 where a leg has none.
        answered: bool of shape ``(rows, legs)``: the leg scored a passage of the page.
        positions: int64 of shape ``(rows,)``, from 1.
        clicked: bool of shape ``(rows,)``.
        page: int64 of shape ``(rows,)``, ascending: the number of the impression.
        voice: int64 of shape ``(rows,)``: the number of the voice.
        passage: int64 of shape ``(rows,)``: the number of the passage.
        pair: int64 of shape ``(rows,)``: the number of query and passage together.
        share: float64 of shape ``(rows,)``: 1 / the impressions of the voice, so that all of them
            together count as one.
    """

    legs: tuple[str, ...]
    passages: tuple[Any, ...]
    voices: tuple[str, ...]
    scores: np.ndarray
    answered: np.ndarray
    positions: np.ndarray
    clicked: np.ndarray
    page: np.ndarray
    voice: np.ndarray
    passage: np.ndarray
    pair: np.ndarray
    share: np.ndarray

    @classmethod
    def of(cls, impressions: Iterable[Impression], legs: Sequence[str]) -> Self:
        """Turn impressions into arrays; scores of other legs than *legs* are left out."""
        passages: dict[Any, int] = {}
        voices: dict[str, int] = {}
        pairs: dict[tuple[str, Any], int] = {}
        pages = [each for each in impressions if each.shown]
        times = Counter(each.voice for each in pages)
        columns: list[tuple[int, int, int, int, int, bool, float]] = []
        scores: list[list[float]] = []
        answered: list[list[bool]] = []
        for number, page in zip(count(), pages, strict=False):
            voice = voices.setdefault(page.voice, len(voices))
            present = [any(leg in each.scores for each in page.shown) for leg in legs]
            for each in page.shown:
                scores.append([each.scores.get(leg, 0.0) for leg in legs])
                answered.append(present)
                columns.append(
                    (
                        number,
                        voice,
                        passages.setdefault(each.passage, len(passages)),
                        pairs.setdefault((page.query, each.passage), len(pairs)),
                        each.position,
                        each.passage in page.clicked,
                        1 / times[page.voice],
                    )
                )
        table = np.array(columns, dtype=np.float64).reshape(-1, 7)
        whole = table[:, :5].astype(np.int64)
        return cls(
            legs=tuple(legs),
            passages=tuple(passages),
            voices=tuple(voices),
            scores=np.array(scores, dtype=np.float64).reshape(len(columns), len(legs)),
            answered=np.array(answered, dtype=bool).reshape(len(columns), len(legs)),
            page=whole[:, 0],
            voice=whole[:, 1],
            passage=whole[:, 2],
            pair=whole[:, 3],
            positions=whole[:, 4],
            clicked=table[:, 5] > 0,
            share=table[:, 6],
        )

    def take(self, mask: np.ndarray) -> Rows:
        """Return the rows where *mask*, bool of shape ``(rows,)``, is true; numbers stay."""
        arrays = {
            each.name: getattr(self, each.name)[mask]
            for each in fields(self)
            if isinstance(getattr(self, each.name), np.ndarray)
        }
        return Rows(legs=self.legs, passages=self.passages, voices=self.voices, **arrays)

    @property
    def clicking_voices(self) -> int:
        """The number of voices that clicked at all."""
        return int(np.unique(self.voice[self.clicked]).size)

    def fuse(self, weights: np.ndarray) -> np.ndarray:
        """Return Σ weight · score over Σ weight, over the legs that answered for the page.

        Args:
            weights: float64 of shape ``(legs,)``, not negative.

        Returns:
            float64 of shape ``(rows,)``; 0 where no leg with a weight answered.
        """
        total = np.einsum("ij,j->i", self.answered, weights)
        fused = np.einsum("ij,j->i", self.scores, weights)
        return np.asarray(np.divide(fused, total, out=np.zeros(len(total)), where=total > 0))

    def pair_clicks(self) -> tuple[np.ndarray, np.ndarray]:
        """Return each clicked row beside each other row of its page.

        Returns:
            Two int64 arrays of one length: rows that were clicked, and rows of the same page.
        """
        _, begin, page, size = np.unique(
            self.page, return_index=True, return_inverse=True, return_counts=True
        )
        clicked = np.flatnonzero(self.clicked)
        repeats = size[page[clicked]]
        better = np.repeat(clicked, repeats)
        within = np.arange(len(better)) - np.repeat(np.cumsum(repeats) - repeats, repeats)
        other = np.repeat(begin[page[clicked]], repeats) + within
        apart = better != other
        return better[apart], other[apart]
