"""Clicks in the tables teach a ranking that searches use; a simulation knows the truth."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from uuid import UUID

import pytest
from sqlalchemy import text

from pgcorpus.db.engine import Database
from pgcorpus.db.errors import NotPermitted
from pgcorpus.db.scope import Scope
from pgcorpus.db.search.corpora import DOCUMENTATION
from pgcorpus.services.documentation.learning import ClickLearner
from pgcorpus.services.learning.impressions import Impression
from tests.logins import logged_in
from tests.services.documentation.clicks import BEGIN, make_chunks, read_ranking, record
from tests.services.learning.simulation import TODAY, World

VOICES = 600


@dataclass(frozen=True)
class Visited:
    """A world whose users have clicked.

    Attributes:
        database: Of its owner, who is an administrator.
        world: What is true.
        keys: Of its passages, by number.
        impressions: What was recorded.
    """

    database: Database
    world: World
    keys: list[UUID]
    impressions: list[Impression]


@pytest.fixture
def visited(database: Database) -> Visited:
    """Users click with position bias; a tenth of them search in one mode."""
    world = World(1)
    keys = make_chunks(database, world)
    impressions = world.record(VOICES, elsewhere=0.1)
    record(database, impressions, keys)
    return Visited(database, world, keys, impressions)


def test_what_is_learned_ranks_held_out_queries_better(visited: Visited) -> None:
    """The truth of a world judges: the stored ranking is better than the one before."""
    report = ClickLearner(visited.database).learn(apply=True)

    learned = read_ranking(visited.database, visited.keys)
    assert report.applied == 1
    assert report.learned.estimate is not None
    assert report.learned.estimate.low > 0
    assert learned.weights == pytest.approx(report.weights)
    assert learned.boosts
    assert visited.world.judge(learned) > visited.world.judge(TODAY) + 0.03


def test_nothing_is_written_unless_it_is_applied(visited: Visited) -> None:
    """A proposal leaves no row behind."""
    report = ClickLearner(visited.database).learn()

    assert report.learned.is_new
    assert report.applied is None
    assert report.today == {"vector": pytest.approx(0.3), "text": pytest.approx(0.7)}
    assert ClickLearner(visited.database).list_versions() == []


def test_random_clicks_are_not_applied(database: Database) -> None:
    """Clicks that follow no relevance teach nothing, whatever is asked."""
    world = World(2)
    record(database, world.record(300, random=True, elsewhere=0.0), make_chunks(database, world))

    report = ClickLearner(database).learn(apply=True)

    assert not report.learned.is_new
    assert "nothing to learn" in report.learned.reason
    assert report.weights == pytest.approx(report.today)
    assert ClickLearner(database).list_versions() == []


def test_a_session_that_clicks_ten_thousand_times_is_one_voice(visited: Visited) -> None:
    """Clicks of one session beyond its first change the weights no more than that did."""
    seen = visited.impressions[0]
    last = seen.shown[-1].passage
    once = replace(seen, session="eager", clicked=frozenset({last}))
    record(visited.database, [once], visited.keys)
    before = ClickLearner(visited.database).learn()
    with visited.database.unit_of_work() as work:
        work.session.execute(
            text(
                "INSERT INTO click_feedback"
                " (query, chunk_scope, chunk_id, position, session_id, created_at)"
                " SELECT query, chunk_scope, chunk_id, position, session_id,"
                " created_at + n * interval '1 second'"
                " FROM click_feedback, generate_series(1, 9999) AS n WHERE session_id = 'eager'"
            )
        )
        work.commit()

    after = ClickLearner(visited.database).learn()

    assert after.learned.voices == before.learned.voices
    assert after.weights == pytest.approx(before.weights)


def test_a_user_is_one_voice_in_all_sessions(visited: Visited) -> None:
    """Sessions are not counted where a user is known."""
    with visited.database.unit_of_work() as work:
        work.session.execute(text("UPDATE search_sessions SET user_id = 'one and the same'"))
        work.commit()

    report = ClickLearner(visited.database).learn(apply=True)

    assert report.learned.voices == 1
    assert "nothing to learn: 1 voices clicked" in report.learned.reason


def test_what_says_nothing_is_left_out_and_counted(visited: Visited) -> None:
    """Other fusions and modes, quick returns, clicks on what was not shown, broken pages."""
    clicks = sum(len(each.clicked) for each in visited.impressions)
    others = sum(len(each.weights) == 1 for each in visited.impressions)
    with visited.database.unit_of_work() as work:
        work.session.execute(
            text(
                'UPDATE search_sessions SET shown = \'[{"id": "no key"}]\''
                " WHERE session_id = 'voice 0'"
            )
        )
        work.session.execute(
            text("UPDATE search_sessions SET fusion = 'rrf' WHERE session_id = 'voice 1'")
        )
        work.session.execute(text("UPDATE click_feedback SET dwell_time = 1.5"))
        work.commit()

    report = ClickLearner(visited.database).learn()

    assert report.pages == len(visited.impressions)
    assert report.left_out["clicks left within 2 s"] == clicks
    assert report.left_out["pages that cannot be read"] in {1, 2}
    assert report.left_out["pages that are not hybrid and calibrated, or empty"] in range(
        others, others + 3
    )
    assert report.learned.clicks == 0


def test_only_what_was_shown_since_then_teaches(visited: Visited) -> None:
    """A date leaves out the pages before it, and their clicks."""
    middle = BEGIN + timedelta(minutes=5 * len(visited.impressions) // 2)

    report = ClickLearner(visited.database).learn(since=middle)

    assert report.pages == len(visited.impressions) // 2


def test_a_later_version_learns_from_the_one_in_use(visited: Visited) -> None:
    """Today's ranking is the active one; taking a version back uses the one before again."""
    learner = ClickLearner(visited.database)
    first = learner.learn(apply=True)
    again = learner.learn()
    with visited.database.unit_of_work() as work:
        work.rankings.apply(DOCUMENTATION, weights={"vector": 1, "text": 1}, boosts={}, estimate={})
        work.commit()

    assert again.today == pytest.approx(first.weights)
    assert again.today_version == "version 1, shared"
    for taken_back, in_use in ((2, 1), (1, None)):
        ended, before = learner.roll_back() or pytest.fail("nothing to take back")
        assert ended.version == taken_back
        assert (None if before is None else before.version) == in_use
    assert learner.roll_back() is None
    assert [(each.version, each.is_active) for each in learner.list_versions()] == [
        (2, False),
        (1, False),
    ]


