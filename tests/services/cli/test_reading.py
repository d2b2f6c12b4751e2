"""Terminals of 80 and of 40 columns: people can read all of it, and no name is cut."""

from __future__ import annotations

import io
import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.color import ColorSystem
from rich.text import Text

from pgcorpus.db.engine import Database
from pgcorpus.services import samples
from pgcorpus.services.cli import output
from pgcorpus.services.cli.hits import show_page
from pgcorpus.services.cli.output import progress_bar, table
from pgcorpus.services.search.service import SearchService
from tests import factories
from tests.command import PGCORPUS, Command
from tests.disks import small_disk
from tests.factories import axis
from tests.services.cli.test_every_command import list_commands
from tests.services.search.test_service import AxisEmbedder

LONG = "a-chunk-with-an-identifier-that-is-longer-than-forty-characters-01"
FRAME = set("╭╮╰╯│─━┃┏┓┡┩└┘")


@pytest.fixture(params=[80, 40])
def width(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """The columns of the terminal that ``output`` prints to."""
    columns: int = request.param
    for console in (output.out, output.err):  # which has read COLUMNS when it was made
        monkeypatch.setattr(console, "_width", columns)
    return columns


Show = Callable[[Callable[[], object]], str]


@pytest.fixture
def show(monkeypatch: pytest.MonkeyPatch) -> Show:
    """Runs a function, and returns all that it printed on both streams."""

    def show(run: Callable[[], object]) -> str:
        stream = io.StringIO()
        for console in (output.out, output.err):
            monkeypatch.setattr(console, "_file", stream)
        run()
        return stream.getvalue()

    return show


def fill(database: Database) -> SearchService:
    """Store two passages, of which one is found by a word and both by their vectors."""
    with database.unit_of_work() as work:
        factories.bind(work.session)
        for chunk_id, content in ((LONG, "A copper kettle. " * 30), ("b_02", "Tea and milk.")):
            document = factories.FrameworkDocumentFactory(
                chunk_id=chunk_id, title=f"All about {chunk_id} and more", content=content
            )
            factories.ChunkEmbeddingFactory(
                document=document, embedding=axis(1, length=384), model_name="hashing"
            )
        work.commit()
    with database.engine.begin() as connection:
        connection.exec_driver_sql("ANALYZE framework_documents")  # or the text leg asks for it
    return SearchService(database, embedder=AxisEmbedder())


# Hits


def test_a_hit_is_a_block_of_lines_that_fit(database: Database, width: int, show: Show) -> None:
    """Number, score and title; two lines of text; what it is known by, whole."""
    service = fill(database)
    page = service.search("kettle", corpus="knowledge", snippets=True, limit=1)

    question, how, _, first, *text, labels = show(lambda: show_page(page)).splitlines()[:7]

    assert (question, how) == ("kettle", "knowledge, hybrid, calibrated")
    assert re.fullmatch(r"1\. 0\.\d{4}  All about a-chunk-.*", first)
    assert len(text) == 2
    assert all(line.startswith("   ") for line in text)
    assert max(map(len, (first, *text))) <= width
    assert LONG in labels


def test_a_terminal_shows_the_words_of_the_question_in_bold(
    database: Database, show: Show, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file, which has no bold, gets asterisks only where snippets are asked for."""
    page = fill(database).search(
        "kettle", corpus="knowledge", snippets=True, limit=1, markers=("\ue000", "\ue001")
    )
    assert "**kettle**" in show(lambda: show_page(page))

    monkeypatch.setattr(output.out, "_force_terminal", True)
    monkeypatch.setattr(output.out, "_color_system", ColorSystem.STANDARD)
    assert "\x1b[1;33mkettle\x1b[0m" in show(lambda: show_page(page))


def test_the_numbers_of_legs_are_shown_on_demand(database: Database, show: Show) -> None:
    """With -v each leg, and all that is known of a hit."""
    page = fill(database).search("kettle", corpus="knowledge", limit=1)

    short, long = (
        show(lambda verbose=verbose: show_page(page, verbose=verbose))  # type: ignore[misc]
        for verbose in (False, True)
    )

    assert "vector: ok" not in short
    assert "vector: ok, 2 candidates" in long
    assert re.search(r"text: 0\.\d{3} #1, adds 0\.\d{3}", long)
    assert f"chunk_id: {LONG}" in long
    assert "section: " in long


def test_a_leg_that_found_none_says_why_its_hits_have_scores(
    database: Database, show: Show
) -> None:
    """It scores what the others found: 0 candidates beside a score is no mistake."""
    service = fill(database)

    page = service.search("kexxxxyyyy", corpus="knowledge", limit=2)

    fuzzy = next(leg for leg in page.legs if leg.name == "fuzzy")
    assert fuzzy.candidates == 0
    assert any(hit.scores["fuzzy"] > 0 for hit in page.hits)
    assert "found none itself, and scored what the other legs found" in str(fuzzy.reason)
    assert fuzzy.reason in show(lambda: show_page(page))


def test_why_the_offline_model_is_used_is_not_said_with_each_search(
    database: Database, show: Show
) -> None:
    """The page has the reason; the terminal one word, and the reason with -v."""
    fill(database)
    page = SearchService(database).search("kettle", corpus="knowledge")

    short, long = show(lambda: show_page(page)), show(lambda: show_page(page, verbose=True))

    reason = "OPENAI_API_KEY is not set, so the offline model 'hashing' stands in"
    assert str(page.stand_in).startswith(reason)
    assert page.note is None or reason not in page.note
    assert "knowledge, hybrid, calibrated, offline model" in short
    assert reason not in short
    assert reason in long.replace("\n", " ")


# Tables


def test_a_table_cuts_no_word(width: int, show: Show) -> None:
    """Cells that are narrower than a word go on below; rows that cannot be, are blocks."""
    rows = [(LONG, "text-embedding-3-large", n, "x" * 90) for n in range(2)]

    said = show(lambda: table("Title", ["file", "model", "rows", "path"], rows))

    assert max(map(len, said.splitlines())) <= width
    for cell in map(str, rows[1]):
        assert cell in re.sub(r"[^\w-]", "", said) or width == 80
    assert "…" not in said
    assert (not FRAME & set(said)) == (width == 40)


def test_a_table_that_cannot_fit_is_read_as_blocks(width: int, show: Show) -> None:
    """Each row under its first cell, each cell after the name of its column."""
    columns = ["name", *(f"column_number_{n}" for n in range(6))]

    said = show(lambda: table("Title", columns, [("first", *range(6)), ("second", *range(6))]))

    assert not FRAME & set(said)
    assert said.splitlines()[1:3] == ["first", "  column_number_0: 0"]


def test_a_bar_says_which_time_is_which(show: Show, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two times without a word are a riddle."""
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(output.err, "_force_terminal", True)

    def work() -> None:
        with progress_bar("importing") as bar:
            bar.update(bar.task_ids[0], total=2, completed=1)

    said = Text.from_ansi(show(work)).plain

    assert re.search(r"importing .* 50% 0:00:0\d so far, [\d:-]+ to go", said)


# Diagnosis


def test_doctor_shows_what_is_wrong_and_the_rest_on_demand(
    pgcorpus: Command, database: Database
) -> None:
    """A summary always; what is ok with -v."""
    with database.engine.begin() as connection:
        connection.exec_driver_sql("DROP INDEX idx_metadata_validation")

    short, long = pgcorpus("doctor", COLUMNS="40"), pgcorpus("doctor", "-v", COLUMNS="40")

    assert not re.search(r"^ok ", short.stdout, re.MULTILINE)
    assert len(re.findall(r"^ok ", long.stdout, re.MULTILINE)) > 20
    for done in (short, long):
        assert re.search(r"failures: \d+, warnings: \d+, ok: \d+", done.stderr)
        assert not FRAME & set(done.stdout)
    assert "pgcorpus doctor -v" in short.stderr


# Misuse


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("search", "missing argument 'QUESTION'"),
        ("search x --limit 5000", "--limit takes a number from 1 to 1000: "),
        ("search x --limit many", "--limit takes a number from 1 to 1000: "),
        ("search x --mode magic", "--mode: 'magic' is not one of"),
        ("search x --colour", "no such option: --colour"),
        ("search x --where {", "--where: it is not JSON"),
        ("nonsense", "no such command 'nonsense'"),
        ("filters recipes", "there is no corpus 'recipes'; known: "),
        ("search x -c recipes", "there is no corpus 'recipes'; known: "),
    ],
)
def test_misuse_is_told_as_any_other_error(pgcorpus: Command, arguments: str, says: str) -> None:
    """A sentence after ``error:``, and no box; where to look is in the lines below."""
    done = pgcorpus(*arguments.split(), COLUMNS="80")

    first, *more = done.stderr.splitlines()
    assert (done.returncode, done.stdout) == (2, "")
    assert first.startswith(f"error: {says}")
    assert not FRAME & set(done.stderr)
    assert not more or more[-1].endswith(" --help")


