"""Validation of a corpus: the checks that its services declare, on one snapshot."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pgcorpus.db.engine import Database
from pgcorpus.db.search import corpora
from pgcorpus.services.corpora import SERVICES
from pgcorpus.services.corpus import Check, check_passages
from pgcorpus.services.embedding.embed import choose_counted


@dataclass(frozen=True)
class ValidationReport:
    """The answers of all checks.

    Attributes:
        corpus: Its name.
        model: The model of the vectors.
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
        return {
            "passed": self.passed,
            "model": self.model,
            "reason": self.reason,
            "checks": [
                {
                    "name": check.name,
                    "passed": check.passed,
                    "expected": check.expected,
                    "found": check.found,
                    "where": check.detail,
                }
                for check in self.checks
            ],
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
            model: The model of the vectors; by default as ``choose_counted`` finds it.
            expected_chunks: The exact number of passages; by default, of knowledge, at least as
                many as imports have added, of other corpora any.

        Raises:
            UnknownCorpus: There is no such corpus.
            NotPermitted: The corpus has scopes, and row security hides some from the role.
            UnknownModel: There is no such model.
        """
        of = corpora.get_corpus(corpus)
        check = SERVICES[corpus].validate if corpus in SERVICES else check_passages
        with self._database.unit_of_work() as work:
            work.validation.begin_report()
            choice = choose_counted(work, of, model)
            checks = tuple(check(work, of, choice, expected_chunks))
        return ValidationReport(corpus, choice.name, choice.reason, checks)
