"""The registry of models, and the vectors of every corpus."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Final

import numpy as np
from sqlalchemy import ColumnElement, and_, func, literal, or_, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.schema import CreateIndex, Index, MetaData, Table

from db.errors import AlreadyExists, InvalidValue, UnknownModel
from db.mixins import HALFVEC_MAX_DIMENSIONS, hnsw
from db.models.embeddings import CorpusSetting, EmbeddingModel, index_slug
from db.repositories.base import Repository
from db.search.corpora import CORPORA
from db.search.corpus import Corpus

MAX_IDENTIFIER: Final = 63
"""PostgreSQL cuts longer names."""


@dataclass(frozen=True)
class Pending:
    """A passage whose vector is missing or of an older text.

    Attributes:
        id: The passage's key.
        text: What is to be embedded.
        content_hash: SHA-256 of that text, to be stored beside the vector.
        stale: Whether there is a vector, of an older text.
    """

    id: Any
    text: str
    content_hash: bytes
    stale: bool


@dataclass(frozen=True)
class Coverage:
    """How much of a corpus one model has vectors for.

    Attributes:
        total: Passages.
        embedded: Passages whose vector is of their present text.
        stale: Passages whose vector is of an older text.
    """

    total: int
    embedded: int
    stale: int


class EmbeddingRepository(Repository):
    """Models, and which of them a corpus uses; vectors, and which of them are missing."""

    def list_models(self) -> Sequence[EmbeddingModel]:
        """Every registered model, by name."""
        return self.session.scalars(select(EmbeddingModel).order_by(EmbeddingModel.name)).all()

    def get_model(self, name: str) -> EmbeddingModel:
        """The model of that name.

        Raises:
            UnknownModel: It is not registered; the message lists those that are.
        """
        model = self.session.get(EmbeddingModel, name)
        if model is None:
            known = ", ".join(model.name for model in self.list_models())
            raise UnknownModel(
                f"there is no model {name!r}; known: {known}. Add one with: "
                "pgcorpus models add NAME --dimensions N --provider PROVIDER"
            )
        return model

    def add_model(self, name: str, *, dimensions: int, provider: str) -> EmbeddingModel:
        """Register a model, and make its index on the vectors of every corpus.

        Raises:
            AlreadyExists: The name is taken.
        """
        if self.session.get(EmbeddingModel, name) is not None:
            raise AlreadyExists(f"there is a model {name!r} already; see: pgcorpus models list")
        model = EmbeddingModel(name=name, dimensions=dimensions, provider=provider)
        self.session.add(model)
        self.session.flush()
        for corpus in CORPORA.values():
            if dimensions <= HALFVEC_MAX_DIMENSIONS:
                self.session.execute(CreateIndex(index_of(corpus, model)))
        return model

    def find_active_model(self, corpus: str) -> EmbeddingModel | None:
        """The model that searches of the corpus use, or None where no one has chosen."""
        chosen = self.session.get(CorpusSetting, corpus)
        return None if chosen is None else self.get_model(chosen.active_model)

    def use_model(self, corpus: str, name: str) -> None:
        """Make searches of the corpus use the model, from the next one on.

        Raises:
            UnknownModel: It is not registered.
        """
        self.get_model(name)
        chosen = insert(CorpusSetting).values(corpus=corpus, active_model=name)
        self.session.execute(
            chosen.on_conflict_do_update(
                index_elements=[CorpusSetting.corpus], set_={"active_model": name}
            )
        )
        self.session.expire_all()

    def list_pending(
        self,
        corpus: Corpus,
        model_name: str,
        *,
        limit: int,
        after: Any = None,  # noqa: ANN401
    ) -> list[Pending]:
        """Passages to embed, in the order of their keys.

        Args:
            corpus: Whose passages.
            model_name: The model whose vectors are wanted.
            limit: At most this many.
            after: The last key of the batch before.
        """
        current = text_hash(corpus)
        stored = corpus.vectors.c.content_hash
        missing = (
            select(
                corpus.key.label("id"),
                corpus.text.label("text"),
                current.label("content_hash"),
                stored.is_not(None).label("stale"),
            )
            .outerjoin_from(corpus.passages, corpus.vectors, _vector_of(corpus, model_name))
            .where(or_(stored.is_(None), stored != current))
            .order_by(corpus.key)
            .limit(limit)
        )
        if after is not None:
            missing = missing.where(corpus.key > after)
        return [Pending(*row) for row in self.session.execute(missing)]

    def coverage(self, corpus: Corpus, model_name: str) -> Coverage:
        """How much of the corpus the model has vectors for."""
        stored = corpus.vectors.c.content_hash
        current = text_hash(corpus)
        row = self.session.execute(
            select(
                func.count(),
                func.count().filter(stored == current),
                func.count().filter(stored != current),
            ).outerjoin_from(corpus.passages, corpus.vectors, _vector_of(corpus, model_name))
        ).one()
        return Coverage(*row)

    def has_vectors(self, corpus: Corpus, model_name: str) -> bool:
        """Whether any passage has a vector of the model."""
        one = select(literal(1)).where(corpus.vectors.c.model_name == model_name).limit(1)
        return self.session.scalar(one) is not None

    def store(
        self,
        corpus: Corpus,
        model_name: str,
        item_ids: Sequence[Any],
        vectors: np.ndarray,
        hashes: Sequence[bytes] | None = None,
    ) -> int:
        """Keep vectors of passages whose text is still what was embedded.

        Args:
            corpus: Whose passages.
            model_name: The model that made the vectors.
            item_ids: Keys of the passages.
            vectors: float of shape ``(len(item_ids), dimensions)``.
            hashes: SHA-256 of each embedded text; None takes the vectors as those of the present
                texts.

        Returns:
            How many were stored. The rest belong to passages that are gone or have changed since.

        Raises:
            UnknownModel: The model is not registered.
            InvalidValue: A vector is of the wrong length, not finite or all zeros.
        """
        model = self.get_model(model_name)
        refuse_unusable(vectors, model.dimensions)
        current = text_hash(corpus)
        columns = {
            "item": corpus.key.type.compile(self.session.connection().dialect).lower(),
            "embedding": "vector",
            "content_hash": "bytea",
        }
        rows = zip(
            item_ids,
            np.asarray(vectors, dtype=np.float32),
            hashes if hashes is not None else [b""] * len(item_ids),
            strict=True,
        )
        with self.staged("staged_vectors", columns, rows) as staged:
            fresh = select(
                staged.c.item, literal(model_name), staged.c.embedding, current
            ).join_from(staged, corpus.passages, corpus.key == staged.c.item)
            if hashes is not None:
                fresh = fresh.where(staged.c.content_hash == current)
            merge = insert(corpus.vectors).from_select(
                [corpus.item.name, "model_name", "embedding", "content_hash"], fresh
            )
            result = self.session.connection().execute(
                merge.on_conflict_do_update(
                    index_elements=[corpus.item.name, "model_name"],
                    set_={
                        "embedding": merge.excluded.embedding,
                        "content_hash": merge.excluded.content_hash,
                    },
                ),
                execution_options={"preserve_rowcount": True},
            )
        return result.rowcount


def index_of(corpus: Corpus, model: EmbeddingModel) -> Index:
    """The index of one model's vectors in one corpus, for a model added at run time."""
    # Names that differ only in case, in punctuation or late have the same slug.
    unique = "_" + sha256(model.name.encode()).hexdigest()[:8]
    name = f"{corpus.vectors.name}_hnsw_{index_slug(model.name)}"
    name = name[: MAX_IDENTIFIER - len(unique)] + unique
    index = hnsw(name, model.name, model.dimensions)
    Table(corpus.vectors.name, MetaData(), index)  # apart from the metadata of the models
    return index


def text_hash(corpus: Corpus) -> ColumnElement[bytes]:
    """SHA-256 of what is embedded of a passage, computed by the database."""
    return func.sha256(func.convert_to(corpus.text, "UTF8"))


def refuse_unusable(vectors: np.ndarray, dimensions: int) -> None:
    """Check vectors before they are sent; the database's constraints say the same again.

    Raises:
        InvalidValue: A vector is of the wrong length, not finite or all zeros; the message names
            the first such row.
    """
    if vectors.ndim != 2 or vectors.shape[1] != dimensions:  # noqa: PLR2004 - rows and columns
        raise InvalidValue(
            f"the vectors have shape {vectors.shape}, but the model's have {dimensions} dimensions",
            constraint="valid_embedding_dimensions",
        )
    for fault, rows in {
        "holds NaN or infinity": ~np.isfinite(vectors).all(axis=1),
        "is all zeros and has no direction": ~vectors.any(axis=1),
    }.items():
        if rows.any():
            raise InvalidValue(f"vector {int(rows.argmax())} {fault}")


def _vector_of(corpus: Corpus, model_name: str) -> ColumnElement[bool]:
    return and_(corpus.item == corpus.key, corpus.vectors.c.model_name == model_name)
