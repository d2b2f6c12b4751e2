"""Row security alone: an application's login, SQL of its own, and nothing of ours in between."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from psycopg.errors import InsufficientPrivilege
from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError, IntegrityError, ProgrammingError

from pgcorpus.db.engine import Database
from pgcorpus.db.scope import Scope
from tests.tenancy import (
    DOCUMENTED,
    KEYS,
    MEMORIES,
    READABLE,
    UNSCOPED,
    Tenancy,
    enter,
    secret,
)

NODE = (
    "INSERT INTO memory_nodes (id, tenant_id, user_id, conversation_id, sequence_index,"
    " human_content, source) VALUES (:id, :tenant, :user, 'c', 0, 'said', 'openai')"
)
MERGED = (
    "MERGE INTO memory_nodes AS t USING (SELECT 1) AS s ON false WHEN NOT MATCHED THEN"
    " INSERT (id, tenant_id, user_id, conversation_id, sequence_index, human_content, source)"
    " VALUES ('mem_x', CAST(:tenant AS uuid), CAST(:user AS uuid), 'c', 0, 'said', 'openai')"
)
USER = (
    "INSERT INTO users (tenant_id, auth_provider, external_id)"
    " VALUES (:tenant, 'p', CAST(gen_random_uuid() AS text))"
)

# What each statement kind finds, or touches, of the rows of two other scopes.
ATTACKS = {
    "SELECT": "SELECT count(*) FROM {table} WHERE {key} = ANY (:keys)",
    "SELECT FOR UPDATE": "SELECT {key} FROM {table} WHERE {key} = ANY (:keys) FOR UPDATE",
    "UPDATE": "UPDATE {table} SET {time} = {time} WHERE {key} = ANY (:keys) RETURNING 1",
    "DELETE": "DELETE FROM {table} WHERE {key} = ANY (:keys) RETURNING {key}",
    "MERGE UPDATE": (
        "MERGE INTO {table} AS t USING (SELECT unnest(:keys) AS k) AS s ON t.{key} = s.k"
        " WHEN MATCHED THEN UPDATE SET {time} = t.{time}"
    ),
    "MERGE DELETE": (
        "MERGE INTO {table} AS t USING (SELECT unnest(:keys) AS k) AS s ON t.{key} = s.k"
        " WHEN MATCHED THEN DELETE"
    ),
    "CREATE TABLE AS": (
        "CREATE TEMPORARY TABLE stolen AS SELECT * FROM {table} WHERE {key} = ANY (:keys)"
    ),
    "UPDATE FROM": (
        "UPDATE {table} AS t SET {time} = t.{time} FROM {table} AS o"
        " WHERE o.{key} = ANY (:keys) AND t.{key} = o.{key}"
    ),
}

FROM_WHERE: dict[str, Callable[[Tenancy], dict[str, str]]] = {
    "nobody": lambda _: {},
    "another tenant": lambda t: t.ours.settings,
    "a tenant's user as a person": lambda t: {"app.user_id": str(t.user_ids[t.theirs])},
    "another person": lambda t: {"app.user_id": str(t.user_ids[t.ours])},
    "a person's id as a tenant's": lambda t: {"app.tenant_id": str(t.person.user_id)},
    "a tenant's id as a person's": lambda t: {"app.user_id": str(t.theirs.tenant_id)},
    "nothing but spaces": lambda _: {"app.tenant_id": " ", "app.user_id": " "},
    "upper case": lambda t: {"app.tenant_id": str(t.theirs.tenant_id).upper()},
    "braces": lambda t: {"app.tenant_id": f"{{{t.theirs.tenant_id}}}"},
    "a pattern": lambda _: {"app.tenant_id": "%", "app.user_id": "%"},
    "a fragment of SQL": lambda _: {"app.tenant_id": "' OR true --"},
    "the whole scope": lambda t: {"app.tenant_id": str(t.theirs)},
    "a tenant and another's user": lambda t: {
        "app.tenant_id": str(t.ours.tenant_id),
        "app.user_id": str(t.person.user_id),
    },
}


@pytest.fixture
def raw(tenancy: Tenancy) -> Iterator[Connection]:
    """The application's connection, in a transaction that is rolled back."""
    with tenancy.application.engine.connect() as connection:
        yield connection


