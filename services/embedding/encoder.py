"""Vectors of what is written: made outside of any transaction, stored inside of one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final, NamedTuple
from uuid import UUID

import numpy as np

from pgcorpus.db.engine import Database
from pgcorpus.db.errors import EmbeddingError, InvalidValue, TextsRefused
from pgcorpus.db.repositories.embeddings import refuse_unusable
from pgcorpus.db.search.corpus import Corpus
from pgcorpus.db.uow import UnitOfWork
from pgcorpus.services.embedding.budget import counts_tokens
from pgcorpus.services.embedding.choice import Choice, choose
from pgcorpus.services.embedding.embedder import Embedders
from pgcorpus.services.embedding.usage import embed_documents

FREE: Final = frozenset({"hashing", "local"})
"""Providers that take no tokens."""

LEFT_TO_WORKERS: Final = (
    "its owner has a ceiling of tokens a day, which workers alone spend: a worker embeds it"
)


class Encoded(NamedTuple):
    """Vectors of some texts.

    Attributes:
        vectors: Of each text float32 of shape ``(dimensions,)``, or None where there is none.
        reasons: Of each text why there is none, or None.
    """

    vectors: list[np.ndarray | None]
    reasons: list[str | None]


class Encoder:
    """Makes vectors with the corpus's active model; those it cannot make are left to a worker.

    Args:
        database: For the registry and the settings.
        embedders: Make the vectors.
    """

    def __init__(self, database: Database, embedders: Embedders) -> None:
        self._database = database
        self._embedders = embedders

    def choose(self, work: UnitOfWork, corpus: Corpus) -> Choice:
        """Choose the model that vectors are made with now."""
        choice = choose(work, corpus, self._database.settings, self._embedders.model_name)
        if choice.provider in FREE:
            return choice
        return replace(choice, is_limited=work.usage.is_limited())

    def encode(self, choice: Choice, texts: Sequence[str]) -> Encoded:
        """Make vectors; a refused text does not take those of the others away."""
        try:
            embedder = self._embedders.of(choice)
            if choice.is_limited and counts_tokens(embedder):
                return Encoded([None] * len(texts), [LEFT_TO_WORKERS] * len(texts))
            vectors = embed_documents(embedder, texts)
            refuse_unusable(vectors, choice.dimensions)
        except TextsRefused as error:
            if len(texts) == 1:
                return Encoded([None], [str(error)])
            middle = len(texts) // 2
            first, second = (self.encode(choice, half) for half in (texts[:middle], texts[middle:]))
            return Encoded(first.vectors + second.vectors, first.reasons + second.reasons)
        except (EmbeddingError, InvalidValue) as error:
            return Encoded([None] * len(texts), [str(error)] * len(texts))
        return Encoded(list(vectors), [None] * len(texts))

    def store(
        self,
        work: UnitOfWork,
        corpus: Corpus,
        choice: Choice,
        vectors: Mapping[UUID, np.ndarray],
        hashes: Sequence[bytes] | None = None,
    ) -> int:
        """Store vectors of rows that this transaction wrote, and complete their jobs.

        Args:
            work: The transaction.
            corpus: Whose passages.
            choice: The model that made the vectors.
            vectors: Primary key → vector.
            hashes: SHA-256 of each embedded text, or None for the present texts.

        Returns:
            How many were stored; with *hashes* the others are of texts that have changed.
        """
        if not vectors:
            return 0
        keys = list(vectors)
        stored = work.embeddings.store(
            corpus, choice.name, keys, np.stack(list(vectors.values())), hashes
        )
        # The jobs are for the model that is chosen where none is named.
        if choose(work, corpus, self._database.settings).name == choice.name:
            work.jobs.settle(corpus, choice.name, keys)
        return stored
