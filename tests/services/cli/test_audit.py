"""``pgcorpus audit``: as an auditor and as a script use it."""

from __future__ import annotations

import json
import os
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID

import pytest
from sqlalchemy import Engine, text

from pgcorpus.db.engine import Database
from pgcorpus.services.audit import AuditService
from pgcorpus.services.ops.doctor import DoctorService
from tests import factories
from tests.command import Command, run_command
from tests.logins import logged_in

KEY = "0123456789abcdef0123456789abcdef"


@pytest.fixture
def pgcorpus(database: Database, tmp_path: Path) -> Command:
    """Runs the installed command on a database of the test's own."""

    def run(
        *arguments: str, of: Database = database, typed: str = "", **more: str
    ) -> subprocess.CompletedProcess[str]:
        address = of.url.render_as_string(hide_password=False)
        environment = {"PATH": os.defpath, "COLUMNS": "200", "DATABASE_URL": address, **more}
        return run_command(environment, tmp_path, "audit", *arguments, typed=typed, timeout=60)

    return run


@pytest.fixture
def concept(database: Database) -> UUID:
    """A concept that was added by nobody, and renamed for Ada."""
    with database.unit_of_work() as work:
        factories.bind(work.session)
        found: UUID = factories.KeyConceptFactory(concept_name="an anchor").id
        factories.ConversationFactory()
        work.commit()
    with database.unit_of_work(actor="ada") as work:
        work.session.execute(text("UPDATE key_concepts SET concept_name = 'a price'"))
        work.commit()
    return found


def test_show_answers_who_changed_what(pgcorpus: Command, concept: UUID) -> None:
    """By table, record, actor and time; JSON alone on stdout; times that are none are misuse."""

    def actions(*arguments: str) -> list[str]:
        shown = pgcorpus("show", "--json", *arguments)
        assert shown.returncode == 0, shown.stderr
        return [entry["action"] for entry in json.loads(shown.stdout)]

    tomorrow = f"{datetime.now(UTC) + timedelta(days=1):%Y-%m-%d}"
    assert actions() == ["UPDATE", "INSERT", "INSERT"]
    assert actions("--table", "key_concepts") == ["UPDATE", "INSERT"]
    assert actions("--record", str(concept)) == ["UPDATE", "INSERT"]
    assert actions("--actor", "ada") == ["UPDATE"]
    assert actions("--login", "nobody") == []
    unknown = pgcorpus("show", "--table", "memory")
    assert "no table 'memory' is audited; those that are: " in unknown.stderr
    assert "memory_nodes" in unknown.stderr
    assert actions("--limit", "1") == ["UPDATE"]
    assert actions("--since", "2020-01-01T00:00:00+02:00") == actions()
    assert actions("--since", tomorrow) == []
    assert "'yesterday' is no time" in pgcorpus("show", "--since", "yesterday").stderr
    assert pgcorpus("show", "--since", "yesterday").returncode == 2

    shown = pgcorpus("show", "--actor", "ada").stdout
    assert "ada" in shown
    assert 'concept_name: "an anchor" → "a price"' in shown


def test_what_is_sealed_is_verified(pgcorpus: Command, concept: UUID, superuser: Engine) -> None:
    """Exit code 0 while it is as it was, 1 and where it is not; the last seal can be remembered."""
    assert json.loads(pgcorpus("verify", "--json").stdout)["unsealed"] == 3
    made = json.loads(pgcorpus("seal", "--json").stdout)
    noted = pgcorpus("verify").stdout.strip()
    intact = pgcorpus("verify", "--json", "--remembered", noted)

    assert (made["seals"], made["entries"]) == (1, 3)
    assert noted == f"1:{made['last_seal']['hash']}"
    assert intact.returncode == 0
    assert json.loads(intact.stdout) | {"last_seal": None} == {
        "intact": True, "seals": 1, "sealed": 3, "unsealed": 0, "signatures": "none",
        "last_seal": None, "dropped": [], "tampering": [],
    }  # fmt: skip
    assert pgcorpus("verify", "--remembered", "1").returncode == 2
    assert pgcorpus("verify", "--remembered", f"7:{'0' * 64}").returncode == 1

    with superuser.begin() as connection:
        connection.execute(text("SET LOCAL session_replication_role = replica"))
        connection.execute(text("UPDATE security_audit_log SET actor = 'bob' WHERE actor = 'ada'"))
    broken = pgcorpus("verify")
    as_json = pgcorpus("verify", "--json")

    assert (broken.returncode, as_json.returncode) == (1, 1)
    assert "3 entries under seal 1, not as they were sealed" in " ".join(broken.stderr.split())
    (found,) = json.loads(as_json.stdout)["tampering"]
    assert (found["kind"], found["seal"], found["month"]) == (
        "entries_changed", 1, f"{datetime.now(UTC):%Y-%m}",
    )  # fmt: skip


