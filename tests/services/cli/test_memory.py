"""pgcorpus memory, as a person and as a script use it.

The command runs within the test's process, but where what counts is that it is one of its own: a
signal, an environment.
"""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text

from pgcorpus.db.engine import Database
from pgcorpus.db.errors import UnsafeRole
from pgcorpus.services.cli import main, output
from pgcorpus.services.memory.service import MemoryService
from tests.command import PGCORPUS, Command
from tests.conftest import Databases
from tests.pooler import variables_of
from tests.services.cli.test_main import WAITS_FOR_A_LOCK
from tests.services.memory.setting import Setting, setting
from tests.tenancy import enter

__all__ = ["setting"]

SAID = "We deploy on Tuesdays at noon."


def environment(setting: Setting) -> dict[str, str]:
    """Of a person who logs in as the application."""
    kept = {name: value for name, value in os.environ.items() if name in {"PATH", "HOME"}}
    return kept | variables_of(setting.application.settings) | {"COLUMNS": "160"}


@pytest.fixture
def memory(
    setting: Setting,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Command:
    """Runs ``pgcorpus memory`` in the scope of our tenant, unless told otherwise."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "160")
    for console in (output.out, output.err):
        monkeypatch.setattr(console, "_width", 160)  # which is read when the module is
    monkeypatch.setitem(main.__globals__, "_log", id)  # levels of loggers outlive a test
    monkeypatch.setattr(Database, "from_env", lambda: setting.application)  # which is closed

    def run(
        *arguments: str, scope: tuple[str, ...] | None = None, stdin: str = ""
    ) -> subprocess.CompletedProcess[str]:
        ours = ("--tenant-id", str(setting.ours.tenant_id))
        called = ["pgcorpus", "memory", *arguments, *(ours if scope is None else scope)]
        monkeypatch.setattr(sys, "argv", called)
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        code = ended.value.code
        return subprocess.CompletedProcess(
            called, code if isinstance(code, int) else int(code is not None), *capsys.readouterr()
        )

    return run


def test_a_memory_is_remembered_recalled_told_and_forgotten(memory: Command) -> None:
    """Each command has its shape in JSON, and only that on stdout."""
    kept = memory("remember", SAID, "--answer", "Noted.", "--tag", "topics=deploys", "--json")
    made = json.loads(kept.stdout)
    recalled = memory("recall", "when do we deploy?", "--filter", "topic=deploys", "--json")
    page = json.loads(recalled.stdout)
    stored = memory("episodes", "store", "notes", "--title", "Deploys", "--outcome", "Agreed.",
                    "--json")  # fmt: skip
    told = memory("context", "deploy")
    as_json = json.loads(memory("context", "deploy", "--json").stdout)
    shown = json.loads(memory("show", made["id"], "--json").stdout)
    gone = memory("forget", made["id"], "--yes", "--json")

    assert made.keys() == {
        "id", "outcome", "like", "similarity", "replaced", "embedded", "note"
    }  # fmt: skip
    assert (made["outcome"], made["embedded"]) == ("new", True)
    assert [each["id"] for each in page["memories"]] == [made["id"]]
    assert page.keys() == {
        "corpus", "mode", "fusion", "question", "degraded", "legs", "note", "memories",
        "learned", "offset", "stand_in", "weights",
    }  # fmt: skip
    assert json.loads(stored.stdout)["memory_ids"] == [made["id"]]
    assert told.stdout == as_json["text"] + "\n"
    assert SAID in told.stdout
    assert [part["kind"] for part in as_json["parts"]] == ["episode"]  # which quotes the memory
    assert shown["episode_ids"] == [json.loads(stored.stdout)["id"]]
    assert shown["access_count"] == 3  # one recall, and two contexts that told it
    assert json.loads(gone.stdout) == {
        "memories": 1, "episodes": 0, "vectors": 1, "jobs": 1, "dry_run": False, "user": False,
        "missing": [], "told_by": shown["episode_ids"],
    }  # fmt: skip


def test_what_somebody_said_commands_no_terminal(memory: Command) -> None:
    """An escape sequence in a memory, a title or an id is shown, and not obeyed."""
    hostile = "deploy \x1b]0;title\x07 \x1b[2J \x9b31m now"
    kept = json.loads(memory("remember", hostile, "--json").stdout)
    memory("episodes", "store", "notes", "--title", hostile)
    (episode,) = json.loads(memory("episodes", "list", "--json").stdout)["episodes"]
    told = [
        memory("recall", "deploy"),
        memory("show", kept["id"]),
        memory("episodes", "list"),
        memory("episodes", "show", episode["id"]),
        memory("forget", "\x1b[2J", "--yes"),
    ]

    for each in told:
        assert not {"\x1b", "\x07", "\x9b"} & set(each.stdout + each.stderr)
        assert "\\x1b[2J" in each.stdout + each.stderr


def test_a_person_reads_tables_and_sentences(memory: Command) -> None:
    """The command tells what it did on stderr, and what it found on stdout."""
    kept = memory("remember", "-", stdin=SAID)
    again = memory("remember", SAID, "--conversation", "other")
    memory("episodes", "store", "notes", "--title", "How we deploy")
    found = memory("recall", "deploy")
    listed = memory("episodes", "list")
    touched = memory("touch", "mem_none")
    (episode,) = json.loads(memory("episodes", "list", "--json").stdout)["episodes"]
    shown = memory("episodes", "show", episode["id"])

    assert ": remembered\n" in kept.stderr
    assert "linked to mem_" in again.stderr
    assert "(similarity 1.000)" in again.stderr
    assert "notes #0" in found.stdout
    assert "How we deploy (native, 1 message)" in listed.stdout
    assert f"user: {SAID}" in shown.stdout
    assert touched.returncode == 1


def test_forgetting_asks_first_and_says_how_much(setting: Setting, memory: Command) -> None:
    """Nothing is forgotten without a yes; a dry run neither asks nor forgets."""
    for words in ("One.", "Two."):
        memory("remember", words, "--source", "openai")
    counted = memory("forget", "--filter", "source=openai", "--dry-run")
    refused = memory("forget", "--filter", "source=openai", stdin="n\n")
    unanswered = memory("forget", "--everything")
    before = setting.counts(setting.ours)["memory_nodes"]
    agreed = memory("forget", "--filter", "source=openai", stdin="y\n")

    assert "2 memories and 0 episodes would be forgotten" in counted.stderr
    assert "Forget 2 memories and 0 episodes for good?" in refused.stderr
    assert (counted.returncode, refused.returncode, unanswered.returncode) == (0, 1, 1)
    assert before == 2
    assert (agreed.returncode, setting.rows("memory_nodes")) == (0, [])
    assert "2 memories and 0 episodes forgotten" in agreed.stderr


def test_where_nothing_would_be_forgotten_nobody_is_asked(
    setting: Setting, memory: Command
) -> None:
    """An id that is not there is named, and an error; a filter that finds nothing is none."""
    memory("remember", SAID)
    named = memory("forget", "mem_nope")
    as_json = memory("forget", "mem_nope", "--json")
    filtered = memory("forget", "--filter", "source=grok")

    for asked in (named, as_json, filtered):
        assert "for good?" not in asked.stderr
    assert (named.returncode, as_json.returncode, filtered.returncode) == (1, 1, 0)
    assert "not in this scope: mem_nope" in named.stderr
    assert "there is nothing to forget" in filtered.stderr
    assert json.loads(as_json.stdout) == {
        "memories": 0, "episodes": 0, "vectors": 0, "jobs": 0, "dry_run": False, "user": False,
        "missing": ["mem_nope"], "told_by": [],
    }  # fmt: skip
    assert setting.counts(setting.ours)["memory_nodes"] == 1


def test_an_episode_of_another_user_is_kept_beside_ones_own(
    setting: Setting, memory: Command
) -> None:
    """The error says how."""
    ann, bob = (
        ("--tenant-id", str(setting.ours.tenant_id), "--user-id", str(user))
        for user in (setting.ann, setting.bob)
    )
    memory("remember", SAID, scope=ann)
    first = memory("episodes", "store", "notes", scope=ann)
    refused = memory("episodes", "store", "notes", scope=bob)
    beside = memory("episodes", "store", "notes", "--id", "ep_bob", scope=bob)

    assert (first.returncode, refused.returncode, beside.returncode) == (0, 1, 0)
    assert "give yours an id of its own" in " ".join(refused.stderr.split())
    assert {row["user_id"] for row in setting.rows("episodic_memories")} == {
        setting.ann, setting.bob
    }  # fmt: skip


def test_a_user_is_forgotten_with_their_account(setting: Setting, memory: Command) -> None:
    """Of a tenant: what colleagues wrote stays."""
    tenant = ("--tenant-id", str(setting.ours.tenant_id))
    for words, user in (("Ann's.", setting.ann), ("Bob's.", setting.bob)):
        memory("remember", words, scope=(*tenant, "--user-id", str(user)))
    gone = memory("forget", "--all-of", str(setting.ann), "--account", "--yes")

    assert "1 memory and 0 episodes and the user forgotten" in gone.stderr
    assert [row["human_content"] for row in setting.rows("memory_nodes")] == ["Bob's."]


MISTAKES: list[tuple[list[str], tuple[str, ...] | None, int, str]] = [
    (["recall", "x"], (), 2, "give --user-id UUID or --tenant-id UUID"),
    (["recall", "x"], ("--user-id", "me"), 2, "Invalid UUID format: 'me'"),
    (["recall", "x", "--filter", "colour=red"], None, 2, "no filter colour; known:"),
    (["remember", "x", "--tag", "colours=red"], None, 2, "is not KIND=NAME"),
    (["remember", " "], None, 2, "what was said or what was answered"),
    (["remember", ""], None, 2, "what was said or what was answered"),
    (["remember", "x", "--threshold", "2"], None, 2, "--threshold"),
    (["remember", "x", "--threshold", "0"], None, 2, "threshold must be above 0"),
    (["remember", "x", "--source", "s" * 60], None, 2, "source is too long: 60 characters, and 50"),
    (["remember", "x", "--conversation", "c" * 256], None, 2, "conversation_id is too long"),
    (["context", "x", "--max-tokens", "0"], None, 2, "--max-tokens"),
    (["episodes", "store", "notes", "--id", "mem_0"], None, 2, "an id begins with ep_"),
    (["remember", "x"], ("--user-id", "1" * 32), 1, "pgcorpus users list"),
    (["forget", "mem_0", "--everything"], None, 2, "give exactly one of"),
    (["forget", "mem_0", "--account"], None, 2, "--account goes with --all-of"),
    (["forget", "mem_0", "--yes"], None, 1, "not in this scope: mem_0"),
    (["episodes", "show", "ep_0"], None, 1, "there is no episode ep_0 in this scope"),
    (["episodes", "store", "nowhere"], None, 1, "no memories to take them from"),
]
"""Arguments, scope (ours, where None), exit code, what is told."""


def test_what_cannot_be_done_is_told_in_a_sentence(memory: Command) -> None:
    """With the exit code that scripts go by, nothing on stdout and no trace."""
    for arguments, scope, code, told in MISTAKES:
        result = memory(*arguments, scope=scope)

        said = " ".join(result.stderr.replace("│", " ").split())
        assert result.returncode == code, result.stderr
        assert told in said
        assert "Traceback" not in result.stderr
        assert result.stdout == ""


def test_a_scope_that_is_nobodys_is_told(setting: Setting, memory: Command) -> None:
    """An empty table would say that there is nothing to recall."""
    ours, person = setting.ours.tenant_id, setting.person.user_id
    for scope, told in (
        (("--tenant-id", "1" * 32), "there is no tenant 1111"),
        (("--tenant-id", str(ours), "--user-id", str(person)), f"{ours} has no user {person}"),
        (("--user-id", "1" * 32), "there is no user 1111"),
        (("--user-id", str(setting.ann)), "the tenant's: use --tenant-id"),
    ):
        answer = memory("recall", "x", scope=scope)

        assert (answer.returncode, answer.stdout) == (1, "")
        assert told in " ".join(answer.stderr.split())


def test_a_search_for_nobody_is_refused(setting: Setting) -> None:
    """As the commands of memory are."""
    done = subprocess.run(
        [PGCORPUS, "search", "x", "--corpus", "memory", "--user-id", "1" * 32],
        check=False,
        capture_output=True,
        text=True,
        env=environment(setting),
        timeout=120,
    )

    assert (done.returncode, done.stdout) == (1, "")
    assert "there is no user 1111" in done.stderr


def test_a_login_that_sees_everything_is_told_how_to_make_another(
    setting: Setting, tmp_path: Path
) -> None:
    """Before anything is read."""
    result = subprocess.run(
        [PGCORPUS, "memory", "recall", "x", "--tenant-id", str(setting.ours.tenant_id)],
        check=False,
        capture_output=True,
        text=True,
        env=environment(setting) | variables_of(setting.owner.settings),
        cwd=tmp_path,
        timeout=120,
    )

    assert result.returncode == 1
    assert "pgcorpus roles create-user" in " ".join(result.stderr.split())
    with pytest.raises(UnsafeRole):
        MemoryService(setting.owner).recall("x", scope=setting.ours)


def test_ctrl_c_leaves_whole_memories_and_the_same_command_goes_on(
    setting: Setting, memory: Command, databases: Databases, tmp_path: Path
) -> None:
    """A batch that waits is taken back, and nothing of it is gone."""
    memory("remember", SAID)
    (row,) = setting.rows("memory_nodes")
    with setting.owner.engine.connect() as connection, connection.begin():
        enter(connection, setting.ours)
        connection.execute(text("SELECT FROM memory_nodes FOR UPDATE"))
        process = subprocess.Popen(
            [PGCORPUS, "memory", "forget", "--everything", "--yes", "--tenant-id",
             str(setting.ours.tenant_id)],
            env=environment(setting),
            cwd=tmp_path,
            stderr=subprocess.PIPE,
            text=True,
        )  # fmt: skip
        superuser = create_engine(databases.superuser_of(setting.owner.url))
        with superuser.connect() as watching:  # nobody else is told what another login waits for
            while process.poll() is None and not watching.scalar(WAITS_FOR_A_LOCK):
                watching.rollback()
        superuser.dispose()
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=60)

    assert process.returncode == 130
    assert "run the same command again to finish" in told
    assert setting.counts(setting.ours)["memory_embeddings"] == 1
    assert setting.node(row["id"]) == row
    assert memory("forget", "--everything", "--yes").returncode == 0
    assert setting.rows("memory_nodes") == []


def test_stdin_that_is_no_text_is_refused(setting: Setting, tmp_path: Path) -> None:
    """Exit code 2 and a sentence."""
    done = subprocess.run(
        [PGCORPUS, "memory", "remember", "-", "--tenant-id", str(setting.ours.tenant_id)],
        input=b"\xff\xfe",
        check=False,
        capture_output=True,
        env=environment(setting) | {"LC_ALL": "C.UTF-8", "PYTHONUTF8": "0"},
        cwd=tmp_path,
    )

    assert done.returncode == 2
    assert b"usage: pgcorpus memory remember" in done.stderr
    assert b"Traceback" not in done.stderr
