"""The registry of models, and the vectors of every corpus."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Final, Literal

import numpy as np
from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Double,
    Select,
    Text,
    and_,
    any_,
    bindparam,
    case,
    cast,
    delete,
    func,
    literal,
    or_,
    select,
    text,
    true,
    update,
)
from sqlalchemy.dialects.postgresql import ARRAY, dialect, insert
from sqlalchemy.exc import DBAPIError
from sqlalchemy.schema import CreateIndex, Index, MetaData, Table

from pgcorpus.db.base import Vector
from pgcorpus.db.errors import (
    AlreadyExists,
    InvalidValue,
    NotFound,
    TransactionConflict,
    UnknownModel,
    WrongDimensions,
)
from pgcorpus.db.mixins import IndexKind, hnsw, rows_of
from pgcorpus.db.models.embeddings import CorpusSetting, EmbeddingModel, index_slug
from pgcorpus.db.repositories.base import Repository
from pgcorpus.db.repositories.search import LEAST_INDEXED, Ask, SearchRepository
from pgcorpus.db.scope import Scope
from pgcorpus.db.search.corpus import Corpus
from pgcorpus.db.search.legs import AskedModel
from pgcorpus.db.search.page import Hit
from pgcorpus.db.search.question import Question

SPREAD_SAMPLE: Final = 64
"""Vectors that are compared with each other to measure a spread: 2,016 pairs, good to 3 %."""

LEAST_SPREAD: Final = 0.01
"""Of vectors that are all alike, nobody can say more."""

MAX_IDENTIFIER: Final = 63
"""PostgreSQL cuts longer names."""

HYBRID: Final = {"vector": 0.7, "text": 0.3}
"""The specification's weights of legs (FR2)."""

IndexState = Literal["ready", "missing", "invalid", "mismatched"]
"""``mismatched``: there is an index, and it is of another kind or length."""

GRAPH_BYTES: Final = 1200
"""What a node of an HNSW graph with m = 16 takes in memory while it is built, beside its vector."""

BUILD_MEMORY_KB: Final = (256 * 1024, 2 * 1024**2)
"""Least and most ``maintenance_work_mem`` of a build. A graph that outgrows it is finished on disk,
many times slower; more than 2 GiB is the administrator's to grant, in the server's setting."""

OWN_EF_CONSTRUCTION: Final = 128
"""Of an index for one scope, twice pgvector's default: of half a million vectors in dense clusters
graphs built with 64 found 0.94 to 0.99, whatever ``hnsw.ef_search``; with 128, 0.99."""

LARGE_SCOPES: Final = text("""
    SELECT scope, vectors FROM large_scopes(CAST(:table AS regclass), :more_than)
    WHERE model_name = :model ORDER BY vectors DESC
""")

LARGEST_SCOPE: Final = text("""
    SELECT scope FROM large_scopes(CAST(:table AS regclass), 0) ORDER BY vectors DESC LIMIT 1
""")

INDEXES_OF_A_MODEL: Final = text("""
    SELECT indexrelid::regclass::text AS name, indisvalid AND indisready AS valid,
           pg_get_indexdef(indexrelid) AS definition
    FROM pg_index
    JOIN pg_class ON pg_class.oid = indexrelid
    JOIN pg_am ON pg_am.oid = relam AND amname = 'hnsw'
    WHERE indrelid = CAST(:table AS regclass)
      AND (pg_get_expr(indpred, indrelid)
               = format('((model_name)::text = %L::text)', CAST(:model AS text))
           OR starts_with(pg_get_expr(indpred, indrelid),
               format('(((model_name)::text = %L::text) AND (scope = ', CAST(:model AS text))))
    ORDER BY 1
""")

INDEX_BUILD: Final = text("""
    SELECT phase, coalesce(blocks_done::float8 / nullif(blocks_total, 0), 0)
    FROM pg_stat_progress_create_index WHERE relid = CAST(:table AS regclass)
""")