@pytest.fixture
def inside(tenancy: Tenancy, raw: Connection) -> Connection:
    """The same, within the scope of ``ours``."""
    enter(raw, tenancy.ours)
    return raw


def others(tenancy: Tenancy, table: str) -> list[Any]:
    """Keys of the rows that are not ``ours``."""
    found = tenancy.keys(table, tenancy.theirs) + tenancy.keys(table, tenancy.person)
    assert found
    return found


def count_touched(connection: Connection, statement: str, **values: Any) -> int:
    """Count the rows that a statement gave or wrote; a count counts as what it says."""
    result = connection.execute(text(statement), values)
    if statement.startswith("SELECT count"):
        return int(result.scalar_one())
    return result.rowcount


def notices(connection: Connection) -> list[str]:
    """Collect the notices of the server from now on."""
    said: list[str] = []
    driver: Any = connection.connection.driver_connection
    driver.add_notice_handler(lambda each: said.append(each.message_primary or ""))
    return said


@pytest.mark.parametrize("table", KEYS)
def test_every_scoped_table_shows_a_scope_its_own_rows(
    tenancy: Tenancy, raw: Connection, table: str
) -> None:
    """Of a tenant, of a person, and of nobody: all of them and no others."""
    shown = text(f"SELECT {KEYS[table]} FROM {table} ORDER BY 1")  # noqa: S608 - names from above
    if table in UNSCOPED | DOCUMENTED:  # those of no scope are everybody's
        shown = text(f"SELECT id FROM {table} WHERE scope <> 'shared' ORDER BY 1")  # noqa: S608 - names from above
    for scope in (tenancy.ours, tenancy.theirs, tenancy.person):
        enter(raw, scope)
        assert list(raw.scalars(shown)) == tenancy.keys(table, scope)
    enter(raw, None)
    assert list(raw.scalars(shown)) == []


@pytest.mark.parametrize("table", KEYS)
@pytest.mark.parametrize("kind", ATTACKS)
def test_no_statement_reaches_a_row_of_another_scope(
    tenancy: Tenancy, raw: Connection, table: str, kind: str
) -> None:
    """From wherever it is tried; the rows are named by their keys. The same reaches own rows."""
    time = "started_at" if table == "import_runs" else "created_at"
    statement = ATTACKS[kind].format(table=table, key=KEYS[table], time=time)
    for attacker, settings_of in FROM_WHERE.items():
        keys = others(tenancy, table)
        with raw.begin_nested() as savepoint:
            for name, value in settings_of(tenancy).items():
                raw.execute(text("SELECT set_config(:n, :v, true)"), {"n": name, "v": value})
            assert count_touched(raw, statement, keys=keys) == 0, attacker
            savepoint.rollback()

    enter(raw, tenancy.ours)
    own = tenancy.keys(table, tenancy.ours)
    if table != "tenants" or kind in {"SELECT", "CREATE TABLE AS"}:  # only administrators write
        assert count_touched(raw, statement, keys=own) == len(own)


def test_copy_gives_out_own_rows_alone_and_takes_none(tenancy: Tenancy, inside: Connection) -> None:
    """COPY TO is a query; COPY FROM would pass over the policies and is refused."""
    driver: Any = inside.connection.driver_connection
    for table in KEYS:
        with driver.cursor().copy(f"COPY {table} TO STDOUT") as copy:
            out = b"".join(copy).decode()
        assert str(tenancy.theirs.tenant_id) not in out
        assert str(tenancy.person.user_id) not in out
        assert str(tenancy.ours.tenant_id) in out
        with (
            pytest.raises(psycopg.errors.FeatureNotSupported, match="row-level security"),
            driver.transaction(),
            driver.cursor().copy(f"COPY {table} FROM STDIN"),
        ):
            pass


