"""Truncated, altered and foreign files and links are refused; the last whole backup stays."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from pgcorpus.db.errors import BackupDamaged, SettingsError
from pgcorpus.db.repositories.operations.backups import Fingerprint
from pgcorpus.services.ops.backup.manifest import DUMP, NAME, Manifest
from pgcorpus.services.ops.backup.store import UNFINISHED, Backup, Store

KEY = "k" * 32
NOW = datetime(2026, 11, 30, tzinfo=UTC)
MANIFEST = Manifest(
    created_at=NOW,
    version="1",
    revision="0011",
    drift=[],
    server="18.1",
    server_major=18,
    program=18,
    database="corpus",
    encoding="UTF8",
    collate="C.UTF-8",
    ctype="C.UTF-8",
    extensions={"vector": "0.8.5"},
    roles=["owner"],
    owners=["owner"],
    database_rights=[("rag_admin", "CONNECT")],
    encrypted=False,
    tables={"public.jobs": Fingerprint(2, "17")},
    sequences={"public.jobs_id_seq": 2},
    indexes=["public.pk_jobs"],
    grants=["SELECT on table jobs to rag_admin"],
    row_security=["jobs: forced"],
    last_seal=(1, "ab"),
)


def make(store: Store, *, days_old: int = 0) -> Backup:
    """Write a backup, as ``create`` does, of a dump that is none."""
    created_at = NOW - timedelta(days=days_old)
    with store.begin(created_at) as unfinished:
        with unfinished.write(DUMP) as writer:
            writer.add(b"secret rows " * 1000)
        encrypted = store.key is not None
        return unfinished.finish(replace(MANIFEST, created_at=created_at, encrypted=encrypted))


def silently(_stage: str, _done: int, _total: int | None) -> None:
    """Show no progress."""


def check(backup: Path, key: str | None = None) -> None:
    """Read a backup as ``verify`` does before it restores anything."""
    opened = Backup.open(backup, key)
    opened.refuse_changed(silently)
    for name in opened.manifest.files:
        b"".join(opened.read(name, key))


@pytest.fixture(params=[None, KEY], ids=["plain", "encrypted"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """A folder of backups, with a key and without."""
    return Store(tmp_path / "backups", request.param)


def test_what_was_written_is_read(store: Store) -> None:
    """Content and manifest are the same, and the name has the time in UTC."""
    backup = make(store)
    opened = Backup.open(backup.path, store.key)
    assert opened == backup
    assert b"".join(opened.read(DUMP, store.key)) == b"secret rows " * 1000
    assert backup.name == "pgcorpus_20261130T000000Z"
    assert (b"secret rows" in (backup.path / DUMP).read_bytes()) is (store.key is None)


def truncate(backup: Path) -> None:
    """Cut off its last byte."""
    file = backup / DUMP
    file.write_bytes(file.read_bytes()[:-1])


def lengthen(backup: Path) -> None:
    """Append a byte."""
    file = backup / DUMP
    file.write_bytes(file.read_bytes() + b"x")


def alter(backup: Path) -> None:
    """Change a bit in its middle."""
    file = backup / DUMP
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def remove(backup: Path) -> None:
    """Delete a file."""
    (backup / DUMP).unlink()


def link(backup: Path) -> None:
    """Put a link in the place of a file."""
    file = backup / DUMP
    elsewhere = backup.parent / "elsewhere"
    file.rename(elsewhere)
    file.symlink_to(elsewhere)


def link_folder(backup: Path) -> None:
    """Put a link in the place of the folder."""
    elsewhere = backup.parent / "elsewhere"
    backup.rename(elsewhere)
    backup.symlink_to(elsewhere)


def take_manifest(backup: Path) -> None:
    """Delete the manifest."""
    (backup / NAME).unlink()


def spoil_manifest(backup: Path) -> None:
    """Write a manifest that is no JSON."""
    (backup / NAME).write_text("{")


def write_foreign_manifest(backup: Path) -> None:
    """Write the manifest of another program."""
    (backup / NAME).write_text('{"format": "of another program"}')


def name_a_file_elsewhere(backup: Path) -> None:
    """Name a file outside of the backup."""
    secret = backup.parent / "secret.txt"
    secret.write_text("x")
    manifest = json.loads((backup / NAME).read_text())
    digest = hashlib.sha256(b"x").hexdigest()
    manifest["files"] = {"../secret.txt": {"bytes": 1, "sha256": digest}}
    (backup / NAME).write_text(json.dumps(manifest))


def put_a_pipe(backup: Path) -> None:
    """Put in the place of a file what a reader would wait for."""
    (backup / DUMP).unlink()
    os.mkfifo(backup / DUMP)


@pytest.mark.parametrize(
    "spoil",
    [
        truncate, lengthen, alter, remove, link, link_folder, take_manifest, spoil_manifest,
        write_foreign_manifest, name_a_file_elsewhere, put_a_pipe,
    ],
    ids=lambda each: each.__name__,
)  # fmt: skip
def test_a_backup_that_is_not_as_it_was_made_is_refused(
    store: Store, spoil: Callable[[Path], None]
) -> None:
    """Whatever happened to it."""
    backup = make(store)
    spoil(backup.path)
    with pytest.raises(BackupDamaged):
        check(backup.path, store.key)


def test_a_dump_exchanged_with_its_checksum_is_found_where_there_is_a_key(tmp_path: Path) -> None:
    """The manifest is authenticated, too."""
    store = Store(tmp_path / "backups", KEY)
    backup = make(store)
    manifest = json.loads((backup.path / NAME).read_text())
    manifest["tables"]["public.jobs"]["rows"] = 1
    (backup.path / NAME).write_text(json.dumps(manifest))
    with pytest.raises(BackupDamaged, match="manifest"):
        Backup.open(backup.path, KEY)


def test_a_file_of_another_backup_is_refused(store: Store) -> None:
    """It is whole, and foreign."""
    first, second = make(store, days_old=1), make(store)
    with (first.path / DUMP).open("ab") as file:
        file.write(b"")
    if store.key is None:
        (second.path / DUMP).write_bytes(b"other words " * 1000)
    else:
        shutil.copy(first.path / DUMP, second.path / DUMP)
    with pytest.raises(BackupDamaged, match="SHA-256"):
        check(second.path, store.key)


def test_an_encrypted_backup_is_not_opened_without_its_key(tmp_path: Path) -> None:
    """It is listed, for its age must be seen."""
    backup = make(Store(tmp_path / "backups", KEY))
    without = Store(tmp_path / "backups", None)
    assert [each.problem for each in without.list_backups()] == [None]
    with pytest.raises(SettingsError, match="BACKUP_KEY"):
        check(backup.path)


def test_an_unfinished_backup_looks_like_none(store: Store) -> None:
    """An error deletes it; what a killed process has left the next backup deletes."""
    with (
        pytest.raises(ZeroDivisionError),
        store.begin(NOW) as unfinished,
        unfinished.write(DUMP) as writer,
    ):
        writer.add(b"half" * (1 // 0))
    assert list(store.folder.iterdir()) == []
    left = store.folder / f"{UNFINISHED}pgcorpus_20261129T000000Z"
    left.mkdir()
    (left / DUMP).write_text("half")
    assert store.list_backups() == []
    with store.begin(NOW - timedelta(days=2)):
        made = make(store)  # beside one that is being written
        assert not left.exists()
        assert len(list(store.folder.iterdir())) == 2
    assert [each.name for each in store.list_backups()] == [made.name]


def test_pruning_deletes_what_is_old_and_never_the_last_whole_one(store: Store) -> None:
    """Thirty days by default; a spoilt one is nobody's last hope, and does not count as one."""
    old = [make(store, days_old=days) for days in (40, 35, 31)]
    assert store.list_old(30, NOW, silently) == old[:-1]
    newest = make(store, days_old=2)
    assert store.list_old(30, NOW, silently) == old
    alter(newest.path)  # its size is what it was
    assert store.list_old(30, NOW, silently) == old[:-1]
    for each in store.list_old(30, NOW, silently):
        store.delete(each)
    assert sorted(path.name for path in store.folder.iterdir()) == [old[-1].name, newest.name]


def test_backups_are_found_by_name_by_path_and_as_the_latest(store: Store) -> None:
    """A name that is none is told."""
    make(store, days_old=1)
    newest = make(store)
    assert store.find("latest") == store.find(newest.name) == store.find(str(newest.path)) == newest
    with pytest.raises(BackupDamaged, match="there is no backup"):
        store.find("pgcorpus_20200101T000000Z")
