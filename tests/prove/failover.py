"""A cluster of Patroni under load: a switchover, and a leader that dies.

Searches and workers have both servers in one address. They go on within half a minute, and no job
is lost or done twice.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, Self

from sqlalchemy import create_engine, text

from pgcorpus.db.embedded import HOST, EmbeddedServer, _free_port
from pgcorpus.db.engine import Database
from pgcorpus.db.errors import DataLayerError
from pgcorpus.db.migrations import upgrade
from pgcorpus.db.settings import Settings
from pgcorpus.services import samples
from pgcorpus.services.knowledge.importer import KnowledgeImporter
from pgcorpus.services.search.service import SearchService
from tests.prove import proofs
from tests.prove.proofs import Proof

MOST_SECONDS: Final = 30.0
"""The longest time that searches and workers may stand still."""

PATIENCE_SECONDS: Final = 120.0
PATHS: Final = (str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath))
PROGRAMS: Final = ("patroni", "etcd")
NEEDED: Final = (
    "install patroni and etcd where every account may run them; on Debian: apt-get install "
    "etcd-server patroni, or instead of its patroni: pip install 'patroni[etcd3]' 'psycopg[binary]'"
)

DCS: Final[Mapping[str, Any]] = {
    "ttl": 20,
    "loop_wait": 5,
    "retry_timeout": 5,
    "synchronous_mode": True,
    "postgresql": {"use_pg_rewind": True, "parameters": {"max_connections": 60}},
}
"""The settings of ``docs/how-to/fail-over.md``: a leader that is gone is replaced after 15 to 20
seconds, and has confirmed no commit that its successor lacks."""


def find(program: str) -> str | None:
    """Return the path of a program, also of one beside this Python."""
    return shutil.which(program, path=os.pathsep.join(PATHS))


class Pauses:
    """The time between answers, from the first on, and the errors between.

    Attributes:
        longest: Seconds.
        errors: Names of the errors that callers got.
    """

    def __init__(self) -> None:
        self.longest = 0.0
        self.errors: set[str] = set()
        self._last: float | None = None

    def note(self) -> None:
        """Note an answer."""
        now = time.monotonic()
        self.longest = max(self.longest, now - (self._last or now))
        self._last = now


@contextmanager
def repeat(call: Callable[[], object], seconds: float) -> Iterator[Pauses]:
    """Call a function in a thread again and again, and note when it returns True."""
    pauses, over = Pauses(), threading.Event()

    def work() -> None:
        while not over.wait(seconds):
            try:
                if call():
                    pauses.note()
            except DataLayerError as error:
                pauses.errors.add(type(error).__name__)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield pauses
    finally:
        over.set()
        thread.join()


def keep_searching(database: Database) -> Any:
    """Search again and again."""
    search = SearchService(database)
    return repeat(lambda: search.search("premium prices", corpus="knowledge").hits, 0.02)


def watch_effects(database: Database) -> Any:
    """Look again and again whether workers have done more."""
    done = [0]

    def look() -> bool:
        with database.unit_of_work() as work:
            found = work.session.scalar(text("SELECT count(*) FROM effects")) or 0
        more, done[0] = found != done[0], found
        return more

    return repeat(look, 0.1)


class Process:
    """A process of the account of PostgreSQL, with all that it starts."""

    def __init__(self, server: EmbeddedServer, folder: Path, command: list[str]) -> None:
        account = server._account
        self._log = (folder / f"{Path(command[0]).name}.log").open("ab")
        self._process = subprocess.Popen(
            command,
            cwd=folder,
            stdout=self._log,
            stderr=self._log,
            env={
                "PATH": os.pathsep.join((str(server.bin), os.defpath)),
                "HOME": str(folder),
                "LD_LIBRARY_PATH": str(server.bin.parent / "lib"),
            },
            user=account and account.uid,
            group=account and account.gid,
            extra_groups=account and [],
            start_new_session=True,
        )

    def kill(self) -> None:
        """End it, as no process can prevent."""
        self._process.kill()
        self._process.wait()
        self._log.close()


class Node:
    """A server of PostgreSQL under Patroni's care."""

    def __init__(self, server: EmbeddedServer, home: Path, name: str, etcd: int) -> None:
        self._server = server
        self.name = name
        self.port, self.api = _free_port(), _free_port()
        self.folder = home / name
        self.folder.mkdir()
        server._give(self.folder)
        configuration = self.folder / "patroni.json"
        configuration.write_text(json.dumps(self._configure(etcd)))  # JSON is YAML, too
        server._give(configuration)
        program = find("patroni")
        assert program is not None, NEEDED
        self._patroni = Process(server, self.folder, [program, str(configuration)])

    def kill(self) -> None:
        """End Patroni and every process of the server, as a failing machine does."""
        self._patroni.kill()
        with suppress(FileNotFoundError):
            pid = int((self.folder / "data" / "postmaster.pid").read_text().split()[0])
            children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
            for each in (pid, *map(int, children)):
                with suppress(ProcessLookupError):
                    os.kill(each, signal.SIGKILL)

    def _configure(self, etcd: int) -> dict[str, Any]:
        return {
            "scope": "pgcorpus",
            "name": self.name,
            "restapi": {
                "listen": f"{HOST}:{self.api}",
                "connect_address": f"{HOST}:{self.api}",
            },
            "etcd3": {"host": f"{HOST}:{etcd}"},
            "bootstrap": {
                "dcs": DCS,
                "initdb": [{"encoding": "UTF8"}, {"locale": "C.UTF-8"}, "data-checksums"],
            },
            "postgresql": {
                "listen": f"{HOST}:{self.port}",
                "connect_address": f"{HOST}:{self.port}",
                "data_dir": str(self.folder / "data"),
                "bin_dir": str(self._server.bin),
                "pgpass": str(self.folder / "pgpass"),
                "pg_hba": [
                    "host replication replicator 127.0.0.1/32 scram-sha-256",
                    "host all all 127.0.0.1/32 scram-sha-256",
                ],
                "authentication": {
                    "superuser": {"username": "postgres", "password": "invented"},
                    "replication": {"username": "replicator", "password": "invented"},
                    "rewind": {"username": "rewinder", "password": "invented"},
                },
                "parameters": {"unix_socket_directories": "", "shared_buffers": "64MB"},
            },
        }


