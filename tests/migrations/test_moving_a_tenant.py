"""A tenant moves between two servers while it is written to, by docs/how-to/move-a-tenant.md."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from secrets import token_hex
from threading import Event, Thread
from typing import Final
from uuid import UUID

import numpy as np
import pytest
from sqlalchemy import URL, select, text, update

from pgcorpus.db.embedded import EmbeddedServer
from pgcorpus.db.engine import Database
from pgcorpus.db.errors import DatabaseReadOnly, EmbedderUnavailable
from pgcorpus.db.migrations import upgrade
from pgcorpus.db.models.documentation import Chunk
from pgcorpus.db.models.imports import ImportReject, ImportRun
from pgcorpus.db.models.memory import User
from pgcorpus.db.repositories.memory.nodes import Exchange
from pgcorpus.db.scope import Scope
from pgcorpus.db.search.corpora import DOCUMENTATION
from pgcorpus.services.documentation.feedback import FeedbackService
from pgcorpus.services.documentation.service import DocumentService
from pgcorpus.services.embedding.hashing import HashingEmbedder
from pgcorpus.services.memory.service import MemoryService
from pgcorpus.services.ops.switch import ModelSwitch
from pgcorpus.services.search.service import SearchService
from tests import factories
from tests.conftest import Databases, settings_for
from tests.logins import logged_in
from tests.migrations.conftest import ROOT, Programs, make_home

PAGE: Final = ROOT / "docs" / "how-to" / "move-a-tenant.md"
TABLES: Final = (
    "chunk_boosts",
    "chunks",
    "click_feedback",
    "documentation_embeddings",
    "documents",
    "episode_embeddings",
    "episodic_memories",
    "learned_rankings",
    "letters",
    "memory_embeddings",
    "memory_nodes",
    "search_sessions",
    "tenants",
    "users",
)
LETTERS: Final = """
    CREATE TABLE letters (
        scope text NOT NULL,
        id uuid NOT NULL DEFAULT gen_random_uuid(),
        tenant_id uuid NOT NULL REFERENCES tenants ON DELETE CASCADE,
        body text NOT NULL,
        PRIMARY KEY (scope, id)
    )
"""
"""A table of an application, as add-a-corpus.md keys it."""
CORPORA: Final = ("memory", "episodes", "documentation")
ON_BOTH, ON_SOURCE, DELETED = (UUID(int=number) for number in (1, 2, 3))
"""Shared chunks: two are on both sides, of which one is deleted on the source during the move."""
SETTINGS: Final = {
    "wal_level": "logical",  # the page has it, with the restart
    "fsync": "off",
    "shared_buffers": "32MB",
    "max_connections": "50",
}
PASSWORD: Final = "an_invented_password"
BEFORE: Final = 200
"""Memories of each tenant before the move begins."""
STAFF: Final = 60
"""Users of each tenant then; one with half of the memories, and from time to time one is erased."""
ROUNDS: Final = 12
"""Writes of each tenant, at least, before the next step."""
PATIENCE_SECONDS: Final = 120


@dataclass
class Side:
    """A server with a database of the newest schema, where nobody who works is a superuser.

    Attributes:
        programs: Of the server.
        database: As the owner of the tables.
        logins: Who runs statements of the page → their address.
        superuser: Looks at all rows.
    """

    programs: Programs
    database: Database
    logins: dict[str, URL]
    superuser: URL

    def look(self, query: str) -> tuple[str, ...]:
        """Return the rows of a query, whoever's they are."""
        printed = self.programs.execute(self.superuser, f"\\t on\n\\a\n{query};")
        return tuple(sorted(printed.splitlines()))

    def look_at_scopes(self) -> dict[str, tuple[str, ...]]:
        """Return the scopes that have rows in each table."""
        return {
            table: self.look(f"SELECT DISTINCT scope FROM {table} WHERE scope <> 'shared'")  # noqa: S608 - tables of ours
            for table in TABLES
        }

    def share(self, *keys: UUID) -> None:
        """Add shared documents of a chunk each, whose keys are given."""
        with self.database.unit_of_work() as work:
            factories.bind(work.session)
            for key in keys:
                document = factories.DocumentFactory(id=key, path=f"shared-{key}.md")
                factories.ChunkFactory(id=key, document=document, chunk_id=f"shared-{key}")
            work.commit()


