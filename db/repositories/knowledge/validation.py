"""The rules of the knowledge corpus, and the chunks that break them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from sqlalchemy import (
    CTE,
    ColumnElement,
    SelectBase,
    SQLColumnExpression,
    and_,
    func,
    select,
    union_all,
)
from sqlalchemy.dialects.postgresql import aggregate_order_by
from sqlalchemy.orm import aliased

from pgcorpus.db.models.embeddings import EmbeddingModel
from pgcorpus.db.models.imports import ImportFile, ImportRun, ImportTransformation
from pgcorpus.db.models.knowledge import (
    ChunkEmbedding,
    DocumentConcept,
    FrameworkDocument,
    FrameworkMetadata,
    SourceLines,
)
from pgcorpus.db.repositories.base import Repository
from pgcorpus.db.repositories.embeddings import text_hash
from pgcorpus.db.repositories.search import SearchRepository
from pgcorpus.db.search.ask import Ask
from pgcorpus.db.search.corpora import KNOWLEDGE
from pgcorpus.db.search.corpus import Corpus
from pgcorpus.db.search.legs import AskedModel
from pgcorpus.db.search.question import Question

ROWS_AT_A_TIME: Final = 1000
"""Chunks that a stream holds in memory."""

BASELINE_HITS: Final = 10
"""FR1 of the specification is about searches that return this many."""

WHITESPACE: Final = r"[\s\u00A0]+"
"""PostgreSQL's ``\\s`` leaves out the no-break space, which texts from the web are full of."""


@dataclass(frozen=True)
class Tally:
    """The number of rows that keep a rule.

    Attributes:
        total: Rows that the rule is about.
        offenders: ``chunk_id`` of each row that breaks it, in order.
    """

    total: int
    offenders: tuple[str, ...]

    @property
    def passing(self) -> int:
        """The number of rows that keep the rule."""
        return self.total - len(self.offenders)


class Declared(NamedTuple):
    """A chunk's text, and the counts that its metadata declare."""

    chunk_id: str
    content: str
    character_count: int
    word_count: int


