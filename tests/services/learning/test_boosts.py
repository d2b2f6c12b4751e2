"""Boosts of passages, fitted to clicks."""

from __future__ import annotations

import numpy as np
import pytest

from pgcorpus.services.learning.boosts import MAX_BOOST, fit_boosts
from pgcorpus.services.learning.impressions import Impression, Rows, Shown
from pgcorpus.services.learning.propensities import Propensities
from tests.services.learning.simulation import EXAMINED, TODAY, World

LEGS = tuple(TODAY.weights)
USUAL = Propensities(eta=1.0)


def pages_of(voices: int, passage: str, *, clicks: int) -> list[Impression]:
    """Show a passage of a middling score to *voices*, of whom *clicks* click it."""
    return [
        Impression(
            session=f"{passage} {n}",
            voice=f"{passage} {n}",
            query=passage,
            weights={},
            shown=(Shown(passage, 1, {"vector": 0.5, "text": 0.5}),),
            clicked=frozenset({passage} if n < clicks else ()),
        )
        for n in range(voices)
    ]


def background() -> list[Impression]:
    """A hundred passages of which some are much better than others, each shown to twenty."""
    return [
        page for n in range(100) for page in pages_of(20, f"passage {n}", clicks=5 if n % 2 else 15)
    ]


def test_boosts_follow_what_passages_are_worth_beside_their_scores() -> None:
    """The truth of the simulation is known; all are within bounds."""
    world = World(1, quality=1.0)
    rows = Rows.of(world.record(1500, examined=EXAMINED), LEGS)

    boosts = fit_boosts(rows, TODAY.weights, USUAL)

    worth = world.quality[list(boosts)]
    given = np.array(list(boosts.values()))
    assert len(boosts) > 20
    assert np.mean(np.sign(worth) == np.sign(given)) > 0.8
    assert np.abs(given).max() <= MAX_BOOST


@pytest.mark.parametrize(("voices", "clicks"), [(1, 1), (3, 3), (9, 9), (3, 0)])
def test_few_voices_boost_nothing(voices: int, clicks: int) -> None:
    """However clear their clicks are."""
    rows = Rows.of(background() + pages_of(voices, "new", clicks=clicks), LEGS)

    assert "new" not in fit_boosts(rows, TODAY.weights, USUAL)


def test_many_voices_boost_within_bounds() -> None:
    """Up for a passage that all click, down for one that nobody does."""
    seen = pages_of(200, "loved", clicks=200) + pages_of(200, "shunned", clicks=0)

    boosts = fit_boosts(Rows.of(background() + seen, LEGS), TODAY.weights, USUAL)

    assert 0 < boosts["loved"] <= MAX_BOOST
    assert -MAX_BOOST <= boosts["shunned"] < 0


def test_a_passage_that_stood_low_is_not_blamed_for_it() -> None:
    """Seldom clicked at the tenth position is as good as often clicked at the first."""
    low = [
        Impression(
            session=f"low {n}",
            voice=f"low {n}",
            query="low",
            weights={},
            shown=(Shown("low", 10, {"vector": 0.5, "text": 0.5}),),
            clicked=frozenset({"low"} if n % 20 == 0 else ()),
        )
        for n in range(400)
    ]
    rows = Rows.of(background() + low, LEGS)

    assert "low" not in fit_boosts(rows, TODAY.weights, USUAL)
    assert fit_boosts(rows, TODAY.weights, Propensities(eta=0.0))["low"] < 0


def test_chance_boosts_nothing() -> None:
    """Passages that differ by no more than chance explains are all alike."""
    rows = Rows.of(World(1).record(600, random=True), LEGS)

    assert len(fit_boosts(rows, TODAY.weights, USUAL)) <= 2
