"""Row security where rows are everybody's or a tenant's: documents, chunks, vectors, clicks."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import pytest
from psycopg.errors import CheckViolation, ForeignKeyViolation, InsufficientPrivilege
from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import DBAPIError, ProgrammingError

from pgcorpus.db.scope import Scope
from tests.logins import logged_in
from tests.tenancy import DOCUMENTED, READABLE, Tenancy, enter, secret

DOCUMENT = "INSERT INTO documents (scope, tenant_id, path) VALUES (:scope, :tenant, 'new.md')"
CHUNK = (
    "INSERT INTO chunks (scope, tenant_id, document_id, chunk_id, position, text)"
    " VALUES (:scope, :tenant, :document, 'new', 0, 'said')"
)
VECTOR = (
    "INSERT INTO documentation_embeddings (scope, chunk_id, model_name, embedding, content_hash)"
    " SELECT :scope, :chunk, 'bge-m3', CAST(array_fill(1.0, ARRAY[1024]) AS vector), ''"
)
CLICK = (
    "INSERT INTO click_feedback (query, position, chunk_scope, chunk_id, tenant_id)"
    " VALUES ('asked', 1, :scope, :chunk,"
    " CAST(nullif(current_setting('app.tenant_id', true), '') AS uuid))"
)
SHARED = {"scope": "shared", "tenant": None}

# Every way to write what all may read. None of them gives or writes a row.
WRITES = {
    "UPDATE": "UPDATE {table} SET created_at = created_at WHERE scope = 'shared' RETURNING 1",
    "DELETE": "DELETE FROM {table} WHERE scope = 'shared' RETURNING 1",
    "FOR UPDATE": "SELECT FROM {table} WHERE scope = 'shared' FOR UPDATE",
    "FOR KEY SHARE": "SELECT FROM {table} WHERE scope = 'shared' FOR KEY SHARE",
    "MERGE": "MERGE INTO {table} AS t USING (SELECT 1) AS s ON t.scope = 'shared'"
    " WHEN MATCHED THEN UPDATE SET created_at = t.created_at",
    "MERGE DELETE": "MERGE INTO {table} AS t USING (SELECT 1) AS s ON t.scope = 'shared'"
    " WHEN MATCHED THEN DELETE",
    "take": "UPDATE {table} SET scope = app_scope(),"
    " tenant_id = CAST(nullif(current_setting('app.tenant_id'), '') AS uuid)"
    " WHERE scope = 'shared' RETURNING 1",
}


@pytest.fixture
def raw(tenancy: Tenancy) -> Iterator[Connection]:
    """The application's connection, in a transaction that is rolled back."""
    with tenancy.application.engine.connect() as connection:
        yield connection


@pytest.fixture(params=["nobody", "a tenant", "a person"])
def anyone(request: pytest.FixtureRequest, tenancy: Tenancy, raw: Connection) -> Connection:
    """The same, within some scope or none."""
    scopes: dict[str, Scope | None] = {
        "nobody": None,
        "a tenant": tenancy.ours,
        "a person": tenancy.person,
    }
    enter(raw, scopes[request.param])
    return raw


def refuse(connection: Connection, statement: str, **values: Any) -> BaseException:
    """Run a statement that must fail, and return the driver's error."""
    with pytest.raises(DBAPIError) as refused, connection.begin_nested():
        connection.execute(text(statement), values)
    assert isinstance(refused.value.orig, BaseException)
    return refused.value.orig


def count_written(connection: Connection, statement: str) -> int:
    """Run a statement and take it back; MERGE is refused where others pass over a row."""
    with connection.begin_nested() as savepoint:
        try:
            return connection.execute(text(statement)).rowcount
        except ProgrammingError as error:
            if isinstance(error.orig, InsufficientPrivilege):
                return 0
            raise
        finally:
            savepoint.rollback()


def find_shared(connection: Connection, table: str) -> Any:
    """Return the key of the one row that all may read."""
    return connection.scalar(text(f"SELECT id FROM {table} WHERE scope = 'shared'"))  # noqa: S608 - of ours


