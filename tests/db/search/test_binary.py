"""Vectors of many dimensions are found by their signs, and ranked by their full numbers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import numpy as np
import pytest
from sqlalchemy import URL, text

from pgcorpus.db.choices import HALFVEC_MAX_DIMENSIONS
from pgcorpus.db.engine import Database
from pgcorpus.db.errors import InvalidValue
from pgcorpus.db.repositories.vector_indexes import index_of
from pgcorpus.db.search.ask import Ask
from pgcorpus.db.search.corpora import KNOWLEDGE
from pgcorpus.db.search.known import FEW
from pgcorpus.db.search.legs import AskedModel
from pgcorpus.db.search.question import Question
from tests.conftest import Databases

DIMENSIONS = HALFVEC_MAX_DIMENSIONS + 96
TOPICS, EACH = 80, 31
"""Clusters, and passages in each: more in all than are compared one by one."""

BINARY = AskedModel("wide", DIMENSIONS, "binary")
EXACT = AskedModel("wide", DIMENSIONS)
"""The same vectors without an index: a halfvec holds too few dimensions for one."""

FILL = (
    """
    INSERT INTO framework_documents (chunk_id, source_file, section, title, content)
    SELECT to_char(n, 'FM00000'), 'f.md', 's' || n % 2, 'Passage', 'of topic ' || n / :each
    FROM generate_series(0, :rows - 1) n
    """,
    """
    INSERT INTO framework_metadata
        (document_id, character_count, word_count, chunk_type, validation_passed)
    SELECT id, 300, 20, 'supporting', true FROM framework_documents
    """,
)


@dataclass(frozen=True)
class Topics:
    """Passages whose vectors lie in clusters.

    Attributes:
        database: Where they are.
        keys: Of the passages.
        vectors: float32 of shape ``(TOPICS * EACH, DIMENSIONS)``, each row of unit length.
    """

    database: Database
    keys: list[UUID]
    vectors: np.ndarray

    def nearest(self, vector: np.ndarray, count: int) -> list[UUID]:
        """The keys of the nearest, by all of them."""
        order = np.argsort(-(self.vectors @ vector), kind="stable")[:count]
        return [self.keys[place] for place in order]


@pytest.fixture(scope="module")
def topics(databases: Databases, hosted: URL) -> Iterator[Topics]:
    """A model of more dimensions than a halfvec index takes, indexed by signs."""
    random = np.random.default_rng(11)
    centres = random.normal(size=(TOPICS, DIMENSIONS)).repeat(EACH, axis=0)
    vectors = centres + 0.7 * random.normal(size=centres.shape)
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    assert len(vectors) > FEW
    with databases.opened(hosted.database or "", owner=hosted) as database:
        with database.unit_of_work() as work:
            for statement in FILL:
                work.session.execute(text(statement), {"rows": len(vectors), "each": EACH})
            in_order = text("SELECT id FROM framework_documents ORDER BY chunk_id")
            keys = list(work.session.scalars(in_order))
            model = work.models.add_model(
                BINARY.name, dimensions=DIMENSIONS, provider="hashing", index_kind="binary"
            )
            work.embeddings.store(KNOWLEDGE, BINARY.name, keys, vectors)
            index = index_of(KNOWLEDGE, model)
            index.dialect_options["postgresql"]["concurrently"] = False
            index.create(work.session.connection())
            work.session.execute(text("ANALYZE"))
            work.commit()
        yield Topics(database, keys, vectors)


def ask(model: AskedModel, vector: np.ndarray, **changes: Any) -> Ask:
    """A question by vector alone."""
    return Ask(
        question=Question.parse("x"), legs={"vector": 1.0}, model=model, vector=vector, **changes
    )


def beside(vectors: np.ndarray, place: int) -> np.ndarray:
    """A question about the topic of a passage; float32 of unit length."""
    noise = np.random.default_rng(place).normal(size=DIMENSIONS) / np.sqrt(DIMENSIONS)
    vector = (vectors[place] + 0.5 * noise).astype(np.float32)
    return vector / np.linalg.norm(vector)


def test_signs_find_what_full_vectors_rank(topics: Topics) -> None:
    """Hamming distance knows the topic; the order within it is that of the cosine."""
    shares = []
    with topics.database.unit_of_work() as work:
        for place in range(0, len(topics.keys), 100):
            vector = beside(topics.vectors, place)
            hits = work.searches.answer(KNOWLEDGE, ask(BINARY, vector)).hits
            exact = topics.nearest(vector, 10)
            shares.append(len({hit.id for hit in hits} & set(exact)) / 10)
            assert hits[0].id == exact[0]
            cosine = topics.vectors[topics.keys.index(hits[0].id)] @ vector
            assert hits[0].scores["vector"] == pytest.approx(cosine, abs=1e-5)
            assert [hit.score for hit in hits] == sorted((h.score for h in hits), reverse=True)

    assert np.mean(shares) >= 0.99


def test_a_binary_model_uses_its_own_index(topics: Topics) -> None:
    """The statement repeats the expression that the index is on."""
    with topics.database.unit_of_work() as work:
        model = work.models.get_model(BINARY.name)
        name = index_of(KNOWLEDGE, model).name
        statement = work.searches.prepare(KNOWLEDGE, ask(BINARY, topics.vectors[0]))
        # So few rows are sorted faster than four hundred are fetched from an index.
        work.session.execute(text("SET LOCAL enable_sort = off"))
        plan = json.dumps(work.searches.explain(statement, analyze=False))

    assert str(name) in plan


def test_a_filter_does_not_starve_the_signs(topics: Topics) -> None:
    """Half of each topic is kept, and comes before all others."""
    vector = beside(topics.vectors, 500)
    asked = ask(BINARY, vector, filters={"section": "s1"})
    with topics.database.unit_of_work() as work:
        hits = work.searches.answer(KNOWLEDGE, asked).hits

    kept = [key for key in topics.nearest(vector, 100) if topics.keys.index(key) % 2]
    assert [hit.id for hit in hits] == kept[:10]


def test_more_dimensions_than_an_index_takes_are_compared_one_by_one(topics: Topics) -> None:
    """Exact, and slower: a model without an index is searched all the same."""
    vector = beside(topics.vectors, 1000)
    with topics.database.unit_of_work() as work:
        hits = work.searches.answer(KNOWLEDGE, ask(EXACT, vector, limit=50)).hits

    assert [hit.id for hit in hits] == topics.nearest(vector, 50)


def test_a_halfvec_index_of_too_many_dimensions_is_refused(topics: Topics) -> None:
    """The registry says what to do instead."""
    with pytest.raises(InvalidValue, match="binary"), topics.database.unit_of_work() as work:
        work.models.add_model("too-wide", dimensions=DIMENSIONS, provider="hashing")
