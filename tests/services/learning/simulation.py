"""A world whose truth is known: passages, queries, and users who click with position bias."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from pgcorpus.services.evaluation.metrics import ndcg
from pgcorpus.services.learning.impressions import Impression, Shown
from pgcorpus.services.learning.replay import Ranking

TODAY: Final = Ranking(weights={"vector": 0.3, "text": 0.7})
TRUTH: Final = {"vector": 0.7, "text": 0.3}
PAGE: Final = 10
CANDIDATES: Final = 30
EXAMINED: Final = tuple(1 / position for position in range(1, PAGE + 1))
GRADES: Final = 1000
"""Steps of relevance, since judgments are whole numbers."""


@dataclass(frozen=True)
class Query:
    """A query with its candidates, arrays of one length."""

    text: str
    passages: np.ndarray
    scores: np.ndarray
    relevance: np.ndarray


class World:
    """Passages and queries whose relevance is known.

    Args:
        seed: Of all chance.
        quality: Standard deviation of what passages are worth beside their scores, in log-odds.
        steepness: Log-odds that a whole score is worth.
        truth: Leg → weight, by which relevance follows from scores.
    """

    def __init__(
        self,
        seed: int,
        *,
        quality: float = 0.5,
        steepness: float = 10.0,
        truth: Mapping[str, float] = TRUTH,
        asked: int = 80,
    ) -> None:
        self._chance = np.random.default_rng(seed)
        self.quality = self._chance.normal(0, quality, 400)
        self._steepness = steepness
        self._truth = np.array([truth["vector"], truth["text"]])
        self.asked = [self._make_query(f"asked {n}") for n in range(asked)]
        self.held_out = [self._make_query(f"held out {n}") for n in range(200)]

    def _make_query(self, text: str) -> Query:
        passages = self._chance.choice(len(self.quality), CANDIDATES, replace=False)
        scores = np.stack(
            [self._chance.beta(5, 5, CANDIDATES), self._chance.beta(2, 4, CANDIDATES)], axis=1
        )
        worth = self._steepness * (scores @ self._truth - 0.6) + self.quality[passages]
        return Query(text, passages, scores, 1 / (1 + np.exp(-worth)))

    def record(
        self,
        voices: int,
        *,
        examined: Sequence[float] = EXAMINED,
        noise: float = 0.1,
        elsewhere: float = 0.2,
        searches: int = 2,
        random: bool = False,
    ) -> list[Impression]:
        """Let users search and click.

        Args:
            voices: How many.
            examined: Probability that a position is looked at, from the first on.
            noise: Share of clicks on what is examined that do not depend on relevance.
            elsewhere: Share of searches in the modes ``vector`` and ``text``.
            searches: Of each voice.
            random: Whether relevance is ignored.
        """
        return [
            self._search(f"voice {voice}", examined, noise, elsewhere, random=random)
            for voice in range(voices)
            for _ in range(searches)
        ]

    def _search(
        self, voice: str, bias: Sequence[float], noise: float, elsewhere: float, *, random: bool
    ) -> Impression:
        # Few queries are frequent, many are rare.
        query = self.asked[int(len(self.asked) * self._chance.random() ** 2)]
        weights = dict(TODAY.weights)
        if self._chance.random() < elsewhere:
            weights = {str(self._chance.choice(["vector", "text"])): 1.0}
        legs = {leg: n for n, leg in enumerate(("vector", "text")) if leg in weights}
        fused = sum(weights[leg] * query.scores[:, n] for leg, n in legs.items())
        best = np.argsort(-np.asarray(fused), kind="stable")[:PAGE]
        examined = self._chance.random(PAGE) < np.array(bias)
        relevance = np.full(PAGE, 0.3) if random else query.relevance[best]
        chosen = self._chance.random(PAGE) < noise + (1 - 2 * noise) * relevance
        return Impression(
            session=voice,
            voice=voice,
            query=query.text,
            weights=weights,
            shown=tuple(
                Shown(
                    int(query.passages[row]),
                    position,
                    {leg: float(query.scores[row, n]) for leg, n in legs.items()},
                )
                for position, row in enumerate(best, start=1)
            ),
            clicked=frozenset(query.passages[best[examined & chosen]].tolist()),
        )

    def judge(self, ranking: Ranking) -> float:
        """Return the true nDCG@10 of a ranking, the mean over the held-out queries."""
        weights = np.array([ranking.weights["vector"], ranking.weights["text"]])
        values = []
        for query in self.held_out:
            boosts = [ranking.boosts.get(int(passage), 0.0) for passage in query.passages]
            scores = query.scores @ weights / weights.sum() + boosts
            order = [str(query.passages[row]) for row in np.argsort(-scores, kind="stable")]
            grades = (query.relevance * GRADES).astype(int).tolist()
            judgments = dict(zip(map(str, query.passages), grades, strict=True))
            values.append(ndcg(order, judgments, PAGE))
        return float(np.mean(values))
