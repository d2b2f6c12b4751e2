"""The folder of backups: each is a folder of its own, which appears when it is complete."""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import IO, Final, Self

from pgcorpus.db.errors import BackupDamaged, BackupError, SettingsError
from pgcorpus.services.ops.backup import manifest as manifests
from pgcorpus.services.ops.backup.encryption import (
    EncryptingWriter,
    decrypt,
    require_cryptography,
)
from pgcorpus.services.ops.backup.manifest import Manifest

UNFINISHED: Final = ".unfinished-"
BACKUP: Final = re.compile(r"pgcorpus_(\d{8}T\d{6})(\d{6})?Z")
FILE: Final = re.compile(r"[a-z][a-z0-9_]*(\.[a-z]+)+")
TIMES: Final = "%Y%m%dT%H%M%S"
BLOCK_BYTES: Final = 1 << 20

Progress = Callable[[str, int, int | None], None]
"""A function that is told a stage, what of it is done, and the whole, or None if it is unknown."""


@dataclass(frozen=True)
class Backup:
    """A complete backup.

    Attributes:
        path: Its folder.
        manifest: What it holds.
    """

    path: Path
    manifest: Manifest

    @property
    def name(self) -> str:
        """The name of its folder."""
        return self.path.name

    @classmethod
    def open(cls, path: Path, key: str | None) -> Self:
        """Open a backup, and compare the sizes of its files with its manifest.

        Raises:
            BackupDamaged: It is no complete backup, or a file is missing, truncated or foreign.
        """
        _refuse_no_folder(path)
        with open_file(path / manifests.NAME) as file:
            written = file.read(manifests.MOST_BYTES + 1)
        if len(written) > manifests.MOST_BYTES:
            raise BackupDamaged(f"{path.name} has no readable manifest: it is too long")
        manifest = Manifest.read(written, key, path.name)
        for name, described in manifest.files.items():
            if not FILE.fullmatch(name):
                raise BackupDamaged(f"{path.name} names a file that is none of its own: {name!r}")
            with open_file(path / name) as file:
                size = os.fstat(file.fileno()).st_size
            if size != described.bytes:
                raise BackupDamaged(
                    f"{path.name}/{name} has {size:,} bytes instead of {described.bytes:,}: it was "
                    "truncated or changed"
                )
        return cls(path, manifest)

    def refuse_changed(self, progress: Progress) -> None:
        """Compare the SHA-256 of every file with the manifest's.

        Raises:
            BackupDamaged: One is not as it was made.
        """
        done = 0
        for name, described in self.manifest.files.items():
            digest = hashlib.sha256()
            with open_file(self.path / name) as file:
                while block := file.read(BLOCK_BYTES):
                    digest.update(block)
                    done += len(block)
                    progress("reading files", done, self.manifest.size_bytes)
            if digest.hexdigest() != described.sha256:
                raise BackupDamaged(
                    f"{self.name}/{name} was changed: its SHA-256 is not the one of the manifest"
                )

    def read(self, name: str, key: str | None) -> Iterator[bytes]:
        """Yield the content of a file, decrypted.

        Raises:
            BackupDamaged: It is missing, or not as it was made.
            SettingsError: It is encrypted, and there is no key.
        """
        if name not in self.manifest.files:
            raise BackupDamaged(f"{self.name} has no {name}")
        with open_file(self.path / name) as file:
            if self.manifest.encrypted:
                yield from decrypt(file, require_key(key, self.name), f"{self.name}/{name}")
            else:
                while block := file.read(BLOCK_BYTES):
                    yield block


def require_key(key: str | None, name: str) -> str:
    """Return the key of an encrypted backup.

    Raises:
        SettingsError: There is none, or the library is missing that decrypts.
    """
    if key is None:
        raise SettingsError(
            f"{name} is encrypted: set BACKUP_KEY to the key with which it was made"
        )
    require_cryptography()
    return key


