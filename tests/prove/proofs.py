"""Promises of the queue, tried with real processes: small in tests, large in ``make prove``."""

from __future__ import annotations

import os
import random
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from sqlalchemy import text, update

import pgcorpus
from pgcorpus.db.engine import Database
from pgcorpus.db.models import Message
from pgcorpus.db.search.corpora import CHAT
from pgcorpus.services.embedding.embed import EmbeddingService
from tests.command import PGCORPUS
from tests.pooler import variables_of
from tests.prove import ticks
from tests.prove.effects import count_effects, enqueue_effects
from tests.services.embedding.loopback_api import Answer, LoopbackAPI, Request

PROJECT = Path(pgcorpus.__file__).parents[1]
LEASE_SECONDS = 2.0
PATIENCE_SECONDS = 900.0
MODEL = "loopback"
DIMENSIONS = 64


@dataclass(frozen=True, kw_only=True)
class Proof:
    """A claim with what was found.

    Attributes:
        claim: What was tried.
        found: Figures.
        holds: Whether they are as they must be.
        seconds: How long it took.
    """

    claim: str
    found: str
    holds: bool
    seconds: float


def environment(database: Database, **more: str) -> dict[str, str]:
    """Of a process that works on the database, and knows no other setting of the machine."""
    kept = {name: value for name, value in os.environ.items() if name in {"PATH", "HOME"}}
    return kept | variables_of(database.settings) | {"PYTHONPATH": str(PROJECT)} | more


