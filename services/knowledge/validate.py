"""The checks of a corpus: the specification's six, and chunk boundaries."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from sqlalchemy.exc import DBAPIError

from pgcorpus.db.engine import Database
from pgcorpus.db.errors import UnknownCorpus
from pgcorpus.db.repositories.knowledge.validation import Tally
from pgcorpus.db.search import corpora
from pgcorpus.db.search.corpus import Corpus
from pgcorpus.db.search.legs import AskedModel
from pgcorpus.db.uow import UnitOfWork
from pgcorpus.services.embedding.choice import Choice, choose
from pgcorpus.services.importers.draft import Rule

MIN_KEY_CONCEPTS: Final = 20
"""The engineering specification passes from 20 concepts on (its check 5, "Key Concepts")."""

MAX_SEARCH_MS: Final = 500.0
"""A vector search of 10 results takes less (FR1 of the engineering specification)."""

MAX_SHOWN_OFFENDERS: Final = 5


@dataclass(frozen=True)
class Check:
    """A check of the corpus, with its expected and found values.

    Attributes:
        name: Stable, for scripts.
        passed: Whether it is as it should be.
        expected: How much there should be; for ``performance_baseline`` milliseconds.
        found: How much there is, or in words why that cannot be said.
        detail: For people: what is wrong with which chunks, or None.
    """

    name: str
    passed: bool
    expected: float
    found: float | str
    detail: str | None = None


@dataclass(frozen=True)
class ValidationReport:
    """The results of all checks.

    Attributes:
        corpus: What was checked.
        model: Whose vectors were checked.
        reason: Why the model is another than the corpus is set to, or None.
        checks: In a fixed order.
    """

    corpus: str
    model: str
    reason: str | None
    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        """True if every check passed."""
        return all(check.passed for check in self.checks)

    def as_json(self) -> dict[str, Any]:
        """Return the report as the command line prints it."""
        shown = ("name", "passed", "expected", "found")
        return {
            "passed": self.passed,
            "checks": [{name: getattr(check, name) for name in shown} for check in self.checks],
        }


class ValidationService:
    """Checks a corpus. It reads one snapshot and writes nothing.

    Args:
        database: Where the corpus is.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def validate(
        self,
        corpus: str = "knowledge",
        *,
        model: str | None = None,
        expected_chunks: int | None = None,
    ) -> ValidationReport:
        """Run every check; docs/reference/validation.md says what each one asks.

        Args:
            corpus: Its name.
            model: Whose vectors are checked; by default as ``choose`` finds it.
            expected_chunks: How many chunks there must be, exactly; by default at least as many
                as imports have added.

        Raises:
            UnknownCorpus: There is no such corpus, or there are no checks of it.
            UnknownModel: There is no such model.
        """
        of = corpora.get_corpus(corpus)
        if corpus not in CHECKS:
            raise UnknownCorpus(
                f"there are no checks of {corpus}; known: {', '.join(sorted(CHECKS))}"
            )
        with self._database.unit_of_work() as work:
            work.validation.begin_report()
            choice = choose(work, of, self._database.settings, model)
            checks = tuple(CHECKS[of.name](work, of, choice, expected_chunks))
        return ValidationReport(corpus, choice.name, choice.reason, checks)


def _knowledge(
    work: UnitOfWork, corpus: Corpus, choice: Choice, expected_chunks: int | None
) -> Iterator[Check]:
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


CHECKS: Final[Mapping[str, Callable[[UnitOfWork, Corpus, Choice, int | None], Iterator[Check]]]] = {
    "knowledge": _knowledge
}
"""Corpus → its checks."""


def _all_kept(name: str, tally: Tally) -> Check:
    """Build the check that every row keeps a rule."""
    shown = ", ".join(tally.offenders[:MAX_SHOWN_OFFENDERS])
    more = len(tally.offenders) - MAX_SHOWN_OFFENDERS
    detail = f"{shown} and {more} more" if more > 0 else shown or None
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
            f"make them with: pgcorpus embed --corpus {corpus.name}",
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
    told = f"{recounted} chunks were declared wrongly and recounted on import"
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
