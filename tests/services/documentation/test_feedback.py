"""Pages that users were shown, and their clicks, are recorded as they were; searches use both."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from uuid import UUID, uuid4

import pytest
from sqlalchemy import text

from pgcorpus.db.engine import Database
from pgcorpus.db.errors import ConstraintViolated, InvalidSearch, InvalidValue, NotFound
from pgcorpus.db.scope import Scope
from pgcorpus.db.search.corpora import DOCUMENTATION
from pgcorpus.db.search.page import LearnedVersion, SearchPage
from pgcorpus.services.documentation.feedback import AsyncFeedbackService, FeedbackService
from pgcorpus.services.documentation.service import DocumentService
from pgcorpus.services.embedding.hashing import HashingEmbedder
from pgcorpus.services.search.service import SearchService
from tests.logins import logged_in
from tests.services.documentation.clicks import CHUNKS

TEXTS = (
    "The kettle whistles in the kitchen.",
    "A kettle is filled with water.",
    "The harbour is far away.",
)


@dataclass(frozen=True)
class Site:
    """A site that is searched by everybody, and by a tenant, who has a page of its own.

    Attributes:
        owner: Who is an administrator.
        application: The login of a service.
        ours: The tenant.
        theirs: Another, without pages.
    """

    owner: Database
    application: Database
    ours: Scope
    theirs: Scope

    def search(self, scope: Scope | None = None, **options: object) -> SearchPage:
        """Search for a kettle, as the service."""
        service = SearchService(self.application, embedder=HashingEmbedder())
        return service.search("kettle", corpus="documentation", scope=scope, **options)  # type: ignore[arg-type]

    def apply(
        self,
        boosts: dict[UUID, float],
        scope: Scope | None = None,
        weights: tuple[float, float] = (0.5, 0.5),
    ) -> None:
        """Make a ranking the active one."""
        with self.owner.unit_of_work() as work:
            if scope is not None:
                work.enter(scope)
            vector, of_text = weights
            work.rankings.apply(
                DOCUMENTATION,
                weights={"vector": vector, "text": of_text},
                boosts=boosts,
                estimate={},
            )
            work.commit()

    def count(self, table: str) -> int:
        """Count the rows that nobody's searches have made."""
        with self.application.unit_of_work() as work:
            return work.session.scalar(text(f"SELECT count(*) FROM {table}")) or 0  # noqa: S608 - a table of ours


@pytest.fixture
def site(database: Database) -> Iterator[Site]:
    """Three shared texts, one of the tenant, all with vectors."""
    with database.unit_of_work() as work:
        ours, theirs = (work.tenancy.create_tenant(name).id for name in ("Ours", "Theirs"))
        work.models.use_model("documentation", "hashing")
        work.commit()
    with logged_in(database, "rag_read_write") as application:
        scope = Scope.tenant(ours)
        DocumentService(database, HashingEmbedder()).add_texts(TEXTS)
        DocumentService(application, HashingEmbedder()).add_texts(
            ["Our kettle is blue."], scope=scope
        )
        yield Site(database, application, scope, Scope.tenant(theirs))


def test_a_page_is_recorded_with_what_each_leg_gave(site: Site) -> None:
    """Positions go on over pages; scores are the legs' own, weights those of the search."""
    page = site.search(offset=1)
    feedback = FeedbackService(site.application)

    key = feedback.record_shown(page, session_id="visit", user_id="ann")

    with site.application.unit_of_work() as work:
        row = (
            work.session.execute(text("SELECT * FROM search_sessions WHERE id = :id"), {"id": key})
            .mappings()
            .one()
        )
    assert (row["scope"], row["session_id"], row["user_id"]) == ("shared", "visit", "ann")
    assert (row["query"], row["mode"], row["fusion"]) == ("kettle", "hybrid", "calibrated")
    assert row["weights"] == pytest.approx(page.weights)
    assert sum(page.weights.values()) == pytest.approx(1)
    assert row["shown"] == [
        {"id": str(hit.id), "position": position, "scores": dict(hit.scores)}
        for position, hit in enumerate(page.hits, start=2)
    ]