def test_what_is_not_agreed_to_is_told_so(pgcorpus: Command) -> None:
    """And nothing was done."""
    done = pgcorpus("server", "destroy", typed="n\n")

    assert done.returncode == 1
    assert "error: nothing was done: it was not agreed to" in done.stderr


def test_words_to_leave_out_are_part_of_the_question(pgcorpus: Command, database: Database) -> None:
    """Behind other words, in quotes or after --; alone they look like an option, and it is said."""
    fill(database)

    for arguments in (["--", "-milk", "kettle"], ["kettle -milk"], ["kettle", "--", "-milk"]):
        done = pgcorpus("search", *arguments)
        assert done.returncode == 0, done.stderr
        assert LONG in done.stdout
        assert "b_02" not in done.stdout
    refused = pgcorpus("search", "-milk")
    assert refused.returncode == 2
    assert "put the question after --: pgcorpus search -- 'words -word'" in refused.stderr


def test_every_number_says_its_range() -> None:
    """In its help, and so in the refusal of any other number."""
    without = []
    for name, command in list_commands():
        without += [
            f"{name} {each.name}"
            for each in command.params
            if each.type_descriptor.annotation in {int, float}
            and each.type_descriptor.parameter_info.parser is None
            and each.min is None
        ]
    assert without == []


