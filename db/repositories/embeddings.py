"""The vectors of every corpus, and the passages that lack one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
from sqlalchemy import (
    ColumnElement,
    Double,
    Select,
    Text,
    and_,
    any_,
    bindparam,
    cast,
    delete,
    func,
    literal,
    or_,
    select,
    true,
    tuple_,
)
from sqlalchemy.dialects.postgresql import ARRAY, insert

from pgcorpus.db.base import Vector
from pgcorpus.db.choices import IndexKind
from pgcorpus.db.errors import (
    InvalidValue,
)
from pgcorpus.db.repositories.base import Repository
from pgcorpus.db.repositories.models import ModelRepository
from pgcorpus.db.search.corpus import Corpus

HALF_LARGEST: Final = 65_504.0
HALF_SMALLEST: Final = 2.0**-24
"""The least number of half precision, in which vectors are indexed (IEEE 754, binary16)."""


@dataclass(frozen=True)
class Pending:
    """A passage whose vector is missing or stale.

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
    """The number of a corpus's passages that one model has vectors for.

    Attributes:
        total: Passages.
        embedded: Passages whose vector is of their present text.
        stale: Passages whose vector is of an older text.
    """

    total: int
    embedded: int
    stale: int

    def __add__(self, other: Coverage) -> Coverage:
        return Coverage(
            self.total + other.total, self.embedded + other.embedded, self.stale + other.stale
        )

    @property
    def missing(self) -> int:
        """The number of passages without any vector."""
        return self.total - self.embedded - self.stale


