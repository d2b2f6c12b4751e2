"""The doctor: a healthy database passes, and every defect is found and mended by its remedy."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sqlalchemy import URL, create_engine, text
from sqlalchemy.event import listen

from pgcorpus.db.choices import GROUPS
from pgcorpus.db.embedded import EmbeddedServer
from pgcorpus.db.engine import Database
from pgcorpus.db.migrations import upgrade
from pgcorpus.db.repositories import vector_indexes
from pgcorpus.db.repositories.operations.diagnosis import DDL_EVENTS, Server, Unrecorded
from pgcorpus.db.search.corpora import KNOWLEDGE, list_corpora
from pgcorpus.db.settings import Settings
from pgcorpus.services.ops import doctor
from pgcorpus.services.ops.doctor import Diagnosis, DoctorService, Finding
from tests.command import PGCORPUS, run_command
from tests.conftest import Databases, settings_for
from tests.db.search.shelves import DIMENSIONS, MODEL
from tests.migrations.conftest import Programs

ROWS = 10_500
"""More than are compared one by one."""

REFERENCE = Path(__file__).parents[3] / "docs" / "reference" / "doctor.md"
HNSW = "chunk_embeddings_hnsw_hashing"
HNSW_OF = (
    f"CREATE INDEX {HNSW} ON chunk_embeddings USING hnsw"
    " ((CAST(embedding AS halfvec(384))) halfvec_cosine_ops)"
    " WITH ({}) WHERE model_name = 'hashing'"
)
APPLICATION = "test_doctor_application"
PASSWORD = "doctor"

# Words of letters, unlike each other: trigrams of numbers are too alike to be worth an index.
FILL = (
    """
    INSERT INTO framework_documents (chunk_id, source_file, section, title, content)
    SELECT 'c' || n, 'f.md', 's' || n % 100, 'Title ' || n,
           string_agg(
               translate(left(md5(CAST(hashint8(n * 20 + k) & 4095 AS text)), 6),
                         '0123456789', 'ghijklmnop'), ' ')
    FROM generate_series(1, :rows) n, generate_series(1, 15) k GROUP BY n
    """,
    """
    INSERT INTO framework_metadata
        (document_id, character_count, word_count, chunk_type, validation_passed)
    SELECT id, 300, 20, 'supporting', true FROM framework_documents
    """,
)


def vacuum(database: Database) -> None:
    """Sort new rows into the GIN indexes, and tell the planner of them."""
    engine = database.schema_engine()
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("VACUUM (ANALYZE)"))


@pytest.fixture(scope="module")
def crowded(databases: Databases, hosted: URL, server: EmbeddedServer) -> Iterator[URL]:
    """A healthy database with enough rows for an index to be worth it; nobody is connected."""
    url = databases.make(template=hosted.database or "", owner=hosted)
    database = Database(settings_for(url))
    vectors = np.random.default_rng(7).normal(size=(ROWS, 8)).repeat(DIMENSIONS // 8, axis=1)
    with database.unit_of_work() as work:
        for statement in FILL:
            work.session.execute(text(statement), {"rows": ROWS})
        keys = work.session.scalars(text("SELECT id FROM framework_documents")).all()
        work.session.execute(text(f"DROP INDEX {HNSW}"))
        work.embeddings.store(KNOWLEDGE, MODEL, keys, vectors)
        # A sparse graph: it takes a fifth of the time, and is planned like any other.
        work.session.execute(text(HNSW_OF.format("m = 4, ef_construction = 16")))
        work.models.use_model("knowledge", MODEL)
        work.commit()
    vacuum(database)
    database.close()
    for event in DDL_EVENTS:  # as an administrator may do, and the owner may not
        remedy = Unrecorded(None, event, disabled=False).remedy
        Programs(server).execute(databases.superuser_of(url), str(remedy))
    yield url
    databases.drop(url)


@pytest.fixture(scope="module")
def application(owner: URL) -> Iterator[str]:
    """A login role that is bound by everything; roles are the server's."""
    engine = create_engine(owner.set(database="postgres"), isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text(f"CREATE ROLE {APPLICATION} LOGIN PASSWORD '{PASSWORD}'"))
        yield APPLICATION
        connection.execute(text(f"DROP ROLE {APPLICATION}"))
    engine.dispose()


