"""Verifying isolation: nothing crosses, and whatever guard is taken away is missed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy import URL, event, text

from pgcorpus.db.engine import Database
from pgcorpus.db.errors import NotFound, NotPermitted
from pgcorpus.db.repositories.operations.inference import Timing, compare_times
from pgcorpus.db.repositories.operations.isolation import REMOVALS, WRITES
from pgcorpus.services.ops import isolation
from pgcorpus.services.ops.inference import confirm
from pgcorpus.services.ops.isolation import IsolationReport, IsolationService
from tests.command import PGCORPUS, run_command
from tests.conftest import Databases
from tests.logins import logged_in
from tests.tenancy import KEYS, Tenancy, settled

pytestmark = pytest.mark.superuser

PATIENCE_SECONDS = 900.0
"""Nothing is left out on a slow machine."""


@pytest.fixture(scope="module")
def tenancy(databases: Databases, migrated: URL) -> Iterator[Tenancy]:
    """A database with rows of tenants, which stay as they are."""
    with databases.opened(migrated.database or "") as database, settled(database) as tenancy:
        yield tenancy


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer intruders and calls: what guard is missed does not depend on how many there are."""
    intruders, few = isolation._Parties.intruders, {"nobody", "another tenant", "another person"}
    monkeypatch.setattr(
        isolation._Parties, "intruders", lambda p: (e for e in intruders(p) if e.name in few)
    )
    monkeypatch.setattr("pgcorpus.db.repositories.operations.isolation.MOST_CALLS", 4)
    monkeypatch.setattr("pgcorpus.db.repositories.operations.isolation.HOSTILE", {})


def verify_broken(
    database: Database, script: str, monkeypatch: pytest.MonkeyPatch, *concerned: str
) -> IsolationReport:
    """Verify after a script has taken a guard away, in the same transaction.

    Args:
        database: Which.
        script: Statements, between two semicolons each.
        monkeypatch: For the script, and for what is not concerned.
        concerned: Tables that are attacked, and ``searches``.
    """
    run = isolation._Verification
    guards, attack, search = run._look_at_guards, run._attack, run._search

    def break_first(verification: isolation._Verification) -> None:
        for statement in script.split(";;"):
            verification._isolation.session.execute(text(statement))
        verification._tables = verification._isolation.list_guarded()
        guards(verification)

    monkeypatch.setattr(run, "_look_at_guards", break_first)
    monkeypatch.setattr(run, "_attack", lambda v, t: t.name in concerned and attack(v, t))
    monkeypatch.setattr(run, "_search", lambda v: "searches" in concerned and search(v))
    if "secrets" not in concerned:
        monkeypatch.setattr(run, "_infer", lambda _: None)
    return IsolationService(database).verify(seconds=PATIENCE_SECONDS)


def list_crossed(report: IsolationReport) -> set[tuple[str, str]]:
    """List where rows crossed."""
    return {(each.target, each.kind) for each in report.attacks if each.crossed}


def missing(report: IsolationReport) -> set[tuple[str, str]]:
    """List the guards that are missing."""
    return {(each.layer, each.subject) for each in report.layers if each.status == "failure"}


