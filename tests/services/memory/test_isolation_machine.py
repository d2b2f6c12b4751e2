"""Random operations of three tenants and a person, against a model that is plain dictionaries."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, Final

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import URL, delete, func, select, text, update

from pgcorpus.db.engine import Database
from pgcorpus.db.errors import MissingScope
from pgcorpus.db.models import MemoryNode, memory_id
from pgcorpus.db.repositories.memory.nodes import Exchange
from pgcorpus.db.scope import Scope
from pgcorpus.db.uow import UnitOfWork
from pgcorpus.services.choices import MODES
from pgcorpus.services.embedding.hashing import HashingEmbedder
from pgcorpus.services.search.service import SearchService
from tests.conftest import Databases
from tests.logins import logged_in
from tests.tenancy import MEMORY_VECTOR, make_scope

WORDS: Final = ("price", "offer", "refund", "invoice", "margin")
"""All tenants say the same things, in conversations of the same name: ids are the same, too."""

TURNS: Final = st.integers(0, 3)
SPOKEN: Final = st.sampled_from(WORDS)
WHO: Final = st.integers(0, 3)

Memories = dict[str, str]
"""Id → what was said."""


class Tenants(RuleBasedStateMachine):
    """Whoever is asked, through whatever connection, knows what was told in their name alone.

    There is always one unit of work, on a pool of one connection: what one leaves behind there the
    next would find.
    """

    owner: Database
    application: Database
    search: SearchService

    @initialize()
    def begin(self) -> None:
        """Four scopes, in which nothing is remembered."""
        with self.owner.unit_of_work() as work:
            self.scopes = [make_scope(work, tenant=number < 3) for number in range(4)]
            work.commit()
        self.kept: dict[int, Memories] = {number: {} for number in range(4)}
        self.seen = {number: dict(said) for number, said in self.kept.items()}
        self.who: int | None = None
        self.work: UnitOfWork | None = None
        self.savepoints: list[tuple[Any, dict[int, Memories], int | None]] = []
        self.enter_anew(0)

    # Who works.

    @rule(who=st.none() | WHO)
    def enter_anew(self, who: int | None) -> None:
        """Give the connection back without commit, and take it again in some name."""
        self.teardown()
        self.who = who
        self.seen = {number: dict(said) for number, said in self.kept.items()}
        self.work = self.application.unit_of_work(None if who is None else self.scopes[who])
        self.work.__enter__()

    @rule(who=WHO)
    def switch(self, who: int) -> None:
        """Go on in another name, within the same transaction."""
        self.working.enter(self.scopes[who])
        self.who = who

    @rule()
    def leave(self) -> None:
        """Go on in nobody's name."""
        self.working.leave()
        self.who = None

    # What they do.

    @precondition(lambda self: self.who is not None)
    @rule(turn=TURNS, word=SPOKEN)
    def remember(self, turn: int, word: str) -> None:
        """Tell something, which others may have told under the same id."""
        node = self.working.memory.add(
            Exchange(conversation_id="c", sequence_index=turn, human=word, assistant="")
        )
        if node is not None:
            self.working.session.execute(
                MEMORY_VECTOR,
                {"key": node.key, "scope": str(self.scope), "vector": self.vector(word)},
            )
            self.own[memory_id("c", turn, word)] = word

    @precondition(lambda self: self.who is not None)
    @rule(word=SPOKEN)
    def forget(self, word: str) -> None:
        """Forget all that holds a word, by a statement that names no scope."""
        self.working.session.execute(delete(MemoryNode).where(MemoryNode.human_content == word))
        self.own = {key: said for key, said in self.own.items() if said != word}

    @precondition(lambda self: self.who is not None)
    @rule()
    def change_everything(self) -> None:
        """An UPDATE without a condition."""
        changed = update(MemoryNode).values(access_count=MemoryNode.access_count + 1)
        result: Any = self.working.session.execute(changed)
        assert result.rowcount == len(self.own)

    @precondition(lambda self: self.who is None)
    @rule()
    def nobody_changes_anything(self) -> None:
        """The same in nobody's name."""
        result: Any = self.working.session.execute(delete(MemoryNode))
        assert result.rowcount == 0

    # How it ends.

    @rule()
    def commit(self) -> None:
        """Keep it; the unit of work goes on."""
        self.working.commit()
        self.savepoints.clear()
        self.kept = {number: dict(said) for number, said in self.seen.items()}

    @rule()
    def roll_back(self) -> None:
        """Forget it; the unit of work goes on, in the name of the first savepoint that is open."""
        self.working.rollback()
        if self.savepoints:
            _, _, self.who = self.savepoints[0]
        self.savepoints.clear()
        self.seen = {number: dict(said) for number, said in self.kept.items()}

    @rule()
    def save(self) -> None:
        """Set a savepoint."""
        before = {number: dict(said) for number, said in self.seen.items()}
        self.savepoints.append((self.working.session.begin_nested(), before, self.who))

    @precondition(lambda self: self.savepoints)
    @rule(fail=st.booleans())
    def end_savepoint(self, fail: bool) -> None:
        """Release it, or roll back to it after a statement that failed: the name goes back, too."""
        savepoint, before, who = self.savepoints.pop()
        if fail:
            with pytest.raises(Exception, match="division by zero"):
                self.working.session.execute(text("SELECT 1 / 0"))
            savepoint.rollback()
            self.seen, self.who = before, who
        else:
            savepoint.commit()

    # What they find.

    @rule(word=SPOKEN, mode=st.sampled_from(MODES), who=WHO)
    def find(self, word: str, mode: Any, who: int) -> None:
        """A service searches in somebody's name, on a connection of its own: what was committed."""
        page = self.search.search(word, corpus="memory", mode=mode, scope=self.scopes[who])
        found = {hit.metadata["memory_id"] for hit in page.hits}
        said = {key for key, each in self.kept[who].items() if each == word}
        assert said <= found <= self.kept[who].keys()
        assert all(hit.metadata["human_content"] in self.kept[who].values() for hit in page.hits)

    @rule(word=SPOKEN, mode=st.sampled_from(MODES))
    def find_as_nobody(self, word: str, mode: Any) -> None:
        """It is refused."""
        with pytest.raises(MissingScope):
            self.search.search(word, corpus="memory", mode=mode)

    @invariant()
    def all_that_is_seen_is_own(self) -> None:
        """Memories, vectors and jobs are those of the scope, by SQL that does not ask for it."""
        if not getattr(self, "work", None):
            return
        session = self.working.session
        assert dict(session.execute(select(MemoryNode.id, MemoryNode.human_content)).all()) == (
            self.own if self.who is not None else {}
        )
        whose = None if self.who is None else str(self.scope)
        for table in ("memory_embeddings", "jobs"):
            scopes = session.scalars(text(f"SELECT DISTINCT scope FROM {table}")).all()  # noqa: S608 - from above
            assert {scope for scope in scopes if scope is not None} <= {whose}
        assert session.scalar(select(func.app_scope())) == whose

    def teardown(self) -> None:
        """Give the connection back."""
        if getattr(self, "work", None) is not None:
            self.savepoints.clear()
            self.working.__exit__(None, None, None)
            self.work = None

    @property
    def working(self) -> UnitOfWork:
        """The unit of work."""
        assert self.work is not None
        return self.work

    @property
    def scope(self) -> Scope:
        """In whose name it is."""
        assert self.who is not None
        return self.scopes[self.who]

    @property
    def own(self) -> Memories:
        """Return what they remember at this moment, as far as this transaction sees."""
        assert self.who is not None
        return self.seen[self.who]

    @own.setter
    def own(self, memories: Memories) -> None:
        assert self.who is not None
        self.seen[self.who] = memories

    @staticmethod
    def vector(word: str) -> Any:
        """Of a word."""
        return HashingEmbedder().embed_question(word)


@pytest.fixture
def machine(databases: Databases, hosted: URL) -> Iterator[Callable[[], Tenants]]:
    """The machine, on a database of its own."""
    with (
        databases.opened(hosted.database or "", owner=hosted) as owner,
        logged_in(owner, "rag_read_write") as login,
    ):
        single = Database(replace(login.settings, pool_size=1, max_overflow=0))
        unlogged = Database(replace(login.settings, metrics_enabled=False))
        search = SearchService(unlogged, embedder=HashingEmbedder())
        yield type("Machine", (Tenants,), {"owner": owner, "application": single, "search": search})
        single.close()
        unlogged.close()


def test_no_sequence_of_operations_shows_one_tenant_what_is_anothers(
    machine: Callable[[], Tenants],
) -> None:
    """Whatever they do, in whatever order, on connections that they share."""
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=25,
            stateful_step_count=40,
            deadline=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
        ),
    )
