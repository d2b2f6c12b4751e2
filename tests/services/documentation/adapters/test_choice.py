"""The environment says on which database the old interface works."""

from __future__ import annotations

from pathlib import Path

import pytest

from pgcorpus.db.settings import Settings
from pgcorpus.services.documentation.adapters.choice import make_adapter
from pgcorpus.services.documentation.adapters.postgres import PostgresAdapter
from pgcorpus.services.documentation.adapters.sqlite import SQLiteAdapter
from pgcorpus.services.embedding.hashing import HashingEmbedder


@pytest.mark.parametrize(
    ("environment", "kind"),
    [
        ({}, PostgresAdapter),
        ({"DATABASE_TYPE": "postgres"}, PostgresAdapter),
        ({"DATABASE_TYPE": "SQLite"}, SQLiteAdapter),
        ({"DOCFOUNDRY_DB_TYPE": "sqlite"}, SQLiteAdapter),
        ({"DATABASE_TYPE": "postgresql", "DOCFOUNDRY_DB_TYPE": "sqlite"}, PostgresAdapter),
    ],
)
def test_the_kind_is_that_of_the_environment(
    environment: dict[str, str], kind: type, tmp_path: Path
) -> None:
    """Nothing is opened before it is initialized."""
    given = environment | {"SQLITE_PATH": str(tmp_path / "a.db")}

    assert type(make_adapter(Settings.from_env(given), HashingEmbedder())) is kind
    assert list(tmp_path.iterdir()) == []
