"""Passages and questions: made up, the same in every run, and shaped like real text.

Word frequencies fall with their rank (Zipf's law), passages have topics, and vectors lie in
clusters of limited dimension: in uniform noise every index looks bad, among separate points good.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from tests.benchmarks.contender import HITS

SEED: Final = 20_251_006
VOCABULARY: Final = 50_000
"""Word types."""
TWO_SYLLABLES: Final = 0.8
"""Share of the made-up words that have two syllables instead of one."""
TOPICS: Final = 200
TOPIC_WORDS: Final = 400
TOPIC_SHARE: Final = 0.3
"""Share of a passage's words that its topic chooses."""
WORDS: Final = 60
"""Words of a passage on average; the standard deviation is 12."""
QUESTIONS: Final = 200
"""At most one for ten passages."""
LATENT: Final = 24
"""Directions in which centres and passages differ: embeddings fill few of their dimensions. With
100,000 x 384, HNSW finds 94 % of the ten nearest with ef_search = 40, and 99 % with 100; in 48
directions 86 and 94 %."""
SPREAD: Final = 1.0
"""Length of a passage's way from the centre of its cluster, which is itself of length 1."""
JITTER: Final = 0.3
"""Length of the noise in all dimensions."""
DRIFT: Final = 0.7
"""The distance of a question's vector from that of the passage it was made from, before scaling."""
CHUNKS_PER_FILE: Final = 100_000
"""An import file may have 256 MiB."""
BATCH: Final = 10_000

# fmt: off
COMMONEST: Final = (
    "the", "of", "and", "to", "in", "is", "you", "that", "it", "he", "was", "for", "on", "are",
    "as", "with", "his", "they", "at", "be", "this", "have", "from", "one", "had", "by", "but",
    "not", "what", "all", "were", "we", "when", "your", "can", "said", "there", "use", "an", "each",
    "which", "she", "do", "how", "their", "if", "will", "up", "other", "about", "out", "many",
    "then", "them", "these", "so", "some", "her", "would", "him", "into", "has",
)
# fmt: on
"""The words at the top of English frequency lists: nearly half of any text. "or" is not among
them: a question reads it as an operator."""

ONSETS: Final = (*"bcdfghjklmnprstvwz", "br", "ch", "cl", "dr", "pl", "sh", "st", "th", "tr")
VOWELS: Final = (*"aeiou", "ai", "ea", "ou")
CODAS: Final = ("", "", "", "", *"nrslmt", "nd", "st")


