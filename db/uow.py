"""Units of work: one transaction, and the repositories that work in it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from types import TracebackType
from typing import Any, Concatenate, Final, Generic, ParamSpec, Self, TypeVar, cast
from weakref import WeakKeyDictionary

from sqlalchemy import Connection, event
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session, SessionTransaction
from sqlalchemy.util import greenlet_spawn

from pgcorpus.db.base import set_local
from pgcorpus.db.errors import ConcurrentUse, raise_translated, translate_errors
from pgcorpus.db.repositories.base import Repository
from pgcorpus.db.repositories.chat.conversations import ConversationRepository
from pgcorpus.db.repositories.chat.imports import ChatImportRepository
from pgcorpus.db.repositories.chat.messages import MessageRepository
from pgcorpus.db.repositories.documentation.documents import DocumentRepository
from pgcorpus.db.repositories.documentation.exports import DocumentExportRepository
from pgcorpus.db.repositories.documentation.feedback import FeedbackRepository
from pgcorpus.db.repositories.documentation.imports import DocumentImportRepository
from pgcorpus.db.repositories.documentation.parts import DocumentPartRepository
from pgcorpus.db.repositories.embeddings import EmbeddingRepository
from pgcorpus.db.repositories.imports import ImportRepository
from pgcorpus.db.repositories.jobs import JobRepository
from pgcorpus.db.repositories.knowledge.chunks import KnowledgeRepository
from pgcorpus.db.repositories.knowledge.validation import ValidationRepository
from pgcorpus.db.repositories.memory.episodes import EpisodeRepository
from pgcorpus.db.repositories.memory.exports import MemoryExportRepository
from pgcorpus.db.repositories.memory.imports import MemoryImportRepository
from pgcorpus.db.repositories.memory.nodes import MemoryRepository
from pgcorpus.db.repositories.models import ModelRepository
from pgcorpus.db.repositories.operations.audit import AuditRepository
from pgcorpus.db.repositories.operations.backups import BackupRepository
from pgcorpus.db.repositories.operations.diagnosis import DiagnosisRepository
from pgcorpus.db.repositories.operations.health import HealthRepository
from pgcorpus.db.repositories.operations.isolation import IsolationRepository
from pgcorpus.db.repositories.operations.maintenance import MaintenanceRepository
from pgcorpus.db.repositories.operations.monitoring import MonitoringRepository
from pgcorpus.db.repositories.operations.performance import (
    OperationsRepository,
    PerformanceRepository,
)
from pgcorpus.db.repositories.operations.roles import RoleRepository
from pgcorpus.db.repositories.rankings import RankingRepository
from pgcorpus.db.repositories.search import SearchRepository
from pgcorpus.db.repositories.tenancy import TenancyRepository
from pgcorpus.db.repositories.usage import UsageRepository
from pgcorpus.db.repositories.vector_indexes import VectorIndexRepository
from pgcorpus.db.scope import SCOPE, SETTINGS, Guard, Scope
from pgcorpus.db.search.corpus import Corpus

P = ParamSpec("P")
T = TypeVar("T")
R = TypeVar("R", bound=Repository)

SAVEPOINTS: Final = "savepoints"
"""The key in a session's ``info`` of the scope and actor at each savepoint."""

WITHOUT_SCOPE: Final = set_local(dict.fromkeys(SETTINGS, ""))


class WorkSession(Session):
    """A session that tells the database the scope and actor of each transaction."""

    @property
    def identity(self) -> _Identity:
        """The present scope and actor: none until a unit of work takes it over."""
        identity: _Identity = self.info.get(_Identity, NO_IDENTITY)
        return identity


class repository(Generic[R]):  # noqa: N801 - as property is written
    """A repository on the present session of the unit of work, made when it is first used."""

    def __init__(self, kind: type[R]) -> None:
        self._kind = kind

    def __get__(self, work: UnitOfWork | None, owner: type[UnitOfWork]) -> R:
        if work is None:
            raise AttributeError(f"{owner.__name__} has repositories once it is entered")
        return work._repository(self._kind)  # noqa: SLF001 - a part of the class