@pytest.mark.parametrize("table", sorted(READABLE))
def test_what_is_shared_is_read_from_any_scope_and_from_none(
    anyone: Connection, table: str
) -> None:
    """Beside it a tenant sees its own rows, and nobody sees those of others."""
    (scope,) = anyone.scalars(text("SELECT app_scope()"))
    seen = set(anyone.scalars(text(f"SELECT DISTINCT scope FROM {table}")))  # noqa: S608 - of ours

    assert seen == {"shared"} | ({scope} if (scope or "").startswith("tenant:") else set())


@pytest.mark.parametrize("table", ["documents", "chunks"])
@pytest.mark.parametrize("kind", WRITES)
def test_no_application_writes_what_is_shared(anyone: Connection, table: str, kind: str) -> None:
    """By whatever statement; not even a lock is taken."""
    assert count_written(anyone, WRITES[kind].format(table=table)) == 0


def test_no_application_adds_to_what_is_shared(anyone: Connection) -> None:
    """By INSERT, an upsert, MERGE, or by giving away what is its own."""
    document = find_shared(anyone, "documents")
    upsert = " ON CONFLICT (scope, collection, path) DO UPDATE SET title = 'overwritten'"
    path = anyone.scalar(text("SELECT path FROM documents WHERE scope = 'shared'"))
    merged = (
        "MERGE INTO documents USING (SELECT 1) AS s ON false WHEN NOT MATCHED THEN"
        " INSERT (scope, path) VALUES ('shared', 'new.md')"
    )
    for statement in (
        DOCUMENT,
        DOCUMENT.replace("'new.md'", ":path") + upsert,
        DOCUMENT.replace("'new.md'", ":path") + " ON CONFLICT DO NOTHING",
        CHUNK,
        merged,
    ):
        error = refuse(anyone, statement, **SHARED, document=document, path=path)
        assert isinstance(error, InsufficientPrivilege), statement
    if anyone.scalar(text("SELECT count(*) FROM documents WHERE scope <> 'shared'")):
        for table in ("documents", "chunks"):
            given = f"UPDATE {table} SET scope = 'shared', tenant_id = NULL WHERE scope <> 'shared'"  # noqa: S608 - of ours
            assert isinstance(refuse(anyone, given), InsufficientPrivilege)


@pytest.mark.parametrize("scoped", [False, True])
def test_an_administrator_writes_what_is_shared(tenancy: Tenancy, scoped: bool) -> None:
    """Within a scope or without one; of tenants' rows they see those of the scope alone."""
    with logged_in(tenancy.owner, "rag_admin") as admin, admin.engine.connect() as connection:
        enter(connection, tenancy.ours if scoped else None)
        connection.execute(text(DOCUMENT), SHARED)
        changed = connection.execute(text("UPDATE chunks SET page = 1 WHERE scope = 'shared'"))
        seen = set(connection.scalars(text("SELECT scope FROM chunks")))
        gone = connection.execute(text("DELETE FROM documents WHERE scope = 'shared'"))

        assert changed.rowcount == 1
        assert seen == {"shared"} | ({str(tenancy.ours)} if scoped else set())
        assert gone.rowcount == 2
        connection.rollback()


def test_a_reader_writes_nothing(tenancy: Tenancy) -> None:
    """A login of rag_read_only reads what is shared, and its scope's."""
    with logged_in(tenancy.owner, "rag_read_only") as reader, reader.engine.connect() as connection:
        enter(connection, tenancy.ours)
        for table in DOCUMENTED:
            statement = f"DELETE FROM {table}"  # noqa: S608 - of ours
            assert isinstance(refuse(connection, statement), InsufficientPrivilege)
        assert connection.scalar(text("SELECT count(*) FROM documents")) == 2


