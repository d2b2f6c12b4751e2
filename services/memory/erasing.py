"""The erasure of memories and episodes: batch by batch, each in one transaction."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any, Final
from uuid import UUID

from pgcorpus.db.errors import InvalidValue
from pgcorpus.db.repositories.memory.nodes import Forgotten
from pgcorpus.db.search.corpora import EPISODES, MEMORY
from pgcorpus.db.search.corpus import Corpus
from pgcorpus.db.uow import UnitOfWork
from pgcorpus.services.memory.options import Choosing, Progress
from pgcorpus.services.memory.records import Erasure

MOST_FORGOTTEN: Final = 1000
"""Memories that one transaction erases."""

ALL_OF: Final = {"memory": MEMORY, "episodes": EPISODES}

Chosen = Sequence[tuple[Corpus, Mapping[str, Any]]]

EVERYTHING: Final[Chosen] = ((EPISODES, {}), (MEMORY, {}))
"""Episodes first: then none is left that would have to be changed."""


def choose(choosing: Choosing) -> Chosen:
    """Return the corpora and filters of what is to be forgotten.

    Raises:
        InvalidValue: Not exactly one of ids, filters and everything is given.
    """
    ids, filters = choosing.get("ids"), choosing.get("filters")
    everything = choosing.get("everything", False)
    if [ids is not None, bool(filters), everything].count(True) != 1:
        raise InvalidValue("name what to forget: ids, filters or everything")
    corpus = choosing.get("corpus", "memory")
    if corpus not in ALL_OF:
        raise InvalidValue(f"there is nothing to forget in {corpus!r}; name {' or '.join(ALL_OF)}")
    if everything:
        return EVERYTHING
    if ids is not None:
        return [(MEMORY, {"memory_id": list(ids)}), (EPISODES, {"episode_id": list(ids)})]
    return [(ALL_OF[corpus], dict(filters or {}))]


@dataclass(frozen=True, kw_only=True)
class Erasing:
    """An erasure while it runs.

    What is stopped has forgotten whole memories, each with its vector, its job and what refers to
    it; repeated, it goes on.

    Attributes:
        transaction: Makes a transaction within the scope, which keeps what was done at the end.
        user_id: Only what this user wrote, or None.
        with_episodes: Forget episodes that were made of the memories, too.
        dry_run: Count, and write nothing.
        on_progress: Called with the number forgotten since the last call.
    """

    transaction: Callable[[], AbstractContextManager[UnitOfWork]]
    user_id: UUID | None = None
    with_episodes: bool = False
    dry_run: bool = False
    on_progress: Progress | None = None

    def erase(self, what: Chosen) -> Erasure:
        """Forget it."""
        erasure = Erasure(dry_run=self.dry_run)
        for corpus, filters in what:
            if self.dry_run:
                erasure = self._count(erasure, corpus, filters, dict(what))
                continue
            while (gone := self._forget(corpus, filters))[0].ids:
                for of, forgotten in zip((corpus, EPISODES), gone, strict=False):
                    erasure = _add_counts(erasure, of, len(forgotten.ids), forgotten)
                if self.on_progress is not None:
                    self.on_progress(len(gone[0].ids))
        if erasure.told_by and not self.dry_run:  # some may have been forgotten later
            with self.transaction() as work:
                left = work.memory.list_keys(EPISODES, erasure.told_by)
            erasure = replace(erasure, told_by=tuple(sorted(left)))
        return erasure

    def _count(
        self,
        erasure: Erasure,
        corpus: Corpus,
        filters: Mapping[str, Any],
        what: Mapping[Corpus, Mapping[str, Any]],
    ) -> Erasure:
        """Count what would be erased; episodes that tell of it are counted, or listed."""
        with self.transaction() as work:
            number = work.memory.count(corpus, filters, user_id=self.user_id)
        erasure = _add_counts(erasure, corpus, number)
        if corpus is EPISODES or not (filters or self.user_id):
            return erasure
        with self.transaction() as work:
            telling = work.memory.list_telling(filters, user_id=self.user_id)
        others = tuple(set(telling) - set(what.get(EPISODES, {}).get("episode_id", ())))
        if self.with_episodes:
            return _add_counts(erasure, EPISODES, len(others))
        return _add_counts(erasure, corpus, 0, Forgotten(told_by=others))

    def _forget(self, corpus: Corpus, filters: Mapping[str, Any]) -> list[Forgotten]:
        """Erase one batch, with the episodes that tell of it where these are to go, too."""
        with self.transaction() as work:
            gone = work.memory.forget(corpus, filters, limit=MOST_FORGOTTEN, user_id=self.user_id)
            if not (self.with_episodes and gone.told_by):
                return [gone]
            told_by = {"episode_id": list(gone.told_by)}
            return [gone, work.memory.forget(EPISODES, told_by, limit=len(gone.told_by))]


def find_missing(work: UnitOfWork, ids: Sequence[str]) -> tuple[str, ...]:
    """List the ids that neither a memory nor an episode has."""
    there = {each for corpus in ALL_OF.values() for each in work.memory.list_keys(corpus, ids)}
    return tuple(each for each in dict.fromkeys(ids) if each not in there)


def _add_counts(
    erasure: Erasure, corpus: Corpus, number: int, gone: Forgotten | None = None
) -> Erasure:
    gone = gone or Forgotten()
    of = "memories" if corpus is MEMORY else "episodes"
    return replace(
        erasure,
        vectors=erasure.vectors + gone.vectors,
        jobs=erasure.jobs + gone.jobs,
        told_by=tuple(sorted({*erasure.told_by, *gone.told_by})),
        **{of: getattr(erasure, of) + number},
    )
