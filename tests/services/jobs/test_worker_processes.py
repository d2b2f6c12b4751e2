"""Workers as processes: killed, stopped, cut off from the server, and nothing is lost."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import text

from pgcorpus.db.embedded import EmbeddedServer
from pgcorpus.db.engine import Database
from pgcorpus.db.migrations import upgrade
from tests.command import Command
from tests.conftest import Databases, settings_for
from tests.prove import proofs
from tests.services.embedding.loopback_api import Answer, LoopbackAPI


@pytest.fixture
def server_of_its_own() -> Iterator[EmbeddedServer]:
    """A server that may be restarted."""
    home = Path(tempfile.mkdtemp(prefix="pgcorpus-worker-"))
    home.chmod(0o755)  # PostgreSQL runs as another account when the tests run as root
    server = EmbeddedServer(home, settings={"fsync": "off"})
    server.start()
    yield server
    server.destroy()


@pytest.fixture
def pgcorpus(database: Database) -> Command:
    """Runs the installed command on a database of the test's own."""

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [proofs.PGCORPUS, *arguments],
            check=False,
            capture_output=True,
            text=True,
            env=proofs.environment(database, COLUMNS="160"),
            timeout=60,
        )

    return run


def test_workers_that_are_killed_lose_nothing_and_repeat_little(database: Database) -> None:
    """Two of four are ended with SIGKILL: each of 2,000 jobs is done exactly once."""
    proof = proofs.each_job_once(
        database, jobs=2000, workers=4, kills=2, batch_size=50, batch_seconds=0.05
    )

    assert proof.holds, proof


def test_workers_outlive_a_restart_of_the_server(server_of_its_own: EmbeddedServer) -> None:
    """They wait for it to come back, and go on; no job is done twice."""

    def restart() -> None:
        databases.close()  # else the pool would hold connections of before
        server_of_its_own.stop()
        server_of_its_own.start()

    databases = Databases(server_of_its_own.url.set(database="postgres"))
    with databases.opened(owner=databases.make_owner()) as database:
        databases.make_extensions(database.url)
        upgrade(Database(settings_for(database.url)))
        proof = proofs.each_job_once(
            database, jobs=2000, workers=3, restart=restart, batch_size=50, batch_seconds=0.05
        )
    databases.close()

    assert proof.holds, proof


def test_runs_of_a_timer_in_an_outage_lose_no_attempt(
    database: Database, pgcorpus: Command
) -> None:
    """Each is a fresh process, and the provider refuses the key of every one."""
    proofs.fill(database, 3)
    refusal = Answer(status=401)
    with LoopbackAPI(proofs.DIMENSIONS, answers=lambda _number, _request: refusal) as api:
        for _ in range(3):
            with proofs.worker(database, api, "--once") as process:
                _, shown = process.communicate(timeout=60)
            assert (process.returncode, "3 put off" in shown) == (1, True), shown
            with database.engine.begin() as connection:
                connection.execute(text("UPDATE jobs SET not_before = now()"))

    listed = json.loads(pgcorpus("jobs", "list", "--kind", "embed", "--json").stdout)
    assert {(job["status"], job["attempts"]) for job in listed} == {("pending", 0)}
    assert "the API key was refused" in listed[0]["last_error"]


def test_a_text_that_changes_on_its_way_is_embedded_as_it_is_now(database: Database) -> None:
    """By the command itself, with a hosted model."""
    proof = proofs.embed_all(database, "edited", proofs.edits(database), messages=100)

    assert proof.holds, proof


def test_a_provider_that_refuses_one_and_is_busy_holds_up_no_other_text(
    database: Database,
) -> None:
    """The first answers are 429; then one text of 400 is refused."""

    def answer(number: int, request: object) -> Answer:
        return Answer(status=429) if number < 3 else proofs.refuses_one(number, request)

    proof = proofs.embed_all(database, "refused", answer, messages=400, refused=1)

    assert proof.holds, proof


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_the_batch_in_hand_be_finished(database: Database, number: int) -> None:
    """Its jobs are completed, all others are pending, and the exit code is 0."""
    proofs.fill(database, 1000)
    with (
        LoopbackAPI(proofs.DIMENSIONS, latency_seconds=0.5) as api,
        proofs.worker(database, api, "--concurrency", "1") as process,
    ):
        while not api.requests:
            time.sleep(0.01)
        process.send_signal(number)
        _, shown = process.communicate(timeout=30)
        sent = len(api.texts)

    with database.unit_of_work() as work:
        depth = work.jobs.stats().depth["embed"]
    assert process.returncode == 0, shown
    assert depth == {"completed": sent, "pending": 1000 - sent}
    assert f"{sent} completed" in shown