def test_a_worker_writes_vectors_of_shared_chunks_and_removes_none(anyone: Connection) -> None:
    """It need not be an administrator; a vector is not moved to another chunk either."""
    chunk, vector = (find_shared(anyone, t) for t in ("chunks", "documentation_embeddings"))
    added = anyone.execute(text(VECTOR), {"scope": "shared", "chunk": chunk})
    again = VECTOR + (
        " ON CONFLICT (scope, chunk_id, model_name) DO UPDATE SET embedding = excluded.embedding,"
        " content_hash = excluded.content_hash"
    )
    replaced = anyone.execute(text(again), {"scope": "shared", "chunk": chunk})

    assert (added.rowcount, replaced.rowcount) == (1, 1)
    for kind in ("DELETE", "MERGE DELETE"):
        statement = WRITES[kind].format(table="documentation_embeddings")
        assert count_written(anyone, statement) == 0
    for moved in (
        "scope = app_scope()",
        "scope = app_scope(), chunk_id = gen_random_uuid()",
        "chunk_id = gen_random_uuid()",
        "model_name = 'text-embedding-3-large'",
        "id = gen_random_uuid()",
    ):
        statement = f"UPDATE documentation_embeddings SET {moved} WHERE id = :vector"  # noqa: S608 - from above
        assert isinstance(refuse(anyone, statement, vector=vector), InsufficientPrivilege)


def test_a_vector_belongs_to_a_chunk_of_its_scope(tenancy: Tenancy, raw: Connection) -> None:
    """Another scope's chunk is refused as what does not exist, whatever scope the vector claims."""
    (theirs,) = tenancy.keys("chunks", tenancy.theirs)
    nowhere = "00000000-0000-4000-8000-000000000000"
    enter(raw, tenancy.ours)
    for scope in ("shared", str(tenancy.ours)):
        told = {str(refuse(raw, VECTOR, scope=scope, chunk=key)) for key in (theirs, nowhere)}
        assert len(told) == 1
    error = refuse(raw, VECTOR, scope=str(tenancy.theirs), chunk=theirs)
    assert isinstance(error, InsufficientPrivilege)


def test_a_click_is_on_a_chunk_that_its_scope_may_read(tenancy: Tenancy, raw: Connection) -> None:
    """A shared one or its own; another's is refused as what does not exist."""
    (theirs,) = tenancy.keys("chunks", tenancy.theirs)
    (own,) = tenancy.keys("chunks", tenancy.ours)
    shared = find_shared(raw, "chunks")
    enter(raw, tenancy.ours)

    raw.execute(text(CLICK), {"scope": "shared", "chunk": shared})
    raw.execute(text(CLICK), {"scope": str(tenancy.ours), "chunk": own})
    for scope in ("shared", str(tenancy.ours)):
        error = refuse(raw, CLICK, scope=scope, chunk=theirs)
        assert isinstance(error, ForeignKeyViolation)
        assert str(theirs) not in str(error) or "is not present" in str(error)
    error = refuse(raw, CLICK, scope=str(tenancy.theirs), chunk=theirs)
    assert isinstance(error, CheckViolation)
    assert error.diag.message_detail is None


def test_clicks_and_searches_are_seen_where_they_were_made(
    tenancy: Tenancy, raw: Connection
) -> None:
    """Rows of no scope are seen without one, those of a tenant in its scope alone."""
    shared = find_shared(raw, "chunks")
    raw.execute(text(CLICK), {"scope": "shared", "chunk": shared})
    raw.execute(text("INSERT INTO search_sessions (session_id) VALUES ('anonymous')"))
    for scope, clicks in ((None, 1), (tenancy.ours, 2), (tenancy.theirs, 2), (tenancy.person, 0)):
        enter(raw, scope)
        name = "shared" if scope is None else str(scope)
        for table, rows in (("click_feedback", clicks), ("search_sessions", min(clicks, 1))):
            seen = list(raw.scalars(text(f"SELECT scope FROM {table}")))  # noqa: S608 - of ours
            assert seen == [name] * rows


def test_nothing_tells_how_often_others_opened_a_shared_chunk(
    tenancy: Tenancy, raw: Connection
) -> None:
    """Neither an estimate nor the rows that a plan of the caller's choice passed over."""
    shared = find_shared(raw, "chunks")
    enter(raw, tenancy.person)
    plans: dict[str, set[str]] = {}
    for chunk in (str(shared), "00000000-0000-4000-8000-000000000000"):
        for off in ("seqscan", "bitmapscan", "indexscan", "indexonlyscan"):
            raw.execute(text(f"SET LOCAL enable_seqscan = off; SET LOCAL enable_{off} = off"))
            told = raw.scalar(
                text(f"""
                    EXPLAIN (ANALYZE, BUFFERS OFF, TIMING OFF, SUMMARY OFF, FORMAT JSON)
                    SELECT FROM click_feedback
                    WHERE chunk_scope = 'shared' AND chunk_id = '{chunk}'
                """)
            )
            raw.execute(text(f"SET LOCAL enable_{off} = on"))
            plans.setdefault(off, set()).add(str(told).replace(chunk, "?"))

    assert {off: len(told) for off, told in plans.items() if len(told) > 1} == {}