def test_no_row_crosses_and_nothing_is_kept(tenancy: Tenancy) -> None:
    """Every table is attacked in every way, every corpus searched in every mode."""
    before = tenancy.contents()
    told: list[tuple[str, int, int]] = []

    report = IsolationService(tenancy.owner).verify(
        tell=lambda *each: told.append(each), seconds=PATIENCE_SECONDS
    )

    assert [each for each in report.layers if each.status == "failure"] == []
    assert [each for each in report.attacks if each.crossed] == []
    assert report.isolated
    assert report.untried == 0
    assert report.tried > 1500
    kinds = {each.kind for each in report.attacks}
    attacked = {(each.target, each.kind) for each in report.attacks}
    inferred = {each for each in kinds if each.startswith("by ")}
    searched = {each for each in kinds if each.endswith(" search")}
    shared = {each for each in kinds if "share" in each}
    statements = kinds - {"told the same", "context", "refer", *inferred, *searched, *shared}
    assert {"SELECT", "UPDATE", "DELETE", "INSERT", "MERGE", "COPY TO", "TRUNCATE"} <= statements
    assert attacked >= {(t, k) for t in KEYS for k in statements} - {("tenants", "give away")}
    assert attacked >= {
        (t, k) for t in KEYS for k in ("by errors", "by what runs early", "by EXPLAIN", "by time")
    }
    assert attacked >= {
        *((t, f"{k} of shared") for t in ("documents", "chunks") for k in WRITES),
        *(("documentation_embeddings", f"{k} of shared") for k in REMOVALS),
        *((t, k) for t in ("documents", "chunks") for k in ("share", "take shared")),
        ("click_feedback", "refer"),
        ("memory_nodes", "by keys"),
        ("documents", "by keys"),
        ("functions", "by calls"),
        ("memory", "by time"),
        ("episodes", "by time"),
        ("documentation", "by time"),
        ("documentation", "context"),
    }
    for corpus in ("memory", "episodes", "documentation"):
        for mode in ("vector", "text", "fuzzy", "hybrid"):
            assert (corpus, f"{mode} search") in attacked
    assert told[-1][1] == told[-1][2]
    assert tenancy.contents() == before


@pytest.mark.usefixtures("hasty")
def test_a_login_is_verified_as_itself(tenancy: Tenancy) -> None:
    """With its own rights and memberships, not those of its group."""
    login = tenancy.application.url.username or ""

    report = IsolationService(tenancy.owner).verify(login, seconds=PATIENCE_SECONDS)

    assert (report.role, report.isolated) == (login, True)


