"""Weights of every corpus, tuned to judged questions: proposed, applied, used and taken back."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import numpy as np
import pytest
from sqlalchemy import text

from pgcorpus.db.engine import Database
from pgcorpus.db.errors import ImportFailed, InvalidSearch, MissingScope, Misuse, NotPermitted
from pgcorpus.db.scope import Scope
from pgcorpus.db.search.corpora import DOCUMENTATION, MEMORY
from pgcorpus.db.uow import UnitOfWork
from pgcorpus.services.embedding.embedder import Embedder
from pgcorpus.services.embedding.hashing import HashingEmbedder
from pgcorpus.services.evaluation.beir import Judgements, Query, read_judgements
from pgcorpus.services.evaluation.tuning import TuningService
from pgcorpus.services.search.service import FOREIGN, SearchService
from tests import factories
from tests.command import Command
from tests.db.search.shelves import SHELVES, Passage, Shelf
from tests.factories import axis
from tests.logins import logged_in

QUESTIONS = 25
"""Each has a vector of its own, near which the passage that answers it lies."""

DIMENSIONS = 384
DECOYS = 4


class QuestionEmbedder:
    """A question's vector is the axis of its number."""

    model_name = "hashing"
    dimensions = DIMENSIONS
    batch_size = 8

    def embed_documents(self, texts: Sequence[str]) -> np.ndarray:
        """One after the other."""
        return np.stack([self.embed_question(each) for each in texts])

    def embed_question(self, text: str) -> np.ndarray:
        """It is ``topic`` and the number."""
        return axis(int(text.removeprefix("topic")), length=DIMENSIONS)


def fill(
    work: UnitOfWork,
    shelf: Shelf,
    embedder: Embedder = QuestionEmbedder(),  # noqa: B008
) -> Judgements:
    """Store for each question what answers it in other words, and others that share its word."""
    factories.bind(work.session)
    rest = axis(DIMENSIONS - 1, length=DIMENSIONS)
    passages = []
    for n in range(QUESTIONS):
        asked = embedder.embed_question(f"topic{n}")
        passages.append(Passage(f"Answer {n}", f"said otherwise in {n}", asked + 0.3 * rest))
        passages += [
            Passage(f"Decoy {n} {each}", f"topic{n} " * (each + 1), rest + 0.1 * each * asked)
            for each in range(DECOYS)
        ]
    keys = shelf.fill(work, passages)
    return Judgements(
        queries=[Query(str(n), f"topic{n}") for n in range(QUESTIONS)],
        judgments={str(n): {str(keys[n * (DECOYS + 1)]): 1} for n in range(QUESTIONS)},
    )


TUNED = [each for each in SHELVES if each.name not in {"memory", "episodes"}]
"""Memories of a single user have no ranking of their own."""


@pytest.fixture
def application(database: Database) -> Iterator[Database]:
    """The login of a service."""
    with logged_in(database, "rag_read_write") as login:
        yield login


