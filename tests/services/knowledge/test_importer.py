"""Files of chunks into the database: nothing is lost, and nothing changes silently."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import threading
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, fields
from itertools import count
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from sqlalchemy import text

from pgcorpus.db import models
from pgcorpus.db.choices import Group
from pgcorpus.db.engine import Database
from pgcorpus.db.repositories.knowledge.chunks import KnowledgeRepository
from pgcorpus.services.choices import OnConflict
from pgcorpus.services.importers.report import Changed, ImportReport
from pgcorpus.services.knowledge.importer import BATCH, KnowledgeImporter
from tests.command import PGCORPUS
from tests.logins import logged_in
from tests.pooler import variables_of

SAMPLES = Path(__file__).parents[3] / "services" / "samples" / "knowledge"
TABLES = (
    "framework_documents",
    "framework_metadata",
    "key_concepts",
    "document_concepts",
    "source_lines",
    "import_runs",
    "import_files",
    "import_transformations",
    "import_rejects",
)

Write = Callable[..., Path]


def chunk(
    chunk_id: str,
    content: str = "A price is what a buyer gives up.",
    **more: Any,
) -> dict[str, Any]:
    """A chunk that keeps every rule, unless told otherwise."""
    return {
        "chunk_id": chunk_id,
        "title": f"Title of {chunk_id}",
        "section": "Pricing",
        "content": content,
        "source_file": "pricing.md",
        "character_count": len(content),
        "word_count": len(content.split()),
        "chunk_type": "supporting",
        "key_concepts": ["price"],
        "start_line": 1,
        "end_line": 2,
        "preserves_complete_concept": True,
        "business_logic_intact": True,
        "validation_passed": True,
    } | more


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes a file of chunks, and gives its path."""

    def write(name: str, *chunks: Any) -> Path:
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps(list(chunks)))
        return file

    return write


def counts(report: ImportReport) -> tuple[int, ...]:
    """Chunks that were added, updated, left unchanged, rejected."""
    return tuple(report.total(name) for name in ("added", "updated", "unchanged", "rejected"))


def rows(database: Database, *tables: str) -> dict[str, list[str]]:
    """All rows of tables, as text."""
    with database.engine.connect() as connection:
        return {
            table: list(connection.scalars(text(f"SELECT t::text FROM {table} t ORDER BY 1")))  # noqa: S608 - our own names
            for table in tables or TABLES
        }


def get_stored(database: Database, chunk_id: str) -> models.FrameworkDocument:
    """Return a chunk as it is in the database."""
    with database.unit_of_work() as work:
        document = work.knowledge.get(chunk_id)
        work.commit()  # leaving without would empty what was read
    return document


def test_the_samples_go_in_whole(database: Database) -> None:
    """All three shapes, and every oddity in them; then everything is unchanged."""
    first = KnowledgeImporter(database).run([SAMPLES])
    before = rows(database, "framework_documents", "import_transformations")
    second = KnowledgeImporter(database).run([SAMPLES])

    assert not first.failed
    assert len(first.files) == 11
    assert first.total("added") >= 19
    assert first.total("transformed") > 0
    assert counts(second) == (0, 0, sum(counts(first)), 0)
    assert second.total("transformed") == 0
    assert rows(database, "framework_documents", "import_transformations") == before


def test_a_chunk_is_stored_in_every_table(database: Database, write: Write) -> None:
    """With its concepts, its lines and the name of its file."""
    file = write("a.json", chunk("a", key_concepts=["price", "cost"], tags=["x"]))

    KnowledgeImporter(database).run([file])

    with database.unit_of_work() as work:
        record = work.knowledge.list_records(["a"])["a"]
    assert record.concepts == {"price", "cost"}
    assert (record.start_line, record.end_line) == (1, 2)
    assert (record.word_count, record.chunk_type) == (8, "supporting")
    assert record.extra == {"tags": ["x"]}
    assert get_stored(database, "a").imported_from == str(file)


def test_the_report_has_its_fixed_shape(database: Database, write: Write) -> None:
    """Scripts depend on it."""
    file = write("a.json", chunk("a"), chunk("b", word_count=9), chunk("c", ""))

    report = KnowledgeImporter(database).run([file])

    assert report.failed
    assert report.as_json() == {
        "files": [
            {
                "file": str(file),
                "added": 2,
                "updated": 0,
                "unchanged": 0,
                "rejected": 1,
                "transformed": 1,
                "error": None,
            }
        ],
        "added": 2,
        "updated": 0,
        "unchanged": 0,
        "rejected": 1,
        "transformed": 1,
        "rejects": [
            {"file": str(file), "locator": "$[2]", "reason": "content is missing or blank"}
        ],
        "skipped": [],
    }