@pytest.mark.parametrize("victim", ["theirs", "person"])
def test_nothing_is_written_into_another_scope(
    tenancy: Tenancy, inside: Connection, victim: str
) -> None:
    """By INSERT, INSERT ... SELECT, MERGE, or by giving away what is one's own.

    Row security refuses another's scope, a constraint the own one with another's tenant or user.
    """
    scope: Scope = getattr(tenancy, victim)
    values = {"tenant": scope.tenant_id, "user": scope.user_id, "scope": str(scope), "id": "mem_x"}
    of_own = "SELECT {} FROM memory_nodes LIMIT 1"
    node = "conversation_id, sequence_index, human_content, source"
    unscoped = (
        NODE,
        f"INSERT INTO memory_nodes (id, tenant_id, user_id, {node}) "
        + of_own.format(f"'mem_x', CAST(:tenant AS uuid), CAST(:user AS uuid), {node}"),
        MERGED,
        "UPDATE memory_nodes SET tenant_id = :tenant, user_id = :user",
        "UPDATE episodic_memories SET tenant_id = :tenant, user_id = :user",
    )
    for statement in unscoped:
        with (
            pytest.raises(IntegrityError, match="scope_of_owner") as inconsistent,
            inside.begin_nested(),
        ):
            inside.execute(text(statement), values)
        assert inconsistent.value.orig.diag.message_detail is None
    for statement in (
        NODE.replace("(id,", "(scope, id,").replace("(:id,", "(:scope, :id,"),
        MERGED.replace("(id,", "(scope, id,").replace(
            "('mem_x',", "(CAST(:scope AS text), 'mem_x',"
        ),
        "UPDATE memory_nodes SET tenant_id = :tenant, user_id = :user, scope = :scope",
        "UPDATE episodic_memories SET tenant_id = :tenant, user_id = :user, scope = :scope",
        "UPDATE memory_nodes SET scope = :scope",
        "UPDATE memory_embeddings SET scope = :scope",
        "UPDATE episode_embeddings SET scope = :scope",
        "INSERT INTO jobs (kind, scope) VALUES ('embed', :scope)",
        "INSERT INTO import_runs (corpus, scope) VALUES ('memory', :scope)",
        "UPDATE import_rejects SET scope = :scope WHERE scope IS NOT NULL",
        "UPDATE jobs SET scope = :scope WHERE scope IS NOT NULL",
        USER,
        "UPDATE users SET tenant_id = :tenant",
        "INSERT INTO tenants (id, name, slug) VALUES (gen_random_uuid(), 'x', 'x')",
    ):
        if "users" in statement and scope.tenant_id is None:
            continue  # whoever has no tenant is a scope of their own
        with pytest.raises(ProgrammingError) as refused, inside.begin_nested():
            inside.execute(text(statement), values)
        assert isinstance(refused.value.orig, InsufficientPrivilege), statement
        assert refused.value.orig.diag.message_detail is None


def test_nobody_writes_without_a_scope(tenancy: Tenancy, raw: Connection) -> None:
    """Not even what would be a known tenant's."""
    values = {"id": "mem_x", "tenant": tenancy.ours.tenant_id, "user": None}
    with pytest.raises(ProgrammingError, match="row-level security policy"):
        raw.execute(text(NODE), values)


def test_truncate_and_schema_changes_are_refused(inside: Connection) -> None:
    """They know no rows, and so no policy."""
    for table in KEYS:
        for statement in (
            f"TRUNCATE {table}",
            f"ALTER TABLE {table} DISABLE ROW LEVEL SECURITY",
            f"ALTER TABLE {table} NO FORCE ROW LEVEL SECURITY",
            f"CREATE POLICY open ON {table} USING (true)",
            f"CREATE TRIGGER spy AFTER INSERT ON {table} EXECUTE FUNCTION set_updated_at()",
            f"CREATE INDEX spy ON {table} ((1))",
            f"ANALYZE {table}",
        ):
            said = notices(inside)
            with inside.begin_nested() as savepoint:
                try:
                    inside.execute(text(statement))
                except ProgrammingError as error:
                    assert isinstance(error.orig, InsufficientPrivilege)  # noqa: PT017 - else below
                else:
                    refused = ("permission denied", "only table or database owner can")  # until 15
                    assert any(words in each for each in said for words in refused), statement
                savepoint.rollback()