def make(folder: Path, *, rows: int, dimensions: int) -> None:
    """Write passages, questions, their vectors and the right answers.

    ``passages.json`` and ``chunks/*.json`` hold the same passages, for peers and for our importer;
    ``vectors.npy`` is float32 of shape ``(rows, dimensions)``, of unit length;
    ``questions.json``, ``question_vectors.npy``, ``sources.json`` (the passage that each question
    was made from) and ``answers.json`` (the ``HITS`` nearest passages of each question, by exact
    search) belong together.

    Args:
        folder: Where to; it exists.
        rows: How many passages.
        dimensions: Length of the vectors.
    """
    rng = np.random.default_rng(SEED)
    topics = rng.integers(TOPICS, size=rows)
    passages = [_passage(number, words) for number, words in enumerate(texts(rng, topics))]
    _write_json(folder / "passages.json", passages)
    (folder / "chunks").mkdir()
    for start in range(0, rows, CHUNKS_PER_FILE):
        chunks = [chunk(each) for each in passages[start : start + CHUNKS_PER_FILE]]
        _write_json(folder / "chunks" / f"chunks_{start:09}.json", {"chunks": chunks})
    asked = rng.choice(rows, size=min(QUESTIONS, rows // 10), replace=False)
    _write_json(folder / "questions.json", [_question(rng, passages[row]) for row in asked])
    _write_json(folder / "sources.json", [passages[row]["chunk_id"] for row in asked])
    questions = vectors(folder / "vectors.npy", rng, topics, dimensions, asked)
    np.save(folder / "question_vectors.npy", questions)
    _write_json(folder / "answers.json", _answers(folder / "vectors.npy", questions))


def chunk(passage: dict[str, str]) -> dict[str, Any]:
    """A passage as an import file has it, complete: no rule has anything to mend."""
    number = int(passage["chunk_id"].rsplit("_", 1)[1])
    return passage | {
        "description": passage["title"],
        "metadata": {
            "start_line": number % 9000 + 1,
            "end_line": number % 9000 + 12,
            "character_count": len(passage["content"]),
            "word_count": len(passage["content"].split()),
            "chunk_type": "atomic_framework",
            "framework_name": f"Framework {number % TOPICS}",
            "key_concepts": [f"concept {number % 1500}", f"idea {number % 77}"],
            "preserves_complete_concept": True,
            "business_logic_intact": True,
            "validation_passed": True,
            "processing_date": "2025-10-06",
            "guidelines_compliance": "chunking_rules.md",
        },
    }


def _passage(number: int, words: Sequence[str]) -> dict[str, str]:
    return {
        "chunk_id": f"bench_{number:07}",
        "title": " ".join(words[:5]),
        "content": " ".join(words),
        "section": f"Section {number % 40}",
        "source_file": f"book_{number % 25}.md",
    }


def _vocabulary(rng: np.random.Generator) -> np.ndarray:
    """Pronounceable words, the most frequent first."""
    words = dict.fromkeys(COMMONEST)
    while len(words) < VOCABULARY:
        onsets, vowels, codas = (
            rng.choice(parts, size=(VOCABULARY, 2)) for parts in (ONSETS, VOWELS, CODAS)
        )
        first, second = np.strings.add(np.strings.add(onsets, vowels), codas).T
        longer = rng.random(VOCABULARY) < TWO_SYLLABLES
        words |= dict.fromkeys(np.strings.add(first, np.where(longer, second, "")).tolist())
    return np.array(list(words)[:VOCABULARY], dtype=object)


def texts(rng: np.random.Generator, topics: np.ndarray) -> list[np.ndarray]:
    """The words of each passage."""
    vocabulary = _vocabulary(rng)
    lengths = np.clip(rng.normal(WORDS, WORDS / 5, len(topics)), 20, 120).astype(int)
    of_topics = rng.integers(len(COMMONEST), VOCABULARY, size=(TOPICS, TOPIC_WORDS))
    general = _zipf(rng, VOCABULARY, lengths.sum())
    topical = of_topics[np.repeat(topics, lengths), _zipf(rng, TOPIC_WORDS, lengths.sum())]
    chosen = np.where(rng.random(lengths.sum()) < TOPIC_SHARE, topical, general)
    return np.split(vocabulary[chosen], lengths.cumsum()[:-1])


def _zipf(rng: np.random.Generator, types: int, size: int) -> np.ndarray:
    """Ranks drawn by Zipf's law, flattened at the top as Mandelbrot found it in real text."""
    cumulative = np.cumsum(1 / (np.arange(types) + 2.7))
    return np.searchsorted(cumulative, rng.random(size) * cumulative[-1])


def _question(rng: np.random.Generator, passage: dict[str, str]) -> str:
    """3 to 12 words of a passage, in their order; one of them at least is not a common one."""
    words = list(dict.fromkeys(passage["content"].split()))
    telling = [place for place, word in enumerate(words) if word not in COMMONEST]
    others = rng.choice(len(words), size=min(rng.integers(3, 13), len(words)) - 1, replace=False)
    return " ".join(words[place] for place in sorted({rng.choice(telling), *others}))


def vectors(
    path: Path, rng: np.random.Generator, topics: np.ndarray, dimensions: int, asked: np.ndarray
) -> np.ndarray:
    """Write the passages' vectors, a batch at a time, and return the questions'."""
    rows, latent = len(topics), min(LATENT, dimensions)
    basis = np.linalg.qr(rng.standard_normal((dimensions, latent)))[0].T.astype(np.float32)
    centres = _unit(rng.standard_normal((TOPICS, latent), dtype=np.float32)) @ basis

    def around(points: np.ndarray, distance: float) -> np.ndarray:
        ways = rng.standard_normal((len(points), latent), dtype=np.float32) @ basis
        noise = rng.standard_normal(points.shape, dtype=np.float32)
        return _unit(points + ways * (distance / latent**0.5) + noise * (JITTER / dimensions**0.5))

    vectors = np.lib.format.open_memmap(path, "w+", np.float32, (rows, dimensions))
    for start in range(0, rows, BATCH):
        of_batch = topics[start : start + BATCH]
        vectors[start : start + BATCH] = around(centres[of_batch], SPREAD)
    vectors.flush()
    return around(vectors[asked], DRIFT)


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def _answers(path: Path, questions: np.ndarray) -> list[list[str]]:
    """The nearest passages by cosine, compared one by one, best first."""
    vectors = np.load(path, mmap_mode="r")
    best = np.full((len(questions), 0), 0)
    scores = np.full((len(questions), 0), 0.0, dtype=np.float32)
    for start in range(0, len(vectors), BATCH):
        part = questions @ vectors[start : start + BATCH].T
        scores = np.hstack([scores, part])
        best = np.hstack([best, np.broadcast_to(np.arange(part.shape[1]) + start, part.shape)])
        order = np.argsort(-scores, axis=1)[:, :HITS]
        scores, best = np.take_along_axis(scores, order, 1), np.take_along_axis(best, order, 1)
    return [[f"bench_{row:07}" for row in rows] for rows in best]


def _write_json(path: Path, document: object) -> None:
    path.write_text(json.dumps(document))
