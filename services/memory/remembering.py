"""The way of an exchange into memory: it is added, or merged with one that has the same words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from operator import itemgetter
from typing import Final, NamedTuple, get_args
from uuid import UUID

import numpy as np

from pgcorpus.db.errors import AlreadyExists, InvalidValue
from pgcorpus.db.models.memory import MemoryNode
from pgcorpus.db.repositories.memory.nodes import Exchange
from pgcorpus.db.search.ask import Ask
from pgcorpus.db.search.corpora import MEMORY
from pgcorpus.db.search.legs import AskedModel
from pgcorpus.db.search.question import Question
from pgcorpus.db.uow import UnitOfWork
from pgcorpus.services.choices import LIKENESS, Handling
from pgcorpus.services.embedding.choice import Choice
from pgcorpus.services.embedding.encoder import Encoded, Encoder
from pgcorpus.services.memory.records import Remembered

HANDLINGS: Final = get_args(Handling)


NEAREST: Final = 10
"""Memories that are looked at for one that may be merged into; others may be another user's."""

WITH_NOISE: Final[Mapping[str, object]] = {"noise": [True, False]}
"""Memories of no cluster, too."""


@dataclass(frozen=True, kw_only=True)
class Duplicates:
    """The rule for exchanges that are remembered already.

    Attributes:
        handling: ``link`` keeps both, and the new memory names the older; ``merge`` has the older
            stand for both, if the same user wrote it, and else links; ``refuse`` is an error;
            ``keep`` does not look.
        threshold: Cosine from which on two say the same, above 0 and at most 1.
    """

    handling: Handling = "link"
    threshold: float = LIKENESS

    def __post_init__(self) -> None:
        if self.handling not in HANDLINGS:
            raise InvalidValue(
                f"there is no handling {self.handling!r} of duplicates; known: "
                f"{', '.join(HANDLINGS)}"
            )
        if not 0 < self.threshold <= 1:
            raise InvalidValue(f"threshold must be above 0 and at most 1, not {self.threshold!r}")


class Like(NamedTuple):
    """A memory with the same words, and its similarity: None where that was not compared."""

    node: MemoryNode
    similarity: float | None


