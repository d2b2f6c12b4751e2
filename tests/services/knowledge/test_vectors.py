"""Vectors that come along are checked whole, then stored with the chunks they are of."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pytest
from sqlalchemy import text

from pgcorpus.db.engine import Database
from pgcorpus.db.errors import ImportFailed, UnknownModel
from pgcorpus.services.choices import OnConflict
from pgcorpus.services.knowledge.importer import KnowledgeImporter
from pgcorpus.services.knowledge.vectors import OTHER_TEXT
from tests.command import PGCORPUS
from tests.factories import axis
from tests.pooler import variables_of

CONTENTS = {"a": "The first text.", "b": "The second text.", "c": "a b c d"}


@pytest.fixture
def chunks(tmp_path: Path) -> Path:
    """A file of three chunks, of which the last is rejected."""
    file = tmp_path / "chunks.json"
    file.write_text(
        json.dumps([{"chunk_id": key, "content": content} for key, content in CONTENTS.items()])
    )
    return file


@pytest.fixture
def short(database: Database) -> Database:
    """A database with a model of four dimensions."""
    with database.unit_of_work() as work:
        work.models.add_model("short", dimensions=4, provider="hashing")
        work.commit()
    return database


def as_json(tmp_path: Path, *entries: Any) -> Path:
    """A file of vectors."""
    file = tmp_path / "vectors" / "vectors.json"
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(entries))
    return file


def entry(key: str, vector: Any = (0, 1, 0, 0), **more: Any) -> dict[str, Any]:
    """One vector of the short model."""
    return {"chunk_id": key, "model_name": "short", "embedding": vector} | more


def as_npy(tmp_path: Path, rows: Any) -> Path:
    """A file of vectors in the order of the chunks."""
    file = tmp_path / "vectors.npy"
    np.save(file, rows)
    return file


def list_stored(database: Database) -> dict[str, list[float]]:
    """List the vectors in the database, by the chunk."""
    with database.engine.connect() as connection:
        found = connection.execute(
            text(
                "SELECT chunk_id, embedding::real[] FROM chunk_embeddings"
                " JOIN framework_documents ON document_id = framework_documents.id"
            )
        )
        return {row.chunk_id: row.embedding for row in found}


def test_vectors_come_along_as_json(short: Database, tmp_path: Path, chunks: Path) -> None:
    """By the author's identifier, under either name; a rejected chunk's vector is left out."""
    vectors = as_json(
        tmp_path, entry("b"), {"document_id": "a"} | entry("a", [1, 0, 0, 0.5]), entry("c")
    )

    report = KnowledgeImporter(short, embeddings=vectors).run([chunks])

    assert report.embedded == 2
    assert report.left_out == {OTHER_TEXT: 1}
    assert list_stored(short) == {"a": [1, 0, 0, 0.5], "b": [0, 1, 0, 0]}


def test_vectors_of_stored_chunks_need_no_chunks(
    short: Database, tmp_path: Path, chunks: Path
) -> None:
    """The database's own key names a chunk too."""
    KnowledgeImporter(short).run([chunks])
    with short.unit_of_work() as work:
        key = str(work.knowledge.get("b").id)
    vectors = as_json(
        tmp_path, {"document_id": key, "model_name": "short", "embedding": [1, 0, 0, 0]}
    )

    report = KnowledgeImporter(short, embeddings=vectors).run([])

    assert report.embedded == 1
    assert list_stored(short) == {"b": [1, 0, 0, 0]}


@pytest.mark.parametrize("vector", [[1, 0, 0, 0.5], "[1,0,0,0.5]"])
def test_vectors_of_the_old_backup_come_along(
    short: Database, tmp_path: Path, vector: list[float] | str
) -> None:
    """Their document_id is the old key of a chunk, which only the other table of the backup has."""
    old = {key: str(uuid4()) for key in "ab"}
    backup = tmp_path / "vectors"
    backup.mkdir()
    documents = backup / "framework_documents.json"
    documents.write_text(
        json.dumps([{"id": old[key], "chunk_id": key, "content": CONTENTS[key]} for key in "ab"])
    )
    vectors = as_json(
        tmp_path,
        {"id": str(uuid4()), "document_id": old["a"], "embedding_data": vector}
        | {"model_name": "short", "created_at": "2024-01-01T00:00:00"},
        {"document_id": old["b"], "embedding_data": [0, 1, 0, 0], "model_name": "short"},
    )

    report = KnowledgeImporter(short, embeddings=vectors).run([documents])

    assert (report.embedded, report.left_out) == (2, {})
    assert list_stored(short) == {"a": [1, 0, 0, 0.5], "b": [0, 1, 0, 0]}


