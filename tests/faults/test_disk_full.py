"""A disk that is full in the midst of work: nothing half-written stays, and work goes on after."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from uuid import UUID

import pytest
from sqlalchemy import text
from sqlalchemy.exc import OperationalError

from pgcorpus.db.embedded import EmbeddedServer
from pgcorpus.db.engine import Database
from pgcorpus.db.errors import (
    BackupError,
    DatabaseExhausted,
    DatabaseUnavailable,
    EmbeddedServerError,
)
from pgcorpus.db.search.corpora import KNOWLEDGE
from pgcorpus.services.jobs.worker import Worker
from pgcorpus.services.knowledge.importer import KnowledgeImporter
from pgcorpus.services.ops.backup.create import create
from pgcorpus.services.ops.backup.store import Store
from pgcorpus.services.ops.backup.verify import verify
from pgcorpus.services.ops.switch import ModelSwitch
from tests.conftest import settings_for
from tests.disks import small_disk
from tests.faults.servers import ask, server_of

pytestmark = pytest.mark.direct("a pooler stands before one server, and these are others")

CHUNKS = 400
SEGMENT_BYTES = 16 << 20
"""A file of the write-ahead log."""

WRITE_LOG = text("SELECT pg_logical_emit_message(true, 'tests', repeat('x', 2000000))")

TRIES = 20

Record = Callable[[str, object], None]


class Disk:
    """A small file system, and a file that fills it.

    Args:
        folder: Where it is mounted.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._ballast = folder / "ballast"

    def fill(self, *, but_bytes: int = 0) -> None:
        """Leave only so many bytes free; the server may write meanwhile."""
        self.free()
        for _ in range(TRIES):
            found = os.statvfs(self.folder)
            size = found.f_bavail * found.f_frsize - but_bytes
            with self._ballast.open("wb") as file, suppress(OSError):
                os.posix_fallocate(file.fileno(), 0, size)
                return
        raise AssertionError("the disk could not be filled")

    def free(self) -> None:
        """Give the space back."""
        self._ballast.unlink(missing_ok=True)


@dataclass(frozen=True)
class Filled:
    """A server on small disks.

    Attributes:
        server: The server. What its processes share has a disk of 8 MB.
        tables: The disk of its tables.
        log: The disk of its write-ahead log.
    """

    server: EmbeddedServer
    tables: Disk
    log: Disk

    def open(self, *, connect_retry_seconds: float = 2) -> Database:
        """Open its database."""
        settings = settings_for(self.server.url)
        return Database(
            replace(
                settings,
                programs=self.server.bin,
                connect_retry_seconds=connect_retry_seconds,
            )
        )


@pytest.fixture(scope="module")
def filled(server: EmbeddedServer) -> Iterator[Filled]:
    """A server on small disks, for all tests of this module."""
    with ExitStack() as stack:
        own = stack.enter_context(server_of(server, dynamic_shared_memory_type="mmap"))
        ask(own, "CHECKPOINT")
        own.stop()
        stack.callback(own.destroy)
        disks = {}
        for name, size in (("base", "160M"), ("pg_wal", "200M"), ("pg_dynshmem", "8M")):
            disk, folder = stack.enter_context(small_disk(size)), own._data / name
            # Not by shutil: the files stay those of PostgreSQL's account.
            subprocess.run(["/bin/cp", "-a", folder, disk / "moved"], check=True)
            shutil.rmtree(folder)
            folder.symlink_to(disk / "moved")
            disks[name] = Disk(disk)
        own.start()
        yield Filled(own, tables=disks["base"], log=disks["pg_wal"])


@pytest.fixture
def database(filled: Filled) -> Iterator[Database]:
    """The database of that server."""
    database = filled.open()
    yield database
    database.close()
    filled.tables.free()
    with database.engine.begin() as connection:
        connection.execute(text("TRUNCATE framework_documents, jobs CASCADE"))
    database.close()


@pytest.fixture
def disk(filled: Filled) -> Disk:
    """The disk of its tables."""
    return filled.tables


