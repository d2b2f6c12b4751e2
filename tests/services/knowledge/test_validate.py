"""The validation report: each check when it holds, and when it fails for its own reason."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import select, text
from sqlalchemy.exc import InternalError

from pgcorpus.db.engine import Database
from pgcorpus.db.models import FrameworkDocument, FrameworkMetadata
from pgcorpus.db.models.imports import ImportTransformation
from pgcorpus.db.search.corpora import KNOWLEDGE
from pgcorpus.db.settings import Settings
from pgcorpus.db.uow import UnitOfWork
from pgcorpus.services.corpus import Check
from pgcorpus.services.embedding.choice import choose
from pgcorpus.services.knowledge import validate
from pgcorpus.services.knowledge.validate import check_chunks
from pgcorpus.services.ops.validation import ValidationService
from tests import factories
from tests.factories import (
    ChunkEmbeddingFactory,
    DocumentConceptFactory,
    EmbeddingModelFactory,
    FrameworkDocumentFactory,
    ImportFileFactory,
    ImportRunFactory,
    KeyConceptFactory,
    SourceLinesFactory,
)

NAMES = (
    "chunk_count",
    "embedding_count",
    "framework_integrity",
    "vector_dimensions",
    "key_concepts",
    "performance_baseline",
    "declared_counts",
    "overlap_in_neighbour",
    "source_lines_in_order",
    "complete_concepts",
)
REFERENCE = Path(__file__).parents[3] / "docs" / "reference" / "validation.md"


def check(
    work: UnitOfWork, name: str, *, model: str | None = None, expected: int | None = None
) -> Check:
    """One check, over rows that nobody else sees."""
    choice = choose(work, KNOWLEDGE, Settings(environment="test"), model)
    checks = check_chunks(work, KNOWLEDGE, choice, expected)
    return {each.name: each for each in checks}[name]


@pytest.fixture
def committed(database: Database) -> Iterator[UnitOfWork]:
    """A unit of work on the test's own database, to be committed before the service looks."""
    with database.unit_of_work() as work:
        factories.bind(work.session)
        yield work


def chunk(
    content: str,
    *,
    lines: tuple[int, int] | None = None,
    overlap: str | None = None,
    source_file: str = "pricing.md",
) -> FrameworkDocument:
    """A chunk, perhaps with source lines and a declared overlap."""
    document = FrameworkDocumentFactory(
        content=content, source_file=source_file, details__overlap_with_previous=overlap
    )
    if lines is not None:
        SourceLinesFactory(document=document, start_line=lines[0], end_line=lines[1])
    return document


def test_a_whole_corpus_passes_every_check(database: Database, committed: UnitOfWork) -> None:
    """A chunk with its vector, metadata and twenty concepts is all that is needed."""
    document = FrameworkDocumentFactory()
    ChunkEmbeddingFactory(document=document)
    DocumentConceptFactory.create_batch(20, document=document)
    committed.commit()

    report = ValidationService(database).validate()

    assert report.passed
    assert tuple(each.name for each in report.checks if each.passed) == NAMES
    assert not any(each.detail for each in report.checks)


def test_an_empty_corpus_fails_with_the_command_that_fills_it(database: Database) -> None:
    """Nothing to check is not a success, and not a stack trace either."""
    report = ValidationService(database).validate()

    count = report.checks[0]
    assert not report.passed
    assert (count.name, count.passed, count.expected, count.found) == ("chunk_count", False, 0, 0)
    assert "pgcorpus import knowledge" in (count.detail or "")


def test_the_reference_explains_every_check() -> None:
    """One row of the reference's table for each check, in the order of the report."""
    of_knowledge, _, _ = REFERENCE.read_text().partition("## Other corpora")
    rows = [line for line in of_knowledge.splitlines() if line.startswith("| `")]

    assert tuple(row.split("`")[1] for row in rows) == NAMES


def test_a_detail_names_five_chunks_and_counts_the_rest(work: UnitOfWork) -> None:
    """A table on a terminal has no room for a hundred names."""
    for number in range(7):
        FrameworkDocumentFactory(chunk_id=f"broken_{number}", details=False)

    detail = check(work, "framework_integrity").detail

    assert detail == "broken_0, broken_1, broken_2, broken_3, broken_4 and 2 more"


def test_a_report_is_one_snapshot_that_cannot_write(
    database: Database, committed: UnitOfWork
) -> None:
    """An import that commits between two checks is not seen by the second."""
    FrameworkDocumentFactory()
    committed.commit()

    with database.unit_of_work() as reading:
        reading.validation.begin_report()
        assert reading.validation.count_metadata() == 1
        FrameworkDocumentFactory()
        committed.commit()

        assert reading.validation.count_metadata() == 1
        with pytest.raises(InternalError, match="read-only"):
            reading.session.execute(text("DELETE FROM framework_documents"))


