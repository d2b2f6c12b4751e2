"""Documents into the database: again and again, and only what has changed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import threading
import time
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import text

from pgcorpus.db.engine import Database
from pgcorpus.db.errors import InvalidValue, NotFound, NotPermitted
from pgcorpus.db.scope import Scope
from pgcorpus.services.documentation.importing import importer
from pgcorpus.services.documentation.importing.importer import DocumentationImporter
from pgcorpus.services.documentation.importing.report import DocumentationReport
from pgcorpus.services.embedding.embed import EmbeddingService
from pgcorpus.services.embedding.hashing import HashingEmbedder
from tests.command import PGCORPUS, Command
from tests.logins import PASSWORD, logged_in
from tests.pooler import variables_of

Write = Callable[[Mapping[str, str | bytes]], Path]

GUIDE = "# Guide\n\nRead me first.\n\n## Install\n\nRun it.\n\n## Use\n\nAsk it.\n"
CHUNKS = "SELECT path, position, chunk_id, text FROM chunks JOIN documents ON documents.id ="
CHUNKS += " document_id ORDER BY path, position"
PATHS = "SELECT path FROM documents ORDER BY path"
JOBS = "SELECT id FROM jobs"
VECTORS = "SELECT chunk_id, content_hash FROM documentation_embeddings ORDER BY 1"
STATE = """
    SELECT 'd', d::text, xmin::text FROM documents d
    UNION ALL SELECT 'c', c::text, xmin::text FROM chunks c
    UNION ALL SELECT 'j', j::text, xmin::text FROM jobs j ORDER BY 1, 2
"""


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Paths are given as users give them, relative to where they are."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def write() -> Write:
    """Writes files below the working directory, and gives the folder ``wiki``."""

    def write(files: Mapping[str, str | bytes]) -> Path:
        for name, content in files.items():
            path = Path(name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content.encode() if isinstance(content, str) else content)
        return Path("wiki")

    return write


def load(database: Database, *paths: Path | str, **options: Any) -> DocumentationReport:
    """Import paths, for everybody or for ``scope``."""
    scope = options.pop("scope", None)
    return DocumentationImporter(database, scope, **options).run([Path(each) for each in paths])


def rows(
    database: Database, statement: str, scope: Scope | None = None, **values: Any
) -> list[tuple[Any, ...]]:
    """Return what a statement of the test's own gives within a scope."""
    with database.unit_of_work() as work:
        if scope is not None:
            work.enter(scope)
        return [tuple(row) for row in work.session.execute(text(statement), values)]


def counts(report: DocumentationReport) -> tuple[int, ...]:
    """Chunks that were added, updated, left unchanged, and deleted."""
    return (*(report.total(name) for name in ("added", "updated", "unchanged")), report.deleted)


def run(database: Database, statement: str) -> None:
    """Run a statement of the test's own."""
    with database.unit_of_work() as work:
        work.session.execute(text(statement))
        work.commit()


def embed(database: Database) -> list[tuple[Any, ...]]:
    """Embed all chunks, and take the vectors' keys."""
    embedder = HashingEmbedder("hashing", 384)
    EmbeddingService(database, embedder=embedder).embed("documentation")
    return rows(database, VECTORS)


def list_unembedded(database: Database) -> list[str]:
    """The texts of the chunks without a vector."""
    statement = """
        SELECT text FROM chunks c WHERE NOT EXISTS (
            SELECT FROM documentation_embeddings e WHERE (e.scope, e.chunk_id) = (c.scope, c.id))
        ORDER BY text
    """
    return [row[0] for row in rows(database, statement)]


# What goes in


