"""The services of a corpus, as a value: commands are derived from it.

As a search is built from a ``Corpus``, so ``pgcorpus import``, ``export``, ``validate`` and
``import retry`` are built from its ``CorpusServices``; what a corpus has not, has no command.

The values are made for ``pgcorpus import --help``, too: what they need to work is imported when
they work.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol, TypeAlias

from pgcorpus.services.importers.options import Option

if TYPE_CHECKING:
    from pgcorpus.db.engine import Database
    from pgcorpus.db.repositories.rankings import StoredRanking
    from pgcorpus.db.scope import Scope
    from pgcorpus.db.search.corpus import Corpus
    from pgcorpus.db.uow import UnitOfWork
    from pgcorpus.services.embedding.choice import Choice
    from pgcorpus.services.importers.importer import Importer, RetryingImporter
    from pgcorpus.services.learning.report import LearningReport

MAX_SHOWN_OFFENDERS: Final = 5


@dataclass(frozen=True, kw_only=True)
class Paths:
    """The files of an import, as they are named.

    Attributes:
        help: What they may be.
        metavar: What stands for them in the help, or None for their name.
        default: What is imported where none is named; None: one must be.
        flag: An option that names one, too, or None.
    """

    help: str
    metavar: str | None = None
    default: Path | None = None
    flag: str | None = None


@dataclass(frozen=True, kw_only=True)
class ImportService:
    """The import of files into a corpus.

    Attributes:
        make: Makes the importer of a database, of a scope where the corpus has scopes, and of
            the options.
        help: What the import does, for people.
        paths: What it takes.
        options: What its importer takes, in the order of the help.
    """

    make: Callable[..., Importer[Any]]
    help: str
    paths: Paths
    options: tuple[Option, ...]


@dataclass(frozen=True, kw_only=True)
class RetryService:
    """The retry of rejected items.

    Attributes:
        make: Makes the importer of a database and of the options.
        options: What it takes.
        refused: Options of other corpora → why this one has none of the kind.
    """

    make: Callable[..., RetryingImporter[Any]]
    options: tuple[Option, ...]
    refused: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Exported:
    """An item of a corpus as a file.

    Attributes:
        text: What is in it.
        file_name: A name for it that every file system takes: letters, digits and dashes of the
            title, the beginning of the key, and the format's suffix.
    """

    text: str
    file_name: str


Progress = Callable[[int, int], None]
"""Is told how much is done, of how much."""


class Exporter(Protocol):
    """Gets items out of a corpus."""

    def export(self, reference: str, to: Any, /) -> Exported:
        """Export one item, named by *reference*, in the format *to*."""


@dataclass(frozen=True, kw_only=True)
class ExportService:
    """The export of items of a corpus.

    Attributes:
        make: Makes the exporter of a database.
        help: What the export does, for people.
        reference: How an item is named.
        format: The formats there are.
    """

    make: Callable[[Database], Exporter]
    help: str
    reference: str
    format: Option


class Written(Protocol):
    """A file that an export has written."""

    def count_rows(self) -> Mapping[str, int]:
        """Return the number of rows of each kind that are in it."""


class FileExporter(Protocol):
    """Writes a part of a corpus as one file."""

    def write(self, path: Path, /, *, progress: Progress) -> Written:
        """Write the file; it is there when it is whole, or not at all."""


@dataclass(frozen=True, kw_only=True)
class FileExportService:
    """The export of a part of a corpus as one file.

    Attributes:
        make: Makes the exporter of a database, of a scope where the corpus has scopes, and of the
            options.
        help: What the export does, for people.
        path: What the file is.
        metavar: What stands for its name in the help.
        options: What its exporter takes, in the order of the help.
    """

    make: Callable[..., FileExporter]
    help: str
    path: str
    options: tuple[Option, ...]
    metavar: str = "FILE"


class Learner(Protocol):
    """Learns from the clicks of one scope how to rank a corpus."""

    def learn(
        self, *, since: datetime | None, apply: bool, progress: Progress | None
    ) -> LearningReport:
        """Learn from what was shown and clicked since then, and apply it if asked."""

    def roll_back(self) -> tuple[StoredRanking, StoredRanking | None] | None:
        """Take back the version in use; return it, and the one before, which is used again."""

    def list_versions(self) -> Sequence[StoredRanking]:
        """List the versions, the newest first."""


@dataclass(frozen=True, kw_only=True)
class LearningService:
    """Learning from clicks.

    Attributes:
        make: Makes the learner of a database and of a scope.
        help: What it does, for people.
    """

    make: Callable[[Database, Scope | None], Learner]
    help: str


@dataclass(frozen=True)
class Check:
    """One question about a corpus, and its answer.

    Attributes:
        name: Stable, for scripts.
        passed: True if it is as it should be.
        expected: How much there should be; for ``performance_baseline`` milliseconds.
        found: How much there is, or in words why that cannot be said.
        detail: For people: what is wrong with which passages, or None.
    """

    name: str
    passed: bool
    expected: float
    found: float | str
    detail: str | None = None


Validate: TypeAlias = "Callable[[UnitOfWork, Corpus, Choice, int | None], Iterator[Check]]"
"""Checks a corpus, with the vectors of the chosen model, in a transaction that writes nothing. The
last argument is the number of passages there must be, or None for as many as imports have added."""


def name_offenders(offenders: Sequence[str]) -> str | None:
    """Name the first passages that break a rule, and count the others; None without any."""
    shown = ", ".join(offenders[:MAX_SHOWN_OFFENDERS])
    more = len(offenders) - MAX_SHOWN_OFFENDERS
    return f"{shown} and {more} more" if more > 0 else shown or None


def check_passages(
    work: UnitOfWork, corpus: Corpus, choice: Choice, expected: int | None
) -> Iterator[Check]:
    """Yield the checks of every corpus: as many passages as expected, each with its vector.

    Raises:
        NotPermitted: Row security hides from the role which scopes there are.
    """
    from pgcorpus.services.embedding.embed import advise_embedding, count_covered

    coverage = count_covered(work, corpus, choice.name)
    if expected is not None:
        yield Check("passage_count", coverage.total == expected, expected, coverage.total)
    whole = coverage.embedded == coverage.total
    advice = advise_embedding(corpus, choice.name, others=coverage.missing < coverage.total)
    detail = None if whole else f"make the others with: {advice}"
    yield Check("embedding_count", whole, coverage.total, coverage.embedded, detail)


Scoping = Literal["none", "optional", "required"]
"""The items of a corpus that belong to a tenant or a user: none, some (optional), or each."""


@dataclass(frozen=True, kw_only=True)
class CorpusServices:
    """The services of a corpus, beside searches.

    Attributes:
        name: The corpus's.
        scoping: Which of its items belong to a tenant or a user.
        importer: How files get in, or None.
        retry: How what was rejected is tried again; None where nothing of it is kept.
        exporter: How items, or a file of many, get out; or None.
        learning: How clicks teach its ranking, or None.
        validate: Checks that what is stored is whole.
    """

    name: str
    scoping: Scoping = "none"
    importer: ImportService | None = None
    retry: RetryService | None = None
    exporter: ExportService | FileExportService | None = None
    learning: LearningService | None = None
    validate: Validate = check_passages