ALLOW_BUILD_MEMORY: Final = text("""
    SELECT set_config('maintenance_work_mem', greatest(setting::bigint, :kilobytes)::text, false),
           set_config('max_parallel_maintenance_workers', '0', false)
    FROM pg_settings WHERE name = 'maintenance_work_mem'
""")
"""One process builds, in memory of its own: several would share the graph in ``/dev/shm``, which
containers keep at 64 MB, and would take the processors that searches need meanwhile."""


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
class LargeScope:
    """A scope that needs a vector index of its own.

    Attributes:
        scope: Whose.
        vectors: How many it has.
        model: Of which model.
        index: The name that its index is to have.
        remedy: The statement that builds it, outside of a transaction. The planner finds it.
    """

    scope: Scope
    vectors: int
    model: EmbeddingModel
    index: str
    remedy: str


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


@dataclass(frozen=True)
class VectorIndex:
    """An index on one model's vectors, as the database has it.

    Attributes:
        name: Quoted where PostgreSQL needs it.
        valid: False after a build that failed or was killed, and while one runs.
        matching: Whether it is of the model's kind and length, so that searches use it.
    """

    name: str
    valid: bool
    matching: bool

    @property
    def usable(self) -> bool:
        """True if searches use it."""
        return self.valid and self.matching


