"""Files on disk, found and read without trust."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import stat
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, Final, NamedTuple, Self

from pgcorpus.db.errors import ImportFailed

MAX_FILE_BYTES: Final = 256 * 1024**2
"""A larger file is refused unread: parsed, it would take some eight times its size in memory."""

MAX_DEPTH: Final = 100
"""Arrays and objects within one another. Real files have five; thousands would exhaust the stack
of whoever reads them next."""


MAX_NAMED: Final = 5
"""A message names no more suffixes."""


@dataclass(frozen=True)
class Found:
    """A file to import, or a path without one.

    Attributes:
        path: Where it is.
        size_bytes: Its length, 0 where there is no file.
        error: Why there is nothing to read, or None.
    """

    path: Path
    size_bytes: int = 0
    error: str | None = None

    @property
    def name(self) -> str:
        """The path as it was given, for reports."""
        return printable(self.path)

    @property
    def key(self) -> str:
        """The file's name in the tables; where there is no file, the path as it was given."""
        return key_of(self.path) if self.error is None else self.name


@dataclass(frozen=True)
class Loaded:
    """The content of a file.

    Attributes:
        document: Its JSON value.
        sha256: Of its bytes.
    """

    document: Any
    sha256: bytes


def key_of(path: Path) -> str:
    """Return the one name of a file in the tables: its full path, links followed."""
    return printable(Path(os.path.realpath(path)))


class Inexact(float):
    """A number in JSON that no double is equal to; its value is the nearest double.

    Attributes:
        digits: The number as it stands.
    """

    __slots__ = ("digits",)
    digits: str

    def __new__(cls, digits: str) -> Self:
        """Return the double nearest to the number."""
        number = super().__new__(cls, digits)
        number.digits = digits
        return number


_HOLDERS: Final = (dict, list, Inexact)  # made once: this is asked of every field


def inexact_numbers(value: Any, path: str = "") -> Iterator[tuple[str, Inexact]]:
    """Yield every number in a value that no double is equal to, with its path below *path*."""
    if isinstance(value, Inexact):
        yield path, value
    elif isinstance(value, dict):
        for key, inner in value.items():
            if isinstance(inner, _HOLDERS):
                yield from inexact_numbers(inner, f"{path}.{key}" if path else key)
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            if isinstance(inner, _HOLDERS):
                yield from inexact_numbers(inner, f"{path}[{index}]")


def printable(path: Path) -> str:
    """Return the path as text that PostgreSQL can store, whatever bytes it is made of."""
    return os.fsencode(path).decode(errors="replace").replace("\0", "\ufffd")


def find_files(
    paths: Sequence[Path],
    suffixes: Collection[str] = frozenset({".json"}),
    *,
    enters: Callable[[str], bool] = lambda _name: True,
    pass_over: Callable[[Path], object] = lambda _path: None,
) -> Iterator[Found]:
    """Yield the files at *paths*, in their order; those of a folder by name, subfolders included.

    Args:
        paths: Files, taken as they are, and folders, of which the files with a suffix are taken.
        suffixes: In lower case.
        enters: Tells whether a subfolder of that name is looked into.
        pass_over: Called with each file in a folder that has another suffix, and with each
            subfolder that is not looked into.

    Yields:
        Each file once, however often and by whatever name it is reached. A path that does not
        exist, a folder without such files, and what stands in a folder and cannot be read (a broken
        link, a link that runs in a circle, a pipe, a closed subfolder) are yielded with their
        error.
    """
    seen = set()
    for path in paths:
        for found in _find_at(path, _Walk(suffixes, enters, pass_over)):
            identity = found.path.resolve() if found.error is None else found.path
            if identity not in seen:
                seen.add(identity)
                yield found