def write_chunks(folder: Path) -> Path:
    """Write a file to import that takes more than the disk has."""
    texts = (" ".join(word(n, m) for m in range(40)) for n in range(CHUNKS))
    chunks = [
        {
            "chunk_id": f"chunk_{n}",
            "title": f"Chunk {n}",
            "section": "Pricing",
            "content": content,
            "source_file": "pricing.md",
            "character_count": len(content),
            "word_count": len(content.split()),
            "chunk_type": "supporting",
        }
        for n, content in enumerate(texts)
    ]
    file = folder / "chunks.json"
    file.write_text(json.dumps({"chunks": chunks}))
    return file


def word(*numbers: int) -> str:
    """Make a word that no other text has, so that it takes place in every index."""
    return hashlib.sha256(str(numbers).encode()).hexdigest()[:24]


def count(database: Database, *tables: str) -> dict[str, int]:
    """Count the rows of tables."""
    with database.engine.connect() as connection:
        return {
            table: connection.scalar(text(f"SELECT count(*) FROM {table}")) or 0  # noqa: S608
            for table in tables
        }


STORED = ("framework_documents", "framework_metadata", "document_concepts", "source_lines", "jobs")


def test_an_import_leaves_nothing_and_can_be_repeated(
    database: Database, disk: Disk, tmp_path: Path, record_property: Record
) -> None:
    """The file is one transaction: text, indexes, jobs and entries of the audit log."""
    file = write_chunks(tmp_path)
    before = count(database, *STORED, "security_audit_log")
    disk.fill(but_bytes=1 << 18)

    with pytest.raises(DatabaseExhausted, match="no space left on the server's disk"):
        KnowledgeImporter(database).run([file])

    assert count(database, *STORED, "security_audit_log") == before
    disk.free()
    freed = time.monotonic()
    report = KnowledgeImporter(database).run([file])
    record_property("recovery_seconds", time.monotonic() - freed)
    assert (report.total("added"), report.total("rejected")) == (CHUNKS, 0)
    assert count(database, "framework_documents") == {"framework_documents": CHUNKS}


