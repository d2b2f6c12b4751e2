"""Every revision goes up and down on a real database, and leaves no trace."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
from alembic.script import ScriptDirectory
from sqlalchemy import text
from sqlalchemy.orm import Session

from pgcorpus import Worker
from pgcorpus.db import migrations
from pgcorpus.db.base import Base
from pgcorpus.db.engine import Database
from pgcorpus.db.search.corpora import KNOWLEDGE
from tests import factories
from tests.migrations.conftest import Alembic, Dump, Programs
from tests.tenancy import rows_of_all

SCRIPT = ScriptDirectory.from_config(migrations._config())
REVISIONS = [found.revision for found in reversed(list(SCRIPT.walk_revisions()))]
FILES = sorted(Path(SCRIPT.versions).glob("*.py"))
BEFORE = dict(zip(REVISIONS, ["base", *REVISIONS], strict=False))


def to(database: Database, revision: str) -> None:
    """Bring an empty or older database to *revision*."""
    if revision != "base":
        migrations.upgrade(database, revision)


def fill(database: Database) -> None:
    """Put a row into every table."""
    with Session(database.engine) as session:
        factories.bind(session)
        for factory in factories.ALL:
            factory()
        session.commit()
        for table in Base.metadata.sorted_tables:
            assert any(rows_of_all(session.connection(), table.name)), table.name


@pytest.mark.parametrize("revision", REVISIONS)
def test_a_downgrade_leaves_no_trace(empty: Database, schema_of: Dump, revision: str) -> None:
    """Up, down, and the dump is the same to the byte; then up again, for the next."""
    to(empty, BEFORE[revision])
    before = schema_of(empty.url)
    migrations.upgrade(empty, revision)
    after = schema_of(empty.url)
    migrations.downgrade(empty, "-1")

    assert after != before
    assert schema_of(empty.url) == before

    migrations.upgrade(empty, revision)
    assert schema_of(empty.url) == after


def test_downgrades_leave_no_trace_of_full_tables(empty: Database, schema_of: Dump) -> None:
    """Revision by revision from the head, with rows in every table, and up again."""
    steps = [("base", schema_of(empty.url))]
    for revision in REVISIONS:
        migrations.upgrade(empty, revision)
        steps.append((revision, schema_of(empty.url)))
    newest = steps.pop()[1]
    fill(empty)

    while steps:
        revision, before = steps.pop()
        migrations.downgrade(empty, "-1")
        assert schema_of(empty.url) == before, revision

    migrations.upgrade(empty)
    assert schema_of(empty.url) == newest


@pytest.mark.parametrize(
    "by",
    ["owner", pytest.param("superuser", marks=pytest.mark.superuser)],  # who makes the extensions
)
def test_the_base_is_an_empty_database(by: str, empty: Database, schema_of: Dump) -> None:
    """From the head to the base at once: also its own extensions and the version table."""
    nothing = schema_of(empty.url)
    migrations.upgrade(empty)
    fill(empty)

    migrations.downgrade(empty, "base")

    assert schema_of(empty.url) == nothing
    assert migrations.current(empty) is None


def test_passages_of_before_the_queue_are_enqueued_by_the_upgrade(empty: Database) -> None:
    """A worker embeds all that lack a vector of their text by the active model."""
    migrations.upgrade(empty, "0002")
    with empty.engine.begin() as connection:
        connection.execute(
            text("UPDATE corpus_settings SET active_model = 'hashing' WHERE corpus = 'knowledge'")
        )
        rows = connection.execute(
            text(
                "INSERT INTO framework_documents (chunk_id, source_file, section, title, content)"
                " SELECT n, 'a.md', 'all', 'title ' || n, 'text ' || n"
                " FROM generate_series(1, 4) AS n RETURNING chunk_id, id"
            )
        )
        keys = {row.chunk_id: row.id for row in rows}
        vectors = text(
            "INSERT INTO chunk_embeddings (document_id, model_name, embedding, content_hash)"
            " SELECT id, :model, array_fill(1, ARRAY[:length])::vector,"
            " sha256(convert_to(title || E'\\n' || :before || content, 'UTF8'))"
            " FROM framework_documents WHERE chunk_id = :chunk"
        )
        for chunk, model, length, before in (
            ("1", "hashing", 384, ""),
            ("2", "bge-m3", 1024, ""),
            ("3", "hashing", 384, "other "),
        ):
            connection.execute(
                vectors, {"chunk": chunk, "model": model, "length": length, "before": before}
            )

    migrations.upgrade(empty)

    with empty.unit_of_work() as work:
        found = work.jobs.list_jobs(kind="embed")
    assert {job.payload["item"] for job in found} == {str(keys[chunk]) for chunk in "234"}
    assert {job.dedupe_key for job in found} == {
        f"embed:knowledge:{keys[chunk]}" for chunk in "234"
    }
    report = Worker(empty, kinds={"embed"}).run(once=True)
    assert report.counts == {"completed": 3}
    with empty.unit_of_work() as work:
        assert work.embeddings.coverage(KNOWLEDGE, "hashing").embedded == 4


@pytest.mark.superuser  # makes the extensions
@pytest.mark.parametrize("extensions", [("vector",), ("pg_trgm",), ("vector", "pg_trgm")])
def test_extensions_that_were_there_before_stay(
    empty: Database, schema_of: Dump, extensions: tuple[str, ...]
) -> None:
    """An extension that this project did not make is not dropped."""
    with empty.engine.begin() as connection:
        for extension in extensions:
            connection.execute(text(f"CREATE EXTENSION {extension}"))
    before = schema_of(empty.url)

    migrations.upgrade(empty)
    migrations.downgrade(empty, "base")

    assert schema_of(empty.url) == before


def test_offline_sql_makes_and_unmakes_the_same_schema(
    empty: Database, schema_of: Dump, alembic: Alembic, programs: Programs
) -> None:
    """``--sql`` needs no database, and ``psql`` runs what it prints."""
    nothing = schema_of(empty.url)
    programs.execute(empty.url, alembic.run("upgrade", "head", "--sql"))
    by_psql = schema_of(empty.url)
    assert migrations.drift(empty) == []

    programs.execute(empty.url, alembic.run("downgrade", "head:base", "--sql"))
    assert schema_of(empty.url) == nothing

    migrations.upgrade(empty)
    assert schema_of(empty.url) == by_psql


def test_there_is_one_head() -> None:
    """Two would need a merge before anybody could upgrade."""
    assert SCRIPT.get_heads() == [REVISIONS[-1]]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_revision_stands_on_its_own(file: Path) -> None:
    """It is numbered, documented and reversible, and imports nothing that will change later."""
    module = ast.parse(file.read_text())
    functions = {node.name: node for node in module.body if isinstance(node, ast.FunctionDef)}
    imported = {
        name.partition(".")[0]
        for node in ast.walk(module)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in (
            [node.module or "."]
            if isinstance(node, ast.ImportFrom)
            else [alias.name for alias in node.names]
        )
    }

    assert re.fullmatch(r"\d{4}_[a-z0-9]+(_[a-z0-9]+)*", file.stem)
    assert file.stem[:4] in REVISIONS
    assert ast.get_docstring(module)
    assert imported <= {"__future__", "alembic", "sqlalchemy", "collections", "typing"}
    for name in ("upgrade", "downgrade"):
        assert any(isinstance(node, ast.Expr | ast.For) for node in functions[name].body)