def test_a_folder_goes_in_with_its_paths_headings_and_anchors(
    database: Database, write: Write
) -> None:
    """A document's path is that of the file, from the folder as it was given."""
    folder = write({"wiki/guide.md": GUIDE, "wiki/more/notes.txt": "Some notes.", "wiki/a.html":
                    "<html><body><h1>Page</h1><p>Words.</p></body></html>"})  # fmt: skip

    report = load(database, folder)

    assert not report.failed
    assert report.documents == 3
    assert [row[0] for row in rows(database, PATHS)] == [
        "wiki/a.html",
        "wiki/guide.md",
        "wiki/more/notes.txt",
    ]
    of_guide = "SELECT id FROM documents WHERE path = 'wiki/guide.md'"
    statement = "SELECT anchor, heading_path, text FROM chunks WHERE document_id ="
    assert rows(database, f"{statement} ({of_guide}) ORDER BY position") == [
        ("guide", ["Guide"], "Read me first."),
        ("install", ["Guide", "Install"], "Run it."),
        ("use", ["Guide", "Use"], "Ask it."),
    ]


def test_addresses_lead_below_the_base(database: Database, write: Write) -> None:
    """Of a document and of each of its chunks; one that is given later is taken, too."""
    folder = write({"wiki/my guide.md": GUIDE})
    load(database, folder)

    load(database, folder, base_url="https://example.org/wiki/")

    urls = rows(database, "SELECT url FROM chunks ORDER BY position")
    assert urls[1] == ("https://example.org/wiki/my%20guide.md#install",)


def test_a_tenants_documents_are_its_own(database: Database, write: Write) -> None:
    """Two tenants and everybody may have a document at the same path."""
    folder = write({"wiki/guide.md": GUIDE})
    with database.unit_of_work() as work:
        ours, theirs = (Scope.tenant(work.tenancy.create_tenant(name).id) for name in ("a", "b"))
        work.commit()

    load(database, folder, scope=ours)

    assert rows(database, PATHS) == rows(database, PATHS, theirs) == []
    assert rows(database, PATHS, ours) == [("wiki/guide.md",)]
    assert counts(load(database, folder, scope=theirs))[0] == 3
    assert counts(load(database, folder))[0] == 3
    assert counts(load(database, folder, scope=ours)) == (0, 0, 3, 0)


def test_an_unknown_tenant_is_told_before_anything_is_read(
    database: Database, write: Write
) -> None:
    """Nothing is recorded either."""
    folder = write({"wiki/guide.md": GUIDE})

    with pytest.raises(NotFound, match="tenant"):
        load(database, folder, scope=Scope.tenant(uuid4()))

    assert rows(database, "SELECT FROM import_runs") == []


def test_collections_are_apart(database: Database, write: Write) -> None:
    """The same file may be in two; pruning one leaves the other."""
    folder = write({"wiki/guide.md": GUIDE, "wiki/other.md": "# Other\n\nText.\n"})
    load(database, folder, collection="one")
    load(database, folder, collection="two")
    Path("wiki/guide.md").unlink()

    report = load(database, folder, collection="one", prune=True)

    assert report.pruned == 1
    found = rows(database, "SELECT collection, path FROM documents ORDER BY 1, 2")
    assert found == [("one", "wiki/other.md"), ("two", "wiki/guide.md"), ("two", "wiki/other.md")]


@pytest.mark.parametrize("name", ["", "  ", "x" * 256, "a\0b", "\ud800"])
def test_a_collection_that_cannot_be_stored_is_refused_at_once(
    database: Database, write: Write, name: str
) -> None:
    """Before any file is looked at."""
    with pytest.raises(InvalidValue, match="the collection"):
        load(database, write({"wiki/guide.md": GUIDE}), collection=name)


# Again


