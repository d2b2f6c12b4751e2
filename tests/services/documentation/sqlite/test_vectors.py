"""Three encodings of vectors, and pickles that do something else."""

from __future__ import annotations

import builtins
import copyreg
import io
import os
import pickle
import resource
import subprocess
import sys
import time
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from pgcorpus.services.documentation.sqlite.vectors import (
    MAX_BLOB_BYTES,
    MAX_DIMENSIONS,
    Hostile,
    NotAVector,
    decode_vector,
    encode_vector,
    is_pickle,
)
from pgcorpus.services.knowledge.importer import frozen
from tests.services.documentation.sqlite.files import make_pickle

finite = arrays.arrays(
    np.float32,
    st.integers(1, 500),
    elements=st.floats(width=32, allow_nan=False, allow_infinity=False),
)


class Calls:
    """Something that calls a function when it is unpickled."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


class Persistent(pickle.Pickler):
    """Pickles everything as a reference to something outside."""

    def persistent_id(self, obj: Any) -> Any:
        """Name any value as something that is kept elsewhere."""
        return "outside"


def persistent(value: Any, protocol: int) -> bytes:
    """A pickle of a persistent id."""
    file = io.BytesIO()
    Persistent(file, protocol).dump(value)
    return file.getvalue()


def frame(body: bytes, protocol: int = 4) -> bytes:
    """Return opcodes with the header that NumPy's pickles have."""
    return b"\x80" + bytes([protocol]) + b"\x95" + len(body).to_bytes(8, "little") + body


def name(module: str, what: str) -> bytes:
    """Opcodes that name a global."""
    return (
        b"".join(b"\x8c" + bytes([len(text)]) + text.encode() for text in (module, what)) + b"\x93"
    )


FOUR = pickle.dumps(np.arange(3, dtype=np.float32), 4)
FIVE = pickle.dumps(np.arange(3, dtype=np.float32), 5)
MARKER = "/tmp/pgcorpus-hostile-pickle-was-run"  # noqa: S108 - which nothing makes