def test_vectors_of_a_backup_need_its_chunks_beside_them(
    short: Database, tmp_path: Path, chunks: Path
) -> None:
    """Without them nothing says which chunk a vector is of; a broken file says nothing, either."""
    vectors = as_json(
        tmp_path,
        {"document_id": str(uuid4()), "embedding_data": [0, 1, 0, 0], "model_name": "short"},
    )
    with pytest.raises(ImportFailed, match=r"framework_documents\.json, which must lie beside"):
        KnowledgeImporter(short, embeddings=vectors).run([chunks])

    vectors.with_name("framework_documents.json").write_text("[{")
    with pytest.raises(ImportFailed, match=r"framework_documents\.json.* not JSON"):
        KnowledgeImporter(short, embeddings=vectors).run([chunks])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_vectors_come_along_in_the_order_of_the_chunks(
    short: Database, tmp_path: Path, chunks: Path, dtype: type
) -> None:
    """One row per chunk, those of rejected chunks included."""
    vectors = as_npy(tmp_path, np.stack([axis(0), axis(1), axis(2)]).astype(dtype))

    importer = KnowledgeImporter(short, embeddings=vectors, embeddings_model="short")
    report = importer.run([chunks])

    assert report.embedded == 2
    assert list_stored(short) == {"a": [1, 0, 0, 0], "b": [0, 1, 0, 0]}


def test_a_vector_of_another_text_is_not_stored(short: Database, tmp_path: Path) -> None:
    """A chunk that lost against the stored one takes its vector with it."""
    for name, content in (("one", "The first text."), ("two", "Another text.")):
        (tmp_path / f"{name}.json").write_text(json.dumps([{"chunk_id": "a", "content": content}]))
    KnowledgeImporter(short).run([tmp_path / "one.json"])
    vectors = as_npy(tmp_path, axis(1)[None])

    report = KnowledgeImporter(
        short, on_conflict="keep", embeddings=vectors, embeddings_model="short"
    ).run([tmp_path / "two.json"])

    assert report.total("unchanged") == 1
    assert report.embedded == 0
    assert list_stored(short) == {}


@pytest.mark.parametrize("on_conflict", ["reject", "keep"])
@pytest.mark.parametrize("content", ["Another text.", "a b c d"])
def test_a_keyed_vector_of_another_text_is_not_stored(
    short: Database, tmp_path: Path, chunks: Path, on_conflict: OnConflict, content: str
) -> None:
    """By either key; a chunk that did not come in this import gets its vector."""
    KnowledgeImporter(short).run([chunks])
    (tmp_path / "two.json").write_text(json.dumps([{"chunk_id": "a", "content": content}]))
    with short.unit_of_work() as work:
        key = str(work.knowledge.get("a").id)
    vectors = as_json(tmp_path, entry("a"), entry(key), entry("b"))

    report = KnowledgeImporter(short, on_conflict=on_conflict, embeddings=vectors).run(
        [tmp_path / "two.json"]
    )

    assert (report.embedded, report.left_out) == (1, {OTHER_TEXT: 2})
    assert "left_out" not in report.as_json()
    assert list_stored(short) == {"b": [0, 1, 0, 0]}


def test_the_command_says_which_vectors_were_left_out(
    short: Database, tmp_path: Path, chunks: Path
) -> None:
    """On stderr, so that what scripts read keeps its shape."""
    vectors = as_json(tmp_path, entry("a"), entry("c"))

    done = subprocess.run(
        [PGCORPUS, "import", "knowledge", "--json", "--embeddings", vectors, chunks],
        check=False,
        capture_output=True,
        text=True,
        env=variables_of(short.settings) | {"PATH": os.environ["PATH"], "HOME": str(tmp_path)},
        cwd=tmp_path,
        timeout=120,
    )

    assert "left_out" not in json.loads(done.stdout)
    assert f"1 vector was not stored: {OTHER_TEXT}" in " ".join(done.stderr.split())


