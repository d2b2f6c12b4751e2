"""One run: one server, the same data for all, and all in turns, so that noise hits all alike."""

from __future__ import annotations

import json
import os
import platform
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import numpy as np
import psycopg
from psycopg import sql
from rich.progress import Progress
from sqlalchemy.engine import URL

from pgcorpus.db.embedded import EmbeddedServer
from pgcorpus.db.engine import Database
from pgcorpus.db.migrations import upgrade
from pgcorpus.db.settings import DRIVER, Settings
from pgcorpus.services.cli.output import fail, progress_bar
from tests.benchmarks import data
from tests.benchmarks.contender import HITS
from tests.benchmarks.import_rate import import_rate
from tests.benchmarks.processes import ContenderFailed, Process, start_process
from tests.benchmarks.ratios import ASYNCIO, MODES, check, compare

CLIENTS: Final = (1, 2, 4, 8)
TASKS: Final = 64
"""Tasks of asyncio that search at once, in one thread."""
WARM_UP: Final = 20
"""Questions asked before the clock counts: connections, prepared statements, PostgreSQL's cache."""
ROUNDS: Final = 3
TURN: Final = 20
"""Questions that a contender is asked one after another, before the next has its turn. A service
shares the caches of its processor with the database; not with three others that do the same, and
wake it anew for every question."""
BUDGET_SECONDS: Final = 40
"""Seconds of search in a mode after which a contender is asked no further questions: a store
without an index would take hours."""
EF_SEARCH: Final = 100
"""For contenders that come before ``SearchService`` has shown its own."""
FLOAT_BYTES: Final = 4

SIZES: Final = """
    SELECT coalesce(sum(pg_table_size(oid)) FILTER (WHERE relkind = 'r'), 0)::bigint,
           coalesce(sum(pg_relation_size(oid)) FILTER (WHERE relkind = 'i'), 0)::bigint,
           coalesce(sum(pg_relation_size(oid)) FILTER (WHERE relam IN
               (SELECT oid FROM pg_am WHERE amname = 'hnsw')), 0)::bigint
    FROM pg_class WHERE relnamespace = 'public'::regnamespace
"""


@dataclass
class Bench:
    """A run under way.

    Attributes:
        folder: For the data, the server and the logs.
        peers: Name → the interpreter of its environment. One that fails is taken out.
        result: What is known so far; see docs/reference/benchmarks.md for its shape.
    """

    folder: Path
    server: EmbeddedServer
    peers: dict[str, Path]
    bar: Progress
    result: dict[str, Any] = field(default_factory=dict)
    ef_search: int = EF_SEARCH

    @property
    def data(self) -> Path:
        """Passages and questions."""
        return self.folder / "data"

    def url(self, database: str) -> str:
        """Address of a database, as libpq has it."""
        url = self.server.url.set(drivername="postgresql", database=database)
        return url.render_as_string(hide_password=False)

    @contextmanager
    def process(self, module: str, python: Path, database: str) -> Iterator[Process]:
        """A contender at work on a database."""
        start = {"url": self.url(database), "data": str(self.data), "ef_search": self.ef_search}
        with start_process(module, python, self.folder, start) as process:
            yield process

    @contextmanager
    def doing(self, what: str, total: int | None = None) -> Iterator[Callable[[int], None]]:
        """Show a step on the bar; yields what takes the progress."""
        task = self.bar.add_task(what, total=total)
        yield lambda done: self.bar.update(task, completed=done)
        self.bar.update(task, total=total or 1, completed=total or 1)

    def leave_out(self, peer: str, error: ContenderFailed) -> None:
        """Go on without a peer."""
        self.peers.pop(peer, None)
        self.result["left_out"][peer] = str(error)
        fail(f"{error}; going on without it")