def test_a_worker_waits_until_there_is_room(
    database: Database,
    disk: Disk,
    tmp_path: Path,
    record_property: Record,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Vectors that have no room cost no job an attempt; with room, all are made."""
    caplog.set_level(logging.INFO, "pgcorpus")
    KnowledgeImporter(database).run([write_chunks(tmp_path)])
    with database.unit_of_work() as work:
        work.models.use_model("knowledge", "hashing")
        work.commit()
    disk.fill()
    worker = Worker(database, kinds=["embed"])
    thread = threading.Thread(target=worker.run)
    thread.start()
    try:
        wait_until(lambda: "the database is away: no space left" in caplog.text)
        time.sleep(2)
        assert caplog.text.count("no space left") == 1
        with database.unit_of_work() as work:
            assert work.embeddings.coverage(KNOWLEDGE, "hashing").embedded < CHUNKS
        disk.free()
        freed = time.monotonic()
        wait_until(lambda: "the database is back" in caplog.text)
        record_property("recovery_seconds", time.monotonic() - freed)
        wait_until(lambda: not has_jobs(database))
    finally:
        worker.stop()
        thread.join()

    with database.unit_of_work() as work:
        assert work.embeddings.coverage(KNOWLEDGE, "hashing").embedded == CHUNKS
    with database.engine.connect() as connection:
        ended = "SELECT DISTINCT status, attempts FROM jobs WHERE kind = 'embed'"
        assert [tuple(row) for row in connection.execute(text(ended))] == [("completed", 1)]


def test_where_processes_cannot_share_a_graph_one_builds_it(
    filled: Filled, database: Database, tmp_path: Path
) -> None:
    """Containers keep 64 MB in /dev/shm for what processes share."""
    KnowledgeImporter(database).run([write_chunks(tmp_path)])
    ask(filled.server, "ALTER TABLE chunk_embeddings SET (parallel_workers = 2)")
    log = filled.server.status().log
    before = log.stat().st_size

    ModelSwitch(database).add("small", dimensions=64, provider="hashing")

    ask(filled.server, "ALTER TABLE chunk_embeddings RESET (parallel_workers)")
    with database.unit_of_work() as work:
        indexes = work.vector_indexes.list_indexes(KNOWLEDGE, work.models.get_model("small"))
    assert [each.usable for each in indexes] == [True]
    said = log.read_bytes()[before:].decode()
    assert said.count("ERROR:") == said.count("No space left on device") == 1, said


def has_jobs(database: Database) -> bool:
    """Return whether texts wait for their vectors."""
    waiting = "SELECT EXISTS (SELECT FROM jobs WHERE kind = 'embed' AND status <> 'completed')"
    with database.engine.connect() as connection:
        return bool(connection.scalar(text(waiting)))


def wait_until(holds: Callable[[], bool], seconds: float = 60) -> None:
    """Wait until something holds."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def no_progress(_stage: str, _done: int, _total: int | None) -> None:
    """Show no progress."""


def find_failure(database: Database, store: Store) -> Exception | None:
    """Back up, and return the error, if there is one."""
    try:
        create(database, store, no_progress)
    except (DatabaseExhausted, BackupError) as error:
        return error
    return None


@pytest.mark.parametrize("whose", ["the database", "the backup"])
def test_a_backup_is_whole_or_is_not_there(
    database: Database, disk: Disk, whose: str, tmp_path: Path, record_property: Record
) -> None:
    """Whichever disk is full; with room, the next one is made, and restored."""
    KnowledgeImporter(database).run([write_chunks(tmp_path)])
    with small_disk("300k") as small:
        store = Store((small if whose == "the backup" else tmp_path) / "backups", None)
        if whose == "the database":
            disk.fill()
        if (error := find_failure(database, store)) is not None:
            assert "space" in str(error)
            assert store.list_backups() == []
        else:
            assert whose == "the database"  # the page of backup_log had room for an entry
            assert [each.problem for each in store.list_backups()] == [None]

        disk.free()
        roomy = Store(tmp_path / "backups", None)
        freed = time.monotonic()
        backup = create(database, roomy, no_progress)
        record_property("recovery_seconds", time.monotonic() - freed)
        assert verify(database, backup, None, no_progress).is_same


def keep_talk(database: Database) -> UUID:
    """Keep a conversation of five turns, and write much into the log with it."""
    with database.unit_of_work() as work:
        talk = work.chat.create("a talk").id
        for n in range(5):
            work.chat.append(talk, role="user", content=f"turn {n}")
        work.session.execute(WRITE_LOG)
        work.commit()
    return talk


def start_again(server: EmbeddedServer) -> None:
    """Start a server that may just be giving up its recovery, as there was no room for it."""
    for _ in range(TRIES):
        with suppress(EmbeddedServerError):
            server.start()
            return
        time.sleep(0.5)
    server.start()


def test_a_full_disk_of_the_log_loses_nothing(filled: Filled, record_property: Record) -> None:
    """PostgreSQL refuses or panics, and recovers with room: each commit is there, and no half."""
    database = filled.open()
    kept = [keep_talk(database)]
    # A slot that nobody reads keeps the log from being recycled.
    ask(filled.server, "SELECT pg_create_physical_replication_slot('unread', true)")
    filled.log.fill(but_bytes=SEGMENT_BYTES * 3 // 2)

    with pytest.raises((DatabaseExhausted, DatabaseUnavailable)):
        kept.extend(keep_talk(database) for _ in range(1000))
    with suppress(OperationalError):  # it panics now at the latest, unless its file has room
        ask(filled.server, "CHECKPOINT")
    database.close()
    filled.log.free()
    freed = time.monotonic()
    start_again(filled.server)
    database = filled.open(connect_retry_seconds=30)

    with database.engine.connect() as connection:
        found = connection.execute(
            text("SELECT conversation_id, count(*) FROM messages GROUP BY conversation_id")
        ).all()
        record_property("recovery_seconds", time.monotonic() - freed)
        talks = connection.scalar(text("SELECT count(*) FROM conversations"))
    database.close()
    ask(filled.server, "SELECT pg_drop_replication_slot('unread')")
    assert {row[1] for row in found} == {5}
    assert set(kept) <= {row[0] for row in found}
    assert len(kept) <= len(found) == talks <= len(kept) + 1  # the last was not answered
