"""Operations of revisions: what they run is frozen, and each is taken back without a trace."""

from __future__ import annotations

import re
from collections.abc import Callable
from hashlib import sha256
from typing import Any
from uuid import uuid4

import pytest
from alembic.migration import MigrationContext
from alembic.operations import Operations
from sqlalchemy import (
    Column,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    Uuid,
    func,
    insert,
    select,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB, REGCONFIG, TSVECTOR
from sqlalchemy.exc import DBAPIError

from pgcorpus.db.base import Vector
from pgcorpus.db.engine import Database
from pgcorpus.db.errors import MissingScope
from pgcorpus.db.operations import OPERATIONS
from pgcorpus.db.scope import Scope
from pgcorpus.db.search.corpora import list_corpora, register
from pgcorpus.db.search.corpus import Corpus
from pgcorpus.services.choices import MODES
from pgcorpus.services.jobs.worker import Worker
from pgcorpus.services.search.service import SearchService
from tests.logins import logged_in
from tests.migrations.conftest import ROOT, Dump

# Operation → how it is asked here, as (arguments, named arguments).
EXAMPLES: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {
    "comment_columns_v1": (("tickets", {"subject": "the customer's words: short"}), {}),
    "limit_times_v1": (("tickets", "created_at", "updated_at"), {}),
    "stop_limiting_times_v1": (("tickets",), {}),
    "keep_updated_at_v1": (("tickets",), {}),
    "stop_keeping_updated_at_v1": (("tickets",), {}),
    "sample_columns_v1": ((0, "tickets", "subject"), {}),
    "create_embedding_table_v1": (
        ("ticket_embeddings",),
        {"item": "ticket_id", "passages": "tickets"},
    ),
    "drop_embedding_table_v1": (("ticket_embeddings",), {}),
    "enqueue_embeddings_v1": (("tickets",), {"corpus": "tickets", "embedded": "subject, body"}),
    "stop_enqueuing_embeddings_v1": (("tickets",), {}),
    "audit_v1": (("tickets",), {"hashed": "body"}),
    "stop_auditing_v1": (("tickets",), {}),
    "isolate_v1": (("tickets",), {"administered": True}),
    "stop_isolating_v1": (("tickets",), {"administered": True}),
    "search_in_scope_v1": (
        ("tickets",),
        {"words": "words", "shown": "subject || ' ' || body", "vectors": "ticket_vectors"},
    ),
    "stop_searching_in_scope_v1": (("tickets",), {"vectors": "ticket_vectors"}),
    "create_coverage_v1": (
        (
            {
                "corpus": "tickets",
                "passages": "tickets",
                "vectors": "ticket_vectors",
                "item": "ticket_id",
                "embedded": "body",
                "scoped": True,
            },
        ),
        {},
    ),
    "drop_coverage_v1": ((), {}),
}

# Of the statements of the example. Until the first release an operation may be changed, with its
# checksum here; after it, what is different is another operation, with the suffix _v2.
CHECKSUMS: dict[str, str] = {
    "comment_columns_v1": "8a2ee04ffc7c20aa",
    "limit_times_v1": "0a48047baab5e816",
    "stop_limiting_times_v1": "a14f6ce2ca75d1cb",
    "keep_updated_at_v1": "19a3537bc37a5b91",
    "stop_keeping_updated_at_v1": "93319039d5b41bb8",
    "sample_columns_v1": "8372404bdb67a045",
    "create_embedding_table_v1": "3fc230e80ca009c8",
    "drop_embedding_table_v1": "8a35afa211f2759b",
    "enqueue_embeddings_v1": "cbd803a9d4df29c6",
    "stop_enqueuing_embeddings_v1": "5e9357348c3921c4",
    "audit_v1": "2554ee662806d8ae",
    "stop_auditing_v1": "8ddf3974b7922f2f",
    "isolate_v1": "4e4efe878f897587",
    "stop_isolating_v1": "b84d7ce0bf940512",
    "search_in_scope_v1": "2b257b6f7a755c68",
    "stop_searching_in_scope_v1": "c825969f42d3eb89",
    "create_coverage_v1": "d3b1b94b069ac231",
    "drop_coverage_v1": "d7a0f01b4401dc54",
    "create_embedding_table_v1, scoped": "9f820075e5d24915",
    "enqueue_embeddings_v1, scoped": "356ee5a2d6b2f88d",
    "create_embedding_table_v1, shared": "759c8974ca544c3a",
    "isolate_v1, shared": "dd60c189982df531",
    "search_in_scope_v1, shared": "03bcba9cac8f0b62",
    "stop_searching_in_scope_v1, shared": "ae9071e6fb0424d1",
}

# Operation → what takes it back, and how that is asked.
REVERSES = {
    "comment_columns_v1": ("comment_columns_v1", ("tickets", {"subject": None})),
    "limit_times_v1": ("stop_limiting_times_v1", ("tickets",)),
    "keep_updated_at_v1": ("stop_keeping_updated_at_v1", ("tickets",)),
    "sample_columns_v1": ("sample_columns_v1", (-1, "tickets", "subject")),
    "create_embedding_table_v1": ("drop_embedding_table_v1", ("ticket_embeddings",)),
    "enqueue_embeddings_v1": ("stop_enqueuing_embeddings_v1", ("tickets",)),
    "audit_v1": ("stop_auditing_v1", ("tickets",)),
    "isolate_v1": ("stop_isolating_v1", ("tickets",)),
    "search_in_scope_v1": ("stop_searching_in_scope_v1", ("tickets",)),
    "create_coverage_v1": ("drop_coverage_v1", ()),
}

TICKETS = """
    CREATE TABLE tickets (
        id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
        subject text NOT NULL,
        body text NOT NULL,
        scope text,
        created_at timestamptz NOT NULL DEFAULT now(),
        updated_at timestamptz NOT NULL DEFAULT now(),
        words tsvector,
        UNIQUE (id, scope)
    );
    CREATE TABLE ticket_vectors (
        ticket_id uuid, scope text, model_name varchar(100), content_hash bytea
    );
    DROP VIEW embedding_coverage;
"""


def revise(database: Database, change: Callable[[Any], None]) -> None:
    """Run what a revision of an application would run, in a transaction."""
    with database.engine.begin() as connection:
        change(Operations(MigrationContext.configure(connection)))


@pytest.fixture
def tickets(database: Database) -> Database:
    """A database at the newest revision, with a table of an application."""
    revise(database, lambda op: op.execute(TICKETS))
    return database


def checksums() -> dict[str, str]:
    """Return the checksum of the statements of each example, by the operation's name."""
    statements = {
        name: OPERATIONS[name](*given, **named) for name, (given, named) in EXAMPLES.items()
    }
    for name in ("create_embedding_table_v1", "enqueue_embeddings_v1"):
        given, named = EXAMPLES[name]
        statements[f"{name}, scoped"] = OPERATIONS[name](*given, **named, scoped=True)
    for name, more in {
        "create_embedding_table_v1": {"scoped": True},
        "isolate_v1": {},
        "search_in_scope_v1": {"metadata": "details"},
        "stop_searching_in_scope_v1": {"metadata": True},
    }.items():
        given, named = EXAMPLES[name]
        statements[f"{name}, shared"] = OPERATIONS[name](*given, **named, **more, shared=True)
    return {
        name: sha256("\n".join(each).encode()).hexdigest()[:16] for name, each in statements.items()
    }


def test_an_operation_is_frozen() -> None:
    """Every one of them is guarded by a checksum."""
    assert EXAMPLES.keys() == OPERATIONS.keys()
    assert checksums() == CHECKSUMS


def test_an_operation_explains_its_arguments() -> None:
    """Applications read it, too."""
    for name, operation in OPERATIONS.items():
        documented = operation.__doc__ or ""
        assert name.endswith("_v1")
        assert getattr(Operations, name).__doc__ == documented
        for argument in operation.__annotations__.keys() - {"return"}:
            assert f"        {argument}: " in documented, (name, argument)


@pytest.mark.parametrize("name", REVERSES)
def test_an_operation_is_taken_back_without_a_trace(
    tickets: Database, schema_of: Dump, name: str
) -> None:
    """Each has its reverse; the dump of the schema is the same to the byte."""
    before = schema_of(tickets.url)
    given, named = EXAMPLES[name]
    reverse, arguments = REVERSES[name]

    revise(tickets, lambda op: getattr(op, name)(*given, **named))
    assert schema_of(tickets.url) != before
    revise(tickets, lambda op: getattr(op, reverse)(*arguments, **EXAMPLES[reverse][1]))

    assert schema_of(tickets.url) == before


def test_every_operation_has_its_reverse() -> None:
    """An operation without one takes back another."""
    reverses = {reverse for reverse, _ in REVERSES.values()}

    assert REVERSES.keys() | reverses == OPERATIONS.keys()


def test_a_table_of_an_application_is_embedded_audited_and_isolated(tickets: Database) -> None:
    """Jobs are of the scope, entries are recorded, and another scope neither sees nor writes."""

    def change(op: Any) -> None:
        op.execute("ALTER TABLE tickets ALTER COLUMN scope SET NOT NULL")
        op.create_embedding_table_v1(
            "ticket_embeddings", item="ticket_id", passages="tickets", scoped=True
        )
        op.enqueue_embeddings_v1("tickets", corpus="tickets", embedded="subject, body", scoped=True)
        op.audit_v1("tickets", hashed="body")
        op.isolate_v1("tickets")  # the vectors are isolated with their table

    revise(tickets, change)
    mine, others = (Scope.user(uuid4()) for _ in range(2))
    values = {"scope": f"user:{mine.user_id}"}
    insert = text(
        "INSERT INTO tickets (subject, body, scope) VALUES ('printer', 'on fire', :scope)"
    )
    with logged_in(tickets, "rag_read_write") as application:
        with application.unit_of_work(mine) as work:
            work.session.execute(insert, values)
            work.commit()
        with application.unit_of_work(mine) as work:
            work.session.execute(
                text(
                    "INSERT INTO ticket_embeddings"
                    " (scope, ticket_id, model_name, embedding, content_hash)"
                    " SELECT scope, id, 'hashing', array_fill(1, ARRAY[384])::vector, 'x'"
                    " FROM tickets"
                )
            )
            work.commit()
        with application.unit_of_work(others) as work:
            for table in ("tickets", "ticket_embeddings"):
                assert work.session.scalar(text(f"SELECT count(*) FROM {table}")) == 0  # noqa: S608
                assert work.session.execute(text(f"DELETE FROM {table}")).rowcount == 0  # noqa: S608
            with pytest.raises(DBAPIError, match="row-level security"):
                work.session.execute(insert, values)
        with application.unit_of_work(mine) as work:
            (job,) = work.session.execute(
                text("SELECT payload, scope FROM jobs WHERE kind = 'embed'")
            )
            assert (job.payload["corpus"], job.scope) == ("tickets", values["scope"])
            work.session.execute(text("DELETE FROM jobs WHERE kind = 'embed'"))
            for body, jobs in (("on fire", 0), ("out of paper", 1)):
                work.session.execute(text("UPDATE tickets SET body = :body"), {"body": body})
                counted = work.session.scalar(
                    text("SELECT count(*) FROM jobs WHERE kind = 'embed'")
                )
                assert counted == jobs
            work.commit()
    with tickets.engine.connect() as connection:
        recorded = connection.scalars(
            text("SELECT action FROM security_audit_log WHERE table_name = 'tickets'")
        ).all()
        hashed = connection.scalar(
            text("SELECT new_values ->> 'body' FROM security_audit_log WHERE action = 'INSERT'")
        )
    assert sorted(recorded) == ["INSERT", "UPDATE"]
    assert str(hashed).startswith("hmac-sha256:")


def test_a_corpus_of_an_application_is_searched_within_a_scope(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every mode finds what is the tenant's own, once a worker embedded it, and nothing else."""
    page = (ROOT / "docs" / "how-to" / "add-a-corpus.md").read_text()
    (code,) = re.findall(r"```python\n(op\..*?)```", page, re.DOTALL)
    revise(database, lambda op: exec(code, {"op": op}))  # noqa: S102 - of our own page
    corpus = letters_corpus()
    ours = {each.name: each for each in list_corpora()}
    monkeypatch.setattr("pgcorpus.db.search.corpora._registered", ours)
    register(corpus)
    with database.unit_of_work() as work:
        mine, others = (
            Scope.tenant(work.tenancy.create_tenant(name).id) for name in ("Mine", "Others")
        )
        work.commit()
    bodies = {mine: "A refund for the kettle.", others: "Refunds of kettles."}
    with logged_in(database, "rag_read_write") as application:
        for scope, body in bodies.items():
            with application.unit_of_work(scope) as work:
                work.session.execute(
                    insert(corpus.passages).values(body=body, details={"said": body})
                )
                work.commit()
        assert Worker(database).run(once=True).counts["completed"] >= len(bodies)
        search = SearchService(application)
        for mode in MODES:
            for scope, body in bodies.items():
                found = search.search("refunding kettel", corpus="letters", mode=mode, scope=scope)
                assert [hit.content for hit in found.hits] == [body]
                assert not found.degraded
                for narrowed, said in bodies.items():
                    asked = {"metadata": {"said": {"$in": ["x", said]}}}
                    found = search.search(
                        "refunding kettel", corpus="letters", mode=mode, scope=scope, filters=asked
                    )
                    assert len(found.hits) == (narrowed == scope)
                    assert f"the filters keep {len(found.hits)} passage" in str(found.note)
            with pytest.raises(MissingScope):
                search.search("refunding kettel", corpus="letters", mode=mode)
    with database.unit_of_work() as work:
        work.tenancy.delete_tenant(mine.tenant_id)
        work.commit()
    assert count_letters(database, mine) == 0
    assert count_letters(database, others) == 1


def count_letters(database: Database, scope: Scope) -> int | None:
    """Count the letters that a scope sees."""
    with database.unit_of_work() as work:
        work.enter(scope)
        return work.session.scalar(text("SELECT count(*) FROM letters"))


def letters_corpus() -> Corpus:
    """Return the corpus as its application writes it."""
    metadata = MetaData()
    letters = Table(
        "letters",
        metadata,
        Column("id", Uuid(), server_default=text("gen_random_uuid()")),
        Column("scope", Text()),
        Column("body", Text()),
        Column("details", JSONB()),
        Column("language", REGCONFIG()),
        Column("words", TSVECTOR()),
    )
    vectors = Table(
        "letter_embeddings",
        metadata,
        Column("letter_id", Uuid()),
        Column("scope", Text()),
        Column("model_name", String(100)),
        Column("embedding", Vector()),
        Column("content_hash", LargeBinary()),
    )
    return Corpus(
        name="letters",
        passages=letters,
        key=letters.c.id,
        text=letters.c.body,
        words=letters.c.words,
        language=letters.c.language,
        shown=letters.c.body,
        vectors=vectors,
        item=vectors.c.letter_id,
        scope=letters.c.scope,
        metadata_column=letters.c.details,
        filters={},
        hits=select(
            letters.c.id,
            func.left(letters.c.body, 20).label("title"),
            letters.c.body.label("content"),
        ),
    )
