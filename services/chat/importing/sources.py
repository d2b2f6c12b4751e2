"""The sources of conversations: files, zips of the providers, folders, legacy stores."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import IO, Final

from pgcorpus.db.errors import ImportFailed
from pgcorpus.services.chat.importing.chroma import SOURCE as LEGACY
from pgcorpus.services.chat.importing.chroma import SQLITE, open_store
from pgcorpus.services.importers.archives import (
    MARKS,
    PEEKED_BYTES,
    Member,
    explain_unreadable,
    list_members,
    open_archive,
)
from pgcorpus.services.importers.files import Found, find_files
from pgcorpus.services.importers.stream import BYTE_ORDER_MARK, Element, elements

SUFFIXES: Final = frozenset({".json", ".jsonl", ".zip", ".sqlite3"})
"""Suffixes of the files that are looked at in a folder. Their content decides what they are."""

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


def find(paths: Sequence[Path]) -> tuple[list[Found], list[Path]]:
    """Return the files at *paths* that may be, or hold, sources, and the others in folders."""
    others: list[Path] = []
    found = list(find_files(paths, SUFFIXES, pass_over=others.append))
    return found, others


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
    if head.startswith(MARKS):
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
    with explain_unreadable(), found.path.open("rb") as file:
        return file.read(PEEKED_BYTES)


def _unreadable(found: Found, error: str) -> Source:
    return Source(name=found.name, key=found.key, open=partial(_open_refused, error))


def _members(found: Found) -> Iterator[Source]:
    try:
        with open_archive(found) as archive:
            for member in list_members(archive):
                yield _source_of(found, member)
    except ImportFailed as error:
        yield _unreadable(found, str(error))


def _source_of(found: Found, member: Member) -> Source:
    is_json = member.head.removeprefix(BYTE_ORDER_MARK).lstrip().startswith((b"[", b"{"))
    opened: Opened = partial(_open_elements, member.open)
    whole: Opened | None = partial(_open_elements, member.open, whole=True)
    skipped = member.skipped
    if member.error is not None:
        opened, whole = partial(_open_refused, member.error), None
    elif skipped is None and not is_json:
        skipped = "a zip within a zip is not opened" if member.head.startswith(MARKS) else NO_JSON
    return Source(
        name=f"{found.name}/{member.path}",
        key=f"{found.key}/{member.path}",
        size_bytes=member.packed_bytes,
        length=member.length,
        asked=False,
        skipped=skipped,
        open=opened,
        whole=whole,
    )


NO_JSON: Final = "it is not JSON"


def _open_refused(error: str) -> AbstractContextManager[Iterator[Element]]:
    """Return an opener that raises the error."""
    raise ImportFailed(error)


@contextmanager
def _open_elements(
    open_file: Callable[[], IO[bytes]], *, whole: bool = False
) -> Iterator[Iterator[Element]]:
    """Provide the elements of a file of JSON, while it is open."""
    with explain_unreadable():
        stream = open_file()
    with stream, closing(_elements(stream, open_file, whole=whole)) as told:
        yield told


def _elements(
    stream: IO[bytes], open_file: Callable[[], IO[bytes]], *, whole: bool
) -> Generator[Element]:
    def reopenable(element: Element) -> Element:
        return replace(element, reopen=open_file)

    with explain_unreadable():
        yield from map(reopenable, elements(stream, whole=whole))
