"""The sources of conversations: files, zips of the providers, folders, legacy stores."""

from __future__ import annotations

import lzma
import stat
import zipfile
import zlib
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PureWindowsPath
from typing import IO, Final

from pgcorpus.db.errors import ImportFailed
from pgcorpus.services.chat.importing.chroma import SOURCE as LEGACY
from pgcorpus.services.chat.importing.chroma import SQLITE, open_store
from pgcorpus.services.importers.files import Found, find_files, printable
from pgcorpus.services.importers.stream import BYTE_ORDER_MARK, Element, elements

SUFFIXES: Final = frozenset({".json", ".jsonl", ".zip", ".sqlite3"})
"""What is looked at in a folder. What a file holds decides what it is, here and anywhere."""

MAX_RATIO: Final = 200
"""Bytes of a zip's member for each byte it takes in the zip. Chats shrink to a fifth or a tenth,
the same sentence over and over to a hundredth; bombs reach a thousandth."""

MAX_UNPACKED_BYTES: Final = 16 * 1024**3
"""Of all members of one zip. They are never unpacked to disk or in memory: this bounds time."""

SMALL_BYTES: Final = 1024**2
"""A member that unpacked is not longer is no bomb, however well it is packed."""

_ENCRYPTED: Final = 1
"""Bit of a member's flags (APPNOTE.TXT, 4.4.4)."""

_ZIP = (b"PK\x03\x04", b"PK\x05\x06")
_PEEKED_BYTES: Final = 512
_UNREADABLE = (
    OSError,
    EOFError,
    NotImplementedError,  # a way of packing that Python does not know
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
)


Opened = Callable[[], AbstractContextManager[Iterator[Element]]]


@dataclass(frozen=True, kw_only=True)
class Source:
    """One file, or one member of a zip, that may hold conversations.

    Attributes:
        name: For reports: the path as given, for a member that of its zip before its own.
        key: Its name in the tables.
        size_bytes: Its share of the progress.
        length: How far the offsets of its elements reach.
        asked: Whether the caller named it. What is only found beside conversations, in a folder or
            zip, is skipped where it holds none.
        skipped: Why it is left alone, or None.
        open: Gives its elements while it is open; raises ``ImportFailed`` where it cannot be read.
        whole: As ``open``, but what may hold conversations is one itself. None where only ``open``
            makes sense.
        format: Which format it is of, where that is known without reading it.
    """

    name: str
    key: str
    size_bytes: int = 0
    length: int = 0
    asked: bool = True
    skipped: str | None = None
    open: Opened
    whole: Opened | None = None
    format: str | None = None


def find(paths: Sequence[Path]) -> list[Found]:
    """Return the files at *paths* that may be, or hold, sources; see ``find_files``."""
    return list(find_files(paths, SUFFIXES))


def sources_of(found: Found, *, asked: bool) -> Generator[Source]:
    """Yield the sources in a file. A zip stays open while its members are iterated.

    Args:
        found: The file.
        asked: Whether the caller named it.
    """
    try:
        head = _head(found)
    except ImportFailed as error:
        yield _unreadable(found, str(error))
        return
    if head.startswith(_ZIP):
        yield from _members(found)
        return
    source = partial(
        Source,
        name=found.name,
        key=found.key,
        size_bytes=found.size_bytes,
        length=found.size_bytes,
        asked=asked,
    )
    if head.startswith(SQLITE):
        yield source(open=partial(open_store, found.path), format=LEGACY)
    else:

        def file() -> IO[bytes]:
            return found.path.open("rb")

        yield source(
            open=partial(_open_elements, file), whole=partial(_open_elements, file, whole=True)
        )


def _head(found: Found) -> bytes:
    if found.error is not None:
        raise ImportFailed(found.error)
    with _readable(), found.path.open("rb") as file:
        return file.read(_PEEKED_BYTES)


def _unreadable(found: Found, error: str) -> Source:
    return Source(name=found.name, key=found.key, open=partial(_open_refused, error))


