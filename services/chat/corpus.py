"""Services of the archive of conversations: import, export, retry."""

from __future__ import annotations

from typing import Final

from pgcorpus.db.search.corpora import CHAT
from pgcorpus.services.chat.exporting.exporter import ChatExporter, Format
from pgcorpus.services.chat.importing.candidates import ChatFormat
from pgcorpus.services.chat.importing.importer import ChatImporter
from pgcorpus.services.chat.validate import check_messages
from pgcorpus.services.corpus import (
    CorpusServices,
    ExportService,
    ImportService,
    Paths,
    RetryService,
)
from pgcorpus.services.importers.options import DRY_RUN, LANGUAGE, STRICT, Option

CHAT_SERVICES: Final = CorpusServices(
    corpus=CHAT,
    importer=ImportService(
        make=ChatImporter,
        help="""Import chats from ChatGPT, Claude, OpenWebUI, ChromaDB or pgcorpus; again, only
        what is new.

        A zip stays packed: give it as the provider sent it. A conversation is known by its
        identifier at its provider; messages that are the same keep their vectors, and what was
        saved or written here stays. Each change of a value is kept (pgcorpus import history
        --corpus chat). What cannot be read is rejected and kept (pgcorpus import rejects --corpus
        chat), and the exit code is 1; conversations in which nobody said anything are skipped.
        Stopped, the same command goes on.
        """,
        paths=Paths(help="Exports (.json, .jsonl, .zip), folders of them, ChromaDB folders."),
        options=(
            Option(
                name="format",
                kind=ChatFormat,
                default="auto",
                help="The format; auto tells it from the content of each conversation.",
            ),
            STRICT,
            DRY_RUN,
            LANGUAGE,
            Option(
                name="embeddings_model",
                kind=str | None,
                help="The model that made the vectors of a ChromaDB store, if it is silent.",
            ),
        ),
    ),
    retry=RetryService(
        make=ChatImporter,
        options=(STRICT, LANGUAGE),
        refused={"on_conflict": "conversations have no conflicts: the newer wins"},
    ),
    exporter=ExportService(
        make=ChatExporter,
        help="""Export a conversation with all its branches.

        The exit code is 1 where there is no such conversation, 2 where ID is of neither form.

        Example: pgcorpus export chat chatgpt:6797 --format openwebui --output .
        """,
        reference="A conversation's id, or SOURCE_TYPE:SOURCE_ID (chatgpt:6797-...).",
        format=Option(
            name="to",
            flags=("--format", "-f"),
            kind=Format,
            default="markdown",
            help="markdown to be read; json with all that is stored; openwebui for OpenWebUI.",
        ),
    ),
    validate=check_messages,
)
