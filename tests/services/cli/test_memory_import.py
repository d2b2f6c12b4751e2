"""pgcorpus import memory, as a person and as a script use it."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from uuid import UUID

import numpy as np
import pytest
from sqlalchemy import func, select, text

from pgcorpus.db.engine import Database
from pgcorpus.db.models import MemoryEmbedding, MemoryNode
from pgcorpus.db.scope import Scope
from pgcorpus.services import samples
from tests.benchmarks.memory_import import make
from tests.command import PGCORPUS, Command
from tests.pooler import variables_of
from tests.services.memory.importing.test_importer import indexes

NOBODY = "11111111-1111-1111-1111-111111111111"
SAMPLES = str(samples.folder("memory"))


@pytest.fixture
def tenant(pgcorpus: Command) -> str:
    """The key of a tenant."""
    made = pgcorpus("tenants", "create", "Acme", "--json")
    key: str = json.loads(made.stdout)["id"]
    return key


def read_stderr(done: subprocess.CompletedProcess[str]) -> str:
    """Return what a command said on stderr, on one line and without a frame."""
    return " ".join(done.stderr.replace("│", " ").split())


def test_the_samples_go_in_and_are_told_to_people(pgcorpus: Command, tenant: str) -> None:
    """By source, intent and cluster; what was changed is in the history, without content."""
    done = pgcorpus("import", "memory", SAMPLES, "--tenant-id", tenant)
    history = pgcorpus("import", "history", "--corpus", "memory", "--json")

    assert done.returncode == 0
    for shown in ("nodes.json", "episodes.json", "Nodes by source", "anthropic", "noise"):
        assert shown in done.stdout
    assert "the field 'mood' has no column and is kept in extra; 1 record has it" in read_stderr(
        done
    )
    assert "14 records in" in read_stderr(done)
    rules = {(each["field"], each["rule"]) for each in json.loads(history.stdout)}
    assert {("technical_depth", "range"), ("conversation_mode", "choice")} <= rules


def test_the_samples_go_in_and_are_told_to_scripts(pgcorpus: Command, tenant: str) -> None:
    """One JSON document on stdout and nothing else; a second time nothing changes."""
    first = pgcorpus("import", "memory", "--data-dir", SAMPLES, "--tenant-id", tenant, "--json")
    second = pgcorpus("import", "memory", SAMPLES, "--tenant-id", tenant, "--json")

    report, again = json.loads(first.stdout), json.loads(second.stdout)
    assert (report["added"], report["rejected"]) == (14, 0)
    assert report["nodes_by_source"] == {"anthropic": 4, "openai": 4, "gemini": 2, "grok": 2}
    assert report["nodes_by_cluster"] == {"1": 6, "0": 4, "-1": 2}
    assert report["unknown_fields"] == {"mood": 1}
    assert (again["added"], again["left_alone"]) == (0, {"stored already": 14})


def test_an_invalid_uuid_is_told_before_anything_else(pgcorpus: Command) -> None:
    """Whatever else is missing; in the words of the system before."""
    for option in ("--user-id", "--tenant-id"):
        done = pgcorpus(
            "import", "memory", "nowhere", option, "invalid_uuid", DATABASE_URL="postgresql://x/y"
        )

        assert done.returncode == 2
        assert "Invalid UUID format" in read_stderr(done)


@pytest.mark.parametrize(
    ("arguments", "environment"),
    [(["--require-database-url"], {}), ([], {"ENVIRONMENT": "production"})],
)
def test_a_missing_database_url_is_told(
    pgcorpus: Command, tmp_path: Path, arguments: list[str], environment: dict[str, str]
) -> None:
    """The embedded server must not stand in for it; it is not started."""
    done = pgcorpus(
        *("import", "memory", SAMPLES, "--user-id", NOBODY, *arguments),
        DATABASE_URL="",
        DATABASE_ADMIN_URL="",
        PGCORPUS_HOME=str(tmp_path / "home"),
        **environment,
    )

    assert done.returncode == 2
    assert "DATABASE_URL environment variable not set" in read_stderr(done)
    assert not (tmp_path / "home").exists()


def test_a_missing_table_is_told_with_what_makes_it(pgcorpus: Command, empty: Database) -> None:
    """In the words of the system before."""
    settings = variables_of(empty.settings)

    done = pgcorpus("import", "memory", SAMPLES, "--user-id", NOBODY, **settings)

    assert done.returncode == 1
    assert "memory_nodes table does not exist; make it with: pgcorpus db upgrade" in read_stderr(
        done
    )


def test_a_count_that_differs_is_told(pgcorpus: Command, tenant: str, tmp_path: Path) -> None:
    """With both numbers, and nothing is written."""
    for part in ("corpus", "vectors"):
        (tmp_path / "data" / part).mkdir(parents=True)
    (tmp_path / "data" / "corpus" / "nodes.json").write_text("[]")
    np.save(tmp_path / "data" / "vectors" / "nodes.npy", np.ones((2, 1024), np.float32))

    done = pgcorpus("import", "memory", "--tenant-id", tenant)

    assert done.returncode == 1
    assert "Node count mismatch: 0 in data/corpus/nodes.json, but 2 vectors" in read_stderr(done)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ([], "--user-id or --tenant-id"),
        (["a", "--data-dir", "b", "--user-id", NOBODY], "the folder is given twice"),
        (["--user-id", NOBODY, "--on-conflict", "overwrite"], "overwrite"),
        (["--user-id", NOBODY, "--language", "klingon"], "known"),
    ],
)
def test_wrong_use_is_told(pgcorpus: Command, arguments: list[str], reason: str) -> None:
    """With exit code 2."""
    done = pgcorpus("import", "memory", *arguments)

    assert done.returncode == 2
    assert reason in read_stderr(done)


def test_what_is_rejected_is_listed_and_cannot_be_tried_again(
    pgcorpus: Command, tenant: str, tmp_path: Path
) -> None:
    """Its content is not kept; the exit code says that something did not go in."""
    (tmp_path / "data" / "corpus").mkdir(parents=True)
    secret = {"id": "mem_1", "cluster_label": "secret words"}
    (tmp_path / "data" / "corpus" / "nodes.json").write_text(json.dumps([secret]))

    done = pgcorpus("import", "memory", "data", "--tenant-id", tenant)
    rejects = pgcorpus("import", "rejects", "--corpus", "memory", "--json")
    retry = pgcorpus("import", "retry", "--corpus", "memory")

    assert done.returncode == 1
    assert "nodes.json $[0]: it has neither" in read_stderr(done)
    assert [each["payload"] for each in json.loads(rejects.stdout)] == [{"id": "mem_1"}]
    assert "secret" not in rejects.stdout
    assert retry.returncode == 2


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
@pytest.mark.parametrize("before", [0, 12], ids=["first load", "later load"])
def test_a_stop_leaves_whole_batches_and_the_same_command_goes_on(  # noqa: PLR0917 - fixtures
    database: Database,
    pgcorpus: Command,
    tenant: str,
    variables: Mapping[str, str],
    tmp_path: Path,
    how: signal.Signals,
    before: int,
) -> None:
    """No memory is without its vector, whenever it was stopped; in the end no index is missing."""
    (tmp_path / "data").mkdir()
    make(tmp_path / "data", nodes=4500, dimensions=384)
    complete = indexes(database)
    if before:
        assert pgcorpus("import", "memory", SAMPLES, "--tenant-id", tenant).returncode == 0
    command = [PGCORPUS, "import", "memory", "--tenant-id", tenant, "--json"]
    command += ["--embeddings-model", "hashing"]
    with subprocess.Popen(
        command, env=variables, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as running:
        while _count(database, tenant, before) <= before and running.poll() is None:
            time.sleep(0.05)
        running.send_signal(how)
        running.communicate(timeout=120)
    _wait_for_nobody(database)
    kept = _count(database, tenant, before) - before
    left = indexes(database)

    again = json.loads(pgcorpus(*map(str, command[1:])).stdout)

    assert kept in {2000, 4000}
    assert (left == complete) == bool(before)
    assert indexes(database) == complete
    assert (again["added"], again["unchanged"], again["embedded"]) == (
        4500 - kept,
        kept,
        4500 - kept,
    )


def _count(database: Database, tenant: str, before: int) -> int:
    """Memories; as many of the imported ones have vectors."""
    counts = (
        select(func.count()).select_from(model).scalar_subquery()
        for model in (MemoryNode, MemoryEmbedding)
    )
    with database.unit_of_work() as work:
        work.enter(Scope.tenant(UUID(tenant)))
        nodes, vectors = work.session.execute(select(*counts)).one()
    assert nodes == vectors + before
    return int(nodes)


def _wait_for_nobody(database: Database) -> None:
    """Until the server has noticed that a client is gone."""
    others = text(
        "SELECT count(*) FROM pg_stat_activity"
        " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        " AND backend_type = 'client backend' AND state <> 'idle'"
    )
    with database.engine.connect() as connection:
        while connection.scalar(others):
            connection.rollback()  # a transaction sees the same activity until it ends
            time.sleep(0.05)
