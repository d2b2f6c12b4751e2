"""A model says which languages it knows; questions in others weigh its leg less."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from sqlalchemy import text

from pgcorpus.db.engine import Database
from pgcorpus.db.errors import AlreadyExists, InvalidValue
from pgcorpus.db.search.corpora import KNOWLEDGE
from pgcorpus.db.search.page import SearchPage
from pgcorpus.services.ops.switch import ModelSwitch
from pgcorpus.services.search.service import FOREIGN, SearchService
from tests import factories
from tests.command import Command
from tests.db.search.shelves import SHELVES, Passage
from tests.factories import axis
from tests.services.search.test_service import AxisEmbedder

LESS = 0.3 * FOREIGN / (0.3 * FOREIGN + 0.7)


def fill(database: Database, knows: Sequence[str] | None, *languages: str) -> SearchService:
    """Store a passage in each language, with vectors of a model that knows some."""
    with database.unit_of_work() as work:
        factories.bind(work.session)
        passages = [
            Passage(f"Kiosk {each}", "kiosk", axis(1, length=384), language=each)
            for each in languages
        ]
        SHELVES[0].fill(work, passages)
        work.session.execute(
            text("UPDATE embedding_models SET languages = :languages WHERE name = 'hashing'"),
            {"languages": None if knows is None else list(knows)},
        )
        work.commit()
    return SearchService(database, embedder=AxisEmbedder())


def reason_of(page: SearchPage) -> str | None:
    """Return what the vector leg says of itself."""
    (leg,) = (leg for leg in page.legs if leg.name == "vector")
    return leg.reason


def test_a_question_in_a_language_that_the_model_does_not_know_weighs_its_leg_less(
    database: Database,
) -> None:
    """The page says so; the leg answers, and the page is not degraded."""
    service = fill(database, ["english"], "german")

    page = service.search("kiosk", corpus="knowledge")

    assert page.weights["vector"] == pytest.approx(LESS)
    assert reason_of(page) == (
        "hashing knows english, and the question is read in german: its leg weighs less"
    )
    assert not page.degraded
    alone = service.search("kiosk", corpus="knowledge", mode="vector")
    assert reason_of(alone) == "hashing knows english, and the question is read in german"


@pytest.mark.parametrize(
    ("knows", "stored", "asked"),
    [
        (None, ["german"], None),
        (["german", "english"], ["german"], None),
        (["english"], ["german", "english"], None),
        (["english"], ["simple"], None),
        (["english"], ["german"], "english"),
        (["english"], ["german"], "pg_catalog.english"),
    ],
    ids=["all", "known", "mixed", "untold", "asked", "asked with its schema"],
)
def test_a_question_that_may_be_in_a_known_language_weighs_it_as_ever(
    database: Database, knows: list[str] | None, stored: list[str], asked: str | None
) -> None:
    """One of the languages that the question is read in is enough, and ``simple`` says nothing."""
    service = fill(database, knows, *stored)

    page = service.search("kiosk", corpus="knowledge", language=asked)

    assert page.weights["vector"] == pytest.approx(0.3)
    assert reason_of(page) is None


def test_a_language_that_is_named_counts_and_not_those_of_the_passages(database: Database) -> None:
    """The caller knows best."""
    service = fill(database, ["english"], "english")

    page = service.search("kiosk", corpus="knowledge", language="german")

    assert page.weights["vector"] == pytest.approx(LESS)


def test_weights_of_the_caller_and_of_a_learned_ranking_stay(database: Database) -> None:
    """They were chosen for such questions; the reason is told all the same."""
    service = fill(database, ["english"], "german")
    given = service.search("kiosk", corpus="knowledge", weights={"vector": 1, "text": 1})
    with database.unit_of_work() as work:
        weights = {"vector": 0.6, "text": 0.4}
        work.rankings.apply(KNOWLEDGE, weights=weights, boosts={}, estimate={})
        work.commit()

    learned = service.search("kiosk", corpus="knowledge")

    assert given.weights["vector"] == pytest.approx(0.5)
    assert learned.weights["vector"] == pytest.approx(0.6)
    for page in (given, learned):
        assert "knows english" in (reason_of(page) or "")


def test_a_model_is_registered_with_its_languages(database: Database) -> None:
    """Adding it again with others is refused; none at all is no answer."""
    switch = ModelSwitch(database)

    model = switch.add("two", dimensions=8, provider="hashing", languages=["german", "french"])

    assert model.languages == ["german", "french"]
    with pytest.raises(AlreadyExists, match="german, french"):
        switch.add("two", dimensions=8, provider="hashing", languages=["german"])
    with pytest.raises(InvalidValue, match="one text search configuration at least"):
        switch.add("none", dimensions=8, provider="hashing", languages=[])
    with database.unit_of_work() as work:
        assert work.models.get_model("all-MiniLM-L6-v2").languages == ["english"]
        assert work.models.get_model("bge-m3").languages is None


def test_the_command_names_languages_and_lists_them(pgcorpus: Command) -> None:
    """A name that PostgreSQL has no configuration for is refused with those it has."""
    add = ("models", "add", "polyglot", "--dimensions", "8", "--provider", "hashing")

    wrong = pgcorpus(*add, "--language", "klingon")
    added = pgcorpus(*add, "--language", "german", "--language", "french")
    listed = pgcorpus("models", "list", "--json")

    assert wrong.returncode == 2
    assert "there is no language 'klingon'; known: arabic" in wrong.stderr
    assert added.returncode == 0, added.stderr
    assert '"languages": ["german", "french"]' in " ".join(listed.stdout.split()).replace(
        "[ ", "["
    ).replace(" ]", "]")
