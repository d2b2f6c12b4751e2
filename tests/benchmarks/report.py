"""The figures of a run as tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pgcorpus.services.cli.output import out, table

MEBIBYTE = 2**20


def list_failed_checks(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """List the checks that did not pass."""
    return [check for check in result["checks"] if not check["passed"]]


def print_tables(result: Mapping[str, Any]) -> None:
    """Print everything that was measured."""
    data = result["data"]
    out.print(
        f"{data['rows']:,} passages of about {data['words_per_passage']} words, "
        f"{data['dimensions']} dimensions, {data['questions']} questions, limit {data['limit']}"
    )
    _latency(result)
    _throughput(result)
    table(
        "Ratios of pgcorpus",
        ["ratio", "found", "bound", "last release"],
        [
            (row["name"], *(_ratio(row[each]) for each in ("ratio", "bound", "released")))
            for row in result["ratios"]
        ],
    )
    table(
        "Bulk load, vectors given",
        ["contender", "way", "rows/s"],
        [(r["contender"], r["way"], f"{r['rows_per_second']:,.0f}") for r in result["load"]],
    )
    table(
        "HNSW index, built after the load",
        ["contender", "seconds", "built"],
        [(r["contender"], f"{r['seconds']:.1f}", r["built"]) for r in result["index"]],
    )
    sizes = {
        "load_peak_rss_bytes": "RSS loading",
        "search_peak_rss_bytes": "RSS searching",
        "tables_bytes": "tables",
        "indexes_bytes": "indexes",
        "hnsw_bytes": "of them HNSW",
    }
    table(
        "Memory of the client, and size in the database, MiB",
        ["contender", *sizes.values()],
        [(row["contender"], *(_mebibytes(row.get(s)) for s in sizes)) for row in result["memory"]],
    )
    for name, reason in result["left_out"].items():
        out.print(f"left out: {name}: {reason}", markup=False)


def _latency(result: Mapping[str, Any]) -> None:
    lean = {row["mode"]: row["p50_ms"] for row in result["latency"] if row["contender"] == "lean"}
    for mode in dict.fromkeys(row["mode"] for row in result["latency"]):
        rows = []
        for row in (each for each in result["latency"] if each["mode"] == mode):
            found = row["recall_at_10"] if mode == "vector" else row["source_found"]
            rows.append(
                (
                    row["contender"],
                    *(f"{row[each]:.2f}" for each in ("p50_ms", "p95_ms", "p99_ms", "cpu_ms")),
                    _ratio(row["p50_ms"] / lean[mode]),
                    f"{found:.3f}",
                    f"{row['mean_hits']:.1f}",
                )
            )
        quality = "recall@10" if mode == "vector" else "source found"
        table(
            f"Latency of {mode} searches, ms",
            ["contender", "p50", "p95", "p99", "CPU", "p50 / lean", quality, "hits"],
            rows,
        )


def _throughput(result: Mapping[str, Any]) -> None:
    grid: dict[tuple[str, str], dict[int, float]] = {}
    for row in result["throughput"]:
        of = grid.setdefault((row["mode"], row["contender"]), {})
        of[row["clients"]] = row["searches_per_second"]
    clients = sorted({number for of in grid.values() for number in of})
    table(
        "Searches per second by clients",
        ["mode", "contender", *map(str, clients)],
        [
            (*key, *(f"{of[number]:,.0f}" if number in of else "" for number in clients))
            for key, of in grid.items()
        ],
    )


def _ratio(ratio: float | None) -> str:
    return "" if ratio is None else f"{ratio:.2f}"


def _mebibytes(size: int | None) -> str:
    return "" if size is None else f"{size / MEBIBYTE:,.0f}"