def test_a_keyed_vector_of_two_texts_is_not_stored(short: Database, tmp_path: Path) -> None:
    """Nobody can tell which of them it is of."""
    file = tmp_path / "chunks.json"
    file.write_text(json.dumps([{"chunk_id": "a", "content": text} for text in CONTENTS.values()]))

    report = KnowledgeImporter(short, embeddings=as_json(tmp_path, entry("a"))).run([file])

    assert report.total("added") == 1
    assert (report.embedded, report.left_out) == (0, {OTHER_TEXT: 1})
    assert list_stored(short) == {}


def test_an_identifier_in_metadata_is_found(short: Database, tmp_path: Path) -> None:
    """It is taken from where the importer takes it, and as it stores it."""
    file = tmp_path / "chunks.json"
    file.write_text(
        json.dumps(
            [
                {"metadata": {"chunk_id": "a"}, "content": "The first text."},
                {"chunk_id": "b\0", "content": "The second text."},
            ]
        )
    )

    report = KnowledgeImporter(short, embeddings=as_json(tmp_path, entry("a"), entry("b"))).run(
        [file]
    )

    assert report.embedded == 2


def test_the_spread_of_imported_vectors_is_measured(
    short: Database, tmp_path: Path, chunks: Path
) -> None:
    """With the 64th, whoever brought them: else ranking would depend on who ran embed."""
    found = json.loads(chunks.read_text())
    few = len(found)
    found += [{"chunk_id": f"c{n}", "content": f"The text number {n}."} for n in range(64)]
    rows = np.random.default_rng(1).normal(size=(len(found), 4)).astype(np.float32)

    def spread() -> float | None:
        with short.unit_of_work() as work:
            return work.models.get_model("short").cosine_spread

    for count, dry_run in ((few, False), (len(found), True)):
        chunks.write_text(json.dumps(found[:count]))
        vectors = as_npy(tmp_path, rows[:count])
        KnowledgeImporter(short, embeddings=vectors, embeddings_model="short", dry_run=dry_run).run(
            [chunks]
        )
        assert spread() is None

    KnowledgeImporter(short, embeddings=vectors, embeddings_model="short").run([chunks])

    assert spread() == pytest.approx(0.5, abs=0.1)


def test_a_dry_run_stores_no_vectors(short: Database, tmp_path: Path, chunks: Path) -> None:
    """It only counts them."""
    vectors = as_json(tmp_path, entry("a"))

    report = KnowledgeImporter(short, dry_run=True, embeddings=vectors).run([chunks])

    assert report.embedded == 1
    assert list_stored(short) == {}


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([], "the list of vectors is empty"),
        ([5], "vector 0: it is not an object"),
        ([entry("a"), {"chunk_id": "b"}], "vector 1: it needs"),
        ([entry("a", None)], "no 'embedding'"),
        ([entry("a", ["1", "2", "3", "4"])], "not a list of numbers"),
        ([entry("a", [[1], [2, 3]])], "not a list of numbers"),
        ([entry("a", "[1, 2")], "its 'embedding' is not JSON"),
        ([entry("a", "0.5")], "no 'embedding'"),
        ([entry("a", [1, 2])], "4 dimensions"),
        ([entry("a"), entry("b", [1])], "different lengths"),
        ([entry("a", [0, 0, 0, 0])], "all zeros"),
        ([entry("a", [1e300, 0, 0, 0])], "NaN or infinity"),
        ([entry("a"), entry("a")], "second vector of short for 'a'"),
        ([entry("nobody")], "no chunk 'nobody'"),
    ],
)
def test_unusable_vectors_stop_the_import_before_it_begins(
    short: Database, tmp_path: Path, chunks: Path, entries: list[Any], message: str
) -> None:
    """Nothing is written, neither vectors nor chunks."""
    importer = KnowledgeImporter(short, embeddings=as_json(tmp_path, *entries))

    with pytest.raises(ImportFailed, match=message):
        importer.run([chunks])

    with short.unit_of_work() as work:
        assert work.knowledge.count() == 0
        assert work.imports.list_runs("knowledge") == []


