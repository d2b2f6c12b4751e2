"""The tasks of every contender, and the protocol of its process.

A contender runs in a process of its own, which reads a JSON object per line from stdin and answers
with one on stdout. It takes its own times: pipes and JSON are not measured. Peers have their own
virtual environments, so this module needs nothing but NumPy.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TextIO

import numpy as np

HITS = 10
"""The limit of every search."""


@dataclass(frozen=True)
class Job:
    """The server, the data and the settings that a contender works with.

    Attributes:
        url: Address of its database, as libpq has it, password included.
        data: Folder of the passages and questions; see ``tests.benchmarks.data``.
        ef_search: ``hnsw.ef_search`` where the contender can choose it.
    """

    url: str
    data: Path
    ef_search: int

    @cached_property
    def questions(self) -> list[str]:
        """The questions' words."""
        return self._json("questions.json")

    @cached_property
    def question_vectors(self) -> np.ndarray:
        """float32 of shape ``(len(questions), dimensions)``."""
        return np.load(self.data / "question_vectors.npy")

    @property
    def dimensions(self) -> int:
        """Length of the vectors."""
        return self.question_vectors.shape[1]

    @cached_property
    def passages(self) -> list[dict[str, str]]:
        """Passages with ``chunk_id``, ``title``, ``content``, ``section`` and ``source_file``."""
        return self._json("passages.json")

    def batches(self, size: int) -> Iterator[tuple[list[dict[str, str]], np.ndarray]]:
        """Passages with their vectors, *size* at a time.

        The vectors are read and not mapped: mapped pages would count as the process's memory.
        """
        with (self.data / "vectors.npy").open("rb") as file:
            np.lib.format.read_magic(file)
            np.lib.format.read_array_header_1_0(file)
            for start in range(0, len(self.passages), size):
                part = self.passages[start : start + size]
                rows = np.fromfile(file, np.float32, len(part) * self.dimensions)
                yield part, rows.reshape(len(part), -1)

    def _json(self, name: str) -> Any:
        return json.loads((self.data / name).read_text())


class Contender(ABC):
    """A way to store and search passages in PostgreSQL.

    Attributes:
        modes: Which searches it offers.
    """

    modes: tuple[str, ...] = ("vector", "text", "hybrid")

    def __init__(self, job: Job) -> None:
        self.job = job

    @abstractmethod
    def load(self, progress: Callable[[int], None]) -> float:
        """Make its tables, and store all passages with their vectors.

        Args:
            progress: Called with the number of rows that are stored, now and then.

        Returns:
            Seconds that the storing took; making the tables is not counted.
        """

    @abstractmethod
    def index(self) -> str:
        """Build the HNSW index over the loaded vectors.

        Returns:
            What was built, in words.
        """

    def settle(self) -> None:  # noqa: B027 - of most nothing is left to be done
        """Let what the load left to be done be done, as it is where a service searches."""

    @abstractmethod
    def search(self, mode: str, number: int) -> list[str]:
        """Answer a question.

        Args:
            mode: One of ``modes``.
            number: Of the question.

        Returns:
            The ``chunk_id`` of at most ``HITS`` hits that are whole (title, text, metadata).
        """

    def facts(self) -> dict[str, Any]:
        """Return what a reader of the figures should know of the contender."""
        return {}

    def prepare(self) -> dict[str, Any]:
        """Get ready to search what is loaded; more facts."""
        return {}

    def search_by_threads(self, *, mode: str, clients: int, seconds: float) -> dict[str, float]:
        """Search from several threads at once.

        Returns:
            ``searches`` that were answered within ``seconds``, the time until the last one was.
        """
        ready = threading.Barrier(clients + 1)
        answered = [0] * clients
        questions = len(self.job.questions)
        deadline = 0.0

        def client(number: int) -> None:
            self.search(mode, number % questions)  # opens the thread's connection
            ready.wait()  # all are connected
            ready.wait()  # the clock runs
            while time.perf_counter() < deadline:
                # Clients ask different questions at any one time.
                self.search(mode, (number * 31 + answered[number]) % questions)
                answered[number] += 1

        threads = [threading.Thread(target=client, args=(n,), daemon=True) for n in range(clients)]
        for thread in threads:
            thread.start()
        ready.wait()
        started = time.perf_counter()
        deadline = started + seconds
        ready.wait()
        for thread in threads:
            thread.join()
        return {"searches": sum(answered), "seconds": time.perf_counter() - started}

    def search_by_tasks(self, *, mode: str, clients: int, seconds: float) -> dict[str, float]:
        """Search from several tasks of asyncio at once; returns what ``search_by_threads`` does."""
        raise NotImplementedError

    @abstractmethod
    def close(self) -> None:
        """Give all connections back."""


def serve(contender: type[Contender]) -> None:
    """Answer requests until stdin ends."""
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what libraries print is no reply
    requests = map(json.loads, sys.stdin)
    started = next(requests)
    job = Job(started["url"], Path(started["data"]), started["ef_search"])
    served = contender(job)
    try:
        _reply(replies, {"modes": served.modes, "facts": served.facts()})
        for request in requests:
            _reply(replies, _send(served, replies, **request))
    finally:
        served.close()


def _send(contender: Contender, replies: TextIO, *, do: str, **arguments: Any) -> Any:
    match do:
        case "load":
            return {"seconds": contender.load(lambda rows: _reply(replies, {"progress": rows}))}
        case "index":
            started = time.perf_counter()
            built = contender.index()
            return {"seconds": time.perf_counter() - started, "built": built}
        case "search":
            return [_time(contender, arguments["mode"], each) for each in arguments["numbers"]]
        case "settle" | "prepare" | "search_by_threads" | "search_by_tasks":
            return getattr(contender, do)(**arguments)
        case "memory":
            return peak_rss_bytes()
    raise ValueError(do)


def _time(contender: Contender, mode: str, number: int) -> dict[str, Any]:
    # CPU of all threads: some contenders work in another one.
    started, started_cpu = time.perf_counter(), time.process_time()
    hits = contender.search(mode, number)
    seconds, cpu = time.perf_counter() - started, time.process_time() - started_cpu
    return {"ms": seconds * 1000, "cpu_ms": cpu * 1000, "hits": hits}


def peak_rss_bytes() -> int:
    """The most memory that this process has had.

    ``ru_maxrss`` alone would not do: on Linux a process inherits its parent's.
    """
    status = Path("/proc/self/status")
    if status.exists():
        fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
        return int(fields["VmHWM"].split()[0]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _reply(replies: TextIO, reply: object) -> None:
    replies.write(json.dumps(reply) + "\n")
