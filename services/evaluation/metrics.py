"""The quality of a ranking, by the relevance judgments of its question.

The definitions are those of trec_eval: gain is linear in the grade, and a judgment of 0 or less is
the same as none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import log2


def ndcg(ranking: Sequence[str], judgments: Mapping[str, int], depth: int) -> float:
    """Return the normalised discounted cumulative gain: 1 for the best order that there can be.

    Args:
        ranking: Keys of what was found, best first, each once.
        judgments: Key → grade. At least one is above 0.
        depth: How many of the ranking count.

    Returns:
        Σ grade / log2(rank + 1) over the first *depth*, as a share of what the judged passages
        would reach in the best order, found or not. In [0, 1].

    Source:
        Järvelin and Kekäläinen 2002, "Cumulated gain-based evaluation of IR techniques", in the
        form of trec_eval's ``ndcg_cut``.
    """
    best = sorted(judgments.values(), reverse=True)
    gained = _discount([judgments.get(key, 0) for key in ranking[:depth]])
    return gained / _discount(best[:depth])


def recall(ranking: Sequence[str], judgments: Mapping[str, int], depth: int) -> float:
    """Return the share of the relevant passages that are among the first *depth*.

    Args:
        ranking: As for ``ndcg``.
        judgments: As for ``ndcg``.
        depth: How many of the ranking count.
    """
    relevant = _relevant(judgments)
    return len(relevant.intersection(ranking[:depth])) / len(relevant)


def reciprocal_rank(ranking: Sequence[str], judgments: Mapping[str, int]) -> float:
    """Return 1 / the rank of the first relevant passage, or 0 where none was found.

    Args:
        ranking: As for ``ndcg``; all of it counts.
        judgments: As for ``ndcg``.
    """
    relevant = _relevant(judgments)
    ranks = (rank for rank, key in enumerate(ranking, start=1) if key in relevant)
    return 1 / next(ranks, float("inf"))


def _discount(grades: Sequence[int]) -> float:
    return sum(max(grade, 0) / log2(rank + 1) for rank, grade in enumerate(grades, start=1))


def _relevant(judgments: Mapping[str, int]) -> set[str]:
    return {key for key, grade in judgments.items() if grade > 0}