class Patient:
    """A copy of the crowded database, looked at as the application's role.

    Attributes:
        url: As its owner, who is no superuser.
        superuser: As an administrator.
        database: As the application.
    """

    def __init__(self, url: URL, superuser: URL, programs: Programs) -> None:
        self.url = url
        self.superuser = superuser
        self.database = Database(settings_for(url.set(username=APPLICATION, password=PASSWORD)))
        self._programs = programs

    def run(self, script: str) -> None:
        """Run SQL as the owner of the tables, as psql does when it is pasted.

        What says that an administrator runs it is run by one.
        """
        by_administrator = script.startswith("-- as an administrator")
        self._programs.execute(self.superuser if by_administrator else self.url, script)

    def administer(self, script: str) -> None:
        """Run SQL as an administrator."""
        self._programs.execute(self.superuser, script)

    def diagnosis(self) -> Diagnosis:
        """Examine it."""
        return DoctorService(self.database).examine()

    def failures(self) -> list[Finding]:
        """The checks that fail."""
        return [each for each in self.diagnosis().findings if each.status == "failure"]

    def faults(self) -> list[Finding]:
        """The checks that fail or warn."""
        return [each for each in self.diagnosis().findings if each.status != "ok"]

    def log_in(self, role: str) -> None:
        """Be another role from now on."""
        self.database.close()
        self.database = Database(settings_for(self.url.set(username=role, password=PASSWORD)))

    def mend(self) -> None:
        """Run the remedy of every failure."""
        for remedy in dict.fromkeys(each.remedy for each in self.failures()):
            assert remedy is not None
            self.run(remedy)


@pytest.fixture
def patient(
    databases: Databases, crowded: URL, server: EmbeddedServer, application: str
) -> Iterator[Patient]:
    """A healthy database of the test's own."""
    url = databases.make(template=crowded.database or "", owner=crowded)
    patient = Patient(url, databases.superuser_of(url), Programs(server))
    yield from open_examined(patient, databases)


@pytest.fixture
def blank(
    databases: Databases, hosted: URL, server: EmbeddedServer, application: str
) -> Iterator[Patient]:
    """An empty database of the test's own, as the application sees it."""
    url = databases.make(template=hosted.database or "", owner=hosted)
    patient = Patient(url, databases.superuser_of(url), Programs(server))
    yield from open_examined(patient, databases)


def open_examined(patient: Patient, databases: Databases) -> Iterator[Patient]:
    """Open a database that the application may use; it is dropped at the end."""
    tables = "ALL TABLES IN SCHEMA public"
    patient.run(f"GRANT SELECT, INSERT, UPDATE, DELETE ON {tables} TO {APPLICATION}")
    patient.run(
        "INSERT INTO backup_log (location, status, finished_at) VALUES ('one', 'complete', now())"
    )
    yield patient
    patient.database.close()
    databases.drop(patient.url)


def of(findings: list[Finding], check: str) -> list[Finding]:
    """The findings of one check."""
    return [each for each in findings if each.check == check]


def test_a_healthy_database_passes(patient: Patient) -> None:
    """Every leg of every mode uses its index, and nothing is to be mended."""
    diagnosis = patient.diagnosis()

    assert [each for each in diagnosis.findings if each.status != "ok"] == []
    assert diagnosis.healthy
    assert diagnosis.remedies == ()
    plans = {each.subject: each.detail for each in of(list(diagnosis.findings), "plan")}
    assert plans["vector"] == f"uses {HNSW}"
    assert plans["text"] == "uses idx_documents_content_fts"
    assert plans["fuzzy"] == "uses idx_documents_trigram"
    assert plans["hybrid"] == f"uses {HNSW}, idx_documents_content_fts"
    assert len(plans) == 4 * 3