def test_a_role_that_switches_row_security_off_gets_an_error(inside: Connection) -> None:
    """``row_security = off`` is for dumps: it refuses instead of filtering."""
    inside.execute(text("SET LOCAL row_security = off"))
    with pytest.raises(ProgrammingError, match="row-level security policy"):
        inside.execute(text("SELECT count(*) FROM memory_nodes"))


def test_the_owner_is_bound_as_well(tenancy: Tenancy, unbound: Database) -> None:
    """FORCE: without a scope an owner that is no superuser sees all jobs, and what is shared."""
    with unbound.engine.connect() as connection:
        counted = {table: f"SELECT count(*) FROM {table}" for table in UNSCOPED | READABLE}  # noqa: S608 - names from above
        for table in READABLE:
            counted[table] += " WHERE scope = 'shared'"
        rows = {table: connection.scalar(text(count)) for table, count in counted.items()}
        connection.execute(text("CREATE ROLE test_owner_of_memories"))
        connection.execute(text("GRANT ALL ON SCHEMA public TO test_owner_of_memories"))
        for table in KEYS:
            connection.execute(text(f"ALTER TABLE {table} OWNER TO test_owner_of_memories"))
        connection.execute(text("CREATE ROLE test_deputy IN ROLE test_owner_of_memories"))
        for role in ("test_deputy", "test_owner_of_memories"):
            connection.execute(text(f"SET LOCAL ROLE {role}"))
            for table in KEYS:
                seen = connection.scalar(text(f"SELECT count(*) FROM {table}"))  # noqa: S608 - names from above
                assert seen == rows.get(table, 0), table
        enter(connection, tenancy.ours)
        assert connection.scalar(text("SELECT count(*) FROM memory_nodes")) == MEMORIES


def test_views_show_a_scope_what_is_its_own(tenancy: Tenancy, inside: Connection) -> None:
    """They ask with the rights of whoever reads them, also when they count."""
    seen = inside.execute(text("SELECT v::text FROM memory_nodes_with_embedding AS v")).scalars()
    rows = list(seen)
    counted = text("SELECT total FROM embedding_coverage WHERE corpus = :corpus")

    assert len(rows) == MEMORIES
    assert all(secret(tenancy.ours) in row for row in rows)
    assert inside.scalar(counted, {"corpus": "memory"}) == MEMORIES
    assert inside.scalar(counted, {"corpus": "episodes"}) == 1


def test_no_view_takes_the_rights_of_its_owner(inside: Connection) -> None:
    """Whatever view comes to read a scoped table, and materialised ones cannot be guarded."""
    unguarded = text("""
        SELECT DISTINCT v.relname FROM pg_rewrite
        JOIN pg_class AS v ON v.oid = ev_class
        JOIN pg_depend ON classid = 'pg_rewrite'::regclass AND objid = pg_rewrite.oid
        JOIN pg_class AS t ON refclassid = 'pg_class'::regclass AND t.oid = refobjid
        WHERE t.relrowsecurity AND v.relkind IN ('v', 'm')
            AND NOT coalesce(v.reloptions @> ARRAY['security_invoker=true'], false)
    """)
    assert list(inside.scalars(unguarded)) == []


