"""Every command, as each of those who log in to a hosted server: it is done, or says who may.

The database is that of an owner who is no superuser. What a login may not do it is told in a
sentence: what was refused, to whom, and what mends it.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Final
from uuid import uuid4

import pytest

from pgcorpus.db.choices import Group
from pgcorpus.db.engine import Database
from pgcorpus.services import samples
from tests.commands import list_commands, run_commands
from tests.logins import logged_in
from tests.pooler import variables_of

TENANT: Final = "11111111-1111-1111-1111-111111111111"
USER: Final = "22222222-2222-2222-2222-222222222222"
LOGIN: Final = f"shop_{uuid4().hex[:12]}"
OF_USER: Final = ("--user-id", USER)
ELSEWHERE: Final = {
    *("demo", "server start", "server stop", "server status", "server destroy"),
    *("verify-isolation", "metrics serve", "tune documentation", "tune chat", "tune memory"),
    *("backup create", "backup verify", "backup restore"),
}
"""Commands of the embedded server, which has a superuser's login alone; one that takes as long as
all others together, which tests/services/ops/test_isolation.py tries; one that runs until it is
stopped, which tests/services/cli/test_metrics.py tries; those that need vectors, which
``tune knowledge`` has; and those that need programs of the server's version, which
tests/services/ops/backup tries as each login."""

FINDING: Final = {"doctor", "health", "validate", "models verify"}
"""The exit code tells what was found, and not what the login may do."""

SEED: Final = (
    ("import", "knowledge", str(samples.folder("knowledge"))),
    ("import", "chat", str(samples.folder("chat"))),
    ("import", "documentation", str(samples.folder("documentation"))),
    ("tenants", "create", "Ours", "--id", TENANT),
    ("users", "create", "--email", "ann@example.com", "--id", USER),
    ("models", "use", "memory", "hashing", "--force"),
    ("models", "add", "spare", "--dimensions", "8", "--provider", "hashing"),
    ("embed",),
)
"""Commands that the owner runs first."""

WRITTEN: Final = (
    ("memory", "remember", "We deploy on Tuesdays.", *OF_USER, "--json"),
    ("memory", "episodes", "store", "notes", *OF_USER, "--id", "ep_0"),
    ("chat", "list", "--json"),
    ("jobs", "list", "--json"),
)
"""Commands that a service runs next."""


WHO_MAY: Final = "has no right to do this .*pgcorpus roles show"
ADMINISTRATOR: Final = "pgcorpus roles create-user NAME --role rag_admin"
SERVICE: Final = "pgcorpus roles create-user NAME --role rag_read_write"

MAINTAINER: Final = "Run maintenance as their owner, .*--role rag_admin"

OF_OWNER: Final = {
    "eval": "ALTER ROLE .* CREATEROLE",
    "roles create-user": "ALTER ROLE .* CREATEROLE; GRANT .* WITH ADMIN OPTION",
    "roles drop-user": "there is no login",
    "models add": WHO_MAY,
    "models drop": WHO_MAY,
    "db downgrade": "as the owner of the database",
}
"""Commands for the owner alone, and what others are told."""

OF_ADMINISTRATOR: Final = {
    "tenants ceiling": ADMINISTRATOR,
    "tenants list": ADMINISTRATOR,
    "tenants create": ADMINISTRATOR,
    "users list": ADMINISTRATOR,
    "users create": ADMINISTRATOR,
    "import documentation": ADMINISTRATOR,
    "audit show": WHO_MAY,
    "performance": WHO_MAY,
    "audit verify": WHO_MAY,
    "audit seal": WHO_MAY,
    "maintenance weekly": MAINTAINER,
    "maintenance monthly": MAINTAINER,
    "maintenance now": MAINTAINER,
    "maintenance schedule": MAINTAINER,
    "maintenance log": WHO_MAY,
    "models backfill": ADMINISTRATOR,
    "models use": WHO_MAY,
    "models rollback": WHO_MAY,
}
"""Commands for members of rag_admin and the owner, and what others are told."""

OF_OTHERS: Final = OF_OWNER | OF_ADMINISTRATOR | {"models drop": ADMINISTRATOR}
"""The same for who is neither: a model is looked for in the memories of all tenants first."""

OF_SERVICE: Final = {
    "chat save": WHO_MAY,
    "chat unsave": WHO_MAY,
    "memory remember": WHO_MAY,
    "memory touch": WHO_MAY,
    "memory episodes store": WHO_MAY,
    "memory forget": WHO_MAY,
    "import knowledge": WHO_MAY,
    "import chat": WHO_MAY,
    "import memory": WHO_MAY,
    "import retry": WHO_MAY,
    "worker": WHO_MAY,
    "jobs requeue": WHO_MAY,
    "jobs purge": WHO_MAY,
}
"""Commands that write rows, and what a login that only reads is told; ``embed`` finds nothing to
do."""

WITHIN_A_SCOPE: Final = dict.fromkeys(
    (
        *("memory recall", "memory context", "memory show", "memory remember", "memory touch"),
        *("memory forget", "memory episodes list", "memory episodes show", "memory episodes store"),
    ),
    SERVICE,
)
"""Commands of a service within a scope, and what a login that sees all scopes is told."""

REFUSED: Final[Mapping[Group | None, Mapping[str, str]]] = {
    None: WITHIN_A_SCOPE,
    "rag_admin": WITHIN_A_SCOPE | OF_OWNER,
    "rag_read_write": OF_OTHERS,
    "rag_read_only": OF_SERVICE | OF_OTHERS,
}
"""Commands that are refused, to whom, and what the refusal says is needed; None is the owner."""


def write_collection(folder: Path) -> Path:
    """A test collection of one document and one question."""
    folder.mkdir()
    document = {"_id": "kettle", "title": "Kettles", "text": "A kettle boils water."}
    (folder / "corpus.jsonl").write_text(json.dumps(document))
    (folder / "queries.jsonl").write_text(json.dumps({"_id": "q", "text": "kettle"}))
    (folder / "qrels.tsv").write_text("query-id\tcorpus-id\tscore\nq\tkettle\t1\n")
    return folder


def write_judgements(folder: Path) -> Path:
    """Judge a question's hits by columns that all of them have."""
    folder.mkdir()
    (folder / "queries.jsonl").write_text(json.dumps({"_id": "q", "text": "the price of a page"}))
    judged = ("supporting", "atomic_framework", "framework_section", "user", "assistant", "default")
    (folder / "qrels.tsv").write_text("".join(f"q\t{each}\t1\n" for each in judged))
    return folder