@pytest.mark.parametrize(
    ("index", "searches"),
    [
        ("idx_documents_content_fts", {"text", "hybrid"}),
        ("idx_documents_trigram", {"fuzzy"}),
        (HNSW, {"vector", "hybrid"}),
    ],
)
def test_a_dropped_index_is_missed_by_its_searches(
    patient: Patient, index: str, searches: set[str]
) -> None:
    """The index is named, and so is every kind of search that has to do without."""
    patient.run(f"DROP INDEX {index}")

    failures = patient.failures()

    (missing,) = of(failures, "index")
    assert missing.subject == index
    assert "missing" in missing.detail
    assert {each.subject for each in of(failures, "plan")} >= searches
    assert all(f"{index} is missing" in each.detail for each in of(failures, "plan"))

    patient.mend()

    assert patient.failures() == []


@pytest.mark.parametrize(
    ("index", "made", "wrong"),
    [
        (
            HNSW,
            (
                f"CREATE INDEX {HNSW} ON chunk_embeddings USING hnsw"
                " ((embedding::halfvec(384)) halfvec_l2_ops) WHERE model_name = 'hashing'"
            ),
            "halfvec_l2_ops",
        ),
        (
            "idx_documents_trigram",
            (
                "CREATE EXTENSION btree_gin;"
                "CREATE INDEX idx_documents_trigram ON framework_documents"
                " USING gin ((title || ' ' || content) text_ops)"
            ),
            "USING gin",
        ),
        (
            "idx_documents_trigram",
            (
                "CREATE INDEX of_another_name ON framework_documents"
                " USING gist ((title || ' ' || content) gist_trgm_ops)"
            ),
            "gist_trgm_ops",
        ),
        (
            "idx_documents_content_fts",
            (
                "CREATE INDEX idx_documents_content_fts ON framework_documents"
                " USING gin (search_vector) WHERE section = 'Pricing'"
            ),
            "WHERE",
        ),
    ],
    ids=["hnsw for another distance", "gin of whole texts", "gist", "partial"],
)
def test_an_index_that_searches_cannot_use_is_told_from_the_right_one(
    blank: Patient, index: str, made: str, wrong: str
) -> None:
    """By its operator class, access method or condition, whatever its name."""
    blank.run(f"DROP INDEX {index}; {made}")

    (failure,) = blank.failures()

    assert (failure.check, failure.subject) == ("index", index)
    assert wrong.removeprefix("USING ") in failure.detail
    assert "but searches need" in failure.detail

    blank.mend()

    assert blank.failures() == []


@pytest.mark.parametrize(
    "index", [HNSW, "idx_documents_trigram", "idx_documents_section", "idx_embeddings_vector"]
)
def test_an_invalid_index_of_the_schema_is_built_again(blank: Patient, index: str) -> None:
    """It is built whether a search needs it or not."""
    blank.administer(
        f"UPDATE pg_index SET indisvalid = false WHERE indexrelid = '{index}'::regclass"  # noqa: S608 - from above
    )

    (failure,) = blank.failures()

    assert (failure.check, failure.subject) == ("index", index)
    assert "invalid" in failure.detail
    assert failure.remedy == f"REINDEX INDEX CONCURRENTLY {index};"

    blank.mend()

    assert blank.failures() == []


def test_an_invalid_index_of_somebody_else_is_dropped(patient: Patient) -> None:
    """A unique index that could not be built leaves one behind."""
    with pytest.raises(AssertionError, match="could not create unique index"):
        patient.run('CREATE UNIQUE INDEX CONCURRENTLY "Odd" ON framework_documents (section)')

    (failure,) = patient.failures()

    assert (failure.check, failure.subject) == ("index", "Odd")
    assert failure.remedy == 'DROP INDEX CONCURRENTLY "Odd";'

    patient.mend()

    assert patient.failures() == []


