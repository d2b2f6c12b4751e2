"""Failures of the benchmark's checks, on made-up figures."""

from __future__ import annotations

from typing import Any

import pytest

from tests.benchmarks.report import list_failed_checks
from tests.benchmarks.run import MODES, checks


def result_of(*, rows: int, ours_ms: float, floor_ms: float) -> dict[str, Any]:
    """A run in which all is well but perhaps the median of vector searches."""
    latency = [
        {
            "contender": contender,
            "mode": mode,
            "p50_ms": p50_ms if mode == "vector" else 1.0,
            "without_hits": 0,
            "overlap_with_floor": 1.0,
            "recall_at_10": 1.0,
        }
        for contender, p50_ms in (("pgcorpus", ours_ms), ("floor", floor_ms))
        for mode in MODES
    ]
    result: dict[str, Any] = {"data": {"rows": rows}, "latency": latency}
    return result | {"checks": checks(result)}


def test_a_vector_search_twice_as_slow_as_the_floor_fails_the_run() -> None:
    """Both figures are named."""
    (failed,) = list_failed_checks(result_of(rows=10_000, ours_ms=4.25, floor_ms=2.0))

    assert failed["name"] == "the vector p50 is at most 2 times the floor's"
    assert failed["found"] == "4.25 ms, and the floor's is 2.00 ms"


@pytest.mark.parametrize(("rows", "ours_ms"), [(10_000, 4.0), (9_999, 40.0)])
def test_up_to_twice_the_floor_or_on_few_passages_it_passes(rows: int, ours_ms: float) -> None:
    """Noise, and the fixed costs that little data cannot hide."""
    assert list_failed_checks(result_of(rows=rows, ours_ms=ours_ms, floor_ms=2.0)) == []