BREAKS = {
    "ALTER TABLE memory_nodes DISABLE ROW LEVEL SECURITY": (
        {("memory_nodes", "SELECT"), ("memory_nodes", "INSERT"), ("memory_nodes", "COPY FROM")},
        {("table", "memory_nodes")},
    ),
    "ALTER TABLE users NO FORCE ROW LEVEL SECURITY": (set(), {("table", "users")}),
    "ALTER TABLE import_runs NO FORCE ROW LEVEL SECURITY": (set(), {("table", "import_runs")}),
    "ALTER TABLE jobs DISABLE ROW LEVEL SECURITY": ({("jobs", "DELETE")}, {("table", "jobs")}),
    "DROP POLICY own_scope ON memory_embeddings;;"
    "CREATE POLICY own_scope ON memory_embeddings USING (true)": (
        {("memory_embeddings", "UPDATE"), ("memory_embeddings", "COPY TO")},
        {("table", "memory_embeddings")},
    ),
    "DROP POLICY own_scope ON episodic_memories": (set(), {("rows", "episodic_memories")}),
    "CREATE POLICY more ON episodic_memories FOR SELECT USING (app_scope() IS NOT NULL)": (
        {("episodic_memories", "SELECT"), ("episodic_memories", "function")},
        set(),
    ),
    "CREATE POLICY more ON memory_nodes FOR INSERT WITH CHECK (app_scope() IS NOT NULL)": (
        {("memory_nodes", "INSERT")},
        set(),
    ),
    "ALTER VIEW memory_nodes_with_embedding SET (security_invoker = false)": (
        {("memory_nodes_with_embedding", "told the same")},
        {("view", "memory_nodes_with_embedding")},
    ),
    "CREATE VIEW counted AS SELECT count(*) FROM memory_nodes;;GRANT SELECT ON counted TO PUBLIC": (
        {("counted", "told the same")},
        {("view", "counted")},
    ),
    "CREATE FUNCTION leak() RETURNS bigint LANGUAGE sql SECURITY DEFINER"
    " AS 'SELECT count(*) FROM memory_nodes'": (
        {("leak", "told the same")},
        {("function", "leak")},
    ),
    "CREATE FUNCTION leak(t regclass) RETURNS bigint LANGUAGE plpgsql SECURITY DEFINER"
    " SET search_path = public AS $$ DECLARE n bigint; BEGIN EXECUTE 'SELECT count(*) FROM ' || t"
    " INTO n; RETURN n; END $$": ({("leak", "told the same")}, set()),
    "CREATE FUNCTION cheap(text) RETURNS boolean LANGUAGE sql IMMUTABLE LEAKPROOF"
    " AS 'SELECT true'": (set(), {("function", "cheap(text)")}),
    "CREATE OR REPLACE FUNCTION app_scope() RETURNS text LANGUAGE sql STABLE"
    " AS 'SELECT scope FROM users ORDER BY created_at DESC, scope LIMIT 1'": (None, None),
    "ALTER TABLE memory_nodes DROP CONSTRAINT scope_of_owner": (
        {("memory_nodes", "give away")},
        set(),
    ),
    "CREATE TABLE drafts (id uuid PRIMARY KEY, tenant_id uuid, said text)": (
        set(),
        {("table", "drafts"), ("rows", "drafts")},
    ),
    "CREATE TABLE said (words text);;GRANT SELECT ON said TO rag_read_write;;"
    "CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER"
    " SET search_path = public AS $$ BEGIN INSERT INTO said VALUES (NEW.human_content);"
    " RETURN NULL; END $$;;"
    "CREATE TRIGGER note AFTER INSERT ON memory_nodes FOR EACH ROW EXECUTE FUNCTION note()": (
        set(),
        {("table", "said")},
    ),
    "ALTER TABLE chunks DISABLE ROW LEVEL SECURITY": (
        {("chunks", "SELECT"), ("chunks", "UPDATE of shared"), ("chunks", "DELETE of shared")},
        {("table", "chunks")},
    ),
    "CREATE POLICY more ON documents FOR INSERT"
    " WITH CHECK (scope = 'shared' OR app_scope() = '')": (
        {("documents", "INSERT of shared")},
        set(),
    ),
    "CREATE POLICY more ON documents FOR UPDATE USING (scope = 'shared' OR app_scope() = '')"
    " WITH CHECK (scope = app_scope())": (
        {("documents", "FOR UPDATE of shared")},
        set(),
    ),
    "CREATE POLICY more ON documentation_embeddings FOR DELETE"
    " USING (scope = 'shared' OR app_scope() = '')": (
        {("documentation_embeddings", "MERGE DELETE of shared")},
        set(),
    ),
    "ALTER TABLE click_feedback DROP CONSTRAINT readable_chunk": (
        {("click_feedback", "refer")},
        set(),
    ),
    "DROP POLICY own_scope ON search_sessions;;CREATE POLICY own_scope ON search_sessions"
    " USING (scope <> app_scope() OR true)": ({("search_sessions", "SELECT")}, set()),
    "ALTER VIEW chunks_with_embedding SET (security_invoker = false)": (
        {("chunks_with_embedding", "told the same")},
        {("view", "chunks_with_embedding")},
    ),
    "GRANT TRUNCATE ON memory_nodes TO rag_read_write": ({("memory_nodes", "TRUNCATE")}, set()),
    "ALTER ROLE rag_read_write BYPASSRLS": (
        {("memory_nodes", "SELECT"), ("users", "DELETE")},
        {("role", "rag_read_write")},
    ),
    "GRANT rag_admin TO rag_read_write": ({("users", "SELECT"), ("tenants", "UPDATE")}, set()),
    "ALTER TABLE memory_nodes OWNER TO rag_read_write": (set(), {("role", "rag_read_write")}),
}


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("script", BREAKS, ids=lambda script: script[:60])
def test_a_guard_that_is_taken_away_is_missed(
    tenancy: Tenancy, monkeypatch: pytest.MonkeyPatch, script: str
) -> None:
    """By what crosses, by its absence, or by both."""
    through, guards = BREAKS[script]
    before = tenancy.contents()

    concerned = {target for target, _ in through or ()} | {subject for _, subject in guards or ()}
    report = verify_broken(tenancy.owner, script, monkeypatch, *(concerned or {"memory_nodes"}))

    assert not report.isolated
    assert list_crossed(report) >= (through or set())
    assert missing(report) >= (guards or set())
    assert tenancy.contents() == before


