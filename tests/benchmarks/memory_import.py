"""The rate at which an agent's memories go in, vectors and indexes included.

``python -m tests.benchmarks.memory_import`` measures the first load of an empty database, and then
that of a second tenant beside it, whose rows the indexes take one by one.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any, Final

import numpy as np
from sqlalchemy import text

from pgcorpus.db.engine import Database
from pgcorpus.db.models.memory import INTENT_TYPES, memory_id
from pgcorpus.db.scope import Scope
from pgcorpus.services.memory.importing.importer import MemoryImporter
from tests.benchmarks import data
from tests.benchmarks.own_database import open_own_database, print_found

DIMENSIONS: Final = 1024
EXCHANGES: Final = 8
"""Exchanges of a conversation."""
HUMAN_WORDS: Final = 20
"""Words of the human, of the 60 that an exchange has."""
SHARE_OF_NOISE: Final = 0.2


def make(folder: Path, *, nodes: int, dimensions: int = DIMENSIONS) -> None:
    """Write ``corpus/nodes.json`` and ``vectors/nodes.npy``, complete: no rule mends anything.

    Args:
        folder: Where to; it exists.
        nodes: How many.
        dimensions: Length of the vectors, which lie in clusters as those of real texts do.
    """
    rng = np.random.default_rng(data.SEED)
    topics = rng.integers(data.TOPICS, size=nodes)
    noise = rng.random(nodes) < SHARE_OF_NOISE
    for part in ("corpus", "vectors"):
        (folder / part).mkdir()
    with (folder / "corpus" / "nodes.json").open("w") as file:
        for number, words in enumerate(data.texts(rng, topics)):
            cluster = -1 if noise[number] else int(topics[number])
            file.write("[\n" if number == 0 else ",\n")
            json.dump(_node(number, words, cluster), file)
        file.write("]\n" if nodes else "[]\n")
    path = folder / "vectors" / "nodes.npy"
    data.vectors(path, rng, topics, dimensions, np.arange(0))


def measure(database: Database, folder: Path, scope: Scope) -> dict[str, float]:
    """Import a folder.

    Args:
        database: With the newest schema; what is imported stays in it.
        folder: As ``make`` writes it.
        scope: An existing tenant's.

    Returns:
        ``rows``, ``seconds`` and ``rows_per_second``; ``loading_seconds`` and ``building_seconds``
        are parts of the seconds.

    Raises:
        RuntimeError: A memory was rejected.
    """
    built_from: list[float] = []
    started = time.perf_counter()
    report = MemoryImporter(database, scope).run(
        [folder], on_build=lambda: built_from.append(time.perf_counter())
    )
    ended = time.perf_counter()
    if report.rejects:
        raise RuntimeError(f"{len(report.rejects)} nodes were rejected: {report.rejects[0]}")
    rows, loaded = report.total("added"), (built_from or [ended])[0]
    return {
        "rows": rows,
        "seconds": ended - started,
        "rows_per_second": rows / (ended - started),
        "loading_seconds": loaded - started,
        "building_seconds": ended - loaded,
    }


def _node(number: int, words: np.ndarray, cluster: int) -> dict[str, Any]:
    conversation, index = f"conversation-{number // EXCHANGES}", number % EXCHANGES
    human = " ".join(words[:HUMAN_WORDS])
    return {
        "id": memory_id(conversation, index, human),
        "conversation_id": conversation,
        "sequence_index": index,
        "human_content": human,
        "assistant_content": " ".join(words[HUMAN_WORDS:]),
        "source": ("anthropic", "openai", "grok", "gemini")[number % 4],
        "created_at": f"2025-{number % 12 + 1:02}-{number % 28 + 1:02}T08:00:00Z",
        "intent_type": INTENT_TYPES[number % len(INTENT_TYPES)],
        "complexity": "moderate",
        "technical_depth": number % 11,
        "emotional_valence": "neutral",
        "urgency": "low",
        "conversation_mode": "chat",
        "action_required": False,
        "has_code": number % 5 == 0,
        "has_error": False,
        "tags": {
            "domains": [f"domain {number % 20}"],
            "topics": [f"topic {cluster}"],
            "entities": [],
            "processes": [],
        },
        "cluster_id": cluster,
        "cluster_label": None if cluster < 0 else f"cluster {cluster}",
        "cluster_confidence": 0.8,
        "access_count": 0,
        "last_accessed": None,
    }


def main() -> int:
    """Measure on a server of its own, and print what was found as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", type=int, default=100_000, help="memories of the first tenant")
    parser.add_argument(
        "--second", type=int, default=5_000, help="memories of the second tenant; 0: none"
    )
    given = parser.parse_args()
    with open_own_database("memory") as (database, home):
        found: dict[str, Any] = {}
        for name, nodes in (("first", given.nodes), ("second", given.second)):
            if nodes == 0:
                continue
            folder = home / name
            folder.mkdir()
            make(folder, nodes=nodes)
            with database.unit_of_work() as work:
                tenant = work.tenancy.create_tenant(name)
                work.commit()
            found[name] = measure(database, folder, Scope.tenant(tenant.id))
        with database.unit_of_work() as work:
            sizes = "SELECT pg_total_relation_size(:table)"
            found["bytes"] = {
                table: work.session.scalar(text(sizes), {"table": table})
                for table in ("memory_nodes", "memory_embeddings", "jobs")
            }
    print_found(found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
