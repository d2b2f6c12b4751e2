"""``pgcorpus performance``: the figures of searches, as an operator reads them."""

from __future__ import annotations

import json

import pytest
from sqlalchemy import text

from pgcorpus.db.engine import Database
from tests import factories
from tests.command import Command


@pytest.fixture
def logged(database: Database) -> Database:
    """A log of a quick search and of a slow one, whose question was kept."""
    with database.unit_of_work() as work:
        factories.bind(work.session)
        factories.QueryPerformanceFactory(duration=10.0)
        factories.QueryPerformanceFactory(
            duration=900.0,
            query_type="text_search",
            question="price\x1b[31m anchor",
            legs={"text": {"status": "ok", "candidates": 3, "duration_ms": 850.5}},
            options={"limit": 5, "offset": 0},
        )
        work.session.execute(text("ANALYZE framework_documents"))
        work.commit()
    return database


def test_figures_slow_searches_and_a_plan_are_shown_to_people_and_scripts(
    pgcorpus: Command, logged: Database
) -> None:
    """At 80 columns; stored text commands no terminal."""
    figures, slow = pgcorpus("performance", "--json"), pgcorpus("performance", "--slow", "--json")
    (found,) = json.loads(slow.stdout)
    plan = pgcorpus("performance", "--plan", str(found["id"]), "--json")
    shown = [
        pgcorpus("performance", *arguments, COLUMNS="80")
        for arguments in ((), ("--slow",), ("--plan", str(found["id"]), "--analyze"))
    ]

    told = json.loads(figures.stdout)
    assert [each["query_type"] for each in told["query_types"]] == ["hybrid_search", "text_search"]
    assert [each["p50_ms"] for each in told["hours"]] == [10.0, 900.0]
    assert found["question"] == "price\x1b[31m anchor"
    explained = json.loads(plan.stdout)["explanation"]
    assert explained["plan"]["Plan"]
    assert [each.returncode for each in shown] == [0, 0, 0], [each.stderr for each in shown]
    assert max(len(line) for each in shown[:2] for line in each.stdout.splitlines()) <= 80
    assert "\x1b" not in "".join(each.stdout for each in shown)
    assert "text 850.5" in shown[1].stdout


def test_what_was_never_logged_is_said(pgcorpus: Command) -> None:
    """With who logs."""
    shown = pgcorpus("performance")

    assert (shown.returncode, "no search was logged" in shown.stderr) == (0, True)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--plan", "1", "--slow"), 2, "--slow and --plan"),
        (("--analyze",), 2, "it goes with --plan"),
        (("--least-ms", "5"), 2, "it goes with --slow"),
        (("--since", "soon"), 2, "is no length of time"),
        (("--corpus", "nothing"), 2, "nothing"),
        (("--plan", "77"), 1, "none with the id 77"),
        (("--plan", "0"), 2, "--plan"),
    ],
)
def test_wrong_use_is_a_sentence(
    pgcorpus: Command, arguments: tuple[str, ...], code: int, message: str
) -> None:
    """And what was meant is guessed from it."""
    refused = pgcorpus("performance", *arguments)

    assert refused.returncode == code
    assert message in refused.stderr
    assert "Traceback" not in refused.stderr
