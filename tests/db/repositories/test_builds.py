"""Builds of indexes: those that compute what they hold are shared by several processes."""

from __future__ import annotations

import pytest
from sqlalchemy import text

from pgcorpus.db.repositories.base import is_computed
from pgcorpus.db.uow import UnitOfWork

DEFINITIONS = text("""
    SELECT pg_get_indexdef(indexrelid) AS definition, indexprs IS NOT NULL AS computed
    FROM pg_index JOIN pg_class ON pg_class.oid = indrelid
    WHERE relnamespace = 'public'::regnamespace
""")


@pytest.mark.parametrize(
    ("statement", "computed"),
    [
        ("CREATE INDEX a ON t USING hnsw ((embedding::halfvec(3)) halfvec_cosine_ops)", True),
        ("CREATE INDEX a ON t USING gin (tenant_words(scope, words)) WHERE scope <> 'x'", True),
        ("CREATE INDEX a ON t USING gin (words) WITH (fastupdate = on)", False),
        ("CREATE INDEX a ON t USING btree (b, c) WHERE (d IS NULL)", False),
        ("ALTER TABLE t ADD CONSTRAINT a FOREIGN KEY (b) REFERENCES c (d)", False),
    ],
)
def test_an_index_on_an_expression_is_computed(statement: str, computed: bool) -> None:
    """Brackets behind the keys say nothing of them."""
    assert is_computed(statement) == computed


def test_every_index_of_the_schema_is_taken_for_what_it_is(work: UnitOfWork) -> None:
    """As PostgreSQL writes them, whose catalog knows which have expressions."""
    indexes = work.session.execute(DEFINITIONS).all()

    assert {each.computed for each in indexes} == {True, False}
    assert [each for each in indexes if is_computed(each.definition) != each.computed] == []
