"""pgcorpus import chat, as a person and as a script use it."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest

from tests.command import Command
from tests.factories import exports


def test_an_import_is_told_to_people_and_to_scripts(pgcorpus: Command, tmp_path: Path) -> None:
    """A table, or one JSON document on stdout and nothing else."""
    (tmp_path / "a.json").write_text(json.dumps(list(exports.chatgpt(3, turns=4))))
    (tmp_path / "user.json").write_text('{"id": 1}')

    first = pgcorpus("import", "chat", ".", "--json")
    second = pgcorpus("import", "chat", "a.json", ".")

    report = json.loads(first.stdout)
    assert (first.returncode, second.returncode) == (0, 0)
    assert (report["added"], report["messages"]) == (3, 12)
    assert [each["file"] for each in report["skipped"]] == ["user.json"]
    assert "a.json" in second.stdout
    assert "skipped 1 (user.json): it holds no conversations" in second.stderr
    assert "0 messages were written" in second.stderr


def test_files_of_one_name_are_told_apart(pgcorpus: Command, tmp_path: Path) -> None:
    """Every zip of a provider has its conversations.json."""
    for name, export in (("one", exports.chatgpt(1)), ("two", exports.claude(1))):
        with zipfile.ZipFile(tmp_path / f"{name}.zip", "w") as archive:
            archive.writestr("conversations.json", json.dumps(list(export)))

    done = pgcorpus("import", "chat", "one.zip", "two.zip")

    assert "one.zip/conversations.json" in done.stdout
    assert "two.zip/conversations.json" in done.stdout


def test_a_folder_without_a_conversation_fails(pgcorpus: Command, tmp_path: Path) -> None:
    """A caller that names it expects some; conversations in which nothing is said are some."""
    (tmp_path / "chunks").mkdir()
    (tmp_path / "chunks" / "a.json").write_text('[{"chunk_id": "a", "content": "b"}]')
    (tmp_path / "silent.json").write_text('[{"uuid": "a", "name": "", "chat_messages": []}]')

    chunks = pgcorpus("import", "chat", "chunks")
    silent = pgcorpus("import", "chat", "silent.json")

    assert (chunks.returncode, silent.returncode) == (1, 0)
    assert "chunks: it holds no conversations" in chunks.stderr
    assert "skipped 1 (silent.json $[0]): it has no messages with text" in silent.stderr


def test_what_was_rejected_is_shown_and_tried_again(pgcorpus: Command, tmp_path: Path) -> None:
    """Apart from what is knowledge's; the exit code says that something did not go in."""
    conversation = next(exports.claude(1))
    conversation["name"] = 5
    (tmp_path / "a.json").write_text(json.dumps([conversation]))

    strict = pgcorpus("import", "chat", "a.json", "--strict")
    rejects = json.loads(pgcorpus("import", "rejects", "--corpus", "chat", "--json").stdout)
    others = json.loads(pgcorpus("import", "rejects", "--json").stdout)
    again = pgcorpus("import", "retry", "--corpus", "chat", "--json")
    history = pgcorpus(
        "import", "history", "--corpus", "chat", "--item", conversation["uuid"], "--json"
    )

    assert strict.returncode == 1
    assert "name would be changed from 5" in strict.stderr
    assert [(each["locator"], each["payload"]) for each in rejects] == [("$[0]", conversation)]
    assert others == []
    assert (again.returncode, json.loads(again.stdout)["added"]) == (0, 1)
    assert [each["rule"] for each in json.loads(history.stdout)] == ["title"]


def test_a_dry_run_says_so_and_leaves_nothing(pgcorpus: Command, tmp_path: Path) -> None:
    """The report is that of a real run."""
    (tmp_path / "a.json").write_text(json.dumps(list(exports.openwebui(2))))

    dry = pgcorpus("import", "chat", "a.json", "--dry-run", "--json")
    real = pgcorpus("import", "chat", "a.json", "--json")

    assert "dry run: nothing was written" in dry.stderr
    told = json.loads(dry.stdout)
    assert told.pop("changes") == []
    assert told == json.loads(real.stdout)


def test_the_rows_of_the_table_sum_to_all(pgcorpus: Command, tmp_path: Path) -> None:
    """A file that broke off counts with what went in before, and is told as an error, too."""
    whole, broken = list(exports.openwebui(2)), list(exports.claude(3))
    (tmp_path / "a.json").write_text(json.dumps(whole))
    (tmp_path / "b.json").write_text(json.dumps(broken)[:-20])

    done = pgcorpus("import", "chat", "a.json", "b.json")

    assert done.returncode == 1
    added = {
        cells[1].strip(): int(cells[2])
        for line in done.stdout.splitlines()
        if len(cells := line.split("│")) > 3
    }
    assert added == {"a.json": 2, "b.json": 2, "all": 4}
    assert "b.json: the file ends at byte" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["chat", "a.json", "--format", "icq"], "icq"),
        (["chat", "a.json", "--embeddings-model", "nope"], "nope"),
        (["chat", "a.json", "--language", "klingon"], "known: auto, arabic"),
        (["chat"], "paths"),
        (["retry", "--corpus", "chat", "--on-conflict", "update"], "the newer wins"),
        (["rejects", "--corpus", "nothing"], "nothing"),
    ],
)
def test_misuse_is_refused_with_exit_code_2(
    pgcorpus: Command, arguments: list[str], said: str
) -> None:
    """Before anything is read or written."""
    done = pgcorpus("import", *arguments)

    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_a_missing_file_is_an_error_in_a_sentence(pgcorpus: Command) -> None:
    """The exit code is 1."""
    done = pgcorpus("import", "chat", "missing.zip")

    assert done.returncode == 1
    assert "missing.zip: there is no such file or folder" in done.stderr
    assert "Traceback" not in done.stderr