def test_broken_files_are_errors_and_the_others_go_in(
    database: Database, tmp_path: Path, write: Write
) -> None:
    """Not JSON, wrong shape, not UTF-8, a gigabyte, a folder without files, nothing at all."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "1.json").write_text("{")
    (tmp_path / "2.json").write_text('{"title": "no chunks"}')
    (tmp_path / "3.json").write_bytes(b"\xff")
    with (tmp_path / "4.json").open("wb") as huge:
        huge.truncate(1024**3)
    write("5.json", chunk("a"))

    report = KnowledgeImporter(database).run(
        [tmp_path / "empty", tmp_path / "missing.json", tmp_path]
    )

    assert [bool(file.error) for file in report.files] == [True] * 6 + [False]
    assert counts(report) == (1, 0, 0, 0)
    assert report.failed
    with database.unit_of_work() as work:
        (run,) = work.imports.list_runs("knowledge")
        files = work.imports.list_files(run.id)
        assert [file.error for file in files] == [file.error for file in report.files]
        assert run.finished_at is not None


def test_what_a_file_says_of_itself_is_kept(database: Database, tmp_path: Path) -> None:
    """Its header, as it stood, NUL characters included."""
    header = {"processing_metadata": {"settings": {"a": [1]}, "note": "x\0"}}
    file = tmp_path / "a.json"
    file.write_text(json.dumps({"chunks": [chunk("a")]} | header))

    KnowledgeImporter(database).run([file])

    with database.unit_of_work() as work:
        (run,) = work.imports.list_runs("knowledge")
        assert [each.header for each in work.imports.list_files(run.id)] == [header]


def test_an_edited_chunk_of_the_same_file_is_updated(database: Database, write: Write) -> None:
    """Its other fields are replaced, its concepts and lines too; the old values are told."""
    KnowledgeImporter(database).run([write("a.json", chunk("a"))])
    edited = chunk("a", title="New", key_concepts=["cost"], start_line=None, end_line=None)

    report = KnowledgeImporter(database).run([write("a.json", edited)])

    assert counts(report) == (0, 1, 0, 0)
    with database.unit_of_work() as work:
        record = work.knowledge.list_records(["a"])["a"]
    assert (record.title, record.concepts, record.start_line) == ("New", {"cost"}, None)
    told = KnowledgeImporter(database).history(item="a", rule="replaced")
    assert {(each.field, json.dumps(each.original), json.dumps(each.stored)) for each in told} == {
        ("title", '"Title of a"', '"New"'),
        ("key_concepts", '["price"]', '["cost"]'),
        ("start_line", "1", "null"),
        ("end_line", "2", "null"),
    }


@pytest.mark.parametrize("rule", ["replaced", "duplicate", "kept"])
def test_the_history_names_fields_as_the_file_does(
    database: Database, write: Write, rule: str
) -> None:
    """Under whatever name and in whatever place: that is where somebody looks for them."""

    def old(text: str, **more: Any) -> dict[str, Any]:
        fields = chunk("a", text) | {"text": text, "tags": ["x"]} | more
        metadata = {name: fields.pop(name) for name in ("key_concepts", "chunk_type")}
        metadata |= {"char_count": fields.pop("character_count"), "author": more.get("by", "A")}
        return {name: fields[name] for name in fields if name not in {"content", "by"}} | {
            "metadata": metadata
        }

    other = "Another text." if rule == "kept" else "The text."
    changed = old(other, key_concepts=["cost"], chunk_type="atomic_framework", tags=["y"], by="B")
    second = "a.json" if rule == "replaced" else "b.json"
    KnowledgeImporter(database).run([write("a.json", old("The text."))])

    report = KnowledgeImporter(database, on_conflict="keep").run([write(second, changed)])

    assert report.total("transformed") == 1
    told = {each.field for each in KnowledgeImporter(database).history(rule=rule)}
    texts = {"text", "metadata.char_count"} if rule == "kept" else set()
    assert told == texts | {
        "metadata.key_concepts", "metadata.chunk_type", "tags", "metadata.author",
    }  # fmt: skip


def test_a_dry_run_tells_every_change_that_it_would_make(database: Database, write: Write) -> None:
    """Field by field, as the history of the real run has it; nothing of it can be read later."""
    KnowledgeImporter(database).run([write("a.json", chunk("b", title="Old"))])
    file = write("a.json", chunk("a", word_count=9, key_concepts=["price!"]), chunk("b"))

    dry = KnowledgeImporter(database, dry_run=True).run([file])
    real = KnowledgeImporter(database).run([file])

    history = reversed(KnowledgeImporter(database).history())
    assert [(each.locator, each.item, each.field, each.original) for each in dry.changes] == [
        ("$[0]", "a", "word_count", 9),
        ("$[0]", "a", "key_concepts[0]", "price!"),
        ("$[1]", "b", "title", "Old"),
    ]
    shown = [field.name for field in fields(Changed)]
    assert [asdict(each) for each in dry.changes] == [
        {name: getattr(each, name) for name in shown} for each in history
    ]
    assert real.changes == []


@pytest.mark.parametrize("content", ["[]", '{"chunks": []}', '{"frameworks": {}}'])
def test_an_empty_list_is_told(database: Database, tmp_path: Path, content: str) -> None:
    """It is no error, but a person who exported something wants to know."""
    file = tmp_path / "a.json"
    file.write_text(content)

    report = KnowledgeImporter(database).run([file])

    assert not report.failed
    assert report.as_json()["skipped"] == [
        {"file": str(file), "reason": "its list of chunks is empty", "locator": None}
    ]


def test_a_chunk_made_by_code_is_updated(database: Database, write: Write) -> None:
    """It has no file that it could belong to, and perhaps no metadata."""
    with database.unit_of_work() as work:
        document = models.FrameworkDocument(
            chunk_id="a", source_file="x", section="y", title="z", content=chunk("a")["content"]
        )
        work.knowledge.add(document)
        work.commit()

    report = KnowledgeImporter(database).run([write("a.json", chunk("a"))])

    assert counts(report) == (0, 1, 0, 0)
    assert get_stored(database, "a").id == document.id
    assert get_stored(database, "a").title == "Title of a"


def test_the_same_text_in_another_file_is_unchanged_and_told_once(
    database: Database, write: Write
) -> None:
    """However often it is imported."""
    files = [write("a.json", chunk("a")), write("b.json", chunk("a", title="Other"))]

    reports = [KnowledgeImporter(database).run(files) for _ in range(3)]

    assert [counts(report) for report in reports] == [(1, 0, 1, 0), (0, 0, 2, 0), (0, 0, 2, 0)]
    assert [report.total("transformed") for report in reports] == [1, 0, 0]
    assert get_stored(database, "a").title == "Title of a"
    (told,) = KnowledgeImporter(database).history(rule="duplicate")
    assert (told.file, told.field, told.original, told.stored) == (
        str(files[1]),
        "title",
        "Other",
        "Title of a",
    )


@pytest.mark.parametrize(
    ("on_conflict", "expected", "content"),
    [
        ("reject", (1, 0, 0, 1), "The first text."),
        ("keep", (1, 0, 1, 0), "The first text."),
        ("update", (1, 0, 0, 1), "The first text."),
    ],
)
@pytest.mark.parametrize("together", [True, False])
def test_another_text_under_the_same_identifier_is_decided_by_option(  # noqa: PLR0917 - pytest's
    database: Database,
    write: Write,
    on_conflict: OnConflict,
    expected: tuple[int, ...],
    content: str,
    together: bool,
) -> None:
    """In two files or twice in one; both texts are somewhere afterwards."""
    chunks = [chunk("a", "The first text."), chunk("a", "The second text.")]
    files = (
        [write("a.json", *chunks)]
        if together
        else [write("a.json", chunks[0]), write("b.json", chunks[1])]
    )

    report = KnowledgeImporter(database, on_conflict=on_conflict).run(files)

    assert counts(report) == expected
    assert get_stored(database, "a").content == content
    everything = str(rows(database))
    assert "The first text." in everything
    assert "The second text." in everything


def test_two_texts_in_one_run_do_not_take_turns(database: Database, write: Write) -> None:
    """The first decides; run after run nothing more happens, and the other can be chosen."""
    texts = {"a.json": "One.", "b.json": "Another.", "c.json": "A third."}
    files = [write(name, chunk("a", content)) for name, content in texts.items()]
    KnowledgeImporter(database).run([write("old.json", chunk("a", "The old text."))])
    importer = KnowledgeImporter(database, on_conflict="update")

    reports = [importer.run(files)]
    before = rows(database, "framework_documents", "import_transformations")
    reports += [importer.run(files) for _ in range(2)]

    assert [counts(each) for each in reports] == [(0, 1, 0, 2), (0, 0, 1, 2), (0, 0, 1, 2)]
    assert [each.total("transformed") for each in reports] == [1, 0, 0]
    assert rows(database, "framework_documents", "import_transformations") == before
    for file, reject in zip(files[1:], reports[-1].rejects, strict=True):
        assert f"{files[0]} $[0]" in reject.reason
        assert f"{file} $[0]" in reject.reason
    assert counts(importer.retry()) == (0, 1, 0, 1)
    assert get_stored(database, "a").content == "Another."


def test_files_of_one_name_in_two_folders_do_not_take_turns(
    database: Database, write: Write
) -> None:
    """They are two files, also in two runs: the one that was first keeps the chunk."""
    files = [write("x/a.json", chunk("a")), write("y/a.json", chunk("a", title="Other"))]

    reports = [KnowledgeImporter(database).run([file]) for file in files * 2]

    assert [counts(report) for report in reports] == [(1, 0, 0, 0)] + [(0, 0, 1, 0)] * 3
    assert get_stored(database, "a").title == "Title of a"


def test_one_file_by_several_paths_is_one_file(
    database: Database, write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the tables; reports have the path as it was given."""
    file = write("x/a.json", chunk("a", word_count=9), chunk("b", ""))
    (tmp_path / "link.json").symlink_to(file)
    monkeypatch.chdir(tmp_path)
    paths = [file, Path("x/a.json"), Path("x/../x/a.json"), Path("link.json")]

    reports = [KnowledgeImporter(database).run([path]) for path in paths]

    assert [report.rejects[0].file for report in reports] == [str(path) for path in paths]
    with database.unit_of_work() as work:
        (reject,) = work.imports.list_rejects("knowledge")
    assert reject.file == str(file)
    assert len(KnowledgeImporter(database).history(file="x/a.json")) == 1


