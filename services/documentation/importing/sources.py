"""The files of an import, each with the path that its document has in the collection."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
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
from pgcorpus.services.importers.files import Found, find_files, printable, refuse_special

ZIP: Final = ".zip"
PASSED_OVER: Final = frozenset(("node_modules", "__pycache__", "venv"))
"""Folders that hold no documents of one's own. So do those whose names begin with a dot."""

WILDCARDS: Final = "*?["
NO_SUFFIX: Final = "without a suffix"


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
    """

    name: str
    key: str
    path: str
    inner: str = ""
    size_bytes: int = 0
    read: Callable[[], bytes] = bytes
    error: str | None = None


@dataclass
class Root:
    """A path as it was given, with what it stands for in the collection.

    Attributes:
        prefix: Beginning of the paths of its documents; None where it is a single file.
        sources: What it holds.
        skipped: What is left alone, a name and the reason.
        others: Suffixes of files of other formats → how many there are.
    """

    prefix: str | None
    sources: list[Source] = field(default_factory=list)
    skipped: list[tuple[str, str]] = field(default_factory=list)
    others: Counter[str] = field(default_factory=Counter)

    def pass_over(self, path: Path) -> None:
        """Count a file of another format, or note a folder that is not entered."""
        if not _is_entered(path.name) and path.is_dir():
            self.skipped.append(
                (printable(path), "hidden, or what was installed; name the folder to import it")
            )
        else:
            self.others[_suffix_of(path.name)] += 1


def find_roots(paths: Sequence[Path], zips: ExitStack) -> list[Root]:
    """Find the files at *paths*: files, folders, zips, and patterns such as ``wiki/**/*.md``.

    The document of a file in a folder has the path of the folder as it was given, and its own
    within it: ``wiki/guide/start.md`` is the same document, whether ``wiki`` is imported or that
    file. Of a folder outside of the working directory the name alone counts; so it does of the
    working directory itself.

    Args:
        paths: As they were given.
        zips: Closes the zips among them, when all is read.
    """
    return [root for path in paths for root in _find_at(path, zips)]


def _find_at(path: Path, zips: ExitStack) -> Iterator[Root]:
    if path.exists() or not any(character in str(path) for character in WILDCARDS):
        yield _list_root(path, zips)
        return
    matching = _expand(path)
    if not matching:
        yield Root(None, [_refuse(path, "no file matches the pattern")])
    others = Root(None)
    for each in matching:
        if is_readable(each.name) or each.suffix.lower() == ZIP:
            yield _list_root(each, zips)
        else:
            others.pass_over(each)
    yield others


def _expand(pattern: Path) -> list[Path]:
    """Return the files that match a pattern, but for those in folders that are not entered."""
    start = Path(pattern.anchor)
    try:
        found = sorted(start.glob(str(pattern.relative_to(pattern.anchor))))
    except (OSError, ValueError):  # such as ** beside other characters
        return []
    named = set(pattern.parts)
    return [
        each
        for each in found
        if all(part in named or _is_entered(part) for part in each.parts[:-1]) and each.is_file()
    ]


def _list_root(path: Path, zips: ExitStack) -> Root:
    given = name_path(path)
    is_folder = path.is_dir()
    root = Root(f"{given}/" if given else None)
    suffixes = frozenset({*SUFFIXES, ZIP}) if is_folder else frozenset()
    for found in find_files([path], suffixes, enters=_is_entered, pass_over=root.pass_over):
        inner, within = found.path.name, given
        if is_folder and found.path != path:
            inner = printable(found.path.relative_to(path))
            within = f"{given}/{inner}" if given else inner
        root.sources += _list_sources(found, within, inner, zips, root)
    if not is_folder and path.suffix.lower() != ZIP:
        root.prefix = None
    return root


def name_path(path: Path) -> str:
    """Return the path that a given file or folder has in the collection."""
    if path.is_absolute() or ".." in path.parts or not path.parts:
        path = Path(path.resolve().name)
    return PurePosixPath(printable(path)).as_posix() if path.parts else ""


def _is_entered(name: str) -> bool:
    return not name.startswith(".") and name not in PASSED_OVER


def _is_in_entered(path: str) -> bool:
    return all(map(_is_entered, PurePosixPath(path).parts[:-1]))


def _suffix_of(name: str) -> str:
    return PurePosixPath(name).suffix.lower() or NO_SUFFIX


def _refuse(path: Path, error: str) -> Source:
    name = printable(path)
    return Source(name=name, key=name, path=name_path(path), error=error)


def _list_sources(
    found: Found, path: str, inner: str, zips: ExitStack, root: Root
) -> Iterator[Source]:
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
        yield from _list_zipped(found, path, zips, root)
        return

    def open_file() -> IO[bytes]:
        return found.path.open("rb")

    yield source(size_bytes=found.size_bytes, read=partial(_read, open_file, found.size_bytes))


def _list_zipped(found: Found, path: str, zips: ExitStack, root: Root) -> Iterator[Source]:
    try:
        archive = zips.enter_context(open_archive(found))
        for member in list_members(archive):
            name = f"{found.name}/{member.path}"
            if member.skipped is not None:
                root.skipped.append((name, member.skipped))
            elif member.error is None and not _is_in_entered(member.path):
                root.skipped.append((name, "in a folder that is hidden, or was installed"))
            elif member.error is not None or is_readable(member.path):
                yield Source(
                    name=name,
                    key=f"{found.key}/{member.path}",
                    path=f"{path}/{member.path}",
                    inner=member.path,
                    size_bytes=member.packed_bytes,
                    read=partial(_read, member.open, member.length),
                    error=member.error,
                )
            else:
                root.others[_suffix_of(member.path)] += 1
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
