"""The command, as a person and as a script use it: real processes, real exit codes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from db.engine import Database
from services import samples

Command = Callable[..., subprocess.CompletedProcess[str]]
PGCORPUS = Path(sys.executable).with_name("pgcorpus")


@pytest.fixture
def pgcorpus(database: Database, tmp_path: Path) -> Command:
    """Runs the installed command on a database of the test's own."""
    environment = {name: value for name, value in os.environ.items() if name in {"PATH", "HOME"}}
    environment["DATABASE_URL"] = database.url.render_as_string(hide_password=False)
    environment["COLUMNS"] = "160"

    def run(*arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [PGCORPUS, *arguments],
            check=False,
            capture_output=True,
            text=True,
            env=environment | more,
            cwd=tmp_path,
            timeout=120,
        )

    return run


@pytest.fixture
def filled(pgcorpus: Command) -> Command:
    """The samples, imported and embedded."""
    assert pgcorpus("import", "knowledge", str(samples.folder())).returncode == 0
    assert pgcorpus("embed").returncode == 0
    return pgcorpus


def test_import_tells_scripts_what_became_of_every_chunk(pgcorpus: Command) -> None:
    """The shape is fixed, the counts add up, and a second run changes nothing."""
    first = pgcorpus("import", "knowledge", str(samples.folder()), "--json")
    second = pgcorpus("import", "knowledge", str(samples.folder()), "--json")

    report, again = json.loads(first.stdout), json.loads(second.stdout)
    assert (first.returncode, second.returncode) == (0, 0)
    assert report.keys() == {
        "files", "added", "updated", "unchanged", "rejected", "transformed", "rejects",
    }  # fmt: skip
    assert len(report["files"]) == 11
    assert report["added"] + report["unchanged"] == 28
    assert (again["added"], again["updated"], again["unchanged"]) == (0, 0, 28)


def test_a_dry_run_reports_the_same_and_writes_nothing(pgcorpus: Command) -> None:
    """Not even into the history."""
    dry = pgcorpus("import", "knowledge", str(samples.folder()), "--dry-run", "--json")
    history = pgcorpus("import", "history", "--json")
    real = pgcorpus("import", "knowledge", str(samples.folder()), "--json")

    assert json.loads(history.stdout) == []
    assert json.loads(dry.stdout) == json.loads(real.stdout)


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

    def found(*filters: str) -> list[dict[str, object]]:
        pairs = [part for each in filters for part in ("--filter", each)]
        result = filled("search", "price", "--mode", "vector", "--limit", "50", "--json", *pairs)
        return [hit["metadata"] for hit in json.loads(result.stdout)["hits"]]

    assert {hit["chunk_type"] for hit in found("chunk_type=supporting")} == {"supporting"}
    assert {hit["chunk_type"] for hit in found("chunk_type=supporting,atomic_framework")} == {
        "supporting", "atomic_framework",
    }  # fmt: skip
    assert len(found("created_at=2020-01-01..")) == 26
    assert found("created_at=..2020-01-01") == []
    assert len(found("validation_passed=true,false")) == 27


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
        check.keys() == {"name", "passed", "expected", "found"} for check in report["checks"]
    )
    failed = [c["name"] for c in json.loads(lacking.stdout)["checks"] if not c["passed"]]
    assert (lacking.returncode, failed[0]) == (1, "chunk_count")


def test_embed_tells_scripts_what_it_did(filled: Command) -> None:
    """The second time there is nothing to do."""
    report = json.loads(filled("embed", "--json").stdout)

    assert report.keys() == {"corpus", "model", "embedded", "stale", "failed", "duration_s"}
    assert (report["model"], report["embedded"]) == ("hashing", 0)


def test_models_can_be_added_filled_and_used(filled: Command) -> None:
    """Two models side by side; the second takes over and gives back."""
    assert (
        filled(
            "models", "add", "hashing-64", "--dimensions", "64", "--provider", "hashing"
        ).returncode
        == 0
    )
    assert json.loads(filled("embed", "--model", "hashing-64", "--json").stdout)["embedded"] == 27
    assert filled("models", "use", "knowledge", "hashing-64").returncode == 0

    page = json.loads(filled("search", "discount", "--mode", "vector", "--json").stdout)
    listed = json.loads(filled("models", "list", "--json").stdout)

    assert (len(page["hits"]), page["note"]) == (10, None)
    assert [m["name"] for m in listed if m["active_for"]] == ["hashing-64"]
    again = filled("models", "add", "hashing-64", "--dimensions", "64", "--provider", "hashing")
    assert (again.returncode, "there is a model" in again.stderr) == (1, True)


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["search", ""], 1, "at least one"),
        (["search", "x", "--mode", "magic"], 2, "magic"),
        (["search", "x", "--filter", "colour"], 2, "NAME=VALUE"),
        (["search", "x", "--filter", "colour=red"], 1, "known: chunk_id"),
        (["search", "x", "--corpus", "recipes"], 1, "known: knowledge"),
        (["import", "knowledge", "nowhere.json"], 1, "no such file"),
        (["import", "knowledge"], 2, "paths"),
        (["embed", "--model", "gpt"], 1, "pgcorpus models add"),
        (["models", "use", "knowledge", "gpt"], 1, "known:"),
        (["validate", "recipes"], 1, "known: knowledge"),
        (["db", "downgrade", "9999"], 1, "9999"),
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
    assert pgcorpus("db", "downgrade", "-1").returncode == 0
    assert json.loads(pgcorpus("db", "current", "--json").stdout)["revision"] == "0005"
    assert pgcorpus("db", "downgrade", "base").returncode == 0
    assert pgcorpus("search", "price").returncode == 1
    assert pgcorpus("db", "upgrade").returncode == 0
    versions = json.loads(pgcorpus("db", "history", "--json").stdout)
    assert all(version["applied"] for version in versions)


def test_tables_show_text_as_it_is(pgcorpus: Command, tmp_path: Path) -> None:
    """Brackets in a title are no markup."""
    file = tmp_path / "markup.json"
    file.write_text(
        json.dumps([{"chunk_id": "m", "title": "[red]alert[/red]", "text": "Kettle on."}])
    )
    pgcorpus("import", "knowledge", str(file))

    result = pgcorpus("search", "kettle", "--mode", "text")

    assert "[red]alert[/red]" in result.stdout