def test_a_file_that_the_database_refuses_is_rejected_whole(
    database: Database, write: Write
) -> None:
    """Every chunk is counted and kept, and goes in once the cause is gone."""
    with database.engine.begin() as connection:
        connection.execute(
            text(
                "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS"
                " $$ BEGIN"
                "  RAISE check_violation USING MESSAGE = 'no', CONSTRAINT = 'not_this_one';"
                " END $$"
            )
        )
        connection.execute(
            text(
                "CREATE TRIGGER refuse BEFORE INSERT ON framework_documents FOR EACH ROW"
                " WHEN (NEW.chunk_id = 'b') EXECUTE FUNCTION refuse()"
            )
        )
    files = [write("a.json", chunk("a"), chunk("b"), chunk("c", "")), write("d.json", chunk("d"))]

    dry = KnowledgeImporter(database, dry_run=True).run(files)
    report = KnowledgeImporter(database).run(files)
    with database.engine.begin() as connection:
        connection.execute(text("DROP TRIGGER refuse ON framework_documents"))

    assert dry.as_json() == report.as_json()
    assert counts(report) == (1, 0, 0, 3)
    assert "not_this_one" in (report.files[0].error or "")
    assert [reject.locator for reject in report.rejects] == ["$[0]", "$[1]", "$[2]"]
    assert counts(KnowledgeImporter(database).retry()) == (2, 0, 0, 1)


