"""The figures of a run as one picture."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import matplotlib as mpl
import numpy as np

mpl.use("Agg")  # no screen is needed

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import NullFormatter

COLOURS: Final = {
    "floor": "#9aa5b1",
    "pgcorpus": "#1f77b4",
    "langchain": "#2ca02c",
    "llamaindex": "#d62728",
}
PERCENTILES: Final = ("p50", "p95", "p99")
MODES: Final = ("vector", "text", "hybrid")
MEBIBYTE: Final = 2**20


def plot(result: Mapping[str, Any], path: Path) -> None:
    """Draw latencies above; throughput, load rate and size below.

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
    rows = [row for row in result["latency"] if row["mode"] == mode]
    width = 0.8 / len(rows)
    for place, row in enumerate(rows):
        at = np.arange(len(PERCENTILES)) + (place - (len(rows) - 1) / 2) * width
        recall = row["recall_at_10"]
        if recall is None:
            found = f"source found {row['source_found']:.3f}"
        else:
            found = f"recall@10 {recall:.3f}"
        bars = axis.bar(
            at,
            [row[f"{name}_ms"] for name in PERCENTILES],
            width,
            color=COLOURS[row["contender"]],
            label=f"{row['contender']} ({found})",
        )
        axis.bar_label(bars, fmt="%.3g", fontsize=7)
    axis.set_xticks(np.arange(len(PERCENTILES)), PERCENTILES)
    axis.set(title=f"{mode} search", ylabel="latency, ms (log scale)", yscale="log")
    axis.yaxis.set_major_formatter("{x:g}")
    axis.yaxis.set_minor_formatter(NullFormatter())
    axis.set_ylim(bottom=min(row["p50_ms"] for row in rows) / 2)
    axis.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.07), ncols=2)


def _throughput(axis: Axes, result: Mapping[str, Any]) -> None:
    rows = [row for row in result["throughput"] if row["mode"] == "hybrid"]
    for name in dict.fromkeys(row["contender"] for row in rows):
        of = [row for row in rows if row["contender"] == name]
        axis.plot(
            [row["clients"] for row in of],
            [row["searches_per_second"] for row in of],
            marker="o",
            color=COLOURS[name],
            label=name,
        )
    clients = sorted({row["clients"] for row in rows})
    axis.set_xscale("log", base=2)
    axis.set_xticks(clients, map(str, clients))
    axis.set(title="hybrid throughput", xlabel="clients (threads)", ylabel="searches/s")
    axis.set_ylim(bottom=0)
    axis.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=4)


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
