"""Services of the knowledge base: import, retry, validation."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from pgcorpus.db.search.corpora import KNOWLEDGE
from pgcorpus.services.corpus import CorpusServices, ImportService, Paths, RetryService
from pgcorpus.services.importers.options import DRY_RUN, LANGUAGE, STRICT, Option
from pgcorpus.services.importers.report import OnConflict
from pgcorpus.services.knowledge.importer import KnowledgeImporter
from pgcorpus.services.knowledge.validate import check_chunks

ON_CONFLICT: Final = Option(
    name="on_conflict",
    kind=OnConflict,
    default="reject",
    help="Policy for a stored chunk_id that comes with another text.",
)

KNOWLEDGE_SERVICES: Final = CorpusServices(
    corpus=KNOWLEDGE,
    importer=ImportService(
        make=KnowledgeImporter,
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
    retry=RetryService(make=KnowledgeImporter, options=(STRICT, ON_CONFLICT, LANGUAGE)),
    validate=check_chunks,
)