def test_a_rejected_conflict_names_the_other_file_and_the_option(
    database: Database, write: Write
) -> None:
    """So that the person can decide."""
    files = [write("a.json", chunk("a")), write("b.json", chunk("a", "Another text."))]

    (reject,) = KnowledgeImporter(database).run(files).rejects

    assert f"from {files[0]}" in reject.reason
    assert "--on-conflict" in reject.reason


def test_strict_mode_rejects_what_would_be_changed(database: Database, write: Write) -> None:
    """And takes what keeps every rule."""
    file = write("a.json", chunk("a"), chunk("b", word_count=9))

    report = KnowledgeImporter(database, strict=True).run([file])

    assert counts(report) == (1, 0, 0, 1)
    assert "word_count" in report.rejects[0].reason


def test_a_dry_run_reports_the_same_and_writes_nothing(
    database: Database, tmp_path: Path, write: Write
) -> None:
    """Duplicates across files, rejects and broken files included; also over stored chunks."""
    KnowledgeImporter(database).run([write("a.json", chunk("old"))])
    write("a.json", chunk("old", title="New"), chunk("a", word_count=1))
    write("b.json", chunk("a", title="Other"), chunk("b", "a b c"), "no object")
    write("c.json", chunk("a", "Another text."), chunk("c"))
    (tmp_path / "d.json").write_text("{")
    before = rows(database)

    dry = KnowledgeImporter(database, dry_run=True).run([tmp_path])
    untouched = rows(database)
    real = KnowledgeImporter(database).run([tmp_path])

    assert untouched == before
    assert dry.as_json() == real.as_json()
    assert counts(real) == (2, 1, 1, 3)