class Cluster:
    """Two servers under Patroni, with one etcd. Real ones have three, on three machines.

    Args:
        server: The server whose programs and account they share.
    """

    def __init__(self, server: EmbeddedServer) -> None:
        self._server = server

    def __enter__(self) -> Self:
        self._home = Path(tempfile.mkdtemp(prefix="pgcorpus-cluster-"))
        self._home.chmod(0o755)
        with ExitStack() as stack:
            stack.callback(shutil.rmtree, self._home, ignore_errors=True)
            etcd = self._start_etcd(stack)
            self.nodes: list[Node] = []
            for name in ("one", "two"):
                node = Node(self._server, self._home, name, etcd)
                stack.callback(node.kill)
                self.nodes.append(node)
                self.wait_for(len(self.nodes))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def settings(self) -> Settings:
        """The settings of a service: both servers in one address, and each as a standby."""
        hosts = ",".join(f"{HOST}:{node.port}" for node in self.nodes)
        url = f"postgresql://postgres:invented@{hosts}/pgcorpus?target_session_attrs=read-write"
        each = (f"{HOST}:{node.port}" for node in self.nodes)
        standbys = " ".join(f"postgresql://postgres:invented@{at}/pgcorpus" for at in each)
        given = {"DATABASE_URL": url, "DATABASE_READ_URLS": standbys, "DB_POOL_SIZE": "4"}
        return Settings.from_env(given)

    @property
    def leader(self) -> Node:
        """The server that takes writes."""
        members = self._ask("/cluster")["members"]
        name = next(each["name"] for each in members if each["role"] == "leader")
        return next(node for node in self.nodes if node.name == name)

    def make_database(self) -> None:
        """Make the database of the service."""
        url = Settings.from_env(
            {"DATABASE_URL": f"postgresql://postgres:invented@{HOST}:{self.leader.port}/postgres"}
        ).database_url
        assert url is not None
        engine = create_engine(url, isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.execute(text("CREATE DATABASE pgcorpus"))
        engine.dispose()

    def switch_over(self) -> None:
        """Ask the leader to hand over, as ``patronictl switchover`` does."""
        leader = self.leader
        other = next(node for node in self.nodes if node is not leader)
        asked = {"leader": leader.name, "candidate": other.name}
        self._ask("/switchover", data=json.dumps(asked).encode())

    def kill_leader(self) -> None:
        """End the leader as a failing machine does."""
        self.leader.kill()

    def wait_for(self, members: int) -> None:
        """Wait for a leader, and for standbys that stream and confirm every commit."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            with suppress(OSError, KeyError, StopIteration):
                found = self._ask("/cluster")["members"]
                roles = sorted(each["role"] for each in found if each["state"] in STREAMS)
                if roles == (["leader"] if members == 1 else ["leader", "sync_standby"]):
                    return
            assert time.monotonic() < deadline, self._tell_logs()
            time.sleep(0.3)

    def _ask(self, path: str, data: bytes | None = None) -> Any:
        """Ask Patroni, on a node that answers."""
        for node in self.nodes:
            request = urllib.request.Request(f"http://{HOST}:{node.api}{path}", data)
            try:
                with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310 - ours
                    said = answer.read().decode()
            except urllib.error.HTTPError:
                raise
            except OSError:
                continue
            return json.loads(said) if said.startswith("{") else said
        raise ConnectionError("no Patroni answers")

    def _start_etcd(self, stack: ExitStack) -> int:
        folder = self._home / "etcd"
        folder.mkdir()
        self._server._give(folder)
        port, peers = _free_port(), _free_port()
        own, peer = f"http://{HOST}:{port}", f"http://{HOST}:{peers}"
        program = find("etcd")
        assert program is not None, NEEDED
        # fmt: off
        process = Process(self._server, folder, [
            program, "--name", "etcd", "--data-dir", str(folder / "data"),
            "--listen-client-urls", own, "--advertise-client-urls", own,
            "--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer,
            "--initial-cluster", f"etcd={peer}",
        ])
        # fmt: on
        stack.callback(process.kill)
        return port

    def _tell_logs(self) -> str:
        logs = sorted(self._home.glob("*/*.log"))
        return "\n".join(f"{path}:\n{path.read_text()[-2000:]}" for path in logs)


STREAMS: Final = ("running", "streaming")


def go_on(server: EmbeddedServer, *, jobs: int, workers: int) -> Proof:
    """Searches and workers go on after a switchover, and after the death of the leader.

    Args:
        server: The server whose programs the cluster uses.
        jobs: How many are done around each of the two events.
        workers: Processes.
    """
    began = time.monotonic()
    found, holds = [], True
    with Cluster(server) as cluster:
        cluster.make_database()
        reading = Database(cluster.settings)
        database = Database(replace(cluster.settings, read_urls=()))
        upgrade(database)
        with database.unit_of_work() as work:
            work.models.use_model("knowledge", "hashing")
            work.commit()
        KnowledgeImporter(database).run([samples.folder("knowledge")])
        for name, event in (
            ("switchover", cluster.switch_over),
            ("kill -9 of the leader", cluster.kill_leader),
        ):
            cluster.wait_for(2)
            with database.engine.begin() as connection:
                connection.execute(text("DELETE FROM jobs"))
                connection.execute(text("DROP TABLE IF EXISTS effects"))
                connection.execute(text("CREATE TABLE effects (job bigint NOT NULL)"))
            with (
                keep_searching(database) as searches,
                keep_searching(reading) as reads,
                watch_effects(database) as done,
            ):
                proof = proofs.each_job_once(
                    database,
                    jobs=jobs,
                    workers=workers,
                    restart=event,
                    batch_size=50,
                    batch_seconds=0.05,
                )
            holds &= proof.holds
            holds &= max(each.longest for each in (searches, reads, done)) < MOST_SECONDS
            found.append(
                f"{name}: searches stood still for {searches.longest:.1f} s, with "
                f"DATABASE_READ_URLS for {reads.longest:.1f} s, workers for {done.longest:.1f} s; "
                f"{proof.found}"
            )
        database.close()
        reading.close()
    return Proof(
        claim=f"Patroni hands over, and loses its leader, while {workers} workers do {jobs} jobs",
        found="; ".join(found),
        holds=holds,
        seconds=time.monotonic() - began,
    )
