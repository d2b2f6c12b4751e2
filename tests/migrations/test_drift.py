"""Models and revisions describe one schema, and a difference does not go unnoticed."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import URL, Connection, Row, text
from sqlalchemy.orm import Session

from pgcorpus.db import migrations
from pgcorpus.db.base import Base
from pgcorpus.db.engine import Database
from tests.conftest import Databases, settings_for

CATALOG = {
    "columns": """
        SELECT attrelid::regclass::text AS table, attname, format_type(atttypid, atttypmod),
               attnotnull, attgenerated, attidentity, pg_get_expr(adbin, adrelid) AS default
        FROM pg_attribute JOIN pg_class ON pg_class.oid = attrelid
        LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum
        WHERE relkind IN ('r', 'p') AND attnum > 0 AND NOT attisdropped AND {ours}
    """,
    "constraints": """
        SELECT conrelid::regclass::text AS table, conname, pg_get_constraintdef(pg_constraint.oid)
        FROM pg_constraint JOIN pg_class ON pg_class.oid = conrelid WHERE {ours}
    """,
    "indexes": """
        SELECT tablename AS table, indexname, indexdef
        FROM pg_indexes JOIN pg_class ON relname = tablename
        WHERE schemaname = 'public' AND {ours}
    """,
    "comments": """
        SELECT objoid::regclass::text AS table, attname, description
        FROM pg_description JOIN pg_class ON pg_class.oid = objoid
        LEFT JOIN pg_attribute ON attrelid = objoid AND attnum = objsubid AND attnum > 0
        WHERE classoid = 'pg_class'::regclass AND {ours}
    """,
}
OURS = (
    f"relnamespace = 'public'::regnamespace AND relname <> '{migrations.VERSION_TABLE}'"
    " AND NOT relispartition"
)

DRIFTS = {
    "an added column": "ALTER TABLE framework_documents ADD COLUMN stray integer",
    "a missing column": "ALTER TABLE framework_documents DROP COLUMN description",
    "a missing table": "DROP TABLE source_lines",
    "a changed type": "ALTER TABLE framework_documents ALTER COLUMN section TYPE text",
    "another length": "ALTER TABLE framework_documents ALTER COLUMN section TYPE varchar(99)",
    "a nullable column": "ALTER TABLE framework_documents ALTER COLUMN section DROP NOT NULL",
    "a changed default": "ALTER TABLE framework_metadata ALTER validation_passed SET DEFAULT true",
    "a missing index": "DROP INDEX idx_documents_section",
    "an added index": "CREATE INDEX stray ON framework_documents (title)",
    "a missing vector index": "DROP INDEX idx_embeddings_vector",
    "a missing unique": "ALTER TABLE key_concepts DROP CONSTRAINT uq_key_concepts_concept_name",
    "a missing foreign key": "ALTER TABLE chunk_embeddings DROP CONSTRAINT valid_model_name",
    "a missing check": "ALTER TABLE source_lines DROP CONSTRAINT reasonable_line_range",
    "an added check": "ALTER TABLE source_lines ADD CONSTRAINT stray CHECK (start_line < 9)",
    "a changed comment": "COMMENT ON COLUMN framework_documents.extra IS 'junk'",
}

MODELS_ALIKE = ("my-model", "my_model", "my/model", "BGE-M3", f"{'x' * 90}a", f"{'x' * 90}b")

HNSW = (
    "CREATE INDEX idx_embeddings_vector ON chunk_embeddings USING hnsw"
    " ((embedding::halfvec({dimensions})) halfvec_{distance}_ops)"
    " WITH (m = {m}, ef_construction = 64) WHERE model_name = '{model}'"
)
AS_MADE = {"dimensions": 3072, "distance": "cosine", "m": 16, "model": "text-embedding-3-large"}


OF_SCHEMA = (
    "app_scope", "chunk_text", "episode_text", "heading_text", "metadata_terms",
    "text_hash", "scope_keys",
)  # fmt: skip
"""Functions that columns and indexes call."""


def catalog(connection: Connection, kind: str) -> set[Row]:
    """Everything of one kind that our tables have."""
    return set(connection.execute(text(CATALOG[kind].format(ours=OURS))))


@pytest.fixture(scope="module")
def made_by_models(
    databases: Databases, hosted: URL, prepared: str, owner: URL
) -> Iterator[Database]:
    """A database whose tables the models made, without any revision but for some functions."""
    named = text(
        "SELECT pg_get_functiondef(name::regproc) FROM unnest(CAST(:names AS text[])) AS name"
    )
    with (
        databases.opened(hosted.database or "", owner=hosted) as copy,
        copy.engine.connect() as connection,
    ):
        of_columns_and_indexes = list(connection.scalars(named, {"names": list(OF_SCHEMA)}))
    url = databases.make(prepared, owner=owner)
    database = Database(settings_for(url))
    with database.engine.begin() as connection:
        for each in of_columns_and_indexes:
            connection.exec_driver_sql(each)
        Base.metadata.create_all(connection)
    yield database
    database.close()
    databases.drop(url)


def test_the_revisions_make_what_the_models_describe(shared: Database) -> None:
    """``alembic check`` sees no difference."""
    assert migrations.drift(shared) == []


def test_tables_of_others_are_no_drift(database: Database) -> None:
    """The database may be shared: foreign tables and their indexes are none of our business."""
    with database.engine.begin() as connection:
        connection.execute(text("CREATE TABLE stray (id integer PRIMARY KEY, name text)"))
        connection.execute(text("CREATE INDEX stray_name ON stray (name)"))

    assert migrations.drift(database) == []


def test_a_difference_is_a_readable_line(database: Database) -> None:
    """A line names what is missing, too much or otherwise as the schema does."""
    with database.engine.begin() as connection:
        for statement in sorted(DRIFTS.values(), key=lambda drift: drift.startswith("DROP TABLE")):
            connection.execute(text(statement))

    differences = migrations.drift(database)

    assert {
        "framework_documents.stray: column is not in the models",
        "framework_documents.description: column is missing",
        "source_lines: table is missing",
        "framework_documents.section: type is VARCHAR(99), in the models VARCHAR(255)",
        "framework_metadata.validation_passed: default is true, in the models false",
        "framework_documents.idx_documents_section: index is missing",
        "key_concepts.uq_key_concepts_concept_name: constraint is missing",
        "chunk_embeddings.valid_model_name: fk is missing",
    } <= set(differences)
    assert not [line for line in differences if "<" in line or "\n" in line]


@pytest.mark.parametrize("difference", DRIFTS)
def test_drift_is_reported(database: Database, difference: str) -> None:
    """A check that cannot fail would be worth nothing."""
    with database.engine.begin() as connection:
        connection.execute(text(DRIFTS[difference]))

    assert migrations.drift(database) != []


def test_indexes_of_models_added_later_are_no_drift(database: Database) -> None:
    """``pgcorpus models add`` makes an index that no revision knows, under a name of its own."""
    with database.unit_of_work() as work:
        for name in MODELS_ALIKE:
            work.models.add_model(name, dimensions=8, provider="openai")
        work.commit()

    assert migrations.drift(database) == []


@pytest.mark.parametrize("kind", CATALOG)
def test_the_catalogs_of_models_and_revisions_are_equal(
    shared: Database, made_by_models: Database, kind: str
) -> None:
    """Definitions to the letter, such as index expressions, which ``alembic check`` skips."""
    with shared.engine.connect() as migrated, made_by_models.engine.connect() as made:
        revisions, models = catalog(migrated, kind), catalog(made, kind)

    assert revisions
    assert revisions - models == set()
    assert models - revisions == set()


@pytest.mark.parametrize(
    "change",
    [{"model": "hashing"}, {"dimensions": 3071}, {"distance": "l2"}, {"m": 8}],
    ids=lambda change: next(iter(change)),
)
def test_the_catalogs_show_a_changed_vector_index(
    made_by_models: Database, change: dict[str, object]
) -> None:
    """Model, length, distance and parameters are all in the definition that is compared."""
    with made_by_models.engine.connect() as connection:
        before = catalog(connection, "indexes")
        for version in (AS_MADE, AS_MADE | change):
            connection.execute(text("DROP INDEX idx_embeddings_vector"))
            connection.execute(text(HNSW.format(**version)))
            assert (catalog(connection, "indexes") == before) == (version == AS_MADE)


def test_every_updated_at_is_kept_by_a_trigger(session: Session) -> None:
    """A table that has the column has the trigger, and no other has it."""
    with_column = session.execute(
        text(
            "SELECT table_name FROM information_schema.columns"
            " JOIN information_schema.tables USING (table_schema, table_name)"
            " WHERE table_schema = 'public' AND table_type = 'BASE TABLE'"
            " AND column_name = 'updated_at'"
        )
    )
    with_trigger = session.execute(
        text("SELECT tgrelid::regclass::text FROM pg_trigger WHERE tgname = 'set_updated_at'")
    )
    # When an episode ended is not when its row changed.
    tables = set(with_column) - {("episodic_memories",)}

    assert {"framework_documents", "chunk_embeddings"} <= {name for (name,) in tables}
    assert tables == set(with_trigger)


def test_functions_that_run_as_their_owner_pin_their_search_path(session: Session) -> None:
    """Or a caller could shadow what they name."""
    found = session.execute(
        text(
            "SELECT proname, proconfig::text FROM pg_proc"
            " WHERE prosecdef AND pronamespace = 'public'::regnamespace"
        )
    )
    settings = {function: setting or "" for function, setting in found}

    assert "lexeme_statistics" in settings
    assert all("search_path=" in setting for setting in settings.values())


@pytest.mark.parametrize("by_login", [True, False], ids=["logged in", "set role"])
def test_statistics_are_told_to_those_who_may_read_the_column(
    database: Database, by_login: bool
) -> None:
    """Whoever may not learns nothing, and nobody learns of columns of other types."""
    role = f"{database.url.database}_reader"
    asked = text(
        "SELECT version IS NOT NULL, languages, elements, frequencies[1]"
        " FROM lexeme_statistics('diary', :words, :language, NULL)"
    )
    guest = Database(settings_for(database.url.set(username=role, password="invented")))
    asking = guest if by_login else database
    with database.engine.begin() as connection:
        connection.execute(text(f"CREATE ROLE {role} LOGIN PASSWORD 'invented'"))
        connection.execute(text(f"GRANT {role} TO CURRENT_USER"))
        connection.execute(
            text("CREATE TABLE diary (words tsvector, tags text[], tongue regconfig, mood text)")
        )
        connection.execute(
            text(
                "INSERT INTO diary SELECT 'secret', '{secret}', 'german', 'glum'"
                " FROM generate_series(1, 100)"
            )
        )
        connection.execute(text("ANALYZE diary"))

    def read_statistics(words: str, language: str) -> tuple[object, ...]:
        with asking.engine.begin() as connection:
            if not by_login:
                connection.execute(text(f"SET LOCAL ROLE {role}"))
            return tuple(connection.execute(asked, {"words": words, "language": language}).one())

    def grant(columns: str) -> None:
        with database.engine.begin() as connection:
            connection.execute(text(f"GRANT SELECT {columns} ON diary TO {role}"))

    try:
        before = read_statistics("words", "tongue")
        grant("(tongue)")
        of_language = read_statistics("words", "tongue")
        grant("")
        after = read_statistics("words", "tongue")
        of_others = read_statistics("tags", "mood")
    finally:
        guest.close()
        with database.engine.begin() as connection:
            connection.execute(text(f"DROP OWNED BY {role}"))
            connection.execute(text(f"DROP ROLE {role}"))

    assert before == of_others == (False, None, None, None)
    assert of_language == (False, ["german"], None, None)
    assert after == (True, ["german"], ["secret"], 1.0)


def test_statistics_are_told_once_for_each_version(database: Database) -> None:
    """A caller that has them gets the version alone, until the next ANALYZE."""
    asked = text(
        "SELECT version, elements FROM lexeme_statistics("
        "'framework_documents', 'search_vector', 'language', :known)"
    )

    def read_statistics(known: str | None) -> tuple[str, list[str] | None]:
        with database.engine.begin() as connection:
            return tuple(connection.execute(asked, {"known": known}).one())

    def analyse(word: str) -> None:
        with database.engine.begin() as connection:
            connection.execute(
                text(
                    "INSERT INTO framework_documents"
                    " (chunk_id, source_file, section, title, content)"
                    " SELECT word, 'f.md', 's', word, word"
                    " FROM (SELECT CAST(:word AS text)) AS one (word)"
                ),
                {"word": word},
            )
            connection.execute(text("ANALYZE framework_documents"))

    assert read_statistics(None) == (None, None)
    analyse("kettle")
    first, words = read_statistics(None)
    assert (read_statistics(first), words) == ((first, None), ["kettl"])
    analyse("teapot")
    second, words = read_statistics(first)
    assert second != first
    assert sorted(words or []) == ["kettl", "teapot"]


def test_the_statistics_of_the_words_are_wide(session: Session) -> None:
    """Ranking reads how rare a word is from them; the default target would list too few."""
    target = session.scalar(
        text(
            "SELECT attstattarget FROM pg_attribute"
            " WHERE attrelid = 'framework_documents'::regclass AND attname = 'search_vector'"
        )
    )

    assert target == 2000