@dataclass(kw_only=True)
class Remembering:
    """A batch of exchanges on their way into memory, in one transaction.

    Args:
        work: The transaction.
        encoder: Stores the vectors.
        choice: The model that made them.
        duplicates: What is done about what is remembered already.
    """

    work: UnitOfWork
    encoder: Encoder
    choice: Choice
    duplicates: Duplicates
    _vectors: dict[UUID, np.ndarray] = field(default_factory=dict)

    def remember(self, exchanges: Sequence[Exchange], encoded: Encoded) -> list[Remembered]:
        """Remember exchanges with their vectors.

        Returns:
            What became of each.

        Raises:
            AlreadyExists: A memory says the same, and duplicates are refused; or the place in the
                conversation is taken by other words. Nothing of the batch is kept.
        """
        looks = self.duplicates.handling != "keep"
        if looks or any(each.sequence_index is None for each in exchanges):
            self.work.memory.take_turns()
        results = [
            self._remember(exchange, vector, reason)
            for exchange, vector, reason in zip(exchanges, *encoded, strict=True)
        ]
        # All at once: a memory of this batch was compared with the others from here.
        self.encoder.store(self.work, MEMORY, self.choice, self._vectors)
        return results

    def _remember(
        self, exchange: Exchange, vector: np.ndarray | None, reason: str | None
    ) -> Remembered:
        memory, handling = self.work.memory, self.duplicates.handling
        if exchange.sequence_index is None:
            place = memory.next_index(exchange.conversation_id)
            exchange = replace(exchange, sequence_index=place)
        like = None
        if handling != "keep":
            if (there := memory.find(exchange.id)) is not None:
                return self._again(there, exchange, vector, reason)
            like = self._like(exchange, vector)
        if like is not None and handling == "refuse":
            raise AlreadyExists(
                f"the memory {like.node.id} says the same (similarity {like.similarity:.3f}); to "
                "keep both: duplicates=link"
            )
        apart = None
        if like is not None and handling == "merge":
            if memory.is_own(like.node):
                return self._merge(like, exchange, vector, reason)
            apart = f"linked, not merged: another user wrote {like.node.id}"
        original = None if like is None else like.node.duplicate_of or like.node.id
        node = memory.add(exchange, duplicate_of=original)
        if node is None:  # it was there, or another who does not look was faster
            return self._again(memory.get(exchange.id), exchange, vector, reason)
        if vector is not None:
            self._vectors[node.key] = vector
        return Remembered(
            id=node.id,
            outcome="new" if like is None else "linked",
            like=original,
            similarity=None if like is None else like.similarity,
            embedded=vector is not None,
            note="; ".join(filter(None, (apart, self._note(reason)))) or None,
        )

    def _again(
        self, there: MemoryNode, exchange: Exchange, vector: np.ndarray | None, reason: str | None
    ) -> Remembered:
        """Return the outcome of an exchange whose place and first words are remembered already."""
        if self.duplicates.handling == "refuse":
            raise AlreadyExists(f"the memory {there.id} has the same conversation, place and words")
        own = self.work.memory.is_own(there)
        if exchange.has_words_of(there):
            note = None if own else "another user remembered it first, and it is theirs"
            return Remembered(id=there.id, outcome="same", like=there.id, similarity=1.0, note=note)
        if own and self.duplicates.handling == "merge":
            return self._merge(Like(there, None), exchange, vector, reason)
        merge = "merge it with duplicates=merge, or " if own else "another user wrote that: "
        raise AlreadyExists(
            f"exchange {exchange.sequence_index} of the conversation {exchange.conversation_id!r} "
            f"is the memory {there.id}, which goes on otherwise; {merge}give no sequence_index for "
            "the next place"
        )

    def _like(self, exchange: Exchange, vector: np.ndarray | None) -> Like | None:
        """Find the memory with the same words, or None.

        For a merge, one of the same user is preferred.
        """
        said = self.work.memory.find_said(exchange)
        if said is not None:
            return Like(said, 1.0)
        if vector is None:
            return None
        memory, merges = self.work.memory, self.duplicates.handling == "merge"
        most = NEAREST if merges else 1
        near = [*self._nearest_of_batch(vector), *self._nearest_stored(vector, most)]
        alike = [
            Like(memory.get_by_key(key), similarity)
            for key, similarity in sorted(near, key=itemgetter(1), reverse=True)[:most]
            if similarity >= self.duplicates.threshold
        ]
        own = (like for like in alike if merges and memory.is_own(like.node))
        return next(chain(own, alike), None)

    def _nearest_of_batch(self, vector: np.ndarray) -> list[tuple[UUID, float]]:
        return [(key, float(other @ vector)) for key, other in self._vectors.items()]

    def _nearest_stored(self, vector: np.ndarray, most: int) -> list[tuple[UUID, float]]:
        model = AskedModel(self.choice.name, self.choice.dimensions, self.choice.index_kind)
        ask = Ask(
            question=Question("", ()),
            legs={"vector": 1.0},
            fusion="weighted",
            model=model,
            vector=vector,
            limit=most,
            filters=WITH_NOISE,
        )
        hits = self.work.searches.answer(MEMORY, ask).hits
        return [(hit.id, hit.scores["vector"]) for hit in hits if hit.id not in self._vectors]

    def _merge(
        self, like: Like, exchange: Exchange, vector: np.ndarray | None, reason: str | None
    ) -> Remembered:
        replaced = self.work.memory.merge(like.node, exchange)
        if replaced and vector is not None:
            self._vectors[like.node.key] = vector
        return Remembered(
            id=like.node.id,
            outcome="merged",
            like=like.node.id,
            similarity=like.similarity,
            replaced=replaced,
            embedded=not replaced or vector is not None,
            note=self._note(reason) if replaced else None,
        )

    def _note(self, reason: str | None) -> str | None:
        if reason is None:
            return self.choice.reason
        return f"found by its words until a worker has made its vector: {reason}"
