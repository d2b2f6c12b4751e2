"""The files of an import, each with the path that its document has in the collection."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, Final

from pgcorpus.db.errors import ImportFailed
from pgcorpus.services.documentation.reading.formats import (
    MAX_DOCUMENT_BYTES,
    SUFFIXES,
    is_readable,
)
from pgcorpus.services.importers.archives import (
    explain_unreadable,
    list_members,
    open_archive,
)
from pgcorpus.services.importers.files import Found, find_files, refuse_special

ZIP: Final = ".zip"
PASSED_OVER: Final = frozenset(("node_modules", "__pycache__", "venv"))
"""Folders that hold no documents of one's own. So do those whose names begin with a dot."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """A file, or a member of a zip, that is to become a document.

    Attributes:
        name: For reports: the path as given, for a member that of its zip before its own.
        key: Its name in the tables.
        path: The path of its document in the collection, with slashes.
        inner: Its path within the folder or zip that was given.
        size_bytes: Its share of the progress.
        read: Returns its content; raises ``ImportFailed`` where it cannot be read.
        error: Why there is nothing to read, or None.
        skipped: Why it is left alone, or None.
    """

    name: str
    key: str
    path: str
    inner: str = ""
    size_bytes: int = 0
    read: Callable[[], bytes] = bytes
    error: str | None = None
    skipped: str | None = None


@dataclass(frozen=True)
class Root:
    """A path as it was given, with what it stands for in the collection.

    Attributes:
        prefix: Beginning of the paths of its documents; None where it is a single file.
        sources: What it holds.
    """

    prefix: str | None
    sources: Sequence[Source]


def find_roots(paths: Sequence[Path], zips: ExitStack) -> list[Root]:
    """Find the files at *paths*: files, folders, zips, and patterns such as ``docs/**/*.md``.

    The document of a file in a folder has the path of the folder as it was given, and its own
    within it: ``handbook/start.md`` is the same document, whether ``handbook`` is imported or that
    file. Of a folder outside of the working directory the name alone counts.

    Args:
        paths: As they were given.
        zips: Closes the zips among them, when all is read.
    """
    return [_find_at(each, zips) for path in paths for each in _expand(path)]


def _expand(path: Path) -> Iterator[Path]:
    """Yield the files that match a pattern, or what is no pattern itself."""
    if not path.exists() and any(character in str(path) for character in "*?["):
        matching = sorted(Path().glob(str(path))) if not path.is_absolute() else []
        yield from (each for each in matching if each.is_file())
        if matching:
            return
    yield path


def _find_at(path: Path, zips: ExitStack) -> Root:
    given = name_path(path)
    sources: list[Source] = []
    is_folder = path.is_dir()
    suffixes = frozenset({*SUFFIXES, ZIP}) if is_folder else frozenset()
    for found in find_files([path], suffixes):
        inner, within = Path(found.path.name), PurePosixPath(given)
        if is_folder and found.path != path:
            inner = found.path.relative_to(path)
            if reason := _pass_over(inner):
                sources.append(
                    Source(name=found.name, key=found.key, path=str(inner), skipped=reason)
                )
                continue
            within = PurePosixPath(given, *inner.parts)
        sources += _list_sources(found, str(within), inner.as_posix(), zips)
    is_single = not is_folder and all(source.path == given for source in sources)
    return Root(None if is_single else _prefix_of(given), sources)


def name_path(path: Path) -> str:
    """Return the path that a given file or folder has in the collection."""
    if path.is_absolute() or ".." in path.parts:
        return path.resolve().name
    return path.as_posix() if path.parts else ""


def _prefix_of(given: str) -> str:
    return f"{given}/" if given else ""


def _pass_over(inner: Path) -> str | None:
    """Return why what stands at this path within a folder is left alone, or None."""
    for part in inner.parts[:-1]:
        if part.startswith(".") or part in PASSED_OVER:
            return f"it is in a folder called {part}; name the folder itself to import it"
    return None


def _list_sources(found: Found, path: str, inner: str, zips: ExitStack) -> Iterator[Source]:
    source = partial(Source, name=found.name, key=found.key, path=path, inner=inner)
    if found.error is not None:
        yield source(error=found.error)
        return
    try:
        with explain_unreadable():
            refuse_special(found.path)
    except ImportFailed as error:
        yield source(error=str(error))
        return
    if found.path.suffix.lower() == ZIP:
        yield from _list_zipped(found, path, zips)
        return

    def open_file() -> IO[bytes]:
        return found.path.open("rb")

    yield source(size_bytes=found.size_bytes, read=partial(_read, open_file, found.size_bytes))


def _list_zipped(found: Found, path: str, zips: ExitStack) -> Iterator[Source]:
    try:
        archive = zips.enter_context(open_archive(found))
        for member in list_members(archive):
            if is_readable(member.path) or member.error is not None:
                yield Source(
                    name=f"{found.name}/{member.path}",
                    key=f"{found.key}/{member.path}",
                    path=f"{path}/{member.path}",
                    inner=member.path,
                    size_bytes=member.packed_bytes,
                    read=partial(_read, member.open, member.length),
                    error=member.error,
                    skipped=member.skipped,
                )
    except ImportFailed as error:
        yield Source(name=found.name, key=found.key, path=path, error=str(error))


def _read(open_file: Callable[[], IO[bytes]], size: int) -> bytes:
    _refuse_long(size)
    with explain_unreadable(), open_file() as file:
        content = file.read(MAX_DOCUMENT_BYTES + 1)
    _refuse_long(len(content))
    return content


def _refuse_long(size: int) -> None:
    if size > MAX_DOCUMENT_BYTES:
        raise ImportFailed(
            f"it is longer than {MAX_DOCUMENT_BYTES // 1024**2} MiB; documents are read whole: "
            "divide it"
        )
