"""The vectors of old SQLite files: raw float32, or pickled arrays of NumPy.

A pickle is a program. It is taken apart here without running any of it: only the opcodes that
NumPy's own pickles of one array consist of are let through, and the globals that they name stand
for classes of this module that keep data and do nothing.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping
from io import BytesIO
from pickletools import genops
from types import MappingProxyType
from typing import Any, Final

import numpy as np

MAX_DIMENSIONS: Final = 16_000
"""Largest length of pgvector's ``vector``."""

FLOAT32: Final = np.dtype("<f4")

MAX_BLOB_BYTES: Final = MAX_DIMENSIONS * FLOAT32.itemsize + 1024
"""A pickle adds some 150 bytes to its numbers."""

OPCODES: Final = frozenset(
    "PROTO FRAME STOP MARK MEMOIZE BINGET STACK_GLOBAL REDUCE BUILD NONE NEWTRUE NEWFALSE "  # noqa: SIM905 - a table reads worse
    "BININT BININT1 BININT2 SHORT_BINUNICODE SHORT_BINBYTES BINBYTES BYTEARRAY8 "
    "TUPLE TUPLE1 TUPLE2 TUPLE3".split()
)
"""NumPy 1 and 2 need no others for one array in protocols 4 and 5. None of them takes more memory
than its own length, looks outside of the pickle or counts in anything but what is on the stack."""

_BEGINNINGS: Final = (b"\x80\x04\x95", b"\x80\x05\x95")
"""First bytes of the protocols that NumPy's pickles are in. Raw numbers might begin so by chance:
one vector in eight million."""


class NotAVector(Exception):
    """The bytes are no vector; the message says why."""


class Hostile(NotAVector):
    """The bytes are a pickle that is more than an array."""


def decode_vector(blob: bytes) -> np.ndarray | None:
    """Take the vector out of a value of the column ``embedding``.

    Args:
        blob: Raw float32, a pickled array, or nothing.

    Returns:
        float32 of shape ``(dimensions,)``, read only, finite; all zeros where the old embedder
        failed. None for no bytes.

    Raises:
        NotAVector: It is of a wrong length, or not finite.
        Hostile: It is a pickle of something else.
    """
    if not blob:
        return None
    if len(blob) > MAX_BLOB_BYTES:
        raise NotAVector(
            f"the embedding has {len(blob)} bytes; a vector has at most {MAX_DIMENSIONS} dimensions"
        )
    vector = _unpickle(blob) if is_pickle(blob) else _read_numbers(blob)
    if not np.isfinite(vector).all():
        raise NotAVector("the embedding holds NaN or infinity")
    return vector


def encode_vector(vector: np.ndarray) -> bytes:
    """Return the raw float32 numbers of a vector of shape ``(dimensions,)``."""
    return np.ascontiguousarray(vector, FLOAT32).tobytes()


def is_pickle(blob: bytes) -> bool:
    """Return whether the bytes are opcodes from the first to the last, whatever these do."""
    if blob.startswith(_BEGINNINGS):
        return True
    if not blob.endswith(pickle.STOP):  # nearly all raw vectors end here
        return False
    try:
        *_, (_, _, last) = genops(blob)
    except Exception:  # noqa: BLE001 - numbers taken for opcodes may be wrong in any way
        return False
    return last == len(blob) - 1


def _read_numbers(data: bytes | bytearray) -> np.ndarray:
    dimensions, left = divmod(len(data), FLOAT32.itemsize)
    if left or not 1 <= dimensions <= MAX_DIMENSIONS:
        raise NotAVector(f"the embedding has {len(data)} bytes, which are no vector of float32")
    return np.frombuffer(bytes(data), FLOAT32)