class UnitOfWork:
    """One transaction, and the repositories that work in it.

    Nothing is kept unless ``commit()`` is called.

    Errors of the database leave it as the errors of ``pgcorpus.db.errors``.

    Args:
        sessions: Makes the session.
        scope: The scope it reads and writes in, or None: then it sees no scoped row.
        actor: The person or service behind it, for the audit log.
        guard: Looks at the login of a transaction with a scope, before it begins.
        token: Tells what a search must see that is to see what was committed until now.
    """

    knowledge = repository(KnowledgeRepository)
    chat = repository(ConversationRepository)
    messages = repository(MessageRepository)
    memory = repository(MemoryRepository)
    episodes = repository(EpisodeRepository)
    models = repository(ModelRepository)
    documentation = repository(DocumentRepository)
    documentation_imports = repository(DocumentImportRepository)
    documentation_exports = repository(DocumentExportRepository)
    memory_exports = repository(MemoryExportRepository)
    documentation_parts = repository(DocumentPartRepository)
    feedback = repository(FeedbackRepository)
    rankings = repository(RankingRepository)
    embeddings = repository(EmbeddingRepository)
    vector_indexes = repository(VectorIndexRepository)
    imports = repository(ImportRepository)
    chat_imports = repository(ChatImportRepository)
    memory_imports = repository(MemoryImportRepository)
    jobs = repository(JobRepository)
    maintenance = repository(MaintenanceRepository)
    operations = repository(OperationsRepository)
    performance = repository(PerformanceRepository)
    health = repository(HealthRepository)
    roles = repository(RoleRepository)
    searches = repository(SearchRepository)
    tenancy = repository(TenancyRepository)
    validation = repository(ValidationRepository)
    diagnosis = repository(DiagnosisRepository)
    isolation = repository(IsolationRepository)
    monitoring = repository(MonitoringRepository)
    audit = repository(AuditRepository)
    backups = repository(BackupRepository)
    usage = repository(UsageRepository)

    session: WorkSession

    def __init__(
        self,
        sessions: Callable[[], WorkSession],
        *,
        scope: Scope | None = None,
        actor: str | None = None,
        guard: Guard | None = None,
        token: Callable[[], str | None] = lambda: None,
    ) -> None:
        self._sessions = sessions
        self._token = token
        self._at_first = _Identity(scope, actor, guard, serving=scope is not None)
        self._repositories: dict[type[Repository], Repository] = {}

    def __enter__(self) -> Self:
        self.session = self._sessions()
        self._repositories.clear()
        self._at_first.take_over(self.session)
        if self.session.in_transaction():
            self._at_first.announce(self.session.connection())
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

    def commit(self) -> str | None:
        """Commit the transaction. The unit of work can go on in a new one.

        Returns:
            The token of the commit, for ``after`` of a search that must see it, with
            ``DATABASE_READ_URLS``; None without: then every search sees it.
        """
        with translate_errors():
            self.session.commit()
        return self._token()

    def rollback(self) -> None:
        """Roll back to the last commit."""
        self.session.rollback()

    @contextmanager
    def savepoint(self) -> Iterator[Self]:
        """Provide a savepoint: a part that can fail alone, and takes a scope entered in it back."""
        with translate_errors(), self.session.begin_nested():
            yield self

    def enter(self, scope: Scope) -> None:
        """Enter another scope, from here on and with whatever role the login has.

        For what operators run over the scopes of many: imports, workers. A service asks
        ``Database.unit_of_work`` for a scope, which refuses a role that sees everything. Within a
        savepoint that is rolled back it goes back with it.
        """
        self._change(replace(self._identity, scope=scope, serving=False))

    def leave(self) -> None:
        """Leave the scope, and work without one from here on."""
        self._change(replace(self._identity, scope=None))
        if self.session.in_transaction():
            self.session.execute(WITHOUT_SCOPE)

    def scopes_of(self, corpus: Corpus) -> Iterator[Scope | None]:
        """Enter each scope that passages of a corpus may have, one after the other.

        Yields:
            Each scope, entered; None, once, for a corpus without scopes, and first for what is
            shared.

        Raises:
            NotPermitted: Row security hides from the role which scopes there are.
        """
        if corpus.scope is None or self._identity.scope is not None:
            yield self._identity.scope
            return
        if not corpus.needs_scope:
            yield None
        for scope in self.tenancy.list_scopes():
            self.enter(scope)
            yield scope
        self.leave()

    @property
    def _identity(self) -> _Identity:
        """The present scope and actor. The session has them, for it knows what is rolled back."""
        return self.session.identity

    def _change(self, identity: _Identity) -> None:
        """Change scope or actor, and expire loaded rows, which the new scope may not see."""
        self.session.flush()  # what was added before is of the scope before
        identity.take_over(self.session)
        if self.session.in_transaction():
            identity.announce(self.session.connection())

    def _repository(self, kind: type[R]) -> R:
        made = self._repositories.get(kind) or self._repositories.setdefault(
            kind, kind(self.session)
        )
        return cast("R", made)