@pytest.mark.parametrize("condition", ["{c} = '{secret}'", "{c} >= 'secret' AND {c} < 'secreu'"])
@pytest.mark.parametrize(
    ("table", "column"),
    [
        ("documents", "path"),
        ("documents", "title"),
        ("chunks", "text"),
        ("chunks", "chunk_search"),
        ("click_feedback", "query"),
        ("search_sessions", "query"),
    ],
)
def test_no_condition_is_asked_of_others_rows(
    tenancy: Tenancy, raw: Connection, table: str, column: str, condition: str
) -> None:
    """A query without a column would divide by zero where a row meets the condition."""
    if column == "chunk_search":
        condition = "{c} @@ CAST('{secret}' AS tsquery)"
    asked = condition.format(c=column, secret=secret(tenancy.theirs))
    for scope in (None, tenancy.ours):
        enter(raw, scope)
        for sample in ("", "TABLESAMPLE system (100)"):
            raw.execute(
                text(
                    f"SELECT FROM {table} {sample}"
                    f" WHERE CASE WHEN {asked} AND scope = '{tenancy.theirs}'"
                    " THEN (SELECT 1 / (SELECT 0) = 1) END"
                )
            )


def test_views_count_what_is_shared_and_own(tenancy: Tenancy, raw: Connection) -> None:
    """The coverage, and chunks with their vectors."""
    counted = text("SELECT total FROM embedding_coverage WHERE corpus = 'documentation'")
    shown = text("SELECT count(*) FROM chunks_with_embedding")
    for scope, chunks in ((None, 1), (tenancy.ours, 2), (tenancy.person, 1)):
        enter(raw, scope)
        assert raw.scalar(counted) == raw.scalar(shown) == chunks


def test_the_same_path_and_identifier_do_not_collide_between_scopes(
    tenancy: Tenancy, raw: Connection
) -> None:
    """No key tells whether another tenant, or everybody, has a document of that path."""
    (theirs,) = tenancy.keys("documents", tenancy.theirs)
    enter(raw, tenancy.theirs)
    path = raw.scalar(text("SELECT path FROM documents WHERE id = :id"), {"id": theirs})
    enter(raw, tenancy.ours)
    own = {"scope": str(tenancy.ours), "tenant": tenancy.ours.tenant_id}
    for taken in (path, "What all may read.md"):
        raw.execute(text(DOCUMENT.replace("'new.md'", ":path")), {**own, "path": taken})
    raw.execute(
        text(DOCUMENT.replace("(scope", "(id, scope").replace("(:scope", "(:id, :scope")),
        {**own, "id": theirs},
    )


def test_jobs_of_shared_chunks_have_no_scope_and_others_their_tenants(
    tenancy: Tenancy, raw: Connection
) -> None:
    """So a tenant's are hidden from others, and any worker embeds what is everybody's."""
    pending = text("SELECT scope FROM jobs WHERE payload ->> 'corpus' = 'documentation'")
    for scope, scopes in (
        (None, {None}),
        (tenancy.ours, {None, str(tenancy.ours)}),
        (tenancy.person, {None}),
    ):
        enter(raw, scope)
        assert set(raw.scalars(pending)) == scopes


HOLDING = text("""
    SELECT scope FROM chunks JOIN chunks_with_metadata(CAST(:any_of AS jsonb), :at_most)
        AS found (address) ON chunks.ctid = address ORDER BY 1
""")
COUNTED = text("SELECT count(*) FROM chunks_with_metadata(CAST(:any_of AS jsonb), :at_most)")


def say(*scopes: Scope | None) -> str:
    """Return the metadata of the scopes' chunks, as the function of searches is asked for them."""
    said = ["What all may read" if scope is None else secret(scope) for scope in scopes]
    return json.dumps([{"said": each} for each in said])