class _Type:
    """A stand-in for ``numpy.dtype``: it keeps the name and the order of bytes."""

    __slots__ = ("name", "order")

    def __init__(self, name: str, align: bool, copy: bool) -> None:
        self.name = name if (align, copy) == (False, True) else None
        self.order: Any = None

    def __setstate__(self, state: Any) -> None:
        version, self.order, *rest = state
        if (version, rest) != (3, [None, None, None, -1, -1, 0]):
            self.order = None


class _Array:
    """A stand-in for an array: it keeps shape, type and data as they are given."""

    __slots__ = ("data", "kind", "shape")

    def __init__(self, data: Any = None, kind: Any = None, shape: Any = None) -> None:
        self.data, self.kind, self.shape = data, kind, shape

    def __setstate__(self, state: Any) -> None:
        version, self.shape, self.kind, fortran, self.data = state
        if version != 1 or type(fortran) is not bool:
            self.data = None

    def read(self) -> np.ndarray:
        """Return the vector, if all that was given is that of one."""
        kind, shape, data = self.kind, self.shape, self.data
        if type(kind) is not _Type or (kind.name, kind.order) != ("f4", "<"):
            raise NotAVector("the pickled embedding is not of float32")
        if type(shape) is not tuple or len(shape) != 1 or type(shape[0]) is not int:
            raise NotAVector("the pickled embedding is no vector: it has not one dimension")
        if type(data) not in {bytes, bytearray} or len(data) != FLOAT32.itemsize * shape[0]:
            raise NotAVector("the pickled embedding is not as long as it says")
        return _read_numbers(data)


_NDARRAY: Final = object()


def _reconstruct(of: Any, shape: Any, kind: Any) -> _Array:
    if of is not _NDARRAY or shape != (0,) or kind != b"b":
        raise Hostile("the pickled embedding is no plain array")
    return _Array()


def _frombuffer(data: Any, kind: Any, shape: Any, order: Any) -> _Array:
    if order not in {"C", "F"}:  # of one dimension they are the same
        raise Hostile("the pickled embedding is no plain array")
    return _Array(data, kind, shape)


_GLOBALS: Final[Mapping[tuple[str, str], object | Callable[..., Any]]] = MappingProxyType(
    {
        ("numpy", "ndarray"): _NDARRAY,
        ("numpy", "dtype"): _Type,
        ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
        ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
        ("numpy.core.numeric", "_frombuffer"): _frombuffer,
        ("numpy._core.numeric", "_frombuffer"): _frombuffer,
    }
)


class _Unpickler(pickle.Unpickler):
    """An unpickler that knows the names in NumPy's pickles of arrays, and imports nothing."""

    def find_class(self, module: str, name: str) -> Any:
        try:
            return _GLOBALS[module, name]
        except KeyError:
            asked = ascii(f"{module}.{name}")
            raise Hostile(f"the embedding is a pickle that calls {asked:.80}") from None


def _unpickle(blob: bytes) -> np.ndarray:
    """Return the vector of a pickled array.

    Raises:
        Hostile: It is a pickle of something else.
        NotAVector: The array is no vector of float32.
    """
    try:
        # First all opcodes: C code would believe whatever length a pickle claims, and allocate it.
        _refuse_opcodes(blob)
        array = _Unpickler(BytesIO(blob)).load()
    except NotAVector:
        raise
    except Exception as error:  # whatever a damaged pickle makes the unpickler raise
        raise Hostile("the embedding is a damaged pickle") from error
    if type(array) is not _Array:
        raise Hostile("the embedding is a pickle that is no array")
    return array.read()


def _refuse_opcodes(blob: bytes) -> None:
    """Raise for opcodes that no array needs, and for bytes behind the last.

    Raises:
        Hostile: There are some.
        ValueError: The bytes are no opcodes.
    """
    last: int | None = None
    for opcode, _, last in genops(blob):  # noqa: B007 - the last is read after the loop
        if opcode.name not in OPCODES:
            raise Hostile(f"the embedding is a pickle that is no array: it has {opcode.name}")
    if last != len(blob) - 1:
        raise Hostile("the embedding is a pickle with other data behind it")
