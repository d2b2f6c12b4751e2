"""Validation of a corpus: the checks that its services declare, on one snapshot."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pgcorpus.db.engine import Database
from pgcorpus.db.errors import UnknownCorpus
from pgcorpus.db.search import corpora
from pgcorpus.db.search.corpus import Corpus
from pgcorpus.db.uow import UnitOfWork
from pgcorpus.services.corpora import SERVICES
from pgcorpus.services.corpus import Check
from pgcorpus.services.embedding.choice import Choice, choose


@dataclass(frozen=True)
class ValidationReport:
    """The answers of all checks.

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


def check_embedded(
    work: UnitOfWork,
    corpus: Corpus,
    choice: Choice,
    _expected: int | None,
) -> Iterator[Check]:
    """Yield the one check of an application's corpus: each passage has a vector of its text."""
    coverage = work.embeddings.coverage(corpus, choice.name)
    whole = coverage.embedded == coverage.total
    yield Check(
        name="embedding_count",
        passed=whole,
        expected=coverage.total,
        found=coverage.embedded,
        detail=None if whole else f"make the others with: pgcorpus embed --corpus {corpus.name}",
    )


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
        validated = {name: each.validate for name, each in SERVICES.items() if each.validate}
        if of not in corpora.OURS:
            validated[corpus] = check_embedded
        if corpus not in validated:
            raise UnknownCorpus(
                f"there are no checks of {corpus}; known: {', '.join(sorted(validated))}"
            )
        with self._database.unit_of_work() as work:
            work.validation.begin_report()
            choice = choose(work, of, self._database.settings, model)
            checks = tuple(validated[corpus](work, of, choice, expected_chunks))
        return ValidationReport(corpus, choice.name, choice.reason, checks)