def test_the_key_signs_and_is_never_shown(pgcorpus: Command, concept: UUID) -> None:
    """From the environment; one that is too short is misuse, and not repeated."""
    assert pgcorpus("seal", PGCORPUS_AUDIT_KEY=KEY).returncode == 0
    signed = pgcorpus("verify", "--json", PGCORPUS_AUDIT_KEY=KEY)
    other = pgcorpus("verify", PGCORPUS_AUDIT_KEY=KEY[::-1])
    short = pgcorpus("verify", PGCORPUS_AUDIT_KEY="hunter2")

    assert json.loads(signed.stdout)["signatures"] == "checked"
    assert "PGCORPUS_AUDIT_KEY is not set" in pgcorpus("verify").stderr
    assert other.returncode == 1
    assert short.returncode == 2
    assert "hunter2" not in short.stderr
    for each in (signed, other):
        assert KEY not in each.stdout + each.stderr
        assert KEY[::-1] not in each.stdout + each.stderr


def test_retention_asks_and_drops_whole_months(pgcorpus: Command, database: Database) -> None:
    """Nothing is dropped unconfirmed; afterwards the log is still intact, and says what is gone."""
    with database.unit_of_work() as work:
        factories.bind(work.session)
        factories.SecurityAuditLogFactory(timestamp=datetime(2020, 5, 4, tzinfo=UTC))
        work.commit()
        work.audit.make_partitions()
        work.commit()
    unsealed = pgcorpus("retain", "--months", "24", "--yes")
    AuditService(database).seal()
    refused = pgcorpus("retain", "--months", "24", typed="n\n")
    kept = pgcorpus("verify", "--json")
    dropped = pgcorpus("retain", "--months", "24", "--yes", "--json")
    again = pgcorpus("retain", "--months", "24", "--yes")

    assert (unsealed.returncode, refused.returncode) == (1, 1)
    assert "pgcorpus audit seal" in unsealed.stderr
    assert json.loads(kept.stdout)["dropped"] == []
    (month,) = json.loads(dropped.stdout)["dropped"]
    assert (month["month"], month["rows"]) == ("2020-05", 1)
    assert "no month is old enough" in again.stderr
    after = json.loads(pgcorpus("verify", "--json").stdout)
    assert (after["intact"], after["dropped"]) == (True, [month])


def test_who_may_not_is_told_so(pgcorpus: Command, database: Database) -> None:
    """A sentence, exit code 1, and no trace."""
    with logged_in(database, "rag_read_write") as login:
        for arguments in (("show",), ("seal",), ("verify",), ("retain", "--months", "1", "--yes")):
            result = pgcorpus(*arguments, of=login)
            if arguments[0] != "retain":  # nothing is old enough
                assert result.returncode == 1
                assert "permission denied" in result.stderr
            assert "Traceback" not in result.stderr


def test_the_doctor_finds_what_is_not_recorded(database: Database, superuser: Engine) -> None:
    """A trigger that is off or gone, changes of the schema, a month without a partition.

    Changes of the schema are recorded once a superuser has run what the doctor says.
    """

    def find_checks() -> dict[str, tuple[str, str | None]]:
        findings = DoctorService(database).examine().findings
        return {
            each.subject: (each.status, each.remedy) for each in findings if each.check == "audit"
        }

    def run(*statements: str) -> None:
        with superuser.begin() as connection:
            for statement in statements:
                connection.execute(text(statement))

    by_owner = find_checks()
    assert {subject: status for subject, (status, _) in by_owner.items()} == {
        "ddl_command_end": "warning",
        "sql_drop": "warning",
    }
    run(*(str(remedy) for _, remedy in by_owner.values()))
    assert find_checks() == {"security_audit_log": ("ok", None)}

    month = f"{datetime.now(UTC).replace(day=1) + timedelta(days=31):%Y_%m}"
    run(
        "ALTER TABLE users DISABLE TRIGGER audit_update",
        "DROP TRIGGER audit_insert ON tenants",
        "ALTER EVENT TRIGGER pgcorpus_audit_sql_drop DISABLE",
        "DROP EVENT TRIGGER pgcorpus_audit_ddl_command_end",
        f"DROP TABLE security_audit_log_{month}",
    )
    faults = find_checks()

    assert {subject: status for subject, (status, _) in faults.items()} == {
        "tenants": "failure",
        "users": "failure",
        "ddl_command_end": "warning",
        "sql_drop": "warning",
        "security_audit_log": "warning",
    }
    run(*(str(remedy) for _, remedy in faults.values() if remedy and "pgcorpus " not in remedy))
    AuditService(database).maintain()
    assert find_checks().keys() == {"tenants"}
