"""The rate at which a tree of documents goes in, without vectors, and is passed over again.

``python -m tests.benchmarks.documentation_import`` measures reading alone, the first import, and
those of the unchanged tree, of one of which some files changed, and of a second tree, whose rows
the indexes take one by one. The floor is the same rows by COPY into a table without anything.
"""

from __future__ import annotations

import argparse
import random
import re
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

from pgcorpus.db.engine import Database
from pgcorpus.services.documentation.drafting import Drafting
from pgcorpus.services.documentation.importing.importer import DocumentationImporter
from pgcorpus.services.documentation.reading.formats import read_document
from tests.benchmarks import data
from tests.benchmarks.own_database import open_own_database, print_found

FILES: Final = 10_000
FILE_BYTES: Final = 5_000
FOLDERS: Final = 100
CHANGED: Final = 50
"""One file in so many is edited before the third import."""

_HEADING: Final = re.compile(r"^(?=#{1,6} \S)", re.MULTILINE)
_WORD: Final = re.compile(r"[A-Za-z]{5,}")


def make(folder: Path, *, files: int, seed: int = data.SEED) -> int:
    """Write a tree of Markdown files; return its bytes.

    Each file is made of sections of real pages: those of this project, and of what is installed. In
    each section some words are those of another, so that no two are the same.
    """
    chance = random.Random(seed)  # noqa: S311 - no secret
    sections = list(_list_sections())
    words = sorted({word for each in sections for word in _WORD.findall(each)})
    written = 0
    for number in range(files):
        path = folder / f"part-{number % FOLDERS:03}" / f"page-{number:05}.md"
        path.parent.mkdir(parents=True, exist_ok=True)
        text = f"# Page {number} on {chance.choice(words)}\n\n"
        length = chance.lognormvariate(0, 0.6) * FILE_BYTES * 0.72
        while len(text) < length:
            section = chance.choice(sections)
            text += _vary(section, words, chance).rstrip() + "\n\n"
        written += path.write_bytes(text.encode())
    return written


def _list_sections() -> Iterator[str]:
    docs = Path(__file__).parents[2] / "docs"
    installed = Path(sysconfig.get_path("purelib"))
    for path in [*sorted(docs.rglob("*.md")), *sorted(installed.rglob("*.md"))]:
        text = path.read_text(encoding="utf-8", errors="replace").replace("\r\n", "\n")
        yield from (each for each in _HEADING.split(text) if 200 <= len(each) <= FILE_BYTES)


def _vary(text: str, words: list[str], chance: random.Random) -> str:
    return _WORD.sub(
        lambda found: chance.choice(words) if chance.random() < 0.1 else found[0], text
    )


def _measure(work: Callable[[], Any]) -> tuple[float, Any]:
    started = time.perf_counter()
    result = work()
    return time.perf_counter() - started, result


def read(folder: Path) -> dict[str, float]:
    """Read and chunk all files, without a database."""
    drafting = Drafting()

    def draft() -> tuple[int, int]:
        chunks = characters = 0
        for path in sorted(folder.rglob("*.md")):
            content = path.read_bytes()
            document = read_document(content, name=path.name)
            record = drafting.draft(document, path=str(path), digest=sha256(content).hexdigest())
            chunks += len(record.chunks)
            characters += sum(len(each.text) for each in record.chunks)
        return chunks, characters

    seconds, (chunks, characters) = _measure(draft)
    return {"chunks": chunks, "characters": characters, **_rate(chunks, seconds)}


def load(database: Database, folder: Path) -> dict[str, float]:
    """Import a folder.

    Raises:
        RuntimeError: A file was refused.
    """
    seconds, report = _measure(lambda: DocumentationImporter(database).run([folder]))
    if report.failed:
        raise RuntimeError(next(each.error for each in report.files if each.error))
    chunks = report.total("added") + report.total("updated") + report.total("unchanged")
    return {
        "documents": report.documents,
        "unchanged_documents": report.unchanged_documents,
        "written": report.stored,
        **_rate(chunks, seconds),
    }


def copy(database: Database) -> dict[str, float]:
    """Load the chunks that are stored by COPY into a table without keys, indexes or triggers."""
    with database.engine.connect() as connection:
        driver: Any = connection.connection.driver_connection
        with driver.cursor() as cursor:
            cursor.execute(
                "CREATE TEMP VIEW plain AS SELECT document_id, chunk_id, position,"
                " heading, anchor, heading_path, text, hash, metadata FROM chunks"
            )
            cursor.execute("CREATE UNLOGGED TABLE copied AS SELECT * FROM plain LIMIT 0")
            cursor.execute("ALTER TABLE copied SET LOGGED")
            with cursor.copy("COPY (SELECT * FROM plain) TO STDOUT (FORMAT BINARY)") as out:
                blocks = list(out)

            def load_again() -> int:
                with cursor.copy("COPY copied FROM STDIN (FORMAT BINARY)") as stream:
                    for block in blocks:
                        stream.write(block)
                connection.commit()
                return int(cursor.rowcount)

            seconds, rows = _measure(load_again)
            cursor.execute("DROP TABLE copied")
            connection.commit()
    return _rate(rows, seconds)


def _edit(folder: Path) -> None:
    for path in sorted(folder.rglob("*.md"))[::CHANGED]:
        with path.open("a") as file:
            file.write("\n## A section that is new\n\nIt says so.\n")


def _rate(chunks: int, seconds: float) -> dict[str, float]:
    return {"seconds": round(seconds, 2), "chunks_per_second": round(chunks / seconds)}


def main() -> int:
    """Measure on a server of its own, and print what was found as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=FILES)
    given = parser.parse_args()
    found: dict[str, Any] = {}
    with open_own_database("documentation") as (database, home):
        for name, files, seed in (("tree", given.files, 1), ("second", given.files // 10, 2)):
            (home / name).mkdir()
            found[f"{name}_bytes"] = make(home / name, files=files, seed=seed)
        found["reading"] = read(home / "tree")
        found["first"] = load(database, home / "tree")
        found["unchanged"] = load(database, home / "tree")
        _edit(home / "tree")
        found["edited"] = load(database, home / "tree")
        found["second"] = load(database, home / "second")
        found["copy"] = copy(database)
    print_found(found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