class EmbeddingRepository(Repository):
    """Vectors, and the passages that lack one."""

    def list_pending(
        self,
        corpus: Corpus,
        model_name: str,
        *,
        limit: int,
        after: Any = None,
        among: Sequence[Any] | None = None,
    ) -> list[Pending]:
        """List passages to embed, in the order of their keys.

        Args:
            corpus: Whose passages.
            model_name: The model whose vectors are wanted.
            limit: At most this many.
            after: The last key of the batch before.
            among: Only passages with these keys.

        Raises:
            MissingScope: The corpus has a scope, and the unit of work has none.
        """
        corpus.refuse_without(self.scope)
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
            .where(
                or_(stored.is_(None), stored != current),
                *corpus.of_scope(corpus.passages, self.scope),
            )
            .order_by(corpus.key)
            .limit(limit)
        )
        if after is not None:
            missing = missing.where(corpus.key > after)
        if among is not None:
            keys = literal(list(among), ARRAY(corpus.key.type))
            missing = missing.where(corpus.key == any_(keys))
        return [Pending(*row) for row in self.session.execute(missing)]

    def coverage(self, corpus: Corpus, model_name: str) -> Coverage:
        """Count the passages of the corpus that the model has vectors for."""
        stored = corpus.vectors.c.content_hash
        current = text_hash(corpus)
        row = self.session.execute(
            select(
                func.count(),
                func.count().filter(stored == current),
                func.count().filter(stored != current),
            )
            .outerjoin_from(corpus.passages, corpus.vectors, _vector_of(corpus, model_name))
            .where(*self.in_scope(corpus, corpus.passages))
        ).one()
        return Coverage(*row)

    def sees_all(self, corpus: Corpus) -> bool:
        """Return whether row security hides none of the corpus's passages from the role."""
        hidden = func.row_security_active(corpus.passages.name)
        return not self.session.scalar(select(hidden))

    def has_vectors(self, corpus: Corpus, model_name: str) -> bool:
        """Return whether any passage has a vector of the model."""
        one = select(literal(1)).where(
            corpus.vectors.c.model_name == model_name, *self.in_scope(corpus, corpus.vectors)
        )
        return self.session.scalar(one.limit(1)) is not None

    def count_vectors(self, corpus: Corpus, model_name: str) -> int:
        """Count the vectors of the model in the corpus."""
        of_model = corpus.vectors.c.model_name == model_name
        own = self.in_scope(corpus, corpus.vectors)
        counted = select(func.count()).select_from(corpus.vectors).where(of_model, *own)
        return self.session.scalar(counted) or 0

    def store(
        self,
        corpus: Corpus,
        model_name: str,
        item_ids: Sequence[Any],
        vectors: np.ndarray,
        hashes: Sequence[bytes] | None = None,
    ) -> int:
        """Store vectors of passages whose text is still the embedded one.

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
        corpus.refuse_without(self.scope)
        model = ModelRepository(self.session).get_model(model_name)
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
        with self.stage("staged_vectors", columns, rows) as staged:
            scope = () if corpus.scope is None else (corpus.scope,)
            # Looked up one by one: where the statistics do not know the scope yet, a join would
            # read all that is in it, for every batch.
            passage = (
                select(current.label("content_hash"), *scope)
                .where(corpus.key == staged.c.item, *corpus.of_scope(corpus.passages, self.scope))
                .limit(1)
                .lateral("passage")
            )
            fresh = select(
                staged.c.item, literal(model_name), staged.c.embedding, *passage.c
            ).join_from(staged, passage, true())
            if hashes is not None:
                fresh = fresh.where(staged.c.content_hash == passage.c.content_hash)
            merge = insert(corpus.vectors).from_select(
                [
                    *(corpus.item.name, "model_name", "embedding", "content_hash"),
                    *(each.name for each in scope),
                ],
                fresh,
            )
            result = self.session.connection().execute(
                merge.on_conflict_do_update(
                    index_elements=[*(each.name for each in corpus.items), "model_name"],
                    set_={
                        "embedding": merge.excluded.embedding,
                        "content_hash": merge.excluded.content_hash,
                    },
                ),
                execution_options={"preserve_rowcount": True},
            )
        return result.rowcount

    def delete_vectors(self, corpus: Corpus, model_name: str, *, limit: int) -> int:
        """Delete some of the model's vectors.

        Args:
            corpus: Whose.
            model_name: Of which model.
            limit: At most this many.

        Returns:
            How many were deleted; 0 when none is left.
        """
        of_model = corpus.vectors.c.model_name == model_name
        own = self.in_scope(corpus, corpus.vectors)
        some = select(*corpus.items).where(of_model, *own).limit(limit)
        result = self.session.connection().execute(
            delete(corpus.vectors).where(of_model, tuple_(*corpus.items).in_(some)),
            execution_options={"preserve_rowcount": True},
        )
        return result.rowcount

    def list_nearest(
        self, corpus: Corpus, model_name: str, asked: np.ndarray, *, limit: int
    ) -> list[float]:
        """Return the best cosine similarities in a corpus.

        All vectors are compared, without an index.

        Args:
            corpus: What is searched, under its default filters.
            model_name: Whose vectors.
            asked: float32 of shape ``(dimensions,)``.
            limit: At most this many.

        Returns:
            Similarities, best first; 0 where one is negative, as in a search.
        """
        shown, values = _build_defaults(corpus)
        question = bindparam("question_vector", type_=Vector())
        # The indexes are on other expressions: none serves this one.
        distance = cast(corpus.vectors.c.embedding.op("<=>")(question), Double)
        nearest: Select[Any] = (
            select(func.greatest(1 - distance, 0, type_=Double))
            .join_from(corpus.vectors, corpus.passages, corpus.vector_join)
            .where(corpus.vectors.c.model_name == model_name, *shown)
            .where(*self.in_scope(corpus, corpus.vectors))
            .order_by(distance)
            .limit(limit)
        )
        return list(self.session.scalars(nearest, {**values, "question_vector": asked}))

    def sample_texts(self, corpus: Corpus, *, limit: int) -> list[str]:
        """Return the texts of some passages: the same ones each time, from all over the corpus."""
        shown, values = _build_defaults(corpus)
        scattered = func.hashtextextended(cast(corpus.key, Text), 0)
        shown += self.in_scope(corpus, corpus.passages)
        some = select(corpus.text).where(*shown).order_by(scattered).limit(limit)
        return list(self.session.scalars(some, values))

    def sample_vectors(self, corpus: Corpus, model_name: str, *, limit: int) -> list[np.ndarray]:
        """Return some vectors of a model: the same ones each time, from all over the corpus.

        Args:
            corpus: What is searched, under its default filters.
            model_name: Whose vectors.
            limit: At most this many.

        Returns:
            Arrays of float32, each of shape ``(dimensions,)``.
        """
        shown, values = _build_defaults(corpus)
        scattered = func.hashtextextended(cast(corpus.key, Text), 0)
        some: Select[Any] = (
            select(corpus.vectors.c.embedding)
            .join_from(corpus.vectors, corpus.passages, corpus.vector_join)
            .where(corpus.vectors.c.model_name == model_name, *shown)
            .where(*self.in_scope(corpus, corpus.vectors))
            .order_by(scattered)
            .limit(limit)
        )
        return list(self.session.scalars(some, values))


def text_hash(corpus: Corpus) -> ColumnElement[bytes]:
    """Build the SHA-256 of a passage's embedded text, computed by the database."""
    return func.sha256(func.convert_to(corpus.text, "UTF8"))


