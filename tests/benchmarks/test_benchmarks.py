"""The benchmark runs, small, and says what it measured. Nothing here is timed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
RUNS = ROOT / ".bench"


def bench(*arguments: str | Path, **variables: str) -> subprocess.Popen[str]:
    """Start ``python -m tests.benchmarks``."""
    return subprocess.Popen(
        [sys.executable, "-m", "tests.benchmarks", *arguments],
        cwd=ROOT,
        env=os.environ | {"BENCH_PEERS": "", "COLUMNS": "200"} | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for_end(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Return the process's exit code and what it said."""
    out, err = process.communicate()
    return process.returncode, out, err


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the run of this module writes to."""
    return tmp_path_factory.mktemp("bench")


@pytest.fixture(scope="module")
def result(output: Path) -> dict[str, Any]:
    """The figures of a run on 300 passages without peers."""
    small = {"BENCH_ROWS": "300", "BENCH_DIMENSIONS": "32", "BENCH_SECONDS": "0.1"}
    code, out, err = wait_for_end(bench("--json", "--output", output, **small))
    assert code == 0, err
    printed: dict[str, Any] = json.loads(out)
    return printed


def test_the_json_on_stdout_is_the_one_in_the_file(result: dict[str, Any], output: Path) -> None:
    """Scripts read either; the picture lies beside it."""
    assert json.loads((output / "benchmarks.json").read_text()) == result
    assert (output / "benchmarks.png").read_bytes().startswith(b"\x89PNG")


def test_recall_stands_beside_every_latency_of_a_vector_search(result: dict[str, Any]) -> None:
    """A fast search that misses is no achievement; so few passages leave nothing to miss."""
    rows = {(row["contender"], row["mode"]): row for row in result["latency"]}

    assert rows.keys() == {
        (contender, mode)
        for contender in ("lean", "floor", "pgcorpus")
        for mode in ("vector", "text", "hybrid")
    }
    for (_, mode), row in rows.items():
        assert 0 < row["p50_ms"] <= row["p95_ms"] <= row["p99_ms"]
        assert row["cpu_ms"] > 0
        assert (row["recall_at_10"] is None) == (mode != "vector")
    assert rows["pgcorpus", "vector"]["recall_at_10"] == 1.0


def test_every_measure_of_a_run_is_there(result: dict[str, Any]) -> None:
    """Throughput by clients, loads by way, the index, memory, ratios and checks."""
    assert result["data"]["rows"] == 300
    assert result["data"]["dimensions"] == 32
    assert {(row["contender"], row["clients"]) for row in result["throughput"]} == {
        ("pgcorpus, asyncio", 64),
        *((name, clients) for name in ("lean", "floor", "pgcorpus") for clients in (1, 2, 4, 8)),
    }
    assert {row["way"] for row in result["load"]} == {
        "COPY into a bare table",
        "importer",
        "importer, no vectors",
        "repositories",
    }
    assert [row["contender"] for row in result["index"]] == ["pgcorpus"]
    assert all(row["search_peak_rss_bytes"] > 0 for row in result["memory"])
    assert [row["name"] for row in result["ratios"] if row["name"].startswith("hybrid")] == [
        "hybrid p50 / lean",
        "hybrid p95 / lean",
        "hybrid searches/s / lean",
        "hybrid searches/s, asyncio / threads",
    ]
    assert all(check["passed"] for check in result["checks"])
    assert result["left_out"] == {}


def test_the_floors_rank_as_the_service_does(result: dict[str, Any]) -> None:
    """Otherwise their times could not be compared."""
    assert all(row["overlap_with_pgcorpus"] >= 0.99 for row in result["latency"])


def test_an_unknown_peer_is_wrong_use() -> None:
    """Exit code 2, and the known ones are named, before anything is started."""
    code, out, err = wait_for_end(bench("--peers", "elsewhere"))

    assert code == 2
    assert out == ""
    assert "known: langchain, llamaindex" in " ".join(err.split())


def test_an_interrupted_run_leaves_nothing_behind(tmp_path: Path) -> None:
    """Ctrl-C while it loads: the server is gone, and so is the folder of the run."""
    before = set(RUNS.glob("run-*"))
    process = bench("--output", tmp_path, BENCH_ROWS="3000", BENCH_DIMENSIONS="32")
    while not (begun := [*RUNS.glob("run-*/ours.log")]) and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    code, _, err = wait_for_end(process)

    assert begun, err
    assert code == 130, err
    assert set(RUNS.glob("run-*")) <= before
    assert not list(tmp_path.iterdir())