def test_rejects_are_kept_once_and_go_when_the_file_is_mended(
    database: Database, write: Write
) -> None:
    """Importing again neither repeats them nor leaves them behind."""
    file = write("a.json", chunk("a", ""), chunk("b", ""), ["\0"])
    for _ in range(2):
        KnowledgeImporter(database).run([file])
    with database.unit_of_work() as work:
        kept = work.imports.list_rejects("knowledge")
        assert [(each.locator, each.payload) for each in kept] == [
            ("$[0]", chunk("a", "")),
            ("$[1]", chunk("b", "")),
            ("$[2]", ["\0"]),
        ]

    KnowledgeImporter(database).run([write("a.json", chunk("a"), chunk("b", ""))])

    with database.unit_of_work() as work:
        assert [each.locator for each in work.imports.list_rejects("knowledge")] == ["$[1]"]


def test_rejects_can_be_tried_again(database: Database, tmp_path: Path) -> None:
    """A payload that was mended goes in, as if it had stood so in its file; the others stay."""
    file = tmp_path / "a.json"
    chunks = [chunk("a", ""), chunk("b", "")]
    file.write_text(json.dumps({"frameworks": {"Prices": {"chunks": chunks}}}))
    KnowledgeImporter(database).run([file])
    with database.engine.begin() as connection:
        connection.execute(
            text("UPDATE import_rejects SET payload = :payload WHERE payload ->> 'chunk_id' = 'a'"),
            {"payload": json.dumps(chunk("a"))},
        )

    report = KnowledgeImporter(database).retry()

    assert counts(report) == (1, 0, 0, 1)
    with database.unit_of_work() as work:
        assert work.knowledge.list_records(["a"])["a"].framework_name == "Prices"
        assert [each.payload["chunk_id"] for each in work.imports.list_rejects("knowledge")] == [
            "b"
        ]
    assert get_stored(database, "a").imported_from == str(file)
    assert counts(KnowledgeImporter(database).retry()) == (0, 0, 0, 1)


def test_a_retry_under_another_option_settles_conflicts(database: Database, write: Write) -> None:
    """The way out of a rejected duplicate."""
    KnowledgeImporter(database).run(
        [write("a.json", chunk("a")), write("b.json", chunk("a", "Another text."))]
    )

    report = KnowledgeImporter(database, on_conflict="update").retry()

    assert counts(report) == (0, 1, 0, 0)
    assert get_stored(database, "a").content == "Another text."
    assert rows(database, "import_rejects") == {"import_rejects": []}


@pytest.mark.parametrize("by_retry", [True, False])
def test_a_decision_to_keep_a_text_is_remembered(
    database: Database, write: Write, by_retry: bool
) -> None:
    """A plain import of the same file does not ask again; another text is another question."""
    files = [
        write("a.json", chunk("a"), chunk("b")),
        write("b.json", chunk("a", "Another text."), chunk("b", "One more text.", title="Other")),
    ]
    plain, keeping = KnowledgeImporter(database), KnowledgeImporter(database, on_conflict="keep")
    assert counts(plain.run(files)) == (2, 0, 0, 2)
    assert counts(keeping.retry() if by_retry else keeping.run(files[1:])) == (0, 0, 2, 0)
    before = rows(database, "framework_documents", "import_transformations")

    again = plain.run(files)

    assert (counts(again), again.total("transformed")) == ((0, 0, 4, 0), 0)
    assert rows(database, "framework_documents", "import_transformations") == before
    write("b.json", chunk("a", "A third text."), chunk("b", "One more text.", title="Other"))
    assert counts(plain.run(files)) == (0, 0, 3, 1)
    KnowledgeImporter(database, on_conflict="update").run([write("c.json", chunk("b", "New."))])
    assert counts(plain.run(files[1:])) == (0, 0, 0, 2)