def test_a_function_that_prints_what_it_is_given_is_given_own_rows_alone(
    tenancy: Tenancy, inside: Connection
) -> None:
    """However cheap it claims to be, and in whatever clause: policies come first."""
    inside.execute(
        text("""
            CREATE FUNCTION pg_temp.told(said text) RETURNS boolean LANGUAGE plpgsql
            COST 0.0000001 AS $$ BEGIN RAISE NOTICE '%', said; RETURN true; END $$
        """)
    )
    said = notices(inside)
    for table in KEYS:
        for clause in (
            "SELECT FROM {} AS t WHERE pg_temp.told(t::text)",
            "SELECT FROM {} AS t WHERE pg_temp.told(t::text) AND t IS NOT NULL",
            "SELECT FROM {0} AS t JOIN {0} AS o ON pg_temp.told(o::text)",
            "SELECT count(*) FILTER (WHERE pg_temp.told(t::text)) FROM {} AS t",
            "SELECT FROM {} AS t ORDER BY pg_temp.told(t::text)",
            "SELECT FROM (SELECT t::text AS row FROM {} AS t) AS s WHERE pg_temp.told(s.row)",
        ):
            inside.execute(text(clause.format(table)))
    inside.execute(
        text(
            "SELECT FROM memory_nodes WHERE pg_temp.told(human_content)"
            " AND memory_search @@ CAST(:word AS tsquery)"
        ),
        {"word": secret(tenancy.theirs)},
    )

    heard = "\n".join(said)
    assert secret(tenancy.ours) in heard
    for scope in (tenancy.theirs, tenancy.person):
        assert secret(scope) not in heard
        assert str(scope.tenant_id or scope.user_id) not in heard


@pytest.mark.parametrize(
    "condition",
    [
        "CAST(human_content AS integer) > 0",
        "1 / (sequence_index - sequence_index) > 0",
        "human_content ~ ('(' || human_content)",
        "CAST(scope AS uuid) IS NULL",
        "memory_search @@ CAST('&' || human_content AS tsquery)",
    ],
)
def test_an_error_tells_of_own_rows_alone(
    tenancy: Tenancy, inside: Connection, condition: str
) -> None:
    """A condition that fails on every row quotes the value that it failed on."""
    for clause in (condition, f"memory_search @@ '{secret(tenancy.theirs)}' AND {condition}"):
        # Where no row is looked at, nothing else fails.
        failing = "WITH o AS (SELECT count(*) AS n FROM memory_nodes WHERE {}) SELECT n / 0 FROM o"
        with pytest.raises(DBAPIError) as failed, inside.begin_nested():
            inside.execute(text(failing.format(clause)))
        assert secret(tenancy.theirs) not in str(failed.value.orig)
        assert secret(tenancy.person) not in str(failed.value.orig)


def test_the_same_id_in_two_scopes_does_not_collide(tenancy: Tenancy, inside: Connection) -> None:
    """Only the own scope's ids are taken, and ON CONFLICT updates own rows."""
    own = {"tenant": tenancy.ours.tenant_id, "user": None}
    with tenancy.owner.engine.begin() as owner:
        enter(owner, tenancy.theirs)
        owner.execute(
            text(NODE), {"id": "mem_theirs", "tenant": tenancy.theirs.tenant_id, "user": None}
        )
    inside.execute(text(NODE), own | {"id": "mem_theirs"})
    with pytest.raises(IntegrityError) as taken, inside.begin_nested():
        inside.execute(text(NODE), own | {"id": "mem_theirs"})
    on_conflict = " ON CONFLICT (scope, id) DO UPDATE SET human_content = 'overwritten'"
    inside.execute(text(NODE + on_conflict), own | {"id": "mem_theirs"})
    enter(inside, tenancy.theirs)
    theirs = inside.scalar(text("SELECT human_content FROM memory_nodes WHERE id = 'mem_theirs'"))
    with tenancy.owner.engine.begin() as owner:
        enter(owner, tenancy.theirs)
        deleted = owner.execute(text("DELETE FROM memory_nodes WHERE id = 'mem_theirs'"))

    assert isinstance(taken.value.orig, psycopg.errors.UniqueViolation)
    assert taken.value.orig.diag.message_detail is None
    assert theirs == "said"
    assert deleted.rowcount == 1


