"""Files of vectors are believed nothing before it is checked."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.lib import format as npy

from pgcorpus.db.errors import ImportFailed
from pgcorpus.services.importers import vectors as module
from pgcorpus.services.importers.vectors import check_vectors, map_vectors

DIMENSIONS = 8


def map_file(path: Path) -> np.ndarray:
    """Map a file as that of a model of few dimensions."""
    return map_vectors(path, dimensions=DIMENSIONS, model_name="test-model")


def save(path: Path, vectors: np.ndarray) -> Path:
    """Save vectors as NumPy does."""
    np.save(path, vectors)
    return path


def with_header(path: Path, header: str, body: bytes = b"", version: int = 1) -> Path:
    """A file with a header of one's own."""
    text = header.encode("latin1") + b"\n"
    length = len(text).to_bytes(2 if version == 1 else 4, "little")
    path.write_bytes(b"\x93NUMPY" + bytes([version, 0]) + length + text + body)
    return path


def test_vectors_are_mapped_and_not_read(tmp_path: Path) -> None:
    """As they were saved, for reading alone."""
    given = np.random.default_rng(0).standard_normal((5, DIMENSIONS), dtype=np.float32)

    found = map_file(save(tmp_path / "a.npy", given))

    assert isinstance(found, np.memmap)
    assert np.array_equal(found, given)
    assert not found.flags.writeable


@pytest.mark.parametrize("version", [(1, 0), (2, 0)])
def test_both_versions_of_the_format_are_read(tmp_path: Path, version: tuple[int, int]) -> None:
    """Whichever NumPy wrote."""
    path = tmp_path / "a.npy"
    given = np.ones((2, DIMENSIONS), np.float32)
    with path.open("wb") as file:
        npy.write_array(file, given, version=version)

    assert np.array_equal(map_file(path), given)


def test_the_order_of_bytes_is_the_files(tmp_path: Path) -> None:
    """Float32 of a machine of the other kind is float32."""
    given = np.arange(DIMENSIONS, dtype=">f4").reshape(1, DIMENSIONS)

    assert map_file(save(tmp_path / "a.npy", given)).tolist() == [list(range(DIMENSIONS))]


def test_no_vectors_are_vectors(tmp_path: Path) -> None:
    """Of an empty corpus."""
    path = save(tmp_path / "a.npy", np.empty((0, DIMENSIONS), np.float32))

    assert map_file(path).shape == (0, DIMENSIONS)


@pytest.mark.parametrize(
    ("vectors", "said"),
    [
        (np.ones((2, DIMENSIONS)), "must be float32"),
        (np.ones((2, DIMENSIONS), np.float16), "must be float32"),
        (np.ones((2, DIMENSIONS), np.int32), "must be float32"),
        (np.asfortranarray(np.ones((2, DIMENSIONS), np.float32)), "Fortran order"),
        (np.ones(DIMENSIONS, np.float32), "has shape"),
        (np.ones((1, 2, DIMENSIONS), np.float32), "has shape"),
        (np.ones((2, 3), np.float32), "vectors of 3 dimensions"),
        (np.ones((2, 0), np.float32), "vectors of 0 dimensions"),
    ],
)
def test_another_array_is_refused(tmp_path: Path, vectors: np.ndarray, said: str) -> None:
    """The error says what it is, and what it must be."""
    with pytest.raises(ImportFailed, match=said):
        map_file(save(tmp_path / "a.npy", vectors))


def test_python_objects_are_never_unpickled(tmp_path: Path) -> None:
    """They could run anything."""
    path = tmp_path / "a.npy"
    np.save(path, np.array([[print] * DIMENSIONS], dtype=object), allow_pickle=True)

    with pytest.raises(ImportFailed, match="must be float32") as raised:
        map_file(path)
    assert "a program and is never loaded" in str(raised.value)
    assert "astype" not in str(raised.value)  # to follow that, one would have to unpickle it


SHAPE = "{{'descr': '<f4', 'fortran_order': False, 'shape': {}}}"


@pytest.mark.parametrize(
    "shape",
    [
        "(2, 8)",
        "(1000000000000, 8)",
        "(99999999999999999999999999, 8)",
        "(-1, 8)",
        "(True, 8)",
        "(1.0, 8)",
        "('a', 8)",
    ],
)
def test_a_shape_that_the_file_does_not_have_is_refused(tmp_path: Path, shape: str) -> None:
    """Before anything is mapped, whatever is claimed."""
    path = with_header(tmp_path / "a.npy", SHAPE.format(shape), b"\0" * 31)

    with pytest.raises(ImportFailed, match=r"a\.npy"):
        map_file(path)


