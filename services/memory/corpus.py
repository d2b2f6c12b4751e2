"""Services of agent memory: import, export, validation."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pgcorpus.services.choices import MEMORY_MODEL, OnConflict
from pgcorpus.services.corpus import (
    Check,
    CorpusServices,
    FileExportService,
    ImportService,
    Paths,
)
from pgcorpus.services.importers.options import DRY_RUN, LANGUAGE, STRICT, Option

if TYPE_CHECKING:
    from pgcorpus.db.engine import Database
    from pgcorpus.db.scope import Scope
    from pgcorpus.services.memory.exporting.exporter import MemoryExporter
    from pgcorpus.services.memory.importing.importer import MemoryImporter


def make_importer(
    database: Database, scope: Scope, *, require_database_url: bool, **options: Any
) -> MemoryImporter:
    """Make an importer, on the embedded server only where that may stand in.

    Raises:
        SettingsError: *require_database_url* is set, and DATABASE_URL is not.
    """
    from pgcorpus.db.errors import SettingsError
    from pgcorpus.services.memory.importing.importer import MemoryImporter

    if require_database_url and database.settings.database_url is None:
        raise SettingsError(
            "DATABASE_URL environment variable not set: export "
            "DATABASE_URL=postgresql://user:password@host:port/database"
        )
    return MemoryImporter(database, scope, **options)


def make_exporter(database: Database, scope: Scope, **options: Any) -> MemoryExporter:
    """Make an exporter of what a user or a tenant remembers."""
    from pgcorpus.services.memory.exporting.exporter import MemoryExporter

    return MemoryExporter(database, scope, **options)


def validate(*arguments: Any) -> Iterator[Check]:
    """Check what is stored of memories, as ``Validate`` says."""
    from pgcorpus.services.memory.validate import check_memories

    return check_memories(*arguments)


MEMORY_SERVICES: Final = CorpusServices(
    name="memory",
    scoping="required",
    importer=ImportService(
        make=make_importer,
        help="""Import an agent's memories for a user or a tenant; again, only what is new.

        All files are looked through before anything is written, and stay as they are. Vectors come
        along, so that nothing has to be embedded again. What breaks a rule is made valid where
        docs/reference/import-rules.md says how, or rejected (pgcorpus import rejects --corpus
        memory); the exit code is then 1. Stopped, the same command goes on.

        Example: pgcorpus import memory data --user-id 11111111-1111-1111-1111-111111111111
        """,
        paths=Paths(
            metavar="DIR",
            help="Folders with corpus/nodes.json, vectors/nodes.npy, corpus/episodes.json and "
            "vectors/episodes.npy; each is optional.",
            default=Path("data"),
            flag="--data-dir",
        ),
        options=(
            Option(
                name="on_conflict",
                kind=OnConflict,
                default="keep",
                help="Policy for an id that is stored: keep leaves it, reject refuses another "
                "text, update makes it what the file says.",
            ),
            STRICT,
            DRY_RUN,
            LANGUAGE,
            Option(
                name="embeddings_model",
                kind=str,
                default=MEMORY_MODEL,
                help="The model that made the vectors.",
            ),
            Option(
                name="require_database_url",
                kind=bool,
                default=False,
                help="Never use the embedded server.",
            ),
        ),
    ),
    exporter=FileExportService(
        make=make_exporter,
        help="""Write what a user or a tenant remembers as files that an agent of old reads.

        corpus/nodes.json, vectors/nodes.npy and the same of episodes, in the layout that pgcorpus
        import memory takes: what is imported again is the same. Each file is there when it is
        whole, for its owner alone.

        Example: pgcorpus export memory back --user-id 11111111-1111-1111-1111-111111111111
        """,
        path="The folder to write.",
        metavar="DIR",
        options=(
            Option(
                name="embeddings_model",
                kind=str,
                default=MEMORY_MODEL,
                help="The model whose vectors are written.",
            ),
            Option(name="replace", kind=bool, default=False, help="Replace files that are there."),
        ),
    ),
    validate=validate,
)
