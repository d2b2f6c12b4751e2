"""How fast chunks go in: all checks, all indexes, no vectors."""

from __future__ import annotations

import json
import random
import tempfile
import time
from itertools import accumulate
from pathlib import Path
from typing import Any

from db.engine import Database
from services.importers.knowledge import KnowledgeImporter

SYLLABLES = ("ba", "con", "de", "er", "fi", "ing", "ka", "lo", "men", "ni", "or", "pre", "ra", "si")
COMMONEST = [
    "the",
    "of",
    "and",
    "to",
    "in",
    "is",
    "you",
    "that",
    "it",
    "he",
    "was",
    "for",
    "on",
    "are",
    "as",
    "with",
    "his",
    "they",
    "at",
    "be",
    "this",
    "have",
    "from",
    "or",
    "one",
    "had",
    "by",
    "but",
    "not",
    "what",
    "all",
    "were",
    "we",
    "when",
    "your",
    "can",
    "said",
    "there",
    "use",
    "an",
    "each",
    "which",
    "she",
    "do",
    "how",
    "their",
    "if",
    "will",
    "up",
    "other",
    "about",
    "out",
    "many",
    "then",
    "them",
    "these",
    "so",
    "some",
    "her",
    "would",
    "him",
    "into",
    "has",
]
"""The words at the top of English frequency lists: nearly half of any text."""
VOCABULARY = 20_000
"""Distinct words; how often each is used falls with its rank, as in real text (Zipf's law)."""


def import_rate(database: Database, rows: int = 100_000, files: int = 1) -> dict[str, float]:
    """Import made-up chunks of 60 to 90 words.

    Args:
        database: With the newest schema; the chunks stay in it.
        rows: How many chunks.
        files: Among how many files they are divided.

    Returns:
        ``rows``, ``seconds`` and ``rows_per_second``.
    """
    with tempfile.TemporaryDirectory() as folder:
        for number in range(files):
            chunks = [_chunk(random.Random(i), i) for i in range(number, rows, files)]  # noqa: S311 - no secret
            Path(folder, f"chunks_{number:03}.json").write_text(json.dumps({"chunks": chunks}))
        started = time.perf_counter()
        report = KnowledgeImporter(database).run([Path(folder)])
        seconds = time.perf_counter() - started
    if report.total("added") != rows:
        raise RuntimeError(f"{report.total('added')} of {rows} chunks went in")
    return {"rows": rows, "seconds": seconds, "rows_per_second": rows / seconds}


def _words() -> tuple[list[str], list[float]]:
    source = random.Random(0)  # noqa: S311 - the same words every time
    lengths = (1, 2, 2, 3, 3, 4)
    distinct = dict.fromkeys(COMMONEST)
    while len(distinct) < VOCABULARY:
        distinct["".join(source.choices(SYLLABLES, k=source.choice(lengths)))] = None
    return list(distinct), list(accumulate(1 / (rank + 3) for rank in range(VOCABULARY)))


WORDS, WEIGHTS = _words()


def _chunk(source: random.Random, number: int) -> dict[str, Any]:
    words = source.choices(WORDS, cum_weights=WEIGHTS, k=source.randint(60, 90))
    content = " ".join(words)
    return {
        "chunk_id": f"bench_{number:07}",
        "title": " ".join(words[:5]),
        "section": f"Section {number % 40}",
        "description": " ".join(words[5:12]),
        "content": content,
        "metadata": {
            "source_file": f"book_{number % 25}.md",
            "start_line": number % 9000 + 1,
            "end_line": number % 9000 + 12,
            "character_count": len(content),
            "word_count": len(words),
            "chunk_type": "atomic_framework",
            "framework_name": f"Framework {number % 200}",
            "key_concepts": [f"concept {number % 1500}", f"idea {number % 77}"],
            "preserves_complete_concept": True,
            "business_logic_intact": True,
            "validation_passed": True,
            "processing_date": "2025-10-06",
            "guidelines_compliance": "chunking_rules.md",
        },
        "tags": ["bench"],
    }
