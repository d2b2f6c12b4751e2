"""Each rule does what docs/reference/import-rules.md says, and records it."""

from __future__ import annotations

from datetime import date
from typing import Any

import pytest

from pgcorpus.db.repositories.imports import Change
from pgcorpus.services.importers.draft import Rule, Unacceptable
from pgcorpus.services.knowledge.chunks import Context
from pgcorpus.services.knowledge.rules import Normalised, normalise

TEXT = "A price is what a buyer gives up."
WHOLE = {
    "chunk_id": "price_01",
    "title": "Price",
    "section": "Pricing",
    "description": "What a price is",
    "content": TEXT,
    "source_file": "pricing.md",
    "start_line": 1,
    "end_line": 4,
    "character_count": 33,
    "word_count": 8,
    "chunk_type": "atomic_framework",
    "framework_name": "Prices",
    "preserves_complete_concept": False,
    "overlap_with_previous": "",
    "contains_formula": True,
    "contains_list": True,
    "contains_example": True,
    "business_logic_intact": False,
    "validation_passed": False,
    "processing_date": "2025-10-06",
    "guidelines_compliance": "rules.md",
    "key_concepts": ["price", "cost & value"],
    "language": "simple",
}
FULL_CONTEXT = Context(
    "Framework", "Of the framework", {"source_file": "file.md", "processing_date": "2024-01-02"}
)


def normalise_whole(
    *, without: str = "", context: Context | None = None, **fields: Any
) -> Normalised:
    """Normalise the whole chunk with some fields given otherwise."""
    raw = {key: value for key, value in WHOLE.items() if key not in without.split()}
    return normalise(raw | fields, context or Context())


def test_a_chunk_that_keeps_all_rules_is_stored_as_it_stands() -> None:
    """Nothing is changed, and nothing is recorded, in strict mode either."""
    normalised = normalise(WHOLE, FULL_CONTEXT, strict=True)

    assert normalised.changes == []
    record = normalised.record
    assert {
        name: getattr(record, "concepts" if name == "key_concepts" else name) for name in WHOLE
    } == (
        WHOLE
        | {
            "processing_date": date(2025, 10, 6),
            "key_concepts": frozenset(["price", "cost & value"]),
        }
    )
    assert record.extra == {}


def test_fields_are_read_from_metadata_too() -> None:
    """The same chunk with its metadata in the other place is the same record."""
    top = {"chunk_id", "title", "section", "description", "content"}
    nested = {key: value for key, value in WHOLE.items() if key not in top}
    raw = {key: WHOLE[key] for key in top} | {"metadata": nested}

    assert normalise(raw, Context()).record == normalise(WHOLE, Context()).record


def test_the_text_may_be_called_text_and_the_count_char_count() -> None:
    """Files have both spellings."""
    normalised = normalise_whole(without="content character_count", text=TEXT, char_count=33)

    assert (normalised.record.content, normalised.record.character_count) == (TEXT, 33)
    assert normalised.changes == []


def test_unknown_fields_are_kept_where_they_stood() -> None:
    """Nested objects, and the fields of metadata, keep their structure."""
    extra = {"tags": ["a", {"b": None}], "metadata": {"editor": {"name": "E"}, "title": "the book"}}

    assert normalise_whole(**extra).record.extra == extra
    assert normalise_whole(metadata="free text").record.extra == {"metadata": "free text"}


