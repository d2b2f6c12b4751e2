"""The figures of a run as one picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, Final

import matplotlib as mpl
import numpy as np

mpl.use("Agg")  # no screen is needed

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import NullFormatter

from tests.benchmarks.ratios import ASYNCIO, MODES

COLOURS: Final = {
    "lean": "#d3d9e0",
    "floor": "#9aa5b1",
    "pgcorpus": "#1f77b4",
    ASYNCIO: "#7fb8e0",
    "langchain": "#2ca02c",
    "llamaindex": "#d62728",
}
PERCENTILES: Final = ("p50", "p95", "p99")
MEBIBYTE: Final = 2**20


def plot(result: Mapping[str, Any], path: Path) -> None:
    """Draw latencies above; throughput, load rate and size below. Searches are shown as ratios.

    Args:
        result: As ``benchmarks.json`` has it.
        path: A PNG is written there.
    """
    figure, axes = plt.subplots(2, 3, figsize=(15, 9), layout="constrained")
    data, server = result["data"], result["server"]
    figure.suptitle(
        f"{data['rows']:,} passages, {data['dimensions']} dimensions, PostgreSQL "
        f"{server['postgresql']}, {result['machine']['cpus']} CPUs, limit {data['limit']}"
    )
    for axis, mode in zip(axes[0], MODES, strict=True):
        _latency(axis, result, mode)
    _throughput(axes[1][0], result)
    _load(axes[1][1], result)
    _sizes(axes[1][2], result)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _latency(axis: Axes, result: Mapping[str, Any], mode: str) -> None:
    rows = {row["contender"]: row for row in result["latency"] if row["mode"] == mode}
    lean, bars = rows["lean"], {}
    for contender, row in rows.items():
        recall = row["recall_at_10"]
        if recall is None:
            found = f"source found {row['source_found']:.3f}"
        else:
            found = f"recall@10 {recall:.3f}"
        times = [row[f"{name}_ms"] / lean[f"{name}_ms"] for name in PERCENTILES]
        bars[contender, f"{contender} ({found})"] = times
    _bars(axis, bars, PERCENTILES)
    axis.set(
        title=f"{mode} search (p50 of lean: {lean['p50_ms']:.3g} ms)",
        ylabel="latency, multiples of lean's (log scale)",
        yscale="log",
    )
    axis.yaxis.set_major_formatter("{x:g}")
    axis.yaxis.set_minor_formatter(NullFormatter())
    axis.set_ylim(bottom=min(chain.from_iterable(bars.values())) / 2)
    axis.axhline(1, color="black", linewidth=0.5)
    axis.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.07), ncols=2)


def _throughput(axis: Axes, result: Mapping[str, Any]) -> None:
    # The most clients come last.
    rates = {(row["contender"], row["mode"]): row for row in result["throughput"]}
    rate = {key: row["searches_per_second"] for key, row in rates.items()}
    clients = {contender: row["clients"] for (contender, _), row in rates.items()}
    bars = {
        (contender, f"{contender} ({number})"): [
            rate.get((contender, mode), np.nan) / rate["lean", mode] for mode in MODES
        ]
        for contender, number in clients.items()
    }
    _bars(axis, bars, MODES)
    axis.set(title="throughput (clients)", ylabel="searches/s, multiples of lean's")
    axis.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.07), ncols=2)


def _bars(
    axis: Axes, bars: Mapping[tuple[str, str], Sequence[float]], names: Sequence[str]
) -> None:
    """Draw a group of bars for each name, in which each contender with its label has one."""
    width = 0.8 / len(bars)
    for place, ((contender, label), heights) in enumerate(bars.items()):
        at = np.arange(len(names)) + (place - (len(bars) - 1) / 2) * width
        drawn = axis.bar(at, heights, width, color=COLOURS[contender], label=label)
        axis.bar_label(drawn, fmt="%.3g", fontsize=7)
    axis.set_xticks(np.arange(len(names)), names)
    axis.margins(y=0.1)


def _load(axis: Axes, result: Mapping[str, Any]) -> None:
    rows = result["load"]
    bars = axis.barh(
        [f"{row['contender']}\n{row['way']}" for row in rows],
        [row["rows_per_second"] for row in rows],
        color=[COLOURS[row["contender"]] for row in rows],
    )
    axis.bar_label(bars, fmt="{:,.0f}", fontsize=8, padding=2)
    axis.set(title="bulk load, HNSW built afterwards", xlabel="rows/s")
    axis.margins(x=0.2)
    axis.invert_yaxis()


def _sizes(axis: Axes, result: Mapping[str, Any]) -> None:
    rows = [row for row in result["memory"] if "tables_bytes" in row]
    names = [row["contender"] for row in rows]
    left = np.zeros(len(rows))
    parts = {
        ("tables", "#4c566a"): [row["tables_bytes"] for row in rows],
        ("HNSW index", "#b48ead"): [row["hnsw_bytes"] for row in rows],
        ("other indexes", "#ebcb8b"): [row["indexes_bytes"] - row["hnsw_bytes"] for row in rows],
    }
    for (part, colour), sizes in parts.items():
        mebibytes = np.array(sizes) / MEBIBYTE
        axis.barh(names, mebibytes, left=left, label=part, color=colour)
        left += mebibytes
    axis.set(title="size in the database", xlabel="MiB")
    axis.invert_yaxis()
    axis.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=3)
