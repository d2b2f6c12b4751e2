"""The table and the commands of docs/how-to/choose-a-model-and-an-index.md are true."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

from sqlalchemy import text

from pgcorpus.db.engine import Database
from pgcorpus.db.uow import UnitOfWork
from pgcorpus.services.documentation.service import DocumentService
from tests.commands import run_commands
from tests.docs.pages import list_blocks, list_commands, read_page
from tests.pooler import variables_of

PAGE = "how-to/choose-a-model-and-an-index.md"
TEXTS = [f"Roll back revision {n}: downgrade to the {n}th one before it." for n in range(40)]


def test_the_models_of_the_page_are_those_of_the_schema(work: UnitOfWork) -> None:
    """With their dimensions, their providers, and the corpora that begin with them."""
    rows = re.findall(
        r"^\| (\S+) \| ([\d,]+) \| `(\w+)`[^|]*\| (\w*) ?\|", read_page(PAGE), re.MULTILINE
    )
    told = {name: (int(many.replace(",", "")), by, of) for name, many, by, of in rows}
    active = {
        model.name: corpus
        for corpus in ("knowledge", "documentation", "memory", "chat")
        if (model := work.models.find_active_model(corpus)) is not None
    }

    assert told == {
        each.name: (each.dimensions, each.provider, active.get(each.name, ""))
        for each in work.models.list_models()
    }


def test_the_commands_of_the_page_are_done(database: Database, tmp_path: Path) -> None:
    """One after the other, as the owner, on shared documents; and its SQL shows both indexes."""
    DocumentService(database).add_texts(TEXTS)
    (tmp_path / "asked.txt").write_text("how do I roll back\nrevision 7\n")
    commands = [shlex.split(each)[1:] for each in list_commands(PAGE)]
    before, after = (commands[:7], commands[7:])
    environment = {"PATH": "/usr/bin:/bin", "COLUMNS": "80"} | variables_of(database.settings)

    done = run_commands(environment, tmp_path, [*before, ["models", "list", "--json"]])
    (sizes,) = list_blocks(PAGE, "sql")
    with database.unit_of_work() as work:
        rows = {row.name: row.index_kind for row in work.session.execute(text(sizes))}
    later = run_commands(environment, tmp_path, [*after, ["models", "list", "--json"]])

    assert [each.stderr for each in (*done, *later) if each.code] == []
    assert (rows["wide"], rows["wide-binary"]) == ("halfvec", "binary")
    models = {each["name"]: each for each in json.loads(done[-1].stdout)}
    assert models["wide-binary"]["coverage"]["documentation"]["embedded"] == len(TEXTS)
    left = {each["name"] for each in json.loads(later[-1].stdout)}
    assert {"wide", "wide-binary"} & left == {"wide"}
