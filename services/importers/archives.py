"""Zips, read without trust: their members are streamed, and never unpacked to disk."""

from __future__ import annotations

import lzma
import stat
import zipfile
import zlib
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PureWindowsPath
from typing import IO, Final

from pgcorpus.db.errors import ImportFailed
from pgcorpus.services.importers.files import Found, printable

MAX_RATIO: Final = 200
"""Bytes of a zip's member for each byte it takes in the zip. Texts shrink to a fifth or a tenth,
the same sentence over and over to a hundredth; bombs reach a thousandth."""

MAX_UNPACKED_BYTES: Final = 16 * 1024**3
"""Bytes of all members of one zip. They are never unpacked to disk or in memory: this bounds
time."""

SMALL_BYTES: Final = 1024**2
"""A member that unpacked is not longer is no bomb, however well it is packed."""

_ENCRYPTED: Final = 1
"""Bit of a member's flags (APPNOTE.TXT, 4.4.4)."""

MARKS: Final = (b"PK\x03\x04", b"PK\x05\x06")
"""First bytes of a zip; the second are those of an empty one."""

PEEKED_BYTES: Final = 512
"""Length of the beginning of a file that tells its kind."""

UNREADABLE: Final = (
    OSError,
    EOFError,
    NotImplementedError,  # a way of packing that Python does not know
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
)
"""Errors of a file that cannot be read, within a zip or not."""


@dataclass(frozen=True, kw_only=True)
class Member:
    """A member of a zip.

    Attributes:
        path: Within the zip.
        packed_bytes: Its length in the zip.
        length: Its length unpacked, in bytes.
        open: Opens it, for as long as the zip is open.
        head: Its first ``PEEKED_BYTES``; empty where it is refused or skipped.
        skipped: Why it is left alone, or None.
        error: Why it is refused, or None.
    """

    path: str
    packed_bytes: int
    length: int
    open: Callable[[], IO[bytes]]
    head: bytes = b""
    skipped: str | None = None
    error: str | None = None


@contextmanager
def open_archive(found: Found) -> Iterator[zipfile.ZipFile]:
    """Open a zip.

    Raises:
        ImportFailed: It is damaged, whether that is seen now or by who reads its members.
    """
    try:
        with zipfile.ZipFile(found.path) as archive:
            yield archive
    except UNREADABLE as error:
        raise ImportFailed(f"the zip is damaged: {error}") from error


def list_members(archive: zipfile.ZipFile) -> Generator[Member]:
    """Yield the files in an open zip.

    Raises:
        ImportFailed: Some of its members are encrypted; the others have been yielded by then.
    """
    unpacked = 0
    encrypted = [info for info in archive.infolist() if info.flag_bits & _ENCRYPTED]
    for info in archive.infolist():
        if info.is_dir() or info.flag_bits & _ENCRYPTED:
            continue
        unpacked += info.file_size
        make = partial(
            Member,
            path=_name(info),
            packed_bytes=info.compress_size,
            length=info.file_size,
            open=partial(archive.open, info),
        )
        try:
            _refuse_escape(info)
            if stat.S_ISLNK(info.external_attr >> 16):
                yield make(skipped="it is a link")
                continue
            with explain_unreadable(), archive.open(info) as member:
                head = member.read(PEEKED_BYTES)
            if head.startswith(MARKS) and info.filename.lower().endswith(".zip"):
                yield make(skipped="a zip within a zip is not opened")
                continue
            _refuse_bomb(info, unpacked)
        except ImportFailed as error:
            yield make(error=str(error))
        else:
            yield make(head=head)
    if encrypted:
        raise ImportFailed(
            f"{len(encrypted)} of its members are encrypted, {_name(encrypted[0])} for one; unpack "
            "it, and import the folder"
        )


def _name(info: zipfile.ZipInfo) -> str:
    return printable(Path(info.filename))


def _refuse_escape(info: zipfile.ZipInfo) -> None:
    path = PureWindowsPath(info.filename)  # it takes slashes of both kinds, and knows drives
    if path.anchor or ".." in path.parts:
        raise ImportFailed("its path leads out of the zip")


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


@contextmanager
def explain_unreadable() -> Iterator[None]:
    """Translate what goes wrong while a file is read into an error that says so."""
    try:
        yield
    except UNREADABLE as error:
        told = error.strerror if isinstance(error, OSError) else None
        raise ImportFailed(f"it cannot be read: {told or error}") from error
