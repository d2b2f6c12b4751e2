"""Files on disk, found and read without trust."""

from __future__ import annotations

import hashlib
import json
import math
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from db.errors import ImportFailed

MAX_FILE_BYTES: Final = 256 * 1024**2
"""A larger file is refused unread: parsed, it would take some eight times its size in memory."""

MAX_DEPTH: Final = 100
"""Arrays and objects within one another. Real files have five; thousands would exhaust the stack
of whoever reads them next."""


@dataclass(frozen=True)
class Found:
    """A file to import, or a path where there is none.

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
        """The path as it was given, for reports and tables."""
        return printable(self.path)


@dataclass(frozen=True)
class Loaded:
    """What a file holds.

    Attributes:
        document: Its JSON value.
        sha256: Of its bytes.
    """

    document: Any
    sha256: bytes


def printable(path: Path) -> str:
    """The path as text that PostgreSQL can store, whatever bytes it is made of."""
    return os.fsencode(path).decode(errors="replace").replace("\0", "\ufffd")


def find_files(paths: Sequence[Path]) -> Iterator[Found]:
    """The files at *paths*, in their order; those of a folder by name, subfolders included.

    Args:
        paths: Files, taken as they are, and folders, of which the ``.json`` files are taken.

    Yields:
        Each file once, however often and by whatever name it is reached. A path that does not
        exist and a folder without such files are yielded with their error.
    """
    seen = set()
    for path in paths:
        for found in _found_at(path):
            identity = found.path.resolve() if found.error is None else found.path
            if identity not in seen:
                seen.add(identity)
                yield found


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
        document = json.loads(
            content.decode("utf-8-sig"),
            object_pairs_hook=_object,
            parse_constant=_refuse_constant,
            parse_float=_number,
        )
    except UnicodeDecodeError as error:
        raise ImportFailed(
            f"the file is not UTF-8: byte 0x{content[error.start]:02x} at offset {error.start}"
        ) from error
    except json.JSONDecodeError as error:
        raise ImportFailed(
            f"the file is not JSON: {error.msg} (line {error.lineno}, column {error.colno})"
        ) from error
    except ValueError as error:  # Python's limit on digits, which guards against slow input
        raise ImportFailed("a number in the file has too many digits") from error
    except RecursionError as error:
        raise ImportFailed(f"the file is nested deeper than {MAX_DEPTH} levels") from error
    if _deeper_than(document, MAX_DEPTH):
        raise ImportFailed(f"the file is nested deeper than {MAX_DEPTH} levels")
    return Loaded(document, hashlib.sha256(content).digest())


def _found_at(path: Path) -> Iterator[Found]:
    try:
        status = path.stat()
        if not stat.S_ISDIR(status.st_mode):
            # A pipe or a device might never end, or never begin.
            regular = stat.S_ISREG(status.st_mode)
            error = None if regular else "neither a file nor a folder"
            yield Found(path, status.st_size, error)
            return
        files = sorted(
            file for file in path.rglob("*") if file.suffix.lower() == ".json" and file.is_file()
        )
        if not files:
            yield Found(path, error="the folder holds no .json files")
        for file in files:
            yield Found(file, file.stat().st_size)
    except FileNotFoundError:
        yield Found(path, error="there is no such file or folder")
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = error.strerror if isinstance(error, OSError) else str(error)
        yield Found(path, error=f"it cannot be read: {reason}")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in found if keys.count(key) > 1)
        raise ImportFailed(f"the key {twice!r} stands twice in one object")
    return found


def _refuse_constant(name: str) -> None:
    raise ImportFailed(f"the file is not JSON: {name} is not a JSON value")


def _number(digits: str) -> float:
    number = float(digits)
    if math.isinf(number):
        raise ImportFailed(f"the number {digits[:20]} is out of range")
    return number


def _deeper_than(document: Any, limit: int) -> bool:  # noqa: ANN401 - any JSON
    """Whether there are more levels than *limit*; it needs no stack of its own."""
    level = [document] if isinstance(document, dict | list) else []
    for _ in range(limit):
        level = [
            child
            for node in level
            for child in (node.values() if isinstance(node, dict) else node)
            if isinstance(child, dict | list)
        ]
    return bool(level)