@contextmanager
def open_side(server: EmbeddedServer) -> Iterator[Side]:
    """Start another server, and make its logins and the schema as on a hosted one."""
    with make_home(server) as home, ExitStack() as stack:
        own = EmbeddedServer(home, settings=SETTINGS)
        own.start()
        databases = Databases(own.url.set(database="postgres"))
        stack.callback(databases.close)
        owner = databases.make_owner()
        databases.let_give_groups(owner)
        databases._run(
            f"CREATE ROLE administrator LOGIN CREATEROLE REPLICATION BYPASSRLS"
            f" PASSWORD '{PASSWORD}'"
        )
        databases._run("GRANT pg_create_subscription TO administrator WITH ADMIN OPTION")
        url = databases.make(owner=owner)
        databases.make_extensions(url)
        database = Database(settings_for(url))
        stack.callback(database.close)
        upgrade(database)
        with database.unit_of_work() as work:
            work.session.execute(text(LETTERS))
            for corpus in CORPORA:
                work.models.use_model(corpus, "hashing")
            work.commit()
        named = {
            name: url.set(username=name, password=PASSWORD) for name in ("administrator", "mover")
        }
        yield Side(
            programs=Programs(own),
            database=database,
            logins={"owner": url, **named},
            superuser=databases.superuser_of(url),
        )


@dataclass
class Move:
    """The page, run block by block.

    Attributes:
        source: Where the tenant is.
        target: Where it goes.
        tenant: Its key.
        blocks: Each block of the page that is not run yet: where, as whom, and its statements.
    """

    source: Side
    target: Side
    tenant: UUID
    blocks: list[tuple[str, str, str]] = field(
        default_factory=lambda: re.findall(
            r"```sql\n-- (source|target|both): (\w+)\n(.*?)```", PAGE.read_text(), re.DOTALL
        )
    )

    def run(self, beginning: str) -> list[str]:
        """Run the page's next block, which begins with *beginning*; return what it printed."""
        where, who, script = self.blocks.pop(0)
        assert script.startswith(beginning)
        sides = {"source": [self.source], "target": [self.target]}
        return [
            side.programs.execute(
                side.logins[who],
                script,
                tenant=str(self.tenant),
                password=PASSWORD,
                source=self._describe_source(),
            )
            for side in sides.get(where, [self.source, self.target])
        ]

    def _describe_source(self) -> str:
        url = self.source.logins["mover"]
        return (
            f"host={url.host} port={url.port} dbname={url.database} user=mover password={PASSWORD}"
        )


def read_rows(printed: str) -> dict[str, tuple[int, str]]:
    """Read a comparison: table → how many rows it has, and their hash."""
    lines = re.findall(r"(?m)^ (\w+) +\| +(\d+) \| (\S*)$", printed)
    return {table: (int(rows), digest) for table, rows, digest in lines}


def read_number(printed: str) -> int:
    """Read the only line of a comparison that is a number: rows that point to no chunk."""
    (number,) = re.findall(r"(?m)^ +(\d+)$", printed)
    return int(number)


class SometimesSilent(HashingEmbedder):
    """Embeds all texts but those with a certain word, for which it does not answer."""

    def embed_documents(self, texts: Sequence[str]) -> np.ndarray:
        """Return the vectors, or do not answer."""
        if any("unembedded" in each for each in texts):
            raise EmbedderUnavailable("the provider did not answer")
        return super().embed_documents(texts)


