"""Checks that the knowledge base is whole: the specification's six, and chunk boundaries."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Final

from sqlalchemy.exc import DBAPIError

from pgcorpus.db.repositories.knowledge.validation import Tally
from pgcorpus.db.search.corpus import Corpus
from pgcorpus.db.search.legs import AskedModel
from pgcorpus.db.text import count_of
from pgcorpus.db.uow import UnitOfWork
from pgcorpus.services.corpus import Check, name_offenders
from pgcorpus.services.embedding.choice import Choice
from pgcorpus.services.embedding.embed import advise_embedding
from pgcorpus.services.importers.draft import Rule

MIN_KEY_CONCEPTS: Final = 20
"""The engineering specification passes from 20 concepts on (its check 5, "Key Concepts")."""

MAX_SEARCH_MS: Final = 500.0
"""A vector search of 10 results takes less (FR1 of the engineering specification)."""


def check_chunks(
    work: UnitOfWork, corpus: Corpus, choice: Choice, expected_chunks: int | None
) -> Iterator[Check]:
    """Yield the answers of all checks, in the order of docs/reference/validation.md."""
    read = work.validation
    yield _chunk_count(work, corpus, expected_chunks)
    yield _all_kept("embedding_count", read.tally_embedded(choice.name))
    yield _all_kept("framework_integrity", read.tally_integrity())
    yield _all_kept("vector_dimensions", read.tally_dimensions())
    concepts = read.count_linked_concepts()
    yield Check("key_concepts", concepts >= MIN_KEY_CONCEPTS, MIN_KEY_CONCEPTS, concepts)
    yield _performance_baseline(work, corpus, choice)
    yield _check_declared_counts(work, corpus)
    yield _all_kept("overlap_in_neighbour", read.tally_overlaps())
    yield _all_kept("source_lines_in_order", read.tally_line_order())
    yield _all_kept("complete_concepts", read.tally_complete_concepts())


def _all_kept(name: str, tally: Tally) -> Check:
    """Build the check that every row keeps a rule."""
    detail = name_offenders(tally.offenders)
    return Check(name, not tally.offenders, tally.total, tally.passing, detail)


def _chunk_count(work: UnitOfWork, corpus: Corpus, expected_chunks: int | None) -> Check:
    found = work.searches.count(corpus)
    if expected_chunks is not None:
        return Check("chunk_count", found == expected_chunks, expected_chunks, found)
    added = work.validation.count_added(corpus)
    expected = added or work.validation.count_metadata()
    detail = None
    if not found:
        detail = f"the corpus is empty; fill it with: pgcorpus import {corpus.name} PATH"
    elif found < added:
        detail = "imports added more; if some were deleted on purpose, say how many to expect"
    return Check("chunk_count", found >= expected > 0, expected, found, detail)


def _performance_baseline(work: UnitOfWork, corpus: Corpus, choice: Choice) -> Check:
    name = "performance_baseline"
    try:
        took_ms = work.validation.explain_vector_search(
            corpus, AskedModel(choice.name, choice.dimensions)
        )
    except DBAPIError as error:
        if error.connection_invalidated:
            raise
        return Check(name, False, MAX_SEARCH_MS, f"the search failed: {error.orig}")
    if took_ms is None:
        return Check(
            name,
            False,
            MAX_SEARCH_MS,
            f"no vectors of the model {choice.name!r}",
            f"make them with: {advise_embedding(corpus, choice.name, others=False)}",
        )
    return Check(name, took_ms < MAX_SEARCH_MS, MAX_SEARCH_MS, took_ms)


def _check_declared_counts(work: UnitOfWork, corpus: Corpus) -> Check:
    """Check the stored counts, and say how many were wrong when they came.

    The importer recounts: of imported chunks the stored counts are right, the declared perhaps not.
    """
    check = _all_kept("declared_counts", _tally_counts(work))
    recounted = work.validation.count_changed(corpus, Rule.RECOUNTED)
    if not recounted:
        return check
    wrong = count_of(recounted, "chunk was", "chunks were")
    told = f"{wrong} declared wrongly and recounted on import"
    return replace(check, detail=f"{check.detail}; {told}" if check.detail else told)


def _tally_counts(work: UnitOfWork) -> Tally:
    """Count the chunks whose declared counts are those of their text, as the importer counts.

    In Python: PostgreSQL splits words at fewer kinds of whitespace.
    """
    total, offenders = 0, []
    for total, chunk in enumerate(work.validation.stream_declared(), start=1):  # noqa: B007 - the last
        counted = len(chunk.content), len(chunk.content.split())
        if counted != (chunk.character_count, chunk.word_count):
            offenders.append(chunk.chunk_id)
    return Tally(total, tuple(sorted(offenders)))