def test_metadata_are_found_in_what_is_shared_and_own_alone(
    tenancy: Tenancy, raw: Connection
) -> None:
    """Not even the number of what others have is told, and the scope is the transaction's."""
    every = say(None, tenancy.ours, tenancy.theirs)
    for scope, seen in (
        (None, ["shared"]),
        (tenancy.ours, ["shared", str(tenancy.ours)]),
        (tenancy.theirs, ["shared", str(tenancy.theirs)]),
        (tenancy.person, ["shared"]),
    ):
        enter(raw, scope)
        asked = {"any_of": every, "at_most": None}
        assert list(raw.scalars(HOLDING, asked)) == seen
        assert raw.scalar(COUNTED, asked) == len(seen)
    enter(raw, tenancy.ours)
    for scope in (tenancy.theirs, tenancy.person):
        assert raw.scalar(COUNTED, {"any_of": say(scope), "at_most": None}) == 0
    assert raw.scalar(COUNTED, {"any_of": say(tenancy.ours), "at_most": None}) == 1


@pytest.mark.parametrize(
    "claimed",
    ["tenant:{theirs}", "%", "shared", "tenant:{theirs}' OR true --", "", "TENANT:{theirs}"],
)
def test_a_claimed_scope_opens_no_metadata(tenancy: Tenancy, raw: Connection, claimed: str) -> None:
    """Neither in place of a tenant nor of a person, nor as a part of what is asked."""
    written = claimed.format(theirs=tenancy.theirs.tenant_id)
    for name in ("app.tenant_id", "app.user_id"):
        enter(raw, None)
        raw.execute(text("SELECT set_config(:n, :v, true)"), {"n": name, "v": written})
        assert raw.scalar(COUNTED, {"any_of": say(tenancy.theirs), "at_most": None}) == 0
    enter(raw, tenancy.ours)
    for asked in ({"said": secret(tenancy.theirs), "scope": written}, {written: {"said": written}}):
        assert raw.scalar(COUNTED, {"any_of": json.dumps([asked]), "at_most": None}) == 0


@pytest.mark.parametrize(
    ("any_of", "found"),
    [
        (None, 0),
        ("null", 0),
        ('"said"', 0),
        ("1e1000", 0),
        ("[]", 0),
        ("{}", 0),
        ("[{}, [], null, 1, [[]]]", 0),
        ('[{"said": {}}, {"said": []}, {"said": [[1]]}]', 0),
        ('{"said": "What all may read"}', 1),
        ('[[{"said": "What all may read"}, {"said": "nothing"}]]', 0),
        ('[{"said": null}, {"said": "%"}, {"%": "%"}, {"$.**": "@ like_regex"}]', 0),
        ("[" * 1000 + '{"said": "x"}' + "]" * 1000, 0),
        ('{"said": ' * 1000 + '"What all may read"' + "}" * 1000, 0),
        (json.dumps([{"said": "What all may read", "long": "x" * 10_000_000}]), 0),
        (json.dumps([{"said": "What all may read"}] * 100_000), 1),
        (json.dumps([{"said": f"{n}"} for n in range(2000)] + [{"said": "What all may read"}]), 0),
        (json.dumps({f"key {n}": n for n in range(20_000)} | {"said": "What all may read"}), 0),
    ],
    ids=lambda value: str(value)[:30],
)
@pytest.mark.parametrize("at_most", [None, 0, 1, 2**31 - 1])
def test_hostile_metadata_find_nothing_and_fail_nowhere(
    anyone: Connection, any_of: str | None, found: int, at_most: int | None
) -> None:
    """However deep, long, many or wrong they are: an answer depends on readable rows alone."""
    asked = {"any_of": any_of, "at_most": at_most}

    assert anyone.scalar(COUNTED, asked) == (0 if at_most == 0 else found)