def test_an_unchanged_file_costs_nothing(
    database: Database, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not parsed; no row is written, and no job."""
    folder = write({"wiki/guide.md": GUIDE, "wiki/empty.md": ""})
    load(database, folder)
    run(database, "DELETE FROM jobs")
    before = rows(database, STATE)
    monkeypatch.setattr(importer, "read_document", None)

    report = load(database, folder)

    assert not report.failed
    assert counts(report) == (0, 0, 3, 0)
    assert report.unchanged_documents == 2
    assert rows(database, STATE) == before


def test_a_touched_file_is_unchanged(database: Database, write: Write) -> None:
    """The content counts, not the time."""
    folder = write({"wiki/guide.md": GUIDE})
    load(database, folder)
    os.utime("wiki/guide.md", (0, 0))

    assert load(database, folder).unchanged_documents == 1


def test_a_changed_section_enqueues_its_own_chunks_alone(database: Database, write: Write) -> None:
    """The others keep their keys and vectors; what is told of those behind it is their place."""
    folder = write({"wiki/guide.md": GUIDE, "wiki/other.md": "# Other\n\nText.\n"})
    load(database, folder)
    before = embed(database)
    run(database, "DELETE FROM jobs")
    write({"wiki/guide.md": GUIDE.replace("Run it.", "Run it twice.")})

    report = load(database, folder)

    assert counts(report) == (1, 1, 2, 1)
    assert list_unembedded(database) == ["Run it twice."]
    assert len(rows(database, JOBS)) == 1
    assert set(rows(database, VECTORS)) < set(before)


def test_identity_survives_moves_within_a_file(database: Database, write: Write) -> None:
    """Sections that change places, with a new one before them, embed only the new one."""
    folder = write({"wiki/guide.md": GUIDE})
    load(database, folder)
    embed(database)
    run(database, "DELETE FROM jobs")
    moved = "# Guide\n\nRead me first.\n\n## New\n\nNews.\n\n## Use\n\nAsk it.\n"
    moved += "\n## Install\n\nRun it.\n"
    write({"wiki/guide.md": moved})

    report = load(database, folder)

    assert counts(report) == (1, 2, 1, 0)
    assert list_unembedded(database) == ["News."]
    assert len(rows(database, JOBS)) == 1
    assert [row[1:4:2] for row in rows(database, CHUNKS)] == [
        (0, "Read me first."),
        (1, "News."),
        (2, "Ask it."),
        (3, "Run it."),
    ]


def test_other_limits_cut_anew(database: Database, write: Write) -> None:
    """Though no file has changed; and once cut so, nothing is done again."""
    folder = write({"wiki/long.md": "# Long\n\n" + "Words are many. " * 100})
    first = load(database, folder)

    second = load(database, folder, max_tokens=64, overlap_tokens=8)
    third = load(database, folder, max_tokens=64, overlap_tokens=8)

    assert first.total("added") == 1
    assert second.total("added") > 4
    assert second.deleted == 1
    assert counts(third) == (0, 0, second.total("added"), 0)


def test_a_file_that_has_become_empty_keeps_its_document_without_chunks(
    database: Database, write: Write
) -> None:
    """And one that is filled again gets them."""
    folder = write({"wiki/guide.md": GUIDE})
    load(database, folder)
    write({"wiki/guide.md": ""})

    assert counts(load(database, folder)) == (0, 0, 0, 3)
    assert rows(database, PATHS) == [("wiki/guide.md",)]
    write({"wiki/guide.md": GUIDE})
    assert counts(load(database, folder)) == (3, 0, 0, 0)


# What is gone


def test_a_deleted_file_disappears_only_when_pruned(database: Database, write: Write) -> None:
    """Until then the report counts it."""
    folder = write({"wiki/guide.md": GUIDE, "wiki/other.md": "# Other\n\nText.\n"})
    load(database, folder)
    Path("wiki/guide.md").unlink()

    kept = load(database, folder)
    assert (kept.missing, kept.pruned) == (1, 0)
    assert len(rows(database, PATHS)) == 2

    pruned = load(database, folder, prune=True)
    assert (pruned.missing, pruned.pruned) == (0, 1)
    assert rows(database, PATHS) == [("wiki/other.md",)]
    assert [row[0] for row in rows(database, CHUNKS)] == ["wiki/other.md"]


def test_only_documents_of_the_given_folders_are_pruned(database: Database, write: Write) -> None:
    """Not those beside, of names that begin alike, or that were added otherwise."""
    write({"wiki/a.md": "# A\n\nText.\n", "wiki2/b.md": "# B\n\nOther.\n"})
    load(database, "wiki", "wiki2")
    shutil.rmtree("wiki2")
    Path("wiki/a.md").unlink()
    write({"wiki/c.md": "# C\n\nThird.\n"})

    report = load(database, "wiki", prune=True)

    assert report.pruned == 1
    assert rows(database, PATHS) == [("wiki/c.md",), ("wiki2/b.md",)]


def test_the_working_directory_has_its_name_for_a_prefix(
    database: Database, write: Write, tmp_path: Path
) -> None:
    """So that pruning it deletes nothing that came from elsewhere."""
    write({"wiki/a.md": "# A\n\nText.\n", "b.md": "# B\n\nOther.\n"})
    load(database, "wiki")

    report = load(database, ".", prune=True)

    assert report.pruned == 0
    assert (f"{tmp_path.name}/b.md",) in rows(database, PATHS)


def test_what_cannot_be_looked_into_is_not_taken_for_gone(database: Database, write: Write) -> None:
    """A folder whose link is broken, a zip that is damaged: their documents stay."""
    with_zip = Path("wiki/all.zip")
    folder = write({"wiki/sub/a.md": "# A\n\nText.\n", "wiki/b.md": "# B\n\nOther.\n"})
    with zipfile.ZipFile(with_zip, "w") as archive:
        archive.writestr("c.md", "# C\n\nThird.\n")
    load(database, folder)
    shutil.rmtree("wiki/sub")
    Path("wiki/sub").symlink_to("nowhere")
    with_zip.write_bytes(b"PK\x03\x04 damaged")
    Path("wiki/b.md").unlink()

    report = load(database, folder, prune=True)

    assert report.failed
    assert report.pruned == 1
    assert rows(database, PATHS) == [("wiki/all.zip/c.md",), ("wiki/sub/a.md",)]


def test_an_empty_folder_is_an_error_and_prunes_nothing(database: Database, write: Write) -> None:
    """It may be where a disk is to be mounted."""
    folder = write({"wiki/a.md": "# A\n\nText.\n"})
    load(database, folder)
    Path("wiki/a.md").unlink()

    report = load(database, folder, prune=True)

    assert report.failed
    assert rows(database, PATHS) == [("wiki/a.md",)]


# Renames


def test_a_renamed_file_keeps_its_vectors_and_its_key(database: Database, write: Write) -> None:
    """No job is enqueued, and nothing is left at the old path."""
    folder = write({"wiki/guide.md": GUIDE, "wiki/other.md": "# Other\n\nText.\n"})
    load(database, folder)
    vectors = embed(database)
    keys = rows(database, "SELECT id FROM documents ORDER BY id")
    run(database, "DELETE FROM jobs")
    Path("wiki/guide.md").rename("wiki/manual.md")

    report = load(database, folder)

    assert (report.moved, report.missing) == (1, 0)
    assert counts(report) == (0, 0, 4, 0)
    assert rows(database, PATHS) == [("wiki/manual.md",), ("wiki/other.md",)]
    assert rows(database, "SELECT id FROM documents ORDER BY id") == keys
    assert rows(database, VECTORS) == vectors
    assert rows(database, JOBS) == []
    fresh = load(database, folder, collection="fresh")
    assert fresh.total("added") == 4
    names = "SELECT chunk_id FROM chunks WHERE collection = :of ORDER BY 1"
    assert rows(database, names, of="default") == rows(database, names, of="fresh")


def test_a_renamed_folder_keeps_all_vectors(database: Database, write: Write) -> None:
    """Equal files in it, too."""
    folder = write({f"wiki/old/{name}.md": GUIDE for name in "abc"} | {"wiki/x.md": "# X\n\nY.\n"})
    load(database, folder)
    vectors = embed(database)
    Path("wiki/old").rename("wiki/new")

    report = load(database, folder)

    assert report.moved == 3
    assert [row[0] for row in rows(database, PATHS)][:2] == ["wiki/new/a.md", "wiki/new/b.md"]
    assert rows(database, VECTORS) == vectors


def test_one_of_two_equal_files_is_renamed(database: Database, write: Write) -> None:
    """The other stays what it is."""
    folder = write({"wiki/a.md": GUIDE, "wiki/b.md": GUIDE})
    load(database, folder)
    vectors = embed(database)
    kept = rows(database, "SELECT id FROM documents WHERE path = 'wiki/b.md'")
    Path("wiki/a.md").rename("wiki/c.md")

    assert load(database, folder).moved == 1
    assert rows(database, PATHS) == [("wiki/b.md",), ("wiki/c.md",)]
    assert rows(database, "SELECT id FROM documents WHERE path = 'wiki/b.md'") == kept
    assert rows(database, VECTORS) == vectors


def test_files_that_change_places_keep_their_vectors(database: Database, write: Write) -> None:
    """Two, or three in a ring, with a section that all have."""
    texts = {name: f"# {name}\n\nOf {name}.\n\n# Same\n\nSame.\n" for name in "abc"}
    folder = write({f"wiki/{name}.md": said for name, said in texts.items()})
    load(database, folder)
    vectors = embed(database)
    write({f"wiki/{name}.md": texts[other] for name, other in zip("abc", "bca", strict=True)})

    report = load(database, folder)

    assert report.moved == 3
    assert counts(report) == (0, 0, 6, 0)
    assert rows(database, VECTORS) == vectors
    assert [row[3] for row in rows(database, CHUNKS)][::2] == ["Of b.", "Of c.", "Of a."]
    assert load(database, folder).unchanged_documents == 3


def test_a_file_that_replaces_another_takes_its_path(database: Database, write: Write) -> None:
    """The document that stood there is gone with its text; the one that came keeps its vectors."""
    folder = write({"wiki/a.md": GUIDE, "wiki/b.md": "# Other\n\nText.\n"})
    load(database, folder)
    embed(database)
    Path("wiki/a.md").replace("wiki/b.md")

    report = load(database, folder)

    assert report.moved == 1
    assert rows(database, PATHS) == [("wiki/b.md",)]
    assert list_unembedded(database) == []
    assert len(rows(database, VECTORS)) == 3


def test_a_renamed_file_that_was_edited_keeps_the_vectors_of_the_rest(
    database: Database, write: Write
) -> None:
    """And other files are edited in the same run."""
    folder = write({"wiki/a.md": GUIDE, "wiki/b.md": "# Other\n\nText.\n"})
    load(database, folder)
    embed(database)
    Path("wiki/a.md").unlink()
    write({"wiki/c.md": GUIDE.replace("Run it.", "Run."), "wiki/b.md": "# Other\n\nTexts.\n"})

    report = load(database, folder)

    assert (report.moved, report.missing) == (1, 0)
    assert rows(database, PATHS) == [("wiki/b.md",), ("wiki/c.md",)]
    assert list_unembedded(database) == ["Run.", "Texts."]


def test_a_new_file_is_not_taken_for_a_missing_one_that_says_something_else(
    database: Database, write: Write
) -> None:
    """A section that all files have is not enough."""
    folder = write({"wiki/a.md": GUIDE + "\n# License\n\nFree.\n"})
    load(database, folder)
    Path("wiki/a.md").unlink()
    write({"wiki/b.md": "# Other\n\nText.\n\n# License\n\nFree.\n"})

    report = load(database, folder)

    assert (report.moved, report.missing) == (0, 1)
    assert rows(database, PATHS) == [("wiki/a.md",), ("wiki/b.md",)]


def test_a_file_that_gets_another_suffix_is_read_as_that(database: Database, write: Write) -> None:
    """It is the same document."""
    folder = write({"wiki/a.md": "# A\n\nText.\n"})
    load(database, folder)
    Path("wiki/a.md").rename("wiki/a.txt")

    assert load(database, folder).moved == 1
    found = rows(database, "SELECT path, content_type, anchor FROM documents, chunks")
    assert found == [("wiki/a.txt", "text/plain", None)]


# What is refused


def test_broken_files_are_named_and_the_others_go_in(
    pgcorpus: Command, database: Database, write: Write
) -> None:
    """With reasons, and exit code 1."""
    write(
        {
            "wiki/good.md": GUIDE,
            "wiki/bad.md": b"caf\xe9 in another encoding",
            "wiki/nul.txt": b"a\0b",
            "wiki/bad.pdf": b"%PDF-1.7 and no more",
            "wiki/bad.ipynb": "{",
        }
    )

    done = pgcorpus("import", "documentation", "wiki")

    assert done.returncode == 1
    for name, reason in {
        "bad.md": "not UTF-8",
        "nul.txt": "NUL",
        "bad.pdf": "",
        "bad.ipynb": "JSON",
    }.items():
        assert any(f"wiki/{name}: " in line and reason in line for line in done.stderr.split("\n"))
    assert rows(database, PATHS) == [("wiki/good.md",)]
    recorded = rows(database, "SELECT count(*) FROM import_files WHERE error IS NOT NULL")
    assert recorded == [(4,)]


def test_a_file_that_has_become_unreadable_keeps_its_document(
    database: Database, write: Write
) -> None:
    """The file is there, so pruning spares it."""
    folder = write({"wiki/guide.md": GUIDE})
    load(database, folder)
    write({"wiki/guide.md": b"\xff"})

    report = load(database, folder, prune=True)

    assert report.failed
    assert len(rows(database, CHUNKS)) == 3


def test_a_file_that_the_database_refuses_leaves_the_others(
    database: Database, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its batch is divided until it is alone."""
    folder = write({f"wiki/{n}.md": f"# {n}\n\nText {n}.\n" for n in range(9)})
    draft = importer.Drafting.draft

    def break_one(self: Any, document: Any, **given: Any) -> Any:
        refused = {"word_count": -1} if given["path"] == "wiki/4.md" else {}
        return draft(self, document, **given, **refused)

    monkeypatch.setattr(importer.Drafting, "draft", break_one)
    report = load(database, folder)

    assert [each.file for each in report.files if each.error] == ["wiki/4.md"]
    assert len(rows(database, PATHS)) == 8


def test_the_same_path_twice_is_imported_once(database: Database, write: Write) -> None:
    """However it is named."""
    folder = write({"wiki/guide.md": GUIDE})

    report = load(database, folder, folder, folder / "guide.md", Path("wiki/../wiki/guide.md"))

    assert not report.failed
    assert (report.documents, counts(report)) == (1, (3, 0, 0, 0))


def test_two_files_of_one_path_in_the_collection_are_told(database: Database, write: Write) -> None:
    """Of folders elsewhere the name alone counts."""
    write({"one/wiki/a.md": "# A\n\nOne.\n", "two/wiki/a.md": "# A\n\nTwo.\n"})

    report = load(database, Path("one/wiki").resolve(), Path("two/wiki").resolve())

    (refused,) = (each for each in report.files if each.error)
    assert "its path in the collection is that of" in (refused.error or "")
    assert [row[3] for row in rows(database, CHUNKS)] == ["One."]


def test_no_administrator_imports_for_everybody(
    database: Database, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is told before any file is read, with what to do; a tenant's own go in."""
    folder = write({"wiki/guide.md": GUIDE})
    with database.unit_of_work() as work:
        tenant = Scope.tenant(work.tenancy.create_tenant("a").id)
        work.commit()
    with logged_in(database, "rag_read_write") as own:
        with monkeypatch.context() as patch:
            patch.setattr(importer, "find_roots", None)
            with pytest.raises(NotPermitted, match=r"rag_admin .*--tenant-id.* roles create-user"):
                load(own, folder)
        assert rows(database, "SELECT FROM import_runs") == []
        assert load(own, folder, scope=tenant).total("added") == 3


def test_the_refusal_is_readable_on_a_narrow_terminal(
    pgcorpus: Command, database: Database, write: Write
) -> None:
    """Nothing of the command to type is broken or lost."""
    write({"wiki/guide.md": GUIDE})
    with logged_in(database, "rag_read_write") as own:
        login = variables_of(own.settings)
        done = pgcorpus("import", "documentation", "wiki", COLUMNS="80", **login)

    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    assert "pgcorpus roles create-user NAME --role rag_admin" in done.stderr
    assert PASSWORD not in done.stderr


# Stopped, rehearsed, and at the same time


def test_a_stopped_import_is_finished_by_the_next(
    database: Database, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C after some batches: what is there is whole."""
    monkeypatch.setattr(importer, "BATCH", 4)
    folder = write({f"wiki/{n:02}.md": GUIDE + f"\n# {n}\n" for n in range(20)})

    def interrupt(done: int, total: int) -> None:
        if done > total / 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        DocumentationImporter(database).run([folder], interrupt)
    kept = rows(database, "SELECT count(*) FROM chunks GROUP BY document_id")
    report = load(database, folder)

    assert 0 < len(kept) < 20
    assert set(kept) == {(4,)}
    assert report.unchanged_documents == len(kept)
    assert len(rows(database, CHUNKS)) == 80


def test_a_killed_import_is_finished_by_the_next(database: Database, write: Write) -> None:
    """Kill -9 in the first load: documents are whole, and the indexes are built by the next."""
    folder = write({f"wiki/{n:03}.md": f"# {n}\n\n" + GUIDE * 40 for n in range(400)})
    indexes = "SELECT indexname FROM pg_indexes WHERE tablename = 'chunks' ORDER BY 1"
    before = rows(database, indexes)
    environment = os.environ | variables_of(database.settings)
    with subprocess.Popen(
        [PGCORPUS, "import", "documentation", folder],
        env=environment,
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    ) as process:
        while process.poll() is None and not rows(database, "SELECT FROM chunks LIMIT 1"):
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    kept = rows(database, "SELECT count(*) FROM chunks GROUP BY document_id")

    report = load(database, folder)

    assert 0 < len(kept) < 400
    assert len(set(kept)) == 1
    assert not report.failed
    assert report.unchanged_documents == len(kept)
    assert rows(database, indexes) == before


def test_a_dry_run_writes_nothing_and_reports_the_same(database: Database, write: Write) -> None:
    """A first run, and one with renames, edits and deletions."""
    folder = write({f"wiki/{name}.md": f"# {name}\n\nOf {name}.\n" for name in "abcd"})
    rehearsed = load(database, folder, dry_run=True)
    assert rows(database, PATHS) == rows(database, "SELECT FROM import_runs") == []
    assert counts(load(database, folder)) == counts(rehearsed) == (4, 0, 0, 0)
    Path("wiki/a.md").rename("wiki/e.md")
    Path("wiki/b.md").unlink()
    write({"wiki/c.md": "# c\n\nEdited.\n"})
    before = rows(database, STATE)

    rehearsed = load(database, folder, dry_run=True, prune=True)

    assert rows(database, STATE) == before
    report = load(database, folder, prune=True)
    assert counts(report) == counts(rehearsed) == (1, 0, 2, 1)
    assert (report.moved, report.pruned) == (rehearsed.moved, rehearsed.pruned) == (1, 1)


def test_two_imports_at_once_add_each_document_once(
    database: Database, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They take turns, batch by batch, also while files are renamed."""
    monkeypatch.setattr(importer, "BATCH", 10)
    folder = write({f"wiki/{n:03}.md": f"# {n}\n\nOf {n}.\n" for n in range(60)})

    def load_twice() -> list[DocumentationReport]:
        reports: list[DocumentationReport] = []

        def once() -> None:
            own = Database(database.settings)
            reports.append(load(own, folder))
            own.close()

        threads = [threading.Thread(target=once) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return reports

    first = load_twice()
    Path("wiki").rename("old")
    Path("wiki").mkdir()
    Path("old").rename("wiki/new")
    second = load_twice()

    assert sum(each.total("added") for each in first) == 60
    assert sum(each.total("added") for each in second) == 0
    assert not any(each.failed for each in (*first, *second))
    assert [row[0] for row in rows(database, PATHS)] == [f"wiki/new/{n:03}.md" for n in range(60)]


def test_a_first_load_leaves_the_indexes_as_they_were(
    database: Database, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is made without them, and they are built at its end, with what ANALYZE keeps of each."""
    monkeypatch.setattr(importer, "BULK_BYTES", 1)
    folder = write({"wiki/guide.md": GUIDE})
    indexes = """
        SELECT pg_get_indexdef(indexrelid), attstattarget
        FROM pg_index JOIN pg_attribute ON attrelid = indexrelid AND attnum = 1
        WHERE indrelid = 'chunks'::regclass ORDER BY 1
    """
    before = rows(database, indexes)
    built: list[bool] = []

    report = DocumentationImporter(database).run([folder], on_build=lambda: built.append(True))

    assert report.total("added") == 3
    assert rows(database, indexes) == before
    assert built == [True]
    load(database, folder, collection="second")
    assert rows(database, indexes) == before


# What the command shows


def test_a_large_import_is_shown_in_few_lines(pgcorpus: Command, write: Write) -> None:
    """The files with most changes, and a line for the rest; as JSON all."""
    files: dict[str, str | bytes] = {
        f"wiki/{n:03}.md": "".join(f"# {n} {m}\n\nText.\n\n" for m in range(1 + n % 7))
        for n in range(60)
    }
    files |= {f"wiki/{n}.png": b"\x89PNG" for n in range(3)} | {"wiki/Makefile": "all:\n"}
    write(files)

    shown = pgcorpus("import", "documentation", "wiki")
    listed = pgcorpus("import", "documentation", "wiki", "--json")

    assert shown.returncode == 0
    assert len(shown.stdout.splitlines()) < 40
    assert "40 others" in shown.stdout
    assert "006.md" in shown.stdout
    assert "skipped files of other formats: 4 (.png, without a suffix)" in shown.stderr
    assert len(json.loads(listed.stdout)["files"]) == 60
    assert json.loads(listed.stdout)["other_formats"] == {".png": 3, "without a suffix": 1}


def test_errors_are_shown_up_to_a_bound(pgcorpus: Command, write: Write) -> None:
    """Each in full, and a line for the rest."""
    write({f"wiki/{n:03}.md": b"\xff" for n in range(80)})

    done = pgcorpus("import", "documentation", "wiki")

    assert done.returncode == 1
    assert done.stderr.count("is not UTF-8") == 50
    assert "and 30 more files that could not be imported" in done.stderr


def test_a_tenant_is_named_by_its_key(pgcorpus: Command, database: Database, write: Write) -> None:
    """With --tenant-id, as everywhere."""
    write({"wiki/guide.md": GUIDE})
    with database.unit_of_work() as work:
        tenant: UUID = work.tenancy.create_tenant("a").id
        work.commit()

    done = pgcorpus("import", "documentation", "wiki", "--tenant-id", str(tenant))

    assert done.returncode == 0, done.stderr
    assert rows(database, PATHS, Scope.tenant(tenant)) == [("wiki/guide.md",)]
    assert rows(database, PATHS) == []