SEARCHER = """
    CREATE ROLE rehearsal_search NOLOGIN;;
    CREATE FUNCTION found(words text[]) RETURNS SETOF uuid LANGUAGE sql SECURITY DEFINER
        SET search_path = public, pg_temp
        AS 'SELECT key FROM memory_nodes
            WHERE scope = app_scope() AND human_content = ANY (words)';;
    ALTER FUNCTION found OWNER TO rehearsal_search;;
    GRANT SELECT ON memory_nodes TO rehearsal_search;;
    CREATE POLICY rehearsed ON memory_nodes TO rehearsal_search USING (true)
"""

HOLES = {
    "DROP POLICY own_scope ON memory_nodes;;"
    "CREATE POLICY own_scope ON memory_nodes USING (scope = app_scope());;"
    "ALTER FUNCTION ts_match_vq(tsvector, tsquery) LEAKPROOF": (
        {("memory_nodes", "by what runs early")},
        {("function", "ts_match_vq(tsvector,tsquery)")},
    ),
    "ALTER FUNCTION word_similarity_op(text, text) LEAKPROOF": (
        set(),
        {("function", "word_similarity_op(text,text)")},
    ),
    "ALTER FUNCTION textcat(text, text) LEAKPROOF": (set(), {("function", "textcat(text,text)")}),
    "ALTER FUNCTION text_larger(text, text) LEAKPROOF": (
        set(),
        {("function", "text_larger(text,text)")},
    ),
    "DROP POLICY own_scope ON memory_nodes;;"
    "CREATE POLICY own_scope ON memory_nodes USING (scope = app_scope())": (
        {("memory_nodes", "by errors")},
        {("inference", "memory_nodes")},
    ),
    "ALTER TABLE memory_nodes ALTER human_content SET STATISTICS 100": (
        set(),
        {("statistics", "memory_nodes.human_content")},
    ),
    "CREATE STATISTICS said (mcv) ON human_content, source FROM memory_nodes": (
        set(),
        {("statistics", "memory_nodes.said")},
    ),
    "CREATE INDEX said ON memory_nodes ((left(human_content, 30)))": (
        set(),
        {("statistics", "said.left")},
    ),
    "CREATE INDEX said ON memory_nodes (human_content)": (
        {("memory_nodes", "by EXPLAIN ANALYZE by indexes")},
        {("inference", "memory_nodes")},
    ),
    "CREATE INDEX said ON import_rejects (scope, reason)": (
        {("import_rejects", "by EXPLAIN ANALYZE by indexes")},
        {("inference", "import_rejects")},
    ),
    "DROP POLICY shared_or_own ON chunks;;CREATE POLICY shared_or_own ON chunks FOR SELECT"
    " USING (scope = 'shared' OR scope = app_scope())": (
        {("chunks", "by errors")},
        {("inference", "chunks")},
    ),
    "DROP POLICY own_scope ON click_feedback;;CREATE POLICY own_scope ON click_feedback"
    " USING (scope = coalesce(app_scope(), 'shared'))": (
        {("click_feedback", "by errors")},
        {("inference", "click_feedback")},
    ),
    "ALTER TABLE chunks ALTER text SET STATISTICS 100": (set(), {("statistics", "chunks.text")}),
    "ALTER INDEX idx_chunks_scope_words ALTER 1 SET STATISTICS 100": (
        set(),
        {("statistics", "idx_chunks_scope_words.scope_keys")},
    ),
    "ALTER INDEX idx_chunks_scope_metadata ALTER 1 SET STATISTICS 100": (
        set(),
        {("statistics", "idx_chunks_scope_metadata.scope_keys")},
    ),
    "CREATE INDEX said ON documents (path)": (
        {("documents", "by EXPLAIN ANALYZE by indexes")},
        {("inference", "documents")},
    ),
    "CREATE UNIQUE INDEX once ON documents (path)": (
        {("documents", "by keys")},
        {("inference", "documents")},
    ),
    "CREATE INDEX graph ON documentation_embeddings USING hnsw"
    " ((embedding::halfvec(384)) halfvec_cosine_ops) WHERE model_name = 'hashing'": (
        {("documentation_embeddings", "by near vectors")},
        {("index", "graph")},
    ),
    "DROP POLICY own_scope ON jobs;;CREATE POLICY own_scope ON jobs FOR SELECT"
    " USING (scope IS NULL OR scope = app_scope())": (
        {("jobs", "by errors")},
        {("inference", "jobs")},
    ),
    "CREATE UNIQUE INDEX once ON memory_nodes (cluster_label)": (
        {("memory_nodes", "by keys")},
        {("inference", "memory_nodes")},
    ),
    "CREATE FUNCTION finds(q tsquery) RETURNS boolean LANGUAGE plpgsql SECURITY DEFINER"
    " SET search_path = public, pg_temp AS $$ BEGIN PERFORM FROM memory_nodes WHERE"
    " (memory_search @@ q) IS TRUE; RETURN true; END $$": (
        {("functions", "by calls")},
        {("function", "finds(tsquery)"), ("inference", "functions")},
    ),
    "CREATE FUNCTION finds(word text) RETURNS boolean LANGUAGE plpgsql SECURITY DEFINER"
    " SET search_path = public, pg_temp AS $$ BEGIN PERFORM 1 / (length(human_content) * 0)"
    " FROM memory_nodes WHERE memory_search @@ plainto_tsquery(word); RETURN true; END $$": (
        {("functions", "by calls")},
        {("inference", "functions")},
    ),
    "CREATE FUNCTION finds(held jsonb) RETURNS boolean LANGUAGE plpgsql SECURITY DEFINER"
    " SET search_path = public, pg_temp AS $$ BEGIN PERFORM 1 / (length(text) * 0)"
    " FROM chunks WHERE metadata @> held; RETURN true; END $$": (
        {("functions", "by calls")},
        {("inference", "functions")},
    ),
    "CREATE INDEX graph ON memory_embeddings USING hnsw"
    " ((embedding::halfvec(384)) halfvec_cosine_ops) WHERE model_name = 'hashing'": (
        {("memory_embeddings", "by near vectors")},
        {("index", "graph")},
    ),
    "DROP POLICY own_scope ON memory_nodes;;CREATE POLICY own_scope ON memory_nodes"
    " USING (scope = app_scope() OR pg_sleep(0.003) IS NULL)": (
        {("memory_nodes", "by time")},
        {("time", "memory_nodes")},
    ),
    "CREATE POLICY more ON memory_nodes TO rag_read_write USING (true)": (
        set(),
        {("policy", "more on memory_nodes")},
    ),
    f"{SEARCHER};;GRANT rehearsal_search TO rag_admin": (
        set(),
        {("policy", "rehearsed on memory_nodes")},
    ),
    f"{SEARCHER};;ALTER FUNCTION found SECURITY INVOKER": (
        set(),
        {("policy", "rehearsed on memory_nodes")},
    ),
    f"{SEARCHER};;ALTER ROLE rehearsal_search LOGIN": (
        set(),
        {("policy", "rehearsed on memory_nodes")},
    ),
    "GRANT pg_read_all_stats TO rag_read_write": (set(), {("role", "rag_read_write")}),
}


