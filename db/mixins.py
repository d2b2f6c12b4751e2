"""Columns that several tables share."""

from __future__ import annotations

from datetime import datetime

import numpy as np
from sqlalchemy import (
    Boolean,
    CheckConstraint,
    ColumnElement,
    Computed,
    ForeignKeyConstraint,
    Index,
    LargeBinary,
    String,
    UniqueConstraint,
    func,
    literal_column,
)
from sqlalchemy.orm import Mapped, mapped_column
from sqlalchemy.schema import SchemaItem

from pgcorpus.db.base import Vector, now
from pgcorpus.db.choices import IndexKind


class Timestamped:
    """Columns with the time of a row's insertion and of its last change, kept by a trigger."""

    created_at: Mapped[now]
    updated_at: Mapped[datetime] = mapped_column(server_default=func.now())


class Embedded(Timestamped):
    """Columns of an embedding table: one vector of one model for one passage.

    See docs/explanation/embeddings.md.
    """

    model_name: Mapped[str] = mapped_column(String(100), comment="model that made the vector")
    embedding: Mapped[np.ndarray] = mapped_column(
        Vector(), deferred=True, comment="compared by cosine distance"
    )
    dimensions: Mapped[int] = mapped_column(
        Computed("vector_dims(embedding)", persisted=True), comment="length of the vector"
    )
    content_hash: Mapped[bytes] = mapped_column(
        LargeBinary, comment="SHA-256 of the text that was embedded"
    )


def embedding_constraints(*item: str) -> tuple[SchemaItem, ...]:
    """Build the constraints that every embedding table has.

    Args:
        item: The columns that name the passage: of a scope that first.

    Returns:
        Constraints: one vector per passage and model, of a registered model and of its length.
    """
    return (
        UniqueConstraint(*item, "model_name"),
        ForeignKeyConstraint(["model_name"], ["embedding_models.name"], name="valid_model_name"),
        ForeignKeyConstraint(
            ["model_name", "dimensions"],
            ["embedding_models.name", "embedding_models.dimensions"],
            name="valid_embedding_dimensions",
        ),
        CheckConstraint("vector_norm(embedding) > 0", name="nonzero_embedding"),
    )


def hnsw(
    name: str,
    model_name: str,
    dimensions: int,
    kind: IndexKind = "halfvec",
    *,
    scope: str | None = None,
) -> Index:
    """Build the HNSW index over one model's vectors.

    A ``vector`` column without a length cannot be indexed, and ``vector`` cannot be indexed beyond
    2,000 dimensions: the index is on an expression, and partial. A query must repeat the expression
    and the model's name as a literal.

    ``m`` and ``ef_construction`` are pgvector's defaults, written out so that a change to them is
    a revision and not an accident.

    Args:
        name: Name of the index.
        model_name: The model, as registered.
        dimensions: Length of its vectors.
        kind: ``halfvec`` compares half-precision numbers by cosine distance, and takes at most
            ``HALFVEC_MAX_DIMENSIONS``. ``binary`` compares signs by Hamming distance in a
            sixteenth of the space; it needs many dimensions, and more candidates to rank again.
        scope: Index the vectors of this scope alone.
    """
    expression, operators = {
        "halfvec": (f"(embedding::halfvec({int(dimensions)}))", "halfvec_cosine_ops"),
        "binary": (f"(binary_quantize(embedding)::bit({int(dimensions)}))", "bit_hamming_ops"),
    }[kind]
    return Index(
        name,
        literal_column(expression).label("compared"),
        postgresql_using="hnsw",
        postgresql_ops={"compared": operators},
        postgresql_with={"m": 16, "ef_construction": 64},
        postgresql_where=rows_of(model_name, scope),
    )


def rows_of(model_name: str, scope: str | None = None) -> ColumnElement[bool]:
    """Build the condition of a partial index: the rows of one model, and scope, by literals."""
    literal = model_name.replace("'", "''")
    of_scope = "" if scope is None else f" AND scope = '{scope}'"
    # Not text(): a colon in a name would be read as a parameter.
    return literal_column(f"model_name = '{literal}'{of_scope}", Boolean)
