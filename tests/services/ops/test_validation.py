"""Validation of a corpus by the checks that its services declare."""

from __future__ import annotations

import pytest

from pgcorpus.db.engine import Database
from pgcorpus.db.errors import UnknownCorpus, UnknownModel
from pgcorpus.services.corpus import Check
from pgcorpus.services.ops.validation import ValidationReport, ValidationService
from tests import factories


def test_the_report_says_that_another_model_stands_in(database: Database) -> None:
    """Without a key the corpus's own model cannot be asked."""
    report = ValidationService(database).validate()

    assert report.model == "hashing"
    assert "text-embedding-3-large" in (report.reason or "")


def test_the_json_has_exactly_the_shape_that_scripts_depend_on() -> None:
    """No further key; one check that failed fails the report."""
    good = Check("chunk_count", True, 19, 19)
    bad = Check("embedding_count", False, 19, 18, "chunk_7")

    report = ValidationReport("knowledge", "hashing", None, (good, bad))

    assert report.as_json() == {
        "passed": False,
        "checks": [
            {"name": "chunk_count", "passed": True, "expected": 19, "found": 19},
            {"name": "embedding_count", "passed": False, "expected": 19, "found": 18},
        ],
    }


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
