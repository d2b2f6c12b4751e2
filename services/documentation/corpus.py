"""Services of documentation and of one's own documents: import, export, validation."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

from pgcorpus.db.choices import DEFAULT_COLLECTION
from pgcorpus.services.choices import (
    CHUNK_TOKENS,
    MAX_CHUNK_TOKENS,
    MIN_CHUNK_TOKENS,
    OVERLAP_TOKENS,
)
from pgcorpus.services.corpus import (
    Check,
    CorpusServices,
    FileExportService,
    ImportService,
    LearningService,
    Paths,
)
from pgcorpus.services.importers.options import DRY_RUN, LANGUAGE, Option

if TYPE_CHECKING:
    from pgcorpus.db.engine import Database
    from pgcorpus.db.scope import Scope
    from pgcorpus.services.documentation.exporting.sqlite import SQLiteExporter
    from pgcorpus.services.documentation.importing.importer import DocumentationImporter
    from pgcorpus.services.documentation.learning import ClickLearner

COLLECTION: Final = Option(
    name="collection",
    kind=str,
    default=DEFAULT_COLLECTION,
    help="The collection that the documents belong to.",
)


def make_importer(database: Database, scope: Scope | None, **options: Any) -> DocumentationImporter:
    """Make an importer of shared documents, or of a tenant's."""
    from pgcorpus.services.documentation.importing.importer import DocumentationImporter

    return DocumentationImporter(database, scope, **options)


def make_exporter(database: Database, scope: Scope | None, **options: Any) -> SQLiteExporter:
    """Make an exporter of a collection that is shared, or of a tenant's."""
    from pgcorpus.services.documentation.exporting.sqlite import SQLiteExporter

    return SQLiteExporter(database, scope, **options)


def make_learner(database: Database, scope: Scope | None) -> ClickLearner:
    """Make a learner from clicks in one scope."""
    from pgcorpus.services.documentation.learning import ClickLearner

    return ClickLearner(database, scope)


def validate(*arguments: Any) -> Iterator[Check]:
    """Check what is stored of documents, as ``Validate`` says."""
    from pgcorpus.services.documentation.validate import check_documents

    return check_documents(*arguments)


DOCUMENTATION_SERVICES: Final = CorpusServices(
    name="documentation",
    scoping="optional",
    importer=ImportService(
        make=make_importer,
        help="""Import shared documents, or a tenant's; again, only what has changed.

        Markdown, HTML, reStructuredText, plain text, PDF, DOCX, Jupyter notebooks and source code,
        in folders, zips or patterns, are cut into chunks by their headings. An unchanged file is
        not read again, a changed section embeds only its own chunks, and a renamed file keeps its
        vectors. Of an SQLite file of the old documentation system, chunks, vectors and clicks are
        taken as they stand there. What cannot be read is named with the reason; the exit code is
        then 1.

        Example: pgcorpus import documentation docs --collection handbook
        """,
        paths=Paths(help="Files, folders, zips, or patterns such as 'docs/**/*.md'."),
        options=(
            COLLECTION,
            Option(
                name="base_url",
                kind=str | None,
                metavar="URL",
                help="Address of the folder, for relative links and citations.",
            ),
            Option(
                name="prune",
                kind=bool,
                default=False,
                help="Delete documents whose files are gone from the folders.",
            ),
            Option(
                name="max_tokens",
                kind=int,
                default=CHUNK_TOKENS,
                help="Tokens of a chunk at most.",
                bounds=(MIN_CHUNK_TOKENS, MAX_CHUNK_TOKENS),
            ),
            Option(
                name="overlap_tokens",
                kind=int,
                default=OVERLAP_TOKENS,
                help="Tokens at most that a chunk repeats from the one before it; at most half of "
                "a chunk's.",
                bounds=(0, MAX_CHUNK_TOKENS // 2),
            ),
            Option(
                name="time_zone",
                kind=str,
                default="UTC",
                metavar="NAME",
                help="Zone of the times of clicks in old SQLite files, which name none.",
            ),
            DRY_RUN,
            LANGUAGE,
        ),
    ),
    exporter=FileExportService(
        make=make_exporter,
        help="""Write a collection as an SQLite file that the old documentation system opens.

        With documents, chunks, vectors, clicks and sessions; what was imported from such a file is
        written as it stood there, what was changed or added here as it is now. The file is there
        when it is whole, or not at all.

        Example: pgcorpus export documentation docfoundry.db --collection handbook
        """,
        path="The file to write.",
        options=(
            COLLECTION,
            Option(
                name="replace",
                kind=bool,
                default=False,
                help="Replace a file that is there.",
            ),
        ),
    ),
    learning=LearningService(
        make=make_learner,
        help="""Learn from clicks how to rank documentation; without --apply nothing is written.

        Of searches without a scope, or of a tenant's. Position bias is corrected for, a user counts
        once however often they click, and nothing changes unless voices that were held out gain by
        it, with 99 % confidence. Reads the latest 100,000 pages.

        Example: pgcorpus learn documentation --since 2025-01-01 --apply
        """,
    ),
    validate=validate,
)