def test_a_second_signal_gives_up_at_once(database: Database) -> None:
    """The batch in hand stays leased, for others to take up when the lease has expired."""
    proofs.fill(database, 10)
    with (
        LoopbackAPI(proofs.DIMENSIONS, latency_seconds=60) as api,
        proofs.worker(database, api) as process,
    ):
        while not api.requests:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=30)

    with database.unit_of_work() as work:
        assert work.jobs.stats().depth["embed"] == {"running": 10}
    assert process.returncode == 128 + signal.SIGINT


def test_a_run_for_scripts_says_in_json_what_it_did(database: Database, pgcorpus: Command) -> None:
    """And fails where a job failed, which can be looked at, requeued and purged."""
    with database.engine.begin() as connection:
        connection.execute(
            text("INSERT INTO jobs (kind, payload) VALUES ('embed', '{\"corpus\": \"chat\"}')")
        )
    done = pgcorpus("worker", "--once", "--json")
    report = json.loads(done.stdout)
    assert done.returncode == 1
    assert (report["completed"], report["failed"]) == (2, 1)

    (job,) = json.loads(pgcorpus("jobs", "list", "--status", "failed", "--json").stdout)
    assert job["last_error"] == "its payload names no passage under 'item'"
    shown = json.loads(pgcorpus("jobs", "show", str(job["id"]), "--json").stdout)
    assert shown == job
    stats = json.loads(pgcorpus("jobs", "stats", "--json").stdout)
    assert stats["failed"] == stats["depth"]["embed"]["failed"] == 1
    assert "embed" in pgcorpus("jobs", "list").stdout

    again = pgcorpus("jobs", "requeue", str(job["id"]), "--json")
    assert (again.returncode, json.loads(again.stdout)) == (0, {"requeued": 1, "not_requeued": []})
    none = pgcorpus("jobs", "requeue", str(job["id"]))
    assert none.returncode == 1
    assert f"not requeued: {job['id']} is pending (embed)" in none.stderr
    assert "999999 is not there" in pgcorpus("jobs", "requeue", "999999").stderr
    assert pgcorpus("worker", "--once", "--kinds", "embed").returncode == 1
    everything = pgcorpus("jobs", "requeue", "--failed", "--kind", "embed")
    assert "1 requeued" in everything.stderr
    assert pgcorpus("worker", "--once", "--kinds", "embed").returncode == 1
    purged = pgcorpus("jobs", "purge", "--older-than", "0s", "--status", "failed", "--json")
    assert json.loads(purged.stdout) == {"purged": 1}


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["worker", "--kinds", "embed,cook"], "'cook'; known: embed, log_flush, maintenance"),
        (["worker", "--kinds", ","], "names no kind; there are: embed, log_flush, maintenance"),
        (["worker", "--concurrency", "0"], "concurrency"),
        (["jobs", "requeue"], "name jobs, or give --failed"),
        (["jobs", "requeue", "1", "--failed"], "name jobs, or give --failed"),
        (["jobs", "purge", "--older-than", "soon"], "'soon' is no length of time"),
        (["jobs", "purge", "--older-than", "1d", "--status", "running"], "--status"),
        (["jobs", "list", "--status", "lost"], "--status"),
    ],
)
def test_misuse_is_told_in_a_sentence(pgcorpus: Command, arguments: list[str], told: str) -> None:
    """With exit code 2 and nothing done."""
    done = pgcorpus(*arguments)

    plain = " ".join(re.sub(r"[^\w' .,;:<>-]", " ", done.stderr).split())
    assert done.returncode == 2
    assert told in plain


def test_a_job_that_is_not_there_is_told_with_the_way_to_those_that_are(pgcorpus: Command) -> None:
    """Exit code 1."""
    done = pgcorpus("jobs", "show", "999999")

    assert done.returncode == 1
    assert "there is no job 999999; see: pgcorpus jobs list" in done.stderr


def test_a_worker_without_a_schema_says_how_to_make_it(empty: Database) -> None:
    """At once, and not once for every attempt."""
    done = subprocess.run(
        [proofs.PGCORPUS, "worker"],
        check=False,
        capture_output=True,
        text=True,
        env=proofs.environment(empty, COLUMNS="160"),
        timeout=60,
    )

    assert done.returncode == 1
    assert "pgcorpus db upgrade" in done.stderr