def open_file(path: Path) -> IO[bytes]:
    """Open a file of a backup: never through a link, and nothing but a file.

    Raises:
        BackupDamaged: It is missing, a link, or no file.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise BackupDamaged(
            f"{path.parent.name} is no complete backup: {path.name} cannot be read "
            f"({error.strerror})"
        ) from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise BackupDamaged(f"{path.parent.name} is no backup: {path.name} is no file")
    return os.fdopen(descriptor, "rb")


@dataclass(frozen=True)
class Listed:
    """An entry of the folder of backups.

    Attributes:
        name: Of its folder.
        backup: The backup, or None where it is not whole.
        problem: Why it is not, or None.
    """

    name: str
    backup: Backup | None
    problem: str | None


class Store:
    """The folder in which backups are.

    Args:
        folder: Its path; made when the first backup is.
        key: The secret that encrypts backups, or None.
    """

    def __init__(self, folder: Path, key: str | None) -> None:
        self.folder = folder
        self.key = key

    def find(self, named: str) -> Backup:
        """Open the backup that a person named: by its folder's name or path, or ``latest``.

        Raises:
            BackupDamaged: There is none, or it is not whole.
        """
        if named == "latest":
            whole = [each.backup for each in self.list_backups() if each.backup is not None]
            if not whole:
                raise BackupDamaged(
                    f"there is no whole backup in {self.folder}; make one with: "
                    "pgcorpus backup create"
                )
            return whole[-1]
        path = Path(named)
        return Backup.open(path if len(path.parts) > 1 else self.folder / named, self.key)

    def list_backups(self) -> list[Listed]:
        """List what looks like a backup, the oldest first."""
        found: list[Listed] = []
        with suppress(FileNotFoundError):
            for path in sorted(self.folder.iterdir()):
                if not BACKUP.fullmatch(path.name):
                    continue
                try:
                    found.append(Listed(path.name, Backup.open(path, self.key), None))
                except BackupDamaged as error:
                    found.append(Listed(path.name, None, str(error)))
        return found

    def list_old(self, days: int, now: datetime, progress: Progress) -> list[Backup]:
        """List the backups that are older than some days, but the newest good one of all.

        That one is read whole. What is not as it was made is nobody's last hope, and yet it is
        left to a person.
        """
        whole = [each.backup for each in self.list_backups() if each.backup is not None]
        before = now - timedelta(days=days)
        while whole and any(each.manifest.created_at < before for each in whole):
            newest = whole.pop()
            with suppress(BackupDamaged):
                newest.refuse_changed(progress)
                return [each for each in whole if each.manifest.created_at < before]
        return []

    def delete(self, backup: Backup) -> None:
        """Delete a backup: first its name, so that no half of one looks complete."""
        gone = self.folder / f"{UNFINISHED}{backup.name}"
        backup.path.rename(gone)
        _sync(self.folder)
        shutil.rmtree(gone)

    @contextmanager
    def begin(self, created_at: datetime) -> Iterator[Unfinished]:
        """Provide a folder for the files of a new backup; it is deleted unless it was finished.

        Raises:
            BackupError: It cannot be made.
        """
        name = f"pgcorpus_{created_at.astimezone(UTC):{TIMES}}Z"
        if (self.folder / name).exists():
            name = f"pgcorpus_{created_at.astimezone(UTC):{TIMES}%f}Z"
        path = self.folder / f"{UNFINISHED}{name}"
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            _refuse_no_folder(self.folder)
            self._sweep()
            path.mkdir(mode=0o700)
            lock = os.open(path, os.O_RDONLY)
        except OSError as error:
            raise BackupError(
                f"no backup can be made in {self.folder}: {error.strerror}; name another folder "
                "with --to or BACKUP_DIR"
            ) from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield Unfinished(path, self.folder / name, self.key)
        except OSError as error:
            raise BackupError(
                f"the backup in {self.folder} was not finished: {error.strerror or error}"
            ) from error
        finally:
            os.close(lock)
            shutil.rmtree(path, ignore_errors=True)

    def _sweep(self) -> None:
        """Delete what killed processes have left; what a living one writes is locked."""
        for path in self.folder.glob(f"{UNFINISHED}*"):
            with suppress(OSError):
                lock = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_DIRECTORY)
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(path)
                finally:
                    os.close(lock)


class Unfinished:
    """A backup that is being written.

    Args:
        path: The folder it is written into.
        final: Its name when it is complete.
        key: The secret that encrypts it, or None.
    """

    def __init__(self, path: Path, final: Path, key: str | None) -> None:
        self._path = path
        self.final = final
        self._key = key
        self._files: dict[str, manifests.File] = {}

    @contextmanager
    def write(self, name: str) -> Iterator[Writer]:
        """Provide a writer of a file, which is on disk afterwards."""
        with _create(self._path / name) as file:
            writer = Writer(file, self._key)
            yield writer
            self._files[name] = writer.finish()
            file.flush()
            os.fsync(file.fileno())

    @property
    def encrypted(self) -> bool:
        """True if its files are encrypted."""
        return self._key is not None

    def finish(self, manifest: Manifest) -> Backup:
        """Write the manifest, the last file, and give the backup its name."""
        whole = replace(manifest, files=self._files)
        with _create(self._path / manifests.NAME) as file:
            file.write(whole.write(self._key))
            file.flush()
            os.fsync(file.fileno())
        _sync(self._path)
        self._path.rename(self.final)
        _sync(self.final.parent)
        return Backup(self.final, whole)


class Writer:
    """Writes a file, encrypts it if there is a key, and counts and hashes what is on disk.

    Args:
        file: Where to.
        key: The secret, or None.
    """

    def __init__(self, file: IO[bytes], key: str | None) -> None:
        self._file = file
        self._digest = hashlib.sha256()
        self.bytes = 0
        self._encrypting = None if key is None else EncryptingWriter(self, key)

    def add(self, data: bytes) -> None:
        """Write some bytes of the content."""
        if self._encrypting is None:
            self.write(data)
        else:
            self._encrypting.write(data)

    def write(self, data: bytes) -> None:
        """Write some bytes as they are on disk."""
        self._file.write(data)
        self._digest.update(data)
        self.bytes += len(data)

    def finish(self) -> manifests.File:
        """End the content; return its size and SHA-256 on disk."""
        if self._encrypting is not None:
            self._encrypting.finish()
        return manifests.File(self.bytes, self._digest.hexdigest())


def _create(path: Path) -> IO[bytes]:
    """Create a file that its owner alone reads."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    return os.fdopen(os.open(path, flags, 0o600), "wb")


def _refuse_no_folder(path: Path) -> None:
    """Raise for a link: what it leads to may change between two looks.

    Raises:
        BackupDamaged: There is no folder, or a link to one.
    """
    try:
        mode = path.lstat().st_mode
    except OSError as error:
        raise BackupDamaged(
            f"there is no backup {path} ({error.strerror}); see: pgcorpus backup list"
        ) from error
    if not stat.S_ISDIR(mode):
        raise BackupDamaged(f"{path} is no backup: it is no folder, or a link to one")


def _sync(folder: Path) -> None:
    """Make sure that the names in a folder are on disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
