"""Services of the knowledge base: import, retry, validation."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pgcorpus.services.choices import OnConflict
from pgcorpus.services.corpus import Check, CorpusServices, ImportService, Paths, RetryService
from pgcorpus.services.importers.options import DRY_RUN, LANGUAGE, STRICT, Option

if TYPE_CHECKING:
    from pgcorpus.db.engine import Database
    from pgcorpus.services.knowledge.importer import KnowledgeImporter

ON_CONFLICT: Final = Option(
    name="on_conflict",
    kind=OnConflict,
    default="reject",
    help="Policy for a stored chunk_id that comes with another text.",
)


def make_importer(database: Database, **options: Any) -> KnowledgeImporter:
    """Make an importer of chunk files."""
    from pgcorpus.services.knowledge.importer import KnowledgeImporter

    return KnowledgeImporter(database, **options)


def validate(*arguments: Any) -> Iterator[Check]:
    """Check what is stored of the knowledge base, as ``Validate`` says."""
    from pgcorpus.services.knowledge.validate import check_chunks

    return check_chunks(*arguments)


KNOWLEDGE_SERVICES: Final = CorpusServices(
    name="knowledge",
    importer=ImportService(
        make=make_importer,
        help="""Import chunk files into the knowledge base. Importing again changes nothing.

        Values that break a rule are made valid where docs/reference/import-rules.md says how, and
        each change is kept (pgcorpus import history). What cannot be made valid is rejected whole
        and kept (pgcorpus import rejects); the exit code is then 1.
        """,
        paths=Paths(help="Files, or folders of .json files."),
        options=(
            STRICT,
            DRY_RUN,
            ON_CONFLICT,
            LANGUAGE,
            Option(
                name="embeddings",
                kind=Path | None,
                help="Vectors that come along: a JSON list of {chunk_id | document_id, model_name, "
                "embedding | embedding_data}, or .npy in the order of the chunks. The document_id "
                "of a backup is found in the framework_documents.json beside it.",
            ),
            Option(
                name="embeddings_model",
                kind=str | None,
                help="The model that made the vectors of an .npy file.",
            ),
        ),
    ),
    retry=RetryService(make=make_importer, options=(STRICT, ON_CONFLICT, LANGUAGE)),
    validate=validate,
)
