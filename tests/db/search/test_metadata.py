"""Filters on free metadata: every operator on every type, in SQL as by definition."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta, timezone
from typing import Any, Final

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import column, func, select, text, update
from sqlalchemy.dialects.postgresql import JSONB

from pgcorpus.db.errors import InvalidFilter, UnknownFilter
from pgcorpus.db.search.ask import Ask
from pgcorpus.db.search.corpora import KNOWLEDGE, MEMORY
from pgcorpus.db.search.estimates import explain_matching
from pgcorpus.db.search.legs import AskedModel
from pgcorpus.db.search.metadata import (
    MAX_CHARACTERS,
    MAX_DEPTH,
    MAX_LISTED,
    MAX_TESTS,
    OPERATORS,
    list_held,
    match_metadata,
    parse_metadata,
)
from pgcorpus.db.search.question import Question
from pgcorpus.db.uow import UnitOfWork, WorkSession
from tests.db.search.reference import meets
from tests.db.search.shelves import DIMENSIONS, MODEL, SHELVES, Passage, Shelf


def keep(session: WorkSession, documents: Sequence[Any], asked: dict[str, Any]) -> list[int]:
    """Places of the documents that PostgreSQL keeps."""
    tree, values = parse_metadata(asked)
    rows = func.jsonb_array_elements(text("CAST(:documents AS jsonb)")).table_valued(
        column("extra", JSONB), with_ordinality="place"
    )
    rows = rows.render_derived()
    statement = select(rows.c.place - 1).order_by(rows.c.place)
    if tree is not None:
        statement = statement.where(match_metadata(rows.c.extra, tree))
    values["documents"] = json.dumps(documents)
    return list(session.scalars(statement, values))


VALUES: Final[dict[str, Any]] = {
    "null": None,
    "true": True,
    "false": False,
    "zero": 0,
    "one": 1,
    "one and a half": 1.5,
    "huge": 10**30,
    "huge and one": 10**30 + 1,
    "tiny": 1e-300,
    "text one": "1",
    "text true": "true",
    "empty": "",
    "Ada": "Ada",
    "ada": "ada",
    "umlaut": "Übung 100 %",
    "astral": "🌍🌕",
    "day": "2025-01-31",
    "next hour": "2025-01-31T01:00:00+01:00",
    "noon": "2025-01-31T12:00:00.5Z",
    "no day": "2025-02-30",
    "leap day": "2024-02-29",
    "no leap day": "1900-02-29",
    "year 0": "0000-01-01",
    "infinity": "infinity",
    "far zone": "2025-01-31T00:00:00+16:00",
    "empty list": [],
    "list": ["Ada", 1, None],
    "longer": [1, "Ada", None, True],
    "nested": [["Ada"], [1]],
    "object": {"b": 1},
    "larger": {"b": 1, "c": {"d": "x"}},
    "no object": {},
}
"""Values of the key ``a``. One document more has no such key."""

ALL: Final = {*VALUES, "missing"}
DATES: Final = {"day", "next hour", "noon", "leap day"}
TEXTS: Final = {name for name, value in VALUES.items() if isinstance(value, str)}

JANUARY = datetime(2025, 1, 31, tzinfo=UTC)


@pytest.mark.parametrize(
    ("asked", "kept"),
    [
        # equality: a type of its own for each value
        (1, {"one"}),
        (1.0, {"one"}),
        (True, {"true"}),
        (False, {"false"}),
        (0, {"zero"}),
        ("1", {"text one"}),
        ("true", {"text true"}),
        ("", {"empty"}),
        ("Ada", {"Ada"}),
        ("Übung 100 %", {"umlaut"}),
        (10**30 + 1, {"huge and one"}),
        (1e-300, {"tiny"}),
        (None, {"null", "missing"}),
        ({"$eq": "Ada"}, {"Ada"}),
        ({"$eq": ["Ada", 1, None]}, {"list"}),
        ({"$eq": [1, "Ada", None]}, set()),
        ({"$eq": []}, {"empty list"}),
        ({"$eq": {"b": 1.0}}, {"object"}),
        ({"$eq": {}}, {"no object"}),
        ({"b": 1}, {"object", "larger"}),
        ({"c.d": "x"}, {"larger"}),
        ({"c": {"d": {"$exists": True}}}, {"larger"}),
        ({"0": "Ada"}, set()),  # a place in an array is no key
        (JANUARY, {"day", "next hour"}),
        (date(2025, 1, 31), {"day", "next hour"}),
        ({"$date": "2025-01-31T12:00:00.500+00:00"}, {"noon"}),
        # what is not: also what is missing
        ({"$ne": 1}, ALL - {"one"}),
        ({"$ne": None}, ALL - {"null", "missing"}),
        ({"$ne": JANUARY}, ALL - {"day", "next hour"}),
        ({"$not": {"$gt": 0}}, ALL - {"one", "one and a half", "huge", "huge and one", "tiny"}),
        ({"$not": {"$eq": "Ada", "$exists": True}}, ALL - {"Ada"}),
        ({"$nin": [1, "Ada", None]}, ALL - {"one", "Ada", "null", "missing"}),
        ({"$nin": []}, ALL),
        # any of them
        ({"$in": []}, set()),
        ({"$in": [1, True, "Ada"]}, {"one", "true", "Ada"}),
        ({"$in": [None, 0]}, {"null", "missing", "zero"}),
        ({"$in": [["Ada"], {"b": 1}, JANUARY]}, {"object", "day", "next hour"}),
        # there or not
        ({"$exists": True}, {*VALUES}),
        ({"$exists": False}, {"missing"}),
        # order: within a type
        ({"$gt": 1}, {"one and a half", "huge", "huge and one"}),
        ({"$gte": 10**30 + 1}, {"huge and one"}),
        ({"$lt": 1}, {"zero", "tiny"}),
        ({"$lte": 0.0}, {"zero"}),
        ({"$gt": 0, "$lt": 1}, {"tiny"}),
        ({"$gt": "ada"}, {"infinity", "text true", "umlaut", "astral"}),
        ({"$gte": "ada", "$lte": "infinity"}, {"ada", "infinity"}),
        ({"$lt": "1"}, {"empty", "year 0"}),
        ({"$gte": "🌍"}, {"astral"}),
        ({"$gt": JANUARY}, {"noon"}),
        ({"$gte": JANUARY}, {"day", "next hour", "noon"}),
        ({"$lt": datetime(2025, 1, 31, 3, tzinfo=timezone(timedelta(hours=2)))},
         {"day", "next hour", "leap day"}),
        ({"$lte": date(9999, 12, 31)}, DATES),
        ({"$gte": date(1, 1, 1)}, DATES),
        # lists and texts
        ({"$contains": "Ada"}, {"Ada", "list", "longer"}),
        ({"$contains": ""}, TEXTS),
        ({"$contains": "%"}, {"umlaut"}),
        ({"$contains": 1}, {"list", "longer"}),
        ({"$contains": True}, {"longer"}),
        ({"$contains": None}, {"list", "longer"}),
        ({"$contains": [1, "Ada"]}, {"list", "longer"}),
        ({"$contains": ["Ada"]}, {"list", "longer"}),
        ({"$contains": []}, {"empty list", "list", "longer", "nested"}),
        ({"$like": "_da"}, {"Ada", "ada"}),
        ({"$like": "A%"}, {"Ada"}),
        ({"$like": "__"}, {"astral"}),
        ({"$like": "%100 \\%"}, {"umlaut"}),
        ({"$like": "\\%"}, set()),
        ({"$like": "1"}, {"text one"}),
        # joined
        ({"$or": [{"$lt": 0.5}, {"$like": "a%"}]}, {"zero", "tiny", "ada"}),
        ({"$and": [{"$gt": 0}, {"$not": {"$gt": 1}}]}, {"one", "tiny"}),
    ],
    ids=lambda value: "" if isinstance(value, set) else repr(value),
)  # fmt: skip
def test_an_operator_keeps_what_its_definition_says(
    session: WorkSession, asked: Any, kept: set[str]
) -> None:
    """Numbers compare as numbers, dates as dates, texts as texts, and nothing across."""
    documents = [*({"a": value} for value in VALUES.values()), {"b": 1}]

    found = keep(session, documents, {"a": asked})

    assert {[*VALUES, "missing"][place] for place in found} == kept


@pytest.mark.parametrize(
    ("asked", "kept"),
    [
        ({}, {0, 1, 2, 3, 4}),
        ({"a.b": 1}, {0}),
        ({"a": {"b": 1}}, {0}),
        ({r"a\.b": 1}, {1}),
        ({r"a\.b": {"$gt": 0}}, {1}),
        ({r"\$eq": 1}, {2}),
        ({r"\\": 1}, {3}),
        ({"$or": [{"a.b": 1}, {r"\\": {"$exists": True}}]}, {0, 3}),
        ({"$not": {"$or": [{"a.b": 1}, {r"\\": 1}]}}, {1, 2, 4}),
        ({"$and": [{"x": "'; DROP TABLE users; --"}, {"y": {"$ne": "%s"}}]}, {4}),
        ({"x": {"$like": "'; DROP%"}}, {4}),
        ({"'||(SELECT 1)||'": {"$gt": 1}}, set()),
        ({"%(scope)s": {"$exists": True}}, set()),
    ],
    ids=lambda value: "" if isinstance(value, set) else repr(value),
)
def test_a_key_may_be_anything(session: WorkSession, asked: Any, kept: set[int]) -> None:
    """Dots reach into objects, a backslash takes their meaning, and no key is SQL."""
    documents = [
        {"a": {"b": 1}},
        {"a.b": 1},
        {"$eq": 1},
        {"\\": 1},
        {"x": "'; DROP TABLE users; --"},
    ]

    assert set(keep(session, documents, asked)) == kept


def test_metadata_that_are_no_object_have_no_keys(session: WorkSession) -> None:
    """A column of an application may hold any JSON."""
    documents = [1, "a", [{"a": 1}], None, {"a": 1}]

    assert keep(session, documents, {"a": 1}) == [4]
    assert keep(session, documents, {"a": {"$gte": 1}}) == [4]
    assert keep(session, documents, {"a": {"$ne": 1}}) == [0, 1, 2, 3]


# In searches


@pytest.mark.parametrize(
    "shelf",
    [each for each in SHELVES if each.corpus.metadata_column is not None],
    ids=lambda shelf: str(shelf.corpus.name),
)
def test_every_leg_keeps_what_meets_the_filter(shelf: Shelf, work: UnitOfWork) -> None:
    """In every corpus that has free metadata, beside its other filters."""
    corpus = shelf.corpus
    vector = np.eye(DIMENSIONS, dtype=np.float32)[0]
    keys = shelf.fill(work, [Passage(f"Price {n}", "of kettles", vector) for n in range(3)])
    for place, key in enumerate(keys):
        changed = {corpus.metadata_column: {"author": "Ada", "year": 2020 + place}}
        work.session.execute(update(corpus.passages).where(corpus.key == key).values(changed))
    asked: list[tuple[dict[str, Any], list[Any]]] = [
        ({"author": "Ada", "year": {"$gte": 2021}}, keys[1:]),
        ({"year": {"$in": [2020, "2021"]}}, keys[:1]),
        ({"publisher": {"$exists": False}}, keys),
        ({"author": "ada"}, []),
        ({}, keys),
    ]

    for legs in ({"vector": 1.0}, {"text": 1.0}, {"fuzzy": 1.0}, {"vector": 0.3, "text": 0.7}):
        for metadata, kept in asked:
            filters = {"metadata": metadata} | shelf.filters
            question = Ask(
                question=Question.parse("price kettles"),
                legs=legs,
                model=AskedModel(MODEL, DIMENSIONS),
                vector=vector,
                filters=filters,
            )
            found = {hit.id for hit in work.searches.answer(corpus, question).hits}
            assert (legs, metadata, found) == (legs, metadata, set(kept))


def test_a_corpus_without_free_metadata_has_no_such_filter() -> None:
    """Its error lists the filters there are; one that has them lists theirs, too."""
    with pytest.raises(UnknownFilter, match="memory has no filter metadata"):
        MEMORY.parse_filters({"metadata": {"a": 1}})
    with pytest.raises(UnknownFilter, match=r"known: .*framework_name, metadata, section"):
        KNOWLEDGE.parse_filters({"colour": "red"})


# By definition

KEYS = st.sampled_from(["a", "b", "c"])
WORDS = st.sampled_from(
    ["", "1", "x", "xy", "X%", "é", "true", "2025-01-31", "2025-01-31T10:00:00+02:00",
     "2025-01-31 08:00", "2025-02-30", "2024-02-29T23:59:59.999Z", "2025-1-1"]
)  # fmt: skip
NUMBERS = st.one_of(
    st.integers(-3, 3),
    st.sampled_from([0.5, 1.0, -0.0, 1e23, 10**23, 2**53 + 1, float(2**53), 1e-7]),
)
SCALARS = st.one_of(st.none(), st.booleans(), NUMBERS, WORDS)
ANY = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(KEYS, inner, max_size=3)),
    max_leaves=6,
)
DOCUMENTS = st.lists(st.dictionaries(KEYS, ANY, max_size=3), min_size=1, max_size=12)
MOMENTS = st.builds(
    lambda shown: {"$date": shown},
    st.sampled_from(["2025-01-31", "2025-01-31T08:00:00Z", "2025-01-31T10:00:00+02:00"]),
)
PATTERNS = st.lists(
    st.sampled_from(["x", "y", "%", "_", r"\%", r"\\", "é", "2025"]), max_size=4
).map("".join)
ONE = st.one_of(
    st.fixed_dictionaries({"$eq": st.one_of(ANY, MOMENTS)}),
    st.fixed_dictionaries({"$ne": st.one_of(ANY, MOMENTS)}),
    *(
        st.fixed_dictionaries({order: st.one_of(NUMBERS, WORDS, MOMENTS)})
        for order in ("$gt", "$gte", "$lt", "$lte")
    ),
    *(
        st.fixed_dictionaries({listed: st.lists(st.one_of(ANY, MOMENTS), max_size=3)})
        for listed in ("$in", "$nin")
    ),
    st.fixed_dictionaries({"$exists": st.booleans()}),
    st.fixed_dictionaries({"$contains": st.one_of(SCALARS, st.lists(SCALARS, max_size=2))}),
    st.fixed_dictionaries({"$like": PATTERNS}),
)
LEAVES = st.one_of(
    st.dictionaries(st.sampled_from(["a", "b", "a.b", "b.c.a"]), ONE, min_size=1, max_size=2),
    st.dictionaries(KEYS, st.one_of(SCALARS, MOMENTS), min_size=1, max_size=2),
    st.builds(lambda key, one: {key: {"$not": one}}, KEYS, ONE),
)
FILTERS = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.builds(lambda parts: {"$and": parts}, st.lists(inner, min_size=1, max_size=3)),
        st.builds(lambda parts: {"$or": parts}, st.lists(inner, min_size=1, max_size=3)),
        st.builds(lambda part: {"$not": part}, inner),
    ),
    max_leaves=5,
)


@settings(
    max_examples=400,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(documents=DOCUMENTS, asked=FILTERS)
def test_sql_keeps_what_the_definition_keeps(
    session: WorkSession, documents: list[dict[str, Any]], asked: dict[str, Any]
) -> None:
    """On any documents, by any filter; and no row makes a statement fail."""
    expected = [place for place, each in enumerate(documents) if meets(each, asked)]

    assert keep(session, documents, asked) == expected


# What an index is asked for


@pytest.mark.parametrize(
    ("asked", "held"),
    [
        ({"a": "Ada"}, ['{"a": "Ada"}']),
        ({"a.b": 1, "c": True}, ['[{"a": {"b": 1}}, {"c": true}]']),
        ({"a": 1, "b": {"$gt": 1}}, ['[{"a": 1}]']),
        ({"a": {"$in": [1, "x"]}}, ['{"a": 1}', '{"a": "x"}']),
        ({"a": {"$in": [1, "x"]}, "b": {"$in": [2, 3, 4]}}, ['[{"a": 1}]', '[{"a": "x"}]']),
        ({"a": {"$in": [1, 2]}, "b": 3}, ['[{"b": 3}, {"a": 1}]', '[{"b": 3}, {"a": 2}]']),
        ({"a": {"$in": []}, "b": 3}, []),
        ({"a": {"$in": []}}, []),
        ({"$or": [{"a": 1}, {"b": 2, "c": 3}]}, ['{"a": 1}', '[{"b": 2}, {"c": 3}]']),
        ({"a": {"$contains": ["x", None]}}, ['{"a": ["x", null]}']),
        ({"a": {"$contains": 1}}, ['{"a": [1]}']),
        ({"a": {"$eq": [[], [{"b": 1}]]}}, ['[{"a": [[], [{"b": 1}]]}]']),
        # what may be met without any value
        ({"$or": [{"a": 1}, {"b": {"$gt": 2}}]}, None),
        ({"$or": [{"a": {"$in": list(range(MAX_LISTED))}}, {"b": 2}]}, None),
        ({"a": {"$contains": "x"}}, None),
        ({"a": {"$contains": []}}, None),
        ({"a": {"$eq": {"b": {}}}}, None),
        ({"a": {"$eq": [[1], []]}}, None),
        ({"a": {"$ne": 1}}, None),
        ({"$not": {"a": 1}}, None),
        ({"a": None}, None),
        ({"a": JANUARY}, None),
        ({"a": {"$exists": True}}, None),
        ({"a": {"$in": [1, None]}}, None),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_an_index_is_asked_for_values_that_must_be_there(
    asked: dict[str, Any], held: list[str] | None
) -> None:
    """All of one of some; and for none where a passage may meet the filter without them."""
    tree, values = parse_metadata(asked)

    assert tree is not None
    assert list_held(tree, values) == held


HOLDING = text("""
    SELECT place - 1
    FROM jsonb_array_elements(CAST(:documents AS jsonb)) WITH ORDINALITY AS each (document, place)
    WHERE EXISTS (
        SELECT FROM unnest(CAST(:held AS jsonb[])) AS held
        WHERE metadata_terms(held) <> '{}'
            AND metadata_terms(document) @> metadata_terms(held))
