"""Knowledge that is kept from search to search does not outlive its subject."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from pgcorpus.db.search.answer import Answer
from pgcorpus.db.search.corpora import KNOWLEDGE
from pgcorpus.db.uow import UnitOfWork
from tests.db.search.crowd import WORD, Crowd, ask, undo_all

HYBRID = {"vector": 0.3, "text": 0.7}


def apply(work: UnitOfWork) -> None:
    """A ranking of other weights."""
    work.rankings.apply(KNOWLEDGE, weights={"vector": 1, "text": 0}, boosts={}, estimate={})


def take_back(work: UnitOfWork) -> None:
    """The ranking before, or none."""
    work.rankings.roll_back(KNOWLEDGE)


@pytest.mark.parametrize(
    ("before", "change", "weight"), [(None, apply, 1.0), (apply, take_back, None)]
)
def test_another_learned_ranking_is_seen_by_the_next_search(
    crowd: Crowd,
    before: Callable[[UnitOfWork], None] | None,
    change: Callable[[UnitOfWork], None],
    weight: float | None,
) -> None:
    """The weights of a moment ago are those of a ranking, and the statement tells which it is."""
    with undo_all(crowd) as work:

        def answer() -> Answer:
            asked = replace(ask(f"{WORD[900]} {WORD[40]}", HYBRID), learned=True)
            return work.searches.answer(KNOWLEDGE, asked)

        untouched = answer().statement.weights["vector"]
        if before is not None:
            before(work)
        first, again = answer(), answer()
        change(work)
        changed, after = answer(), answer()

    assert first.statement.weights == again.statement.weights
    assert changed.statement.weights["vector"] == (untouched if weight is None else weight)
    assert after.statement.weights == changed.statement.weights
    assert first.statement.weights != changed.statement.weights
    assert not changed.outdated
