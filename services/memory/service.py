"""Memory as agents use it, within the scope of a tenant or a user."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from itertools import islice
from typing import Any, Final, Unpack
from uuid import UUID

from pgcorpus.db.engine import Database
from pgcorpus.db.errors import InvalidValue, MissingScope, NotFound
from pgcorpus.db.repositories.memory.nodes import Exchange
from pgcorpus.db.repositories.pages import Page
from pgcorpus.db.scope import Scope
from pgcorpus.db.search.corpora import EPISODES, MEMORY
from pgcorpus.db.search.corpus import Corpus
from pgcorpus.db.search.page import SearchPage
from pgcorpus.db.standbys import find_later
from pgcorpus.db.tracing import DELETE_MEMORY, SEARCH_MEMORY, UPDATE_MEMORY, trace
from pgcorpus.db.uow import UnitOfWork
from pgcorpus.services.awaited import Awaited, awaited
from pgcorpus.services.choices import BOOST, LIKENESS, Handling
from pgcorpus.services.embedding.embedder import Embedder
from pgcorpus.services.embedding.encoder import Encoder
from pgcorpus.services.importers.language import NAMES
from pgcorpus.services.memory.access import AccessLog
from pgcorpus.services.memory.context import MemoryContext, assemble, check_tokens
from pgcorpus.services.memory.erasing import ALL_OF, EVERYTHING, Erasing, choose, find_missing
from pgcorpus.services.memory.options import Choosing, Details, EpisodeDetails, Progress, Recalling
from pgcorpus.services.memory.records import (
    Episode,
    EpisodeRecall,
    Erasure,
    Memory,
    Recall,
    Remembered,
)
from pgcorpus.services.memory.remembering import WITH_NOISE, Duplicates, Remembering
from pgcorpus.services.memory.telling import tell
from pgcorpus.services.memory.writes import LastWrites
from pgcorpus.services.search.service import SearchService

BATCH: Final = 100
"""Exchanges that are remembered in one transaction; others of the scope wait that long."""


class MemoryService:
    """Remembers, recalls and forgets for agents; each call within a scope.

    Args:
        database: Where the memories are.
        embedder: Makes vectors; by default that of each corpus's active model.
    """

    def __init__(self, database: Database, embedder: Embedder | None = None) -> None:
        self._database = database
        self._search = SearchService(database, embedder=embedder)
        self._encoder = Encoder(database, self._search.embedders)
        self._access = AccessLog(database)
        self._written = LastWrites()

    def remember(
        self,
        human: str,
        assistant: str = "",
        *,
        scope: Scope,
        conversation_id: str,
        actor: str | None = None,
        duplicates: Handling = "link",
        threshold: float = LIKENESS,
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
        (remembered,) = self.remember_many(
            [exchange], scope=scope, actor=actor, duplicates=duplicates, threshold=threshold
        )
        return remembered

    @trace(UPDATE_MEMORY, MEMORY.name)
    def remember_many(
        self,
        exchanges: Iterable[Exchange],
        *,
        scope: Scope,
        actor: str | None = None,
        on_progress: Progress | None = None,
        duplicates: Handling = "link",
        threshold: float = LIKENESS,
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
        require_scope(scope)
        given = iter(exchanges)
        results: list[Remembered] = []
        while batch := [_in_known_language(each) for each in islice(given, BATCH)]:
            with self._transaction(scope, actor) as work:
                choice = self._encoder.choose(work, MEMORY)
            texts = [exchange.text for exchange in batch]
            encoded = self._database.call(self._encoder.encode, choice, texts)
            with self._transaction(scope, actor) as work:
                remembering = Remembering(
                    work=work, encoder=self._encoder, choice=choice, duplicates=handling
                )
                results += remembering.remember(batch, encoded)
            if on_progress is not None:
                on_progress(len(batch))
        return results

    @trace(SEARCH_MEMORY, MEMORY.name)
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
        page = self._find(question, MEMORY, scope, options)
        return Recall(page=page, memories=tuple(map(Memory.of_hit, page.hits)))

    @trace(SEARCH_MEMORY, EPISODES.name)
    def recall_episodes(
        self, question: str, *, scope: Scope, **options: Unpack[Recalling]
    ) -> EpisodeRecall:
        """Find the episodes that answer a question best; filters are those of ``episodes``."""
        page = self._find(question, EPISODES, scope, options)
        return EpisodeRecall(page=page, episodes=tuple(map(Episode.of_hit, page.hits)))

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
        """Assemble the context of an answer: memories, and episodes around them.

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
        require_scope(scope)
        check_tokens(max_tokens)
        asked: Recalling = {**options, "touch": False, "limit": memories}
        recall = self.recall(question, scope=scope, **asked)
        asked = {**options, "touch": False, "limit": episodes, "filters": {}}
        asked.pop("include_noise", None)
        told_of = self.recall_episodes(question, scope=scope, **asked)
        context = assemble(recall, told_of, max_tokens=max_tokens)
        if options.get("touch", True):  # what was left out was of no use
            shown = {part.id for part in context.parts} | set(context.repeated)
            for corpus, page, name in (
                (MEMORY, recall.page, "memory_id"),
                (EPISODES, told_of.page, "episode_id"),
            ):
                keys = [hit.id for hit in page.hits if hit.metadata[name] in shown]
                self._access.note(scope, corpus, keys)
        return context

    @trace(UPDATE_MEMORY, MEMORY.name)
    def touch(self, ids: Sequence[str], *, scope: Scope, actor: str | None = None) -> int:
        """Count memories and episodes as recalled, now; return how many of the ids exist."""
        moment = datetime.now(UTC)
        with self._transaction(scope, actor) as work:
            found = [(of, work.memory.list_keys(of, ids)) for of in ALL_OF.values()]
            return sum(
                work.memory.touch(corpus, dict.fromkeys(keys.values(), 1), moment)
                for corpus, keys in found
            )

    def get(self, memory_id: str, *, scope: Scope) -> Memory:
        """Return one memory.

        Raises:
            NotFound: There is none of this id in the scope.
        """
        with self._transaction(scope) as work:
            return Memory.of_node(work.memory.get(memory_id))

    @trace(UPDATE_MEMORY, EPISODES.name)
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
            AlreadyExists: Another user of the tenant keeps one of this id.
            InvalidValue: A value is not allowed.
        """
        with self._transaction(scope, actor) as work:
            row = work.episodes.put(tell(work, conversation_id, details))
            choice = self._encoder.choose(work, EPISODES)
            pending = work.embeddings.list_pending(EPISODES, choice.name, limit=1, among=[row.key])
        if pending:
            # What is embedded is put together by the database, so that the row is there first.
            texts = [each.text for each in pending]
            encoded = self._database.call(self._encoder.encode, choice, texts)
            made = zip(pending, encoded.vectors, strict=True)
            vectors = {each.id: vector for each, vector in made if vector is not None}
            hashes = [each.content_hash for each in pending]
            with self._transaction(scope, actor) as work:
                self._encoder.store(work, EPISODES, choice, vectors, hashes)
        return Episode.of_row(row)

    def episodes(
        self,
        *,
        scope: Scope,
        filters: Mapping[str, Any] | None = None,
        limit: int = 50,
        cursor: str | None = None,
    ) -> Page[Episode]:
        """List episodes, those that began last first, page by page; see ``EpisodeRepository``."""
        with self._transaction(scope) as work:
            page = work.episodes.list_episodes(filters, limit=limit, cursor=cursor)
            return Page(tuple(map(Episode.of_row, page.items)), page.next_cursor)

    def episode(self, episode_id: str, *, scope: Scope) -> Episode:
        """Return one episode.

        Raises:
            NotFound: There is none of this id in the scope.
        """
        with self._transaction(scope) as work:
            return Episode.of_row(work.episodes.get(episode_id))

    def related_episodes(self, episode_id: str, *, scope: Scope) -> tuple[Episode, ...]:
        """List the episodes related to one: named by either of the two, or of shared memories.

        Raises:
            NotFound: There is none of this id in the scope.
        """
        with self._transaction(scope) as work:
            rows = work.episodes.list_related(work.episodes.get(episode_id))
            return tuple(map(Episode.of_row, rows))

    def episodes_of(self, memory_id: str, *, scope: Scope) -> tuple[Episode, ...]:
        """List the episodes that a memory is part of, those that began last first."""
        with self._transaction(scope) as work:
            return tuple(map(Episode.of_row, work.episodes.list_of(memory_id)))

    @trace(DELETE_MEMORY, MEMORY.name)
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
        require_scope(scope)
        what, ids = choose(choosing), choosing.get("ids")
        not_there: tuple[str, ...] = ()
        if ids is not None:
            with self._transaction(scope, actor) as work:
                not_there = find_missing(work, ids)
        erasing = Erasing(
            transaction=partial(self._transaction, scope, actor),
            with_episodes=choosing.get("with_episodes", False),
            dry_run=choosing.get("dry_run", False),
            on_progress=choosing.get("on_progress"),
        )
        return replace(erasing.erase(what), missing=not_there)

    @trace(DELETE_MEMORY, MEMORY.name)
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
        with self._transaction(scope, actor) as work:
            if work.tenancy.get_user(user_id).scope != str(scope):
                raise NotFound(f"the user {user_id} is not of {scope}")
        erasing = Erasing(
            transaction=partial(self._transaction, scope, actor),
            user_id=user_id,
            with_episodes=with_episodes,
            dry_run=dry_run,
            on_progress=on_progress,
        )
        erasure = erasing.erase(EVERYTHING)
        if account and not dry_run:  # at last: a foreign key would take all the rest at once
            with self._transaction(scope, actor) as work:
                work.tenancy.delete_user(user_id)
        return replace(erasure, user=account)

    def flush(self) -> None:
        """Write which memories were recalled, now instead of within seconds."""
        self._database.call(self._access.flush)

    @contextmanager
    def _transaction(self, scope: Scope, actor: str | None = None) -> Iterator[UnitOfWork]:
        """Work within a scope; what was done is kept at the end."""
        with self._database.unit_of_work(require_scope(scope), actor=actor) as work:
            yield work
            self._written.note(scope, work.commit())

    def _find(self, question: str, corpus: Corpus, scope: Scope, options: Recalling) -> SearchPage:
        """Search memories or episodes, and note which were found."""
        asked: Any = {"boost": BOOST, **options, "scope": require_scope(scope)}
        asked["after"] = find_later(options.get("after"), self._written.get(scope))
        touch = asked.pop("touch", True)
        if asked.pop("include_noise", False):
            asked["filters"] = {**WITH_NOISE, **(asked.get("filters") or {})}
        page = self._search.search(question, corpus=corpus.name, **asked)
        if touch:
            self._access.note(scope, corpus, [hit.id for hit in page.hits])
        return page


class AsyncMemoryService(Awaited[MemoryService]):
    """Remembers, recalls and forgets, for asyncio."""

    def __init__(self, database: Database, embedder: Embedder | None = None) -> None:
        super().__init__(database, MemoryService(database, embedder))

    remember = awaited(MemoryService.remember)
    remember_many = awaited(MemoryService.remember_many)
    recall = awaited(MemoryService.recall)
    recall_episodes = awaited(MemoryService.recall_episodes)
    context = awaited(MemoryService.context)
    touch = awaited(MemoryService.touch)
    get = awaited(MemoryService.get)
    store_episode = awaited(MemoryService.store_episode)
    episodes = awaited(MemoryService.episodes)
    episode = awaited(MemoryService.episode)
    related_episodes = awaited(MemoryService.related_episodes)
    episodes_of = awaited(MemoryService.episodes_of)
    forget = awaited(MemoryService.forget)
    forget_user = awaited(MemoryService.forget_user)
    flush = awaited(MemoryService.flush)


def require_scope(scope: Scope | None) -> Scope:
    """Return the scope, if it is one.

    Raises:
        MissingScope: It is not.
    """
    if not isinstance(scope, Scope):
        raise MissingScope(f"{MissingScope()} Name it: Scope.tenant(...) or Scope.user(...)")
    return scope


def _in_known_language(exchange: Exchange) -> Exchange:
    if exchange.language not in (None, *NAMES):
        raise InvalidValue(f"there is no text search configuration {exchange.language!r}")
    return exchange