def test_a_refusal_does_not_tell_what_exists_elsewhere(
    tenancy: Tenancy, inside: Connection
) -> None:
    """Another tenant's user, memory or episode is refused as one that is nobody's."""
    node = text(NODE)
    vector = text("""
        INSERT INTO memory_embeddings (node_key, scope, model_name, embedding, content_hash)
        SELECT CAST(:key AS uuid), :scope, 'bge-m3', embedding, ''
        FROM (SELECT CAST(array_fill(1.0, ARRAY[1024]) AS vector) AS embedding) AS one
    """)
    user = {"id": "mem_x", "tenant": tenancy.ours.tenant_id}
    (theirs, *_) = tenancy.keys("memory_nodes", tenancy.theirs)
    own = {"scope": str(tenancy.ours)}
    nowhere = "00000000-0000-4000-8000-000000000000"
    told = []
    for statement, values in (
        (node, user | {"user": tenancy.user_ids[tenancy.theirs]}),
        (node, user | {"user": tenancy.person.user_id}),
        (node, user | {"user": nowhere}),
        (vector, own | {"key": theirs}),
        (vector, own | {"key": nowhere}),
    ):
        with pytest.raises(IntegrityError) as refused, inside.begin_nested():
            inside.execute(statement, values)
        told.append(str(refused.value.orig))

    assert len(set(told[:3])) == 1
    assert len(set(told[3:])) == 1
    assert all("Key is not present" in each for each in told)


def test_a_check_quotes_no_row(tenancy: Tenancy, inside: Connection) -> None:
    """Under row security PostgreSQL leaves the failing row out, which would go to logs."""
    with pytest.raises(IntegrityError) as refused:
        inside.execute(text("UPDATE memory_nodes SET complexity = 'none'"))

    assert isinstance(refused.value.orig, psycopg.errors.CheckViolation)
    assert secret(tenancy.ours) not in str(refused.value.orig)


def test_statistics_are_told_to_nobody(tenancy: Tenancy, inside: Connection) -> None:
    """Samples of ANALYZE are of all scopes: neither views nor our function give them out."""
    for view in ("pg_stats", "pg_stats_ext", "pg_stats_ext_exprs"):
        hidden = text(f"SELECT count(*) FROM {view} WHERE tablename = ANY (:tables)")  # noqa: S608 - from above
        assert inside.scalar(hidden, {"tables": list(KEYS)}) == 0
    with pytest.raises(ProgrammingError, match="permission denied"), inside.begin_nested():
        inside.execute(text("SELECT FROM pg_statistic"))
    for table, words in (
        ("memory_nodes", "memory_search"),
        ("episodic_memories", "episode_search"),
        ("chunks", "chunk_search"),
        ("idx_chunks_scope_words", "scope_keys"),
        ("idx_chunks_scope_trigrams", "scope_keys"),
        ("idx_chunks_scope_metadata", "scope_keys"),
    ):
        known = inside.execute(
            text("SELECT * FROM lexeme_statistics(CAST(:t AS regclass), :w, 'language', NULL)"),
            {"t": table, "w": words},
        ).one()
        assert not any(known)


def test_of_texts_only_names_of_ours_are_sampled(tenancy: Tenancy) -> None:
    """In tables that row security guards, and their indexes: a new column must be looked at.

    Operators that are leakproof use a sample whoever asks: those of text, hashes and words.
    """
    with tenancy.owner.unit_of_work() as work:
        sampled = work.session.scalars(
            text("""
                SELECT attname FROM pg_attribute JOIN pg_class ON pg_class.oid = attrelid
                LEFT JOIN pg_index ON indexrelid = attrelid
                WHERE coalesce(indrelid, attrelid) IN (
                        SELECT oid FROM pg_class WHERE relrowsecurity)
                    AND (indkey IS NULL OR indkey[attnum - 1] = 0)
                    AND attnum > 0 AND attstattarget IS DISTINCT FROM 0
                    AND atttypid::regtype = ANY (CAST(:types AS regtype[]))
            """),
            {"types": ["text", "varchar", "text[]", "bytea", "tsvector"]},
        )
        assert set(sampled) == {
            *("scope", "model_name", "auth_provider"),
            *("intent_type", "complexity", "emotional_valence", "urgency", "conversation_mode"),
            *("dominant_intent", "urgency_max"),
            *("kind", "status", "worker_id", "corpus", "field", "rule"),
            "coalesce",  # the corpus of a job
            "tsvector_to_array",  # of what is everybody's alone
        }


