"""Vectors that come along with an import: files are mapped only after they proved harmless."""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Collection, Iterator
from pathlib import Path
from tokenize import TokenError
from typing import Final

import numpy as np
from numpy.lib import format as npy

from pgcorpus.db.choices import IndexKind
from pgcorpus.db.errors import ImportFailed
from pgcorpus.db.repositories.embeddings import find_fault
from pgcorpus.services.importers.files import printable, refuse_special

MAX_HEADER_BYTES: Final = 10_000
"""NumPy's own limit on what it evaluates of a header (``numpy.lib.format``, "max_header_size")."""

PREFIX_BYTES: Final = 12
"""Length of the prefix of the header: magic string, version and length (NEP 1)."""

FLOAT32: Final = (4,)
FLOATS: Final = (2, 4, 8)
"""Bytes of a number: of single precision, and of any."""

MAX_DIMENSIONS: Final = 16_000
"""The greatest length of pgvector's ``vector``."""

CHUNK_ROWS: Final = 4096
"""Vectors that are checked at a time: 16 MiB of 1,024 dimensions."""

HEADERS: Final = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
"""Version → the function that reads its header. Version 3 only adds names of fields that are not
ASCII."""


def map_vectors(
    path: Path,
    *,
    dimensions: int | None = None,
    model_name: str | None = None,
    widths: Collection[int] = FLOAT32,
) -> np.ndarray:
    """Map a file of vectors after every claim of its header is checked.

    Args:
        path: A ``.npy`` file.
        dimensions: Those of the model; None: 1 to ``MAX_DIMENSIONS``.
        model_name: The model, for messages.
        widths: Allowed lengths of a number, in bytes.

    Returns:
        Floats of shape ``(n, dimensions)``, read only, still on disk.

    Raises:
        ImportFailed: It is something else. Nothing was mapped.
    """
    name = printable(path)
    try:
        refuse_special(path)
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            header = io.BytesIO(file.read(PREFIX_BYTES + MAX_HEADER_BYTES))
    except OSError as error:
        raise ImportFailed(f"{name} cannot be read: {error.strerror}") from error
    except ImportFailed as error:
        raise ImportFailed(f"{name}: {error}") from error
    shape, is_fortran, dtype = _header(name, header)
    if dtype.kind != "f" or dtype.itemsize not in widths:
        raise ImportFailed(_describe_type(name, dtype, widths))
    if is_fortran:
        raise ImportFailed(
            f"{name} is in Fortran order, column by column; write it anew with: "
            "np.save(path, np.ascontiguousarray(vectors))"
        )
    if len(shape) != 2 or min(shape) < 0:  # noqa: PLR2004 - rows and columns
        raise ImportFailed(f"{name} has shape {shape}, but vectors are a table, one row for each")
    if dimensions is None and not 1 <= shape[1] <= MAX_DIMENSIONS:
        raise ImportFailed(
            f"{name} has vectors of {shape[1]} dimensions; a vector has 1 to {MAX_DIMENSIONS} "
            "dimensions"
        )
    if dimensions is not None and shape[1] != dimensions:
        raise ImportFailed(
            f"{name} has vectors of {shape[1]} dimensions, but those of {model_name} have "
            f"{dimensions}; name the model that made them with --embeddings-model"
        )
    offset = header.tell()
    needed, there = shape[0] * shape[1] * dtype.itemsize, size - offset
    if needed != there:
        raise ImportFailed(
            f"{name} claims shape {shape}, which takes {needed} bytes, but {there} follow its "
            "header: it is cut short or damaged"
        )
    if not shape[0]:  # there is nothing to map
        return np.empty(shape, np.float32)
    return np.memmap(path, dtype, mode="r", offset=offset, shape=shape)


def batches(vectors: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Yield ``CHUNK_ROWS`` vectors at a time as float32, with the number of the first."""
    for start in range(0, len(vectors), CHUNK_ROWS):
        # What is out of float32's range becomes infinite, and is refused as such.
        with np.errstate(over="ignore"):
            yield start, np.asarray(vectors[start : start + CHUNK_ROWS], dtype=np.float32)


def check_vectors(
    path: Path, vectors: np.ndarray, index_kind: IndexKind = "halfvec"
) -> Iterator[int]:
    """Look at every vector, a chunk at a time.

    Args:
        path: Where they are, for messages.
        vectors: Floats of shape ``(n, dimensions)``.
        index_kind: How they will be indexed.

    Yields:
        How many bytes of float32 were looked at.

    Raises:
        ImportFailed: One of them cannot be stored and compared. The message names the first.
    """
    for start, chunk in batches(vectors):
        if fault := find_fault(chunk, index_kind):
            raise ImportFailed(
                f"{printable(path)}: vector {start + fault.row} {fault.reason}. Make the file "
                "anew, or move it away: pgcorpus embed makes vectors, too"
            )
        yield chunk.nbytes


def _describe_type(name: str, dtype: np.dtype, widths: Collection[int]) -> str:
    """Return the reason why numbers of a type are not read, and what mends it."""
    wanted = ", ".join(f"float{8 * width}" for width in widths)
    remedy = "write it anew with: np.save(path, vectors.astype(np.float32))"
    if dtype.hasobject:  # nobody could write it anew without running what is in it
        remedy = (
            "it is a pickle, which is a program and is never loaded: have its maker save numbers, "
            "with: np.save(path, vectors, allow_pickle=False)"
        )
    return f"{name} holds {dtype}, but vectors must be {wanted}; {remedy}"


def _header(name: str, file: io.BytesIO) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Read shape, order and type of the data; the file is then where the data begins."""
    try:
        with warnings.catch_warnings():  # of what a header of another age looks like
            warnings.simplefilter("ignore")
            version = npy.read_magic(file)
            if version not in HEADERS:
                raise ImportFailed(f"{name} is of version {version} of the format; 1 or 2 is read")
            header: tuple[tuple[int, ...], bool, np.dtype] = HEADERS[version](
                file, max_header_size=MAX_HEADER_BYTES
            )
            return header
    # It is a Python literal, which can be wrong in all ways that a program can.
    except (
        ValueError,
        TypeError,
        SyntaxError,
        TokenError,
        MemoryError,
        RecursionError,
    ) as error:
        raise ImportFailed(f"{name} is not a .npy array: its header cannot be read") from error
