"""Services of the archive of conversations: import, export, retry."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

from pgcorpus.services.choices import ChatFormat, ExportFormat
from pgcorpus.services.corpus import (
    Check,
    CorpusServices,
    ExportService,
    ImportService,
    Paths,
    RetryService,
)
from pgcorpus.services.importers.options import DRY_RUN, LANGUAGE, STRICT, Option

if TYPE_CHECKING:
    from pgcorpus.db.engine import Database
    from pgcorpus.services.chat.exporting.exporter import ChatExporter
    from pgcorpus.services.chat.importing.importer import ChatImporter


def make_importer(database: Database, **options: Any) -> ChatImporter:
    """Make an importer of conversations."""
    from pgcorpus.services.chat.importing.importer import ChatImporter

    return ChatImporter(database, **options)


def make_exporter(database: Database) -> ChatExporter:
    """Make an exporter of conversations."""
    from pgcorpus.services.chat.exporting.exporter import ChatExporter

    return ChatExporter(database)


def validate(*arguments: Any) -> Iterator[Check]:
    """Check what is stored of conversations, as ``Validate`` says."""
    from pgcorpus.services.chat.validate import check_messages

    return check_messages(*arguments)


CHAT_SERVICES: Final = CorpusServices(
    name="chat",
    importer=ImportService(
        make=make_importer,
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
        make=make_importer,
        options=(STRICT, LANGUAGE),
        refused={"on_conflict": "conversations have no conflicts: the newer wins"},
    ),
    exporter=ExportService(
        make=make_exporter,
        help="""Export a conversation with all its branches.

        The exit code is 1 where there is no such conversation, 2 where ID is of neither form.

        Example: pgcorpus export chat chatgpt:6797 --format openwebui --output .
        """,
        reference="A conversation's id, or SOURCE_TYPE:SOURCE_ID (chatgpt:6797-...).",
        format=Option(
            name="to",
            flags=("--format", "-f"),
            kind=ExportFormat,
            default="markdown",
            help="markdown to be read; json with all that is stored; openwebui for OpenWebUI.",
        ),
    ),
    validate=validate,
)