def test_an_index_that_is_being_built_is_only_mentioned(blank: Patient) -> None:
    """Not told to be built a second time; the build waits here for an open transaction."""
    blank.run("DROP INDEX idx_documents_trigram")
    (failure,) = blank.failures()
    with (
        ThreadPoolExecutor() as threads,
        blank.database.engine.begin() as writer,
    ):
        writer.execute(text("UPDATE framework_documents SET title = title"))
        build = threads.submit(blank.run, str(failure.remedy))
        while "missing" in (faults := of(blank.faults(), "index"))[0].detail:
            time.sleep(0.05)
        writer.rollback()

    assert [(each.subject, each.status) for each in faults] == [
        ("idx_documents_trigram", "warning")
    ]
    assert build.result() is None
    assert blank.failures() == []


def test_passages_that_were_never_analysed_are_found(blank: Patient) -> None:
    """A few are enough: how rare a word is, is read from the statistics."""
    blank.run(FILL[0].replace(":rows", "20"))

    (failure,) = blank.failures()

    assert (failure.check, failure.subject) == ("statistics", "framework_documents")
    assert "never analysed" in failure.detail
    assert failure.remedy == "ANALYZE framework_documents;"

    blank.mend()

    assert blank.failures() == []


def test_stale_statistics_are_found(patient: Patient) -> None:
    """A fifth of the rows has changed since the last ANALYZE."""
    change = (
        "UPDATE framework_metadata SET word_count = 21"
        " WHERE id IN (SELECT id FROM framework_metadata LIMIT 2000)"
    )
    patient.run("ALTER TABLE framework_metadata SET (autovacuum_enabled = off)")
    patient.run("ANALYZE framework_metadata")
    patient.run(change)
    assert patient.failures() == []

    patient.run(change)
    (failure,) = patient.failures()

    assert (failure.check, failure.subject) == ("statistics", "framework_metadata")
    assert failure.detail == "4,000 of 10,500 rows have changed since the last ANALYZE"

    patient.mend()

    assert patient.failures() == []


@pytest.mark.parametrize(
    ("setting", "cure", "status"),
    [
        ("enable_bitmapscan = off", "enable_bitmapscan = on", "failure"),
        ("random_page_cost = 1000", "random_page_cost = 1.1", "warning"),
    ],
)
def test_a_setting_that_keeps_searches_from_their_index_is_found(
    patient: Patient, setting: str, cure: str, status: str
) -> None:
    """The index is there, and the planner reads the whole table all the same."""
    patient.run(f'ALTER ROLE {APPLICATION} IN DATABASE "{patient.url.database}" SET {setting}')
    patient.database.close()

    faults = patient.faults()

    assert {(each.check, each.status) for each in faults} == {("plan", status)}
    found = {each.subject: each.detail for each in faults}
    assert "reads all of framework_documents" in found["text"]
    assert "fuzzy" not in found  # its searches set the planner so that it reads no table
    (remedy,) = {str(each.remedy) for each in faults}
    assert cure in remedy

    patient.run(remedy)
    patient.database.close()

    assert patient.faults() == []