def test_the_command_that_retries_takes_the_options(
    database: Database, write: Write, tmp_path: Path
) -> None:
    """It takes those that the message of a conflict tells to use."""
    file = write("a.json", chunk("a"), chunk("a", "Another text."), chunk("b", "", word_count=9))
    KnowledgeImporter(database).run([file])
    address = variables_of(database.settings)

    def retry(*options: str) -> dict[str, Any]:
        done = subprocess.run(
            [PGCORPUS, "import", "retry", "--json", *options],
            check=False,
            capture_output=True,
            env={**address, "PATH": os.environ["PATH"], "HOME": str(tmp_path)},
            cwd=tmp_path,
            timeout=120,
        )
        result: dict[str, Any] = json.loads(done.stdout)
        return result

    assert retry()["rejected"] == 2
    assert retry("--strict", "--on-conflict", "update")["updated"] == 1
    assert get_stored(database, "a").content == "Another text."


def test_a_number_that_does_not_survive_is_told(database: Database, tmp_path: Path) -> None:
    """Its digits are in the history, once; what is stored is the nearest double."""
    digits = "12345678901234567890.123456789"
    file = tmp_path / "a.json"
    file.write_text(json.dumps([chunk("a", scores={"of": [0.5, 0]})]).replace("0.5", digits))

    reports = [KnowledgeImporter(database).run([file]) for _ in range(2)]

    assert [counts(report) for report in reports] == [(1, 0, 0, 0), (0, 0, 1, 0)]
    (told,) = KnowledgeImporter(database).history()
    assert (told.field, told.original, told.stored, told.rule) == (
        "scores.of[0]",
        digits,
        float(digits),
        "number",
    )


def test_two_imports_of_one_file_at_once_add_it_once(database: Database, write: Write) -> None:
    """They queue; the second finds everything done."""
    file = write("a.json", *(chunk(f"c{i}", f"Text number {i}.") for i in range(300)))
    reports: list[ImportReport] = []
    start = threading.Barrier(2)

    def run() -> None:
        start.wait()
        reports.append(KnowledgeImporter(database).run([file]))

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sorted(map(counts, reports)) == [(0, 0, 300, 0), (300, 0, 0, 0)]