def _members(found: Found) -> Iterator[Source]:
    try:
        with zipfile.ZipFile(found.path) as archive:
            yield from _of_archive(found, archive)
    except _UNREADABLE as error:
        yield _unreadable(found, f"the zip is damaged: {error}")


def _of_archive(found: Found, archive: zipfile.ZipFile) -> Iterator[Source]:
    unpacked = 0
    encrypted = [info for info in archive.infolist() if info.flag_bits & _ENCRYPTED]
    if encrypted:
        yield _unreadable(
            found,
            f"{len(encrypted)} of its members are encrypted, {_name(encrypted[0])} for one; unpack "
            "it, and import the folder",
        )
    for info in archive.infolist():
        if info.is_dir() or info.flag_bits & _ENCRYPTED:
            continue
        unpacked += info.file_size
        skipped = None
        file = partial(archive.open, info)
        opened: Opened = partial(_open_elements, file)
        whole: Opened | None = partial(_open_elements, file, whole=True)
        try:
            skipped = _find_skip_reason(archive, info)
            if skipped is None:
                _refuse_bomb(info, unpacked)
        except ImportFailed as error:
            opened, whole = partial(_open_refused, str(error)), None
        yield Source(
            name=f"{found.name}/{_name(info)}",
            key=f"{found.key}/{_name(info)}",
            size_bytes=info.compress_size,
            length=info.file_size,
            asked=False,
            skipped=skipped,
            open=opened,
            whole=whole,
        )


def _name(info: zipfile.ZipInfo) -> str:
    return printable(Path(info.filename))


def _find_skip_reason(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> str | None:
    """Return the reason to leave a member alone, or None.

    Raises:
        ImportFailed: It should not be there, or cannot be read.
    """
    path = PureWindowsPath(info.filename)  # it takes slashes of both kinds, and knows drives
    if path.anchor or ".." in path.parts:
        raise ImportFailed("its path leads out of the zip")
    if stat.S_ISLNK(info.external_attr >> 16):
        return "it is a link"
    with _readable(), archive.open(info) as member:
        head = member.read(_PEEKED_BYTES)
    if head.startswith(_ZIP):
        return "a zip within a zip is not opened"
    if not head.removeprefix(BYTE_ORDER_MARK).lstrip().startswith((b"[", b"{")):
        return "it is not JSON"
    return None


def _refuse_bomb(info: zipfile.ZipInfo, unpacked: int) -> None:
    """Raise for a member that is much larger than it looks.

    Args:
        info: The member.
        unpacked: Bytes of it and of those before it.

    Raises:
        ImportFailed: It is.
    """
    if info.file_size > max(SMALL_BYTES, MAX_RATIO * info.compress_size):
        raise ImportFailed(f"it unpacks to more than {MAX_RATIO} times its size, as zip bombs do")
    if unpacked > MAX_UNPACKED_BYTES:
        raise ImportFailed(f"the zip unpacks to more than {MAX_UNPACKED_BYTES // 1024**3} GiB")


def _open_refused(error: str) -> AbstractContextManager[Iterator[Element]]:
    """Return an opener that raises the error."""
    raise ImportFailed(error)


@contextmanager
def _open_elements(
    open_file: Callable[[], IO[bytes]], *, whole: bool = False
) -> Iterator[Iterator[Element]]:
    """Provide the elements of a file of JSON, while it is open."""
    with _readable():
        stream = open_file()
    with stream, closing(_elements(stream, open_file, whole=whole)) as told:
        yield told


def _elements(
    stream: IO[bytes], open_file: Callable[[], IO[bytes]], *, whole: bool
) -> Generator[Element]:
    def reopenable(element: Element) -> Element:
        return replace(element, reopen=open_file)

    with _readable():
        yield from map(reopenable, elements(stream, whole=whole))


@contextmanager
def _readable() -> Iterator[None]:
    """Translate what goes wrong while a file is read into an error that says so."""
    try:
        yield
    except _UNREADABLE as error:
        told = error.strerror if isinstance(error, OSError) else None
        raise ImportFailed(f"it cannot be read: {told or error}") from error
