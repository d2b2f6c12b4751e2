"""The registry of embedding models, and the model that each corpus uses."""

from __future__ import annotations

from datetime import datetime
from typing import Final, NamedTuple

from sqlalchemy import (
    ARRAY,
    REAL,
    CheckConstraint,
    ForeignKey,
    Index,
    String,
    Text,
    UniqueConstraint,
)
from sqlalchemy.orm import Mapped, mapped_column

from pgcorpus.db.base import Base, now
from pgcorpus.db.choices import IndexKind
from pgcorpus.db.mixins import Timestamped, hnsw


class SeededModel(NamedTuple):
    """A model that every database knows from its first revision on."""

    name: str
    dimensions: int
    provider: str


SEEDED_MODELS: Final = (
    SeededModel("text-embedding-3-large", 3072, "openai"),
    SeededModel("text-embedding-3-small", 1536, "openai"),
    SeededModel("bge-m3", 1024, "openai"),
    SeededModel("all-MiniLM-L6-v2", 384, "local"),
    SeededModel("hashing", 384, "hashing"),
)


class EmbeddingModel(Base):
    """A model whose vectors may be stored; a foreign key holds vectors to its length."""

    __tablename__ = "embedding_models"
    __table_args__ = (
        UniqueConstraint("name", "dimensions"),
        CheckConstraint("dimensions BETWEEN 1 AND 16000", name="valid_dimensions"),
        CheckConstraint("name ~ '^[A-Za-z0-9][A-Za-z0-9._:/-]*$'", name="valid_model_format"),
        CheckConstraint(
            "index_kind = 'binary' OR (index_kind = 'halfvec' AND dimensions <= 4000)",
            name="valid_index_kind",
        ),
        CheckConstraint("cosine_spread > 0", name="valid_cosine_spread"),
        CheckConstraint(
            "cardinality(languages) > 0 AND array_position(languages, NULL) IS NULL",
            name="valid_languages",
        ),
    )

    name: Mapped[str] = mapped_column(String(100), primary_key=True)
    dimensions: Mapped[int] = mapped_column(comment="length of every vector of this model")
    provider: Mapped[str] = mapped_column(String(50), comment="provider that makes the vectors")
    created_at: Mapped[now]
    index_kind: Mapped[IndexKind] = mapped_column(
        String(20),
        server_default="halfvec",
        comment="kind of its HNSW index: halfvec, or binary (one bit per dimension)",
    )
    retired_at: Mapped[datetime | None] = mapped_column(
        comment="time of a corpus's last change to another model; its searches may still run"
    )

    cosine_spread: Mapped[float | None] = mapped_column(
        REAL,
        comment="standard deviation of the cosine between two passages; null until it is measured",
    )
    languages: Mapped[list[str] | None] = mapped_column(
        ARRAY(Text), comment="text search configurations that it knows; null for all"
    )

    @property
    def is_seeded(self) -> bool:
        """True if the revisions own its row and its indexes."""
        return any(self.name == each.name for each in SEEDED_MODELS)


class CorpusSetting(Timestamped, Base):
    """A deployment's settings of one corpus: a row, so that a change needs no release."""

    __tablename__ = "corpus_settings"

    corpus: Mapped[str] = mapped_column(String(50), primary_key=True)
    active_model: Mapped[str] = mapped_column(
        String(100), ForeignKey("embedding_models.name"), comment="model that searches use"
    )
    previous_model: Mapped[str | None] = mapped_column(
        String(100),
        ForeignKey("embedding_models.name", ondelete="SET NULL"),
        comment="the model before, to roll back to",
    )


def vector_indexes(table: str, *, scope: str | None = None, **names: str) -> tuple[Index, ...]:
    """Build one HNSW index per seeded model.

    Args:
        table: The embedding table.
        scope: The scope whose vectors they are of, or None for all.
        names: Indexes not called ``<table>_hnsw_<slug>``, by the model's ``index_slug``.
    """
    return tuple(
        hnsw(
            names.get(slug := index_slug(model.name), f"{table}_hnsw_{slug}"),
            *model[:2],
            scope=scope,
        )
        for model in SEEDED_MODELS
    )


def index_slug(model_name: str) -> str:
    """Return the model's name as part of an identifier."""
    return "".join(c if c.isalnum() and c.isascii() else "_" for c in model_name.lower())