@pytest.mark.parametrize(
    ("given", "field", "stored", "rule"),
    [
        ({"source_file": "a b/ü.md"}, "source_file", "a_b_.md", Rule.SOURCE_FILE),
        ({"source_file": "x" * 300}, "source_file", "x" * 255, Rule.CUT),
        ({"section": "x" * 256}, "section", "x" * 255, Rule.CUT),
        ({"framework_name": "x" * 256}, "framework_name", "x" * 255, Rule.CUT),
        ({"guidelines_compliance": "é" * 256}, "guidelines_compliance", "é" * 255, Rule.CUT),
        ({"guidelines_compliance": True}, "guidelines_compliance", "true", Rule.TEXT),
        ({"section": ""}, "section", "unknown", Rule.DEFAULT),
        ({"title": " "}, "title", "price_01", Rule.DEFAULT),
        ({"title": 7}, "title", "7", Rule.TEXT),
        ({"description": ["é"]}, "description", '["é"]', Rule.TEXT),
        ({"overlap_with_previous": {"a": 1}}, "overlap_with_previous", '{"a": 1}', Rule.TEXT),
        ({"chunk_type": "Atomic Framework"}, "chunk_type", "atomic_framework", Rule.CHUNK_TYPE),
        ({"chunk_type": "framework-section"}, "chunk_type", "framework_section", Rule.CHUNK_TYPE),
        ({"chunk_type": "framework"}, "chunk_type", "supporting", Rule.CHUNK_TYPE),
        ({"character_count": 99}, "character_count", 33, Rule.RECOUNTED),
        ({"word_count": "eight"}, "word_count", 8, Rule.RECOUNTED),
        ({"word_count": "8"}, "word_count", 8, Rule.INTEGER),
        ({"word_count": 8.0}, "word_count", 8, Rule.INTEGER),
        ({"word_count": True}, "word_count", 8, Rule.RECOUNTED),
        ({"contains_list": "no"}, "contains_list", False, Rule.BOOLEAN),
        ({"contains_list": 1}, "contains_list", True, Rule.BOOLEAN),
        ({"contains_list": "perhaps"}, "contains_list", None, Rule.UNREADABLE),
        ({"processing_date": "2025-10-06T14:32:09Z"}, "processing_date", "2025-10-06", Rule.DATE),
        ({"processing_date": "20251006"}, "processing_date", "2025-10-06", Rule.DATE),
        ({"processing_date": "06.10.2025"}, "processing_date", None, Rule.UNREADABLE),
        ({"processing_date": 20251006}, "processing_date", None, Rule.UNREADABLE),
        ({"start_line": "2"}, "start_line", 2, Rule.INTEGER),
        ({"language": "de-AT"}, "language", "german", Rule.LANGUAGE),
        ({"language": "German"}, "language", "german", Rule.LANGUAGE),
        ({"language": "zh"}, "language", "simple", Rule.LANGUAGE),
        ({"language": ""}, "language", "english", Rule.DEFAULT),
        ({"title": "a\0b\ud800"}, "title", "ab\ufffd", Rule.CHARACTERS),
    ],
)
def test_a_value_is_normalised_and_recorded(
    given: dict[str, Any],
    field: str,
    stored: Any,
    rule: Rule,
) -> None:
    """The record has what was given, what is stored and the rule; strict mode refuses instead."""
    normalised = normalise_whole(**given)

    value = getattr(normalised.record, field)
    assert (value.isoformat() if isinstance(value, date) else value) == stored
    assert normalised.changes == [Change(field, given[field], stored, rule.value)]
    with pytest.raises(Unacceptable, match=field):
        normalise(WHOLE | given, Context(), strict=True)


@pytest.mark.parametrize(
    ("given", "stored", "rules"),
    [
        (["price_anchoring"], {"price anchoring"}, [Rule.CONCEPT]),
        (["LTV:CAC"], {"LTV CAC"}, [Rule.CONCEPT]),
        (["café  crème!"], {"cafe creme"}, [Rule.CONCEPT]),
        (["x" * 300], {"x" * 255}, [Rule.CONCEPT]),
        ([5], {"5"}, [Rule.CONCEPT]),
        (["价格", "&", "", None, True, {}], set(), [Rule.CONCEPT_DROPPED] * 6),
        (["a", "a"], {"a"}, [Rule.CONCEPT_MERGED]),
        (["a", "A", "a_"], {"a", "A"}, [Rule.CONCEPT]),
        ("one, two;three", {"one", "two", "three"}, [Rule.CONCEPT_LIST]),
        ({"a": 1}, set(), [Rule.CONCEPT_DROPPED]),
        (None, set(), []),
    ],
)
def test_concepts_are_normalised_one_by_one(
    given: Any,
    stored: set[str],
    rules: list[Rule],
) -> None:
    """Each that changes is recorded; two that become the same are one; case is kept."""
    normalised = normalise_whole(key_concepts=given)

    assert normalised.record.concepts == stored
    assert [change.rule for change in normalised.changes] == rules


