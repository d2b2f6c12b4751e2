"""Indexes on vectors: those that a model has, those that it lacks, and how they are built."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Final, Literal, NamedTuple

from psycopg.errors import DiskFull, OutOfMemory
from sqlalchemy import BigInteger, TableValuedAlias, Text, column, func, or_, select, text
from sqlalchemy.dialects.postgresql import dialect
from sqlalchemy.exc import OperationalError
from sqlalchemy.schema import CreateIndex, Index, MetaData, Table

from pgcorpus.db.base import SHARED
from pgcorpus.db.mixins import hnsw, rows_of
from pgcorpus.db.models.embeddings import EmbeddingModel, index_slug
from pgcorpus.db.repositories.base import LEAST_SHARED, Repository
from pgcorpus.db.repositories.embeddings import EmbeddingRepository
from pgcorpus.db.scope import Scope
from pgcorpus.db.search.corpus import Corpus
from pgcorpus.db.search.ranker import LEAST_INDEXED

MAX_IDENTIFIER: Final = 63
"""Bytes of a name; PostgreSQL cuts longer ones."""

IndexState = Literal["ready", "missing", "invalid", "mismatched"]
"""The state of a model's index; ``mismatched`` is one of another kind or length."""

GRAPH_BYTES: Final = 1200
"""Memory of a node of an HNSW graph with m = 16 while it is built, beside its vector."""

BUILD_MEMORY_KB: Final = (256 * 1024, 2 * 1024**2)
"""Least and most ``maintenance_work_mem`` of a build. A graph that outgrows it is finished on disk,
many times slower; more than 2 GiB is the administrator's to grant, in the server's setting."""

OWN_EF_CONSTRUCTION: Final = 128
"""``ef_construction`` of an index for one scope, twice pgvector's default: of half a million
vectors in dense clusters graphs built with 64 found 0.94 to 0.99, whatever ``hnsw.ef_search``; with
128, 0.99."""