@pytest.mark.parametrize(
    ("table", "column"),
    [
        ("tenants", "name"),
        ("users", "email"),
        ("users", "display_name"),
        ("memory_nodes", "human_content"),
        ("memory_nodes", "assistant_content"),
        ("memory_nodes", "human_content || ' ' || assistant_content"),
        ("memory_nodes", "cluster_label"),
        ("memory_embeddings", "encode(content_hash, 'hex')"),
        ("episodic_memories", "title"),
        ("episodic_memories", "content"),
        ("documents", "path"),
        ("documents", "title"),
        ("documents", "collection"),
        ("documents", "hash"),
        ("documents", "CAST(metadata AS text)"),
        ("chunks", "text"),
        ("chunks", "heading"),
        ("chunks", "chunk_id"),
        ("chunks", "chunk_text(heading_path, text)"),
        ("click_feedback", "query"),
        ("click_feedback", "left(query, 200)"),
        ("click_feedback", "user_id"),
        ("search_sessions", "query"),
        ("search_sessions", "session_id"),
    ],
)
def test_estimates_tell_nothing_of_what_others_say(
    inside: Connection, table: str, column: str
) -> None:
    """Of texts no statistics are kept, or EXPLAIN would tell how many rows are above a guess."""
    estimated = set()
    for guess in ("a", "secret", "secret8", "z"):
        for condition in (">=", "<", "=", "LIKE", "%>"):
            plan = inside.scalar(
                text(
                    f"EXPLAIN (FORMAT JSON) SELECT FROM {table} WHERE {column} {condition} :guess"
                ),
                {"guess": guess},
            )
            estimated.add((condition, plan[0]["Plan"]["Plan Rows"]))

    assert len(estimated) <= 5, "one for each comparison, whatever the guess"


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ("memory_nodes", "memory_search"),
        ("episodic_memories", "episode_search"),
        ("chunks", "chunk_search"),
    ],
)
def test_estimates_tell_nothing_of_the_words_of_others(
    inside: Connection, table: str, words: str
) -> None:
    """Nor how many rows have one."""
    explained = text(
        f"EXPLAIN (FORMAT JSON) SELECT FROM {table} WHERE {words} @@ plainto_tsquery(:guess)"
    )
    plans = [inside.scalar(explained, {"guess": guess}) for guess in ("secret", "said", "absent")]

    assert len({plan[0]["Plan"]["Plan Rows"] for plan in plans}) == 1


def test_definer_functions_are_known(inside: Connection) -> None:
    """They run as the owner, whom nothing may bind: each new one is to be looked at.

    Those of the queue write own jobs and give out nothing; statistics are refused above. A tenant
    is made by its name alone, and old durations of searches are moved and deleted by their age.
    """
    found = inside.scalars(
        text("""
            SELECT proname FROM pg_proc AS p
            WHERE prosecdef AND pronamespace = current_schema()::regnamespace
                AND has_function_privilege(oid, 'EXECUTE')
                AND NOT EXISTS (SELECT FROM pg_depend WHERE objid = p.oid AND deptype = 'e')
        """)
    )
    of_searches = {
        f"{table}_{kind}"
        for table in ("memory_nodes", "episodic_memories", "chunks")
        for kind in ("with_words", "alike")
    }
    of_logs = {"archive_searches", "delete_archived_searches"}
    others = {"lexeme_statistics", "chunks_with_metadata", "scope_has_ceiling", "sign_up_tenant"}
    others |= {"merge_pending_entries"}  # it returns nothing
    assert set(found) == others | of_logs | of_searches


