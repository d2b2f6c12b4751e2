"""Stored text never commands a terminal, whatever command shows it; files get it as it is."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable, Iterator

import pytest

from pgcorpus.db.engine import Database
from pgcorpus.db.scope import Scope
from pgcorpus.services.cli import lazy
from pgcorpus.services.cli.main import app
from pgcorpus.services.memory.service import MemoryService
from tests import factories
from tests.logins import logged_in

HOSTILE = (
    "kettle \x1b]0;owned\x07 \x1b[2J \x9b31m \x9d0;x\x9c \r gone \x08\x7f"
    " \u202a\u202b\u202c\u202d\u202e \u2066\u2067\u2068\u2069 \u200e\u200f\u061c \u2028\u2029 on"
)
SHORT = HOSTILE[:40]
COMMANDS = set(HOSTILE) - set("kettle ]0;ownd2J31mxgon[")
"""Each character of it that a terminal could obey."""


class Terminal(io.StringIO):
    """Somebody watches."""

    def isatty(self) -> bool:
        """Say so."""
        return True


Run = Callable[..., str]


@pytest.fixture
def service(database: Database) -> Iterator[Database]:
    """The login that memories are read with."""
    with logged_in(database, "rag_read_write") as service:
        yield service


@pytest.fixture
def run(database: Database, service: Database, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs a command in this process and gives all that it printed on both streams."""
    monkeypatch.setenv("TERM", "dumb")  # of its own accord the command prints no escapes, either
    monkeypatch.setenv("COLUMNS", "1000")

    def run(*arguments: str, watched: bool = True) -> str:
        stream = Terminal() if watched else io.StringIO()
        used = service if "--user-id" in arguments else database
        with monkeypatch.context() as patch:
            patch.setattr(Database, "from_env", classmethod(lambda _: used))
            patch.setattr(sys, "stdout", stream)
            patch.setattr(sys, "stderr", stream)
            patch.setattr(lazy, "prepare", tuple)  # the environment outlives a test
            app(arguments, standalone_mode=False)
        return stream.getvalue()

    return run


@pytest.fixture
def names(database: Database, service: Database) -> dict[str, str]:
    """Hostile text wherever text can be stored, and what the rows are called."""
    with database.unit_of_work() as work:
        factories.bind(work.session)
        document = factories.FrameworkDocumentFactory(title=HOSTILE, content=HOSTILE)
        talk = factories.ConversationFactory(title=HOSTILE, source_id=HOSTILE, source_type=SHORT)
        factories.MessageFactory(conversation=talk, content=HOSTILE)
        tenant = factories.TenantFactory(name=HOSTILE)
        user = factories.UserFactory(
            tenant_id=None, external_id=HOSTILE, display_name=HOSTILE, auth_provider="x\x1b[2J"
        )
        run = factories.ImportRunFactory()
        factories.ImportFileFactory(run=run, file=HOSTILE)
        factories.ImportTransformationFactory(run=run, file=HOSTILE, item=HOSTILE, original=HOSTILE)
        factories.ImportRejectFactory(run=run, file=HOSTILE, locator=HOSTILE, reason=HOSTILE)
        job = factories.JobFactory(status="failed", last_error=HOSTILE)
        work.commit()
        found = {"talk": str(talk.id), "tenant": str(tenant.id), "user": str(user.id)}
        found |= {"job": str(job.id), "document": str(document.id)}
    memory, scope = MemoryService(service), Scope.user(user.id)
    kept = memory.remember(HOSTILE, HOSTILE, scope=scope, conversation_id=SHORT, source="native")
    episode = memory.store_episode(SHORT, scope=scope, title=HOSTILE, llm_tags={"summary": HOSTILE})
    return found | {"memory": kept.id, "episode": episode.id}


SHOWN = [
    "search kettle --mode text",
    "search kettle --mode text --explain",
    "search kettle --corpus chat --mode text --group-by conversation --context 2",
    "search kettle --corpus memory --mode text --user-id {user}",
    "search kettle --corpus episodes --mode text --user-id {user}",
    "chat list",
    "chat show {talk}",
    "chat save {talk}",
    "chat stats",
    "export chat {talk} --format markdown",
    "export chat {talk} --format json",
    "export chat {talk} --format openwebui",
    "memory recall kettle --user-id {user}",
    "memory context kettle --user-id {user}",
    "memory show {memory} --user-id {user}",
    "memory episodes list --user-id {user}",
    "memory episodes show {episode} --user-id {user}",
    "tenants list",
    "users list",
    "jobs list",
    "jobs show {job}",
    "jobs stats",
    "import history",
    "import rejects",
    "audit show",
    "roles show",
]


def test_no_command_lets_stored_text_reach_the_terminal(run: Run, names: dict[str, str]) -> None:
    """Escapes of seven and eight bits, titles, bells, returns and changes of direction."""
    reached = {}
    for command in SHOWN:
        said = run(*(word.format(**names) for word in command.split()))
        if found := COMMANDS & set(said):
            reached[command] = sorted(found)
        assert "kettle" in said or command in {"jobs stats", "roles show", "chat stats"}, command

    assert reached == {}


def test_json_stays_json(run: Run, names: dict[str, str]) -> None:
    """Escaped, and read back it is what was stored."""
    for command in ("chat list", "import rejects", "jobs list", "users list", "audit show"):
        said = run(*command.split(), "--json")
        assert COMMANDS & set(said) == set()
        json.loads(said)

    (talk,) = json.loads(run("chat", "list", "--json"))["conversations"]
    assert talk["title"] == HOSTILE
    assert talk["id"] == names["talk"]


def test_a_file_or_a_pipe_gets_what_was_stored(run: Run, names: dict[str, str]) -> None:
    """Nothing is stripped, nothing is escaped."""
    exported = run("export", "chat", names["talk"], "--format", "markdown", watched=False)
    told = run("memory", "context", "kettle", "--user-id", names["user"], watched=False)

    assert HOSTILE in exported
    assert "\x1b[2J \x9b31m" in told


def test_a_terminal_shows_the_words_around_those_of_a_question(
    database: Database, run: Run
) -> None:
    """The beginning of a long content says little; a file has it as before."""
    with database.unit_of_work() as work:
        factories.bind(work.session)
        factories.FrameworkDocumentFactory(content=f"{'Nothing. ' * 400} A \x1b[2J copper kettle.")
        work.commit()

    watched, piped = (
        run("search", "kettle", "--mode", "text", watched=watched) for watched in (True, False)
    )

    assert "copper kettle." in watched
    assert "\x1b" not in watched
    assert "Nothing. Nothing." in piped
    assert "copper" not in piped
    assert "copper" not in run("search", "kettle", "--mode", "text", "--no-snippets")