def test_a_page_can_be_written_after_the_answer(site: Site) -> None:
    """The key is there at once, and the row when what was noted is flushed."""
    feedback = FeedbackService(site.application)

    keys = {
        feedback.record_shown(site.search(scope), session_id="visit", scope=scope, later=True)
        for scope in (None, site.ours)
    }
    assert site.count("search_sessions") == 0
    feedback.flush()

    found = set()
    for scope in (None, site.ours):
        with site.application.unit_of_work(scope) as work:
            found |= set(work.session.scalars(text("SELECT id FROM search_sessions")))
    assert found == keys


def test_a_page_of_another_corpus_is_refused(site: Site) -> None:
    """And so is a visit without a name."""
    page = site.search()
    feedback = FeedbackService(site.application)

    with pytest.raises(InvalidValue, match="not of chat"):
        feedback.record_shown(replace(page, corpus="chat"), session_id="visit")
    with pytest.raises(InvalidValue, match="session_id is blank"):
        feedback.record_shown(page, session_id=" ")
    assert site.count("search_sessions") == 0


def test_a_click_is_on_a_chunk_that_its_scope_may_read(site: Site) -> None:
    """Named by key or by chunk_id; a chunk of another tenant is not found."""
    ours = next(hit for hit in site.search(site.ours).hits if not hit.metadata["shared"])
    shared = site.search().hits[0]
    feedback = FeedbackService(site.application)
    clicked = {"query": "kettle", "position": 1, "session_id": "visit"}

    feedback.record_click(ours.id, scope=site.ours, dwell_time=9.0, **clicked)  # type: ignore[arg-type]
    feedback.record_click(shared.metadata["chunk_id"], scope=site.ours, **clicked)  # type: ignore[arg-type]
    for scope in (site.theirs, None):
        with pytest.raises(NotFound):
            feedback.record_click(ours.id, scope=scope, **clicked)  # type: ignore[arg-type]
    with pytest.raises(NotFound):
        feedback.record_click(uuid4(), **clicked)  # type: ignore[arg-type]
    with pytest.raises(ConstraintViolated):
        feedback.record_click(shared.id, query="kettle", position=0)

    assert feedback.get_statistics(scope=site.ours) == (2, 1, 1.0, 9.0)
    assert feedback.get_statistics("harbour", scope=site.ours).total_clicks == 0
    assert feedback.get_statistics() == (0, 0, None, None)


def test_feedback_is_recorded_within_asyncio(site: Site) -> None:
    """The same service, awaited; a question that no column can hold as it is, too."""

    async def visit() -> int:
        feedback = AsyncFeedbackService(site.application)
        page = replace(site.search(), question="ket\0tle")
        await feedback.record_shown(page, session_id="visit")
        await feedback.record_shown(page, session_id="visit", later=True)
        await feedback.flush()
        hit = page.hits[0]
        await feedback.record_click(hit.id, query="ket\0tle", position=1, session_id="visit")
        found = await feedback.get_statistics("ket tle")
        await site.application.aclose()
        return found.total_clicks

    assert asyncio.run(visit()) == 1
    assert site.count("search_sessions") == 2


def test_a_search_ranks_by_what_was_learned(site: Site) -> None:
    """Weights are the learned ones, a boost is added and shown, and the page names the version."""
    before = site.search()
    last = before.hits[-1]
    assert before.learned is None

    site.apply({last.id: 0.05}, weights=(0.9, 0.1))
    after = site.search()

    assert after.learned == LearnedVersion("shared", 1)
    assert after.weights == pytest.approx({"vector": 0.9, "text": 0.1})
    hit = next(hit for hit in after.hits if hit.id == last.id)
    assert hit.contributions["learned"] == pytest.approx(0.05)
    assert hit.score == pytest.approx(sum(hit.contributions.values()))
    assert all("learned" not in each.contributions for each in after.hits if each.id != last.id)
    assert after.as_json()["learned"] == {"scope": "shared", "version": 1}