@pytest.mark.parametrize("shelf", TUNED, ids=lambda shelf: shelf.name)
def test_weights_of_every_corpus_are_tuned_applied_used_and_taken_back(
    database: Database, application: Database, shelf: Shelf
) -> None:
    """The answers share no word with the questions, so the vector leg is given more."""
    with database.unit_of_work() as work:
        judgements = fill(work, shelf)
        scope = shelf.find_scope()
        work.commit()
    owner = database if scope is None else application
    service = TuningService(owner, scope, embedder=QuestionEmbedder())
    search = SearchService(application, embedder=QuestionEmbedder())
    corpus = shelf.corpus.name
    told: list[tuple[int, int]] = []

    def find_places() -> list[int]:
        pages = [
            search.search(query.text, corpus=corpus, scope=scope) for query in judgements.queries
        ]
        return [
            [str(hit.id) for hit in page.hits].index(*judgements.judgments[query.id])
            for page, query in zip(pages, judgements.queries, strict=True)
        ]

    proposed = service.tune(
        corpus, judgements, key="id", progress=lambda done, total: told.append((done, total))
    )
    before = find_places()
    applied = service.tune(corpus, judgements, key="id", apply=True)
    after = find_places()
    again = service.tune(corpus, judgements, key="id", apply=True)

    assert told[0] == (0, QUESTIONS)
    assert told[-1] == (QUESTIONS, QUESTIONS)
    assert proposed.applied is None
    assert proposed.today == pytest.approx({"vector": 0.3, "text": 0.7})
    assert proposed.weights["vector"] > 0.5
    assert applied.applied == 1
    assert sum(after) < sum(before)
    page = search.search("topic1", corpus=corpus, scope=scope)
    assert page.learned is not None
    assert page.learned.version == 1
    assert page.weights == pytest.approx(applied.weights)
    assert again.today == pytest.approx(applied.weights)
    assert again.today_version == f"version 1, {applied.scope}"
    version = service.list_versions(corpus)[-1]
    assert (version.boosts, version.estimate["questions"]) == (0, QUESTIONS)
    if scope is None:  # it is everybody's
        with pytest.raises(NotPermitted, match="only a member of rag_admin"):
            TuningService(application).roll_back(corpus)
    while service.roll_back(corpus) is not None:
        pass
    assert find_places() == before


def test_a_ranking_that_cannot_be_better_is_not_applied(database: Database) -> None:
    """The reason is told; fewer questions than are needed are one."""
    with database.unit_of_work() as work:
        judgements = fill(work, SHELVES[0])
        work.commit()
    few = replace(judgements, queries=judgements.queries[:5])
    service = TuningService(database, embedder=QuestionEmbedder())

    report = service.tune("knowledge", few, key="id", apply=True)

    assert report.applied is None
    assert report.weights == report.today
    assert "5 judged questions, and 20 needed" in report.tuned.reason
    assert service.list_versions("knowledge") == []


def test_today_is_as_searches_have_it(database: Database) -> None:
    """In a language that the model does not know, the vector leg has less than by default.

    What is tuned has no such factor: the weights are those of the page.
    """
    with database.unit_of_work() as work:
        judgements = fill(work, SHELVES[0])
        work.session.execute(
            text("UPDATE embedding_models SET languages = '{german}' WHERE name = 'hashing'")
        )
        work.commit()
    service = TuningService(database, embedder=QuestionEmbedder())

    report = service.tune("knowledge", judgements, key="id", apply=True)

    page = SearchService(database, embedder=QuestionEmbedder()).search("topic1", corpus="knowledge")
    assert report.today["vector"] == pytest.approx(0.3 * FOREIGN / (0.3 * FOREIGN + 0.7))
    assert page.weights == pytest.approx(report.weights)


def test_boosts_that_clicks_have_taught_stay_with_the_tuned_weights(database: Database) -> None:
    """They count for the ranking that is judged, too."""
    shelf = next(each for each in SHELVES if each.name == "documentation")
    with database.unit_of_work() as work:
        judgements = fill(work, shelf)
        (key,) = judgements.judgments["0"]
        learned = {"weights": {"vector": 0.3, "text": 0.7}, "boosts": {UUID(key): 0.05}}
        work.rankings.apply(DOCUMENTATION, **learned, estimate={})
        work.commit()
    service = TuningService(database, embedder=QuestionEmbedder())

    report = service.tune("documentation", judgements, key="id", apply=True)

    assert report.applied == 2
    with database.unit_of_work() as work:
        active = work.rankings.find_active(DOCUMENTATION)
        assert active is not None
        assert work.rankings.list_boosts(DOCUMENTATION, active) == pytest.approx(
            {UUID(key): 0.05}, abs=1e-6
        )


