"""Two tenants and somebody on their own, an application's login, and an embedder that obeys."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import numpy as np
import pytest
from sqlalchemy import text

from pgcorpus.db.engine import Database
from pgcorpus.db.errors import EmbedderUnavailable, TextsRefused
from pgcorpus.db.scope import Scope
from pgcorpus.services.embedding.hashing import HashingEmbedder
from pgcorpus.services.memory.service import MemoryService
from tests.logins import logged_in
from tests.tenancy import enter, list_scopes

SCOPED = (
    "memory_nodes",
    "memory_embeddings",
    "episodic_memories",
    "episode_embeddings",
    "jobs",
)


@dataclass
class ObedientEmbedder:
    """Gives the vectors it is told to, hashes of words for other texts, or no answer at all.

    Attributes:
        vectors: First line of a text → vector.
        silent: Whether it does not answer.
        refused: Words that it takes no text with.
        asked: Every text that it was given.
    """

    vectors: Mapping[str, np.ndarray] = field(default_factory=dict)
    silent: bool = False
    refused: tuple[str, ...] = ()
    asked: list[str] = field(default_factory=list)

    model_name = "hashing"
    dimensions = 384
    batch_size = 8

    def embed_documents(self, texts: Sequence[str]) -> np.ndarray:
        """One vector per text."""
        self.asked += texts
        if self.silent:
            raise EmbedderUnavailable("the provider did not answer")
        if any(word in each for each in texts for word in self.refused):
            raise TextsRefused("too long for the model")
        hashed = HashingEmbedder("hashing", self.dimensions).embed_documents(texts)
        return np.stack(
            [
                self.vectors.get(each.partition("\n")[0], vector)
                for each, vector in zip(texts, hashed, strict=True)
            ]
        )

    def embed_question(self, text: str) -> np.ndarray:
        """As of a text."""
        return self.embed_documents([text])[0]


@dataclass
class Setting:
    """A database, and who works with it.

    Attributes:
        owner: The owner of the tables, who is a member of rag_admin.
        application: A login of the application.
        ours: A tenant.
        theirs: Another.
        person: Somebody on their own.
        ann: A user of ours.
        bob: Another user of ours.
        embedder: Of ``service``.
        service: As the application.
    """

    owner: Database
    application: Database
    ours: Scope
    theirs: Scope
    person: Scope
    ann: UUID
    bob: UUID
    embedder: ObedientEmbedder
    service: MemoryService

    def rows(self, table: str, scope: Scope | None = None) -> list[Mapping[str, Any]]:
        """Rows of a scoped table, of one scope or of all, whoever may see them."""
        statement = text(f"SELECT * FROM {table} WHERE scope = :scope")  # noqa: S608 - a table of ours
        rows = []
        with self.owner.engine.connect() as connection:
            for each in list_scopes(connection) if scope is None else [scope]:
                enter(connection, each)
                rows += connection.execute(statement, {"scope": str(each)}).mappings()
        return [dict(row) for row in rows]

    def counts(self, scope: Scope) -> dict[str, int]:
        """Count the rows of a scope in each scoped table."""
        return {table: len(self.rows(table, scope)) for table in SCOPED}

    def node(self, memory_id: str, scope: Scope | None = None) -> Mapping[str, Any]:
        """The row of a memory."""
        (row,) = (
            row for row in self.rows("memory_nodes", scope or self.ours) if row["id"] == memory_id
        )
        return row


@pytest.fixture
def setting(database: Database) -> Iterator[Setting]:
    """Nothing is remembered yet; memory and episodes use the offline model."""
    with database.unit_of_work() as work:
        ours, theirs = (work.tenancy.create_tenant(name).id for name in ("Ours", "Theirs"))
        ann, bob, person = (
            work.tenancy.create_user(auth_provider="test", external_id=name, tenant_id=tenant).id
            for name, tenant in (("ann", ours), ("bob", ours), ("person", None))
        )
        for corpus in ("memory", "episodes"):
            work.models.use_model(corpus, "hashing")
        work.commit()
    embedder = ObedientEmbedder()
    with logged_in(database, "rag_read_write") as application:
        service = MemoryService(application, embedder)
        yield Setting(
            owner=database,
            application=application,
            ours=Scope.tenant(ours),
            theirs=Scope.tenant(theirs),
            person=Scope.user(person),
            ann=ann,
            bob=bob,
            embedder=embedder,
            service=service,
        )
        service.flush()  # or a thread would, when the database is gone