HOSTILE: dict[str, bytes] = {
    **{
        f"{what}, protocol {protocol}": pickle.dumps(Calls(function, *arguments), protocol)
        for protocol in range(6)
        for what, function, arguments in (
            ("os.system", os.system, (f"touch {MARKER}",)),
            ("eval", builtins.eval, (f"open({MARKER!r}, 'w')",)),
            ("exec", builtins.exec, (f"open({MARKER!r}, 'w')",)),
            ("subprocess", subprocess.Popen, (["touch", MARKER],)),
            ("getattr", getattr, ("", "upper")),
            ("bytes of a gigabyte", bytes, (2**30,)),
            ("numpy zeros", np.zeros, (2**40,)),
            ("numpy load", np.load, ("/etc/passwd",)),
            ("copyreg", copyreg._reconstructor, (object, object, None)),  # type: ignore[attr-defined]
        )
    },
    **{f"persistent id, protocol {protocol}": persistent([1], protocol) for protocol in range(6)},
    "a system call beside an array": pickle.dumps(
        [np.ones(3, np.float32), Calls(os.system, f"touch {MARKER}")], 4
    ),
    "extension registry, one byte": frame(b"\x82\x01."),
    "extension registry, two bytes": frame(b"\x83\x01\x01."),
    "extension registry, four bytes": frame(b"\x84\x01\x01\x01\x01."),
    "an instance of old": b"(S'touch x'\nios\nsystem\n.",
    "a buffer from outside": frame(b"\x97.", 5),
    "NEWOBJ": frame(name("numpy", "dtype") + b")\x81."),
    "NEWOBJ_EX": frame(name("numpy", "dtype") + b")}\x92."),
    "a name with dots": frame(name("numpy", "dtype.type.__call__") + b"."),
    "a dtype's own setstate": frame(name("numpy.dtype", "__setstate__") + b"."),
    "the class alone": frame(name("numpy", "dtype") + b"."),
    "the array's class alone": frame(name("numpy", "ndarray") + b"."),
    "state for a class": frame(name("numpy", "dtype") + b"K\x01b."),
    "state for a function": frame(name("numpy.core.multiarray", "_reconstruct") + b"NN\x86b."),
    "a number called": frame(b"K\x01)R."),
    "a dictionary": pickle.dumps({"vector": [1.0]}, 4),
    "a list of numbers": pickle.dumps([1.0, 2.0], 4),
    "None": frame(b"N."),
    "deep nesting": frame(b"N" + b"\x85" * 60_000 + b"."),
    "deep lists": frame(b"]" * 30_000 + b"."),
    "deep marks": frame(b"(" * 60_000 + b"."),
    "memory by memo": frame(b"Nr\xff\xff\xff\x7f."),
    "a memo nobody made": frame(b"h\x07."),
    "a frame of exabytes": b"\x80\x04\x95" + b"\xff" * 7 + b"\x7f" + FOUR[11:],
    "bytes of exabytes": frame(b"\x8e" + b"\xff" * 7 + b"\x7f" + b"."),
    "a bytearray of exabytes": frame(b"\x96" + b"\xff" * 7 + b"\x7f" + b".", 5),
    "a text of gigabytes": frame(b"X\xff\xff\xff\x7f."),
    "a number of many digits": frame(b"\x8b\xff\xff\xff\x7f."),
    "a frame within a frame": frame(frame(b"N.")[2:]),
    "nothing behind the header": frame(b""),
    "no end": FOUR[:-1],
    "half": FOUR[: len(FOUR) // 2],
    "two in one": FOUR + FOUR,
    "something behind the end": FOUR + b"junk",
    "an empty stack": frame(b"."),
    "a subclass of arrays": pickle.dumps(np.ma.masked_array([1.0], dtype=np.float32), 4),
    "a scalar": pickle.dumps(np.float32(1), 4),
}

NO_VECTORS: dict[str, bytes] = {
    **{
        f"{what}, protocol {protocol}": pickle.dumps(array, protocol)
        for protocol in (4, 5)
        for what, array in (
            ("float64", np.ones(3)),
            ("integers", np.ones(3, np.int32)),
            ("big-endian", np.ones(3, ">f4")),
            ("records", np.ones(3, [("a", "<f4")])),
            ("two dimensions", np.ones((1, 3), np.float32)),
            ("none", np.array(1, np.float32)),
            ("no number", np.ones(0, np.float32)),
        )
    },
    "one too many": pickle.dumps(np.ones(MAX_DIMENSIONS + 1, np.float32), 4),
    "longer than it says": FOUR.replace(b"K\x03\x85", b"K\x02\x85"),
    "shorter than it says": FOUR.replace(b"K\x03\x85", b"K\x04\x85"),
    "shorter by buffer": FIVE.replace(b"K\x03\x85", b"K\x04\x85"),
    "negative shape": FOUR.replace(b"K\x03\x85", b"J\xff\xff\xff\xff\x85").replace(
        (len(FOUR) - 11).to_bytes(8, "little"), (len(FOUR) - 8).to_bytes(8, "little"), 1
    ),
    "raw, one byte more": b"\0\0\x80?\0",
    "raw, too long": bytes(4 * (MAX_DIMENSIONS + 1)),
    "raw, huge": bytes(MAX_BLOB_BYTES + 4),
    "raw NaN": np.array([1, np.nan], np.float32).tobytes(),
    "raw infinity": np.array([1, np.inf], np.float32).tobytes(),
    "pickled NaN": pickle.dumps(np.array([1, np.nan], np.float32), 4),
    "pickled infinity": pickle.dumps(np.array([1, -np.inf], np.float32), 5),
}


@pytest.mark.filterwarnings("ignore:numpy.core.* is deprecated:DeprecationWarning")
@given(vector=finite, protocol=st.sampled_from([4, 5]), old=st.booleans(), frozen=st.booleans())
def test_pickled_arrays_are_read_as_they_were(
    vector: np.ndarray, protocol: int, old: bool, frozen: bool
) -> None:
    """In both protocols and both spellings, read only or not, and exactly."""
    vector.flags.writeable = not frozen
    blob = make_pickle(vector, protocol, old=old)

    found = decode_vector(blob)

    assert np.array_equal(pickle.loads(blob), vector)  # noqa: S301 - made above
    assert found is not None
    assert found.dtype == np.float32
    assert found.tobytes() == vector.tobytes()
    assert not found.flags.writeable


@pytest.mark.parametrize("protocol", [4, 5])
def test_arrays_that_are_views_are_read(protocol: int) -> None:
    """A row of a table, a column of it, and one backwards; the longest, too."""
    table = np.arange(12, dtype=np.float32).reshape(3, 4)

    for vector in (table[1], table[:, 2], table[0, ::-1], np.ones(MAX_DIMENSIONS, np.float32)):
        found = decode_vector(pickle.dumps(vector, protocol))

        assert found is not None
        assert np.array_equal(found, vector)


@given(finite)
@example(np.frombuffer(b"\x80\x04\x95\x00" + b"\x00" * 4, "<f4"))
@example(np.frombuffer(b"\x80\x02..", "<f4"))
def test_raw_vectors_are_read_as_they_were(vector: np.ndarray) -> None:
    """Unless they begin as a pickle of NumPy does, which no model's vector will."""
    blob = encode_vector(vector)
    if is_pickle(blob):
        with pytest.raises(NotAVector):
            decode_vector(blob)
        return

    found = decode_vector(blob)

    assert found is not None
    assert found.tobytes() == vector.tobytes()


def test_no_raw_vector_of_many_is_taken_for_a_pickle() -> None:
    """Whatever its first and last bytes."""
    numbers = np.random.default_rng(1).normal(0, 0.05, (20_000, 32)).astype(np.float32)

    assert not any(is_pickle(row.tobytes()) for row in numbers)


def test_no_bytes_are_no_vector() -> None:
    """It was not embedded."""
    assert decode_vector(b"") is None


def test_zeros_are_returned_as_they_are() -> None:
    """The reader of the row says what they mean."""
    for blob in (bytes(12), pickle.dumps(np.zeros(3, np.float32), 4)):
        found = decode_vector(blob)

        assert found is not None
        assert not found.any()


@pytest.mark.parametrize("blob", HOSTILE.values(), ids=HOSTILE)
def test_hostile_pickles_are_refused_and_do_nothing(blob: bytes) -> None:
    """At once, in little memory, with nothing imported or called."""
    modules = set(sys.modules)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    begun = time.monotonic()

    # A full collection would walk over the garbage of all tests before.
    with frozen(), pytest.raises(Hostile):
        decode_vector(blob)

    assert time.monotonic() - begun < 1
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # KiB
    assert not os.path.exists(MARKER)  # noqa: PTH110 - it is a text in pickles, too
    assert not {each for each in set(sys.modules) - modules if not each.startswith("encodings.")}


@pytest.mark.parametrize("blob", NO_VECTORS.values(), ids=NO_VECTORS)
def test_what_is_no_vector_of_float32_is_refused(blob: bytes) -> None:
    """Though a pickle of it may be harmless."""
    with pytest.raises(NotAVector):
        decode_vector(blob)


def test_an_array_of_objects_is_hostile() -> None:
    """Its pickle holds whatever its objects are."""
    for protocol in (4, 5):
        with pytest.raises(Hostile):
            decode_vector(pickle.dumps(np.array([Calls(os.system, "true")], object), protocol))


@given(st.binary(max_size=300))
def test_any_bytes_are_a_vector_or_refused(blob: bytes) -> None:
    """Nothing else is raised."""
    for value in (blob, frame(blob), frame(blob, 5), blob + b"."):
        check_any(value)


@given(
    whole=st.sampled_from([FOUR, FIVE]),
    changes=st.lists(st.tuples(st.integers(0, 159), st.integers(0, 255)), max_size=8),
    cut=st.integers(0, 160),
)
def test_damaged_pickles_are_a_vector_or_refused(
    whole: bytes, changes: list[tuple[int, int]], cut: int
) -> None:
    """Any bytes may be others, or missing."""
    blob = bytearray(whole)
    for position, value in changes:
        blob[position % len(blob)] = value

    check_any(bytes(blob))
    check_any(bytes(blob[:cut]))


@given(
    st.lists(
        st.sampled_from(
            (
                *(b"(", b")", b"t", b"R", b"b", b"\x94", b"\x93", b"N", b"\x88", b"\x89", b"K\x01"),
                *(b"\x85", b"\x86", b"\x87", b"h\x00", b"h\x01", b"C\x01b", b"C\x04\0\0\x80?"),
                *(b"\x8c\x02f4", b"\x8c\x01<", b"\x8c\x01C"),
                name("numpy", "dtype"),
                name("numpy", "ndarray"),
                name("numpy.core.multiarray", "_reconstruct"),
                name("numpy._core.numeric", "_frombuffer"),
            )
        ),
        max_size=40,
    )
)
def test_programs_of_allowed_opcodes_make_a_vector_or_are_refused(opcodes: list[bytes]) -> None:
    """Allowed opcodes in any order do nothing but fail."""
    check_any(frame(b"".join(opcodes) + b"."))


def check_any(blob: bytes) -> None:
    """Assert that the bytes are a vector, nothing, or refused."""
    try:
        found = decode_vector(blob)
    except NotAVector:
        return
    assert found is None or (
        found.dtype == np.float32 and found.ndim == 1 and np.isfinite(found).all()
    )