class Writer(Thread):
    """Writes memories, documents and feedback of two tenants until it is told to stop.

    Attributes:
        done: Scope and kind of write → how often.
        refused: The scopes whose writes were refused because they move.
        errors: All else that went wrong.
    """

    def __init__(
        self, database: Database, scopes: list[Scope], staff: dict[Scope, list[UUID]]
    ) -> None:
        super().__init__(daemon=True)
        self.done: Counter[tuple[Scope, str]] = Counter()
        self.refused: set[Scope] = set()
        self.errors: list[BaseException] = []
        self._database = database
        embedder = SometimesSilent("hashing", 384)
        self._service = MemoryService(database, embedder)
        self._documents = DocumentService(database, embedder)
        self._scopes, self._staff = scopes, staff
        self._end = Event()

    def run(self) -> None:
        """Write for each tenant in turn."""
        number = 0
        while not self._end.is_set():
            for scope in self._scopes:
                try:
                    for kind, write in self._list_writes(scope, number).items():
                        write()
                        self.done[scope, kind] += 1
                except DatabaseReadOnly:
                    self.refused.add(scope)
                except BaseException as error:  # noqa: BLE001 - the test raises it
                    self.errors.append(error)
                    return
            number += 1

    def finish(self) -> None:
        """Stop, and raise what went wrong."""
        self._end.set()
        self.join(PATIENCE_SECONDS)
        self.check()

    def check(self) -> None:
        """Raise what went wrong."""
        if self.errors:
            raise self.errors[0]

    def wait(self, until: Callable[[], bool]) -> None:
        """Wait until it has written so far."""
        end = time.monotonic() + PATIENCE_SECONDS
        while not until():
            self.check()
            assert time.monotonic() < end
            time.sleep(0.02)

    def wait_for_rounds(self, *scopes: Scope) -> None:
        """Wait until each of some tenants has remembered ``ROUNDS`` more."""
        goals = {scope: self.done[scope, "remember"] + ROUNDS for scope in scopes}
        self.wait(lambda: all(self.done[scope, "remember"] >= goals[scope] for scope in scopes))

    def _list_writes(self, scope: Scope, number: int) -> dict[str, Callable[[], object]]:
        service, talk = self._service, f"talk {number // 10}"
        said = f"The kettle {number} leaks."

        def remember(words: str, place: int, **options: object) -> None:
            kept = service.remember(
                words,
                f"Seal {place}.",
                scope=scope,
                conversation_id=talk,
                sequence_index=place,
                **options,  # type: ignore[arg-type]
            )
            ids.append(kept.id)

        ids: list[str] = []
        writes: dict[str, Callable[[], object]] = {
            "remember": lambda: remember(said, 3 * number, duplicates="keep"),
            "merge": lambda: remember(
                said, 3 * number + 1, duplicates="merge", tags={"topics": [talk]}
            ),
            "touch": lambda: service.touch(ids, scope=scope),
        }
        if number % 5 == 1:  # stored out of line: an update of the row sends it no more
            writes["long"] = lambda: remember(
                " ".join(token_hex(4) for _ in range(1000)), 3 * number + 2
            )
            writes["touch long"] = lambda: service.touch(ids, scope=scope)
        if number % 2:
            writes["forget"] = lambda: service.forget(scope=scope, ids=ids[:2])
        if number % 5 == 0:
            writes["unembedded"] = lambda: remember(f"unembedded {number}", 3 * number + 2)
            writes["episode"] = lambda: service.store_episode(talk, scope=scope, title=said)
            writes["rename"] = lambda: self._rename(scope, said)
        if number % 5 == 2:
            writes["document"] = lambda: self._add_document(scope, f"page {number // 10}", said)
            writes["feedback"] = lambda: self.give_feedback(scope, said)
        if number % 10 == 3:
            writes["unembedded document"] = lambda: self._add_document(scope, talk, "unembedded")
        if number % 10 == 8:
            writes["delete document"] = lambda: self._documents.delete([talk], scope=scope)
        if number % 10 == 0:
            writes["add user"] = lambda: self._add_user(scope, number)
            if self._staff[scope]:
                writes["forget user"] = lambda: service.forget_user(
                    self._staff[scope].pop(0), scope=scope, account=True
                )
        return writes

    def _add_document(self, scope: Scope, path: str, said: str) -> None:
        """Add a document of two chunks, or replace the second chunk of the one at its path."""
        content = f"# {path}\n\nDescale the kettle.\n\n## Leaks\n\n{said}\n"
        self._documents.add_document(content, path=path, scope=scope)

    def give_feedback(self, scope: Scope, question: str) -> None:
        """Record a page and clicks, on shared chunks and one's own, and apply a ranking."""
        with self._database.unit_of_work(scope) as work:
            own = select(Chunk.id).where(Chunk.tenant_id == scope.tenant_id).limit(1)
            clicked = [ON_BOTH, ON_SOURCE, *work.session.scalars(own)]
            work.feedback.record_page("visit", shown=[], query=question)
            for position, chunk in enumerate(clicked, start=1):
                work.feedback.record_click(chunk, query=question, position=position)
            work.rankings.apply(
                DOCUMENTATION,
                weights={"vector": 0.6, "text": 0.4},
                boosts=dict.fromkeys(clicked, 0.01),
                estimate={},
            )
            work.commit()

    def _rename(self, scope: Scope, name: str) -> None:
        """Rename the users who were there before the move."""
        of_old = User.external_id.like("old-1%")
        with self._database.unit_of_work(scope) as work:
            work.session.execute(update(User).where(of_old).values(display_name=name))
            work.commit()

    def _add_user(self, scope: Scope, number: int) -> None:
        with self._database.unit_of_work(scope) as work:
            work.tenancy.create_user(
                auth_provider="test",
                external_id=f"new-{number}-{scope}",
                tenant_id=scope.tenant_id,
            )
            work.commit()