""")


@settings(
    max_examples=400,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(documents=DOCUMENTS, asked=FILTERS)
def test_what_meets_a_filter_has_the_terms_that_an_index_is_asked_for(
    session: WorkSession, documents: list[dict[str, Any]], asked: dict[str, Any]
) -> None:
    """The index loses nothing; what it finds besides is compared."""
    tree, values = parse_metadata(asked)
    held = None if tree is None else list_held(tree, values)
    if held is None:
        return
    given = {"documents": json.dumps(documents), "held": held}

    found = set(session.scalars(HOLDING, given))

    assert {n for n, each in enumerate(documents) if meets(each, asked)} <= found


def test_terms_tell_apart_values_their_types_and_their_keys(session: WorkSession) -> None:
    """Numbers are equal whatever their digits; where a key stands is not told."""
    terms = text("SELECT metadata_terms(CAST(:metadata AS jsonb))")

    def read(metadata: str) -> set[str]:
        return set(session.scalars(terms, {"metadata": metadata}).one())

    different = ['{"a": 1}', '{"a": "1"}', '{"a": true}', '{"a": null}', '{"b": 1}', '{"a": 2}']
    assert len({frozenset(read(each)) for each in different}) == len(different)
    assert read('{"a": 1}') == read('{"a": 1.0}') == read('{"x": {"a": [1, 1]}, "y": {}}')
    assert read('[{"a": 1}, {"b": 1}]') == read('{"a": 1}') | read('{"b": 1}')
    for without in ("{}", "[]", "1", '{"a": {}}', '{"a": []}', '{"a": [[1], {}]}', '"a"'):
        assert read(without) == set()
    deep = '{"a": ' * 900 + "1" + "}" * 900
    assert read(deep) == set()
    assert read(f'{{"b": [1, {deep}]}}') == read('{"b": 1}')


# Mistakes


def nest(depth: int, key: str) -> dict[str, Any]:
    """Return a filter so deep."""
    asked: Any = {"a": 1}
    for _ in range(depth):
        asked = {key: [asked] if key in ("$or", "$and") else asked}
    return dict(asked)


def make_knot() -> list[Any]:
    """Return a list that holds itself."""
    knot: list[Any] = []
    knot.append(knot)
    return knot


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ("a", "metadata: it is a mapping"),
        (None, "metadata: it is a mapping"),
        (
            {"a": {"$near": 1}},
            re.escape(f"metadata.a: no operator $near; known: {', '.join(OPERATORS)}"),
        ),
        ({"$or": [{"a": 1}, {"b": {"$regex": "x"}}]}, r"metadata\.\$or\[1\]\.b: no operator"),
        ({"$gt": 1}, r"metadata\.\$gt: it compares the value of a key"),
        ({"$or": {"a": 1}}, "a list of mappings"),
        ({"$or": []}, "a list of mappings"),
        ({"$and": [1]}, r"\$and\[0\]: it must be a mapping"),
        ({"$not": [{"a": 1}]}, r"\$not: it takes a mapping"),
        ({"$not": {}}, "an empty mapping"),
        ({"a": {}}, r"metadata\.a: an empty mapping"),
        ({"a": [1, 2]}, r"a: a list is compared by \$in"),
        ({"a": {"$in": "Ada"}}, r"\$in: it takes a list"),
        ({"a": {"$exists": 1}}, "true or false"),
        ({"a": {"$gt": True}}, "numbers, texts and dates have an order"),
        ({"a": {"$gt": None}}, "numbers, texts and dates have an order"),
        ({"a": {"$lt": [1]}}, "numbers, texts and dates have an order"),
        ({"a": {"$like": 5}}, "it takes a text"),
        ({"a": {"$like": "x\\"}}, "ends with a backslash"),
        ({"a": {"$like": "x\\\\\\"}}, "ends with a backslash"),
        ({"a": {"$contains": [[1]]}}, "texts, numbers, true, false and null"),
        ({"a": {"$contains": JANUARY}}, "texts, numbers, true, false and null"),
        ({"a": {"$date": "yesterday"}}, r"\$date: 'yesterday' is not like 2025"),
        ({"a": {"$date": 5}}, r"\$date"),
        ({"a": float("nan")}, "not finite"),
        ({"a": {"$gt": float("inf")}}, "not finite"),
        ({"a": 10**5000}, "too many digits"),
        ({"a": {"$in": [b"x"]}}, "JSON has no bytes"),
        ({"a": {"$eq": {"b": {1, 2}}}}, "JSON has no set"),
        ({"a": {"$eq": {1: 2}}}, "a key is text"),
        ({1: 2}, "a key is text"),
        ({"": 1}, "a key is not empty"),
        ({"a..b": 1}, "a key is not empty"),
        ({"a\\": 1}, "a key is not empty"),
        ({"a\0": 1}, "no text can hold"),
        ({"a": "\0"}, "no text can hold"),
        ({"a": {"$gt": "\ud800"}}, "no text can hold"),
        ({"a": {"$like": "\0"}}, "no text can hold"),
        ({"a": {"$eq": {"\0": 1}}}, "no text can hold"),
        ({"a": {"$eq": make_knot()}}, f"at most {MAX_DEPTH} deep"),
        (nest(10_000, "$not"), f"at most {MAX_DEPTH} deep"),
        (nest(10_000, "$or"), f"at most {MAX_DEPTH} deep"),
        (nest(10_000, "a"), f"at most {MAX_DEPTH} deep"),
        ({".".join("a" * 10_000): 1}, f"at most {MAX_DEPTH} deep"),
        ({"$or": [{"a": number} for number in range(10_000)]}, f"at most {MAX_TESTS} tests"),
        ({f"a{number}": number for number in range(10_000)}, f"at most {MAX_TESTS} tests"),
        ({"a": {"$in": list(range(MAX_LISTED + 1))}}, f"at most {MAX_LISTED:,} values"),
        ({"a": {"$eq": [[[0] * 1000] * 1000] * 1000}}, f"at most {MAX_CHARACTERS:,} characters"),
        ({"a": "x" * MAX_CHARACTERS}, f"at most {MAX_CHARACTERS:,} characters"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_mistake_names_its_place(asked: Any, says: str) -> None:
    """At once, without the database, and however large the filter is."""
    with pytest.raises(InvalidFilter, match=says) as raised:
        parse_metadata(asked)

    assert len(str(raised.value)) < 3000


def test_a_filter_of_the_allowed_size_is_run(session: WorkSession) -> None:
    """A hundred tests, as deep and as long as they may be."""
    asked = {
        "$or": [
            *({".".join("a" * MAX_DEPTH): {"$gt": number}} for number in range(80)),
            {"a": {"$in": list(range(MAX_LISTED))}},
            nest(MAX_DEPTH - 3, "$not"),
        ]
    }

    assert keep(session, [{"a": 999}, {"a": "x"}], asked) == [0, 1]


def test_a_statement_is_compiled_once_for_all_keys_and_values() -> None:
    """It depends on the operators alone, and on how deep the keys lead."""
    shapes = {
        KNOWLEDGE.parse_filters({"metadata": asked})[0]
        for asked in (
            {"a": 1, "b.c": {"$lt": 5}, "d": {"$in": [1, 2]}},
            {"x.y": "z", "c.b": {"$lt": 1.5}, "d": {"$in": ["u"] * 50}},
        )
    }

    assert len(shapes) == 1
    assert "Ada" not in explain_matching(
        KNOWLEDGE, KNOWLEDGE.parse_filters({"metadata": {"Ada": {"$like": "Ada"}}})[0], False
    )


@pytest.mark.parametrize(
    "metadata",
    [{"a": list(range(300_000))}, {f"key {n}": n for n in range(300_000)}],
    ids=["elements", "keys"],
)
def test_the_time_of_terms_grows_with_the_metadata_and_not_with_their_square(
    session: WorkSession, metadata: dict[str, Any]
) -> None:
    """A long list in one document would have held up its import for minutes."""
    terms = text("SELECT cardinality(metadata_terms(CAST(:metadata AS jsonb)))")
    session.execute(text("SET LOCAL statement_timeout = '25s'"))

    assert session.scalar(terms, {"metadata": json.dumps(metadata)}) == 300_000
