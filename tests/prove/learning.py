"""Learning from clicks in many worlds whose truth is known, with the figures of the documents.

``python -m tests.prove.learning`` prints the table of docs/explanation/learning.md.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Final

from rich.console import Console
from rich.table import Table

from pgcorpus.db.engine import Database
from pgcorpus.services.documentation.learning import ClickLearner
from pgcorpus.services.learning.boosts import fit_boosts
from pgcorpus.services.learning.impressions import Rows
from pgcorpus.services.learning.learn import learn
from pgcorpus.services.learning.propensities import Propensities
from pgcorpus.services.learning.replay import Ranking
from pgcorpus.services.learning.weights import fit_weights
from tests.prove.proofs import Proof
from tests.services.documentation.clicks import make_chunks, read_ranking, record
from tests.services.learning.simulation import EXAMINED, TODAY, TRUTH, World

LEAST_UNCHANGED: Final = 0.95
"""Share of worlds with random clicks in which nothing may change."""

NEARLY_FLAT: Final = tuple(position**-0.5 for position in range(1, 11))
STEEP: Final = tuple(position**-1.5 for position in range(1, 11))


@dataclass(frozen=True)
class Outcome:
    """The true nDCG@10 on held-out queries in one world.

    Attributes:
        is_new: Whether anything was learned.
        today: Of the ranking before.
        learned: Of what was learned, or of the ranking before.
        uncorrected: Of what would be learned from clicks as they are, adopted in any case.
        truth: Of the weights from which relevance follows, without boosts.
    """

    is_new: bool
    today: float
    learned: float
    uncorrected: float
    truth: float


def try_world(
    seed: int,
    voices: int,
    *,
    examined: Sequence[float] = EXAMINED,
    elsewhere: float = 0.2,
    truth: Mapping[str, float] = TRUTH,
    quality: float = 0.5,
) -> Outcome:
    """Let users of a world click, learn from it, and judge by the truth."""
    world = World(seed, truth=truth, quality=quality)
    impressions = world.record(voices, examined=examined, elsewhere=elsewhere)
    learned = learn(impressions, TODAY)
    rows, everywhere = Rows.of(impressions, tuple(TODAY.weights)), Propensities(eta=0.0)
    naive = fit_weights(rows, TODAY.weights, everywhere)
    uncorrected = Ranking(weights=naive, boosts=fit_boosts(rows, naive, everywhere))
    return Outcome(
        is_new=learned.is_new,
        today=world.judge(TODAY),
        learned=world.judge(learned.ranking),
        uncorrected=world.judge(uncorrected),
        truth=world.judge(Ranking(weights=truth)),
    )


def clicks_teach(worlds: int, voices: int) -> Proof:
    """Prove that the learned ranking is better, and would not be as good without correction."""
    began = time.monotonic()
    outcomes = [try_world(seed, voices) for seed in range(worlds)]
    today, learned, uncorrected, truth = (
        fmean(getattr(each, name) for each in outcomes)
        for name in ("today", "learned", "uncorrected", "truth")
    )
    return Proof(
        claim=f"{voices:,} voices with position bias teach a better ranking, in {worlds} worlds",
        found=f"nDCG@10 {today:.3f} → {learned:.3f}; uncorrected {uncorrected:.3f}; "
        f"true weights {truth:.3f}",
        holds=all(each.learned > max(each.today, each.uncorrected) for each in outcomes),
        seconds=time.monotonic() - began,
    )


def random_clicks_teach_nothing(worlds: int, voices: int) -> Proof:
    """Prove that clicks without relevance, with any position bias, leave today's ranking."""
    began = time.monotonic()
    biases = (EXAMINED, NEARLY_FLAT, STEEP)
    changed = sum(
        learn(
            World(seed, asked=40).record(
                voices,
                examined=biases[seed % 3],
                elsewhere=0.2 * (seed // 3 % 2),
                random=True,
            ),
            TODAY,
        ).is_new
        for seed in range(worlds)
    )
    return Proof(
        claim=f"random clicks of {voices:,} voices change nothing, in {worlds} worlds",
        found=f"changed in {changed}",
        holds=changed <= worlds * (1 - LEAST_UNCHANGED),
        seconds=time.monotonic() - began,
    )


def clicks_teach_in_tables(database: Database, voices: int) -> Proof:
    """Prove that what is learned through the tables is stored, better, and taken back."""
    began = time.monotonic()
    world = World(0)
    keys = make_chunks(database, world)
    record(database, world.record(voices), keys)
    learner = ClickLearner(database)
    report = learner.learn(apply=True)
    today, learned = world.judge(TODAY), world.judge(TODAY)
    if report.applied is not None:
        learned = world.judge(read_ranking(database, keys))
    taken_back = learner.roll_back()
    return Proof(
        claim=f"clicks of {voices:,} voices in the tables teach a version, which is taken back",
        found=f"nDCG@10 {today:.3f} → {learned:.3f}; {report.boosts} boosts",
        holds=learned > today
        and taken_back is not None
        and not any(each.is_active for each in learner.list_versions()),
        seconds=time.monotonic() - began,
    )


def main() -> int:
    """Print the figures of the documents, means over ten worlds each."""
    worlds: dict[str, dict[str, object]] = {
        "as usual": {},
        "one mode, nothing moved": {"elsewhere": 0.0},
        "bias 1 / √position": {"examined": NEARLY_FLAT},
        "bias 1 / position^1.5": {"examined": STEEP},
        "today's weights are right": {"truth": TODAY.weights},
        "the same, passages differ more": {"truth": TODAY.weights, "quality": 1.0},
    }
    table = Table(
        "world", "voices", "learned in", "today", "learned", "uncorrected", "true weights"
    )
    for name, options in worlds.items():
        for voices in (100, 400, 1500):
            outcomes = [try_world(seed, voices, **options) for seed in range(10)]  # type: ignore[arg-type]
            figures = [
                f"{fmean(getattr(each, what) for each in outcomes):.3f}"
                for what in ("today", "learned", "uncorrected", "truth")
            ]
            new = sum(each.is_new for each in outcomes)
            table.add_row(name, f"{voices:,}", f"{new} of 10", *figures)
    Console(width=120).print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