class EmbeddingRepository(Repository):
    """Models and their use by corpora; vectors, and the passages that lack one."""

    def list_models(self) -> Sequence[EmbeddingModel]:
        """List the registered models, by name."""
        return self.session.scalars(select(EmbeddingModel).order_by(EmbeddingModel.name)).all()

    def find_model(self, name: str) -> EmbeddingModel | None:
        """Return the model of that name, or None."""
        return self.session.get(EmbeddingModel, name)

    def get_model(self, name: str) -> EmbeddingModel:
        """Return the model of that name.

        Raises:
            UnknownModel: It is not registered; the message lists those that are.
        """
        model = self.find_model(name)
        if model is None:
            known = ", ".join(model.name for model in self.list_models())
            raise UnknownModel(
                f"there is no model {name!r}; known: {known}. Add one with: "
                "pgcorpus models add NAME --dimensions N --provider PROVIDER"
            )
        return model

    def add_model(
        self, name: str, *, dimensions: int, provider: str, index_kind: IndexKind = "halfvec"
    ) -> EmbeddingModel:
        """Register a model. Its indexes are ``build_index``'s: they need no transaction.

        Raises:
            AlreadyExists: The name is taken.
            InvalidValue: The index cannot hold so many dimensions.
        """
        if self.find_model(name) is not None:
            raise AlreadyExists(f"there is a model {name!r} already; see: pgcorpus models list")
        model = EmbeddingModel(
            name=name, dimensions=dimensions, provider=provider, index_kind=index_kind
        )
        self.session.add(model)
        self.session.flush()
        return model

    @contextmanager
    def alone_with(self, name: str) -> Iterator[None]:
        """Keep other sessions from indexing, dropping or using the model, outside of a transaction.

        The lock is the connection's: a build that the server goes on with after its client was
        killed still holds it.

        Raises:
            TransactionConflict: Somebody else has it.
        """
        connection = self.session.connection()
        if not connection.scalar(select(func.pg_try_advisory_lock(_lock_of(name)))):
            raise TransactionConflict(_being_changed(name))
        try:
            yield
        finally:
            with suppress(DBAPIError):  # the connection is gone, and its lock with it
                if not connection.invalidated:
                    connection.execute(select(func.pg_advisory_unlock(_lock_of(name))))

    def keep_model(self, name: str) -> None:
        """Keep other sessions from indexing or dropping the model until the transaction ends.

        Raises:
            TransactionConflict: Somebody does just now.
        """
        if not self.session.scalar(select(func.pg_try_advisory_xact_lock_shared(_lock_of(name)))):
            raise TransactionConflict(_being_changed(name))

    def list_indexes(self, corpus: Corpus, model: EmbeddingModel) -> list[VectorIndex]:
        """Return the indexes on a model's vectors, whatever their names, kinds and states.

        Those of a corpus with scopes are each of one scope.
        """
        compared = {
            "halfvec": f"((embedding)::halfvec({model.dimensions})) halfvec_cosine_ops",
            "binary": f"((binary_quantize(embedding))::bit({model.dimensions})) bit_hamming_ops",
        }[model.index_kind]
        found = self.session.execute(
            INDEXES_OF_A_MODEL, {"table": corpus.vectors.name, "model": model.name}
        )
        return [VectorIndex(row.name, row.valid, compared in row.definition) for row in found]

    def index_state(self, corpus: Corpus, model: EmbeddingModel) -> IndexState:
        """Return whether searches of the corpus can use an index of the model, and if not, why.

        A corpus with scopes needs none to be ready: small scopes are compared one by one, and of a
        large one ``list_unindexed_scopes`` tells.
        """
        if corpus.scope is not None:
            return "ready"
        indexes = self.list_indexes(corpus, model)
        if any(index.usable for index in indexes):
            return "ready"
        if any(index.matching for index in indexes):
            return "invalid"
        return "mismatched" if indexes else "missing"

    def build_index(self, corpus: Corpus, model: EmbeddingModel) -> None:
        """Make a model's index while others read and write, outside of a transaction.

        A build that fails leaves an invalid index of the same name: drop it first.
        """
        kilobytes = build_memory_kb(model, self.count_vectors(corpus, model.name))
        self.session.execute(ALLOW_BUILD_MEMORY, {"kilobytes": kilobytes}).close()
        self.session.execute(CreateIndex(index_of(corpus, model)))

    def list_unindexed_scopes(self, corpus: Corpus, model: EmbeddingModel) -> list[LargeScope]:
        """Return scopes too large to be compared one by one that have no vector index.

        Raises:
            ProgrammingError: The role is neither the owner of the schema nor of ``rag_admin``.
        """
        if corpus.scope is None:
            return []
        there = {index.name for index in self.list_indexes(corpus, model) if index.usable}
        asked = {"table": corpus.vectors.name, "model": model.name, "more_than": LEAST_INDEXED}
        large = []
        for written, vectors in self.session.execute(LARGE_SCOPES, asked):
            scope = Scope.parse(written)
            name, statement = scope_index(corpus, model, scope)
            if name not in there:
                large.append(LargeScope(scope, vectors, model, name, statement))
        return large

    def find_largest_scope(self, corpus: Corpus) -> Scope | None:
        """Return the scope with the most vectors of a corpus, among those of all tenants.

        Raises:
            ProgrammingError: The role is neither the owner of the schema nor of ``rag_admin``.
        """
        found = self.session.scalar(LARGEST_SCOPE, {"table": corpus.vectors.name})
        return None if found is None else Scope.parse(found)

    def may_list_large_scopes(self) -> bool:
        """Return whether the role may read the sizes of scopes."""
        function = "large_scopes(regclass, bigint)"
        return bool(self.session.scalar(select(func.has_function_privilege(function, "EXECUTE"))))

    def build_scope_index(self, large: LargeScope) -> None:
        """Build a scope's vector index while others read and write, outside of a transaction."""
        kilobytes = build_memory_kb(large.model, large.vectors)
        self.session.execute(ALLOW_BUILD_MEMORY, {"kilobytes": kilobytes}).close()
        # A build that failed left an invalid index of this name.
        self.session.connection().exec_driver_sql(f"DROP INDEX IF EXISTS {large.index}")
        self.session.connection().exec_driver_sql(large.remedy)

    def analyze_vectors(self, corpus: Corpus) -> None:
        """Renew the statistics of the vectors.

        Without them the planner prefers a sort to a new index.

        Skipped while another model's index is built on the table, which may take hours.
        """
        self.session.execute(text(f"ANALYZE (SKIP_LOCKED) {corpus.vectors.name}"))

    def drop_index(self, index: VectorIndex) -> None:
        """Drop an index while others read and write, outside of a transaction."""
        self.session.execute(text(f"DROP INDEX CONCURRENTLY IF EXISTS {index.name}"))

    def find_index_build(self, corpus: Corpus) -> tuple[str, float] | None:
        """Return the phase of the build on the corpus's vectors, and its share done in [0, 1].

        None where none runs.
        """
        row = self.session.execute(INDEX_BUILD, {"table": corpus.vectors.name}).first()
        return None if row is None else (row[0], row[1])

    def find_active_model(self, corpus: str) -> EmbeddingModel | None:
        """Return the model that searches of the corpus use, or None where none is set."""
        chosen = self.session.get(CorpusSetting, corpus)
        return None if chosen is None else self.get_model(chosen.active_model)

    def measure_spread(self, corpus: Corpus, model_name: str) -> None:
        """Measure how far the cosines of a model spread, unless it is known or they are too few."""
        sample = (
            select(corpus.vectors.c.embedding, corpus.item.label("item"))
            .where(corpus.vectors.c.model_name == model_name)
            .order_by(corpus.item)
            .limit(SPREAD_SAMPLE)
            .cte("sample")
        )
        one, other = sample.alias("one"), sample.alias("other")
        cosine = cast(one.c.embedding.op("<=>")(other.c.embedding), Double)
        spread = select(func.stddev_pop(cosine)).join_from(one, other, one.c.item < other.c.item)
        enough = select(func.count() == SPREAD_SAMPLE).select_from(sample).scalar_subquery()
        self.session.execute(
            update(EmbeddingModel)
            .where(
                EmbeddingModel.name == model_name, EmbeddingModel.cosine_spread.is_(None), enough
            )
            .values(cosine_spread=func.greatest(spread.scalar_subquery(), LEAST_SPREAD))
        )
        self.session.expire_all()

    def find_previous_model(self, corpus: str) -> str | None:
        """Return the model that searches of the corpus used before, or None."""
        chosen = self.session.get(CorpusSetting, corpus)
        return None if chosen is None else chosen.previous_model

    def lock_setting(self, corpus: str) -> None:
        """Keep other sessions from switching the corpus until the transaction ends.

        Wait for one that does.
        """
        setting = select(CorpusSetting).where(CorpusSetting.corpus == corpus).with_for_update()
        self.session.execute(setting.execution_options(populate_existing=True))

    def use_model(self, corpus: str, name: str) -> None:
        """Make searches of the corpus use the model, from the next one on.

        The model before is kept for ``roll_back``; using a model twice does not forget it.

        Raises:
            UnknownModel: It is not registered.
            TransactionConflict: It is being indexed or dropped.
        """
        self.keep_model(name)
        self.get_model(name)
        self.lock_setting(corpus)
        active = self.find_active_model(corpus)
        chosen = insert(CorpusSetting).values(corpus=corpus, active_model=name)
        self.session.execute(
            chosen.on_conflict_do_update(
                index_elements=[CorpusSetting.corpus],
                set_={
                    "active_model": name,
                    "previous_model": case(
                        (CorpusSetting.active_model == name, CorpusSetting.previous_model),
                        else_=CorpusSetting.active_model,
                    ),
                },
            )
        )
        if active is not None and active.name != name:
            # The clock, not now(): counting the coverage may have taken a while.
            self.session.execute(
                update(EmbeddingModel)
                .where(EmbeddingModel.name == active.name)
                .values(retired_at=func.clock_timestamp())
            )
        self.session.expire_all()

    def roll_back(self, corpus: str) -> str:
        """Make searches of the corpus use the model before; a second call undoes the first.

        Returns:
            The model's name.

        Raises:
            NotFound: There was none, or it was dropped.
            TransactionConflict: It is being indexed or dropped.
        """
        self.lock_setting(corpus)
        previous = self.find_previous_model(corpus)
        if previous is None:
            raise NotFound(
                f"{corpus} has no earlier model to go back to; choose one with: "
                f"pgcorpus models use {corpus} NAME"
            )
        self.use_model(corpus, previous)
        return previous

    def forget_previous(self, name: str) -> None:
        """Keep every corpus from going back to the model."""
        self.session.execute(
            update(CorpusSetting)
            .where(CorpusSetting.previous_model == name)
            .values(previous_model=None)
        )

    def seconds_retired(self, name: str) -> float | None:
        """Return the seconds since a corpus changed from the model to another; None: never."""
        age = func.extract("epoch", func.clock_timestamp() - EmbeddingModel.retired_at)
        found: float | None = self.session.scalar(
            select(cast(age, Double)).where(EmbeddingModel.name == name)
        )
        return found

    def delete_model(self, name: str) -> None:
        """Delete a model without vectors from the registry.

        Raises:
            MissingReference: It has vectors, or a corpus uses it.
        """
        self.session.execute(delete(EmbeddingModel).where(EmbeddingModel.name == name))

    def count_vectors(self, corpus: Corpus, model_name: str) -> int:
        """Count the vectors of the model in the corpus."""
        of_model = corpus.vectors.c.model_name == model_name
        own = self.in_scope(corpus, corpus.vectors)
        counted = select(func.count()).select_from(corpus.vectors).where(of_model, *own)
        return self.session.scalar(counted) or 0

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
        some = select(corpus.item).where(of_model, *own).limit(limit)
        result = self.session.connection().execute(
            delete(corpus.vectors).where(of_model, corpus.item.in_(some)),
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
            .join_from(corpus.vectors, corpus.passages, corpus.key == corpus.item)
            .where(corpus.vectors.c.model_name == model_name, *shown)
            .where(*self.in_scope(corpus, corpus.vectors))
            .order_by(distance)
            .limit(limit)
        )
        return list(self.session.scalars(nearest, {**values, "question_vector": asked}))

    def search(
        self,
        corpus: Corpus,
        vector: np.ndarray,
        *,
        question: str | None = None,
        model_name: str | None = None,
        limit: int = 10,
        offset: int = 0,
        filters: Mapping[str, Any] | None = None,
    ) -> tuple[Hit, ...]:
        """Return the passages nearest to a vector; with a question, joined with those of its words.

        As ``SearchRepository`` ranks them, and no more: what falls back, embeds the question and
        explains itself is ``SearchService``.

        Args:
            corpus: What is searched.
            vector: Of the question, float32 of shape ``(dimensions,)``.
            question: In the grammar of web searches; None compares vectors alone.
            model_name: Whose vectors; by default those of the corpus's active model.
            limit: Hits, at most.
            offset: Hits that are passed over.
            filters: As ``Corpus.parse_filters`` takes them.

        Returns:
            Best first.

        Raises:
            UnknownModel: The model is not registered, or none is active.
            WrongDimensions: The vector is not as long as the model's.
            SearchError: The question is empty, or a filter is not known or of the wrong kind.
        """
        active = None if model_name else self.find_active_model(corpus.name)
        model = active or self.get_model(model_name or "")
        if vector.shape != (model.dimensions,):
            raise WrongDimensions(
                f"the vector has shape {vector.shape}, but those of {model.name!r} have "
                f"{model.dimensions} dimensions"
            )
        ask = Ask(
            question=Question("", ()) if question is None else Question.parse(question),
            legs={"vector": 1.0} if question is None else HYBRID,
            fusion="weighted",
            model=AskedModel(model.name, model.dimensions, model.index_kind),
            vector=vector,
            limit=limit,
            offset=offset,
            filters=filters or {},
        )
        return SearchRepository(self.session).answer(corpus, ask).hits

    def sample_texts(self, corpus: Corpus, *, limit: int) -> list[str]:
        """Return the texts of some passages: the same ones each time, from all over the corpus."""
        shown, values = _build_defaults(corpus)
        scattered = func.hashtextextended(cast(corpus.key, Text), 0)
        shown += self.in_scope(corpus, corpus.passages)
        some = select(corpus.text).where(*shown).order_by(scattered).limit(limit)
        return list(self.session.scalars(some, values))

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
            .where(or_(stored.is_(None), stored != current), *corpus.in_scope(corpus.passages))
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
        with self.stage("staged_vectors", columns, rows) as staged:
            scope = () if corpus.scope is None else (corpus.scope,)
            # Looked up one by one: where the statistics do not know the scope yet, a join would
            # read all that is in it, for every batch.
            passage = (
                select(current.label("content_hash"), *scope)
                .where(corpus.key == staged.c.item, *corpus.in_scope(corpus.passages))
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
    """Build the index of one model's vectors in one corpus, to be made beside running work.

    That of a seeded model has the name that the revisions gave it.
    """
    # Names that differ only in case, in punctuation or late have the same slug.
    unique = "_" + sha256(model.name.encode()).hexdigest()[:8]
    name = f"{corpus.vectors.name}_hnsw_{index_slug(model.name)}"
    name = name[: MAX_IDENTIFIER - len(unique)] + unique
    for seeded in corpus.vectors.indexes:
        if str(seeded.dialect_options["postgresql"]["where"]) == str(rows_of(model.name)):
            name = str(seeded.name)
    index = hnsw(name, model.name, model.dimensions, model.index_kind)
    index.dialect_options["postgresql"]["concurrently"] = True
    Table(corpus.vectors.name, MetaData(), index)  # apart from the metadata of the models
    return index


def scope_index(corpus: Corpus, model: EmbeddingModel, scope: Scope) -> tuple[str, str]:
    """Return name and statement of the index on a model's vectors of one scope alone."""
    index = index_of(corpus, model)
    options = index.dialect_options["postgresql"]
    options["with"] = options["with"] | {"ef_construction": OWN_EF_CONSTRUCTION}
    mark = "_" + sha256(str(scope).encode()).hexdigest()[:8]
    name = str(index.name)[: MAX_IDENTIFIER - len(mark)] + mark
    statement = str(CreateIndex(index).compile(dialect=dialect()))  # type: ignore[no-untyped-call]
    named = statement.strip().replace(str(index.name), name, 1)
    return name, f"{named} AND scope = '{scope}';"


def build_memory_kb(model: EmbeddingModel, vectors: int) -> int:
    """Return the ``maintenance_work_mem``, in kB, for an index of so many vectors of a model."""
    node = model.dimensions // 8 if model.index_kind == "binary" else model.dimensions * 2
    least, most = BUILD_MEMORY_KB
    return min(max(vectors * (node + GRAPH_BYTES) // 1024, least), most)


def text_hash(corpus: Corpus) -> ColumnElement[bytes]:
    """Build the SHA-256 of a passage's embedded text, computed by the database."""
    return func.sha256(func.convert_to(corpus.text, "UTF8"))


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
    for fault, rows in {
        "holds NaN or infinity": ~np.isfinite(vectors).all(axis=1),
        "is all zeros and has no direction": ~vectors.any(axis=1),
    }.items():
        if rows.any():
            raise InvalidValue(f"vector {int(rows.argmax())} {fault}")


def _vector_of(corpus: Corpus, model_name: str) -> ColumnElement[bool]:
    return and_(corpus.item == corpus.key, corpus.vectors.c.model_name == model_name)


def _build_defaults(corpus: Corpus) -> tuple[list[ColumnElement[bool]], dict[str, Any]]:
    """Return the conditions of a search without filters, and the values of their parameters."""
    conditions, values = corpus.parse_filters({})
    return [corpus.holds(condition) for condition in conditions], values


def _lock_of(model_name: str) -> ColumnElement[int]:
    """Return the key of the advisory lock of a model."""
    return func.hashtextextended(f"changing the model {model_name}", 0, type_=BigInteger)


def _being_changed(model_name: str) -> str:
    return f"another process is indexing or dropping {model_name}; wait until it has ended"
