"""Vectors without a model: feature hashing of words, neighbouring words and parts of words."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from hashlib import blake2b
from typing import Final

import numpy as np

from pgcorpus.db.errors import EmbeddingError
from pgcorpus.services.embedding.embedder import unit_rows

# A word is what stands between spaces and punctuation, in any script. `\w` would not do: it breaks
# Indic words at their vowel signs. The joiners U+200C and U+200D stay inside words.
WORD: Final = re.compile(
    r"[^\s\x00-\x2f:-@\[-`{-\x7f\xa1-\xbf\u060c\u061b\u061f\u06d4\u0964\u0965"
    r"\u2000-\u200b\u200e-\u206f\u3000-\u3003\u3008-\u3020\u30fb]{1,64}"
)
PARTS_WEIGHT: Final = 2.0
"""Length of a word's parts together, where the word as a whole is 1: typos stay near."""
PAIR_WEIGHT: Final = 0.3
"""Weight of two neighbouring words, as a share of the lighter one's."""
FULL_WEIGHT_BYTES: Final = 8
"""Bytes from which on a word has its full weight. Shorter ones weigh less in proportion: in every
language the frequent words are short (Zipf)."""
PARTS_OF_ONE_WORD: Final = 24
"""A run with more parts is several words of a script without spaces, and weighs more."""


class HashingEmbedder:
    """Deterministic vectors for tests, demos and machines without a network.

    Texts that share words, neighbouring words or parts of words (so typos and inflections too)
    have similar vectors; meaning beyond the letters is not seen. The vectors are the same in
    every process and, but for the last bit, on every platform.

    Args:
        model_name: Name in the registry.
        dimensions: Length of the vectors, at least 1; the fewer, the more features collide.

    Raises:
        EmbeddingError: ``dimensions`` is below 1.

    Source:
        Weinberger et al. 2009, "Feature Hashing for Large Scale Multitask Learning", for the
        signs, which let collisions cancel on average; Bojanowski et al. 2017, "Enriching Word
        Vectors with Subword Information", for the parts, with the ends of the word marked.
    """

    provider: Final = "hashing"

    def __init__(self, model_name: str = "hashing", dimensions: int = 384) -> None:
        if dimensions < 1:
            raise EmbeddingError(f"{model_name}: a vector cannot have {dimensions} dimensions")
        self.model_name = model_name
        self.dimensions = dimensions
        self.batch_size = 512

    def embed_documents(self, texts: Sequence[str]) -> np.ndarray:
        """Turn *texts* into vectors, one per text, in the same order.

        Args:
            texts: Any texts; one without a single word is embedded by its characters.

        Returns:
            float32 of shape ``(len(texts), dimensions)``, each row of unit length.
        """
        vectors = np.empty((len(texts), self.dimensions), dtype=np.float32)
        for start in range(0, len(texts), self.batch_size):
            batch = texts[start : start + self.batch_size]
            vectors[start : start + len(batch)] = unit_rows(
                np.stack([self._sum(text) for text in batch])
            )
        return vectors

    def embed_question(self, text: str) -> np.ndarray:
        """Turn a question into a vector, exactly as a document.

        Args:
            text: Any text.

        Returns:
            float32 of shape ``(dimensions,)``, of unit length.
        """
        return np.asarray(self.embed_documents([text])[0])

    def _sum(self, text: str) -> np.ndarray:
        """Add a text's features up; float64 of shape ``(dimensions,)``, not yet of unit length."""
        # Folding case may undo the normal form, hence twice.
        text = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
        words = WORD.findall(text) or [text.strip()[:64]]
        counts = Counter(words)
        known = {word: _features(word) for word in counts}
        pairs, pair_weights = _pairs(
            np.array([known[word][0][0] for word in words]),
            np.array([known[word][1][0] for word in words]),
        )
        # A word said ten times is not ten times as much about it: 1 + ln(count).
        damped = np.repeat(
            1 + np.log(list(counts.values())), [len(parts) for parts, _ in known.values()]
        )
        hashes = np.concatenate([*(parts for parts, _ in known.values()), pairs])
        weights = np.concatenate([weights for _, weights in known.values()]) * damped
        weights = np.concatenate([weights, pair_weights])
        buckets = (hashes >> np.uint64(1)) % np.uint64(self.dimensions)
        signed = np.where(hashes & np.uint64(1), weights, -weights)
        total = np.bincount(buckets.astype(np.intp), signed, minlength=self.dimensions)
        if not total.any():  # everything cancelled, as may happen in very few dimensions
            total[buckets[0]] = 1.0
        return total


@lru_cache(maxsize=1 << 15)
def _features(word: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the hashes (uint64) and weights of a word, the whole first, then its parts."""
    marked = f"<{word}>"
    shortest = 3 if word.isascii() else 2  # in scripts without spaces most words are two signs
    parts = [
        part
        for size in range(shortest, 6)
        for start in range(len(marked) - size + 1)
        if (part := marked[start : start + size]) != marked
    ]
    weights = np.full(1 + len(parts), PARTS_WEIGHT / min(len(parts) or 1, PARTS_OF_ONE_WORD) ** 0.5)
    weights[0] = 1.0
    encoded = [feature.encode("utf-8", "surrogatepass") for feature in (marked, *parts)]
    hashes = [int.from_bytes(blake2b(e, digest_size=8).digest(), "little") for e in encoded]
    size_bytes = len(encoded[0]) - len("<>")
    share = min(1.0, max(1, size_bytes) / FULL_WEIGHT_BYTES)
    return np.array(hashes, dtype=np.uint64), weights * share


def _pairs(words: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the hashes and weights of neighbouring words, from those of all words."""
    # The multiplier tells "a b" from "b a"; the rest is the finaliser of SplitMix64, without which
    # the low bits (bucket and sign) of a pair would follow from those of its words.
    mixed = words[:-1] * np.uint64(0x9E3779B97F4A7C15) + words[1:]
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed ^= mixed >> np.uint64(31)
    return mixed, PAIR_WEIGHT * np.minimum(weights[:-1], weights[1:])
