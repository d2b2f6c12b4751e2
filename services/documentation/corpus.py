"""Services of documentation and of one's own documents: import, validation."""

from __future__ import annotations

from typing import Final

from pgcorpus.db.models.documentation import DEFAULT_COLLECTION
from pgcorpus.db.search.corpora import DOCUMENTATION
from pgcorpus.services.corpus import CorpusServices, ImportService, Paths
from pgcorpus.services.documentation.chunker import DEFAULT_CONFIG
from pgcorpus.services.documentation.importing.importer import DocumentationImporter
from pgcorpus.services.documentation.validate import check_documents
from pgcorpus.services.importers.options import DRY_RUN, LANGUAGE, Option

DOCUMENTATION_SERVICES: Final = CorpusServices(
    corpus=DOCUMENTATION,
    importer=ImportService(
        make=DocumentationImporter,
        help="""Import documents, for everybody or for a tenant; again, only what has changed.

        Markdown, HTML, reStructuredText, plain text, PDF, DOCX, Jupyter notebooks and source code,
        in folders, zips or patterns. They are cut into chunks by their headings. An unchanged file
        is not read again, a changed section embeds only its own chunks, and a renamed file keeps
        its vectors. What cannot be read is named with the reason; the exit code is then 1.

        Example: pgcorpus import documentation docs --collection handbook
        """,
        paths=Paths(help="Files, folders, zips, or patterns such as 'docs/**/*.md'."),
        options=(
            Option(
                name="collection",
                kind=str,
                default=DEFAULT_COLLECTION,
                help="The collection that the documents belong to.",
            ),
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
                default=DEFAULT_CONFIG.max_tokens,
                help="Tokens of a chunk at most.",
            ),
            Option(
                name="overlap_tokens",
                kind=int,
                default=DEFAULT_CONFIG.overlap_tokens,
                help="Tokens at most that a chunk repeats from the one before it.",
            ),
            DRY_RUN,
            LANGUAGE,
        ),
    ),
    validate=check_documents,
)