def test_as_many_chunks_as_were_imported_pass(work: UnitOfWork) -> None:
    """Imports of other corpora do not count."""
    FrameworkDocumentFactory.create_batch(2)
    ImportFileFactory.create_batch(2, added=1)
    ImportFileFactory(run=ImportRunFactory(corpus="memory"), added=40)

    answer = check(work, "chunk_count")

    assert (answer.passed, answer.expected, answer.found) == (True, 2, 2)


def test_fewer_chunks_than_were_imported_fail(work: UnitOfWork) -> None:
    """A chunk that was added and is gone is missing."""
    FrameworkDocumentFactory()
    ImportFileFactory(added=2)

    answer = check(work, "chunk_count")

    assert (answer.passed, answer.expected, answer.found) == (False, 2, 1)
    assert "imports added more" in (answer.detail or "")


def test_without_imports_the_metadata_say_how_many_chunks_there_are(work: UnitOfWork) -> None:
    """Rows made by code leave no import history."""
    FrameworkDocumentFactory.create_batch(3)

    answer = check(work, "chunk_count")

    assert (answer.passed, answer.expected, answer.found) == (True, 3, 3)


@pytest.mark.parametrize(("expected", "passed"), [(1, False), (2, True), (3, False)])
def test_an_expected_number_of_chunks_must_be_met_exactly(
    work: UnitOfWork, expected: int, passed: bool
) -> None:
    """As in the specification: nineteen are nineteen."""
    FrameworkDocumentFactory.create_batch(2)

    assert check(work, "chunk_count", expected=expected).passed is passed


def test_a_vector_of_the_present_text_counts(work: UnitOfWork) -> None:
    """Of the model in use, or of the one that is named."""
    model = EmbeddingModelFactory()
    document = FrameworkDocumentFactory()
    ChunkEmbeddingFactory(document=document)
    ChunkEmbeddingFactory(document=document, model_name=model.name, embedding=factories.axis(1))

    assert check(work, "embedding_count").passed
    assert check(work, "embedding_count", model=model.name).passed


def test_a_missing_stale_or_foreign_vector_does_not_count(work: UnitOfWork) -> None:
    """None of the three can answer a search for the present text."""
    ChunkEmbeddingFactory()
    FrameworkDocumentFactory(chunk_id="missing")
    ChunkEmbeddingFactory(
        document=FrameworkDocumentFactory(chunk_id="stale"), content_hash=bytes(32)
    )
    ChunkEmbeddingFactory(
        document=FrameworkDocumentFactory(chunk_id="foreign"),
        model_name=EmbeddingModelFactory().name,
        embedding=factories.axis(1),
    )

    answer = check(work, "embedding_count")

    assert (answer.passed, answer.expected, answer.found) == (False, 4, 1)
    assert answer.detail == "foreign, missing, stale"


def test_chunks_that_preserve_their_concept_pass(work: UnitOfWork) -> None:
    """The metadata row is there and says so."""
    FrameworkDocumentFactory.create_batch(2, details__preserves_complete_concept=True)

    assert check(work, "framework_integrity").passed


def test_chunks_without_metadata_or_with_half_a_concept_fail(work: UnitOfWork) -> None:
    """Unknown is not yes."""
    FrameworkDocumentFactory()
    FrameworkDocumentFactory(chunk_id="bare", details=False)
    FrameworkDocumentFactory(chunk_id="half", details__preserves_complete_concept=False)
    unknown = FrameworkDocumentFactory(chunk_id="unknown")
    said = select(FrameworkMetadata).where(FrameworkMetadata.document_id == unknown.id)
    work.session.scalars(said).one().preserves_complete_concept = None

    answer = check(work, "framework_integrity")

    assert (answer.passed, answer.expected, answer.found) == (False, 4, 1)
    assert answer.detail == "bare, half, unknown"


def test_vectors_as_long_as_registered_pass(work: UnitOfWork) -> None:
    """Of all models, not only of the one in use."""
    ChunkEmbeddingFactory()
    ChunkEmbeddingFactory(model_name=EmbeddingModelFactory().name, embedding=factories.axis(1))

    answer = check(work, "vector_dimensions")

    assert (answer.passed, answer.expected, answer.found) == (True, 2, 2)