def test_a_boost_turns_over_what_is_nearly_equal(site: Site) -> None:
    """The order of hits follows the score with the boost, and is as before without."""
    first, second, *_ = site.search().hits
    assert first.score - second.score < 0.1

    site.apply({first.id: -0.05, second.id: 0.05}, weights=(0.3, 0.7))

    assert [hit.id for hit in site.search().hits][:2] == [second.id, first.id]
    assert [hit.id for hit in site.search(learned=False).hits][:2] == [first.id, second.id]


def test_a_caller_may_rank_as_before(site: Site) -> None:
    """Without what was learned, by weights of one's own, or in another mode or fusion."""
    unlearned = {
        "off": {"learned": False},
        "own weights": {"weights": {"vector": 0.3, "text": 0.7}},
        "one leg": {"mode": "text"},
        "ranks": {"fusion": "rrf"},
        "weighted": {"fusion": "weighted"},
    }
    before = {name: site.search(**options) for name, options in unlearned.items()}
    site.apply({hit.id: 0.05 for hit in site.search().hits[1:]})

    for name, options in unlearned.items():
        page = site.search(**options)
        assert page.learned is None, name
        assert page.hits == before[name].hits, name
    with pytest.raises(InvalidSearch, match="learned must be True or False"):
        site.search(learned="no")


def test_only_an_active_ranking_joins_its_boosts(site: Site) -> None:
    """The statement asks for no ranking where the caller wants none."""
    unasked = site.search(learned=False).explain().statement
    unlearned = site.search().explain().statement
    site.apply({})
    learned = site.search().explain().statement

    assert "learned_rankings" not in unasked
    assert "learned_rankings" in unlearned
    assert "chunk_boosts" not in unlearned
    assert "chunk_boosts" in learned


def test_boosts_are_looked_up_for_the_candidates_alone(site: Site) -> None:
    """Many boosts cost a search no more than few: an index has them."""
    keys = [uuid4() for _ in range(5000)]
    with site.owner.unit_of_work() as work:
        work.session.execute(CHUNKS, {"keys": keys, "tenant_id": None})
        work.commit()
    site.apply(dict.fromkeys(keys, 0.01))
    with site.owner.engine.begin() as connection:
        connection.execute(text("ANALYZE chunks, chunk_boosts"))

    plan = json.dumps(site.search().explain().plan)

    assert "uq_chunk_boosts_scope_ranking_id_chunk_id" in plan


def test_what_a_tenant_has_learned_ranks_its_own_searches_alone(site: Site) -> None:
    """Its own ranking comes before the shared one, boosts shared chunks for itself, and ends."""
    shared = site.search().hits[-1]
    pages = {scope: site.search(scope) for scope in (None, site.theirs)}

    site.apply({shared.id: 0.05}, scope=site.ours)

    assert site.search(site.ours).learned == LearnedVersion(str(site.ours), 1)
    for scope, page in pages.items():
        assert site.search(scope).hits == page.hits
    site.apply({})
    assert site.search(site.theirs).learned == LearnedVersion("shared", 1)
    assert site.search(site.ours).learned == LearnedVersion(str(site.ours), 1)
    with site.application.unit_of_work(site.ours) as work:
        work.rankings.roll_back(DOCUMENTATION)
        work.commit()
    assert site.search(site.ours).learned == LearnedVersion("shared", 1)


def test_a_chunk_that_goes_takes_its_boost_along(site: Site) -> None:
    """And a boost of a chunk that is gone when it is applied is left out."""
    hit = site.search().hits[0]
    site.apply({hit.id: 0.05, uuid4(): 0.05})
    assert site.count("chunk_boosts") == 1

    DocumentService(site.owner).delete(filters={"chunk_id": hit.metadata["chunk_id"]})

    assert site.count("chunk_boosts") == 0
    assert site.search().learned == LearnedVersion("shared", 1)


def test_a_boost_is_bounded_by_the_database(site: Site) -> None:
    """No ranking, however it came there, moves a passage by more."""
    hit = site.search().hits[0]

    with pytest.raises(InvalidValue, match="bounded_boost"):
        site.apply({hit.id: 0.06})
