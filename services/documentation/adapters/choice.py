"""The choice of the database that the old interface works on."""

from __future__ import annotations

from pgcorpus.db.engine import Database
from pgcorpus.db.settings import Settings
from pgcorpus.services.documentation.adapters.postgres import PostgresAdapter
from pgcorpus.services.documentation.adapters.protocol import DocumentationAdapter
from pgcorpus.services.documentation.adapters.sqlite import SQLiteAdapter
from pgcorpus.services.documentation.sqlite.mapping import MODEL
from pgcorpus.services.documentation.sqlite.schema import DEFAULT_DIMENSIONS
from pgcorpus.services.embedding.choice import Choice
from pgcorpus.services.embedding.embedder import Embedder, Embedders


def make_adapter(
    settings: Settings | None = None, embedder: Embedder | None = None
) -> DocumentationAdapter:
    """Make the adapter that ``DATABASE_TYPE`` names; ``initialize`` opens it.

    Args:
        settings: By default those of the environment.
        embedder: Embeds questions; by default, of PostgreSQL's that of the corpus's active model,
            and of an SQLite file all-MiniLM-L6-v2, with which the old system embedded.

    Raises:
        SettingsError: A setting cannot be used.
        UnknownModel: ``pgcorpus[local]`` is not installed, which an SQLite file needs.
    """
    settings = settings or Settings.from_env()
    if settings.database_type == "postgresql":
        return PostgresAdapter(Database(settings), embedder)
    model = Choice(MODEL, DEFAULT_DIMENSIONS, "local")
    return SQLiteAdapter(settings.sqlite_path, Embedders(settings, embedder).of(model))