@pytest.mark.superuser  # switches foreign keys off
def test_vectors_of_another_length_fail_and_the_report_goes_on(work: UnitOfWork) -> None:
    """A search cannot compare them: that check says so, and the ones after it still run."""
    model = EmbeddingModelFactory(dimensions=4).name
    ChunkEmbeddingFactory(model_name=model, embedding=factories.axis(1))
    short = FrameworkDocumentFactory(chunk_id="short")
    # As after a restore without constraints: triggers, and with them foreign keys, do not fire.
    work.session.execute(text("SET LOCAL session_replication_role = replica"))
    ChunkEmbeddingFactory(document=short, model_name=model, embedding=factories.axis(1, length=3))

    dimensions = check(work, "vector_dimensions", model=model)
    baseline = check(work, "performance_baseline", model=model)

    assert (dimensions.passed, dimensions.expected, dimensions.found) == (False, 2, 1)
    assert dimensions.detail == "short"
    assert not baseline.passed
    assert "different vector dimensions" in str(baseline.found)
    assert check(work, "declared_counts", model=model).passed


def test_twenty_linked_concepts_are_enough(work: UnitOfWork) -> None:
    """However many chunks explain the same one, it is one."""
    DocumentConceptFactory.create_batch(20)

    answer = check(work, "key_concepts")

    assert (answer.passed, answer.expected, answer.found) == (True, 20, 20)


def test_concepts_that_no_chunk_explains_do_not_count(work: UnitOfWork) -> None:
    """Nineteen are linked, one of them twice; five are only listed."""
    DocumentConceptFactory.create_batch(18)
    DocumentConceptFactory.create_batch(2, concept=KeyConceptFactory())
    KeyConceptFactory.create_batch(5)

    answer = check(work, "key_concepts")

    assert (answer.passed, answer.found) == (False, 19)


def test_a_fast_search_passes_the_baseline(work: UnitOfWork) -> None:
    """The check reports the time that the server measured."""
    ChunkEmbeddingFactory.create_batch(3)

    answer = check(work, "performance_baseline")

    assert answer.passed
    assert answer.expected == 500
    assert 0 < float(answer.found) < 500


