"""Two tenants and somebody on their own, who have remembered the same things under the same ids."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID, uuid4

from sqlalchemy import Connection, text

from pgcorpus.db.engine import Database
from pgcorpus.db.models.documentation import Chunk
from pgcorpus.db.models.memory import Tenant
from pgcorpus.db.scope import Scope
from pgcorpus.db.uow import UnitOfWork
from tests import factories
from tests.logins import logged_in

MEMORIES: Final = 3
"""Memories of each scope, all with the same ids."""

KEYS: Final = {
    "tenants": "id",
    "users": "id",
    "memory_nodes": "key",
    "episodic_memories": "key",
    "memory_embeddings": "id",
    "episode_embeddings": "id",
    "documents": "id",
    "chunks": "id",
    "documentation_embeddings": "id",
    "click_feedback": "id",
    "search_sessions": "id",
    "learned_rankings": "id",
    "chunk_boosts": "id",
    "jobs": "id",
    "import_runs": "id",
    "import_files": "id",
    "import_transformations": "id",
    "import_rejects": "id",
}
"""Every scoped table and its primary key."""

UNSCOPED: Final = frozenset(each for each in KEYS if each == "jobs" or each.startswith("import_"))
"""Tables that have rows of no scope, too, which everybody sees; their owner sees all."""

READABLE: Final = frozenset(
    ("documents", "chunks", "documentation_embeddings", "learned_rankings", "chunk_boosts")
)
"""Tables that have rows of the scope ``shared``, too, which everybody sees."""

DOCUMENTED: Final = READABLE | {"click_feedback", "search_sessions"}
"""Tables in which only tenants have rows, and everybody."""


@dataclass(frozen=True)
class Tenancy:
    """A database with the rows of three scopes.

    Attributes:
        owner: As the owner, who is a member of rag_admin: of memories it sees a scope's in that
            scope alone, as everybody does.
        application: As a login of the application.
        ours: A tenant.
        theirs: Another, whose rows nobody else may see.
        person: Somebody on their own, the same.
        user_ids: Of each scope, one of its users.
    """

    owner: Database
    application: Database
    ours: Scope
    theirs: Scope
    person: Scope
    user_ids: dict[Scope, UUID]

    def keys(self, table: str, scope: Scope) -> list[Any]:
        """Primary keys of the rows that are a scope's, in a table of ``KEYS``."""
        whose = "'tenant:' || id" if table == "tenants" else "scope"
        found = text(f"SELECT {KEYS[table]} FROM {table} WHERE {whose} = :scope ORDER BY 1")  # noqa: S608 - names from above
        with self.owner.engine.connect() as connection:
            enter(connection, scope)
            return list(connection.scalars(found, {"scope": str(scope)}))

    def contents(self) -> dict[str, list[str]]:
        """Every row of every scoped table as text, whoever may see it."""
        with self.owner.engine.connect() as connection:
            return {table: sorted(set(rows_of_all(connection, table))) for table in KEYS}


MEMORY_VECTOR: Final = text("""
    INSERT INTO memory_embeddings (node_key, scope, model_name, embedding, content_hash)
    VALUES (:key, :scope, 'hashing', :vector, '')
""")


def make_scope(work: UnitOfWork, *, tenant: bool) -> Scope:
    """A tenant without a user, or somebody on their own."""
    factories.bind(work.session)
    if tenant:
        return Scope.tenant(factories.TenantFactory().id)
    return Scope.user(factories.UserFactory().id)


def secret(scope: Scope) -> str:
    """A word that only the memories and documents of a scope hold."""
    return f"secret{(scope.tenant_id or scope.user_id).hex}"  # type: ignore[union-attr]


@contextmanager
def settled(database: Database) -> Iterator[Tenancy]:
    """Fill a database of the newest schema, and log in as an application."""
    scopes, user_ids = [], {}
    with database.unit_of_work() as work:
        factories.bind(work.session)
        everybodys = document_of(None, "What all may read")
        factories.ChunkBoostFactory(chunk=everybodys)
        for of_tenant in (True, True, False):
            tenant = factories.TenantFactory() if of_tenant else None
            user = factories.UserFactory(tenant=tenant, email=f"{uuid4().hex}@example.com")
            scope = Scope.tenant(tenant.id) if tenant else Scope.user(user.id)
            owned = {"tenant": tenant} if tenant else {"user": user}
            for number in range(MEMORIES):
                node = factories.MemoryNodeFactory(
                    id=f"mem_{number}", human_content=f"{secret(scope)} {number}", **owned
                )
                factories.MemoryEmbeddingFactory(node=node)
            episode = factories.EpisodicMemoryFactory(id="ep_0", title=secret(scope), **owned)
            factories.EpisodeEmbeddingFactory(episode=episode)
            run = factories.ImportRunFactory(scope=str(scope))
            of_run = {"run": run, "scope": str(scope)}
            factories.ImportFileFactory(**of_run)
            factories.ImportTransformationFactory(item=secret(scope), **of_run)
            factories.ImportRejectFactory(payload={"said": secret(scope)}, **of_run)
            if tenant is not None:
                opened = document_of(tenant, secret(scope))
                for chunk in (opened, everybodys):
                    factories.ClickFeedbackFactory(tenant=tenant, chunk=chunk, query=secret(scope))
                factories.SearchSessionFactory(tenant=tenant, query=secret(scope))
                ranking = factories.LearnedRankingFactory(tenant=tenant, created_by=secret(scope))
                factories.ChunkBoostFactory(tenant=tenant, ranking=ranking, chunk=opened)
            scopes.append(scope)
            user_ids[scope] = user.id
        work.commit()
    with database.engine.begin() as connection:
        connection.execute(text("ANALYZE"))
    with logged_in(database, "rag_read_write") as application:
        yield Tenancy(database, application, *scopes, user_ids)


def document_of(tenant: Tenant | None, said: str) -> Chunk:
    """Write a document with a chunk and its vector; return the chunk."""
    document = factories.DocumentFactory(tenant=tenant, path=f"{said}.md", title=said)
    chunk = factories.ChunkFactory(document=document, text=said, details={"said": said})
    factories.DocumentationEmbeddingFactory(chunk=chunk)
    assert isinstance(chunk, Chunk)
    return chunk


def list_scopes(connection: Connection) -> list[Scope]:
    """Every scope that there is, for a member of rag_admin."""
    found = text(
        "SELECT 'tenant:' || id FROM tenants"
        " UNION ALL SELECT 'user:' || id FROM users WHERE tenant_id IS NULL"
    )
    return [Scope.parse(each) for each in connection.scalars(found)]


def rows_of_all(connection: Connection, table: str) -> Iterator[str]:
    """Rows of a table as text, looked at in every scope; those that all see come more than once."""
    for scope in (None, *list_scopes(connection)):
        enter(connection, scope)
        yield from connection.scalars(text(f"SELECT CAST(t AS text) FROM {table} AS t"))  # noqa: S608 - a table of ours


def enter(connection: Connection, scope: Scope | None, *, session: bool = False) -> None:
    """Set a scope by SQL alone."""
    settings = {"app.tenant_id": "", "app.user_id": ""} if scope is None else scope.settings
    for name, value in settings.items():
        connection.execute(
            text("SELECT set_config(:name, :value, :local)"),
            {"name": name, "value": value, "local": not session},
        )