def test_a_limit_below_zero_is_refused_whatever_there_is(
    tenancy: Tenancy, anyone: Connection
) -> None:
    """The error is of the argument: others' rows have no part in it."""
    limited = "SELECT chunks_with_metadata(CAST(:any_of AS jsonb), -1)"
    scopes = (None, tenancy.ours, tenancy.theirs)
    told = {str(refuse(anyone, limited, any_of=say(scope))) for scope in scopes}
    told.add(str(refuse(anyone, limited, any_of='{"said": "nothing"}')))

    assert told == {next(iter(told))}


def test_who_is_in_no_group_asks_for_no_metadata(tenancy: Tenancy) -> None:
    """The function runs as the role that searches, for members of the groups alone."""
    with logged_in(tenancy.owner, None) as stranger, stranger.engine.connect() as connection:
        asked = "SELECT chunks_with_metadata('{}', NULL)"
        assert isinstance(refuse(connection, asked), InsufficientPrivilege)


def test_a_plan_tells_nothing_of_others_metadata(tenancy: Tenancy, raw: Connection) -> None:
    """Neither estimates nor pages nor rows differ between what a tenant has and what none has."""
    enter(raw, tenancy.ours)
    told: dict[str, set[str]] = {"function": set(), "condition": set()}
    for said in (secret(tenancy.theirs), f"secret{'0' * 32}"):
        held = json.dumps({"said": said})
        for kind, asked in {
            "function": f"SELECT chunks_with_metadata('{held}', NULL)",
            "condition": f"SELECT FROM chunks WHERE metadata @> '{held}'",
        }.items():
            for _ in range(3):  # the first ones read the catalogue, too
                plan = raw.scalar(
                    text(
                        f"EXPLAIN (ANALYZE, BUFFERS, TIMING OFF, SUMMARY OFF, FORMAT JSON) {asked}"
                    )
                )
            told[kind].add(re.sub(r'"Planning": .*', "", str(plan).replace(said, "?")))

    assert {kind: len(plans) for kind, plans in told.items()} == {"function": 1, "condition": 1}


INTERLEAVED = text("""
    INSERT INTO chunks
        (tenant_id, scope, document_id, chunk_id, position, text, language, metadata)
    SELECT tenant, 'tenant:' || tenant, CAST(:own AS uuid), concat(CAST(:own AS uuid), number),
        number, 'said', 'simple',
        CASE tenant WHEN CAST(:own AS uuid) THEN '{"key": "own"}'
            ELSE jsonb_build_object('foreign', (SELECT string_agg(md5(number::text || n), '')
                FROM generate_series(1, :blocks) AS n)) END
    FROM generate_series(1, 1500) AS number,
        unnest(ARRAY[CAST(:own AS uuid), CAST(:foreign AS uuid)]) AS tenant
    ORDER BY number
""")
PAGES = text("""
    EXPLAIN (ANALYZE, BUFFERS, TIMING OFF, SUMMARY OFF, FORMAT JSON)
    SELECT chunks_with_metadata('[{"key": "own"}]', NULL)
""")


def test_little_memory_makes_no_search_read_the_metadata_of_others(
    tenancy: Tenancy, superuser: Engine
) -> None:
    """A bitmap that forgets the rows would have all of a page asked, and so tell their sizes."""
    told = []
    with superuser.connect() as connection:  # what it writes is rolled back
        connection.execute(text("ALTER TABLE chunks SET (fillfactor = 10)"))  # two rows each
        connection.execute(text("SET LOCAL session_replication_role = replica"))
        foreign = tenancy.theirs.tenant_id
        for blocks in (1, 200):
            own = uuid4()
            asked = {"own": str(own), "foreign": str(foreign), "blocks": blocks}
            connection.execute(INTERLEAVED, asked)
            connection.execute(text("SELECT gin_clean_pending_list('idx_chunks_scope_metadata')"))
            connection.execute(text("SET LOCAL work_mem = '64kB'"))
            with connection.begin_nested() as searching:
                connection.execute(text("SET LOCAL ROLE rag_read_only"))
                enter(connection, Scope.tenant(own))
                for _ in range(2):  # the first one reads the catalogue, too
                    (plan,) = connection.scalar(PAGES)
                searching.rollback()
            told.append(plan)
    few, many = (
        plan["Plan"]["Shared Hit Blocks"] + plan["Plan"]["Shared Read Blocks"] for plan in told
    )

    assert many < few + 100