def infer_planted(
    database: Database, script: str, monkeypatch: pytest.MonkeyPatch, tables: set[str]
) -> IsolationReport:
    """Plant secrets in some tables, after a script, and try to tell them: nothing else."""
    run, infer = isolation._Verification, isolation._Verification._infer

    def infer_some(verification: isolation._Verification) -> None:
        verification._tables = [t for t in verification._tables if t.name in tables]
        infer(verification)

    monkeypatch.setattr(
        "pgcorpus.db.repositories.operations.isolation.IsolationRepository.look_around",
        lambda *_, **__: {},
    )
    monkeypatch.setattr(run, "_infer", infer_some)
    monkeypatch.setattr(run, "_time_searches", lambda *_: iter(()))
    return verify_broken(database, script, monkeypatch, "secrets")


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("script", HOLES, ids=lambda script: " ".join(script.split())[:60])
def test_what_lets_others_rows_be_told_is_found(
    tenancy: Tenancy, monkeypatch: pytest.MonkeyPatch, script: str
) -> None:
    """By telling a secret that was planted, by what the catalogue says, or by both."""
    through, guards = HOLES[script]
    before = tenancy.contents()
    tables = {target for target, _ in through} - {"functions"}
    if ("functions", "by calls") in through:
        tables |= {"memory_nodes", "chunks"}

    report = infer_planted(tenancy.owner, script, monkeypatch, tables)

    assert not report.isolated
    assert list_crossed(report) >= through
    assert missing(report) >= guards
    assert tenancy.contents() == before


