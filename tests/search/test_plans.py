"""Query plans are tests: with enough rows, every leg of every corpus uses its index."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from sqlalchemy import text
from sqlalchemy.orm import Session

from db.engine import Database
from db.repositories.search import Ask
from db.search.corpora import KNOWLEDGE
from db.search.legs import AskedModel
from db.search.question import Question
from db.uow import UnitOfWork
from tests.conftest import Databases, settings_for
from tests.search.shelves import DIMENSIONS, MODEL

ROWS = 30_000

FILL = {
    "knowledge": (
        """
        INSERT INTO framework_documents (chunk_id, source_file, section, title, content)
        SELECT 'c' || n, 'f.md', 's' || n % 100, 'Title ' || n,
               string_agg('w' || (hashint8(n * 40 + k) & 4095), ' ')
        FROM generate_series(1, :rows) n, generate_series(1, 20) k GROUP BY n
        """,
        """
        INSERT INTO framework_metadata
            (document_id, character_count, word_count, chunk_type, validation_passed)
        SELECT id, 300, 20, 'supporting', true FROM framework_documents
        """,
    )
}


@pytest.fixture(scope="module")
def crowded(databases: Databases, migrated: Any) -> Iterator[Database]:  # noqa: ANN401
    """Every corpus with enough rows for an index to be worth it, analysed."""
    url = databases.make(template=migrated.database)
    database = Database(settings_for(url))
    vectors = np.random.default_rng(7).normal(size=(ROWS, 8)).repeat(DIMENSIONS // 8, axis=1)
    with database.unit_of_work() as work:
        for statement in FILL["knowledge"]:
            work.session.execute(text(statement), {"rows": ROWS})
        keys = work.session.scalars(text("SELECT id FROM framework_documents")).all()
        work.session.execute(text("DROP INDEX chunk_embeddings_hnsw_hashing"))
        work.embeddings.store(KNOWLEDGE, MODEL, keys, vectors)
        work.session.execute(text("SET LOCAL max_parallel_maintenance_workers = 0"))
        work.session.execute(
            text(
                "CREATE INDEX chunk_embeddings_hnsw_hashing ON chunk_embeddings"
                " USING hnsw ((embedding::halfvec(384)) halfvec_cosine_ops)"
                " WITH (m = 16, ef_construction = 64) WHERE model_name = 'hashing'"
            )
        )
        work.commit()
        work.session.execute(text("ANALYZE"))
        work.commit()
    yield database
    database.close()
    databases.drop(url)


def ask(**changes: Any) -> Ask:  # noqa: ANN401 - fields of Ask
    """A hybrid question of two words."""
    vector = np.random.default_rng(8).normal(size=8).repeat(DIMENSIONS // 8)
    asked = Ask(
        question=Question.parse("w17 w42"),
        language="english",
        legs={"vector": 0.7, "text": 0.3},
        model=AskedModel(MODEL, DIMENSIONS),
        vector=vector.astype(np.float32),
    )
    return replace(asked, **changes)


def plan(session: Session, work: UnitOfWork, asked: Ask) -> str:
    """The plan of a search, as PostgreSQL prints it."""
    statement, _ = work.searches.prepare(KNOWLEDGE, asked)
    compiled = statement.compile(session.get_bind(), compile_kwargs={"render_postcompile": True})
    rows = session.connection().exec_driver_sql(f"EXPLAIN {compiled}", _bound(compiled))
    return "\n".join(row[0] for row in rows)


def _bound(compiled: Any) -> dict[str, Any]:  # noqa: ANN401
    return {
        name: compiled._bind_processors[name](value) if name in compiled._bind_processors else value
        for name, value in compiled.params.items()
    }


@pytest.mark.parametrize(
    ("legs", "index"),
    [
        ({"vector": 1.0}, "chunk_embeddings_hnsw_hashing"),
        ({"text": 1.0}, "idx_documents_content_fts"),
        ({"fuzzy": 1.0}, "idx_documents_trigram"),
    ],
    ids=["vector", "text", "fuzzy"],
)
def test_each_leg_uses_its_index(crowded: Database, legs: dict[str, float], index: str) -> None:
    """No leg reads its whole table."""
    with crowded.unit_of_work() as work:
        shown = plan(work.session, work, ask(legs=legs, question=Question.parse("hippopotamus")))

    assert index in shown, shown
    assert "Seq Scan on framework_documents" not in shown
    assert "Seq Scan on chunk_embeddings" not in shown


def test_both_legs_use_their_index_in_one_statement(crowded: Database) -> None:
    """Hybrid is no slower a plan than its parts."""
    with crowded.unit_of_work() as work:
        shown = plan(work.session, work, ask())

    assert "chunk_embeddings_hnsw_hashing" in shown
    assert "idx_documents_content_fts" in shown


def test_a_generic_plan_uses_the_vector_index_too(crowded: Database) -> None:
    """After five executions psycopg prepares, and PostgreSQL may plan without the values."""
    with crowded.unit_of_work() as work:
        work.session.execute(text("SET LOCAL plan_cache_mode = force_generic_plan"))
        shown = plan(work.session, work, ask(legs={"vector": 1.0}))

    assert "chunk_embeddings_hnsw_hashing" in shown


@pytest.mark.parametrize("limit", [10, 100, 300])
def test_a_search_returns_as_many_as_asked_for(crowded: Database, limit: int) -> None:
    """Pgvector's default of 40 candidates would return fewer without a word."""
    with crowded.unit_of_work() as work:
        answer = work.searches.answer(KNOWLEDGE, ask(legs={"vector": 1.0}, limit=limit))

    assert len(answer.hits) == limit


@pytest.mark.parametrize("sections", [1, 10, 50], ids=["1 %", "10 %", "50 %"])
def test_a_filtered_search_finds_what_an_exact_one_finds(crowded: Database, sections: int) -> None:
    """Narrow filters are compared exactly, broad ones go on scanning: none starves."""
    names = [f"s{n}" for n in range(sections)]
    asked = ask(legs={"vector": 1.0}, filters={"section": names})
    with crowded.unit_of_work() as work:
        found = {hit.id for hit in work.searches.answer(KNOWLEDGE, asked).hits}
        exact = set(
            work.session.scalars(
                text(
                    "SELECT d.id FROM framework_documents d JOIN chunk_embeddings e"
                    " ON e.document_id = d.id WHERE d.section = ANY (:names)"
                    " ORDER BY e.embedding <=> CAST(:asked AS vector) LIMIT 10"
                ),
                {"names": names, "asked": str(asked.vector.tolist())},
            )
        )

    assert len(found) == 10
    assert len(found & exact) >= 9


def test_a_vector_travels_as_binary(crowded: Database) -> None:
    """A stored vector comes back to the last bit of a float32."""
    vector = np.random.default_rng(9).normal(size=DIMENSIONS).astype(np.float32)
    with crowded.unit_of_work() as work:
        key = work.session.scalar(text("SELECT id FROM framework_documents LIMIT 1"))
        work.embeddings.store(KNOWLEDGE, MODEL, [key], vector[None])
        stored = work.session.scalar(
            KNOWLEDGE.vectors.select()
            .with_only_columns(KNOWLEDGE.vectors.c.embedding)
            .where(KNOWLEDGE.item == key)
        )

    np.testing.assert_array_equal(stored, vector)
