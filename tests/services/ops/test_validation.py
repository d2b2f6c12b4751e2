"""Validation of a corpus by the checks that its services declare."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from uuid import UUID

import numpy as np
import pytest

from pgcorpus.db.engine import Database
from pgcorpus.db.errors import UnknownCorpus, UnknownModel
from pgcorpus.db.search.corpora import CHAT, KNOWLEDGE
from pgcorpus.services.corpus import Check
from pgcorpus.services.ops.validation import ValidationReport, ValidationService
from tests import factories


@pytest.fixture(params=[None, "invented"], ids=["without a key", "with a key"])
def service(request: pytest.FixtureRequest, database: Database) -> Iterator[ValidationService]:
    """The service of a caller with a key of OpenAI or without, who prefers another model."""
    settings = replace(database.settings, openai_api_key=request.param, embedding_model="bge-m3")
    asking = Database(settings)
    yield ValidationService(asking)
    asking.close()


@pytest.fixture
def twenty(database: Database) -> list[UUID]:
    """Twenty chunks without vectors."""
    with database.unit_of_work() as work:
        factories.bind(work.session)
        ids = [each.id for each in factories.FrameworkDocumentFactory.create_batch(20)]
        work.commit()
    return ids


def store(database: Database, model: str, ids: Sequence[UUID]) -> None:
    """Store vectors of a model, as an import does."""
    with database.unit_of_work() as work:
        dimensions = work.models.get_model(model).dimensions
        vectors = np.random.default_rng(1).normal(size=(len(ids), dimensions))
        work.embeddings.store(KNOWLEDGE, model, ids, vectors)
        work.commit()


def test_the_vectors_of_the_active_model_count_whoever_asks(
    service: ValidationService, database: Database, twenty: list[UUID]
) -> None:
    """The model is a row: neither a missing key nor EMBEDDING_MODEL changes what is counted."""
    store(database, "text-embedding-3-large", twenty)
    store(database, "hashing", twenty[:3])

    report = service.validate()

    checks = {check.name: check for check in report.checks}
    assert (report.model, report.reason) == ("text-embedding-3-large", None)
    assert (checks["embedding_count"].passed, checks["embedding_count"].found) == (True, 20)
    assert checks["performance_baseline"].passed


def test_while_the_active_model_has_no_vectors_those_of_the_offline_model_count(
    service: ValidationService, database: Database, twenty: list[UUID]
) -> None:
    """As in a checkout without a key; the report says so, to a caller with a key, too."""
    before = service.validate()
    store(database, "hashing", twenty)
    after = service.validate()

    assert (before.model, before.reason) == ("text-embedding-3-large", None)
    assert after.model == "hashing"
    assert "'text-embedding-3-large' has no vectors here" in (after.reason or "")
    assert {check.name: check.passed for check in after.checks}["embedding_count"]


def test_nobody_is_advised_to_embed_with_another_model_beside_real_vectors(
    service: ValidationService, database: Database
) -> None:
    """The command names the model: without a key it fails, and no other stands in."""
    with database.unit_of_work() as work:
        factories.bind(work.session)
        ids = [each.id for each in factories.MessageFactory.create_batch(2)]
        work.models.use_model("chat", "text-embedding-3-small")
        vectors = np.random.default_rng(1).normal(size=(1, 1536))
        work.embeddings.store(CHAT, "text-embedding-3-small", ids[:1], vectors)
        work.commit()

    embedded = service.validate("chat").checks[0]

    assert (embedded.passed, embedded.found) == (False, 1)
    assert embedded.detail == (
        "make the others with: pgcorpus embed --corpus chat --model text-embedding-3-small"
    )


def test_the_json_has_exactly_the_shape_that_scripts_depend_on() -> None:
    """All that the table has, and no further key; one check that failed fails the report."""
    good = Check("chunk_count", True, 19, 19)
    bad = Check("embedding_count", False, 19, 18, "chunk_7")

    report = ValidationReport("knowledge", "hashing", None, (good, bad))

    assert report.as_json() == {
        "passed": False,
        "model": "hashing",
        "reason": None,
        "checks": [
            {"name": "chunk_count", "passed": True, "expected": 19, "found": 19, "where": None},
            {
                "name": "embedding_count", "passed": False, "expected": 19, "found": 18,
                "where": "chunk_7",
            },
        ],
    }  # fmt: skip


def test_an_unknown_corpus_or_model_is_refused(database: Database) -> None:
    """The errors are those of every other service."""
    with pytest.raises(UnknownCorpus, match="knowledge"):
        ValidationService(database).validate("knwledge")
    with pytest.raises(UnknownModel, match="hashing"):
        ValidationService(database).validate(model="hshing")


@pytest.mark.parametrize("corpus", ["knowledge", "documentation", "chat", "memory", "episodes"])
def test_every_corpus_has_checks(database: Database, corpus: str) -> None:
    """Each passage needs a vector; with a number given, there must be as many passages."""
    report = ValidationService(database).validate(corpus, expected_chunks=1)

    found = {check.name: check.passed for check in report.checks}
    assert found["embedding_count"]
    assert not found["chunk_count" if corpus == "knowledge" else "passage_count"]


def test_messages_without_vectors_are_counted(database: Database) -> None:
    """The detail has the command that makes them."""
    with database.unit_of_work() as work:
        factories.bind(work.session)
        factories.MessageFactory()
        work.commit()

    embedded, in_order = ValidationService(database).validate("chat").checks

    assert (embedded.passed, embedded.expected, embedded.found) == (False, 1, 0)
    assert embedded.detail == "make the others with: pgcorpus embed --corpus chat"
    assert in_order == Check("turns_in_order", True, 1, 1)


@pytest.mark.parametrize(
    ("places", "broken"),
    [
        ([(0, 0), (0, 1), (0, 2), (1, 2)], 0),
        ([(0, 0), (0, 2)], 1),
        ([(0, 1)], 1),
        ([(0, 0), (1, 2)], 1),
        ([(0, 0), (1, 0), (2, 1), (2, 3)], 1),
    ],
)
def test_a_gap_in_a_conversation_is_found(
    database: Database, places: list[tuple[int, int]], broken: int
) -> None:
    """A branch begins the conversation, or follows a turn of an earlier branch."""
    with database.unit_of_work() as work:
        factories.bind(work.session)
        conversation = factories.ConversationFactory()
        for branch, position in places:
            factories.MessageFactory(conversation=conversation, branch=branch, position=position)
        key = conversation.id
        work.commit()

    in_order = ValidationService(database).validate("chat").checks[-1]

    branches = len({branch for branch, _ in places})
    assert (in_order.expected, in_order.found) == (branches, branches - broken)
    assert in_order.detail == (str(key) if broken else None)


def test_a_memory_linked_to_none_is_found(database: Database) -> None:
    """An original is in the same scope, and no duplicate itself."""
    with database.unit_of_work() as work:
        factories.bind(work.session)
        ours, theirs = factories.TenantFactory(), factories.TenantFactory()
        for number, tenant, original in (
            (0, ours, None),
            (1, ours, "mem_0"),
            (2, ours, "mem_1"),
            (3, ours, "mem_9"),
            (9, theirs, None),
        ):
            factories.MemoryNodeFactory(
                id=f"mem_{number}", tenant=tenant, sequence_index=number, duplicate_of=original
            )
        work.commit()

    links = ValidationService(database).validate("memory").checks[-1]

    assert (links.name, links.expected, links.found) == ("links_to_originals", 3, 1)
    assert links.detail == "mem_2, mem_3"
