"""Validation of a corpus by the checks that its services declare."""

from __future__ import annotations

import pytest

from pgcorpus.db.engine import Database
from pgcorpus.db.errors import UnknownCorpus, UnknownModel
from pgcorpus.services.corpora import SERVICES
from pgcorpus.services.corpus import Check
from pgcorpus.services.ops.validation import ValidationReport, ValidationService


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


@pytest.mark.parametrize("corpus", [name for name, each in SERVICES.items() if not each.validate])
def test_a_corpus_without_checks_is_refused(database: Database, corpus: str) -> None:
    """With those that have some."""
    with pytest.raises(UnknownCorpus, match=f"no checks of {corpus}; known: knowledge"):
        ValidationService(database).validate(corpus)
