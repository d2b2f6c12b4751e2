"""Commands and links of the documents work."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from pgcorpus.db.engine import Database
from pgcorpus.db.errors import SettingsError
from pgcorpus.db.settings import VARIABLES, Settings
from tests.commands import list_commands
from tests.logins import logged_in
from tests.pages import PAGES, ROOT, list_anchors, list_links


def test_the_code_of_the_readme_runs(
    empty: Database, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As it stands, on a new database: import, embed, search, write, find again; and remember."""
    code, of_memory = re.findall(
        r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL
    )
    monkeypatch.setenv("DATABASE_URL", empty.url.render_as_string(hide_password=False))
    monkeypatch.setenv("DB_CONNECT_RETRY", "0")  # what is still to be logged when all is over
    monkeypatch.chdir(ROOT)

    names: dict[str, object] = {}
    exec(code, names)  # noqa: S102 - it is our own
    database = names["database"]
    assert isinstance(database, Database)
    with database.unit_of_work() as work:
        (talk,) = work.chat.list_summaries().items
    with logged_in(database, "rag_read_write") as service:
        url = service.url.render_as_string(hide_password=False)
        monkeypatch.setenv("DATABASE_URL", url)
        exec(of_memory, names)  # noqa: S102 - as above
        names["database"].close()  # type: ignore[attr-defined]
    database.close()

    shown = capsys.readouterr().out.splitlines()
    assert "docs/how-to/deploy.md#roll-back" in shown[0]
    assert shown[1] == "27 chunks added, 0 rejected"
    assert all(re.match(r"0\.\d{3} ", line) for line in shown[2:5])
    assert "Keep the plain loaf as your anchor." in "\n".join(shown[5:])
    assert talk.message_count == 2
    assert "I take my coffee without sugar." in shown
    assert shown[-1] == "1 forgotten: rows, vectors and jobs"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    """Every relative link of every page, to a file that exists and a heading that it has."""
    broken = []
    for link in list_links(page):
        path, _, anchor = link.partition("#")
        target = (page.parent / path) if path else page
        if not target.exists() or (anchor and anchor not in list_anchors(target)):
            broken.append(link)

    assert broken == []


def test_anchors_are_those_of_github() -> None:
    """A page of ours is read there, too."""
    assert {"two-commands", "from-the-command-line"} <= list_anchors(ROOT / "README.md")
    assert "#large-files" in {
        link.removeprefix("../how-to/move-from-sqlite.md")
        for link in list_links(ROOT / "docs/explanation/documentation.md")
    }


def list_calls(page: str) -> Iterator[list[str]]:
    """Yield the words of each call of pgcorpus in a page: in its blocks, and between backquotes."""
    blocks = re.findall(r"^ *```(?:console|bash|sh)\n(.*?)^ *```", page, re.DOTALL | re.MULTILINE)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    prose = re.sub(r"^ *```.*?^ *```", "", page, flags=re.DOTALL | re.MULTILINE)
    lines += [each.replace("\n", " ") for each in re.findall(r"`([^`]+)`", prose)]
    for line in lines:
        for part in re.split(r"&&|\|| > |;|: ", line.partition(" # ")[0]):
            if found := re.search(r"(?:^|[$#] |bin/|[A-Z]+=\S* )pgcorpus ([a-z-].*)", part.strip()):
                yield re.sub(r"[\"']", " ", found[1]).split()


def find_unknown(words: Sequence[str]) -> str | None:
    """Return the first word of a call that is no command or option, or None."""
    commands, groups = walk_commands()
    name, rest = "", list(words)
    while rest and f"{name} {rest[0]}".strip() in groups:
        name = f"{name} {rest.pop(0)}".strip()
    if name not in commands:
        return rest[0] if rest and not rest[0].startswith("-") else None
    params = commands[name].params
    known = {each for option in params for each in (*option.opts, *option.secondary_opts)}
    known |= {"--help", "-h"}
    options = [each.partition("=")[0] for each in rest if re.match(r"--[a-z]|-[a-z]$", each)]
    return next((each for each in options if each not in known), None)


@cache
def walk_commands() -> tuple[dict[str, Any], set[str]]:
    """Return the commands by their names, and these names with those of all groups."""
    commands = dict(list_commands())
    return commands, {
        name.rsplit(maxsplit=depth)[0] for name in commands for depth in range(name.count(" ") + 1)
    }


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_of_the_pages_exist(page: Path) -> None:
    """Every call of pgcorpus that a page shows, with its options."""
    unknown = {
        f"{word} in: pgcorpus {' '.join(call)}"
        for call in list_calls(page.read_text())
        if (word := find_unknown(call))
    }

    assert unknown == set()


def test_a_command_that_does_not_exist_is_found() -> None:
    """In a block, in a pipe, between backquotes; and so is an option."""
    page = "```console\n$ pgcorpus doctor && pgcorpus jobs lost | jq\n```\n`pgcorpus embed --all`"

    assert [find_unknown(each) for each in list_calls(page)] == [None, "lost", "--all"]


def test_the_reference_has_every_command() -> None:
    """A new command gets its line."""
    reference = (ROOT / "docs/reference/command-line.md").read_text()

    assert [name for name, _ in list_commands() if f"`pgcorpus {name}" not in reference] == []


def test_the_reference_has_every_setting() -> None:
    """A new variable gets its line, with its default and all that it may be."""
    lines = {
        name: (default, meaning)
        for name, default, meaning in re.findall(
            r"^\| `([A-Z_]+)` \|(.*?)\|(.*)\|$",
            (ROOT / "docs/reference/settings.md").read_text(),
            re.MULTILINE,
        )
    }
    named = set(re.findall(r'"([A-Z]+(?:_[A-Z]+)+)"', (ROOT / "db/settings.py").read_text()))
    assert {"DATABASE_URL", "POSTGRES_HOST", "SSL_REQUIRE"} <= named
    assert lines.keys() == VARIABLES.keys() | named

    wrong = []
    for name, (field, read) in VARIABLES.items():
        default, meaning = lines[name]
        usual = getattr(Settings(), field)
        shown = str(usual).lower() if isinstance(usual, bool) else str(usual)
        if usual not in (None, ()) and shown not in default and name != "DOCFOUNDRY_DB_TYPE":
            wrong.append(f"{name}: {shown} is the default")
        allowed = ""
        try:
            read(name, "?!")
        except SettingsError as error:
            allowed = str(error).partition("allowed: ")[2]
        if re.fullmatch(r"\d+ to \d+|[\w.-]+(, [\w.-]+)+", allowed):
            words = re.split(", | to ", allowed)
            wrong += [
                f"{name}: {word} is allowed" for word in words if word not in default + meaning
            ]
    assert wrong == []
