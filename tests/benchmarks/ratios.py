"""Ratios of this project's figures to those of others, and the checks of a run.

Times depend on the machine and the moment; ratios of one run can be compared with another run's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from tests.benchmarks.processes import PEERS

MODES: Final = ("vector", "text", "hybrid")

ASYNCIO: Final = "pgcorpus, asyncio"
"""The name of ``AsyncSearchService`` among the throughputs."""

LEAST_RECALL: Final = 0.99
"""The least recall@10 of vector searches, also of the lean statement."""

LEAST_OVERLAP: Final = 0.99
"""The least share of this project's hits that the floors find: equal scores may come in another
order, and the tenth of them may be another."""

COMPARED_ROWS: Final = 10_000
"""The least number of passages whose ratios are bounded. With fewer, what every search costs hides
what the passages cost, and of 2,000 SearchService compares every one."""

MOST_TIMES_LEAN: Final = {"vector": 1.5}
"""The p50 and the p95 of a mode, at most, as multiples of the lean statement's."""

MOST_TIMES_PEER: Final = {"vector": 0.6, "text": 0.9, "hybrid": 0.8}
"""The p50 and the p95 of a mode, at most, as multiples of the best peer's."""

LEAST_RATE_TO_LEAN: Final = 0.6
"""The least throughput of the most clients, as a multiple of the lean statement's."""

LEAST_RATE_TO_PEER: Final = 1.2
"""The least throughput of the most clients, as a multiple of the best peer's."""

LEAST_RATE_OF_ASYNCIO: Final = 1 / 1.2
"""The least throughput of tasks, as a multiple of the most synchronous clients'."""

MOST_CPU_MS: Final = {"vector": 0.8, "hybrid": 1.2}
"""Milliseconds of CPU that a search of a mode takes in the client, at most."""

MOST_WORSE: Final = 1.1
"""The factor by which a ratio may be worse than in the last release."""


def compare(result: Mapping[str, Any], released: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Compare this project with the lean statement, the best peer, and asyncio with threads.

    Args:
        result: The figures of a run; peers may be missing.
        released: Those of the last release.

    Returns:
        Rows with ``name``, ``ratio``, ``bound`` (None where there is none), ``least`` (whether the
        bound is the least ratio that is allowed, not the most) and ``released`` (the ratio of the
        last release, None where that was of other data).
    """
    is_same = all(result["data"][key] == released["data"][key] for key in ("rows", "dimensions"))
    before = {row["name"]: row["ratio"] for row in released["ratios"]} if is_same else {}
    compared: list[dict[str, Any]] = []

    def add(name: str, ratio: float, bound: float | None, *, least: bool = False) -> None:
        row = {"name": name, "ratio": ratio, "bound": bound, "least": least}
        compared.append(row | {"released": before.get(name)})

    for mode in MODES:
        times = {row["contender"]: row for row in result["latency"] if row["mode"] == mode}
        for name in ("p50", "p95"):
            of = {contender: row[f"{name}_ms"] for contender, row in times.items()}
            add(f"{mode} {name} / lean", of["pgcorpus"] / of["lean"], MOST_TIMES_LEAN.get(mode))
            if peers := [of[peer] for peer in PEERS if peer in of]:
                ratio = of["pgcorpus"] / min(peers)
                add(f"{mode} {name} / best peer", ratio, MOST_TIMES_PEER[mode])
        # The most clients come last.
        of = {
            row["contender"]: row["searches_per_second"]
            for row in result["throughput"]
            if row["mode"] == mode
        }
        name, ours = f"{mode} searches/s", of["pgcorpus"]
        add(f"{name} / lean", ours / of["lean"], LEAST_RATE_TO_LEAN, least=True)
        if peers := [of[peer] for peer in PEERS if peer in of]:
            add(f"{name} / best peer", ours / max(peers), LEAST_RATE_TO_PEER, least=True)
        add(f"{name}, asyncio / threads", of[ASYNCIO] / ours, LEAST_RATE_OF_ASYNCIO, least=True)
    return compared


def check(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Check what must hold: that the figures mean something, and the bounds of ratios and CPU.

    Returns:
        Rows with ``name``, ``passed`` and ``found``.
    """
    rows = {(row["contender"], row["mode"]): row for row in result["latency"]}
    checks: list[dict[str, Any]] = []

    def add(name: str, passed: bool, found: str) -> None:
        checks.append({"name": name, "passed": passed, "found": found})

    for mode in MODES:
        empty = rows["pgcorpus", mode]["without_hits"]
        add(f"every question has hits ({mode})", not empty, f"{empty} questions have none")
        for floor in ("lean", "floor"):
            same = rows[floor, mode]["overlap_with_pgcorpus"]
            add(f"{floor} finds the same ({mode})", same >= LEAST_OVERLAP, f"{same:.3f} of it")
    for name in ("lean", "pgcorpus"):
        recall = rows[name, "vector"]["recall_at_10"]
        found = f"it is {recall:.3f}"
        add(f"recall@10 of {name} is at least {LEAST_RECALL}", recall >= LEAST_RECALL, found)
    if result["data"]["rows"] < COMPARED_ROWS:
        return checks
    for mode, most in MOST_CPU_MS.items():
        cpu = rows["pgcorpus", mode]["cpu_ms"]
        name = f"CPU of a {mode} search is at most {most:g} ms"
        add(name, cpu <= most, f"it is {cpu:.2f} ms")
    for row in result["ratios"]:
        name, ratio, bound, least, released = row.values()
        found = f"it is {ratio:.2f}"
        if bound is not None:
            passed = ratio >= bound if least else ratio <= bound
            add(f"{name} is at {'least' if least else 'most'} {bound:.3g}", passed, found)
        if released is not None:
            worse = released / ratio if least else ratio / released
            found = f"{found}, and was {released:.2f}"
            add(f"{name} is as in the last release", worse <= MOST_WORSE, found)
    return checks
