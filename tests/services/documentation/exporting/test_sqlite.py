"""An old file that was imported is written back, and nothing of it is lost on the way."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any
from uuid import uuid4
from zoneinfo import ZoneInfo

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
from pgcorpus.services.documentation.sqlite.records import SQLiteDocument
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
            if isinstance(each, SQLiteDocument)
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


def test_a_library_has_rows_of_every_kind(database: Database, tmp_path: Path) -> None:
    """So that the test above compares something."""
    mine, _ = make_tenants(database)

    report = import_file(database, make_library(tmp_path / "a.db", "full"), mine)

    counts = {name: len(rows) for name, rows in read_rows(database, mine, crawled=False).items()}
    assert counts == {"documents": 5, "chunks": 5, "vectors": 4, "clicks": 5, "sessions": 2}
    assert (report.total("added"), report.embedded, report.clicks, report.sessions) == (5, 4, 5, 2)


def test_the_old_system_finds_words_in_the_file(database: Database, tmp_path: Path) -> None:
    """By the numbers that chunks had before."""
    import_file(database, make_library(tmp_path / "a.db", "full"))

    SQLiteExporter(database).write(tmp_path / "b.db")

    with closing(sqlite3.connect(tmp_path / "b.db")) as connection:
        found = connection.execute(
            "SELECT rowid FROM chunks_fts WHERE chunks_fts MATCH 'offers' ORDER BY 1"
        )
        assert found.fetchall() == [(5,), (12,)]


def test_what_was_changed_here_is_written_as_it_is_now(database: Database, tmp_path: Path) -> None:
    """Also where the file had other values; what is new is numbered behind the rest."""
    import_file(database, make_library(tmp_path / "a.db", "full"))
    service = DocumentService(database)
    service.update("guide/empty.md", content="# Now\n\nit says something", embed=False)
    service.add_document("# New\n\nwords", path="new.md", embed=False)
    with database.unit_of_work() as work:
        work.feedback.record_click("offers", query="price", position=2, session_id="s1")
        _, key = work.feedback.get_chunk_key("offers")
        hit = {"id": str(key), "position": 1, "scores": {"text": 0.5}}
        for session in ("s1", "s3"):
            work.feedback.record_page(session, shown=[hit], query="price", mode="text")
        work.commit()

    SQLiteExporter(database).write(tmp_path / "b.db")

    with closing(sqlite3.connect(tmp_path / "b.db")) as connection:
        documents = dict(connection.execute("SELECT path, id FROM documents").fetchall())
        chunks = connection.execute(
            "SELECT id, document_id, text, heading FROM chunks WHERE id > 31 ORDER BY 1"
        ).fetchall()
        clicks = connection.execute(
            "SELECT id, chunk_id, position FROM click_feedback WHERE query = 'price'"
        ).fetchall()
        sessions = connection.execute(
            "SELECT id, session_id, query_count, click_count FROM search_sessions ORDER BY 1"
        ).fetchall()
    assert (documents["guide/empty.md"], documents["new.md"]) == (7, 41)
    assert chunks == [
        (32, 7, "it says something", "Now"),
        (33, 41, "words", "New"),
    ]
    assert clicks == [(3, "5", 2)]
    assert sessions == [(1, "s1", 1, 1), (4, "s2", 3, 0), (5, "s3", 1, 0)]


def test_numbers_that_two_files_gave_are_given_once(database: Database, tmp_path: Path) -> None:
    """The second of two documents, chunks or clicks of a number gets another."""
    import_file(database, make_library(tmp_path / "a.db", "full"))
    with closing(sqlite3.connect(make_library(tmp_path / "b.db", "full"))) as connection:
        connection.execute("UPDATE documents SET path = 'other/' || path")
        connection.execute("UPDATE search_sessions SET session_id = 'other ' || session_id")
        connection.commit()
    import_file(database, tmp_path / "b.db")

    written = SQLiteExporter(database).write(tmp_path / "c.db")

    assert (written.documents, written.chunks, written.vectors) == (10, 10, 8)
    assert (written.clicks, written.sessions) == (10, 4)
    with closing(sqlite3.connect(tmp_path / "c.db")) as connection:
        paths = connection.execute("SELECT id, path FROM documents ORDER BY id LIMIT 1").fetchall()
    assert paths == [(3, "guide/pricing.md")]


def test_only_the_collection_and_the_scope_are_written(database: Database, tmp_path: Path) -> None:
    """Nothing of a tenant's is in a file of what everybody may read, nor the other way round."""
    mine, yours = make_tenants(database)
    path = make_library(tmp_path / "a.db", "full")
    DocumentationImporter(database, mine, collection="one").run([path])
    service = DocumentService(database)
    service.add_document("words of all", path="all.md", collection="one", embed=False)

    shared = SQLiteExporter(database, collection="one").write(tmp_path / "shared.db")
    own = SQLiteExporter(database, mine, collection="one").write(tmp_path / "own.db")

    assert (shared.documents, shared.clicks, shared.sessions) == (1, 0, 0)
    assert (own.documents, own.clicks, own.sessions) == (5, 5, 2)
    for scope, collection in ((yours, "one"), (mine, "two"), (None, "default")):
        with pytest.raises(NotFound, match="no document in the collection"):
            SQLiteExporter(database, scope, collection=collection).write(tmp_path / "none.db")
    assert not (tmp_path / "none.db").exists()


def test_a_file_that_is_there_stays_unless_it_is_to_be_replaced(
    database: Database, tmp_path: Path
) -> None:
    """Byte for byte."""
    import_file(database, make_library(tmp_path / "a.db", "oldest"))
    path = tmp_path / "b.db"
    path.write_text("mine")

    with pytest.raises(Misuse, match="--replace"):
        SQLiteExporter(database).write(path)
    assert path.read_text() == "mine"
    SQLiteExporter(database, replace=True).write(path)
    assert path.read_bytes().startswith(b"SQLite format 3")


def test_an_interrupted_export_leaves_nothing(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither the file nor a part of it, and the connection is whole."""
    import_file(database, make_library(tmp_path / "a.db", "full"))
    folder = tmp_path / "out"
    folder.mkdir()

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, "restore_click", interrupt)
        with pytest.raises(KeyboardInterrupt):
            SQLiteExporter(database).write(folder / "b.db")

    assert list(folder.iterdir()) == []
    assert SQLiteExporter(database).write(folder / "b.db").clicks == 5


def test_vectors_are_written_bit_by_bit(database: Database, tmp_path: Path) -> None:
    """They are not made of unit length or rounded."""
    first = make_library(tmp_path / "a.db", "with embeddings")
    import_file(database, first)
    SQLiteExporter(database).write(tmp_path / "b.db")

    with closing(sqlite3.connect(tmp_path / "b.db")) as connection:
        (blob,) = connection.execute("SELECT embedding FROM chunks WHERE id = 11").fetchone()
    with closing(sqlite3.connect(first)) as connection:
        (before,) = connection.execute("SELECT embedding FROM chunks WHERE id = 11").fetchone()
    assert blob == before
