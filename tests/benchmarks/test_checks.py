"""Ratios and failures of the benchmark's checks, on made-up figures."""

from __future__ import annotations

from typing import Any

import pytest

from tests.benchmarks.ratios import ASYNCIO, MODES, check, compare
from tests.benchmarks.report import list_failed_checks

MS = {"lean": 2.0, "floor": 2.5, "pgcorpus": 2.4, "langchain": 9.0, "llamaindex": 8.0}
RATES = {"lean": 200.0, "pgcorpus": 160.0, ASYNCIO: 150.0, "langchain": 90.0, "llamaindex": 100.0}


def result_of(
    *,
    rows: int = 10_000,
    ms: dict[str, float] | None = None,
    rates: dict[str, float] | None = None,
    cpu_ms: float = 0.7,
    released: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """A run in which all is well but perhaps what is given, the same in each mode.

    *ms* are the p50 and the p95 by contender, *rates* the searches per second.
    """
    times, per_second = MS | (ms or {}), RATES | (rates or {})
    result: dict[str, Any] = {
        "data": {"rows": rows, "dimensions": 384},
        "latency": [
            {
                "contender": contender,
                "mode": mode,
                "p50_ms": time,
                "p95_ms": time,
                "cpu_ms": cpu_ms,
                "without_hits": 0,
                "overlap_with_pgcorpus": 1.0,
                "recall_at_10": 1.0,
            }
            for contender, time in times.items()
            for mode in MODES
        ],
        "throughput": [
            {"contender": contender, "mode": mode, "searches_per_second": rate}
            for contender, rate in per_second.items()
            for mode in MODES
        ],
    }
    before = released or {"data": {"rows": 0, "dimensions": 0}, "ratios": []}
    result["ratios"] = compare(result, before)
    return result | {"checks": check(result)}


def failures(result: dict[str, Any]) -> dict[str, str]:
    """Return the names of the checks that failed → what was found."""
    return {each["name"]: each["found"] for each in list_failed_checks(result)}


def test_a_run_within_all_bounds_passes() -> None:
    """The figures that the other tests spoil are fine as they are."""
    assert failures(result_of()) == {}


def test_a_vector_search_far_slower_than_the_lean_one_fails_the_run() -> None:
    """p50 and p95 are bounded; by words and hybrid only by the peers."""
    assert failures(result_of(ms={"pgcorpus": 3.2})) == {
        "vector p50 / lean is at most 1.5": "it is 1.60",
        "vector p95 / lean is at most 1.5": "it is 1.60",
    }


def test_times_are_compared_with_the_best_peer_of_each_mode() -> None:
    """The slower peer does not matter."""
    failed = failures(result_of(ms={"langchain": 100.0, "llamaindex": 2.8}))

    assert list(failed) == [
        "vector p50 / best peer is at most 0.6",
        "vector p95 / best peer is at most 0.6",
        "hybrid p50 / best peer is at most 0.8",
        "hybrid p95 / best peer is at most 0.8",
    ]


@pytest.mark.parametrize(
    ("rates", "failed"),
    [
        ({"lean": 300.0}, "searches/s / lean is at least 0.6"),
        ({"langchain": 140.0}, "searches/s / best peer is at least 1.2"),
        ({ASYNCIO: 120.0}, "searches/s, asyncio / threads is at least 0.833"),
    ],
)
def test_too_few_searches_a_second_fail_the_run(rates: dict[str, float], failed: str) -> None:
    """They are compared with the lean statement, the best peer, and asyncio with threads."""
    assert list(failures(result_of(rates=rates))) == [f"{mode} {failed}" for mode in MODES]


def test_cpu_of_the_client_is_bounded() -> None:
    """By words it is not."""
    assert failures(result_of(cpu_ms=1.5)) == {
        "CPU of a vector search is at most 0.8 ms": "it is 1.50 ms",
        "CPU of a hybrid search is at most 1.2 ms": "it is 1.50 ms",
    }


def test_a_ratio_worse_by_more_than_a_tenth_than_in_the_last_release_fails_the_run() -> None:
    """Also where it is within its bound: times grew, or rates fell."""
    released = result_of()
    slower = {"pgcorpus": 2.7}  # 1.35 times lean's instead of 1.2
    fewer = {"pgcorpus": 140.0, ASYNCIO: 131.0}  # 0.7 of lean's instead of 0.8

    assert {
        name.partition(" ")[2] for name in failures(result_of(ms=slower, released=released))
    } == {
        f"{percentile} / {other} is as in the last release"
        for percentile in ("p50", "p95")
        for other in ("lean", "best peer")
    }
    assert {
        name.partition(" ")[2] for name in failures(result_of(rates=fewer, released=released))
    } == {f"searches/s / {other} is as in the last release" for other in ("lean", "best peer")}


def test_a_ratio_a_little_worse_than_in_the_last_release_passes() -> None:
    """Noise; and all of them at once."""
    slower = result_of(ms={"pgcorpus": 2.6}, rates={"pgcorpus": 150.0}, released=result_of())

    assert failures(slower) == {}
    assert slower["ratios"][0] == {
        "name": "vector p50 / lean",
        "ratio": 1.3,
        "bound": 1.5,
        "least": False,
        "released": 1.2,
    }


def test_other_data_are_not_compared_with_the_last_release() -> None:
    """With ten times the passages a ratio may be another."""
    result = result_of(rows=100_000, ms={"pgcorpus": 2.9}, released=result_of())

    assert failures(result) == {}
    assert {row["released"] for row in result["ratios"]} == {None}


def test_few_passages_bound_no_ratio() -> None:
    """The fixed cost of a search hides that of the passages."""
    assert failures(result_of(rows=9_999, ms={"pgcorpus": 40.0}, cpu_ms=9.0)) == {}


def test_without_peers_the_others_are_compared() -> None:
    """A run without a network compares lean and asyncio."""
    result = result_of()
    for figures in ("latency", "throughput"):
        result[figures] = [
            row for row in result[figures] if row["contender"] not in {"langchain", "llamaindex"}
        ]
    names = [row["name"] for row in compare(result, result)]

    assert names[:4] == [
        "vector p50 / lean",
        "vector p95 / lean",
        "vector searches/s / lean",
        "vector searches/s, asyncio / threads",
    ]
    assert not [name for name in names if "peer" in name]