def test_rows_that_wait_to_be_sorted_into_an_index_are_noticed(
    patient: Patient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a bulk load beside an index, its pending list is dearer to read than the table."""
    monkeypatch.setattr(doctor, "COMPARABLE", float("inf"))
    patient.run("ALTER INDEX idx_documents_content_fts SET (gin_pending_list_limit = 65536)")
    patient.run(
        "UPDATE framework_documents SET content ="
        " (SELECT string_agg(md5(chunk_id || k), ' ') FROM generate_series(1, 800) k)"
        " WHERE chunk_id < 'c103'"
    )

    found = {each.subject: each for each in of(patient.faults(), "plan")}

    assert found["text"].status == "warning", found
    assert found["text"].remedy == "VACUUM (ANALYZE) framework_documents;"

    patient.run(found["text"].remedy)

    assert patient.faults() == []


def test_an_index_that_nobody_uses_is_found_after_a_week(
    patient: Patient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An index that the schema does not ask for is to be dropped; another is only mentioned."""
    patient.run("CREATE INDEX idx_of_nobody ON framework_documents (description)")
    patient.run("CREATE UNIQUE INDEX idx_that_constrains ON framework_documents (id, title)")
    assert patient.faults() == []

    monkeypatch.setattr(doctor, "UNUSED_AFTER", timedelta())
    found = {each.subject: each for each in of(patient.faults(), "unused_index")}

    assert found["idx_of_nobody"].status == "failure"
    assert found["idx_documents_title_fts"].status == "warning"
    assert found["idx_documents_title_fts"].remedy is None
    assert "idx_that_constrains" not in found
    assert "pk_framework_documents" not in found

    patient.mend()

    assert patient.failures() == []


@pytest.mark.parametrize(
    ("attribute", "fault"),
    [("SUPERUSER", "is a superuser"), ("BYPASSRLS", "has BYPASSRLS"), ("", "owns ")],
    ids=["superuser", "bypassrls", "owner"],
)
def test_a_role_that_nothing_binds_is_found(blank: Patient, attribute: str, fault: str) -> None:
    """Logged in as such a role; its remedy makes one that passes."""
    role, application = "test_doctor_privileged", "test_doctor_bound"
    blank.administer(f"CREATE ROLE {role} LOGIN PASSWORD '{PASSWORD}' {attribute}")
    blank.run(f"GRANT SELECT ON ALL TABLES IN SCHEMA public TO {role}")
    if not attribute:
        blank.administer(f"ALTER TABLE framework_documents OWNER TO {role}")
    blank.log_in(role)

    (failure,) = blank.failures()

    assert (failure.check, failure.subject) == ("role", role)
    assert fault in failure.detail

    if attribute == "BYPASSRLS":
        blank.mend()
    else:
        assert failure.remedy is not None
        program, *arguments = failure.remedy.replace("NAME", application).split()
        assert program == PGCORPUS.name
        address = blank.url.render_as_string(hide_password=False)
        variables = {"DATABASE_URL": address, "PGCORPUS_NEW_PASSWORD": PASSWORD}
        subprocess.run([PGCORPUS, *arguments], check=True, env=variables)
        blank.log_in(application)

    assert blank.failures() == []

    blank.log_in(APPLICATION)
    blank.run(f"DROP ROLE IF EXISTS {application}")
    owner = blank.url.username
    blank.administer(f"REASSIGN OWNED BY {role} TO {owner}; DROP OWNED BY {role}; DROP ROLE {role}")


def test_the_superuser_of_the_embedded_server_is_only_mentioned(
    blank: Patient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is for development, and has no other role at first."""
    embedded = Database(Settings(environment="test"))
    monkeypatch.setitem(embedded.__dict__, "url", blank.superuser)

    diagnosis = DoctorService(embedded).examine()
    embedded.close()

    (role,) = of(list(diagnosis.findings), "role")
    assert role.status == "warning"
    assert "embedded server" in role.detail
    assert diagnosis.healthy


def test_an_owner_that_is_no_superuser_lacks_the_audit_of_the_schema_alone(
    blank: Patient,
) -> None:
    """Until an administrator runs the remedies."""
    found = blank.faults()

    assert {(each.check, each.status) for each in found} == {("audit", "warning")}
    assert {each.subject for each in found} == {*DDL_EVENTS}
    (owner,) = of(list(blank.diagnosis().findings), "owner")
    assert (owner.status, owner.subject) == ("ok", blank.url.username)

    for each in found:
        assert "only a superuser makes it" in each.detail
        blank.run(str(each.remedy))

    assert blank.faults() == []


def test_what_the_owner_of_a_schema_may_not_do_is_told_with_what_lets_it(
    blank: Patient,
) -> None:
    """Each right that a careful server keeps back, and the loss that it means."""
    name = f"{blank.url.username}_careful"
    blank.administer(f"CREATE ROLE {name}; ALTER TABLE embedding_models OWNER TO {name}")
    blank.administer("REVOKE SELECT ON pg_stats FROM PUBLIC")

    found = of(blank.faults(), "owner")

    told = [each.detail for each in found]
    assert {each.status for each in found} == {"warning"}
    assert "may not make roles" in told[0]
    assert "may not make schemas" in told[1]
    assert "all words of a question weigh the same" in told[2]
    assert [detail.split()[3] for detail in told[3:]] == sorted(GROUPS)

    for each in found:
        blank.run(str(each.remedy))

    assert of(blank.faults(), "owner") == []
    blank.administer(f"REASSIGN OWNED BY {name} TO {blank.url.username}; DROP OWNED BY {name}")
    blank.administer(f"DROP ROLE {name}")


def test_a_superuser_may_own_the_schema(blank: Patient) -> None:
    """It lacks nothing."""
    blank.administer("ALTER TABLE embedding_models OWNER TO CURRENT_USER")

    (owner,) = of(list(blank.diagnosis().findings), "owner")

    assert (owner.status, owner.subject) == ("ok", blank.superuser.username)
    blank.administer(f"ALTER TABLE embedding_models OWNER TO {blank.url.username}")


def test_a_locale_without_letters_is_a_warning(
    databases: Databases, administrator: URL, server: EmbeddedServer
) -> None:
    """LC_CTYPE C cannot be changed: the remedy makes a database beside it."""
    name = "test_doctor_ctype"
    programs = Programs(server)
    programs.execute(administrator, f"CREATE DATABASE {name} TEMPLATE template0 LC_CTYPE 'C'")
    url = administrator.set(database=name)
    database = Database(settings_for(url))
    upgrade(database)
    (found,) = of(list(DoctorService(database).examine().findings), "ctype")
    database.close()

    assert (found.status, found.subject) == ("warning", "LC_CTYPE C")

    programs.execute(administrator, str(found.remedy))
    copy = administrator.set(database=f"{name}_utf8")
    mended = Database(settings_for(copy))
    (found,) = of(list(DoctorService(mended).examine().findings), "ctype")
    mended.close()
    databases.drop(url)
    databases.drop(copy)

    assert found.status == "ok"


@pytest.mark.parametrize(
    "checks", [["schema"], pytest.param(["pgvector", "schema"], marks=pytest.mark.superuser)]
)
def test_an_empty_database_is_told_to_be_upgraded(empty: Database, checks: list[str]) -> None:
    """Nothing else is looked at before there are tables."""
    failures = [each for each in DoctorService(empty).examine().findings if each.status != "ok"]

    assert [each.check for each in failures] == checks
    assert failures[-1].remedy == "pgcorpus db upgrade"


@pytest.mark.parametrize(
    ("found", "status"), [("0.7.4", "failure"), ("0.8.0", "ok"), ("0.10.1", "ok")]
)
def test_an_outdated_pgvector_is_found(blank: Patient, found: str, status: str) -> None:
    """As the catalogue has it; 0.10 is newer than 0.8."""
    blank.administer(f"UPDATE pg_extension SET extversion = '{found}' WHERE extname = 'vector'")  # noqa: S608 - from above

    (finding,) = of(list(blank.diagnosis().findings), "pgvector")

    assert finding.status == status
    assert finding.remedy == (None if status == "ok" else "ALTER EXTENSION vector UPDATE;")


@pytest.mark.parametrize(("major", "status"), [(14, "failure"), (15, "ok"), (18, "ok")])
def test_an_outdated_postgresql_is_found(major: int, status: str) -> None:
    """The server's major version decides."""
    assert (
        doctor._postgresql(Server(major, "0.8.1", "0.8.1", "pgcorpus", "C.UTF-8")).status == status
    )


def test_an_empty_corpus_is_told_and_passes(blank: Patient) -> None:
    """There is nothing to explain."""
    diagnosis = blank.diagnosis()

    found = of(list(diagnosis.findings), "corpus")
    assert {(each.corpus, each.status) for each in found} == {
        (each.name, "ok") for each in list_corpora()
    }
    assert all("empty" in each.detail for each in found)
    assert of(list(diagnosis.findings), "plan") == []
    assert diagnosis.healthy


@pytest.mark.parametrize(
    ("taken_away", "detail"),
    [
        ("ALTER TABLE memory_nodes DISABLE ROW LEVEL SECURITY", "has no row security"),
        ("ALTER TABLE users NO FORCE ROW LEVEL SECURITY", "does not hold for its owner"),
        ("CREATE POLICY open ON memory_nodes USING (true)", "do not ask for the scope: open"),
        ("CREATE TABLE drafts (id uuid PRIMARY KEY, tenant_id uuid)", "has no row security"),
    ],
)
def test_a_table_without_its_guard_is_found(blank: Patient, taken_away: str, detail: str) -> None:
    """Whosever rows anybody could read."""
    blank.run(taken_away)

    (failure,) = blank.failures()

    assert failure.check == "row_security"
    assert detail in failure.detail

    blank.mend()

    assert blank.failures() == []


def test_a_large_scope_is_given_an_index_of_its_own(
    blank: Patient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The owner is told the sizes, and the statement that builds it."""
    monkeypatch.setattr(vector_indexes, "LEAST_INDEXED", 50)
    blank.run("""
        INSERT INTO tenants (id, name, slug)
        SELECT CAST(lpad(n::text, 32, '0') AS uuid), 't', 't-' || n FROM generate_series(1, 9) n;
        DO $$ BEGIN FOR t IN 1..9 LOOP
            PERFORM set_config('app.tenant_id', CAST(lpad(t::text, 32, '0') AS uuid)::text, true);
            INSERT INTO memory_nodes
                (id, tenant_id, conversation_id, sequence_index, human_content, source)
            SELECT 'mem_' || n, CAST(lpad(t::text, 32, '0') AS uuid), 'c', n, 'said', 'test'
            FROM generate_series(1, CASE t WHEN 1 THEN 2000 WHEN 2 THEN 100 ELSE 20 END) n;
            INSERT INTO memory_embeddings (node_key, scope, model_name, embedding, content_hash)
            SELECT key, scope, 'hashing', array_fill(1.0, ARRAY[384])::vector, ''
            FROM memory_nodes WHERE tenant_id = CAST(lpad(t::text, 32, '0') AS uuid);
        END LOOP; END $$;
        ANALYZE
    """)
    blank.database.close()
    blank.database = Database(replace(blank.database.settings, database_url=blank.url))

    found = of(blank.faults(), "scope_index")

    large, larger = (f"tenant:{n:08}-0000-0000-0000-{m:012}" for n, m in ((0, 2), (0, 1)))
    assert [(each.subject, each.status) for each in found] == [
        (larger, "warning"),
        (large, "warning"),
    ]
    assert "100 vectors of hashing" in found[1].detail
    assert "memory" in {each.corpus for each in of(list(blank.diagnosis().findings), "plan")}

    for each in found:
        blank.run(str(each.remedy))

    assert of(blank.faults(), "scope_index") == []


def test_scopes_are_counted_once(blank: Patient) -> None:
    """Counting reads all vectors: the scope that plans are explained in comes from the same."""
    blank.database.close()
    blank.database = Database(replace(blank.database.settings, database_url=blank.url))
    counts: list[str] = []

    def note(_connection: Any, _cursor: Any, statement: str, *_rest: Any) -> None:
        if "_large_scopes(" in statement and "has_function_privilege" not in statement:
            counts.append(statement)

    listen(blank.database.engine, "before_cursor_execute", note)
    blank.diagnosis()

    assert len(counts) == len([each for each in list_corpora() if each.scope is not None])


def test_memories_without_vectors_are_looked_at_in_their_scope(blank: Patient) -> None:
    """Nobody's question finds them: each plan is that of somebody who has some."""
    blank.run("""
        INSERT INTO tenants (name, slug) VALUES ('t', 't');
        SELECT set_config('app.tenant_id', id::text, false) FROM tenants;
        INSERT INTO memory_nodes
            (id, tenant_id, conversation_id, sequence_index, human_content, source)
        SELECT 'mem_' || n, tenants.id, 'c', n, 'said', 'test'
        FROM tenants, generate_series(1, 3) n;
        ANALYZE
    """)
    blank.database.close()
    blank.database = Database(replace(blank.database.settings, database_url=blank.url))

    plans = [each for each in of(list(blank.diagnosis().findings), "plan") if each.corpus]

    told = {each.subject: (each.status, each.detail) for each in plans if each.corpus == "memory"}
    assert told["text"] == ("ok", "3 passages are compared one by one")
    assert told["vector"][0] == "warning"


def test_passages_without_vectors_are_a_warning(patient: Patient) -> None:
    """The other legs answer."""
    patient.run("TRUNCATE chunk_embeddings")

    plans = of(list(patient.diagnosis().findings), "plan")

    assert (plans[0].status, plans[0].subject) == ("warning", "vector")
    assert plans[0].remedy == "pgcorpus embed --corpus knowledge"
    assert {each.subject.partition(",")[0] for each in plans} == {"vector", "text", "fuzzy"}


def test_what_the_role_may_not_read_is_a_finding(blank: Patient) -> None:
    """No trace: the check that could not be made is named, and the others are."""
    blank.run(f"REVOKE ALL ON embedding_models FROM {APPLICATION}")

    failures = blank.failures()

    assert {each.check for each in failures} == {"index", "unused_index"}
    assert all("permission denied for table embedding_models" in each.detail for each in failures)


def run_doctor(url: URL, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command on a database."""
    address = url.render_as_string(hide_password=False)
    environment = {"PATH": os.defpath, "COLUMNS": "160", "DATABASE_URL": address}
    return run_command(environment, folder, "doctor", *arguments, timeout=60)


def test_the_command_tells_scripts_and_people(blank: Patient, tmp_path: Path) -> None:
    """Exit code 0 and 1; only JSON on stdout; remedies that can be copied whole."""
    as_application = blank.database.url
    healthy = run_doctor(as_application, tmp_path, "--json")
    blank.run("DROP INDEX idx_documents_trigram")
    failing = run_doctor(as_application, tmp_path, "--json")
    shown = run_doctor(as_application, tmp_path)
    misused = run_doctor(as_application, tmp_path, "--nonsense")

    assert [each.returncode for each in (healthy, failing, shown, misused)] == [0, 1, 1, 2]
    assert json.loads(healthy.stdout)["healthy"] is True
    diagnosis = json.loads(failing.stdout)
    assert diagnosis["healthy"] is False
    (failure,) = [each for each in diagnosis["findings"] if each["status"] == "failure"]
    assert failure.keys() == {"check", "corpus", "subject", "status", "detail", "remedy"}
    assert (failure["check"], failure["corpus"]) == ("index", "knowledge")
    assert failure["remedy"] in shown.stdout.splitlines()


def test_a_server_that_is_away_is_no_diagnosis(blank: Patient, tmp_path: Path) -> None:
    """A sentence on stderr, and exit code 1."""
    result = run_doctor(blank.database.url.set(database="test_doctor_nowhere"), tmp_path, "--json")

    assert (result.returncode, result.stdout) == (1, "")
    assert "DATABASE_URL" in result.stderr
    assert "Traceback" not in result.stderr


def test_every_check_is_in_the_reference(patient: Patient) -> None:
    """Under the name that scripts see."""
    page = REFERENCE.read_text()

    names = {each.check for each in patient.diagnosis().findings}

    assert len(names) == 16
    assert [name for name in names if f"`{name}`" not in page] == []
