"""The protocol of embedders, the rules of their vectors, and the embedder of each model."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np

from pgcorpus.db.errors import EmbedderUnavailable, TextsRefused, UnknownModel
from pgcorpus.db.settings import Settings
from pgcorpus.services.choices import PROVIDERS

if TYPE_CHECKING:
    from pgcorpus.db.models.embeddings import EmbeddingModel
    from pgcorpus.services.embedding.choice import Choice


class Embedder(Protocol):
    """Turns texts into vectors of one model, comparable by cosine distance.

    Attributes:
        model_name: Name in the registry, stored beside every vector.
        dimensions: Length of every vector.
        batch_size: How many texts are worth handing over at once; more are allowed, and any one
            step of progress is at most this large.
    """

    model_name: str
    dimensions: int
    batch_size: int

    def embed_documents(self, texts: Sequence[str]) -> np.ndarray:
        """Turn *texts* into vectors, one per text, in the same order.

        Args:
            texts: Any number of texts, empty ones included.

        Returns:
            float32 of shape ``(len(texts), dimensions)``, each row of unit length, so that cosine
            distance is ``1 - dot``.

        Raises:
            EmbedderUnavailable: No answer in time. The call may be repeated.
            TextsRefused: A text cannot be embedded. Without it the others can.
            EmbeddingError: The key or the model was refused, or the answer is unusable. Repeating
                the call would not help, with whatever texts.
        """
        ...

    def embed_question(self, text: str) -> np.ndarray:
        """Turn a question into a vector to search by; may give up sooner than for documents.

        Args:
            text: The question.

        Returns:
            float32 of shape ``(dimensions,)``, of unit length.

        Raises:
            EmbedderUnavailable: No answer in time. The call may be repeated.
            EmbeddingError: As for ``embed_documents``.
        """
        ...


def unit_rows(vectors: np.ndarray) -> np.ndarray:
    """Scale every row to length 1.

    Args:
        vectors: Numbers of shape ``(n, dimensions)``.

    Returns:
        float32 of the same shape.

    Raises:
        TextsRefused: A row holds NaN or infinity, or is all zeros and so has no direction. The
            message names the first such row, counted from 0.
    """
    # float64, and the largest number first: the squares of neither huge nor tiny rows leave range.
    rows = np.asarray(vectors, dtype=np.float64)
    largest = np.abs(rows).max(axis=1, keepdims=True, initial=0.0)
    for wrong, what in ((~np.isfinite(largest), "NaN or infinity"), (largest == 0, "only zeros")):
        if wrong.any():
            raise TextsRefused(f"the vector in row {int(wrong.argmax())} holds {what}")
    rows = rows / largest
    unit: np.ndarray = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return unit.astype(np.float32)


class Embedders:
    """The embedders of registered models; each is made when it is first asked for, and kept.

    Threads may share it: the weights of a local model are loaded once.

    Args:
        settings: Where the key and the address of a hosted model come from.
        given: Serves every model instead, if there is one.
    """

    def __init__(self, settings: Settings, given: Embedder | None = None) -> None:
        self._settings = settings
        self._given = given
        self._made: dict[tuple[str, int, str], Embedder] = {}
        self._making = threading.Lock()

    @property
    def model_name(self) -> str | None:
        """The model of the embedder that was given, or None where each model has its own."""
        return None if self._given is None else self._given.model_name

    def of(self, model: Choice | EmbeddingModel) -> Embedder:
        """Return the embedder of a registered model, ready for use. Nothing has been sent yet.

        Raises:
            EmbedderUnavailable: The model is hosted and there is no key for it.
            UnknownModel: The provider is not known, or its package is not installed.
            EmbeddingError: The model cannot have vectors of this length.
        """
        if self._given is not None:
            return self._given
        key = (model.name, model.dimensions, model.provider)
        with self._making:
            if key not in self._made:
                self._made[key] = _make(*key, self._settings)
            return self._made[key]


def _make(model_name: str, dimensions: int, provider: str, settings: Settings) -> Embedder:
    # Imported here: a process pays only for the client or the weights that it uses.
    match provider:
        case "hashing":
            from pgcorpus.services.embedding.hashing import HashingEmbedder  # noqa: PLC0415 - see above

            return HashingEmbedder(model_name, dimensions)
        case "local":
            from pgcorpus.services.embedding.local import LocalEmbedder  # noqa: PLC0415 - see above

            return LocalEmbedder(model_name, dimensions)
        case "openai":
            if settings.openai_api_key is None:
                raise EmbedderUnavailable(
                    f"{model_name} needs OPENAI_API_KEY, which is not set (an endpoint of your own "
                    "that asks for no key takes any value); to embed without a hosted model: "
                    "pgcorpus models use <corpus> hashing"
                )
            from pgcorpus.services.embedding.openai import OpenAIEmbedder  # noqa: PLC0415 - see above

            return OpenAIEmbedder(
                model_name,
                dimensions,
                api_key=settings.openai_api_key,
                base_url=settings.openai_base_url,
            )
        case _:
            raise UnknownModel(
                f"{model_name} has the unknown provider {provider!r}; known: {', '.join(PROVIDERS)}"
            )