class Fault(NamedTuple):
    """A vector that cannot be stored and compared.

    Attributes:
        row: Its number, from 0.
        reason: What is wrong with it.
    """

    row: int
    reason: str


def find_fault(vectors: np.ndarray, index_kind: IndexKind | None = None) -> Fault | None:
    """Return a vector that cannot be stored and compared, or None.

    Args:
        vectors: float32 of shape ``(n, dimensions)``.
        index_kind: How they will be indexed; None: ask only what the tables ask.
    """
    return next(iter(list_faults(vectors, index_kind)), None)


def list_faults(vectors: np.ndarray, index_kind: IndexKind | None = None) -> list[Fault]:
    """Return every vector that cannot be stored and compared, each once.

    Args:
        vectors: float32 of shape ``(n, dimensions)``.
        index_kind: How they will be indexed; None: ask only what the tables ask.
    """
    largest = np.abs(vectors).max(axis=1, initial=0.0)
    halved = index_kind == "halfvec"
    found: dict[int, Fault] = {}
    for reason, rows in {
        "holds NaN or infinity": ~np.isfinite(largest),
        "is all zeros and has no direction": largest == 0,
        f"holds a number beyond {HALF_LARGEST:.0f}, and the index is in half precision": (
            halved & (largest > HALF_LARGEST)
        ),
        "is all zeros in half precision, in which the index is": halved & (largest < HALF_SMALLEST),
    }.items():
        for row in map(int, np.flatnonzero(rows)):
            found.setdefault(row, Fault(row, reason))
    return list(found.values())


def refuse_unusable(vectors: np.ndarray, dimensions: int) -> None:
    """Raise for vectors that cannot be stored; the database's constraints say the same again.

    Raises:
        InvalidValue: A vector is of the wrong length, not finite or all zeros; the message names
            the first such row.
    """
    if vectors.ndim != 2 or vectors.shape[1] != dimensions:  # noqa: PLR2004 - rows and columns
        raise InvalidValue(
            f"the vectors have shape {vectors.shape}, but the model's have {dimensions} dimensions",
            constraint="valid_embedding_dimensions",
        )
    if fault := find_fault(vectors):
        raise InvalidValue(f"vector {fault.row} {fault.reason}")


def _vector_of(corpus: Corpus, model_name: str) -> ColumnElement[bool]:
    return and_(corpus.vector_join, corpus.vectors.c.model_name == model_name)


def _build_defaults(corpus: Corpus) -> tuple[list[ColumnElement[bool]], dict[str, Any]]:
    """Return the conditions of a search without filters, and the values of their parameters."""
    conditions, values = corpus.parse_filters({})
    return [corpus.holds(condition) for condition in conditions], values