def test_a_corpus_tells_its_filters(pgcorpus: Command) -> None:
    """Their names and values, and what hits are grouped by; without a database."""
    for corpus, name, values in (
        ("knowledge", "chunk_type", "atomic_framework, framework_section, supporting"),
        ("documentation", "path_prefix", "the beginning of one"),
        ("chat", "role", "user"),
        ("memory", "urgency", "high"),
    ):
        done = pgcorpus("filters", corpus, DATABASE_URL="postgresql://nobody@127.0.0.1:1/none")
        assert done.returncode == 0, done.stderr
        assert name in done.stdout
        assert values in " ".join(re.sub("[│\n]", " ", done.stdout).split())


# Full disks


@pytest.mark.skipif(not Path("/dev/full").is_char_device(), reason="only Linux has it")
@pytest.mark.parametrize("more", [[], ["--json"]])
def test_a_full_disk_of_stdout_is_told_in_a_sentence(more: list[str]) -> None:
    """Both where the output is written at once and where it is at the end."""
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [PGCORPUS, "filters", *more],
            check=False,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            env={"PATH": os.defpath},
        )

    assert done.returncode == 1
    assert done.stderr.startswith("error: no space left on the disk that stdout is written to")
    assert len(done.stderr.splitlines()) == 1


def test_a_full_disk_of_a_file_is_named(pgcorpus: Command) -> None:
    """The export of documents, which is there whole or not at all."""
    source = str(samples.folder("documentation"))
    assert pgcorpus("import", "documentation", source).returncode == 0
    with small_disk("300k") as folder:
        done = pgcorpus("export", "documentation", str(folder / "out.db"))
        assert list(folder.iterdir()) == []

    assert done.returncode == 1
    assert f"error: no space left on the disk of {folder / 'out.db'}" in done.stderr


def test_a_device_is_no_file_to_be_replaced(pgcorpus: Command, tmp_path: Path) -> None:
    """The administrator's files of devices stay what they are."""
    source = str(samples.folder("documentation") / "index.md")
    assert pgcorpus("import", "documentation", source).returncode == 0
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)

    done = pgcorpus("export", "documentation", str(pipe), "--replace")

    assert done.returncode == 2
    assert "is no file that could be replaced" in done.stderr
    assert pipe.is_fifo()


def test_what_is_refused_leaves_no_bar_and_no_empty_table(pgcorpus: Command) -> None:
    """The sentence alone."""
    for arguments in (
        ("import", "knowledge", "nowhere.json"),
        ("export", "documentation", "out.db"),
    ):
        done = pgcorpus(*arguments)
        assert (done.returncode, done.stdout) == (1, "")
        assert [line[:7] for line in done.stderr.splitlines()] == ["error: "]
