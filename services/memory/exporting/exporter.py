"""A scope's memories written as the files that an agent of old reads: the way back."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields
from datetime import datetime
from itertools import count
from pathlib import Path
from typing import Any, Final

import numpy as np

from pgcorpus.db.engine import Database
from pgcorpus.db.errors import DataLayerError, Misuse, NotFound
from pgcorpus.db.repositories.memory.imports import Kind
from pgcorpus.db.scope import Scope
from pgcorpus.db.uow import UnitOfWork
from pgcorpus.services.choices import MEMORY_MODEL
from pgcorpus.services.corpus import Progress
from pgcorpus.services.importers.files import printable
from pgcorpus.services.importers.language import DEFAULT_LANGUAGE
from pgcorpus.services.memory.importing.importer import PARTS

ONLY_HERE: Final[Mapping[str, object]] = {"duplicate_of": None, "language": DEFAULT_LANGUAGE}
"""Fields that the files of old did not have; one of this value is left out, as there."""


@dataclass
class Written:
    """Numbers of records in the files that were written."""

    memories: int = 0
    episodes: int = 0
    vectors: int = 0

    def count_rows(self) -> Mapping[str, int]:
        """Return the numbers by their names."""
        return asdict(self)


class MemoryExporter:
    """Writes what a user or a tenant remembers as a folder that ``MemoryImporter`` reads.

    ``corpus/nodes.json``, ``vectors/nodes.npy`` and the same of episodes, all of one moment. A
    record is in memory at a time. It works as an operator does: whoever logs in enters the scope.
    Fields that came with an import and have no column are written
    where they stood.

    Args:
        database: Where from.
        scope: Whose.
        embeddings_model: Whose vectors are written. A record without one has a row of zeros, by
            which an import leaves it to a worker; without any there is no file of vectors.
        replace: Whether such files that are there are replaced.
    """

    def __init__(
        self,
        database: Database,
        scope: Scope,
        *,
        embeddings_model: str = MEMORY_MODEL,
        replace: bool = False,
    ) -> None:
        self._database = database
        self._scope = scope
        self._embeddings_model = embeddings_model
        self._replace = replace

    def write(self, path: Path, *, progress: Progress = lambda _done, _total: None) -> Written:
        """Write the files into a folder, which is made; each is there when it is whole.

        Args:
            path: The folder.
            progress: Is told how many records are written, of how many.

        Raises:
            NotFound: There is no such user or tenant, or nothing is remembered.
            MissingScope: The user's memories are a tenant's.
            UnknownModel: The model is not registered.
            Misuse: There are such files already.
            DataLayerError: They cannot be written.
        """
        names = [Path(name) for part in PARTS for name in (part.records, part.vectors)]
        there = [path / name for name in names if (path / name).exists()]
        if there and not self._replace:
            raise Misuse(
                f"there is {printable(there[0])} already; name another folder, or give --replace"
            )
        with self._database.unit_of_work() as work:
            work.enter(self._scope)
            work.memory_exports.begin()
            work.tenancy.require_scope()
            dimensions = work.models.get_model(self._embeddings_model).dimensions
            counts = [work.memory_exports.count(part.kind) for part in PARTS]
            memories, episodes = counts
            if not any(counts):
                raise NotFound("nothing is remembered in this scope; see: pgcorpus memory recall")
            try:
                with _make_folder(path) as folder:
                    embedded = 0
                    written = _count_up(progress, sum(counts))
                    for part, size in zip(PARTS, counts, strict=True):
                        files = folder / part.records, folder / part.vectors if size else None
                        embedded += self._write_part(
                            work, part.kind, files, (size, dimensions), written
                        )
                    _move(folder, path, names)
            except OSError as error:
                raise DataLayerError(
                    f"{printable(path)} cannot be written: {error.strerror}; name another folder"
                ) from error
        return Written(memories, episodes, embedded)

    def _write_part(
        self,
        work: UnitOfWork,
        kind: Kind,
        files: tuple[Path, Path | None],
        shape: tuple[int, int],
        written: Callable[[], None],
    ) -> int:
        """Write the records of a kind and their vectors; return how many vectors there are."""
        (records, vectors), rows = files, None
        if vectors is not None:
            rows = np.lib.format.open_memmap(vectors, mode="w+", dtype=np.float32, shape=shape)
        embedded = 0
        names = [field.name for field in fields(kind.record)]
        with (
            records.open("w", encoding="utf-8", newline="\n") as file,
            work.memory_exports.stream(kind, self._embeddings_model) as found,
        ):
            file.write("[")
            for place, row in enumerate(found):
                file.write(f"{',' if place else ''}\n{_as_json(names, row)}")
                if row["embedding"] is not None and rows is not None:
                    rows[place] = row["embedding"]
                    embedded += 1
                written()
            file.write("\n]\n")
        if rows is not None and vectors is not None:
            rows.flush()
            del rows
            if not embedded:
                vectors.unlink()
        return embedded


def _count_up(progress: Progress, total: int) -> Callable[[], None]:
    """Return what tells *progress* of one record more each time that it is called."""
    done = count(1)
    return lambda: progress(next(done), total)


def _as_json(names: list[str], row: Mapping[str, Any]) -> str:
    """Return a record as it stands in a file: its fields, and those that have no column."""
    record = {
        name: value.isoformat() if isinstance(value := row[name], datetime) else value
        for name in names
        if name != "extra" and not (name in ONLY_HERE and row[name] == ONLY_HERE[name])
    }
    return json.dumps(record | row["extra"], ensure_ascii=False)


@contextmanager
def _make_folder(path: Path) -> Iterator[Path]:
    """Provide an empty folder in *path*, for its owner alone; it does not stay.

    *path* is made, and does not stay either if nothing comes into it.
    """
    is_new = not path.exists()
    path.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=".export.", suffix=".part", dir=path))
    try:
        for part in PARTS:
            for name in (part.records, part.vectors):
                (folder / name).parent.mkdir(exist_ok=True)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if is_new:
            with suppress(OSError):  # it has the export
                path.rmdir()


def _move(folder: Path, path: Path, names: list[Path]) -> None:
    """Move the files to their places; one of an earlier export that this has not goes."""
    for name in names:
        source, target = folder / name, path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.exists():
            source.chmod(0o600)  # what somebody said is theirs
            source.replace(target)
        else:
            target.unlink(missing_ok=True)