def test_a_search_beyond_the_limit_fails_the_baseline(
    work: UnitOfWork, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a limit of nothing, any time is too long."""
    monkeypatch.setattr(validate, "MAX_SEARCH_MS", 0.0)
    ChunkEmbeddingFactory()

    answer = check(work, "performance_baseline")

    assert not answer.passed
    assert float(answer.found) > 0


def test_without_vectors_the_baseline_says_what_to_do(work: UnitOfWork) -> None:
    """There is nothing to measure, and that is no success."""
    FrameworkDocumentFactory()

    answer = check(work, "performance_baseline")

    assert not answer.passed
    assert answer.found == "no vectors of the model 'hashing'"
    assert "pgcorpus embed --corpus knowledge" in (answer.detail or "")


def test_counts_are_of_characters_and_of_words_between_any_whitespace(work: UnitOfWork) -> None:
    """Not of bytes; and a no-break space parts words, as it does for the importer."""
    FrameworkDocumentFactory(
        content="Größe\u00a0zählt\n\nmehrfach 🎯🎯🎯",
        details__character_count=25,
        details__word_count=4,
    )

    assert check(work, "declared_counts").passed


def test_counts_that_are_not_those_of_the_text_fail(work: UnitOfWork) -> None:
    """One character or one word is enough."""
    content = "A price is a promise."
    FrameworkDocumentFactory(content=content)
    FrameworkDocumentFactory(chunk_id="characters", content=content, details__character_count=22)
    FrameworkDocumentFactory(chunk_id="words", content=content, details__word_count=4)

    answer = check(work, "declared_counts")

    assert (answer.passed, answer.expected, answer.found) == (False, 3, 1)
    assert answer.detail == "characters, words"


def test_counts_that_were_declared_wrongly_are_told(work: UnitOfWork) -> None:
    """Recounted chunks pass, once each, as long as they are there; other changes do not matter."""
    run = ImportRunFactory()
    there = FrameworkDocumentFactory(content="A price is a promise.").chunk_id
    for item, field, rule in (
        (there, "word_count", "recounted"),
        (there, "character_count", "recounted"),
        ("gone", "word_count", "recounted"),
        (there, "section", "cut"),
    ):
        work.session.add(
            ImportTransformation(
                run_id=run.id, file="a.json", locator="$", item=item, field=field, rule=rule
            )
        )

    answer = check(work, "declared_counts")

    assert (answer.passed, answer.expected, answer.found) == (True, 1, 1)
    assert answer.detail == "1 chunk was declared wrongly and recounted on import"


def test_an_overlap_is_found_in_the_chunk_before_whatever_its_whitespace(work: UnitOfWork) -> None:
    """The chunk before by source lines, however the rows were stored; blank declares nothing."""
    chunk("Raise the price later.", lines=(11, 20), overlap=" Anchor\nfirst,  then offer. ")
    chunk("Begin here. Anchor first, then\u00a0offer.", lines=(1, 10), overlap=" \n")
    chunk("Another source altogether.", lines=(5, 9), source_file="other.md")

    answer = check(work, "overlap_in_neighbour")

    assert (answer.passed, answer.expected, answer.found) == (True, 1, 1)


def test_an_overlap_that_only_a_chunk_further_off_holds_fails(work: UnitOfWork) -> None:
    """The neighbour is the one directly before, not any."""
    chunk("Anchor first, then offer.", lines=(1, 10))
    chunk("Something between the two.", lines=(11, 20))
    chunk("Anchor first, then offer. More.", lines=(21, 30), overlap="Anchor first, then offer.")

    answer = check(work, "overlap_in_neighbour")

    assert (answer.passed, answer.expected, answer.found) == (False, 1, 0)


def test_an_overlap_of_the_first_chunk_fails(work: UnitOfWork) -> None:
    """Nothing stands before it in its source; the same text in another source is no neighbour."""
    first = chunk("Anchor first. More.", lines=(1, 10), overlap="Anchor first.")
    chunk("Anchor first.", lines=(1, 10), source_file="other.md")

    answer = check(work, "overlap_in_neighbour")

    assert (answer.passed, answer.detail) == (False, first.chunk_id)


def test_without_source_lines_any_other_chunk_of_the_source_may_hold_the_overlap(
    work: UnitOfWork,
) -> None:
    """Nobody knows which one came before."""
    chunk("Anchor first. More.", overlap="Anchor first.")
    chunk("Begin here.")
    chunk("Begin here too. Anchor\nfirst.", lines=(1, 10))

    assert check(work, "overlap_in_neighbour").passed


def test_without_source_lines_the_chunk_itself_and_other_sources_do_not_count(
    work: UnitOfWork,
) -> None:
    """A chunk repeats the overlap in its own text: that proves nothing."""
    alone = chunk("Anchor first. More.", overlap="Anchor first.")
    chunk("Anchor first. Then offer.", source_file="other.md")
    chunk("Then offer. More.", source_file="other.md", overlap="Then offer.")

    answer = check(work, "overlap_in_neighbour")

    assert (answer.passed, answer.expected, answer.detail) == (False, 2, alone.chunk_id)


def test_ranges_that_follow_each_other_are_in_order(work: UnitOfWork) -> None:
    """Within one source; gaps are allowed, and other sources have lines of their own."""
    chunk("The first.", lines=(1, 10))
    chunk("The second.", lines=(11, 20))
    chunk("The third.", lines=(40, 50))
    chunk("In another source.", lines=(5, 15), source_file="other.md")
    chunk("Nobody knows where.")

    answer = check(work, "source_lines_in_order")

    assert (answer.passed, answer.expected, answer.found) == (True, 4, 4)


def test_ranges_may_meet_where_an_overlap_is_declared(work: UnitOfWork) -> None:
    """Then the repeated lines belong to both chunks."""
    chunk("Begin. Anchor first.", lines=(1, 10))
    chunk("Anchor first. More.", lines=(10, 20), overlap="Anchor first.")

    assert check(work, "source_lines_in_order").passed


def test_ranges_that_meet_without_a_declared_overlap_fail(work: UnitOfWork) -> None:
    """One shared line is enough."""
    chunk("The first.", lines=(1, 10))
    second = chunk("The second.", lines=(10, 20), overlap="")

    answer = check(work, "source_lines_in_order")

    assert (answer.passed, answer.expected, answer.found) == (False, 2, 1)
    assert answer.detail == second.chunk_id


def test_a_range_inside_a_long_one_fails_though_a_short_one_stands_between(
    work: UnitOfWork,
) -> None:
    """Every chunk before counts, not only the one directly before."""
    chunk("All of the chapter.", lines=(1, 100))
    chunk("Declared to repeat.", lines=(10, 20), overlap="Declared")
    inside = chunk("Not declared.", lines=(30, 40))

    assert check(work, "source_lines_in_order").detail == inside.chunk_id


def test_atomic_frameworks_that_are_whole_pass(work: UnitOfWork) -> None:
    """Only atomic frameworks are asked: a section is a part by design."""
    FrameworkDocumentFactory(details__chunk_type="atomic_framework")
    FrameworkDocumentFactory(
        details__chunk_type="framework_section", details__business_logic_intact=False
    )

    answer = check(work, "complete_concepts")

    assert (answer.passed, answer.expected, answer.found) == (True, 1, 1)


@pytest.mark.parametrize("flag", ["preserves_complete_concept", "business_logic_intact"])
def test_an_atomic_framework_that_is_not_whole_fails(work: UnitOfWork, flag: str) -> None:
    """Both the concept and its logic must be."""
    FrameworkDocumentFactory(
        chunk_id="split", details__chunk_type="atomic_framework", **{f"details__{flag}": False}
    )

    answer = check(work, "complete_concepts")

    assert (answer.passed, answer.expected, answer.found) == (False, 1, 0)
    assert answer.detail == "split"