def test_what_cannot_be_tuned_is_refused_with_its_reason(database: Database) -> None:
    """Another column of judgements, none such, no vectors, a scope, a single user's ranking."""
    with database.unit_of_work() as work:
        judgements = fill(work, SHELVES[0])
        work.commit()
    service = TuningService(database, embedder=QuestionEmbedder())

    def tune(corpus: str = "knowledge", judged: Judgements = judgements, **more: Any) -> None:
        service.tune(corpus, judged, **more)

    with pytest.raises(InvalidSearch, match="is chunk_id of knowledge what they go by"):
        tune()
    with pytest.raises(InvalidSearch, match="no column 'name'; known: id, chunk_id"):
        tune(key="name")
    with pytest.raises(InvalidSearch, match=r"vector leg cannot answer.*nothing is stored in chat"):
        tune("chat")
    with pytest.raises(MissingScope):
        tune("memory")
    scoped = replace(judgements, queries=[Query("0", "topic0", scope="a")])
    with pytest.raises(InvalidSearch, match="a question has a scope"):
        tune(judged=scoped)
    with (
        database.unit_of_work(Scope.user(uuid4())) as work,
        pytest.raises(Misuse, match="a single user has no learned ranking"),
    ):
        work.rankings.apply(MEMORY, weights={"vector": 1, "text": 0}, boosts={}, estimate={})


def test_judgements_are_read_without_documents(tmp_path: Path) -> None:
    """The other files of a collection are not needed."""
    (tmp_path / "queries.jsonl").write_text(
        '{"_id": "a", "text": "kettle"}\n{"_id": "b", "text": "unjudged"}\n'
    )
    with pytest.raises(ImportFailed, match=r"has no qrels\.tsv or qrels/test\.tsv"):
        read_judgements(tmp_path)
    (tmp_path / "qrels.tsv").write_text("query-id\tcorpus-id\tscore\na\td1\t2\n")

    judgements = read_judgements(tmp_path)

    assert judgements.queries == [Query("a", "kettle")]
    assert judgements.judgments == {"a": {"d1": 2}}
    assert judgements.notes == ("queries without a relevant document, left out: 1",)


def test_the_command_proposes_applies_shows_and_takes_back(
    database: Database, pgcorpus: Command, tmp_path: Path
) -> None:
    """Each step says what it did, and what comes next; wrong use ends with 2."""
    with database.unit_of_work() as work:
        judgements = fill(work, SHELVES[0], HashingEmbedder())
        work.commit()
    queries = [{"_id": query.id, "text": query.text} for query in judgements.queries]
    (tmp_path / "queries.jsonl").write_text("".join(f"{json.dumps(each)}\n" for each in queries))
    rows = [f"{id_}\t{key}\t1" for id_, grades in judgements.judgments.items() for key in grades]
    tune = ("tune", "knowledge", "--judgements", str(tmp_path))

    unjudged = pgcorpus(*tune)
    (tmp_path / "qrels.tsv").write_text("\n".join(rows) + "\n")
    unknown = pgcorpus(*tune)
    proposed = pgcorpus(*tune, "--key", "id")
    applied = pgcorpus(*tune, "--key", "id", "--apply", "--json")
    status = pgcorpus("tune", "status", "--json")
    taken_back = pgcorpus("tune", "rollback", "knowledge")

    assert (unjudged.returncode, unknown.returncode) == (2, 2)
    assert "has no qrels.tsv" in unjudged.stderr
    assert "Name another column with --key: id, chunk_id" in " ".join(unknown.stderr.split())
    assert proposed.returncode == 0, proposed.stderr
    assert "0.300" in proposed.stdout
    assert "nothing was written; repeat with --apply" in proposed.stderr
    report = json.loads(applied.stdout)
    assert report["applied"] == 1
    assert report["tuned"]["estimate"]["low"] > 0
    (version,) = json.loads(status.stdout)
    assert (version["corpus"], version["is_active"]) == ("knowledge", True)
    assert version["weights"] == report["weights"]
    assert "version 1 was taken back; searches rank unlearned" in taken_back.stderr