@pytest.mark.parametrize("change", [lambda body: body[:-1], lambda body: body + b"\0"])
def test_a_file_that_is_cut_or_has_more_is_refused(
    tmp_path: Path, change: Callable[[bytes], bytes]
) -> None:
    """Both numbers of bytes are told."""
    path = save(tmp_path / "a.npy", np.ones((3, DIMENSIONS), np.float32))
    path.write_bytes(change(path.read_bytes()))

    with pytest.raises(ImportFailed, match=r"takes 96 bytes, but 9[57] follow"):
        map_file(path)


@pytest.mark.parametrize(
    "header",
    [
        "",
        "1",
        "{}",
        "{'descr': '<f4'}",
        "__import__('os').system('true')",
        "{'descr': 'nothing', 'fortran_order': False, 'shape': (1, 8)}",
        "{'descr': [('a', 7)], 'fortran_order': False, 'shape': (1, 8)}",
        "{'descr': '<f4', 'fortran_order': 'no', 'shape': (1, 8)}",
        "(" * 5000,
        "-" * 9000 + "1",
        "[" * 4000 + "]" * 4000,
        "{'descr': '<f4', 'fortran_order': False, 'shape': (1, 8)}" + " " * 20_000,
        "'\\d'",
    ],
)
@pytest.mark.parametrize("version", [1, 2])
def test_a_hostile_header_is_no_more_than_an_error(
    tmp_path: Path, header: str, version: int
) -> None:
    """No trace, no warning, no program that runs."""
    path = with_header(tmp_path / "a.npy", header, b"\0" * 32, version)

    with pytest.raises(ImportFailed, match=r"is not a \.npy array"):
        map_file(path)


@pytest.mark.parametrize(
    "content", [b"", b"\x93NUMPY", b"[1, 2]", b"\x93NUMPY\x01\x00\xff\xff{", b"PK\x03\x04" * 9]
)
def test_what_is_no_array_is_refused(tmp_path: Path, content: bytes) -> None:
    """An empty file, a beginning, JSON, an archive."""
    path = tmp_path / "a.npy"
    path.write_bytes(content)

    with pytest.raises(ImportFailed, match=r"is not a \.npy array"):
        map_file(path)


def test_a_version_that_nobody_knows_is_refused(tmp_path: Path) -> None:
    """It may mean anything."""
    path = tmp_path / "a.npy"
    path.write_bytes(b"\x93NUMPY\x09\x00" + bytes(100))

    with pytest.raises(ImportFailed, match="version"):
        map_file(path)


def test_a_pipe_or_a_folder_is_not_opened(tmp_path: Path) -> None:
    """It might never begin."""
    os.mkfifo(tmp_path / "pipe.npy")
    (tmp_path / "folder.npy").mkdir()

    for name in ("pipe.npy", "folder.npy"):
        with pytest.raises(ImportFailed, match="not a file"):
            map_file(tmp_path / name)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (np.nan, "NaN or infinity"),
        (np.inf, "NaN or infinity"),
        (-np.inf, "NaN or infinity"),
        (70_000.0, "half precision"),
        (-70_000.0, "half precision"),
    ],
)
def test_a_number_that_cannot_be_compared_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: float, said: str
) -> None:
    """The message names the vector, in whichever chunk it is."""
    monkeypatch.setattr(module, "CHUNK_ROWS", 4)
    given = np.ones((10, DIMENSIONS), np.float32)
    given[9, 3] = value

    with pytest.raises(ImportFailed, match=f"vector 9 .*{said}"):
        list(check_vectors(tmp_path / "a.npy", given))


@pytest.mark.parametrize("value", [0.0, -0.0, 1e-9])
def test_a_vector_without_a_direction_is_refused(tmp_path: Path, value: float) -> None:
    """Also one that has none in half precision: the index would not find it."""
    given = np.ones((3, DIMENSIONS), np.float32)
    given[1] = value

    with pytest.raises(ImportFailed, match="vector 1 is all zeros"):
        list(check_vectors(tmp_path / "a.npy", given))


def test_good_vectors_are_counted_as_they_are_looked_at(tmp_path: Path) -> None:
    """In bytes, for a progress bar."""
    given = np.full((module.CHUNK_ROWS + 1, DIMENSIONS), 1e-4, np.float32)

    assert sum(check_vectors(tmp_path / "a.npy", given)) == given.nbytes


def test_a_long_header_is_not_read_to_its_end(tmp_path: Path) -> None:
    """Its length is a claim as well."""
    path = tmp_path / "a.npy"
    claimed = b"\x93NUMPY\x02\x00" + (2**31).to_bytes(4, "little")
    path.write_bytes(claimed + b" " * 100_000)

    with pytest.raises(ImportFailed, match=r"is not a \.npy array"):
        map_file(path)
