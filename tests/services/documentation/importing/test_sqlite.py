"""Old SQLite files go in as they stand, and what cannot is told with its reason."""

from __future__ import annotations

import pickle
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sqlalchemy import delete, select, text

from pgcorpus.db.engine import Database
from pgcorpus.db.errors import Misuse
from pgcorpus.db.models.documentation import Chunk, ClickFeedback, Document, SearchSession
from pgcorpus.db.models.embeddings import EmbeddingModel
from pgcorpus.db.models.imports import ImportReject, ImportTransformation
from pgcorpus.db.repositories.documentation.documents import DocumentRecord, DocumentRepository
from pgcorpus.services.documentation.importing import importer
from pgcorpus.services.documentation.importing import sqlite as module
from pgcorpus.services.documentation.importing.importer import DocumentationImporter
from pgcorpus.services.documentation.importing.report import DocumentationReport
from tests.services.documentation.sqlite.files import (
    CRAWLER,
    FULL,
    OLDEST,
    chunk,
    click,
    document,
    make_file,
    unit,
)
from tests.services.documentation.sqlite.library import make_library


def import_file(database: Database, path: Path, **options: Any) -> DocumentationReport:
    """Import a file for everybody."""
    return DocumentationImporter(database, **options).run([path])


def read_all(database: Database, kind: type[Any], *order: Any) -> list[Any]:
    """Return all rows of a table."""
    with database.unit_of_work() as work:
        return list(work.session.scalars(select(kind).order_by(*order)))


@pytest.fixture
def full(tmp_path: Path) -> Path:
    """A file of the fullest layout."""
    return make_library(tmp_path / "full.db", "full")


def test_chunks_are_kept_as_they_are_stored(database: Database, full: Path) -> None:
    """Text, heading, anchor and lineage; headings from the path, and their own names."""
    import_file(database, full)

    chunks = {each.details["sqlite"]["id"]: each for each in read_all(database, Chunk)}
    first, second = chunks[5], chunks[11]
    assert (first.text, first.heading, first.anchor) == (
        "How to price a premium offer",
        "Offers",
        "offers",
    )
    assert (first.chunk_id, first.heading_path) == ("offers", ["Pricing", "Offers"])
    assert (first.lineage_id, first.chunker_version, first.token_count) == ("run-1", "v1.0.0", 6)
    assert first.url == "https://a.example/pricing#offers"
    assert second.text == "  Text with\nspaces around  "
    assert second.heading_path == ["A", "B > C"]
    assert second.chunker_config == {"by": "words", "size": 100}
    assert [chunks[n].position for n in (5, 11, 12)] == [0, 1, 2]
    assert (chunks[20].language, first.language) == ("german", "english")


def test_a_name_that_two_chunks_have_is_given_to_none(database: Database, full: Path) -> None:
    """Nor one that is too long; it stays in their metadata."""
    import_file(database, full)

    chunks = {each.details["sqlite"]["id"]: each for each in read_all(database, Chunk)}
    assert len({each.chunk_id for each in chunks.values()}) == len(chunks)
    assert chunks[11].details["sqlite"]["chunk_id"] == "twice"
    assert "twice" not in {each.chunk_id for each in chunks.values()}
    assert len(chunks[20].chunk_id) < 100


def test_a_name_that_another_document_has_is_not_taken_from_it(
    database: Database, tmp_path: Path
) -> None:
    """Two files of one collection may name their chunks alike."""
    for name in ("a", "b"):
        rows = (document(1, f"{name}.md"), chunk(1, 1, f"text of {name}", chunk_id="c1"))
        import_file(database, make_file(tmp_path / f"{name}.db", FULL, *rows))
    import_file(database, tmp_path / "a.db")

    chunks = read_all(database, Chunk, Chunk.text)
    assert [each.text for each in chunks] == ["text of a", "text of b"]
    assert chunks[0].chunk_id == "c1"
    assert chunks[1].chunk_id != "c1"
    assert chunks[1].details["sqlite"]["chunk_id"] == "c1"


def test_what_is_imported_again_changes_nothing(database: Database, full: Path) -> None:
    """No chunk, vector, click or session is written twice, nor a change recorded twice."""
    import_file(database, full)
    tables = ("documents", "chunks", "documentation_embeddings", "click_feedback")
    tables += ("search_sessions", "import_transformations")

    def list_versions() -> list[Any]:
        with database.unit_of_work() as work:
            return [
                work.session.execute(text(f"SELECT ctid::text, xmin::text FROM {each}")).all()  # noqa: S608 - names from above
                for each in tables
            ]

    before = list_versions()
    report = import_file(database, full)

    assert list_versions() == before
    assert (report.total("unchanged"), report.total("added"), report.embedded) == (5, 0, 0)
    assert (report.clicks, report.sessions) == (0, 0)


def test_a_click_is_stored_once_whatever_zone_is_named(database: Database, full: Path) -> None:
    """It is the same row of the same file."""
    import_file(database, full, time_zone="Europe/Vienna")

    report = import_file(database, full, time_zone="UTC")

    assert (report.clicks, report.sessions) == (0, 0)