def refuse_special(path: Path) -> None:
    """Raise for a pipe or a device, which might never end, or never begin.

    Raises:
        ImportFailed: It is something else than a file.
        OSError: It cannot be looked at.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise ImportFailed("it is not a file, but a folder, a pipe or a device")


def read_json(path: Path, max_bytes: int = MAX_FILE_BYTES) -> Loaded:
    """Read a file of strict JSON.

    Args:
        path: The file.
        max_bytes: A longer file is refused unread.

    Raises:
        ImportFailed: It cannot be read, is too long, is not UTF-8 (a byte order mark is allowed),
            is not JSON as RFC 8259 has it, holds a number out of range, says a key twice in one
            object, or is nested deeper than ``MAX_DEPTH``.
    """
    try:
        refuse_special(path)
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size > max_bytes:
                raise ImportFailed(
                    f"the file has {size / 1024**2:,.0f} MiB; at most "
                    f"{max_bytes / 1024**2:,.0f} are read: split it"
                )
            content = file.read()
    except OSError as error:
        raise ImportFailed(f"the file cannot be read: {error.strerror}") from error
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ImportFailed(
            f"the file is not UTF-8: byte 0x{content[error.start]:02x} at offset {error.start}"
        ) from error
    document = parse_json(text)
    if _deeper_than(document, MAX_DEPTH):
        raise ImportFailed(f"the file is nested deeper than {MAX_DEPTH} levels")
    return Loaded(document, hashlib.sha256(content).digest())


def parse_json(text: str, what: str = "the file", *, finite: bool = True) -> Any:
    """Read a text of strict JSON.

    Args:
        text: One JSON value.
        what: Its name in messages.
        finite: Whether to refuse NaN, Infinity and numbers that no double reaches; else they are
            read as floats that are not finite.

    Raises:
        ImportFailed: It is not JSON as RFC 8259 has it, holds a number out of range, says a key
            twice in one object, or is nested deeper than Python's stack.
    """
    try:
        return json.loads(
            text,
            object_pairs_hook=_object,
            parse_constant=_refuse_constant if finite else float,
            parse_float=_number if finite else float,
        )
    except json.JSONDecodeError as error:
        raise ImportFailed(
            f"{what} is not JSON: {error.msg} (line {error.lineno}, column {error.colno})"
        ) from error
    except ValueError as error:  # Python's limit on digits, which guards against slow input
        raise ImportFailed(f"a number in {what} has too many digits") from error
    except RecursionError as error:
        raise ImportFailed(f"{what} is nested deeper than {MAX_DEPTH} levels") from error


class _Walk(NamedTuple):
    """The arguments of ``find_files`` that say what is taken from a folder."""

    suffixes: Collection[str]
    enters: Callable[[str], bool]
    pass_over: Callable[[Path], object]


def _find_at(path: Path, walk: _Walk) -> Iterator[Found]:
    try:
        status = path.stat()
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        yield Found(path, error=_unreadable(error))
        return
    if not stat.S_ISDIR(status.st_mode):
        yield _file(path, status)
        return
    empty = True
    for found in _in_folder(path, walk):
        empty = False
        yield found
    if empty:
        wanted = sorted(walk.suffixes)
        kind = " or ".join(wanted) if len(wanted) <= MAX_NAMED else "readable"
        yield Found(path, error=f"the folder holds no {kind} files")


def _in_folder(folder: Path, walk: _Walk) -> Iterator[Found]:
    """Yield the files with a suffix below a folder, by name, and what cannot be looked into."""
    left: list[tuple[Path, frozenset[Path]]] = [(folder, frozenset())]
    while left:
        path, above = left.pop()
        wanted = path.suffix.lower() in walk.suffixes
        try:
            status = path.stat()
            if not stat.S_ISDIR(status.st_mode):
                if wanted:
                    yield _file(path, status)
                else:
                    walk.pass_over(path)
                continue
            if path != folder and not walk.enters(path.name):
                walk.pass_over(path)
                continue
            real = path.resolve()
            if real in above:
                yield Found(path, error="a link to a folder that it stands in")
                continue
            below = sorted(path.iterdir(), reverse=True)
        except OSError as error:
            # A broken link might have led to a folder, unless it is named like another file.
            broken = error.errno in {errno.ENOENT, errno.ELOOP}
            if wanted or not path.suffix or not broken:
                yield Found(path, error=_unreadable(error))
            continue
        left += [(child, above | {real}) for child in below]


def _file(path: Path, status: os.stat_result) -> Found:
    # A pipe or a device might never end, or never begin.
    error = None if stat.S_ISREG(status.st_mode) else "neither a file nor a folder"
    return Found(path, status.st_size, error)


def _unreadable(error: OSError | ValueError) -> str:
    if isinstance(error, FileNotFoundError):
        return "there is no such file or folder"
    return f"it cannot be read: {error.strerror if isinstance(error, OSError) else error}"


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in found if keys.count(key) > 1)
        raise ImportFailed(f"the key {twice!r} stands twice in one object")
    return found


def _refuse_constant(name: str) -> None:
    raise ImportFailed(f"not JSON: {name} is not a JSON value")


def _number(digits: str) -> float:
    number = float(digits)
    if math.isinf(number):
        raise ImportFailed(f"the number {digits[:20]} is out of range")
    if repr(number) == digits:
        return number  # nearly always
    try:
        exact = Decimal(digits) == Decimal(repr(number))
    except ArithmeticError:  # an exponent that not even Decimal has
        exact = False
    return number if exact else Inexact(digits)


def _deeper_than(document: Any, limit: int) -> bool:
    """Return whether there are more levels than *limit*; it needs no stack of its own."""
    level = [document] if isinstance(document, dict | list) else []
    for _ in range(limit):
        level = [
            child
            for node in level
            for child in (node.values() if isinstance(node, dict) else node)
            if isinstance(child, dict | list)
        ]
    return bool(level)