def test_weights_are_those_of_cosines_spread_as_the_defaults_expect(visited: Visited) -> None:
    """A model whose cosines lie half as far apart gives the vector leg twice its weight."""
    whole = ClickLearner(visited.database).learn()
    with visited.database.unit_of_work() as work:
        work.session.execute(
            text("UPDATE embedding_models SET cosine_spread = 0.065 WHERE name = 'hashing'")
        )
        work.session.execute(
            text(
                "UPDATE search_sessions SET shown = (SELECT jsonb_agg(jsonb_set(hit,"
                " '{scores,vector}', to_jsonb((hit #>> '{scores,vector}')::float8 / 2)))"
                " FROM jsonb_array_elements(shown) AS hit) WHERE mode = 'hybrid'"
            )
        )
        work.commit()

    half = ClickLearner(visited.database).learn()

    assert half.today == whole.today
    assert half.weights == pytest.approx(whole.weights, abs=0.05)


@pytest.fixture
def tenants(database: Database) -> tuple[Scope, Scope]:
    """Two tenants."""
    with database.unit_of_work() as work:
        ours, theirs = (work.tenancy.create_tenant(name).id for name in ("Ours", "Theirs"))
        work.commit()
    return Scope.tenant(ours), Scope.tenant(theirs)


@pytest.fixture
def application(database: Database) -> Iterator[Database]:
    """The login of a service."""
    with logged_in(database, "rag_read_write") as application:
        yield application


def test_a_tenant_learns_from_its_own_clicks_and_for_itself(
    database: Database, application: Database, tenants: tuple[Scope, Scope]
) -> None:
    """No other tenant sees its clicks or its ranking, or is ranked by them."""
    ours, theirs = tenants
    world = World(3)
    keys = make_chunks(database, world, ours)
    record(database, world.record(300, elsewhere=0.0), keys, ours)

    report = ClickLearner(application, ours).learn(apply=True)

    assert report.applied == 1
    assert report.scope == str(ours)
    assert world.judge(read_ranking(database, keys, ours)) > world.judge(TODAY)
    for scope in (theirs, None):
        other = ClickLearner(application, scope)
        assert (other.learn().pages, other.list_versions()) == (0, [])
        with application.unit_of_work(scope) as work:
            assert work.rankings.find_active(DOCUMENTATION) is None
            for table in ("search_sessions", "click_feedback", "learned_rankings", "chunk_boosts"):
                counted = text(f"SELECT count(*) FROM {table}")  # noqa: S608 - a table of ours
                assert work.session.scalar(counted) == 0, table


def test_a_tenant_without_a_ranking_of_its_own_has_the_shared_one(
    visited: Visited, tenants: tuple[Scope, Scope]
) -> None:
    """Its own comes before the shared one, which is there again when that is taken back."""
    ours, theirs = tenants
    ClickLearner(visited.database).learn(apply=True)
    with visited.database.unit_of_work() as work:
        work.enter(ours)
        work.rankings.apply(DOCUMENTATION, weights={"vector": 1, "text": 0}, boosts={}, estimate={})
        active = work.rankings.find_active(DOCUMENTATION)
        work.enter(theirs)
        of_others = work.rankings.find_active(DOCUMENTATION)

    assert active is not None
    assert of_others is not None
    assert (active.scope, of_others.scope) == (str(ours), "shared")


def test_only_administrators_change_what_everybody_shares(
    visited: Visited, application: Database
) -> None:
    """A service may learn for everybody, and neither apply it nor take it back."""
    assert ClickLearner(application).learn().learned.is_new
    with pytest.raises(NotPermitted):
        ClickLearner(application).learn(apply=True)
    ClickLearner(visited.database).learn(apply=True)
    with pytest.raises(NotPermitted, match="rag_admin"):
        ClickLearner(application).roll_back()

    (version,) = ClickLearner(application).list_versions()
    assert version.is_active