def test_a_first_load_is_planned_by_what_its_first_batch_stored(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else each foreign key is checked by reading all documents, which grow more and more."""
    monkeypatch.setattr(importer, "BULK_BYTES", 0)
    monkeypatch.setattr(module, "BATCH", 3)
    known: list[bool] = []
    write = DocumentRepository.write

    def look_and_write(self: DocumentRepository, records: Sequence[DocumentRecord]) -> Any:
        counted = "SELECT bool_and(reltuples > 0) FROM pg_class WHERE relname = ANY (:tables)"
        tables = [each.name for each in self.tables[:2]]
        known.append(self.session.scalar(text(counted), {"tables": tables}) or False)
        return write(self, records)

    monkeypatch.setattr(DocumentRepository, "write", look_and_write)
    rows = [row for n in range(1, 10) for row in (document(n), chunk(n, n, f"text {n}"))]
    import_file(database, make_file(tmp_path / "a.db", FULL, *rows))

    assert len(known) > 2
    assert known == [False, *[True] * (len(known) - 1)]


def test_an_index_that_was_dropped_before_a_large_file_is_built_by_its_import(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Into a filled corpus, whose other indexes stay: searches go on meanwhile."""
    monkeypatch.setattr(importer, "BULK_BYTES", 0)
    paths = []
    for name in ("a", "b"):
        rows = (document(1, f"{name}.md"), chunk(1, 1, name, embedding=unit(1).tobytes()))
        paths.append(make_file(tmp_path / f"{name}.db", FULL, *rows))
    graph = "documentation_embeddings_hnsw_all_minilm_l6_v2"
    import_file(database, paths[0])
    with database.unit_of_work() as work:
        work.session.execute(text(f"DROP INDEX {graph}"))
        work.commit()

    assert import_file(database, paths[1]).embedded == 1

    with database.unit_of_work() as work:
        valid = "SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass(:name)"
        assert work.session.scalar(text(valid), {"name": graph}) is True


def test_a_stopped_import_is_finished_by_the_next(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Chunks that were kept before stay."""
    monkeypatch.setattr(module, "BATCH", 3)
    rows = [document(n) for n in range(1, 11)]
    rows += [chunk(n, n, f"text {n}", embedding=unit(n).tobytes()) for n in range(1, 11)]
    path = make_file(tmp_path / "a.db", FULL, *rows, click(1), click(10))

    def stop(done: int, total: int) -> None:
        if done > total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        DocumentationImporter(database).run([path], progress=stop)
    kept = len(read_all(database, Chunk))
    report = import_file(database, path)

    assert 0 < kept < 10
    assert (report.total("unchanged"), report.total("added")) == (kept, 10 - kept)
    assert (report.embedded, report.clicks) == (10 - kept, 2)


def test_a_dry_run_writes_nothing_and_reports_the_same(database: Database, full: Path) -> None:
    """Of documents, vectors, clicks and sessions."""
    dry = import_file(database, full, dry_run=True)

    for table in (Document, Chunk, ClickFeedback, SearchSession, ImportReject):
        assert read_all(database, table) == []
    report = import_file(database, full)
    assert dry.as_json() | {"duration_s": 0} == report.as_json() | {"duration_s": 0}


def test_refused_rows_are_kept_with_their_reasons(database: Database, tmp_path: Path) -> None:
    """Chunks without a document, hostile pickles, clicks on nothing; the others go in."""
    path = make_file(
        tmp_path / "a.db",
        FULL,
        document(1),
        chunk(1, 1, "good"),
        chunk(2, 99, "orphan"),
        chunk(3, 1, "hostile", embedding=pickle.dumps(print, 4)),
        chunk(4, 1, ""),
        click(1),
        click("nothing"),
        click(3),
        click(1, "click_feedback", position=-1),
    )

    report = import_file(database, path)

    rejects = {each.locator: each.reason for each in read_all(database, ImportReject)}
    assert rejects.keys() == {
        *("chunks[2]", "chunks[3]", "chunks[4]"),
        *("click_events[2]", "click_events[3]", "click_feedback[1]"),
    }
    assert "builtins.print" in rejects["chunks[3]"]
    assert "no chunk of the file" in rejects["click_events[2]"]
    assert "refused" in rejects["click_events[3]"]
    assert report.failed
    assert (report.total("added"), report.total("rejected"), report.clicks) == (1, 6, 1)


def test_what_is_refused_no_more_is_forgotten(database: Database, tmp_path: Path) -> None:
    """After the file was mended and imported again."""
    path = make_file(tmp_path / "a.db", FULL, document(1), chunk(1, 1), click("nothing"))
    import_file(database, path)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("UPDATE click_events SET chunk_id = '1'")
        connection.commit()

    assert not import_file(database, path).failed
    assert read_all(database, ImportReject) == []


def test_a_document_that_the_database_refuses_is_refused_alone(
    database: Database, tmp_path: Path
) -> None:
    """Its path is too long for the index; its neighbours go in."""
    rows = [document(1), document(2, "x" * 3000), document(3)]
    rows += [chunk(n, n, f"text {n}") for n in (1, 2, 3)]
    path = make_file(tmp_path / "a.db", FULL, *rows, click(2))

    report = import_file(database, path)

    assert [each.locator for each in report.rejects] == ["documents[2]", "click_events[1]"]
    assert report.total("added") == 2


def test_vectors_of_unknown_models_are_left_out_and_counted(
    database: Database, tmp_path: Path
) -> None:
    """By the reason; their chunks go in, to be embedded anew."""
    with database.unit_of_work() as work:
        work.session.execute(delete(EmbeddingModel).where(EmbeddingModel.name == "hashing-x"))
    odd = np.ones(7, np.float32).tobytes()
    path = make_file(
        tmp_path / "a.db",
        FULL,
        document(1),
        chunk(1, 1, "a", embedding=odd),
        chunk(2, 1, "b", embedding=odd, embedding_model="ours", embedding_dimensions=7),
        chunk(3, 1, "c", embedding=(unit() * 1e6).tobytes()),
        chunk(4, 1, "d", embedding=unit().tobytes()),
        chunk(5, 1, "e", embedding=(unit(2) * 1e6).tobytes()),
    )

    report = import_file(database, path)

    assert report.embedded == 1
    assert report.total("added") == 5
    assert sorted(report.left_out.values()) == [1, 1, 2]
    reasons = " | ".join(report.left_out)
    assert "nothing says which model made vectors of 7 dimensions" in reasons
    assert "ours is not registered; do it with: pgcorpus models add ours" in reasons
    assert "half precision" in reasons


def test_clicks_of_both_tables_count_from_one(database: Database, full: Path) -> None:
    """A hit that was only shown is no click; times without a zone are of the one that was named."""
    import_file(database, full, time_zone="Europe/Vienna")

    clicks = {
        (each.details["sqlite"]["table"], each.details["sqlite"]["id"]): each
        for each in read_all(database, ClickFeedback)
    }
    assert {key: each.position for key, each in clicks.items()} == {
        ("click_events", 1): 1,
        ("click_events", 2): 5,
        ("click_events", 8): 1,
        ("click_feedback", 1): 1,
        ("click_feedback", 2): 1,
    }
    assert [key for key, each in clicks.items() if not each.clicked] == [("click_feedback", 1)]
    first = clicks["click_events", 1]
    assert (first.session_id, first.user_id) == ("s1", "u")
    assert first.created_at.isoformat().startswith("2024-05-01T10:00:00.5")
    assert clicks["click_feedback", 1].created_at.isoformat().startswith("2024-06-01T10:00:00")


def test_readings_of_whole_columns_are_in_the_history_once(database: Database, full: Path) -> None:
    """Zones that were assumed, and positions that counted from 0."""
    import_file(database, full, time_zone="Europe/Vienna")

    told = {
        (each.item, each.field): (each.original, each.stored, each.rule)
        for each in read_all(database, ImportTransformation)
        if each.rule in {"zone", "position"}
    }
    assert told["click_events", "timestamp"] == ("1 times without a zone", "Europe/Vienna", "zone")
    assert told["documents", "captured_at"] == ("1 times without a zone", "UTC", "zone")
    assert told["click_events", "position"] == ("from 0", "from 1", "position")


def test_what_the_crawler_stored_is_cut_here(database: Database, tmp_path: Path) -> None:
    """By our chunker; the second of two rows of one address is refused."""
    rows = [
        (
            "documents",
            {"id": "a" * 16, "url": "https://a.example/", "content": "# A\n\n" + "b " * 999},
        ),
        ("documents", {"id": "b" * 16, "url": "https://a.example/", "content": "again"}),
    ]
    report = import_file(database, make_file(tmp_path / "a.db", CRAWLER, *rows))

    chunks = read_all(database, Chunk, Chunk.position)
    assert len(chunks) > 1
    assert {each.heading for each in chunks} == {"A"}
    assert chunks[0].url == "https://a.example/#a"
    assert [each.reason for each in report.rejects] == [
        "its url is that of another row of the file"
    ]


def test_a_file_that_is_none_is_told(database: Database, tmp_path: Path) -> None:
    """With the reason; files beside it go in."""
    (tmp_path / "broken.db").write_bytes(b"SQLite format 3\0" + b"\0" * 100)
    (tmp_path / "named.db").write_text("not SQLite")
    (tmp_path / "good.md").write_text("# Words")
    make_file(tmp_path / "good", OLDEST, document(1), chunk(1, 1))
    names = ("broken.db", "named.db", "good.md", "good")

    report = DocumentationImporter(database).run([tmp_path / name for name in names])

    errors = {Path(each.file).name: each.error for each in report.files}
    assert errors["good.md"] is errors["good"] is None
    assert errors["broken.db"]
    assert "not an SQLite file" in (errors["named.db"] or "")
    assert report.total("added") == 2


def test_a_time_zone_that_does_not_exist_is_refused(database: Database) -> None:
    """Before anything is read."""
    for name in ("Nowhere/City", "", "../etc/passwd", "a\0b"):
        with pytest.raises(Misuse, match="no time zone"):
            DocumentationImporter(database, time_zone=name)