@pytest.mark.parametrize(
    ("start", "end"),
    [
        (0, 4),
        (-1, 4),
        (5, 4),
        (1, 10_002),
        (1, None),
        (None, 4),
        ("a", 4),
        (1.5, 4),
        (2**31, 2**31),
    ],
)
def test_lines_are_kept_in_pairs_or_not_at_all(start: object, end: object) -> None:
    """A pair that the table would refuse is recorded and left out."""
    normalised = normalise_whole(start_line=start, end_line=end)

    assert (normalised.record.start_line, normalised.record.end_line) == (None, None)
    given = {"start_line": start, "end_line": end}
    assert normalised.changes == [
        Change(name, value, None, "lines") for name, value in given.items() if value is not None
    ]


def test_the_longest_pair_of_lines_is_kept() -> None:
    """10,000 lines apart is what the constraint allows."""
    normalised = normalise_whole(start_line=1, end_line=10_001)

    assert (normalised.record.start_line, normalised.record.end_line) == (1, 10_001)


def test_gaps_are_filled_with_documented_defaults() -> None:
    """The least a chunk can be, and what is recorded of it."""
    normalised = normalise({"chunk_id": "a", "content": TEXT}, Context())

    record = normalised.record
    assert (record.source_file, record.section, record.title) == ("unknown", "unknown", "a")
    assert (record.chunk_type, record.language) == ("supporting", "english")
    assert (record.validation_passed, record.contains_list) == (True, False)
    assert (record.description, record.processing_date, record.framework_name) == (None, None, None)
    assert {(change.field, change.stored, change.rule) for change in normalised.changes} == {
        ("source_file", "unknown", "default"),
        ("section", "unknown", "default"),
        ("title", "a", "default"),
        ("chunk_type", "supporting", "default"),
        ("character_count", 33, "derived"),
        ("word_count", 8, "derived"),
        ("preserves_complete_concept", True, "default"),
        ("business_logic_intact", True, "default"),
        ("validation_passed", True, "default"),
    }


def test_a_chunk_inherits_from_its_framework_and_its_file() -> None:
    """And each inherited value is recorded."""
    normalised = normalise_whole(
        without="source_file processing_date description framework_name section",
        context=FULL_CONTEXT,
    )

    record = normalised.record
    assert (record.framework_name, record.description) == ("Framework", "Of the framework")
    assert (record.section, record.source_file) == ("Framework", "file.md")
    assert record.processing_date == date(2024, 1, 2)
    assert {(change.field, change.rule) for change in normalised.changes} == {
        (name, "inherited")
        for name in ("framework_name", "description", "section", "source_file", "processing_date")
    }


def test_an_inherited_value_that_cannot_be_stored_is_told_as_it_was() -> None:
    """The history has the value as the file says it; one that cleaning leaves blank is not used."""
    raw = {key: value for key, value in WHOLE.items() if key not in {"source_file", "section"}}

    normalised = normalise(raw, Context("\0", None, {"source_file": "a\0.md"}))

    assert (normalised.record.source_file, normalised.record.section) == ("a.md", "unknown")
    assert normalised.changes == [
        Change("source_file", "a\0.md", "a.md", "characters"),
        Change("source_file", None, "a.md", "inherited"),
        Change("section", "\0", "", "characters"),
        Change("section", None, "unknown", "default"),
    ]


def test_null_keeps_an_optional_value_empty() -> None:
    """The author said that there is none: nothing is inherited, no default is taken."""
    given = dict.fromkeys(
        ("description", "framework_name", "processing_date", "contains_list", "validation_passed")
    )
    normalised = normalise_whole(context=FULL_CONTEXT, **given)

    assert all(getattr(normalised.record, name) is None for name in given)
    assert normalised.changes == []


