"""What came from an old file goes back into one, and nothing of it is lost on the way."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any
from uuid import uuid4
from zoneinfo import ZoneInfo

import numpy as np
import pytest
from sqlalchemy import text

from pgcorpus.db.engine import Database
from pgcorpus.db.errors import Misuse, NotFound
from pgcorpus.db.models.memory import Tenant
from pgcorpus.db.scope import Scope
from pgcorpus.services.documentation.exporting import sqlite as module
from pgcorpus.services.documentation.exporting.sqlite import SQLiteExporter
from pgcorpus.services.documentation.importing.importer import DocumentationImporter
from pgcorpus.services.documentation.service import DocumentService
from pgcorpus.services.documentation.sqlite.reading import open_database
from pgcorpus.services.documentation.sqlite.records import StoredDocument
from tests.services.documentation.sqlite.library import ALL, make_library

ZONE = "Europe/Vienna"

OF_THE_RUN = {"created_at", "updated_at", "processing_timestamp", "lineage_id", "tenant_id"}
KEYS = {"id", "scope", "document_id", "chunk_scope", "chunk_id"}


def make_tenants(database: Database) -> tuple[Scope, Scope]:
    """Two tenants."""
    mine, yours = Scope(uuid4(), None), Scope(uuid4(), None)
    with database.unit_of_work() as work:
        for each in (mine, yours):
            name = str(each.tenant_id)
            work.enter(each)
            work.session.add(Tenant(id=each.tenant_id, name=name, slug=name))
            work.session.flush()
        work.commit()
    return mine, yours


def import_file(database: Database, path: Path, scope: Scope | None = None) -> Any:
    """Import a file, of which nothing is refused."""
    report = DocumentationImporter(database, scope, time_zone=ZONE).run([path])
    assert not report.failed, report
    return report


def read_rows(database: Database, scope: Scope, *, crawled: bool) -> dict[str, list[Any]]:
    """All rows of a scope, without keys and times of the run; by what stays of them."""
    of_run = OF_THE_RUN if crawled else OF_THE_RUN - {"processing_timestamp", "lineage_id"}
    statements = {
        "documents": "SELECT to_jsonb(t) FROM documents t WHERE scope = :scope ORDER BY path",
        "chunks": "SELECT to_jsonb(t) || jsonb_build_object('name', t.chunk_id, 'path', path) "
        "FROM chunks t JOIN documents d ON d.scope = t.scope AND d.id = document_id "
        "WHERE t.scope = :scope ORDER BY path, position",
        "vectors": "SELECT jsonb_build_object('name', c.chunk_id, 'model', model_name, "
        "'numbers', encode(vector_send(embedding), 'hex'), 'of', content_hash::text) "
        "FROM documentation_embeddings t JOIN chunks c ON c.scope = t.scope AND c.id = t.chunk_id "
        "WHERE t.scope = :scope ORDER BY c.chunk_id",
        "clicks": "SELECT to_jsonb(t) || jsonb_build_object('key', t.id, 'name', c.chunk_id, "
        "'at', t.created_at) FROM click_feedback t "
        "JOIN chunks c ON c.scope = t.chunk_scope AND c.id = t.chunk_id "
        "WHERE t.scope = :scope ORDER BY t.id",
        "sessions": "SELECT to_jsonb(t) || jsonb_build_object('key', t.id) "
        "FROM search_sessions t WHERE t.scope = :scope ORDER BY t.id",
    }
    with database.unit_of_work() as work:
        work.enter(scope)
        return {
            table: [
                {key: value for key, value in row.items() if key not in of_run | KEYS}
                for row in work.session.scalars(text(statement), {"scope": str(scope)})
            ]
            for table, statement in statements.items()
        }


def read_records(path: Path) -> list[Any]:
    """All records of a file, with the numbers of their vectors."""
    with open_database(path, zone=ZoneInfo(ZONE)) as found:
        documents = list(found.read_documents())
        vectors = [
            None if chunk.vector is None else chunk.vector.tobytes()
            for each in documents
            if isinstance(each, StoredDocument)
            for chunk in each.chunks
        ]
        return [*documents, *vectors, *found.read_clicks(), *found.read_sessions()]


@pytest.mark.parametrize("layout", ALL)
def test_nothing_is_lost_there_and_back(database: Database, tmp_path: Path, layout: str) -> None:
    """The file that is written has the records of the first, and makes the same rows again."""
    mine, yours = make_tenants(database)
    first = make_library(tmp_path / "first.db", layout)
    import_file(database, first, mine)

    written = SQLiteExporter(database, mine).write(tmp_path / "second.db")
    import_file(database, tmp_path / "second.db", yours)

    assert read_records(tmp_path / "second.db") == read_records(first)
    crawled = layout == "crawler"
    before = read_rows(database, mine, crawled=crawled)
    assert read_rows(database, yours, crawled=crawled) == before
    assert written.documents == len(before["documents"])
    assert written.vectors == (0 if crawled else len(before["vectors"]))
    assert (written.clicks, written.sessions) == (len(before["clicks"]), len(before["sessions"]))
