"""A question to one corpus, ready for the database."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np

from pgcorpus.db.search.legs import AskedModel
from pgcorpus.db.search.options import Options
from pgcorpus.db.search.question import Question

FIRST_DEPTH: Final = 30
"""Candidates of each leg for pages that end within this number of hits. In the default fusion every
leg scores the candidates of all: with 100, nDCG@10 is the same on thirteen collections, to 0.0005.
The others count a leg's own candidates: on three collections they gain up to 0.014, and lose
0.008."""

DEPTHS: Final = (100, 1000, 11_000)
"""Candidates for pages that end beyond: the first of these that reaches the end. Depth does not
grow from page to page, or hits would move between pages that are shown and pages to come."""


@dataclass(frozen=True, kw_only=True)
class Ask(Options):
    """A question to one corpus, ready for the database.

    Attributes:
        question: Taken apart.
        legs: Which legs run, each with its weight.
        model: Whose vectors are compared; needed for the vector leg.
        vector: The question's, float32 of shape ``(model.dimensions,)``.
        least_depth: Candidates of each leg, at least: more where fewer are of too few groups.
        least_first_depth: The same for the first page of this size.
        stretch: Factor of the vector leg's weight, which spreads a model's cosines like those that
            the weights were found with.
        foreign: A further factor where the question is in no language that the model knows. A
            learned ranking has none: it was found on such questions.
    """

    question: Question
    legs: Mapping[str, float]
    model: AskedModel | None = None
    vector: np.ndarray | None = None
    least_depth: int = 0
    least_first_depth: int = 0
    stretch: float = 1.0
    foreign: float = 1.0

    @property
    def depth(self) -> int:
        """The number of candidates of each leg."""
        return max(_choose_depth(self.end), self.least_depth, self._least_grouped)

    @property
    def first_depth(self) -> int:
        """The number of candidates of each leg for the first page of this size."""
        return max(_choose_depth(self.limit), self.least_first_depth, self._least_grouped)

    @property
    def enough(self) -> int:
        """The number of candidates of a leg that fill the page; groups may need all."""
        return self.end if self.group_by is None else self.depth

    @property
    def _least_grouped(self) -> int:
        return 0 if self.group_by is None else DEPTHS[0]


def _choose_depth(hits: int) -> int:
    return FIRST_DEPTH if hits <= FIRST_DEPTH else next(each for each in DEPTHS if each >= hits)
