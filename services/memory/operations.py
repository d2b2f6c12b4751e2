"""What a memory service does, each operation written once for those who wait and for asyncio."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from itertools import islice
from typing import Any, Final
from uuid import UUID

from pgcorpus.db.engine import Database
from pgcorpus.db.errors import InvalidValue, MissingScope, NotFound
from pgcorpus.db.models.memory import EpisodicMemory
from pgcorpus.db.repositories.embeddings import Pending
from pgcorpus.db.repositories.memory.nodes import Exchange
from pgcorpus.db.repositories.pages import Page
from pgcorpus.db.scope import Scope
from pgcorpus.db.search.corpora import EPISODES, MEMORY
from pgcorpus.db.search.corpus import Corpus
from pgcorpus.db.uow import UnitOfWork
from pgcorpus.services.embedding.choice import Choice
from pgcorpus.services.embedding.embedder import Embedder
from pgcorpus.services.importers.language import NAMES
from pgcorpus.services.memory.access import AccessLog
from pgcorpus.services.memory.context import MemoryContext, assemble, check_tokens
from pgcorpus.services.memory.encoder import Encoded, Encoder
from pgcorpus.services.memory.erasing import ALL_OF, EVERYTHING, Erasing, choose, find_missing
from pgcorpus.services.memory.options import Choosing, EpisodeDetails, Progress, Recalling
from pgcorpus.services.memory.records import (
    Episode,
    EpisodeRecall,
    Erasure,
    Memory,
    Recall,
    Remembered,
)
from pgcorpus.services.memory.remembering import WITH_NOISE, Duplicates, Remembering
from pgcorpus.services.memory.steps import Compute, Search, Steps, Transact
from pgcorpus.services.memory.telling import tell

BATCH: Final = 100
"""Exchanges that are remembered in one transaction; others of the scope wait so long."""

BOOST: Final = 0.2
"""By which share of its score a memory that is fresh and often recalled may rise."""


class Operations:
    """What both services do; they differ in how they wait.

    Args:
        database: Where the memories are.
        embedder: Makes vectors; by default that of each corpus's active model.
    """

    def __init__(self, database: Database, embedder: Embedder | None = None) -> None:
        self._database = database
        self._encoder = Encoder(database, embedder)
        self._access = AccessLog(database)

    def flush(self) -> None:
        """Write which memories were recalled, now instead of within seconds."""
        self._access.flush()

    def _remember(
        self,
        exchanges: Iterable[Exchange],
        scope: Scope,
        actor: str | None,
        duplicates: Duplicates,
        *,
        on_progress: Progress | None = None,
    ) -> Steps[list[Remembered]]:
        within = require_scope(scope)
        given = iter(exchanges)
        results: list[Remembered] = []
        while batch := [_in_known_language(each) for each in islice(given, BATCH)]:
            choice = yield Transact(within, actor, partial(self._encoder.choose, corpus=MEMORY))
            texts = [exchange.text for exchange in batch]
            encoded = yield Compute(partial(self._encoder.encode, choice, texts))
            keep = partial(self._keep, choice, duplicates, batch, encoded)
            results += yield Transact(within, actor, keep)
            if on_progress is not None:
                on_progress(len(batch))
        return results

    def _keep(
        self,
        choice: Choice,
        duplicates: Duplicates,
        exchanges: Sequence[Exchange],
        encoded: Encoded,
        work: UnitOfWork,
    ) -> list[Remembered]:
        batch = Remembering(work=work, encoder=self._encoder, choice=choice, duplicates=duplicates)
        return batch.remember(exchanges, encoded)

    def _recall(self, question: str, scope: Scope, options: Recalling) -> Steps[Recall]:
        page = yield _search(question, MEMORY, require_scope(scope), options)
        if options.get("touch", True):
            self._access.note(scope, MEMORY, [hit.id for hit in page.hits])
        return Recall(page=page, memories=tuple(map(Memory.of_hit, page.hits)))

    def _recall_episodes(
        self, question: str, scope: Scope, options: Recalling
    ) -> Steps[EpisodeRecall]:
        page = yield _search(question, EPISODES, require_scope(scope), options)
        if options.get("touch", True):
            self._access.note(scope, EPISODES, [hit.id for hit in page.hits])
        return EpisodeRecall(page=page, episodes=tuple(map(Episode.of_hit, page.hits)))

    def _context(
        self,
        question: str,
        scope: Scope,
        options: Recalling,
        *,
        max_tokens: int,
        memories: int,
        episodes: int,
    ) -> Steps[MemoryContext]:
        within = require_scope(scope)
        check_tokens(max_tokens)
        asked: Recalling = {**options, "touch": False, "limit": memories}
        recall = yield from self._recall(question, within, asked)
        asked = {**options, "touch": False, "limit": episodes, "filters": {}}
        asked.pop("include_noise", None)
        told_of = yield from self._recall_episodes(question, within, asked)
        context = assemble(recall, told_of, max_tokens=max_tokens)
        if options.get("touch", True):  # what was left out was of no use
            shown = {part.id for part in context.parts} | set(context.repeated)
            for corpus, page, name in (
                (MEMORY, recall.page, "memory_id"),
                (EPISODES, told_of.page, "episode_id"),
            ):
                keys = [hit.id for hit in page.hits if hit.metadata[name] in shown]
                self._access.note(within, corpus, keys)
        return context

    def _touch(self, ids: Sequence[str], scope: Scope, actor: str | None) -> Steps[int]:
        def touch(work: UnitOfWork) -> int:
            moment = datetime.now(UTC)
            found = ((of, work.memory.list_keys(of, ids)) for of in ALL_OF.values())
            return sum(
                work.memory.touch(corpus, dict.fromkeys(keys.values(), 1), moment)
                for corpus, keys in found
            )

        touched: int = yield Transact(require_scope(scope), actor, touch)
        return touched

    def _get(self, memory_id: str, scope: Scope) -> Steps[Memory]:
        node = yield Transact(require_scope(scope), None, lambda work: work.memory.get(memory_id))
        return Memory.of_node(node)

    def _store_episode(
        self,
        conversation_id: str | None,
        scope: Scope,
        actor: str | None,
        details: EpisodeDetails,
    ) -> Steps[Episode]:
        within = require_scope(scope)

        def put(work: UnitOfWork) -> tuple[EpisodicMemory, Choice, Sequence[Pending]]:
            row = work.episodes.put(tell(work, conversation_id, details))
            choice = self._encoder.choose(work, EPISODES)
            name = choice.name
            return (
                row,
                choice,
                work.embeddings.list_pending(EPISODES, name, limit=1, among=[row.key]),
            )

        row, choice, pending = yield Transact(within, actor, put)
        if pending:
            # What is embedded is put together by the database, so that the row is there first.
            texts = [each.text for each in pending]
            encoded = yield Compute(partial(self._encoder.encode, choice, texts))
            made = zip(pending, encoded.vectors, strict=True)
            vectors = {each.id: vector for each, vector in made if vector is not None}
            hashes = [each.content_hash for each in pending]
            store = partial(
                self._encoder.store, corpus=EPISODES, choice=choice, vectors=vectors, hashes=hashes
            )
            yield Transact(within, actor, store)
        return Episode.of_row(row)

    def _episodes(
        self, scope: Scope, filters: Mapping[str, Any] | None, limit: int, cursor: str | None
    ) -> Steps[Page[Episode]]:
        def list_page(work: UnitOfWork) -> Page[EpisodicMemory]:
            return work.episodes.list_episodes(filters, limit=limit, cursor=cursor)

        page = yield Transact(require_scope(scope), None, list_page)
        return Page(tuple(map(Episode.of_row, page.items)), page.next_cursor)

    def _episodes_by(
        self, scope: Scope, found: Callable[[UnitOfWork], Sequence[EpisodicMemory]]
    ) -> Steps[tuple[Episode, ...]]:
        rows = yield Transact(require_scope(scope), None, found)
        return tuple(map(Episode.of_row, rows))

    def _forget(self, scope: Scope, actor: str | None, choosing: Choosing) -> Steps[Erasure]:
        within = require_scope(scope)
        what, ids = choose(choosing), choosing.get("ids")
        not_there: tuple[str, ...] = ()
        if ids is not None:
            not_there = yield Transact(within, actor, partial(find_missing, ids))
        erasing = Erasing(
            scope=within,
            actor=actor,
            with_episodes=choosing.get("with_episodes", False),
            dry_run=choosing.get("dry_run", False),
            on_progress=choosing.get("on_progress"),
        )
        erasure = yield from erasing.erase(what)
        return replace(erasure, missing=not_there)

    def _forget_user(
        self,
        user_id: UUID,
        scope: Scope,
        actor: str | None,
        *,
        account: bool,
        with_episodes: bool,
        dry_run: bool,
        on_progress: Progress | None,
    ) -> Steps[Erasure]:
        within = require_scope(scope)

        def refuse_others(work: UnitOfWork) -> None:
            if work.tenancy.get_user(user_id).scope != str(within):
                raise NotFound(f"the user {user_id} is not of {within}")

        yield Transact(within, actor, refuse_others)
        erasing = Erasing(
            scope=within,
            actor=actor,
            user_id=user_id,
            with_episodes=with_episodes,
            dry_run=dry_run,
            on_progress=on_progress,
        )
        erasure = yield from erasing.erase(EVERYTHING)
        if account and not dry_run:  # at last: a foreign key would take all the rest at once
            yield Transact(within, actor, lambda work: work.tenancy.delete_user(user_id))
        return replace(erasure, user=account)


def require_scope(scope: Scope | None) -> Scope:
    """Return the scope, or raise if it is none.

    Raises:
        MissingScope: It is not.
    """
    if not isinstance(scope, Scope):
        raise MissingScope(f"{MissingScope.__doc__} Name it: Scope.tenant(...) or Scope.user(...)")
    return scope


def episode(episode_id: str, work: UnitOfWork) -> Sequence[EpisodicMemory]:
    """One episode, alone in a list."""
    return [work.episodes.get(episode_id)]


def list_related(episode_id: str, work: UnitOfWork) -> Sequence[EpisodicMemory]:
    """Those that have to do with it."""
    return work.episodes.list_related(work.episodes.get(episode_id))


def episodes_of(memory_id: str, work: UnitOfWork) -> Sequence[EpisodicMemory]:
    """Those that a memory is part of."""
    return work.episodes.list_of(memory_id)


def _in_known_language(exchange: Exchange) -> Exchange:
    if exchange.language not in (None, *NAMES):
        raise InvalidValue(f"there is no text search configuration {exchange.language!r}")
    return exchange


def _search(question: str, corpus: Corpus, scope: Scope, options: Recalling) -> Search:
    """A search of memories or episodes, as it is asked for."""
    asked: Any = {"boost": BOOST, **options, "scope": scope}
    asked.pop("touch", None)
    if asked.pop("include_noise", False):
        asked["filters"] = {**WITH_NOISE, **(asked.get("filters") or {})}
    return Search(question, corpus.name, asked)
