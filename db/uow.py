"""Units of work: one transaction, and the repositories that work in it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Concatenate, ParamSpec, Self, TypeVar

from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker
from sqlalchemy.orm import Session, sessionmaker

from db.errors import DatabaseUnavailable, translate
from db.repositories.chat_imports import ChatImportRepository
from db.repositories.conversations import ConversationRepository
from db.repositories.diagnosis import DiagnosisRepository
from db.repositories.embeddings import EmbeddingRepository
from db.repositories.imports import ImportRepository
from db.repositories.jobs import JobRepository
from db.repositories.knowledge import KnowledgeRepository
from db.repositories.messages import MessageRepository
from db.repositories.operations import OperationsRepository
from db.repositories.search import SearchRepository
from db.repositories.validation import ValidationRepository

P = ParamSpec("P")
T = TypeVar("T")


class UnitOfWork:
    """One transaction. Nothing is kept unless ``commit()`` is called.

    Errors of the database leave it as the errors of ``db.errors``.
    """

    session: Session
    knowledge: KnowledgeRepository
    chat: ConversationRepository
    messages: MessageRepository
    embeddings: EmbeddingRepository
    imports: ImportRepository
    chat_imports: ChatImportRepository
    jobs: JobRepository
    operations: OperationsRepository
    searches: SearchRepository
    validation: ValidationRepository
    diagnosis: DiagnosisRepository

    def __init__(self, sessions: sessionmaker[Session]) -> None:
        self._sessions = sessions

    def __enter__(self) -> Self:
        self._begin(self._sessions())
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # Closing ends the transaction unless it was committed; unlike a rollback it leaves what was
        # read readable. A connection that is gone has ended it already.
        with suppress(DBAPIError):
            self.session.close()
        raise_translated(error)

    def commit(self) -> None:
        """Keep what was done. The unit of work can go on in a new transaction."""
        self.session.commit()

    def rollback(self) -> None:
        """Forget what was done since the last commit."""
        self.session.rollback()

    def _begin(self, session: Session) -> None:
        self.session = session
        self.knowledge = KnowledgeRepository(session)
        self.chat = ConversationRepository(session)
        self.messages = MessageRepository(session)
        self.embeddings = EmbeddingRepository(session)
        self.imports = ImportRepository(session)
        self.chat_imports = ChatImportRepository(session)
        self.jobs = JobRepository(session)
        self.operations = OperationsRepository(session)
        self.searches = SearchRepository(session)
        self.validation = ValidationRepository(session)
        self.diagnosis = DiagnosisRepository(session)


class AsyncUnitOfWork:
    """A unit of work for asyncio, on the same repositories.

    ``await uow.run(function, ...)`` calls ``function(work, ...)`` with a ``UnitOfWork`` whose
    statements are awaited behind the scenes, so that nothing is written twice.
    """

    def __init__(self, sessions: async_sessionmaker[AsyncSession]) -> None:
        self._sessions = sessions

    async def __aenter__(self) -> Self:
        self._session = self._sessions()
        self._work = UnitOfWork.__new__(UnitOfWork)
        self._work._begin(self._session.sync_session)  # noqa: SLF001 - the other half of this class
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with suppress(DBAPIError):
            await self._session.close()
        raise_translated(error)

    async def run(
        self,
        function: Callable[Concatenate[UnitOfWork, P], T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        """Call *function* with the unit of work as its first argument."""
        return await self._session.run_sync(lambda _: function(self._work, *args, **kwargs))

    async def commit(self) -> None:
        """Keep what was done."""
        await self._session.commit()

    async def rollback(self) -> None:
        """Forget what was done since the last commit."""
        await self._session.rollback()


def raise_translated(error: BaseException | None) -> None:
    """Raise this layer's error for one of the database's; do nothing for any other."""
    if isinstance(error, DBAPIError) and (better := translate(error)) is not None:
        raise better from error
    if isinstance(error, PoolTimeout):
        raise DatabaseUnavailable(
            "every connection of the pool stayed in use for DB_POOL_TIMEOUT; end units of work "
            "sooner, or raise DB_POOL_SIZE or DB_MAX_OVERFLOW"
        ) from error