def test_functions_see_what_their_caller_sees(tenancy: Tenancy, inside: Connection) -> None:
    """The search's look at pending jobs names those of the scope alone."""
    asked = text("SELECT passages_to_embed('memory:' || CAST(:scope AS text), 1000)")
    pending = {
        scope: list(inside.scalars(asked, {"scope": str(scope)}))
        for scope in (tenancy.ours, tenancy.theirs)
    }

    assert len(pending[tenancy.ours]) == MEMORIES
    assert pending[tenancy.theirs] == []


def test_a_scope_that_changes_in_a_statement_is_the_next_ones(
    tenancy: Tenancy, inside: Connection
) -> None:
    """A cursor goes on in the scope that it was opened in; what is asked anew is of the new one."""
    inside.execute(text("DECLARE own CURSOR FOR SELECT scope FROM memory_nodes"))
    enter(inside, tenancy.theirs)
    seen = set(inside.scalars(text("SELECT scope FROM memory_nodes")))

    assert seen == {str(tenancy.theirs)}
    fetched = set(inside.scalars(text("FETCH ALL FROM own")))
    assert len(fetched) <= 1, "rows of two scopes in one answer"


def test_a_plan_made_in_one_scope_serves_another(tenancy: Tenancy, raw: Connection) -> None:
    """Prepared once, generic or not: the scope is read when it runs."""
    raw.execute(text("PREPARE own AS SELECT scope FROM memory_nodes WHERE sequence_index >= 0"))
    for mode in ("force_generic_plan", "force_custom_plan", "auto"):
        raw.execute(text(f"SET LOCAL plan_cache_mode = {mode}"))
        for scope in (tenancy.ours, tenancy.theirs, None, tenancy.person) * 3:
            enter(raw, scope)
            seen = list(raw.scalars(text("EXECUTE own")))
            assert seen == ([] if scope is None else [str(scope)] * MEMORIES)
    raw.execute(text("DEALLOCATE own"))


def test_sequences_belong_to_no_scope(inside: Connection) -> None:
    """Keys of memories are random: none of their tables counts anything."""
    counted = inside.scalars(
        text("""
            SELECT DISTINCT refobjid::regclass::text FROM pg_depend
            JOIN pg_class AS s ON s.oid = objid AND relkind = 'S'
            WHERE refobjid = ANY (CAST(:tables AS regclass[]))
        """),
        {"tables": sorted(KEYS.keys() - UNSCOPED)},
    )
    assert list(counted) == []


def test_jobs_are_announced_without_a_word(tenancy: Tenancy) -> None:
    """Whoever listens hears that there is work, and not whose."""
    url = tenancy.owner.url.set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(url, autocommit=True) as listener:
        listener.execute("LISTEN pgcorpus_jobs")
        with tenancy.application.engine.begin() as connection:
            enter(connection, tenancy.ours)
            connection.execute(text("UPDATE memory_nodes SET human_content = human_content || '!'"))
            connection.execute(
                text(NODE), {"id": "mem_n", "tenant": tenancy.ours.tenant_id, "user": None}
            )
        (heard,) = listener.notifies(timeout=5, stop_after=1)
    with tenancy.owner.engine.begin() as connection:
        enter(connection, tenancy.ours)
        connection.execute(text("DELETE FROM memory_nodes WHERE id = 'mem_n'"))

    assert heard.payload == ""


def test_what_is_forgotten_takes_its_jobs_along_and_no_others(
    tenancy: Tenancy, inside: Connection
) -> None:
    """The trigger runs as the owner; it deletes the jobs of the rows that were deleted."""
    inside.execute(text("DELETE FROM memory_nodes"))

    left = "SELECT count(*) FROM jobs WHERE scope IS NOT NULL AND dedupe_key LIKE 'embed:memory:%'"
    assert inside.scalar(text(left)) == 0
    enter(inside, tenancy.theirs)
    assert inside.scalar(text(left)) == MEMORIES