def refuse_passage(database: Database, scope: Scope) -> None:
    """Record that an import refused a passage of the tenant."""
    with database.unit_of_work() as work:
        run = ImportRun(corpus="memory", scope=str(scope))
        work.session.add(run)
        work.session.flush()
        refused = ImportReject(
            run_id=run.id,
            corpus="memory",
            file="old.json",
            locator="$[0]",
            reason="it is blank",
            payload={},
            scope=str(scope),
        )
        work.session.add(refused)
        work.commit()


def settle(source: Side, application: Database) -> tuple[list[Scope], dict[Scope, list[UUID]]]:
    """Make two tenants with users, memories, documents, clicks and a letter of an application."""
    source.share(ON_BOTH, ON_SOURCE, DELETED)
    scopes, staff = [], {}
    for name in ("Moving", "Staying"):
        with source.database.unit_of_work() as work:
            scope = Scope.tenant(work.tenancy.create_tenant(name).id)
            staff[scope] = [
                work.tenancy.create_user(
                    auth_provider="test",
                    external_id=f"old-{number}-{name}",
                    tenant_id=scope.tenant_id,
                ).id
                for number in range(STAFF)
            ]
            work.session.execute(
                text("INSERT INTO letters (scope, tenant_id, body) VALUES (:scope, :id, 'Hello')"),
                {"scope": str(scope), "id": scope.tenant_id},
            )
            work.commit()
        service = MemoryService(application)
        for user_id in (None, staff[scope][3]):
            service.remember_many(
                [
                    Exchange(human=f"{name} said {number}.", conversation_id=f"of {user_id}")
                    for number in range(BEFORE // 2)
                ],
                scope=Scope.tenant(scope.tenant_id, user_id=user_id),  # type: ignore[arg-type]
                duplicates="keep",
            )
        service.store_episode("of None", scope=scope, title=f"How {name} began")
        DocumentService(application).add_texts(
            [f"{name} wrote {number}." for number in range(BEFORE // 4)], scope=scope
        )
        FeedbackService(application).record_click(DELETED, query="?", position=1, scope=scope)
        scopes.append(scope)
    refuse_passage(source.database, scopes[0])
    return scopes, staff


UNEMBEDDED: Final = """
    SELECT id FROM memory_nodes AS node WHERE NOT EXISTS (
        SELECT FROM memory_embeddings AS vector
        WHERE vector.scope = node.scope AND node_key = node.key)
    UNION ALL
    SELECT id::text FROM chunks WHERE scope <> 'shared' AND NOT EXISTS (
        SELECT FROM documentation_embeddings AS vector
        WHERE vector.scope = chunks.scope AND vector.chunk_id = chunks.id)
"""
POINTING: Final = "SELECT chunk_id FROM click_feedback UNION SELECT chunk_id FROM chunk_boosts"
"""Chunks that clicks or boosts point to."""


def compare(move: Move) -> None:
    """Compare both sides: all rows have arrived, and what the target lacks is named."""
    ours, theirs = move.run("SET timezone")
    rows, arrived = read_rows(ours), read_rows(theirs)
    assert rows.keys() == {*TABLES, "import_rejects"}
    assert {each for each in rows if rows[each] != arrived[each]} == {"import_rejects"}
    assert all(count for count, _ in rows.values())
    assert min(rows[name][0] for name in ("memory_nodes", "memory_embeddings")) > BEFORE // 2
    assert read_number(ours) == 0 < read_number(theirs)
    assert str(ON_SOURCE) in move.target.look(POINTING)
    move.run("DELETE FROM click_feedback")
    pointed = {*move.target.look(POINTING)}
    assert str(ON_BOTH) in pointed
    assert not pointed & {str(ON_SOURCE), str(DELETED)}


def serve(application: Database, target: Side, scope: Scope) -> None:
    """Search on both sides, embed on the target what was waiting for it, and write there."""
    assert target.look(UNEMBEDDED)
    assert not target.look("SELECT id FROM jobs WHERE scope IS NOT NULL")
    assert not target.look("SELECT id FROM security_audit_log WHERE table_name = 'memory_nodes'")
    ModelSwitch(target.database).backfill("hashing", among=CORPORA)
    assert not target.look(UNEMBEDDED)

    with logged_in(target.database, "rag_read_write") as moved:
        source, service = MemoryService(application), MemoryService(moved)
        for mode in ("hybrid", "vector", "text", "fuzzy"):
            ours, theirs = (
                side.recall("Moving said 7", scope=scope, mode=mode, limit=1, touch=False)
                for side in (source, service)
            )
            assert ours.memories[0].human == "Moving said 7."
            assert [each.id for each in ours.memories] == [each.id for each in theirs.memories]
            pages = [
                SearchService(side).search(
                    "Moving wrote 7", corpus="documentation", scope=scope, mode=mode, limit=1
                )
                for side in (application, moved)
            ]
            assert pages[0].hits[0].content == "Moving wrote 7."
            assert [each.id for each in pages[0].hits] == [each.id for each in pages[1].hits]
            assert pages[0].learned == pages[1].learned
        (episode,) = service.recall_episodes(
            "how it began", scope=scope, limit=1, touch=False
        ).episodes
        assert episode.title == "How Moving began"
        service.remember("We have moved.", scope=scope, conversation_id="new", sequence_index=0)
        assert service.recall("moved", scope=scope, touch=False).memories
        DocumentService(moved).add_texts(["Our new address."], scope=scope)
        FeedbackService(moved).record_click(ON_BOTH, query="address", position=1, scope=scope)


def erase(database: Database, scope: Scope) -> None:
    """Erase the tenant as the page does."""
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    exec(code, {"database": database, "tenant_id": scope.tenant_id})  # noqa: S102 - of our own page


@pytest.mark.direct("its servers are its own")
def test_a_tenant_moves_while_it_is_written_to(server: EmbeddedServer) -> None:
    """It is equal on both sides, nobody else came along, no write failed, and the target serves."""
    with ExitStack() as stack:
        source = stack.enter_context(open_side(server))
        target = stack.enter_context(open_side(server))
        target.share(ON_BOTH, DELETED)
        application = stack.enter_context(logged_in(source.database, "rag_read_write"))
        scopes, staff = settle(source, application)
        moving, staying = scopes
        assert moving.tenant_id is not None
        move = Move(source, target, moving.tenant_id)
        for beginning in ("CREATE ROLE", "ALTER ROLE", "GRANT pg_", "GRANT rag", "GRANT rag"):
            move.run(beginning)
        ours, theirs = move.run("SELECT version_num")
        assert ours == theirs
        writer = Writer(application, scopes, staff)
        writer.start()
        stack.callback(writer.finish)
        writer.wait_for_rounds(*scopes)

        move.run("SELECT format('CREATE PUBLICATION")
        assert not source.look("SELECT pubname FROM pg_publication WHERE pubtruncate")
        assert source.look("SELECT DISTINCT tablename FROM pg_publication_tables") == TABLES
        published = writer.done.copy()
        writer.wait_for_rounds(*scopes)
        move.run("CREATE SUBSCRIPTION")
        move.run("DO $$")
        writer.wait_for_rounds(*scopes)
        only_it = dict.fromkeys(TABLES, (str(moving),))
        assert target.look_at_scopes() == only_it

        move.run("SET lock_timeout")
        fenced = writer.done.copy()
        assert not [each for each in fenced if fenced[each] <= published[each]]
        refusing = "SELECT DISTINCT tgrelid::regclass FROM pg_trigger WHERE tgname ~ 'refuse'"
        assert source.look(refusing) == TABLES
        writer.wait(lambda: moving in writer.refused)
        with pytest.raises(DatabaseReadOnly):
            writer.give_feedback(moving, "Is it refused?")
        DocumentService(source.database).delete([f"shared-{DELETED}.md"])
        move.run("DO $$")
        compare(move)

        writer.wait_for_rounds(staying)
        writer.finish()
        assert writer.refused == {moving}
        assert target.look_at_scopes() == only_it
        serve(application, target, moving)

        for beginning in ("DROP SUB", "DROP PUB", "REVOKE", "DROP ROLE", "DROP FUNCTION"):
            move.run(beginning)
        assert not move.blocks
        there = {table: target.look(f"SELECT * FROM {table}") for table in TABLES}  # noqa: S608
        erase(source.database, moving)
        assert source.look_at_scopes() == dict.fromkeys(TABLES, (str(staying),))
        assert {table: target.look(f"SELECT * FROM {table}") for table in TABLES} == there  # noqa: S608
