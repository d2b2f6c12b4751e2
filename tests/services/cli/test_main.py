"""The command, as a person and as a script use it: real processes, real exit codes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from datetime import datetime
from importlib.metadata import version
from pathlib import Path

import pytest
from sqlalchemy import text

import pgcorpus
from pgcorpus.db.engine import Database
from pgcorpus.services import samples
from tests.command import PGCORPUS, Command
from tests.logins import logged_in

PROJECT = Path(pgcorpus.__file__).parents[1]
WAITS_FOR_A_LOCK = text(
    "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database()"
    " AND wait_event_type = 'Lock')"
)
ADD_MODEL = ["models", "add", "--dimensions", "8", "--provider", "hashing"]


@pytest.fixture
def filled(pgcorpus: Command) -> Command:
    """The samples, imported and embedded."""
    assert pgcorpus("import", "knowledge", str(samples.folder("knowledge"))).returncode == 0
    assert pgcorpus("embed").returncode == 0
    return pgcorpus


def test_the_version_is_that_of_the_package(pgcorpus: Command) -> None:
    """It is told without a database."""
    told = pgcorpus("--version")

    assert told.stdout == f"pgcorpus {version('pgcorpus')}\n"
    assert told.returncode == 0


def test_help_has_a_short_name_in_every_command(pgcorpus: Command) -> None:
    """As people type it."""
    for command in ([], ["search"], ["import", "chat"]):
        assert pgcorpus(*command, "-h").stdout == pgcorpus(*command, "--help").stdout


def test_import_tells_scripts_what_became_of_every_chunk(pgcorpus: Command) -> None:
    """The shape is fixed, the counts add up, and a second run changes nothing."""
    first = pgcorpus("import", "knowledge", str(samples.folder("knowledge")), "--json")
    second = pgcorpus("import", "knowledge", str(samples.folder("knowledge")), "--json")

    report, again = json.loads(first.stdout), json.loads(second.stdout)
    assert (first.returncode, second.returncode) == (0, 0)
    assert report.keys() == {
        "files", "added", "updated", "unchanged", "rejected", "transformed", "rejects", "skipped",
    }  # fmt: skip
    assert len(report["files"]) == 11
    assert report["added"] + report["unchanged"] == 28
    assert (again["added"], again["updated"], again["unchanged"]) == (0, 0, 28)


def test_a_dry_run_reports_the_same_and_writes_nothing(pgcorpus: Command) -> None:
    """Not even into the history."""
    dry = pgcorpus("import", "knowledge", str(samples.folder("knowledge")), "--dry-run", "--json")
    history = pgcorpus("import", "history", "--json")
    real = pgcorpus("import", "knowledge", str(samples.folder("knowledge")), "--json")

    after = pgcorpus("import", "history", "--json", "--limit", "1000")

    assert json.loads(history.stdout) == []
    told = json.loads(dry.stdout)
    changes = told.pop("changes")
    assert told == json.loads(real.stdout)
    written = list(reversed(json.loads(after.stdout)))
    assert changes
    assert changes == [{name: each[name] for name in changes[0]} for each in written]


def test_a_dry_run_points_to_no_list_that_was_not_written(
    pgcorpus: Command, tmp_path: Path
) -> None:
    """It shows the changes itself, and where there are too many of something, its JSON has all."""
    bad = [{"chunk_id": f"c{n}", "content": ""} for n in range(60)]
    good = [{"chunk_id": f"g{n}", "content": "A text of some words."} for n in range(20)]
    (tmp_path / "a.json").write_text(json.dumps(bad + good))

    dry = pgcorpus("import", "knowledge", "a.json", "--dry-run")
    real = pgcorpus("import", "knowledge", "a.json")

    assert "Values that would be changed" in dry.stdout
    assert "character_count" in dry.stdout
    assert "and 10 more; see: --json" in dry.stderr
    assert "more changes; see: --json" in dry.stderr
    assert "pgcorpus import rejects" not in dry.stderr
    assert "Values that would be changed" not in real.stdout
    assert "and 10 more; see: pgcorpus import rejects --corpus knowledge" in real.stderr


def test_names_of_fields_are_whole_at_80_columns(pgcorpus: Command, tmp_path: Path) -> None:
    """Two that begin alike can be told apart."""
    chunk = {"chunk_id": "a", "content": "A text.", "metadata": {"preserves_complete_concept": "y"}}
    (tmp_path / "a.json").write_text(json.dumps([chunk]))

    dry = pgcorpus("import", "knowledge", "a.json", "--dry-run", COLUMNS="80")

    assert "metadata.preserves_complete_concept" in dry.stdout
    assert "…" not in dry.stdout


def test_rejects_are_listed_kept_and_tried_again(pgcorpus: Command, tmp_path: Path) -> None:
    """Exit code 1, a reason, a payload; the same again until the cause is gone."""
    bad = tmp_path / "bad.json"
    bad.write_text(
        json.dumps([{"chunk_id": "x", "text": ""}, {"chunk_id": "y", "text": "One two."}])
    )

    result = pgcorpus("import", "knowledge", str(bad), "--json")
    kept = pgcorpus("import", "rejects", "--json")
    retried = pgcorpus("import", "retry", "--json")

    (reject,) = json.loads(result.stdout)["rejects"]
    assert result.returncode == 1
    assert reject.keys() == {"file", "locator", "reason"}
    assert reject["locator"] == "$[0]"
    assert json.loads(kept.stdout)[0]["payload"] == {"chunk_id": "x", "text": ""}
    assert (retried.returncode, json.loads(retried.stdout)["rejected"]) == (1, 1)


def test_search_has_a_fixed_shape(filled: Command) -> None:
    """Every key that the reference names, and no other."""
    result = filled("search", "raising prices", "--limit", "2", "--json")

    page = json.loads(result.stdout)
    assert result.returncode == 0
    assert page.keys() == {
        "corpus", "mode", "fusion", "question", "degraded", "legs", "hits", "note",
        "learned", "offset", "stand_in", "weights",
    }  # fmt: skip
    assert all(
        leg.keys() == {"name", "status", "candidates", "duration_ms", "reason"}
        for leg in page["legs"]
    )
    assert [hit.keys() for hit in page["hits"]] == [
        {"id", "score", "title", "content", "ranks", "scores", "contributions", "metadata"}
    ] * 2
    assert page["hits"][0]["metadata"]["chunk_id"] == "raising_prices_04"


@pytest.mark.parametrize(
    ("question", "mode", "chunk"),
    [
        ("how many extra sales make up for a 10% discount", "hybrid", "discount_arithmetic_01"),
        ("how many extra sales make up for a 10% discount", "vector", "discount_arithmetic_01"),
        ("LTV CAC payback period", "text", "ltv_cac_04"),
        ("scarcty and urgancy", "fuzzy", "urgency_02"),
    ],
)
def test_the_samples_answer_in_every_mode(
    filled: Command, question: str, mode: str, chunk: str
) -> None:
    """The chunk that a reader would choose comes first."""
    page = json.loads(filled("search", question, "--mode", mode, "--json").stdout)

    assert page["hits"][0]["metadata"]["chunk_id"] == chunk


def test_filters_are_read_from_the_command_line(filled: Command) -> None:
    """One value, several, a range, none."""

    def search(*filters: str) -> list[dict[str, object]]:
        pairs = [part for each in filters for part in ("--filter", each)]
        result = filled("search", "price", "--mode", "vector", "--limit", "50", "--json", *pairs)
        return [hit["metadata"] for hit in json.loads(result.stdout)["hits"]]

    assert {hit["chunk_type"] for hit in search("chunk_type=supporting")} == {"supporting"}
    assert {hit["chunk_type"] for hit in search("chunk_type=supporting,atomic_framework")} == {
        "supporting", "atomic_framework",
    }  # fmt: skip
    assert len(search("created_at=2020-01-01..")) == 26
    assert search("created_at=..2020-01-01") == []
    assert len(search("validation_passed=true,false")) == 27


def test_free_metadata_are_asked_for_in_json(filled: Command, database: Database) -> None:
    """Beside other filters; dates are named as such."""
    with database.engine.begin() as connection:
        connection.execute(
            text("""
                UPDATE framework_documents SET extra = '{"year": 2021, "on": "2021-05-01"}'
                WHERE chunk_id IN ('ltv_cac_04', 'urgency_02')
            """)
        )

    def find(where: str, *more: str) -> set[str]:
        result = filled("search", "price", "--mode", "vector", "--json", "--where", where, *more)
        return {hit["metadata"]["chunk_id"] for hit in json.loads(result.stdout)["hits"]}

    assert find('{"year": {"$gte": 2020}}') == {"ltv_cac_04", "urgency_02"}
    assert find('{"on": {"$lt": {"$date": "2021-05-01T00:00:01+00:00"}}}') == {
        "ltv_cac_04", "urgency_02",
    }  # fmt: skip
    assert find('{"year": 2021}', "--filter", "chunk_id=urgency_02") == {"urgency_02"}
    assert find('{"year": "2021"}') == set()


def test_json_too_deep_to_be_read_is_a_mistake(pgcorpus: Command) -> None:
    """As any other that is not JSON."""
    result = pgcorpus("search", "x", "--where", "[" * 100_000)

    assert (result.returncode, "it is not JSON" in result.stderr) == (2, True)
    assert "Traceback" not in result.stderr


def test_validate_passes_on_the_samples_and_fails_on_a_loss(
    filled: Command, database: Database
) -> None:
    """A chunk that was imported and is gone fails the report."""
    whole = filled("validate", "knowledge", "--json")
    with database.unit_of_work() as work:
        work.knowledge.delete("ltv_cac_04")
        work.commit()
    lacking = filled("validate", "knowledge", "--json")

    report = json.loads(whole.stdout)
    assert (whole.returncode, report["passed"]) == (0, True)
    assert all(
        check.keys() == {"name", "passed", "expected", "found", "where"}
        for check in report["checks"]
    )
    failed = [c["name"] for c in json.loads(lacking.stdout)["checks"] if not c["passed"]]
    assert (lacking.returncode, failed[0]) == (1, "chunk_count")


def test_embed_tells_scripts_what_it_did(filled: Command) -> None:
    """The second time there is nothing to do."""
    report = json.loads(filled("embed", "--json").stdout)

    told = {"corpus", "model", "embedded", "stale", "failed", "waiting", "duration_s"}
    assert report.keys() == told
    assert (report["model"], report["embedded"]) == ("hashing", 0)


def test_models_can_be_added_filled_and_used(filled: Command) -> None:
    """Two models side by side; the second takes over and gives back."""
    add = ("models", "add", "hashing-64", "--dimensions", "64", "--provider", "hashing", "--json")
    assert json.loads(filled(*add).stdout) == {
        "name": "hashing-64", "dimensions": 64, "provider": "hashing", "languages": None,
    }  # fmt: skip
    assert json.loads(filled("embed", "--model", "hashing-64", "--json").stdout)["embedded"] == 27
    used = filled("models", "use", "knowledge", "hashing-64", "--json")
    assert json.loads(used.stdout) == {
        "corpus": "knowledge", "model": "hashing-64", "embedded": 27, "total": 27,
    }  # fmt: skip

    page = json.loads(filled("search", "discount", "--mode", "vector", "--json").stdout)
    listed = json.loads(filled("models", "list", "--json").stdout)

    assert (len(page["hits"]), page["note"]) == (10, None)
    active = {corpus: m["name"] for m in listed for corpus in m["active_for"]}
    assert active == {
        "knowledge": "hashing-64",
        "documentation": "text-embedding-3-small",
        "chat": "all-MiniLM-L6-v2",
        "memory": "bge-m3",
        "episodes": "bge-m3",
    }
    again = filled(*add)
    assert (again.returncode, "there is a model" in again.stderr) == (1, True)


def test_an_applications_login_lists_models_without_what_it_may_not_count(
    filled: Command, database: Database
) -> None:
    """It does not see the counts of memories; all else is listed."""
    assert filled("tenants", "create", "Theirs").returncode == 0  # whose memories could be counted
    with logged_in(database, "rag_read_write") as own:
        address = own.url.render_as_string(hide_password=False)
        done = filled("models", "list", "--json", DATABASE_URL=address)
        shown = filled("models", "list", DATABASE_URL=address)

    assert (done.returncode, done.stderr) == (0, "")
    (coverage,) = (
        each["coverage"] for each in json.loads(done.stdout) if each["name"] == "hashing"
    )
    assert coverage["knowledge"] == {"total": 27, "embedded": 27, "stale": 0}
    assert (coverage["memory"], coverage["episodes"]) == (None, None)
    assert "not shown" in shown.stdout


def test_a_rollback_to_a_model_without_vectors_warns_scripts_too(filled: Command) -> None:
    """It is done; stdout is JSON alone, and stderr has the command that mends it."""
    filled("models", "use", "knowledge", "hashing")
    result = filled("models", "rollback", "knowledge", "--json")

    assert result.returncode == 0
    assert json.loads(result.stdout) == {
        "corpus": "knowledge", "model": "text-embedding-3-large", "embedded": 0, "total": 27,
    }  # fmt: skip
    assert "warning: 27 of 27 passages lack an up-to-date vector" in result.stderr
    assert "pgcorpus models backfill text-embedding-3-large --corpus knowledge" in " ".join(
        result.stderr.split()
    )
    again = filled("models", "rollback", "knowledge", "--json")
    assert (json.loads(again.stdout)["model"], again.stderr) == ("hashing", "")


def page_of(result: subprocess.CompletedProcess[str]) -> tuple[list[str], bool, int]:
    """Return the state of the vector leg, whether there are hits, and the exit code."""
    page = json.loads(result.stdout)
    status = [leg["status"] for leg in page["legs"] if leg["name"] == "vector"]
    assert page["degraded"] == (status != ["ok"])
    return status, bool(page["hits"]), result.returncode


SEARCH = ("search", "discount", "--json")
NOTHING = ("--filter", "section=nowhere")


@pytest.mark.parametrize(
    ("environment", "status", "code"),
    [
        ({}, "ok", 0),
        # The active model has no key, and in production no other stands in.
        ({"ENVIRONMENT": "production"}, "failed", 1),
        # It can embed the question, and no passage was embedded with it.
        ({"EMBEDDING_MODEL": "empty"}, "skipped", 1),
    ],
)
def test_a_search_fails_where_a_leg_could_not_answer_and_nothing_was_found(
    filled: Command, environment: dict[str, str], status: str, code: int
) -> None:
    """Either alone is no failure: the page says what each leg did.

    Words stand in for vectors that nobody made, not for an embedder that failed.
    """
    filled(*ADD_MODEL, "empty")
    found = status != "failed"

    answered = filled(*SEARCH, **environment)
    narrowed = filled(*SEARCH, *NOTHING, **environment)
    vector = filled(*SEARCH, "--mode", "vector", **environment)

    assert page_of(answered) == ([status], True, 0)
    assert page_of(narrowed) == ([status], False, code)
    assert page_of(vector) == ([status], found, 0 if found else 1)


def test_a_leg_that_times_out_fails_a_search_only_where_nothing_was_found(
    filled: Command, database: Database
) -> None:
    """Someone holds the vectors; the words answer, or there is nothing that they could find."""
    impatient = {"DB_STATEMENT_TIMEOUT_MS": "1000"}
    with database.engine.begin() as blocker:
        blocker.execute(text("LOCK TABLE chunk_embeddings IN ACCESS EXCLUSIVE MODE"))
        answered = filled(*SEARCH, **impatient)
        narrowed = filled(*SEARCH, *NOTHING, **impatient)

    assert page_of(answered) == (["timed_out"], True, 0)
    assert page_of(narrowed) == (["timed_out"], False, 1)
    assert "was cancelled, or took longer than DB_STATEMENT_TIMEOUT_MS allows" in answered.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["search", ""], 2, "at least one"),
        (["search", "x", "--mode", "magic"], 2, "magic"),
        (["search", "x", "--filter", "colour"], 2, "NAME=VALUE"),
        (["search", "x", "--filter", "colour=red"], 2, "known: chunk_id"),
        (["search", "x", "--where", "{year"], 2, "it is not JSON"),
        (["search", "x", "--where", "[1]"], 2, "metadata: it is a mapping"),
        (["search", "x", "--where", '{"year": {"$near": 1}}'], 2, "no operator $near; known: $eq"),
        (["search", "x", "--where", '{"x": 1e999}'], 2, "not finite"),
        (["search", "x", "--corpus", "memory", "--where", "{}"], 2, "tenant"),
        (
            ["search", "x", "--corpus", "recipes"],
            2,
            "known: chat, documentation, episodes, knowledge, memory",
        ),
        (["import", "knowledge", "nowhere.json"], 1, "no such file"),
        (["import", "knowledge"], 2, "paths"),
        (["embed", "--model", "gpt"], 2, "pgcorpus models add"),
        (["models", "use", "knowledge", "gpt"], 2, "known:"),
        ([*ADD_MODEL, "x y"], 2, "letters, digits and . _ : / - only, and begins with a letter"),
        ([*ADD_MODEL, "--", "-x"], 2, "begins with a letter or digit"),
        ([*ADD_MODEL, "x" * 101], 2, "at most 100 characters"),
        (["validate", "recipes"], 2, "known: chat, documentation, episodes, knowledge, memory"),
        (["db", "downgrade", "9999"], 1, "9999"),
        (["db", "upgrade", "base"], 2, "pgcorpus db downgrade base"),
        (["db", "upgrade", "--", "-1"], 2, "pgcorpus db downgrade -1"),
        (["nonsense"], 2, "nonsense"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_is_told_in_a_sentence(
    pgcorpus: Command, arguments: list[str], code: int, says: str
) -> None:
    """The cause on stderr, the right exit code, never a trace."""
    result = pgcorpus(*arguments)

    assert result.returncode == code
    assert says.lower() in " ".join(result.stderr.split()).lower()
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["embed", "--model", b"\xff"],
        ["validate", "--model", b"\xff"],
        ["models", "use", "knowledge", b"\xff"],
        ["models", "add", b"\xff", "--dimensions", "8", "--provider", "hashing"],
    ],
    ids=lambda arguments: " ".join(arguments[:2]),
)
def test_an_argument_that_is_no_text_is_refused(
    pgcorpus: Command, arguments: list[str | bytes]
) -> None:
    """No message and no row could hold its bytes."""
    result = pgcorpus(*arguments)

    assert result.returncode == 2
    assert "is not text in UTF-8" in result.stderr
    assert "Traceback" not in result.stderr


def test_what_a_terminal_cannot_show_is_escaped(pgcorpus: Command, tmp_path: Path) -> None:
    """A search does not fail on a letter of its answer."""
    file = tmp_path / "menu.json"
    file.write_text(json.dumps([{"chunk_id": "m", "title": "Café", "text": "Kettle on."}]))
    pgcorpus("import", "knowledge", str(file))

    table = pgcorpus("search", "kettle", "--mode", "text", PYTHONIOENCODING="ascii")
    script = pgcorpus("search", "kettle", "--mode", "text", "--json", PYTHONIOENCODING="ascii")

    assert (table.returncode, script.returncode) == (0, 0)
    assert "Caf\\xe9" in table.stdout
    assert "Traceback" not in table.stderr + script.stderr


def test_ctrl_c_ends_long_work_with_a_sentence(database: Database, tmp_path: Path) -> None:
    """Exit code 130, and never a trace."""
    (tmp_path / "big.json").write_text(
        json.dumps([{"chunk_id": f"c{n}", "text": "Kettle on. " * 200} for n in range(20_000)])
    )
    address = database.url.render_as_string(hide_password=False)
    with database.engine.connect() as observer, database.engine.begin() as blocker:
        # The import waits for this lock: it is surely in the middle when it is interrupted.
        blocker.execute(text("LOCK TABLE framework_documents IN ACCESS EXCLUSIVE MODE"))
        process = subprocess.Popen(
            [PGCORPUS, "import", "knowledge", "big.json"],
            env={"PATH": os.environ["PATH"], "DATABASE_URL": address, "PYTHONPATH": str(PROJECT)},
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            while process.poll() is None and not observer.scalar(WAITS_FOR_A_LOCK):
                time.sleep(0.05)
                observer.rollback()
            process.send_signal(signal.SIGINT)
            _, complaint = process.communicate(timeout=60)
        finally:
            process.kill()
            process.communicate()

    assert process.returncode == 130
    assert "stopped; what was committed stays" in " ".join(complaint.split())
    assert "Traceback" not in complaint


def test_ctrl_c_before_the_command_begins_is_told_the_same(tmp_path: Path) -> None:
    """The settings are read first; the signal comes while ``.env`` is opened."""
    (tmp_path / ".env").touch()
    at_once = (
        "import os, signal, sys\n"
        "from pgcorpus.services.cli import main\n"
        "def opened(event, arguments):\n"
        "    if event == 'open' and str(arguments[0]).endswith('.env'):\n"
        "        os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.addaudithook(opened)\n"
        "main()"
    )
    process = subprocess.run(
        [sys.executable, "-c", at_once, "server", "status"],
        check=False,
        capture_output=True,
        text=True,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(PROJECT)},
        cwd=tmp_path,
        timeout=60,
    )

    assert process.returncode == 130
    assert "stopped" in process.stderr
    assert "Traceback" not in process.stderr


def test_a_wrong_setting_is_named_and_no_secret_is_shown(pgcorpus: Command) -> None:
    """Exit code 2: it was used wrongly."""
    wrong = pgcorpus("db", "current", DB_POOL_SIZE="many")
    hidden = pgcorpus("db", "current", DATABASE_URL="mysql://u:hunter2@h/d")

    assert (wrong.returncode, hidden.returncode) == (2, 2)
    assert "DB_POOL_SIZE" in wrong.stderr
    assert "hunter2" not in hidden.stderr


def test_the_schema_can_be_taken_back_and_made_again(pgcorpus: Command) -> None:
    """As a deployment does it, with the installed command."""
    assert pgcorpus("db", "check").returncode == 0
    down = pgcorpus("db", "downgrade", "-1", "--yes", "--json")
    current = json.loads(pgcorpus("db", "current", "--json").stdout)["revision"]
    assert json.loads(down.stdout) == {"revision": current}
    nothing = pgcorpus("db", "downgrade", "base", "--yes", "--json")
    assert json.loads(nothing.stdout) == {"revision": None}
    assert pgcorpus("search", "price").returncode == 1
    up = json.loads(pgcorpus("db", "upgrade", "--json").stdout)
    assert up["revision"] > current
    versions = json.loads(pgcorpus("db", "history", "--json").stdout)
    assert all(version["applied"] for version in versions)


def test_a_check_of_the_schema_tells_scripts_the_differences(
    pgcorpus: Command, database: Database
) -> None:
    """One line each; tables of others are no difference."""
    with database.engine.begin() as connection:
        connection.execute(text("CREATE TABLE stray (id integer)"))
    clean = pgcorpus("db", "check", "--json")
    with database.engine.begin() as connection:
        connection.execute(text("ALTER TABLE framework_documents ADD COLUMN stray integer"))
    found, lines = pgcorpus("db", "check", "--json"), pgcorpus("db", "check")

    said = "framework_documents.stray: column is not in the models"
    assert (clean.returncode, json.loads(clean.stdout)) == (0, {"passed": True, "differences": []})
    assert json.loads(found.stdout) == {"passed": False, "differences": [said]}
    assert (found.returncode, lines.returncode, lines.stdout) == (1, 1, f"{said}\n")


def test_times_are_iso_8601_for_scripts(filled: Command) -> None:
    """With a T, as every reader of JSON expects."""
    change = json.loads(filled("import", "history", "--limit", "1", "--json").stdout)[0]

    assert "T" in change["created_at"]
    assert datetime.fromisoformat(change["created_at"]).tzinfo is not None


def test_tables_show_text_as_it_is(pgcorpus: Command, tmp_path: Path) -> None:
    """Brackets in a title are no markup."""
    file = tmp_path / "markup.json"
    file.write_text(
        json.dumps([{"chunk_id": "m", "title": "[red]alert[/red]", "text": "Kettle on."}])
    )
    pgcorpus("import", "knowledge", str(file))

    result = pgcorpus("search", "kettle", "--mode", "text")

    assert "[red]alert[/red]" in result.stdout
