"""Exports of memories: files of the system before, from which nothing is lost on the way back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sqlalchemy import text

from pgcorpus.db.engine import Database
from pgcorpus.db.errors import DataLayerError, Misuse, NotFound
from pgcorpus.db.scope import Scope
from pgcorpus.services.memory.exporting import exporter as module
from pgcorpus.services.memory.exporting.exporter import MemoryExporter
from pgcorpus.services.memory.importing.importer import MemoryImporter
from tests.logins import logged_in
from tests.services.memory.importing.test_importer import (
    Folder,
    a_node,
    a_tenant,
    an_episode,
    vectors,
)

KEYS = {"key", "scope", "tenant_id", "user_id", "id", "node_key", "episode_key"}
OF_THE_RUN = {"created_at", "updated_at"}
STATEMENTS = {
    "nodes": "SELECT to_jsonb(t) || jsonb_build_object('name', id) FROM memory_nodes t ORDER BY id",
    "episodes": "SELECT to_jsonb(t) || jsonb_build_object('name', id) FROM episodic_memories t "
    "ORDER BY id",
    "vectors": "SELECT to_jsonb(t) || jsonb_build_object('name', n.id) FROM memory_embeddings t "
    "JOIN memory_nodes n ON n.scope = t.scope AND key = node_key ORDER BY n.id",
    "episode_vectors": "SELECT to_jsonb(t) || jsonb_build_object('name', n.id) "
    "FROM episode_embeddings t JOIN episodic_memories n "
    "ON n.scope = t.scope AND key = episode_key ORDER BY n.id",
}


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    """A folder of the system before: values of every kind, and vectors but for one."""
    rows = vectors(4)
    rows[2] = 0
    nodes = [
        a_node(
            number,
            tags={"domains": ["prices"], "x": [1.5, None, "ü"]},
            cluster_confidence=0.1 + 0.2,
            last_accessed="2025-05-05T00:00:00.123456+02:00",
            mood={"calm": True},
            language="german" if number else None,
        )
        for number in range(4)
    ]
    episodes = [
        an_episode(
            number,
            duration_minutes=7.25,
            emotional_arc="up → down",
            memory_node_ids=["mem_1"],
            weather="fair",
            messages=[{"role": "user", "content": "line\n\u2028two", "n": 1}],
        )
        for number in range(2)
    ]
    return Folder(tmp_path / "data").nodes(nodes, rows).episodes(episodes, vectors(2, seed=1))


def read_rows(database: Database, scope: Scope) -> dict[str, list[Any]]:
    """All that a scope has, without keys and times of the run; by what stays of it."""
    with database.unit_of_work() as work:
        work.enter(scope)
        found = {
            name: list(work.session.scalars(text(statement)))
            for name, statement in STATEMENTS.items()
        }
    for name, rows in found.items():
        left_out = KEYS | (OF_THE_RUN if "vectors" in name else set())
        found[name] = [{k: v for k, v in row.items() if k not in left_out} for row in rows]
    return found


def read_files(path: Path) -> dict[str, bytes]:
    """All files of a folder."""
    return {
        str(each.relative_to(path)): each.read_bytes() for each in path.rglob("*") if each.is_file()
    }


def test_import_export_import_is_identical(
    database: Database, folder: Folder, tmp_path: Path
) -> None:
    """Every column, every vector and every byte of the second export."""
    ours, theirs = a_tenant(database, "ours"), a_tenant(database, "theirs")
    MemoryImporter(database, ours).run([folder.path])

    written = MemoryExporter(database, ours).write(tmp_path / "one")
    report = MemoryImporter(database, theirs).run([tmp_path / "one"])
    MemoryExporter(database, theirs).write(tmp_path / "two")

    assert written.count_rows() == {"memories": 4, "episodes": 2, "vectors": 5}
    assert (report.total("added"), report.total("transformed"), report.failed) == (6, 1, False)
    assert report.left_out == {"one is all zeros and has no direction": 1}
    assert read_rows(database, theirs) == read_rows(database, ours)
    first = read_files(tmp_path / "one")
    assert first.keys() == {
        f"{kind}/{name}" for kind, names in {
            "corpus": ("nodes.json", "episodes.json"), "vectors": ("nodes.npy", "episodes.npy"),
        }.items() for name in names
    }  # fmt: skip
    assert read_files(tmp_path / "two") == first


def test_an_export_has_what_the_file_had(
    database: Database, folder: Folder, tmp_path: Path
) -> None:
    """Under the names of the system before, and no field that it does not know."""
    scope = a_tenant(database, "ours")
    MemoryImporter(database, scope).run([folder.path])

    MemoryExporter(database, scope).write(tmp_path / "one")

    given = json.loads((folder.path / "corpus" / "nodes.json").read_text())[0]
    (found,) = [
        each
        for each in json.loads((tmp_path / "one" / "corpus" / "nodes.json").read_text())
        if each["id"] == given["id"]
    ]
    times = {"created_at", "last_accessed", "language"}
    assert {name: found[name] for name in given if name not in times} == {
        name: value for name, value in given.items() if name not in times
    }
    assert "language" not in found
    assert "duplicate_of" not in found
    assert "scope" not in found
    rows = np.load(tmp_path / "one" / "vectors" / "nodes.npy", allow_pickle=False)
    assert sorted(map(tuple, rows)) == sorted(
        map(tuple, np.load(folder.path / "vectors" / "nodes.npy"))
    )


def test_links_between_duplicates_come_back(
    database: Database, folder: Folder, tmp_path: Path
) -> None:
    """They were made here; the system before ignores what it does not know."""
    ours, theirs = a_tenant(database, "ours"), a_tenant(database, "theirs")
    MemoryImporter(database, ours).run([folder.path])
    link = text("UPDATE memory_nodes SET duplicate_of = :original WHERE id = :id")
    with database.unit_of_work() as work:
        work.enter(ours)
        work.session.execute(link, {"original": a_node(0)["id"], "id": a_node(1)["id"]})
        work.commit()

    MemoryExporter(database, ours).write(tmp_path / "one")
    MemoryImporter(database, theirs).run([tmp_path / "one"])
    again = MemoryImporter(database, ours, on_conflict="update").run([folder.path])

    assert read_rows(database, theirs) == read_rows(database, ours)
    assert again.total("updated") == 0


def test_files_that_are_there_stay_unless_they_may_be_replaced(
    database: Database, folder: Folder, tmp_path: Path
) -> None:
    """Others in the folder always do; what the new export has not is not left from the old."""
    scope = a_tenant(database, "ours")
    MemoryImporter(database, scope).run([folder.path])
    target = tmp_path / "one"
    MemoryExporter(database, scope).write(target)
    (target / "notes.txt").write_text("mine")
    before = read_files(target)

    with pytest.raises(Misuse, match=r"nodes\.json already.*--replace"):
        MemoryExporter(database, scope).write(target)
    assert read_files(target) == before

    exporter = MemoryExporter(database, scope, embeddings_model="hashing", replace=True)
    assert exporter.write(target).vectors == 0
    assert read_files(target).keys() == {"notes.txt", "corpus/nodes.json", "corpus/episodes.json"}


def test_a_failed_export_leaves_nothing(
    database: Database, folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither half a file nor an empty folder."""
    scope = a_tenant(database, "ours")
    MemoryImporter(database, scope).run([folder.path])

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "_as_json", fail)
    with pytest.raises(DataLayerError, match="cannot be written: No space left on device"):
        MemoryExporter(database, scope).write(tmp_path / "one")
    assert not (tmp_path / "one").exists()


def test_nothing_is_no_export(database: Database, tmp_path: Path) -> None:
    """Nor is anything of somebody else's."""
    with pytest.raises(NotFound, match="nothing is remembered"):
        MemoryExporter(database, a_tenant(database, "ours")).write(tmp_path / "one")
    assert not (tmp_path / "one").exists()


def test_a_login_that_only_reads_exports_its_scope_alone(
    database: Database, folder: Folder, tmp_path: Path
) -> None:
    """Row security holds for an export, too."""
    ours, theirs = a_tenant(database, "ours"), a_tenant(database, "theirs")
    MemoryImporter(database, ours).run([folder.path])
    other = Folder(tmp_path / "other").nodes([a_node(9)], vectors(1))
    MemoryImporter(database, theirs).run([other.path])

    with logged_in(database, "rag_read_only") as login:
        written = MemoryExporter(login, theirs).write(tmp_path / "one")

    assert written.count_rows() == {"memories": 1, "episodes": 0, "vectors": 1}
    (found,) = json.loads((tmp_path / "one" / "corpus" / "nodes.json").read_text())
    assert found["id"] == a_node(9)["id"]