def measure(
    folder: Path,
    *,
    rows: int,
    dimensions: int,
    seconds: float,
    peers: Mapping[str, Path],
    released: Mapping[str, Any],
) -> dict[str, Any]:
    """Load, index, search and weigh.

    Args:
        folder: For everything the run writes; the server in it is stopped and deleted at the end.
        rows: Passages.
        dimensions: Length of the vectors, at most 4,000.
        seconds: How long each throughput is measured.
        peers: Name → interpreter.
        released: The figures of the last release, whose ratios must not get worse.

    Returns:
        What docs/reference/benchmarks.md describes, ready for JSON.

    Raises:
        ContenderFailed: A floor or this project failed; of a peer it is in ``left_out``.
        EmbeddedServerError: The server could not be started.
    """
    folder.chmod(0o755)  # PostgreSQL runs as another account when this runs as root
    server = EmbeddedServer(folder / "server", settings=server_settings(rows, dimensions))
    with progress_bar("starting") as bar:
        bar.update(bar.task_ids[0], visible=False)
        bench = Bench(folder=folder, server=server, peers=dict(peers), bar=bar)
        bench.data.mkdir()
        with bench.doing("making passages and exact answers"):
            data.make(bench.data, rows=rows, dimensions=dimensions)
        try:
            with bench.doing("starting the server"):
                server.start()
            bench.result = _circumstances(bench, rows, dimensions)
            _load_all(bench)
            _search_all(bench, seconds)
        finally:
            server.destroy()
    bench.result["ratios"] = compare(bench.result, released)
    bench.result["checks"] = check(bench.result)
    return bench.result