INDEXES_OF_A_MODEL: Final = text("""
    SELECT indexrelid::regclass::text AS name, indisvalid AND indisready AS valid,
           pg_get_indexdef(indexrelid) AS definition,
           starts_with(pg_get_expr(indpred, indrelid), format(
               '(((model_name)::text = %L::text) AND (scope = %L::text', CAST(:model AS text),
               'shared')) AS shared
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

ALLOW_BUILD: Final = text("""
    SELECT set_config('maintenance_work_mem', greatest(setting::bigint, :kilobytes)::text, false),
           set_config('min_parallel_table_scan_size', :least_shared, false)
    FROM pg_settings WHERE name = 'maintenance_work_mem'
""")

BUILD_ALONE: Final = text("SELECT set_config('max_parallel_maintenance_workers', '0', false)")


@dataclass(frozen=True)
class VectorIndex:
    """An index on one model's vectors, as the database has it.

    Attributes:
        name: Quoted where PostgreSQL needs it.
        valid: False after a build that failed or was killed, and while one runs.
        matching: Whether it is of the model's kind and length, so that searches use it.
        shared: Whether it is of the vectors that are everybody's.
    """

    name: str
    valid: bool
    matching: bool
    shared: bool = False

    @property
    def usable(self) -> bool:
        """True if searches use it."""
        return self.valid and self.matching


class CountedScope(NamedTuple):
    """A scope and the number of its vectors of one model."""

    scope: Scope
    model_name: str
    vectors: int


@dataclass(frozen=True)
class LargeScope:
    """A scope that needs a vector index of its own.

    Attributes:
        scope: The tenant or user.
        vectors: Number of its vectors.
        model: The model of these.
        index: The name that its index is to have.
        remedy: The statement that builds it, outside of a transaction. The planner finds it.
    """

    scope: Scope
    vectors: int
    model: EmbeddingModel
    index: str
    remedy: str


class VectorIndexRepository(Repository):
    """Indexes on the vectors of a model, of a whole corpus or of one large scope."""

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
        return [
            VectorIndex(row.name, row.valid, compared in row.definition, row.shared)
            for row in found
        ]

    def index_state(self, corpus: Corpus, model: EmbeddingModel) -> IndexState:
        """Return whether searches of the corpus can use an index of the model, and if not, why.

        Scopes need none to be ready: small ones are compared one by one, and of a large one
        ``list_unindexed_scopes`` tells.
        """
        if corpus.needs_scope:
            return "ready"
        indexes = self.list_indexes(corpus, model)
        if corpus.scope is not None:
            indexes = [index for index in indexes if index.shared]
        if any(index.usable for index in indexes):
            return "ready"
        if any(index.matching for index in indexes):
            return "invalid"
        return "mismatched" if indexes else "missing"

    def build_index(self, corpus: Corpus, model: EmbeddingModel) -> None:
        """Make a model's index while others read and write, outside of a transaction.

        A build that fails leaves an invalid index of the same name: drop it first.
        """
        vectors = EmbeddingRepository(self.session).count_vectors(corpus, model.name)
        index = index_of(corpus, model)
        self._build(str(index.name), _statement_of(index), build_memory_kb(model, vectors))

    def drop_index(self, index: VectorIndex) -> None:
        """Drop an index while others read and write, outside of a transaction."""
        self._drop(index.name)

    def _drop(self, name: str) -> None:
        self.session.connection().exec_driver_sql(f"DROP INDEX CONCURRENTLY IF EXISTS {name}")

    def find_index_build(self, corpus: Corpus) -> tuple[str, float] | None:
        """Return the phase of the build on the corpus's vectors, and its share done in [0, 1].

        None where none runs.
        """
        row = self.session.execute(INDEX_BUILD, {"table": corpus.vectors.name}).first()
        return None if row is None else (row[0], row[1])

    def list_large_scopes(self, corpus: Corpus) -> list[CountedScope]:
        """Return the largest scope, and all that are too large to be compared one by one.

        All vectors of the corpus are counted for it: once is enough for a caller.

        Returns:
            The largest first, those of all tenants and models.

        Raises:
            ProgrammingError: The role is neither the owner of the schema nor of ``rag_admin``.
        """
        sizes = _count_scopes(corpus)
        place = func.row_number().over(order_by=sizes.c.vectors.desc())
        counted = select(*sizes.c, place.label("place")).subquery()
        large = select(counted.c.scope, counted.c.model_name, counted.c.vectors)
        found = large.where(or_(counted.c.vectors > LEAST_INDEXED, counted.c.place == 1))
        return [
            CountedScope(Scope.parse(scope), model_name, vectors)
            for scope, model_name, vectors in self.session.execute(found.order_by(counted.c.place))
        ]

    def list_unindexed_scopes(
        self, corpus: Corpus, model: EmbeddingModel, counted: Sequence[CountedScope] | None = None
    ) -> list[LargeScope]:
        """Return scopes too large to be compared one by one that have no vector index.

        Args:
            corpus: The corpus.
            model: The model of the vectors.
            counted: The answer of ``list_large_scopes``, where the caller has it.

        Raises:
            ProgrammingError: The role is neither the owner of the schema nor of ``rag_admin``.
        """
        if corpus.scope is None:
            return []
        there = {index.name for index in self.list_indexes(corpus, model) if index.usable}
        large = []
        for each in self.list_large_scopes(corpus) if counted is None else counted:
            name, statement = scope_index(corpus, model, each.scope)
            needed = each.model_name == model.name and each.vectors > LEAST_INDEXED
            if needed and name not in there:
                large.append(LargeScope(each.scope, each.vectors, model, name, statement))
        return large

    def may_list_large_scopes(self, corpus: Corpus) -> bool:
        """Return whether the role may read the sizes of a corpus's scopes."""
        function = f"{corpus.vectors.name}_large_scopes(bigint)"
        return bool(self.session.scalar(select(func.has_function_privilege(function, "EXECUTE"))))

    def build_scope_index(self, large: LargeScope) -> None:
        """Build a scope's vector index while others read and write, outside of a transaction."""
        self._drop(large.index)  # an invalid one, which a build that failed left
        self._build(large.index, large.remedy, build_memory_kb(large.model, large.vectors))

    def _build(self, name: str, statement: str, kilobytes: int) -> None:
        """Build with as many processes as the server grants; if these lack memory, with one.

        Several share the graph in ``/dev/shm``, which containers keep at 64 MB.
        """
        allowed = {"kilobytes": kilobytes, "least_shared": LEAST_SHARED}
        self.session.execute(ALLOW_BUILD, allowed).close()
        connection = self.session.connection()
        try:
            connection.exec_driver_sql(statement)
        except OperationalError as error:
            if not isinstance(error.orig, DiskFull | OutOfMemory):
                raise
            self._drop(name)
            connection.execute(BUILD_ALONE).close()
            connection.exec_driver_sql(statement)

    def analyze_vectors(self, corpus: Corpus) -> None:
        """Renew the statistics of the vectors.

        Without them the planner prefers a sort to a new index.

        Skipped while another model's index is built on the table, which may take hours.
        """
        self.session.execute(text(f"ANALYZE (SKIP_LOCKED) {corpus.vectors.name}"))


def index_of(corpus: Corpus, model: EmbeddingModel) -> Index:
    """Build the index of one model's vectors in one corpus, to be made beside running work.

    That of a seeded model has the name that the revisions gave it.
    """
    # Names that differ only in case, in punctuation or late have the same slug.
    unique = "_" + sha256(model.name.encode()).hexdigest()[:8]
    name = f"{corpus.vectors.name}_hnsw_{index_slug(model.name)}"
    name = name[: MAX_IDENTIFIER - len(unique)] + unique
    shared = None if corpus.shared_words is None else SHARED
    for seeded in corpus.vectors.indexes:
        if str(seeded.dialect_options["postgresql"]["where"]) == str(rows_of(model.name, shared)):
            name = str(seeded.name)
    return _of_vectors(corpus, model, name, shared)


def _of_vectors(corpus: Corpus, model: EmbeddingModel, name: str, scope: str | None) -> Index:
    index = hnsw(name, model.name, model.dimensions, model.index_kind, scope=scope)
    index.dialect_options["postgresql"]["concurrently"] = True
    Table(corpus.vectors.name, MetaData(), index)  # apart from the metadata of the models
    return index


def _count_scopes(corpus: Corpus) -> TableValuedAlias:
    """Build the scopes with the numbers of their vectors; what is shared has an index anyway."""
    large_scopes = getattr(func, f"{corpus.vectors.name}_large_scopes")
    sizes: TableValuedAlias = large_scopes(0).table_valued(
        column("scope", Text), column("model_name", Text), column("vectors", BigInteger)
    )
    return sizes


def scope_index(corpus: Corpus, model: EmbeddingModel, scope: Scope) -> tuple[str, str]:
    """Return name and statement of the index on a model's vectors of one scope alone."""
    mark = "_" + sha256(str(scope).encode()).hexdigest()[:8]
    name = str(index_of(corpus, model).name)[: MAX_IDENTIFIER - len(mark)] + mark
    index = _of_vectors(corpus, model, name, str(scope))
    options = index.dialect_options["postgresql"]
    options["with"] = options["with"] | {"ef_construction": OWN_EF_CONSTRUCTION}
    return name, f"{_statement_of(index)};"


def _statement_of(index: Index) -> str:
    statement = str(CreateIndex(index).compile(dialect=dialect()))  # type: ignore[no-untyped-call]
    return statement.strip()


def build_memory_kb(model: EmbeddingModel, vectors: int) -> int:
    """Return the ``maintenance_work_mem``, in kB, for an index of so many vectors of a model."""
    node = model.dimensions // 8 if model.index_kind == "binary" else model.dimensions * 2
    least, most = BUILD_MEMORY_KB
    return min(max(vectors * (node + GRAPH_BYTES) // 1024, least), most)
