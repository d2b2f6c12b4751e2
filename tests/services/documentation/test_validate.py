"""Documents are whole: numbered without gaps, of one collection, cut by a known chunker."""

from __future__ import annotations

from sqlalchemy import text

from pgcorpus.db.engine import Database
from pgcorpus.services.corpus import Check
from pgcorpus.services.documentation.chunker import CHUNKER_VERSION
from pgcorpus.services.documentation.service import DocumentService
from pgcorpus.services.ops.validation import ValidationService
from tests.services.memory.setting import ObedientEmbedder

GUIDE = "# Guide\n\nRead me first.\n\n## Install\n\nRun it.\n\n## Use\n\nAsk it.\n"


def validate(database: Database) -> dict[str, Check]:
    """The answers of all checks, by name."""
    report = ValidationService(database).validate("documentation", model="hashing")
    return {each.name: each for each in report.checks}


def run(database: Database, statement: str) -> None:
    """Run a statement of the test's own."""
    with database.unit_of_work() as work:
        work.session.execute(text(statement))
        work.commit()


def test_documents_that_were_added_are_whole(database: Database) -> None:
    """Of all scopes; vectors that a worker is to make are missing."""
    with database.unit_of_work() as work:
        work.models.use_model("documentation", "hashing")
        work.commit()
    service = DocumentService(database, ObedientEmbedder())
    service.add_document(GUIDE, path="a.md")
    service.add_document(GUIDE, path="b.md", embed=False)

    checks = validate(database)

    assert [name for name, each in checks.items() if not each.passed] == ["embedding_count"]
    assert (checks["embedding_count"].expected, checks["embedding_count"].found) == (6, 3)
    assert checks["chunks_in_order"] == Check("chunks_in_order", True, 2, 2)
    assert checks["chunks_of_documents"] == Check("chunks_of_documents", True, 6, 6)
    assert checks["current_chunker"] == Check("current_chunker", True, 6, 6)


def test_gaps_strays_and_other_chunkers_are_told(database: Database) -> None:
    """Each with where; chunks of another chunker are no fault."""
    service = DocumentService(database, ObedientEmbedder())
    for name in "ab":
        service.add_document(GUIDE, path=f"{name}.md", embed=False)
    (stray,) = (each.chunk_id for each in service.get("b.md").chunks if each.anchor == "use")
    run(database, "UPDATE chunks SET position = 7 WHERE position = 1"
                  " AND document_id = (SELECT id FROM documents WHERE path = 'a.md')")  # fmt: skip
    run(database, "UPDATE chunks SET collection = 'other' WHERE anchor = 'use'"
                  " AND document_id = (SELECT id FROM documents WHERE path = 'b.md')")  # fmt: skip
    run(database, "UPDATE chunks SET chunker_version = 'v0' WHERE position = 0")

    checks = validate(database)

    assert checks["chunks_in_order"] == Check("chunks_in_order", False, 2, 1, "a.md")
    assert checks["chunks_of_documents"] == Check("chunks_of_documents", False, 6, 5, stray)
    assert checks["current_chunker"].passed
    assert checks["current_chunker"].found == 4
    assert CHUNKER_VERSION != "v0"
    assert "2 by v0" in (checks["current_chunker"].detail or "")