def make_commands(folder: Path, said: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Every command with its arguments, in an order in which each can be done.

    Args:
        folder: For files.
        said: What the commands of ``SEED`` printed.
    """
    memory, _, chats, jobs = (json.loads(each or "null") for each in said[-4:])
    conversation = chats["conversations"][0]["id"]
    job = str(jobs[0]["id"])
    collection = str(write_collection(folder / "collection"))
    judged = ("--judgements", str(write_judgements(folder / "judged")))
    return {
        "db current": (),
        "db history": (),
        "db check": (),
        "db upgrade": (),
        "search": ("price",),
        "filters": (),
        "validate": (),
        "learn documentation": (),
        "learn status": (),
        "tune knowledge": (*judged, "--key", "chunk_type"),
        "tune status": (),
        "doctor": (),
        "health": (),
        "performance": (),
        "eval": (collection,),
        "import history": (),
        "import rejects": (),
        "export chat": (conversation,),
        "export documentation": (str(folder / "documentation.db"), "--replace"),
        "export memory": (str(folder / "memory"), *OF_USER, "--replace"),
        "chat list": (),
        "chat show": (conversation,),
        "chat stats": (),
        "memory recall": ("deploy", *OF_USER),
        "memory context": ("deploy", *OF_USER),
        "memory show": (memory["id"], *OF_USER),
        "memory episodes list": OF_USER,
        "memory episodes show": ("ep_0", *OF_USER),
        "models list": (),
        "models verify": ("hashing", "--corpus", "knowledge"),
        "jobs list": (),
        "jobs show": (job,),
        "jobs stats": (),
        "tenants ceiling": (),
        "tenants list": (),
        "users list": (),
        "roles show": (),
        "audit show": (),
        "audit verify": (),
        "maintenance log": (),
        "maintenance schedule": ("pg_cron",),
        "backup list": (),
        "backup prune": ("--yes",),
        "chat save": (conversation,),
        "chat unsave": (conversation,),
        "memory remember": ("Boil the kettle.", *OF_USER),
        "memory touch": (memory["id"], *OF_USER),
        "memory episodes store": ("notes", *OF_USER),
        "memory forget": (memory["id"], *OF_USER, "--yes"),
        "import knowledge": (str(samples.folder("knowledge")),),
        "import documentation": (str(samples.folder("documentation") / "index.md"),),
        "import chat": (str(samples.folder("chat")),),
        "import memory": (str(samples.folder("memory")), *OF_USER),
        "import retry": (),
        "embed": (),
        "worker": ("--once",),
        "jobs requeue": ("--failed",),
        "jobs purge": ("--older-than", "7d"),
        "models add": ("added", "--dimensions", "8", "--provider", "hashing"),
        "models backfill": ("hashing",),
        "models use": ("knowledge", "hashing"),
        "models rollback": ("knowledge",),
        "models drop": ("spare", "--yes"),
        "learn rollback": ("documentation",),
        "tune rollback": ("knowledge",),
        "tenants create": ("Theirs",),
        "users create": ("--email", "bob@example.com"),
        "roles create-user": (LOGIN, "--role", "rag_read_only", "--generate"),
        "roles drop-user": (LOGIN, "--yes"),
        "audit seal": (),
        "audit retain": ("--months", "1", "--yes"),
        "maintenance weekly": (),
        "maintenance monthly": (),
        "maintenance now": ("bloat_report",),
        "db downgrade": ("-1", "--yes"),
    }


def environment(database: Database) -> dict[str, str]:
    """Variables of a command, for a database and who logs in to it."""
    return {"PATH": os.defpath, "COLUMNS": "200"} | variables_of(database.settings)


def prepare(database: Database, folder: Path) -> dict[str, tuple[str, ...]]:
    """Write rows of every corpus, each as who writes them, and make all commands about them."""
    done = run_commands(environment(database), folder, SEED)
    with logged_in(database, "rag_read_write") as service:
        written = run_commands(environment(service), folder, WRITTEN)
    assert [each.stderr for each in (*done, *written) if each.code] == []
    return make_commands(folder, [each.stdout for each in written])


def test_no_command_is_left_out(tmp_path: Path) -> None:
    """A new command gets its line above, and is tried by everybody."""
    said = ['{"id": "mem_0"}', "", '{"conversations": [{"id": "c"}]}', '[{"id": 1}]']

    tried = make_commands(tmp_path, said)

    assert sorted({*tried, *ELSEWHERE}) == sorted(name for name, _ in list_commands())


@pytest.mark.parametrize("group", REFUSED)
def test_every_command_is_done_or_says_what_is_needed(
    database: Database, tmp_path: Path, group: Group | None
) -> None:
    """By the owner, and by a login of each group; a refusal is a sentence and never a trace."""
    commands, refused = prepare(database, tmp_path), REFUSED[group]
    with ExitStack() as stack:
        login = stack.enter_context(logged_in(database, group)) if group else database
        lines = [(*name.split(), *arguments) for name, arguments in commands.items()]
        done = run_commands(environment(login), tmp_path, lines)

    wrong = {
        name: (result.code, result.stderr)
        for name, result in zip(commands, done, strict=True)
        if "Traceback" in result.stderr
        or (name not in FINDING and result.code != int(name in refused))
        or (name in refused and not re.search(refused[name], result.stderr))
    }
    assert wrong == {}