def test_a_chunk_stored_by_code_meanwhile_is_not_overwritten(
    database: Database, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is an error and nothing of it is kept; the next file goes in."""
    look = KnowledgeRepository.list_known

    def look_then_lose(self: KnowledgeRepository, chunk_ids: Sequence[str]) -> Any:
        found = look(self, chunk_ids)
        if "a" in chunk_ids:
            with database.unit_of_work() as work:
                work.knowledge.add(
                    models.FrameworkDocument(
                        chunk_id="a", source_file="x", section="y", title="z", content="By code."
                    )
                )
                work.commit()
        return found

    monkeypatch.setattr(KnowledgeRepository, "list_known", look_then_lose)
    files = [write("a.json", chunk("a"), chunk("b")), write("c.json", chunk("c"))]

    report = KnowledgeImporter(database).run(files)

    assert counts(report) == (1, 0, 0, 2)
    assert "import the file again" in (report.files[0].error or "")
    assert get_stored(database, "a").content == "By code."


def test_stopping_between_files_leaves_whole_files(database: Database, write: Write) -> None:
    """Ctrl-C: what was committed stays, the rest is as if never begun, and a rerun finishes."""
    files = [write(f"{name}.json", chunk(f"{name}1"), chunk(f"{name}2")) for name in "abc"]
    calls = count()

    def interrupt(_done: int, _total: int) -> None:
        if next(calls) == 2:  # inside the second file
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        KnowledgeImporter(database).run(files, interrupt)

    with database.unit_of_work() as work:
        assert sorted(work.knowledge.list_known(["a1", "a2", "b1", "b2", "c1"])) == ["a1", "a2"]
        (run,) = work.imports.list_runs("knowledge")
        assert run.finished_at is None
    assert counts(KnowledgeImporter(database).run(files)) == (4, 0, 2, 0)


def test_progress_ends_at_its_total(database: Database, tmp_path: Path, write: Write) -> None:
    """In bytes, never backwards, broken files included."""
    write("a.json", chunk("a"))
    (tmp_path / "b.json").write_text("{")
    (tmp_path / "c.json").write_text("[]")
    seen: list[tuple[int, int]] = []

    KnowledgeImporter(database).run([tmp_path], lambda done, total: seen.append((done, total)))

    assert seen == sorted(seen)
    assert seen[-1][0] == seen[-1][1] == sum(f.stat().st_size for f in tmp_path.iterdir())


def test_a_file_of_several_batches_is_one_file(
    database: Database, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Duplicates are found across batches, and statistics are there at once."""
    monkeypatch.setattr("pgcorpus.services.knowledge.importer.BATCH", 400)
    chunks = [chunk(f"c{i}", f"Text number {i} of many.") for i in range(1000)]
    file = write("a.json", *chunks, chunk("c0", "Another text."), chunks[1])

    report = KnowledgeImporter(database).run([file])

    assert BATCH > 400
    assert counts(report) == (1000, 0, 1, 1)
    with database.engine.connect() as connection:
        assert (
            connection.scalar(
                text("SELECT reltuples FROM pg_class WHERE relname = 'framework_documents'")
            )
            == 1000
        )


def test_statistics_are_there_after_few_chunks(database: Database, write: Write) -> None:
    """A few are much of a small table; one more changes too little, and a dry run nothing."""

    def rows_known() -> float | None:
        with database.engine.connect() as connection:
            return connection.scalar(
                text("SELECT reltuples FROM pg_class WHERE relname = 'framework_documents'")
            )

    file = write("a.json", *(chunk(f"c{i}", f"Text number {i} of many.") for i in range(20)))
    KnowledgeImporter(database, dry_run=True).run([file])
    before = rows_known()
    KnowledgeImporter(database).run([file])
    first = rows_known()
    KnowledgeImporter(database).run([write("b.json", chunk("b", "One more."))])

    assert before in {-1, 0}
    assert (first, rows_known()) == (20, 20)


@pytest.mark.parametrize("group", ["rag_read_write", None])
def test_no_words_wait_to_be_sorted_into_the_indexes(
    database: Database, write: Write, group: Group | None
) -> None:
    """Every search would read them; whoever imports need not own the indexes."""
    by_code = models.FrameworkDocument(
        chunk_id="a", source_file="x", section="y", title="z", content="By code."
    )
    with database.unit_of_work() as work:
        work.knowledge.add(by_code)
        work.commit()
    sorted_in = text("SELECT gin_clean_pending_list('idx_documents_content_fts')")
    with database.unit_of_work() as work:
        waited = work.session.scalar(sorted_in)
    file = write("a.json", *(chunk(f"c{i}", f"Text number {i} of many.") for i in range(50)))

    with logged_in(database, group) if group else nullcontext(database) as importing:
        KnowledgeImporter(importing).run([file])

    with database.unit_of_work() as work:
        assert (waited, work.session.scalar(sorted_in)) == (1, 0)


def test_a_large_file_sorts_its_words_into_the_indexes_of_a_filled_corpus(
    database: Database, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In its own transaction: a run that is killed after it leaves none waiting."""
    monkeypatch.setattr("pgcorpus.db.repositories.knowledge.chunks.BULK", 10)
    KnowledgeImporter(database).run([write("a.json", chunk("a"))])
    limits: list[str | None] = []

    def look(work: KnowledgeRepository, chunks: Sequence[object]) -> None:
        limits.append(work.session.scalar(text("SHOW gin_pending_list_limit")))
        write_all(work, chunks)

    write_all = KnowledgeRepository.write
    monkeypatch.setattr(KnowledgeRepository, "write", look)

    ends = count()

    def stop(done: int, total: int) -> None:
        if done == total and next(ends) == 1:  # the file is kept, and the run not ended
            raise KeyboardInterrupt

    file = write("b.json", *(chunk(f"c{i}", f"Text number {i} of many.") for i in range(50)))
    with pytest.raises(KeyboardInterrupt):
        KnowledgeImporter(database).run([file], stop)

    with database.unit_of_work() as work:
        waiting = text("SELECT gin_clean_pending_list('idx_documents_content_fts')")
        assert (limits, work.session.scalar(waiting)) == (["32MB"], 0)
        assert work.knowledge.count() == 51


def test_the_collector_walks_everything_again_after_a_run_that_was_stopped(
    database: Database, write: Write
) -> None:
    """Else nothing that was alive would ever be freed."""

    def interrupt(_done: int, _total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        KnowledgeImporter(database).run([write("a.json", chunk("a"))], interrupt)

    assert gc.get_freeze_count() == 0


def test_names_that_cannot_be_stored_are_made_printable(database: Database, tmp_path: Path) -> None:
    """A file name that is not UTF-8, a framework whose name holds NUL and half a character."""
    file = tmp_path / "a\udcff.json"
    file.write_text(json.dumps({"frameworks": {"f\0\ud800": {"chunks": [chunk("a"), 5]}}}))

    report = KnowledgeImporter(database).run([file])

    assert counts(report) == (1, 0, 0, 1)
    assert report.rejects[0].file.endswith("a\ufffd.json")
    assert report.rejects[0].locator == '$.frameworks["f\\u0000\\ud800"].chunks[1]'
    with database.unit_of_work() as work:
        assert work.knowledge.list_records(["a"])["a"].framework_name == "f\ufffd"


KNOWN_FIELDS = [*chunk("a"), "text", "char_count", "metadata", "language", "processing_date"]
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=())),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(KNOWN_FIELDS) | st.text(), inner, max_size=3)
    ),
    max_leaves=6,
)
CHUNKS = (
    st.fixed_dictionaries(
        {"chunk_id": st.sampled_from(["a", "b", "c"]) | VALUES},
        optional={
            "content": st.sampled_from(["Some text.", "Other text."]) | VALUES,
            "title": VALUES,
            "key_concepts": st.lists(VALUES, max_size=3) | VALUES,
            "metadata": st.dictionaries(
                st.sampled_from(KNOWN_FIELDS) | st.text(), VALUES, max_size=3
            ),
            "start_line": VALUES,
            "end_line": VALUES,
            "language": VALUES,
        },
    )
    | st.dictionaries(st.sampled_from(KNOWN_FIELDS) | st.text(), VALUES, max_size=6)
    | VALUES
)


@settings(
    max_examples=40,
    deadline=None,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],  # examples are small as they come
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(chunks=st.lists(CHUNKS, max_size=6))
def test_any_json_is_accounted_for(database: Database, tmp_path: Path, chunks: list[Any]) -> None:
    """Nothing raises, every chunk is in one count, twice is once, and no value is lost."""
    file = tmp_path / f"{uuid4()}.json"  # its own, or examples would meet each other's rejects
    file.write_text(json.dumps(chunks))

    dry = KnowledgeImporter(database, dry_run=True).run([file])
    first = KnowledgeImporter(database).run([file])
    before = rows(database, *TABLES[:5], "import_transformations")
    second = KnowledgeImporter(database).run([file])

    assert [each.error for each in first.files] == [None]
    assert dry.as_json() == first.as_json()
    assert sum(counts(first)) == len(chunks)
    assert counts(second)[:2] == (0, 0)
    assert counts(second)[3] == first.total("rejected")
    assert rows(database, *TABLES[:5], "import_transformations") == before
    assert list_lost(database, str(file), chunks, first) == []


def list_lost(
    database: Database, file: str, chunks: Sequence[Any], report: ImportReport
) -> list[tuple[int, Any]]:
    """List values of accepted chunks that are neither stored nor told, and incomplete rejects."""
    with database.unit_of_work() as work:
        kept = {each.locator: each.payload for each in work.imports.list_refused("knowledge", file)}
        missing: list[tuple[int, Any]] = []
        for index, raw in enumerate(chunks):
            locator = f"$[{index}]"
            if locator in kept:
                missing += [] if kept[locator] == raw else [(index, raw)]
                continue
            # By the chunk and not by the file: what another file gave alike is told once.
            told = work.imports.list_changes("knowledge", item=identifier(raw), limit=10_000)
            there: list[Any] = [each.original for each in told]
            for known in work.knowledge.list_records([identifier(raw)]).values():
                there += [getattr(known, name) for name in known.__slots__]
                there += known.concepts
            places = set(leaves(there))
            missing += [(index, leaf) for leaf in leaves(raw) if leaf not in places]
    assert len(kept) == report.total("rejected")
    return missing


def identifier(raw: dict[str, Any]) -> str:
    """The identifier as it is stored."""
    found = raw.get("chunk_id")
    found = raw["metadata"]["chunk_id"] if found is None else found
    return (
        str(found).replace("\0", "").encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    )


def leaves(value: Any) -> list[str]:
    """Every text, number and boolean in a value, as text."""
    if isinstance(value, dict):
        return [leaf for inner in value.values() for leaf in leaves(inner)]
    if isinstance(value, list | tuple | set | frozenset):
        return [leaf for inner in value for leaf in leaves(inner)]
    if value is None:
        return []
    return [repr(float(value)) if isinstance(value, int | float) else str(value)]