class AsyncUnitOfWork:
    """A unit of work for asyncio.

    ``await uow.run(function, ...)`` calls ``function(work, ...)`` with a ``UnitOfWork`` whose
    statements are awaited behind the scenes, so that nothing is written twice.

    Args:
        work: On a session of the engine for asyncio.
    """

    def __init__(self, work: UnitOfWork) -> None:
        self._work = work
        self._in_use = False

    async def __aenter__(self) -> Self:
        await greenlet_spawn(self._work.__enter__)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await greenlet_spawn(self._work.__exit__, kind, error, trace)

    async def run(
        self,
        function: Callable[Concatenate[UnitOfWork, P], T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        """Call *function* with the unit of work as its first argument.

        Raises:
            ConcurrentUse: Another task is using the unit of work: it has one scope at a time.
        """
        with self._alone():
            return await greenlet_spawn(partial(function, self._work, *args, **kwargs))

    async def commit(self) -> str | None:
        """Commit the transaction; return its token, as ``UnitOfWork.commit``."""
        return await self.run(UnitOfWork.commit)

    async def rollback(self) -> None:
        """Roll back to the last commit."""
        await self.run(UnitOfWork.rollback)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Raise for a second task: its reads would depend on the scope that the first enters."""
        if self._in_use:
            raise ConcurrentUse(
                "two tasks use one unit of work at the same time; open one for each task, with: "
                "async with database.async_unit_of_work(scope)"
            )
        self._in_use = True
        try:
            yield
        finally:
            self._in_use = False


@dataclass(frozen=True)
class _Identity:
    """The scope and actor of a unit of work."""

    scope: Scope | None
    actor: str | None
    guard: Guard | None
    serving: bool
    """True where the scope was asked for at the start, as services do."""

    def take_over(self, session: WorkSession) -> None:
        """Change the session to this scope and actor, and expire the rows it has loaded."""
        session.info[_Identity] = self
        session.info[SCOPE] = self.scope
        session.expire_all()

    def announce(self, connection: Connection) -> None:
        """Tell the database, until the transaction ends."""
        settings: dict[str, Any] = {} if self.actor is None else {"app.actor": self.actor}
        if self.guard is not None:
            role = self.guard(connection, serving=self.serving and self.scope is not None)
            settings |= {} if role is None else {"role": role}
        if self.scope is not None:
            settings |= self.scope.settings
        if settings:
            connection.execute(set_local(settings))


NO_IDENTITY: Final = _Identity(None, None, None, serving=False)


@event.listens_for(WorkSession, "after_begin")
def _at_begin(
    session: WorkSession, transaction: SessionTransaction, connection: Connection
) -> None:
    """Tell the database who works; a savepoint goes on as what is around it, whoever that is."""
    if not transaction.nested:
        session.identity.announce(connection)


@event.listens_for(WorkSession, "after_transaction_create")
def _at_savepoint(session: WorkSession, begun: SessionTransaction) -> None:
    """Remember the scope and actor at a savepoint."""
    if begun.nested:
        session.info.setdefault(SAVEPOINTS, WeakKeyDictionary())[begun] = session.identity


@event.listens_for(WorkSession, "after_soft_rollback")
def _after_rollback(session: WorkSession, ended: SessionTransaction) -> None:
    """Restore the scope and actor of a savepoint, as the database does."""
    before: _Identity | None = session.info.get(SAVEPOINTS, {}).get(ended)
    if before is None or before is session.identity:
        return  # so has the database
    before.take_over(session)
    if session.is_active and ended.nested and ended.parent is not None:
        # Not the session's own: inside of "with begin_nested()" it gives none any more.
        connection = ended.parent.connection(None)
        if before.scope is None:  # left since the savepoint
            connection.execute(WITHOUT_SCOPE)
        before.announce(connection)