@pytest.mark.usefixtures("hasty")
def test_a_role_that_only_owns_search_functions_may_see_all_rows(
    tenancy: Tenancy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody can become it, and its functions take nothing but data."""
    report = infer_planted(tenancy.owner, SEARCHER, monkeypatch, {"memory_nodes"})

    stands = {(each.layer, each.subject) for each in report.layers if each.status == "ok"}
    assert ("policy", "rehearsed on memory_nodes") in stands
    assert ("functions", "by calls") not in list_crossed(report)


def test_durations_are_compared_by_ranks() -> None:
    """A small difference that is always there is seen, noise is not, and both need a margin."""
    steady = [1.0 + n / 1000 for n in range(20)]
    jumping = [1.0 + (n * 7 % 20) / 5 for n in range(20)]

    later = compare_times("later", [each + 0.5 for each in steady], steady)
    same = compare_times("same", steady, steady)
    noisy = compare_times("noisy", [each + 0.3 for each in jumping], jumping)
    little = compare_times("little", [each + 0.04 for each in steady], steady)

    assert later.tells
    assert later.difference_ms == pytest.approx(0.5)
    assert same.z == pytest.approx(0)
    assert not any(each.tells for each in (same, noisy, little))


def test_a_duration_tells_only_if_it_does_so_each_time() -> None:
    """A difference that comes once, or now this way and now that, was the machine's."""
    steady = [1.0 + n / 1000 for n in range(20)]
    later = compare_times("later", [each + 0.5 for each in steady], steady)
    sooner = compare_times("sooner", steady, [each + 0.5 for each in steady])
    same = compare_times("same", steady, steady)

    def tells(first: Timing, again: Timing | None) -> bool:
        confirmed = confirm(first, lambda: again)
        return confirmed is not None and confirmed.tells

    assert tells(later, later)
    assert tells(sooner, sooner)
    assert not tells(later, same)
    assert not tells(later, sooner)
    assert confirm(later, lambda: None) is None, "there was no time to be sure"
    assert confirm(same, lambda: pytest.fail("it tells nothing")) is same
    assert confirm(None, lambda: pytest.fail("there is nothing to confirm")) is None


@pytest.mark.usefixtures("hasty")
def test_a_search_that_forgets_to_ask_is_found(
    tenancy: Tenancy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Row security still holds; that the builder does not refuse is a row too many."""
    monkeypatch.setattr("pgcorpus.db.search.corpus.Corpus.refuse_without", lambda *_: None)

    report = verify_broken(tenancy.owner, "SELECT 1", monkeypatch, "searches")

    assert {k for t, k in list_crossed(report) if t == "memory"} == {
        f"{mode} search" for mode in ("vector", "text", "fuzzy", "hybrid")
    }
    assert missing(report) == set()


def test_whoever_may_not_verify_is_told_what_is_needed(tenancy: Tenancy) -> None:
    """An application cannot write tenants; a role that is not there is named."""
    with pytest.raises(NotPermitted, match="member of rag_admin"):
        IsolationService(tenancy.application).verify(tenancy.application.url.username or "")
    with pytest.raises(NotPermitted, match="GRANT rag_read_only TO the login"):
        IsolationService(tenancy.application).verify("rag_read_only")
    with pytest.raises(NotFound, match="there is no role 'nobody'"):
        IsolationService(tenancy.owner).verify("nobody")


@pytest.mark.usefixtures("hasty")
def test_an_administrator_can_verify(tenancy: Tenancy) -> None:
    """A superuser is not needed."""
    with logged_in(tenancy.owner, "rag_admin") as administrator:
        name = administrator.url.username
        with tenancy.owner.engine.begin() as connection:
            connection.execute(text(f"GRANT rag_read_write TO {name}"))
        report = IsolationService(administrator).verify(seconds=PATIENCE_SECONDS)

    assert (list_crossed(report), missing(report)) == (set(), set())


FILL = """
    INSERT INTO documents (id, path, scope)
        SELECT gen_random_uuid(), 'filled ' || n, 'shared' FROM generate_series(1, 200) AS n;;
    INSERT INTO chunks (id, document_id, chunk_id, position, text, scope)
        SELECT gen_random_uuid(), id, path || n, n, 'a price of ' || md5(path || n), scope
        FROM documents, generate_series(1, 10) AS n WHERE path LIKE 'filled %';;
    INSERT INTO documentation_embeddings (chunk_id, scope, model_name, embedding, content_hash)
        SELECT id, scope, 'hashing', array_fill(0.05, ARRAY[383]) || random(), ''
        FROM chunks WHERE chunk_id LIKE 'filled %';;
    INSERT INTO memory_nodes (key, id, conversation_id, sequence_index, human_content, tenant_id,
                              user_id, scope, source)
        SELECT gen_random_uuid(), 'filled ' || n, 'c', n, 'a price of ' || md5(n::text), tenant_id,
               user_id, scope, source
        FROM memory_nodes, generate_series(1, 200) AS n WHERE id = 'mem_0';;
    ANALYZE
"""
"""Two thousand shared chunks with vectors, hundreds of memories of each scope, and their jobs."""


def count_statements(database: Database) -> tuple[int, IsolationReport]:
    """Verify, and count what is sent; rounds of probes are as many as they take time."""
    sent: list[str] = []

    def note(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        if "pg_temp.ask" not in statement:
            sent.append(statement)

    event.listen(database.engine, "before_cursor_execute", note)
    report = IsolationService(database).verify(seconds=PATIENCE_SECONDS)
    event.remove(database.engine, "before_cursor_execute", note)
    return len(sent), report


@pytest.mark.usefixtures("hasty")
def test_the_number_of_statements_does_not_grow_with_rows(
    databases: Databases, migrated: URL
) -> None:
    """As many attacks of each kind on each target, and nothing that many shared rows make cross."""
    with databases.opened(migrated.database or "") as database, settled(database):
        few, before = count_statements(database)
        with database.engine.begin() as connection:
            for statement in FILL.split(";;"):
                connection.execute(text(statement))
        many, after = count_statements(database)

    assert many <= few * 1.25  # times that differ are compared anew; there are many times the rows
    assert (list_crossed(after), missing(after), after.untried) == (set(), set(), 0)
    tried = [Counter({(e.target, e.kind): e.tried for e in r.attacks}) for r in (before, after)]
    assert tried[0].keys() == tried[1].keys()
    # A few probes more take values that only the new rows have.
    assert all(count <= tried[0][each] * 1.25 for each, count in tried[1].items())


def test_a_statement_that_takes_long_is_ended_and_named(
    tenancy: Tenancy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A statement without end is stopped and counted, and the rest goes on."""
    monkeypatch.setattr(isolation, "STATEMENT_SECONDS", 0.5)
    slow = (
        "CREATE FUNCTION sleeps() RETURNS text LANGUAGE sql SECURITY DEFINER"
        " SET search_path = public AS $$ SELECT CAST(pg_sleep(60) AS text) $$"
    )

    report = verify_broken(tenancy.owner, slow, monkeypatch)

    assert report.verdict == "incomplete"
    untried = {(each.target, each.kind): each.untried for each in report.attacks if each.untried}
    assert untried == {("sleeps", "told the same"): 3}


def test_what_there_is_no_time_for_is_not_told_as_passed(tenancy: Tenancy) -> None:
    """Each attack is counted as untried, by target and kind."""
    before = tenancy.contents()

    report = IsolationService(tenancy.owner).verify(seconds=0)

    assert (report.verdict, report.isolated) == ("incomplete", False)
    assert report.tried == sum(each.tried for each in report.attacks) < 100
    assert report.untried > 1000
    untried = {(each.target, each.kind) for each in report.attacks if each.untried}
    assert {(table, kind) for table in KEYS for kind in ("statements", "inference")} <= untried
    assert tenancy.contents() == before


def test_ctrl_c_leaves_nothing_behind(tenancy: Tenancy, tmp_path: Path) -> None:
    """Neither rows nor a transaction that goes on; progress is told where no JSON is asked for."""
    before = tenancy.contents()
    address = tenancy.owner.url.render_as_string(hide_password=False)
    environment = {"PATH": os.defpath, "COLUMNS": "160", "DATABASE_URL": address}
    command = [PGCORPUS, "verify-isolation"]
    rehearsing = text(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
        " AND xact_start < now() AND backend_xid IS NOT NULL"
        " AND backend_type = 'client backend'"  # autovacuum analyzes what the fixture wrote
    )
    with (
        subprocess.Popen(command, env=environment, cwd=tmp_path, stderr=subprocess.PIPE) as run,
        tenancy.owner.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as watch,
    ):
        while run.poll() is None and not watch.scalar(rehearsing):
            time.sleep(0.05)
        run.send_signal(signal.SIGINT)
        said = run.communicate(timeout=30)[1].decode()
        time.sleep(0.2)
        left = watch.scalar(rehearsing)

    assert (run.returncode, left) == (130, 0), said
    assert "Traceback" not in said
    assert tenancy.contents() == before


def run_verifier(url: URL, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command on a database."""
    address = url.render_as_string(hide_password=False)
    environment = {"PATH": os.defpath, "COLUMNS": "160", "DATABASE_URL": address}
    return run_command(
        environment, folder, "verify-isolation", *arguments, timeout=PATIENCE_SECONDS
    )


def test_the_command_tells_scripts_and_people(
    tenancy: Tenancy, databases: Databases, migrated: URL, tmp_path: Path
) -> None:
    """Only JSON on stdout, counts for people, and exit codes 0, 1 and 2."""
    with databases.opened(migrated.database or "") as leaking, ThreadPoolExecutor() as threads:
        with leaking.engine.begin() as connection:
            connection.execute(text("ALTER TABLE memory_nodes DISABLE ROW LEVEL SECURITY"))
        healthy, hurried, shown, nobody, misused = threads.map(
            lambda run: run_verifier(run[0], tmp_path, *run[1:]),
            [
                (tenancy.owner.url, "--json", "--time-limit", str(PATIENCE_SECONDS)),
                (tenancy.owner.url, "--time-limit", "0"),
                (leaking.url,),
                (leaking.url, "--as", "nobody"),
                (leaking.url, "--nonsense"),
            ],
        )

    ended = [each.returncode for each in (healthy, hurried, shown, nobody, misused)]
    assert ended == [0, 3, 1, 1, 2]
    assert "NOT TRIED, for lack of time: memory_nodes: " in hurried.stderr
    assert "incomplete: as rag_read_write: " in hurried.stderr
    report = json.loads(healthy.stdout)
    assert (report["isolated"], report["crossed"], report["role"]) == (True, 0, "rag_read_write")
    assert report["tried"] == sum(each["tried"] for each in report["attacks"]) > 1500
    assert report["attacks"][0].keys() == {
        "target",
        "kind",
        "tried",
        "refused",
        "crossed",
        "by",
        "untried",
    }
    assert "ALTER TABLE memory_nodes ENABLE ROW LEVEL SECURITY;" in shown.stdout.splitlines()
    assert "CROSSED: SELECT on memory_nodes" in shown.stderr
    assert "Traceback" not in nobody.stderr
    assert "no role 'nobody'" in nobody.stderr
