"""pgcorpus learn: what clicks teach is proposed, applied, shown and taken back."""

from __future__ import annotations

import json

from pgcorpus.db.engine import Database
from tests.command import Command
from tests.services.documentation.clicks import make_chunks, record
from tests.services.learning.simulation import World

LEARN = ("learn", "documentation")


def test_without_clicks_there_is_nothing_to_learn(pgcorpus: Command) -> None:
    """The command says why, writes nothing, and is done."""
    done = pgcorpus(*LEARN, "--apply")

    assert done.returncode == 0, done.stderr
    assert "nothing to learn: 0 voices clicked, and 50 are needed" in done.stdout
    assert json.loads(pgcorpus("learn", "status", "--json").stdout) == []
    assert "nothing was learned yet" in pgcorpus("learn", "status").stdout


def test_a_ranking_is_proposed_applied_and_taken_back(
    database: Database, pgcorpus: Command
) -> None:
    """Each step says what it did, and what comes next."""
    world = World(1)
    record(database, world.record(400, elsewhere=0.1), make_chunks(database, world))

    proposed = pgcorpus(*LEARN)
    assert proposed.returncode == 0, proposed.stderr
    assert "0.300" in proposed.stdout
    assert "99 % confidence +" in proposed.stdout
    assert "voices that clicked" in proposed.stdout
    assert "pages that are not hybrid and calibrated" in proposed.stderr
    assert "nothing was written; repeat with --apply" in proposed.stderr

    applied = json.loads(pgcorpus(*LEARN, "--apply", "--json").stdout)
    assert applied["applied"] == 1
    assert applied["learned"]["estimate"]["low"] > 0
    assert applied["weights"]["vector"] > applied["today"]["vector"]

    (version,) = json.loads(pgcorpus("learn", "status", "--json").stdout)
    assert version["is_active"]
    assert version["weights"] == applied["weights"]
    assert version["boosts"] == applied["boosts"]
    assert version["estimate"]["voices"] == applied["learned"]["voices"]
    assert "yes" in pgcorpus("learn", "status").stdout

    taken_back = pgcorpus("learn", "rollback", "documentation")
    assert "version 1 was taken back; searches rank unlearned" in taken_back.stderr
    again = pgcorpus("learn", "rollback", "documentation", "--json")
    assert json.loads(again.stdout) == {"rolled_back": None, "active": None}


def test_a_corpus_that_does_not_learn_is_no_argument(pgcorpus: Command) -> None:
    """The message names those that do."""
    done = pgcorpus("learn", "rollback", "chat")

    assert done.returncode == 2
    assert "there is no 'chat'; known: documentation" in done.stderr