def test_a_model_must_be_registered(short: Database, tmp_path: Path, chunks: Path) -> None:
    """Its name is asked for before anything is written."""
    importer = KnowledgeImporter(
        short, embeddings=as_json(tmp_path, entry("a", model_name="nobody's"))
    )

    with pytest.raises(UnknownModel, match="nobody's"):
        importer.run([chunks])


@pytest.mark.parametrize(
    ("rows", "model", "message"),
    [
        (np.ones((2, 4)), "short", "2 vectors and 3 chunks"),
        (np.ones((3, 4)), None, "name the model"),
        (np.ones((3, 5)), "short", "4 dimensions"),
        (np.full((3, 4), np.nan), "short", "NaN"),
        (np.ones(3), "short", "vectors are a table"),
        (np.ones((3, 4), dtype=int), "short", "must be float16, float32, float64"),
        (np.array([[{}]]), "short", "holds object"),
    ],
)
def test_unusable_arrays_stop_the_import_before_it_begins(  # noqa: PLR0917 - pytest's
    short: Database,
    tmp_path: Path,
    chunks: Path,
    rows: np.ndarray,
    model: str | None,
    message: str,
) -> None:
    """Pickled objects are never loaded."""
    importer = KnowledgeImporter(short, embeddings=as_npy(tmp_path, rows), embeddings_model=model)

    with pytest.raises(ImportFailed, match=message):
        importer.run([chunks])

    with short.unit_of_work() as work:
        assert work.knowledge.count() == 0


HEADER = "{{'descr': '<f4', 'fortran_order': False, 'shape': {}}}"


@pytest.mark.parametrize(
    "header",
    [
        HEADER.format("(-3, 4)"),
        HEADER.format("(3, 2**63)"),
        HEADER.format(f"(3, {2**63})"),
        HEADER.format(f"({2**63}, 4)"),
        HEADER.format("(1000000000000, 4)"),
        "(" * 9000,
        "{'descr': '|O', 'fortran_order': False, 'shape': (3, 4)}",
    ],
)
def test_a_hostile_array_is_a_reason_and_not_a_trace(
    short: Database, tmp_path: Path, chunks: Path, header: str
) -> None:
    """The reader is that of all importers; nothing is imported before it is content."""
    file = tmp_path / "vectors.npy"
    encoded = header.encode()
    file.write_bytes(b"\x93NUMPY\x01\x00" + len(encoded).to_bytes(2, "little") + encoded)

    with pytest.raises(ImportFailed, match=r"vectors\.npy"):
        KnowledgeImporter(short, embeddings=file, embeddings_model="short").run([chunks])
    with short.unit_of_work() as work:
        assert work.knowledge.count() == 0


@pytest.mark.parametrize("text", ["\\ud800", "\\u0000", "a\\udfff"])
@pytest.mark.parametrize("key", ["chunk_id", "document_id", "model_name"])
def test_text_that_no_database_holds_is_refused_in_vectors(
    short: Database, tmp_path: Path, chunks: Path, key: str, text: str
) -> None:
    """Lone surrogates and NUL, which JSON can escape."""
    given = {"chunk_id": "a", "model_name": "short", "embedding": [0, 1, 0, 0]}
    if key == "document_id":
        del given["chunk_id"]
    file = as_json(tmp_path, given | {key: "*"})
    file.write_text(file.read_text().replace("*", text))

    with pytest.raises(ImportFailed, match=r"vector 0: .* half of a surrogate pair"):
        KnowledgeImporter(short, embeddings=file).run([chunks])


@pytest.mark.parametrize("name", ["pipe.npy", "pipe.json"])
def test_vectors_are_not_read_from_a_pipe(database: Database, tmp_path: Path, name: str) -> None:
    """Nobody might ever write into it."""
    os.mkfifo(tmp_path / name)
    importer = KnowledgeImporter(database, embeddings=tmp_path / name, embeddings_model="hashing")

    with pytest.raises(ImportFailed, match=rf"{name}.* a pipe or a device"):
        importer.run([])


@pytest.mark.parametrize("name", ["missing.npy", "missing.json"])
def test_a_file_of_vectors_must_be_there(database: Database, tmp_path: Path, name: str) -> None:
    """The message names it."""
    importer = KnowledgeImporter(database, embeddings=tmp_path / name, embeddings_model="hashing")

    with pytest.raises(ImportFailed, match=name):
        importer.run([])