def test_the_top_of_a_chunk_wins_over_its_metadata() -> None:
    """The other value is in the history, and an equal one is no change."""
    normalised = normalise_whole(
        metadata={"section": "B", "source_file": "other.md", "word_count": 8}
    )

    assert normalised.record.source_file == "pricing.md"
    assert normalised.changes == [
        Change("metadata.source_file", "other.md", "pricing.md", "precedence")
    ]
    assert normalised.record.extra == {"metadata": {"section": "B"}}


def test_unstorable_characters_are_found_everywhere() -> None:
    """In values, in names and inside unknown fields; a name that is taken costs no other value."""
    normalised = normalise(
        WHOLE | {"tags": ["a\0"], "k\0": 1, "title\0": 2, "metadata": {"x\0": "\udfff"}},
        Context(),
    )

    assert normalised.record.title == "Price"
    assert normalised.record.extra == {"tags": ["a"], "k": 1, "metadata": {"x": "\ufffd"}}
    assert normalised.changes == [
        Change("tags", ["a\0"], ["a"], "characters"),
        Change("k", {"k\0": 1}, {"k": 1}, "characters"),
        Change("title", {"title\0": 2}, None, "characters"),
        Change("metadata.x", {"x\0": "\udfff"}, {"x": "\ufffd"}, "characters"),
    ]


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"chunk_id": None}, "chunk_id is missing"),
        ({"chunk_id": " \n"}, "chunk_id is missing or blank"),
        ({"chunk_id": "\0"}, "chunk_id is missing or blank"),
        ({"chunk_id": "x" * 256}, "256 characters"),
        ({"chunk_id": ["a"]}, "chunk_id is not text"),
        ({"chunk_id": True}, "chunk_id is not text"),
        ({"content": ""}, "content is missing or blank"),
        ({"content": None}, "content is missing"),
        ({"content": 5}, "content is not text"),
        ({"content": "x" * 50_001}, "50001 characters"),
        ({"content": "a b c d"}, "fewer than 3"),
        ({"content": "a " * 15_001}, "15001 words"),
        ({"text": "another"}, "both given, and differ"),
        ({"title": "x" * 50_001}, "title has 50001"),
    ],
)
def test_what_no_rule_can_mend_is_refused(given: dict[str, Any], reason: str) -> None:
    """With a reason for the person who will mend it."""
    with pytest.raises(Unacceptable, match=reason):
        normalise_whole(**given)


@pytest.mark.parametrize("raw", [None, 5, "text", ["chunk_id"], True])
def test_a_chunk_must_be_an_object(raw: Any) -> None:
    """Whatever else stands in its place is refused."""
    with pytest.raises(Unacceptable, match="object"):
        normalise(raw, Context())


@pytest.mark.parametrize(
    "field",
    [
        "source_file",
        "section",
        "title",
        "chunk_type",
        "character_count",
        "word_count",
        "validation_passed",
    ],
)
def test_strict_mode_asks_for_every_required_field(field: str) -> None:
    """Fields that the tables require are not made up, nor those that searches go by."""
    raw = {key: value for key, value in WHOLE.items() if key != field}

    with pytest.raises(Unacceptable, match=f"{field} is missing"):
        normalise(raw, Context(), strict=True)


def test_strict_mode_allows_optional_fields_to_be_absent() -> None:
    """Their defaults, and what is inherited, are recorded as ever."""
    optional = {
        "preserves_complete_concept",
        "business_logic_intact",
        "contains_list",
        "description",
        "processing_date",
        "key_concepts",
        "language",
    }
    raw = {key: value for key, value in WHOLE.items() if key not in optional}

    changes = normalise(raw, Context(description="of all"), strict=True).changes

    assert {(change.field, change.rule) for change in changes} == {
        ("preserves_complete_concept", "default"),
        ("business_logic_intact", "default"),
        ("description", "inherited"),
    }


def test_the_hash_tells_what_was_given_apart() -> None:
    """Not the order of fields; but what the file says, and values that would be stored alike."""
    one = normalise(WHOLE, Context())

    assert one.record_hash == normalise(dict(reversed(WHOLE.items())), Context()).record_hash
    assert one.record_hash != normalise(WHOLE, FULL_CONTEXT).record_hash
    assert one.record_hash != normalise_whole(source_file="pricing?md").record_hash