def server_settings(rows: int, dimensions: int) -> dict[str, str]:
    """Enough memory for the vectors twice, and for a graph of them; the same for all."""
    megabytes = min(max(256, 2 * rows * dimensions * FLOAT_BYTES // 2**20), 4096)
    return {
        "shared_buffers": f"{megabytes}MB",
        "maintenance_work_mem": f"{megabytes}MB",
        "max_wal_size": "8GB",  # no checkpoint in the middle of a load or a search
        "checkpoint_timeout": "30min",
    }


def _circumstances(bench: Bench, rows: int, dimensions: int) -> dict[str, Any]:
    status = os.sysconf
    return {
        "made_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {
            "platform": platform.platform(),
            "python": platform.python_version(),
            "cpus": os.cpu_count(),
            "memory_bytes": status("SC_PAGE_SIZE") * status("SC_PHYS_PAGES"),
        },
        "server": {"postgresql": bench.server.status().version, "settings": bench.server.settings},
        "data": {
            "rows": rows,
            "dimensions": dimensions,
            "questions": min(data.QUESTIONS, rows // 10),
            "words_per_passage": data.WORDS,
            "limit": HITS,
            "seed": data.SEED,
        },
        "contenders": {},
        "left_out": {},
        "load": [],
        "index": [],
        "latency": [],
        "throughput": [],
        "memory": [],
    }


def _load_all(bench: Bench) -> None:
    """Every way in, one after another; a database that no search needs is dropped."""
    ours = Path(sys.executable)
    _load(bench, "floor", "floor", ours, way="COPY into a bare table", kept=False)
    _load(bench, "pgcorpus", "ours", ours, way="importer")
    _load(bench, "pgcorpus", "repositories", ours, way="repositories", kept=False)
    with _database(bench, "import_rate") as database, bench.doing("importing without vectors"):
        rate = import_rate(database, bench.data / "chunks")
        bench.result["load"].append({"contender": "pgcorpus", "way": "importer, no vectors"} | rate)
    for peer, python in list(bench.peers.items()):
        try:
            _load(bench, peer, f"peers.{peer}", python, way="its own")
        except ContenderFailed as error:
            bench.leave_out(peer, error)


def _load(
    bench: Bench, contender: str, module: str, python: Path, *, way: str, kept: bool = True
) -> None:
    rows, result = bench.result["data"]["rows"], bench.result
    name = contender if kept else module
    _create(bench, name, migrated=contender == "pgcorpus")
    with bench.process(module, python, name) as process:
        with bench.doing(f"loading: {contender}, {way}", rows) as progress:
            seconds = process.ask("load", progress)["seconds"]
        result["load"].append(
            {
                "contender": contender,
                "way": way,
                "rows": rows,
                "seconds": seconds,
                "rows_per_second": rows / seconds,
            }
        )
        loading = process.ask("memory")
        if kept:
            with bench.doing(f"building the index: {contender}"):
                result["index"].append({"contender": contender} | process.ask("index"))
            with bench.doing(f"settling: {contender}"):
                process.ask("settle")
    if not kept:
        _drop(bench, name)
        return
    with psycopg.connect(bench.url(name), autocommit=True) as connection:
        with bench.doing(f"vacuuming: {contender}"):
            connection.execute("VACUUM (ANALYZE)")
        tables, indexes, vectors = connection.execute(SIZES).fetchone() or (0, 0, 0)
    result["memory"].append(
        {
            "contender": contender,
            "load_peak_rss_bytes": loading,
            "tables_bytes": tables,
            "indexes_bytes": indexes,
            "hnsw_bytes": vectors,
        }
    )


def _search_all(bench: Bench, seconds: float) -> None:
    ours, result = Path(sys.executable), bench.result
    with ExitStack() as stack:
        searching: dict[str, Process] = {}

        def enter(name: str, module: str, python: Path, database: str) -> None:
            process = stack.enter_context(bench.process(module, python, database))
            with bench.doing(f"preparing: {name}"):
                facts = process.started["facts"] | process.ask("prepare")
            searching[name] = process
            result["contenders"][name] = {"modes": process.started["modes"]} | facts

        enter("lean", "lean", ours, "pgcorpus")
        enter("floor", "floor", ours, "pgcorpus")
        bench.ef_search = int(result["contenders"]["floor"]["settings"]["hnsw.ef_search"])
        enter("pgcorpus", "ours", ours, "pgcorpus")
        for peer, python in list(bench.peers.items()):
            try:
                enter(peer, f"peers.{peer}", python, peer)
            except ContenderFailed as error:
                bench.leave_out(peer, error)
        for mode in MODES:
            result["latency"] += _latency(bench, searching, mode)
        for mode in MODES:
            result["throughput"] += _throughput(bench, searching, mode, seconds)
        sizes = {row["contender"]: row for row in result["memory"]}
        for name, process in searching.items():
            peak = process.ask("memory")
            if name in sizes:
                sizes[name]["search_peak_rss_bytes"] = peak
            else:
                result["memory"].insert(0, {"contender": name, "search_peak_rss_bytes": peak})


def _ask(bench: Bench, searching: dict[str, Process], name: str, do: str, **arguments: Any) -> Any:
    """Return a contender's answer; None from a peer that fails, and is left out from then on."""
    try:
        return searching[name].ask(do, **arguments)
    except ContenderFailed as error:
        if name not in bench.peers:
            raise
        bench.leave_out(name, error)
        del searching[name]
        return None


def _offering(searching: Mapping[str, Process], mode: str) -> list[str]:
    return [name for name, process in searching.items() if mode in process.started["modes"]]


def _latency(bench: Bench, searching: dict[str, Process], mode: str) -> list[dict[str, Any]]:
    """Ask all questions of all who offer the mode, in turns and rounds."""
    answers: list[list[str]] = json.loads((bench.data / "answers.json").read_text())
    sources: list[str] = json.loads((bench.data / "sources.json").read_text())
    taken: dict[str, list[float]] = defaultdict(list)
    cpu: dict[str, list[float]] = defaultdict(list)
    hits: dict[str, list[list[str]]] = defaultdict(list)
    first = [*range(min(WARM_UP, len(answers)))]
    for name in _offering(searching, mode):
        _ask(bench, searching, name, "search", mode=mode, numbers=first)
    asked = [*range(len(answers))] * ROUNDS
    with bench.doing(f"searching: {mode}", len(asked)) as progress:
        for count, start in enumerate(range(0, len(asked), TURN)):
            numbers = asked[start : start + TURN]
            names = _offering(searching, mode)
            begins = count % len(names)  # nobody always comes after the same one
            for name in names[begins:] + names[:begins]:
                if sum(taken[name]) > BUDGET_SECONDS * 1000:
                    continue
                replies = _ask(bench, searching, name, "search", mode=mode, numbers=numbers) or []
                taken[name] += [reply["ms"] for reply in replies]
                cpu[name] += [reply["cpu_ms"] for reply in replies]
                hits[name] += [reply["hits"] for reply in replies]
            progress(start + len(numbers))
    once = {name: found[: len(answers)] for name, found in hits.items()}  # rounds find the same
    return [
        _figures(name, mode, taken[name])
        | {
            "cpu_ms": float(np.median(cpu[name])),
            "mean_hits": float(np.mean([len(each) for each in once[name]])),
            "without_hits": sum(not each for each in once[name]),
            "recall_at_10": overlap(once[name], answers) if mode == "vector" else None,
            "source_found": overlap(once[name], [[source] for source in sources]),
            "overlap_with_pgcorpus": overlap(once[name], once["pgcorpus"]),
        }
        for name in _offering(searching, mode)
    ]


def _figures(contender: str, mode: str, taken_ms: list[float]) -> dict[str, Any]:
    p50, p95, p99 = np.percentile(taken_ms, [50, 95, 99]).tolist()
    return {
        "contender": contender,
        "mode": mode,
        "searches": len(taken_ms),
        "p50_ms": p50,
        "p95_ms": p95,
        "p99_ms": p99,
    }


def overlap(found: list[list[str]], wanted: list[list[str]]) -> float:
    """The mean share of what is wanted that was found, over the questions that were asked.

    Where nothing is wanted, all of it was found.
    """
    shares = [
        len(set(hits) & set(right)) / len(right) if right else 1.0
        for hits, right in zip(found, wanted, strict=False)  # the first questions, or all
    ]
    return float(np.mean(shares))


def _throughput(
    bench: Bench, searching: dict[str, Process], mode: str, seconds: float
) -> list[dict[str, Any]]:
    measured: list[dict[str, Any]] = []

    def measure(name: str, contender: str, do: str, clients: int) -> None:
        asked = {"mode": mode, "clients": clients}
        done = _ask(bench, searching, name, do, seconds=seconds, **asked)
        if done is not None:
            rate = done["searches"] / done["seconds"]
            measured.append({"contender": contender, **asked, "searches_per_second": rate})

    total = len(CLIENTS) * len(_offering(searching, mode)) + 1
    with bench.doing(f"throughput: {mode}", total) as progress:
        for clients in CLIENTS:
            for name in _offering(searching, mode):
                measure(name, name, "search_by_threads", clients)
                progress(len(measured))
        measure("pgcorpus", ASYNCIO, "search_by_tasks", TASKS)
    return measured


@contextmanager
def _database(bench: Bench, name: str) -> Iterator[Database]:
    """A migrated database for a while."""
    _create(bench, name, migrated=True)
    database = Database(Settings(database_url=_sqlalchemy_url(bench, name)))
    try:
        yield database
    finally:
        database.close()
    _drop(bench, name)


def _create(bench: Bench, name: str, *, migrated: bool) -> None:
    if name != bench.server.url.database:
        _administer(bench, "CREATE DATABASE {}", name)
    if migrated:
        upgrade(Database(Settings(database_url=_sqlalchemy_url(bench, name))))


def _drop(bench: Bench, name: str) -> None:
    _administer(bench, "DROP DATABASE {}", name)


def _administer(bench: Bench, statement: str, name: str) -> None:
    with psycopg.connect(bench.url("postgres"), autocommit=True) as connection:
        connection.execute(sql.SQL(statement).format(sql.Identifier(name)))


def _sqlalchemy_url(bench: Bench, name: str) -> URL:
    return bench.server.url.set(drivername=DRIVER, database=name)
