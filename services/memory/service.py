"""Memory as agents use it, within the scope of a tenant or a user."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar, Unpack
from uuid import UUID

from pgcorpus.db.engine import Database
from pgcorpus.db.repositories.memory.nodes import Exchange
from pgcorpus.db.repositories.pages import Page
from pgcorpus.db.scope import Scope
from pgcorpus.services.embedding.embedder import Embedder
from pgcorpus.services.memory.context import MemoryContext
from pgcorpus.services.memory.operations import (
    Operations,
    episode,
    episodes_of,
    list_related,
    require_scope,
)
from pgcorpus.services.memory.options import Choosing, Details, EpisodeDetails, Progress, Recalling
from pgcorpus.services.memory.records import (
    Episode,
    EpisodeRecall,
    Erasure,
    Memory,
    Recall,
    Remembered,
)
from pgcorpus.services.memory.remembering import THRESHOLD, Duplicates, Handling
from pgcorpus.services.memory.steps import Compute, Search, Step, Steps, Transact
from pgcorpus.services.search.service import AsyncSearchService, SearchService

T = TypeVar("T")


class MemoryService(Operations):
    """Remembers, recalls and forgets for agents; each call within a scope.

    Args:
        database: Where the memories are.
        embedder: Makes vectors; by default that of each corpus's active model.
    """

    def __init__(self, database: Database, embedder: Embedder | None = None) -> None:
        super().__init__(database, embedder)
        self._search = SearchService(database, embedder=embedder)

    def remember(
        self,
        human: str,
        assistant: str = "",
        *,
        scope: Scope,
        conversation_id: str,
        actor: str | None = None,
        duplicates: Handling = "link",
        threshold: float = THRESHOLD,
        **details: Unpack[Details],
    ) -> Remembered:
        """Remember one exchange, so that it is recalled from the next question on.

        Its vector is made at once and stored with it. Where the embedder does not answer the
        memory is kept all the same, is found by its words, and a worker makes its vector later.

        Args:
            human: What the human said.
            assistant: What was answered.
            scope: Whose memory it is; a scope of a tenant may name the user who writes.
            conversation_id: Where it was said.
            actor: Who is behind it, for the audit log.
            duplicates: What is done where a memory says the same; see ``Duplicates``.
            threshold: Cosine from which on two say the same, above 0 and at most 1.
            details: See ``Exchange``.

        Raises:
            MissingScope: There is no scope.
            InvalidValue: A value is not allowed.
            AlreadyExists: A memory says the same, and duplicates are refused; or its place in the
                conversation is taken by other words.
            MissingReference: There is no such tenant or user.
            UnsafeRole: The login passes over row security.
            DatabaseUnavailable: The database did not answer.
        """
        require_scope(scope)
        exchange = Exchange(
            human=human, assistant=assistant, conversation_id=conversation_id, **details
        )
        handling = Duplicates(handling=duplicates, threshold=threshold)
        return self._run(self._remember([exchange], scope, actor, handling))[0]

    def remember_many(
        self,
        exchanges: Iterable[Exchange],
        *,
        scope: Scope,
        actor: str | None = None,
        on_progress: Progress | None = None,
        duplicates: Handling = "link",
        threshold: float = THRESHOLD,
    ) -> list[Remembered]:
        """Remember many exchanges, 100 in a transaction; as ``remember``.

        A run that is stopped has kept whole batches. Repeated with the same ``sequence_index`` for
        each, it finds what is done, and goes on.

        Args:
            exchanges: In the order in which they are remembered.
            scope: Whose they are.
            actor: Who is behind it.
            on_progress: Called with the number done since the last call.
            duplicates: What is done where a memory says the same; see ``Duplicates``.
            threshold: Cosine from which on two say the same.

        Returns:
            What became of each, in their order.
        """
        handling = Duplicates(handling=duplicates, threshold=threshold)
        steps = self._remember(exchanges, scope, actor, handling, on_progress=on_progress)
        return self._run(steps)

    def recall(self, question: str, *, scope: Scope, **options: Unpack[Recalling]) -> Recall:
        """Find the memories that answer a question best, the fresh and often recalled first.

        Args:
            question: In the grammar of web searches.
            scope: Whose memories.
            options: See ``Recalling``; filters are those of the corpus ``memory``.

        Raises:
            MissingScope: There is no scope.
            SearchError: As ``SearchService.search``.
        """
        return self._run(self._recall(question, scope, options))

    def recall_episodes(
        self, question: str, *, scope: Scope, **options: Unpack[Recalling]
    ) -> EpisodeRecall:
        """Find the episodes that answer a question best; filters are those of ``episodes``."""
        return self._run(self._recall_episodes(question, scope, options))

    def context(
        self,
        question: str,
        *,
        scope: Scope,
        max_tokens: int = 2000,
        memories: int = 20,
        episodes: int = 3,
        **options: Unpack[Recalling],
    ) -> MemoryContext:
        """What to tell a model before it answers: memories, and episodes around them.

        Args:
            question: What the model is to answer.
            scope: Whose memories.
            max_tokens: Of the text, at most, estimated by ``pgcorpus.services.embedding.tokens``.
            memories: How many are looked for.
            episodes: How many are looked for.
            options: See ``Recalling``; filters narrow the memories.

        Raises:
            MissingScope: There is no scope.
            InvalidValue: ``max_tokens`` is out of range.
            SearchError: As ``SearchService.search``.
        """
        steps = self._context(
            question, scope, options, max_tokens=max_tokens, memories=memories, episodes=episodes
        )
        return self._run(steps)

    def touch(self, ids: Sequence[str], *, scope: Scope, actor: str | None = None) -> int:
        """Count memories and episodes as recalled, now; how many of the ids there are."""
        return self._run(self._touch(ids, scope, actor))

    def get(self, memory_id: str, *, scope: Scope) -> Memory:
        """One memory.

        Raises:
            NotFound: There is none of this id in the scope.
        """
        return self._run(self._get(memory_id, scope))

    def store_episode(
        self,
        conversation_id: str | None = None,
        *,
        scope: Scope,
        actor: str | None = None,
        **details: Unpack[EpisodeDetails],
    ) -> Episode:
        """Keep a whole conversation as an episode; again, it is replaced by who keeps it.

        Args:
            conversation_id: Of memories; what is not given is taken from these.
            scope: Whose episode it is.
            actor: Who is behind it.
            details: See ``EpisodeDetails``.

        Raises:
            MissingScope: There is no scope.
            NotFound: Neither are there memories of the conversation nor messages.
            AlreadyExists: Somebody else of the tenant keeps one of this id.
            InvalidValue: A value is not allowed.
        """
        return self._run(self._store_episode(conversation_id, scope, actor, details))

    def episodes(
        self,
        *,
        scope: Scope,
        filters: Mapping[str, Any] | None = None,
        limit: int = 50,
        cursor: str | None = None,
    ) -> Page[Episode]:
        """Episodes, those that began last first, page by page; see ``EpisodeRepository``."""
        return self._run(self._episodes(scope, filters, limit, cursor))

    def episode(self, episode_id: str, *, scope: Scope) -> Episode:
        """One episode.

        Raises:
            NotFound: There is none of this id in the scope.
        """
        return self._run(self._episodes_by(scope, partial(episode, episode_id)))[0]

    def related_episodes(self, episode_id: str, *, scope: Scope) -> tuple[Episode, ...]:
        """Episodes that have to do with one: named by either of the two, or of shared memories.

        Raises:
            NotFound: There is none of this id in the scope.
        """
        return self._run(self._episodes_by(scope, partial(list_related, episode_id)))

    def episodes_of(self, memory_id: str, *, scope: Scope) -> tuple[Episode, ...]:
        """The episodes that a memory is part of, those that began last first."""
        return self._run(self._episodes_by(scope, partial(episodes_of, memory_id)))

    def forget(
        self, *, scope: Scope, actor: str | None = None, **choosing: Unpack[Choosing]
    ) -> Erasure:
        """Erase memories and episodes, with their vectors, their jobs and what refers to them.

        Args:
            scope: Whose.
            actor: Who is behind it: the audit log keeps that, and no content.
            choosing: What; see ``Choosing``.

        Raises:
            MissingScope: There is no scope.
            InvalidValue: Not exactly one of ids, filters and everything is given.
            UnknownFilter: The corpus has no filter of that name.
            InvalidFilter: A filter's value is of the wrong kind.
        """
        return self._run(self._forget(scope, actor, choosing))

    def forget_user(
        self,
        user_id: UUID,
        *,
        scope: Scope,
        actor: str | None = None,
        account: bool = False,
        with_episodes: bool = False,
        dry_run: bool = False,
        on_progress: Progress | None = None,
    ) -> Erasure:
        """Erase all that one user wrote, in a tenant or on their own.

        Args:
            user_id: Who.
            scope: Of the user: their tenant's, or their own.
            actor: Who is behind it.
            account: Erase the user's own row, too, when nothing else is left.
            with_episodes: Erase others' episodes that were made of these memories, too: they may
                quote them.
            dry_run: Count, and write nothing.
            on_progress: Called with the number forgotten since the last call.

        Raises:
            MissingScope: There is no scope.
            NotFound: There is no such user in the scope.
        """
        steps = self._forget_user(
            user_id,
            scope,
            actor,
            account=account,
            with_episodes=with_episodes,
            dry_run=dry_run,
            on_progress=on_progress,
        )
        return self._run(steps)

    def _run(self, steps: Steps[T]) -> T:
        answer = None
        while True:
            try:
                step = steps.send(answer)
            except StopIteration as ended:
                result: T = ended.value
                return result
            answer = self._answer(step)

    def _answer(self, step: Step) -> Any:
        match step:
            case Transact():
                with self._database.unit_of_work(step.scope, actor=step.actor) as work:
                    answer = step.function(work)
                    work.commit()
                return answer
            case Compute():
                return step.function()
            case Search():
                return self._search.search(step.question, corpus=step.corpus, **step.options)


class AsyncMemoryService(Operations):
    """Remembers, recalls and forgets, for asyncio: the same steps, awaited."""

    def __init__(self, database: Database, embedder: Embedder | None = None) -> None:
        super().__init__(database, embedder)
        self._search = AsyncSearchService(database, embedder=embedder)

    async def remember(
        self,
        human: str,
        assistant: str = "",
        *,
        scope: Scope,
        conversation_id: str,
        actor: str | None = None,
        duplicates: Handling = "link",
        threshold: float = THRESHOLD,
        **details: Unpack[Details],
    ) -> Remembered:
        """As ``MemoryService.remember``. The vector is made in a thread of its own."""
        require_scope(scope)
        exchange = Exchange(
            human=human, assistant=assistant, conversation_id=conversation_id, **details
        )
        handling = Duplicates(handling=duplicates, threshold=threshold)
        return (await self._run(self._remember([exchange], scope, actor, handling)))[0]

    async def remember_many(
        self,
        exchanges: Iterable[Exchange],
        *,
        scope: Scope,
        actor: str | None = None,
        on_progress: Progress | None = None,
        duplicates: Handling = "link",
        threshold: float = THRESHOLD,
    ) -> list[Remembered]:
        """As ``MemoryService.remember_many``."""
        handling = Duplicates(handling=duplicates, threshold=threshold)
        steps = self._remember(exchanges, scope, actor, handling, on_progress=on_progress)
        return await self._run(steps)

    async def recall(self, question: str, *, scope: Scope, **options: Unpack[Recalling]) -> Recall:
        """As ``MemoryService.recall``."""
        return await self._run(self._recall(question, scope, options))

    async def recall_episodes(
        self, question: str, *, scope: Scope, **options: Unpack[Recalling]
    ) -> EpisodeRecall:
        """As ``MemoryService.recall_episodes``."""
        return await self._run(self._recall_episodes(question, scope, options))

    async def context(
        self,
        question: str,
        *,
        scope: Scope,
        max_tokens: int = 2000,
        memories: int = 20,
        episodes: int = 3,
        **options: Unpack[Recalling],
    ) -> MemoryContext:
        """As ``MemoryService.context``."""
        steps = self._context(
            question, scope, options, max_tokens=max_tokens, memories=memories, episodes=episodes
        )
        return await self._run(steps)

    async def touch(self, ids: Sequence[str], *, scope: Scope, actor: str | None = None) -> int:
        """As ``MemoryService.touch``."""
        return await self._run(self._touch(ids, scope, actor))

    async def get(self, memory_id: str, *, scope: Scope) -> Memory:
        """As ``MemoryService.get``."""
        return await self._run(self._get(memory_id, scope))

    async def store_episode(
        self,
        conversation_id: str | None = None,
        *,
        scope: Scope,
        actor: str | None = None,
        **details: Unpack[EpisodeDetails],
    ) -> Episode:
        """As ``MemoryService.store_episode``."""
        return await self._run(self._store_episode(conversation_id, scope, actor, details))

    async def episodes(
        self,
        *,
        scope: Scope,
        filters: Mapping[str, Any] | None = None,
        limit: int = 50,
        cursor: str | None = None,
    ) -> Page[Episode]:
        """As ``MemoryService.episodes``."""
        return await self._run(self._episodes(scope, filters, limit, cursor))

    async def episode(self, episode_id: str, *, scope: Scope) -> Episode:
        """As ``MemoryService.episode``."""
        return (await self._run(self._episodes_by(scope, partial(episode, episode_id))))[0]

    async def related_episodes(self, episode_id: str, *, scope: Scope) -> tuple[Episode, ...]:
        """As ``MemoryService.related_episodes``."""
        return await self._run(self._episodes_by(scope, partial(list_related, episode_id)))

    async def episodes_of(self, memory_id: str, *, scope: Scope) -> tuple[Episode, ...]:
        """As ``MemoryService.episodes_of``."""
        return await self._run(self._episodes_by(scope, partial(episodes_of, memory_id)))

    async def forget(
        self, *, scope: Scope, actor: str | None = None, **choosing: Unpack[Choosing]
    ) -> Erasure:
        """As ``MemoryService.forget``."""
        return await self._run(self._forget(scope, actor, choosing))

    async def forget_user(
        self,
        user_id: UUID,
        *,
        scope: Scope,
        actor: str | None = None,
        account: bool = False,
        with_episodes: bool = False,
        dry_run: bool = False,
        on_progress: Progress | None = None,
    ) -> Erasure:
        """As ``MemoryService.forget_user``."""
        steps = self._forget_user(
            user_id,
            scope,
            actor,
            account=account,
            with_episodes=with_episodes,
            dry_run=dry_run,
            on_progress=on_progress,
        )
        return await self._run(steps)

    async def _run(self, steps: Steps[T]) -> T:
        answer = None
        while True:
            try:
                step = steps.send(answer)
            except StopIteration as ended:
                result: T = ended.value
                return result
            answer = await self._answer(step)

    async def _answer(self, step: Step) -> Any:
        match step:
            case Transact():
                within = self._database.async_unit_of_work(step.scope, actor=step.actor)
                async with within as work:
                    answer = await work.run(step.function)
                    await work.commit()
                return answer
            case Compute():
                return await asyncio.to_thread(step.function)
            case Search():
                return await self._search.search(step.question, corpus=step.corpus, **step.options)