class Crowd:
    """Worker processes, some of which are killed and replaced."""

    def __init__(self, database: Database, count: int, **options: float | str) -> None:
        options |= {"lease_seconds": LEASE_SECONDS}
        given = (f"--{name.replace('_', '-')}={value}" for name, value in options.items())
        self._spawn = partial(
            subprocess.Popen,
            [sys.executable, "-m", "tests.prove.worker_process", *given],
            env=environment(database),
            cwd=PROJECT,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        self.processes: list[subprocess.Popen[bytes]] = [self._spawn() for _ in range(count)]

    def kill_one(self, chance: random.Random) -> None:
        """End a random process as no process can prevent, and start another."""
        victim = chance.randrange(len(self.processes))
        self.processes[victim].kill()
        self.processes[victim].communicate()
        self.processes[victim] = self._spawn()

    def stop(self) -> list[int]:
        """End all as a service manager does; returns their exit codes."""
        for process in self.processes:
            if process.stdout is not None:
                process.stdout.readline()  # it is ready: signals are handled
            process.send_signal(signal.SIGTERM)
        try:
            return [process.wait(timeout=30) for process in self.processes]
        finally:
            for process in self.processes:
                process.kill()
                process.communicate()


def each_job_once(
    database: Database,
    *,
    jobs: int,
    workers: int,
    kills: int = 0,
    restart: Callable[[], None] | None = None,
    batch_size: int = 100,
    batch_seconds: float = 0.0,
    least_per_second: float = 0.0,
    seed: int = 1,
) -> Proof:
    """Every job leaves one effect: with workers killed at random, with the server restarted.

    Args:
        database: With the newest schema.
        jobs: How many.
        workers: Processes.
        kills: How many of them are killed with SIGKILL, at even shares of the work.
        restart: Called when half of the work is done.
        batch_size: Jobs at a time.
        batch_seconds: How long a batch takes.
        least_per_second: Jobs that must be claimed and completed each second.
        seed: Of the choice whom to kill.
    """
    enqueue_effects(database, jobs)
    crowd = Crowd(database, workers, batch_size=batch_size, batch_seconds=batch_seconds)
    chance = random.Random(seed)  # noqa: S311 - a choice, not a secret
    killed, restarted = 0, restart is None
    deadline = time.monotonic() + PATIENCE_SECONDS
    try:
        while (done := _count_done(database)) < jobs and time.monotonic() < deadline:
            if killed < kills and done >= jobs * (killed + 1) // (kills + 2):
                crowd.kill_one(chance)
                killed += 1
            elif not restarted and restart is not None and done >= jobs // 2:
                restart()
                restarted = True
            else:
                time.sleep(0.02)
    finally:
        codes = crowd.stop()
    effects, of_jobs = count_effects(database)
    with database.engine.connect() as connection:
        begun, left = connection.execute(
            text(
                "SELECT sum(attempts), count(*) FILTER (WHERE status <> 'completed')"
                " FROM jobs WHERE kind = 'effect'"
            )
        ).one()
    seconds = seconds_of(database, "effect")
    repeated = begun - jobs
    interrupted = killed + (workers if restart else 0)
    what = f", {killed} killed with -9" if kills else ""
    return Proof(
        claim=f"{workers} workers, {jobs} jobs{what}{', server restarted' if restart else ''}",
        found=f"{effects} effects of {of_jobs} jobs, {left} left, {repeated} begun again, "
        f"{_rate(jobs, seconds, least_per_second)}",
        holds=effects == of_jobs == jobs
        and left == 0
        and killed == kills
        and restarted
        and repeated <= interrupted * batch_size
        and jobs / seconds >= least_per_second
        and codes == [0] * workers,
        seconds=seconds,
    )


def seconds_of(database: Database, kind: str) -> float:
    """From the first claim (of jobs that were begun once) to the last end.

    By the database's clock: one started when somebody first looks would leave out what was done
    before, and one around the processes would count how long these take to start.
    """
    measured = text(
        "SELECT extract(epoch FROM max(finished_at) - min(started_at))::float8"
        " FROM jobs WHERE kind = :kind"
    )
    with database.engine.connect() as connection:
        return float(connection.execute(measured, {"kind": kind}).scalar_one())


def _rate(jobs: int, seconds: float, least: float) -> str:
    """A rate, beside what it must be at least, if anything."""
    return f"{jobs / seconds:.0f} jobs/s{f' (of at least {least:.0f})' if least else ''}"


def _count_done(database: Database) -> int:
    with database.engine.connect() as connection:
        counted = text("SELECT count(*) FROM jobs WHERE kind = 'effect' AND status = 'completed'")
        return connection.scalar(counted) or 0


def fill(database: Database, count: int) -> None:
    """So many messages in one conversation, to be embedded by a model behind an API."""
    with database.unit_of_work() as work:
        work.models.add_model(MODEL, dimensions=DIMENSIONS, provider="openai")
        work.models.use_model("chat", MODEL)
        work.commit()
    with database.engine.begin() as connection:
        connection.execute(text("SET LOCAL statement_timeout = 0"))
        connection.execute(text("INSERT INTO conversations DEFAULT VALUES"))
        connection.execute(
            text(
                "INSERT INTO messages (conversation_id, position, role, content)"
                " SELECT id, n, 'user', 'message number ' || n"
                " FROM conversations, generate_series(0, :last) AS n"
            ),
            {"last": count - 1},
        )


@contextmanager
def worker(database: Database, api: LoopbackAPI, *arguments: str) -> Iterator[Any]:
    """The command as people run it, with a hosted model that is on loopback."""
    process = subprocess.Popen(
        [PGCORPUS, "worker", "--kinds", "embed", *arguments],
        env=environment(database, OPENAI_API_KEY="k", OPENAI_BASE_URL=api.base_url),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def embed_all(
    database: Database,
    claim: str,
    answer: Callable[[int, Request], Answer],
    *,
    messages: int,
    refused: int = 0,
) -> Proof:
    """Messages are embedded by a worker whose provider misbehaves.

    Args:
        database: With the newest schema.
        claim: How it does.
        answer: What it answers.
        messages: How many there are.
        refused: How many of them must fail.
    """
    fill(database, messages)
    began = time.monotonic()
    with LoopbackAPI(DIMENSIONS, answers=answer) as api, worker(database, api) as process:
        deadline = began + PATIENCE_SECONDS
        while _waiting(database) and time.monotonic() < deadline:
            time.sleep(0.05)
        seconds = time.monotonic() - began
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=30)
    with database.unit_of_work() as work:
        fresh = work.embeddings.coverage(CHAT, MODEL).embedded
        depth = dict(work.jobs.stats().depth["embed"])
    failed = depth.pop("failed", 0)
    return Proof(
        claim=claim,
        found=f"{fresh} of {messages} embedded, {failed} failed, {len(api.requests)} requests",
        holds=fresh == messages - refused
        and failed == refused
        and depth.keys() <= {"completed"}
        and process.returncode == 0,
        seconds=seconds,
    )


def _waiting(database: Database) -> int:
    with database.engine.connect() as connection:
        counted = (
            "SELECT count(*) FROM jobs WHERE kind = 'embed' AND status IN ('pending', 'running')"
        )
        return connection.scalar(text(counted)) or 0


def refuses_one(number: int, request: Request) -> Answer:
    """HTTP 400 where a text of the request is number 321."""
    return Answer(status=400) if "message number 321" in request.texts else Answer()


def busy_for(seconds: float) -> Callable[[int, Request], Answer]:
    """HTTP 429 for so long after the first request."""
    began: list[float] = []

    def answer(_number: int, request: Request) -> Answer:
        began.append(request.at_seconds)
        return Answer(status=429) if request.at_seconds < began[0] + seconds else Answer()

    return answer


def hangs_first(count: int) -> Callable[[int, Request], Answer]:
    """No word at all to the first requests, and no end of the silence."""
    return lambda number, _request: Answer(hang_seconds=3600 if number < count else 0)


def edits(database: Database) -> Callable[[int, Request], Answer]:
    """While a text is embedded for the first time, somebody changes it."""

    def answer(number: int, request: Request) -> Answer:
        if not number:
            with database.engine.begin() as connection:
                edited = update(Message).where(Message.content == request.texts[0])
                connection.execute(edited.values(content="edited meanwhile"))
        return Answer()

    return answer


def enqueue_cost(database: Database, *, messages: int, rounds: int) -> Proof:
    """Measure how much longer a COPY of messages takes with the outbox than without.

    Args:
        database: With the newest schema, and no messages.
        messages: How many, of 20 to 80 words, 20 to a conversation.
        rounds: Pairs of loads; the medians are compared.
    """
    chance = random.Random(1)  # noqa: S311 - texts, not secrets
    letters = "abcdefghijklmnoprstuvw"
    words = ["".join(chance.choices(letters, k=chance.randint(3, 9))) for _ in range(20_000)]
    texts = [
        " ".join(
            words[min(19_999, int(chance.expovariate(1 / 800)))]
            for _ in range(chance.randint(20, 80))
        )
        for _ in range(messages)
    ]
    began = time.monotonic()
    seconds: dict[str, list[float]] = {"ENABLE": [], "DISABLE": []}
    for turn in range(rounds):
        for state in sorted(seconds, reverse=bool(turn % 2)):
            seconds[state].append(_load(database, texts, state))
    with_outbox, without = (statistics.median(each) for each in seconds.values())
    overhead = 100 * (with_outbox / without - 1)
    return Proof(
        claim=f"a COPY of {messages} messages enqueues their jobs",
        found=f"{overhead:+.1f} %: {_list_rounds(seconds['ENABLE'])} s with the outbox, "
        f"{_list_rounds(seconds['DISABLE'])} s without",
        holds=overhead <= 20,
        seconds=time.monotonic() - began,
    )


def _list_rounds(seconds: list[float]) -> str:
    """List every round: their differences show how far the percentage can be trusted."""
    return "/".join(f"{each:.1f}" for each in seconds)


def _load(database: Database, texts: list[str], state: str) -> float:
    """Seconds of one COPY into empty tables."""
    with database.schema_engine().connect() as connection:
        connection.execute(text("TRUNCATE conversations, messages, message_embeddings, jobs"))
        trigger = f"ALTER TABLE messages {state} TRIGGER enqueue_embedding_of_new"
        connection.execute(text(trigger))
        connection.execute(
            text("INSERT INTO conversations (title) SELECT n FROM generate_series(0, :last) AS n"),
            {"last": len(texts) // 20},
        )
        ids = connection.scalars(text("SELECT id FROM conversations")).all()
        connection.commit()
        connection.execution_options(isolation_level="AUTOCOMMIT")
        connection.execute(text("CHECKPOINT"))
        rows = "".join(
            f"{ids[n // 20]}\t{n % 20}\tuser\t{each}\n" for n, each in enumerate(texts)
        ).encode()
        began = time.monotonic()
        cursor: Any = connection.connection.cursor()
        with cursor.copy(
            "COPY messages (conversation_id, position, role, content) FROM STDIN"
        ) as copy:
            copy.write(rows)
        return time.monotonic() - began


def instant_rate(
    database: Database, *, messages: int, workers: int, indexed: bool, least_per_second: float
) -> Proof:
    """The whole path but the model: claimed, read, stored, completed, in batches of 500.

    Args:
        database: With the newest schema, and no messages.
        messages: How many.
        workers: Processes.
        indexed: Whether the vectors go into an HNSW index, too.
        least_per_second: Jobs that must be claimed and completed each second.
    """
    fill(database, messages)
    model = "hashing" if indexed else "unindexed"  # an index is a registered model's own
    with database.unit_of_work() as work:
        if not indexed:
            work.models.add_model(model, dimensions=384, provider="hashing")
        work.models.use_model("chat", model)
        work.commit()
    crowd = Crowd(database, workers, batch_size=500, embed=model, dimensions=384)
    deadline = time.monotonic() + PATIENCE_SECONDS
    try:
        while _waiting(database) and time.monotonic() < deadline:
            time.sleep(0.1)
    finally:
        codes = crowd.stop()
    return _prove_embedded(
        database,
        f"{workers} workers embed {messages} messages by an instant embedder, 384 dimensions, "
        f"{'into HNSW' if indexed else 'no vector index'}",
        model,
        messages=messages,
        codes=codes,
        least=least_per_second,
    )


def embedding_rate(
    database: Database, *, messages: int, workers: int, least_per_second: float
) -> Proof:
    """The command as people run it, with the offline model, into the HNSW index.

    Args:
        database: With the newest schema, and no messages.
        messages: How many.
        workers: Processes.
        least_per_second: Jobs that must be claimed and completed each second.
    """
    fill(database, messages)
    with database.unit_of_work() as work:
        work.models.use_model("chat", "hashing")
        work.commit()
    processes = [
        subprocess.Popen(
            [PGCORPUS, "worker", "--kinds", "embed", "--once"],
            env=environment(database),
            stderr=subprocess.DEVNULL,
        )
        for _ in range(workers)
    ]
    codes = [process.wait(timeout=PATIENCE_SECONDS) for process in processes]
    return _prove_embedded(
        database,
        f"{workers} workers embed {messages} messages offline, 384 dimensions, into HNSW",
        "hashing",
        messages=messages,
        codes=codes,
        least=least_per_second,
    )


def _prove_embedded(
    database: Database, claim: str, model: str, *, messages: int, codes: list[int], least: float
) -> Proof:
    """Prove that all messages have their vectors, and measure how fast they got them."""
    with database.unit_of_work() as work:
        fresh = work.embeddings.coverage(CHAT, model).embedded
    seconds = seconds_of(database, "embed")
    return Proof(
        claim=claim,
        found=f"{fresh} embedded, {_rate(messages, seconds, least)}",
        holds=fresh == messages and not any(codes) and messages / seconds >= least,
        seconds=seconds,
    )


def keeps_ticking(
    database: Database, *, messages: int, tasks: int, rounds: int, most_ms: float
) -> Proof:
    """Tasks search in one event loop, which comes to all others in time.

    Args:
        database: With the newest schema, and no messages.
        messages: How many are searched.
        tasks: How many search at the same time.
        rounds: Searches of each.
        most_ms: So late at most may 99 of 100 ticks come.
    """
    fill(database, messages)
    with database.unit_of_work() as work:
        work.models.use_model("chat", "hashing")
        work.commit()
    EmbeddingService(database).embed("chat")
    questions = [f"message number {n}" for n in range(0, messages, 7)]
    began = time.monotonic()
    # Two connections for each processor. With 20 the server's processes wait for processors in a
    # queue of 20, and so does the loop: it came 21 ms late (p50), at the same rate of searches.
    service = Database(replace(database.settings, pool_size=4, max_overflow=0))
    late, busy = ticks.measure(
        service, questions, corpus="chat", tasks=tasks, rounds=rounds, seconds=0.05
    )
    seconds = time.monotonic() - began
    return Proof(
        claim=f"{tasks} tasks search {messages} messages, by an embedder of 50 ms",
        found=f"the loop's thread computes for {_percentiles(busy)} between two ticks, which come "
        f"{_percentiles(late)} late; {tasks * rounds / seconds:.0f} searches a second",
        holds=_percentile(late, 0.99) <= most_ms,
        seconds=seconds,
    )


def _percentile(ordered: list[float], share: float) -> float:
    return ordered[int(share * (len(ordered) - 1))]


def _percentiles(ordered: list[float]) -> str:
    return f"{_percentile(ordered, 0.5):.1f} ms (p50), {_percentile(ordered, 0.99):.1f} ms (p99)"


def behind_a_pooler(*suites: str, processes: int = 0) -> Proof:
    """Run tests with PgBouncer before the test server.

    Args:
        suites: Files of tests.
        processes: How many run them; 0 is this one's child alone.
    """
    began = time.monotonic()
    command = [sys.executable, "-m", "pytest", "--pooler", "--quiet", f"--numprocesses={processes}"]
    done = subprocess.run(
        [*command, *suites],
        check=False,
        capture_output=True,
        text=True,
        env={name: value for name, value in os.environ.items() if name in {"PATH", "HOME"}},
        cwd=PROJECT,
    )
    counted = done.stdout.strip().rpartition("\n")[2]
    return Proof(
        claim=f"{len(suites)} files of tests pass through PgBouncer in transaction mode",
        found=counted if done.returncode == 0 else done.stdout[-4000:] + done.stderr[-1000:],
        holds=done.returncode == 0,
        seconds=time.monotonic() - began,
    )