class ValidationRepository(Repository):
    """Counts what a validation report needs."""

    def begin_report(self) -> None:
        """Make the transaction one snapshot without a timeout; must come first in it.

        An import that commits between two checks would look like a fault, and a report over
        100,000 chunks may take longer than a request is allowed to.
        """
        # Its first statement may be that which steps down from a superuser.
        self.session.connection(
            execution_options={"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}
        )
        self.lift_timeout()

    def count_added(self, corpus: Corpus) -> int:
        """Count the chunks that were added by the import history."""
        added = select(func.coalesce(func.sum(ImportFile.added), 0))
        of_corpus = added.join(ImportRun, ImportRun.id == ImportFile.run_id)
        return self.session.scalar(of_corpus.where(ImportRun.corpus == corpus.name)) or 0

    def count_changed(self, corpus: Corpus, rule: str) -> int:
        """Count the stored chunks that a rule of the importer has changed."""
        told = ImportTransformation
        changed = (
            select(func.count(told.item.distinct()))
            .join(ImportRun, ImportRun.id == told.run_id)
            .where(ImportRun.corpus == corpus.name, told.rule == rule)
            .where(told.item.in_(select(FrameworkDocument.chunk_id)))
        )
        return self.session.scalar(changed) or 0

    def count_metadata(self) -> int:
        """Count the metadata rows."""
        return self.session.scalar(select(func.count()).select_from(FrameworkMetadata)) or 0

    def count_linked_concepts(self) -> int:
        """Count the different concepts that some chunk explains."""
        return self.session.scalar(select(func.count(DocumentConcept.concept_id.distinct()))) or 0

    def tally_embedded(self, model_name: str) -> Tally:
        """Count the chunks that have a vector of their present text."""
        vector_of = and_(
            ChunkEmbedding.document_id == FrameworkDocument.id,
            ChunkEmbedding.model_name == model_name,
        )
        current = ChunkEmbedding.content_hash == text_hash(KNOWLEDGE)
        return self._tally(
            select(FrameworkDocument.chunk_id, current.label("kept")).outerjoin(
                ChunkEmbedding, vector_of
            )
        )

    def tally_integrity(self) -> Tally:
        """Count the chunks that have their metadata and preserve a complete concept."""
        preserves = FrameworkMetadata.preserves_complete_concept
        return self._tally(
            select(FrameworkDocument.chunk_id, preserves.label("kept")).outerjoin(
                FrameworkMetadata, FrameworkMetadata.document_id == FrameworkDocument.id
            )
        )

    def tally_dimensions(self) -> Tally:
        """Count the vectors, of every model, that are as long as the registry says."""
        as_registered = func.vector_dims(ChunkEmbedding.embedding) == EmbeddingModel.dimensions
        return self._tally(
            select(FrameworkDocument.chunk_id, as_registered.label("kept"))
            .join(ChunkEmbedding, ChunkEmbedding.document_id == FrameworkDocument.id)
            .outerjoin(EmbeddingModel, EmbeddingModel.name == ChunkEmbedding.model_name)
        )

    def tally_overlaps(self) -> Tally:
        """Count the chunks that declare an overlap whose text the chunk before holds.

        Runs of whitespace count as one space. The first chunk of a source breaks the rule: it has
        none before it. Without source lines nobody knows which chunk comes before, so any other
        of the same source may hold the text; that takes time with the square of their number
        (1,000 in one source: 0.5 s).
        """
        placed = _place_chunks()
        overlap = _squeeze(FrameworkMetadata.overlap_with_previous)
        declared = (
            select(
                FrameworkDocument.id,
                FrameworkDocument.chunk_id,
                FrameworkDocument.source_file,
                overlap.label("overlap"),
                placed.c.id.is_not(None).label("placed"),
                placed.c.previous_id,
            )
            .join(FrameworkMetadata, FrameworkMetadata.document_id == FrameworkDocument.id)
            .outerjoin(placed, placed.c.id == FrameworkDocument.id)
            .where(overlap != "")
            .cte("declared")
        )
        previous = aliased(FrameworkDocument)
        held_before = func.strpos(_squeeze(previous.content), declared.c.overlap) > 0
        in_order = (
            select(declared.c.chunk_id, held_before.label("kept"))
            .outerjoin_from(declared, previous, previous.id == declared.c.previous_id)
            .where(declared.c.placed)
        )
        sources = select(declared.c.source_file).where(~declared.c.placed)
        # Materialized, or every comparison would squeeze the text again.
        others = (
            select(
                FrameworkDocument.id,
                FrameworkDocument.source_file,
                _squeeze(FrameworkDocument.content).label("content"),
            )
            .where(FrameworkDocument.source_file.in_(sources))
            .cte("others")
            .prefix_with("MATERIALIZED")
        )
        beside = and_(others.c.source_file == declared.c.source_file, others.c.id != declared.c.id)
        anywhere = (
            select(
                declared.c.chunk_id,
                func.bool_or(func.strpos(others.c.content, declared.c.overlap) > 0),
            )
            .outerjoin_from(declared, others, beside)
            .where(~declared.c.placed)
            .group_by(declared.c.chunk_id)
        )
        return self._tally(union_all(in_order, anywhere))

    def tally_line_order(self) -> Tally:
        """Count the chunks whose source lines begin after all before them end, or say they do not.

        A chunk says so by declaring an overlap.
        """
        placed = _place_chunks()
        overlap = _squeeze(FrameworkMetadata.overlap_with_previous)
        apart = func.coalesce(placed.c.start_line > placed.c.last_line_before, True)
        return self._tally(
            select(
                placed.c.chunk_id, (apart | (func.coalesce(overlap, "") != "")).label("kept")
            ).outerjoin_from(
                placed, FrameworkMetadata, FrameworkMetadata.document_id == placed.c.id
            )
        )

    def tally_complete_concepts(self) -> Tally:
        """Count the atomic frameworks whose concept is complete and whose logic is intact."""
        whole = and_(
            FrameworkMetadata.preserves_complete_concept.is_(True),
            FrameworkMetadata.business_logic_intact.is_(True),
        )
        return self._tally(
            select(FrameworkDocument.chunk_id, whole.label("kept"))
            .join(FrameworkMetadata, FrameworkMetadata.document_id == FrameworkDocument.id)
            .where(FrameworkMetadata.chunk_type == "atomic_framework")
        )

    def stream_declared(self) -> Iterator[Declared]:
        """Yield every chunk with its declared counts, in memory only a few at a time."""
        declared = select(
            FrameworkDocument.chunk_id,
            FrameworkDocument.content,
            FrameworkMetadata.character_count,
            FrameworkMetadata.word_count,
        ).join(FrameworkMetadata, FrameworkMetadata.document_id == FrameworkDocument.id)
        rows = self.session.execute(declared, execution_options={"yield_per": ROWS_AT_A_TIME})
        yield from (Declared(*row) for row in rows)

    def explain_vector_search(self, corpus: Corpus, model: AskedModel) -> float | None:
        """Run a vector search under EXPLAIN, asking with the vector of one of the passages.

        Returns:
            Milliseconds that the server needed, or None where the model has no vectors.
        """
        vectors = select(corpus.vectors.c.embedding).order_by(*corpus.items).limit(1)
        asked = self.session.scalar(vectors.where(corpus.vectors.c.model_name == model.name))
        if asked is None:
            return None
        ask = Ask(
            question=Question("", ()),
            legs={"vector": 1.0},
            model=model,
            vector=asked,
            limit=BASELINE_HITS,
        )
        with self.session.begin_nested():  # a search that fails must not end the report
            searches = SearchRepository(self.session)
            plan = searches.explain(searches.prepare(corpus, ask))
        return float(plan["Execution Time"])

    def _tally(self, verdicts: SelectBase) -> Tally:
        """Sum up rows of (chunk_id, kept); unknown is not kept."""
        each = verdicts.subquery()
        in_order = func.array_agg(aggregate_order_by(each.c.chunk_id, each.c.chunk_id))
        total, offenders = self.session.execute(
            select(func.count(), in_order.filter(each.c.kept.is_not(True))).select_from(each)
        ).one()
        return Tally(total, tuple(offenders or ()))


def _place_chunks() -> CTE:
    """Select the chunks with source lines, each with the one before it in its source."""
    before: dict[str, Any] = {
        "partition_by": FrameworkDocument.source_file,
        "order_by": (SourceLines.start_line, SourceLines.end_line, FrameworkDocument.chunk_id),
    }
    last_line = func.coalesce(SourceLines.end_line, SourceLines.start_line)
    return (
        select(
            FrameworkDocument.id,
            FrameworkDocument.chunk_id,
            SourceLines.start_line,
            func.lag(FrameworkDocument.id).over(**before).label("previous_id"),
            # Of all before it: a long chunk may reach past the short one that follows it.
            func.max(last_line).over(**before, rows=(None, -1)).label("last_line_before"),
        )
        .join(SourceLines, SourceLines.document_id == FrameworkDocument.id)
        .where(SourceLines.start_line.is_not(None))
        .cte("placed")
    )


def _squeeze(column: SQLColumnExpression[Any]) -> ColumnElement[str]:
    """Replace each run of whitespace by one space, and strip the ends."""
    return func.btrim(func.regexp_replace(column, WHITESPACE, " ", "g"))
