"""Vectors without a model: feature hashing of words, word pairs and parts of words."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from hashlib import blake2b
from itertools import pairwise
from typing import Final

import numpy as np

from db.errors import EmbeddingError
from services.embedding.embedder import unit_rows

# A word is what stands between spaces and punctuation of any script. `\w` would not do: it breaks
# Indic words at their vowel signs. The joiners U+200C and U+200D stay inside words.
WORD: Final = re.compile(
    r"[^\s\x00-\x2f:-@\[-`{-\x7f\xa1-\xbf\u060c\u061b\u061f\u06d4\u0964\u0965"
    r"\u2000-\u200b\u200e-\u206f\u3000-\u3003\u3008-\u3020\u30fb]{1,64}"
)
PAIR_WEIGHT: Final = 0.5
PARTS_WEIGHT: Final = 0.6
SIZES: Final = range(3, 6)


class HashingEmbedder:
    """Deterministic vectors for tests, demos and machines without a network.

    Texts that share words, neighbouring words or parts of words (so typos and inflections too)
    get similar vectors; meaning beyond the letters is not seen. The vectors are the same in every
    process and on every platform.

    Args:
        model_name: Name in the registry.
        dimensions: Length of the vectors, at least 1; fewer mean more collisions.

    Raises:
        EmbeddingError: ``dimensions`` is below 1.

    Source:
        Weinberger et al. 2009, "Feature Hashing for Large Scale Multitask Learning", for the
        signs, which make collisions cancel on average; Bojanowski et al. 2017, "Enriching Word
        Vectors with Subword Information", for marking where a word begins and ends.
    """

    def __init__(self, model_name: str = "hashing", dimensions: int = 384) -> None:
        if dimensions < 1:
            raise EmbeddingError(f"{model_name}: a vector cannot have {dimensions} dimensions")
        self.model_name = model_name
        self.dimensions = dimensions
        self.batch_size = 512

    def embed_documents(
        self, texts: Sequence[str], on_progress: Callable[[int], None] | None = None
    ) -> np.ndarray:
        """Turn *texts* into vectors, one per text, in the same order.

        Args:
            texts: Any texts; one without a single word is embedded by its characters.
            on_progress: Called after each batch with its number of texts.

        Returns:
            float32 of shape ``(len(texts), dimensions)``, each row of unit length.
        """
        vectors = np.zeros((len(texts), self.dimensions), dtype=np.float32)
        for start in range(0, len(texts), self.batch_size):
            batch = texts[start : start + self.batch_size]
            rows = np.stack([self._vector(text) for text in batch])
            vectors[start : start + len(batch)] = unit_rows(rows)
            if on_progress:
                on_progress(len(batch))
        return vectors

    def embed_question(self, text: str) -> np.ndarray:
        """Turn a question into a vector, exactly as a document.

        Args:
            text: Any text.

        Returns:
            float32 of shape ``(dimensions,)``, of unit length.
        """
        return np.asarray(self.embed_documents([text])[0])

    def _vector(self, text: str) -> np.ndarray:
        """The sum of a text's features, not yet of unit length."""
        # Twice: folding may undo the normal form, and normalising may bring back capitals.
        text = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
        words = WORD.findall(text) or [text.strip()[:64]]
        pairs = Counter(pairwise(words))
        parts = [_features(word) for word in (counts := Counter(words))]
        identities = np.array([part[0][0] for part in parts])
        position = {word: place for place, word in enumerate(counts)}
        first, second = (
            identities[[position[pair[side]] for pair in pairs]] if pairs else identities[:0]
            for side in (0, 1)
        )
        features = np.concatenate([*(part[0] for part in parts), _mixed(first, second)])
        weights = np.concatenate(
            [
                *(part[1] * _damped(count) for part, count in zip(parts, counts.values(), strict=True)),
                PAIR_WEIGHT * _damped(np.array(list(pairs.values()))),
            ]
        )
        return self._sum(features, weights)
