"""Filters on free metadata: the keys of a JSONB column, compared with their types kept.

A filter is parsed into a tree without its values, from which a statement is built once, and into
the values of the statement's parameters. Keys are values, too: no part of a caller's text is SQL.
No row makes a test fail, whatever its metadata hold: a value of another type is not compared.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time
from functools import reduce
from typing import Any, Final, Literal

from sqlalchemy import (
    ARRAY,
    ColumnElement,
    DateTime,
    Text,
    and_,
    any_,
    bindparam,
    case,
    cast,
    collate,
    func,
    literal_column,
    or_,
    true,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.sql.type_api import UserDefinedType

from pgcorpus.db.choices import METADATA
from pgcorpus.db.errors import InvalidFilter
from pgcorpus.db.text import storable

HELD: Final = f"{METADATA}_held"
"""The parameter with what ``list_held`` lists, as a list of JSON."""

ORDERED: Final = {"$gt": "__gt__", "$gte": "__ge__", "$lt": "__lt__", "$lte": "__le__"}

NEGATED: Final = {"$ne": "$eq", "$nin": "$in"}
"""These hold wherever the other does not: also where the key is missing."""

COMPARING: Final = ("$eq", "$ne", *ORDERED, "$in", "$nin", "$exists", "$contains", "$like")
JOINING: Final = ("$and", "$or", "$not")
OPERATORS: Final = (*COMPARING, *JOINING)

DATE: Final = "$date"
"""The key of ``{"$date": "2025-01-31"}``: a date in JSON, which has none."""

MAX_DEPTH: Final = 16
"""Keys, operators and lists inside one another."""

MAX_TESTS: Final = 100
"""Comparisons and operators of a filter. Each is asked of every passage that no index refuses."""

MAX_LISTED: Final = 1000
"""Values of one list."""

MAX_CHARACTERS: Final = 100_000
"""Characters of all keys and texts of a filter."""

MAX_MAGNITUDE: Final = 10**1000
"""Bound of numbers: JSON and PostgreSQL hold larger ones, at a price for each row."""

KEY: Final = re.compile(r"(?:[^.\\]|\\.)+", re.DOTALL)
"""A key in a path; a backslash takes the meaning from what follows it."""

KEYS: Final = re.compile(rf"{KEY.pattern}(?:\.{KEY.pattern})*", re.DOTALL)

ISO_DATE: Final = (
    "^(?!0000)(?:[0-9]{4}-(?:"
    "(?:0[1-9]|1[0-2])-(?:0[1-9]|1[0-9]|2[0-8])|(?:0[13-9]|1[0-2])-(?:29|30)|(?:0[13578]|1[02])-31"
    ")|(?:[0-9]{2}(?:0[48]|[2468][048]|[13579][26])|(?:[02468][048]|[13579][26])00)-02-29)"
    "(?:[T ](?:[01][0-9]|2[0-3]):[0-5][0-9](?::[0-5][0-9](?:[.][0-9]{1,9})?)?"
    "(?:Z|[+-](?:0[0-9]|1[0-5])(?::?[0-5][0-9])?)?)?$"
)
"""Text that is a date of the calendar, or a time: what it matches can be cast without an error.
``pg_input_is_valid`` is of PostgreSQL 16; jsonpath's ``datetime()`` knew no Z before 17."""

WITH_ZONE: Final = "[T ].*[Z+-]"
"""Such a text that tells its time zone; others are in UTC."""


@dataclass(frozen=True)
class Test:
    """A comparison without its values.

    Attributes:
        comparison: ``holds``, ``holds any``, ``same``, ``absent``, ``exists``, or a type and an
            operator: ``number $gt``, ``text $like``, ``date $eq``.
        number: Which of the filter's; it names the parameters.
        keys: How many keys lead to the value; 0 where the parameter has them, too.
    """

    comparison: str
    number: int
    keys: int = 0


@dataclass(frozen=True)
class Junction:
    """Tests joined by ``$and`` or ``$or``, or one that must not hold: ``$not``."""

    operator: Literal["$and", "$or", "$not"]
    parts: tuple[Tree, ...]


Tree = Test | Junction


class Json(UserDefinedType[str]):
    """JSON as text without a cast through text, which would be read for every row."""

    cache_ok = True

    def get_col_spec(self, **_: object) -> str:
        """Return the type's name."""
        return "jsonb"


def parse_metadata(asked: object) -> tuple[Tree | None, dict[str, Any]]:
    r"""Parse a filter on free metadata into its tests and the values of their parameters.

    Args:
        asked: Key → value, or operator → operand. Dots in a key reach into objects, as a mapping
            as value does; ``\.`` is a dot of the key itself. Dates are ``datetime.date``,
            ``datetime.datetime``, or ``{"$date": "2025-01-31T12:00:00Z"}``.

    Returns:
        The tree, None where nothing is asked, and the values by the names of parameters.

    Raises:
        InvalidFilter: An operator is unknown, an operand of the wrong type, or the filter too
            large; the message names the place.
    """
    if not isinstance(asked, Mapping):
        raise InvalidFilter(f"{METADATA}: it is a mapping of key → value, not {_show(asked)}")
    if not asked:
        return None, {}
    parser = _Parser()
    return parser.parse(asked, (), METADATA, 1), parser.values


def list_held(tree: Tree, values: Mapping[str, Any]) -> list[str] | None:
    """List JSON, all values of one of which are held by whatever meets a filter.

    Args:
        tree: The filter.
        values: Of its parameters.

    Returns:
        JSON texts, or None where the filter can be met without any value: no index serves it.
    """
    if isinstance(tree, Test):
        value = values.get(_parameter(tree.number))
        match tree.comparison:
            case "holds" if _has_term(json.loads(value or "null")):
                return [str(value)]
            case "holds any":
                return list(value or ())
            case _:
                return None
    parts = [list_held(part, values) for part in tree.parts]
    served = [part for part in parts if part is not None]
    if tree.operator == "$or":
        either = [each for part in served for each in part]
        return either if len(served) == len(parts) and len(either) <= MAX_LISTED else None
    if tree.operator == "$not" or not served:
        return None
    certain = [part[0] for part in served if len(part) == 1]
    choices = min((part for part in served if len(part) != 1), key=len, default=None)
    together = [certain] if choices is None else [[*certain, each] for each in choices]
    return [f"[{', '.join(each)}]" for each in together]


def _has_term(value: Any) -> bool:
    """Return whether ``metadata_terms`` gives a term of JSON: it has a key with a plain value."""
    if isinstance(value, list):
        return any(map(_has_term, value))
    return isinstance(value, dict) and any(
        not isinstance(plain, dict | list) or _has_term(plain)
        for held in value.values()
        for plain in (held if isinstance(held, list) else [held])
    )


def match_metadata(column: ColumnElement[Any], tree: Tree) -> ColumnElement[bool]:
    """Build the condition that a JSONB column, which is an object in each row, meets the tests."""
    if isinstance(tree, Test):
        return _match(column, tree)
    parts = [match_metadata(column, part) for part in tree.parts]
    if tree.operator == "$not":  # what cannot be compared, as what is missing, is not met
        return parts[0].is_not(true())
    return or_(*parts) if tree.operator == "$or" else and_(*parts)


def _match(column: ColumnElement[Any], test: Test) -> ColumnElement[bool]:
    """Build the condition of one test, which raises an error on no row."""
    value: ColumnElement[Any] = column
    for place in range(test.keys):
        key = bindparam(_parameter(test.number, place), type_=Text())
        value = value.op("->", return_type=JSONB())(key)  # of an object: an array has no text key
    name = _parameter(test.number)
    document: ColumnElement[Any] = bindparam(name, type_=Json())
    match test.comparison:
        case "holds":
            return column.bool_op("@>")(document)
        case "holds any":
            documents = cast(bindparam(name, type_=ARRAY(Text())), ARRAY(JSONB))
            return column.bool_op("@>")(any_(documents))
        case "same":
            return value == document
        case "absent":
            return func.coalesce(func.jsonb_typeof(value), "null", type_=Text) == "null"
        case "exists":
            return value.is_not(None)
        case _:
            return _match_scalar(value, test.comparison, name)


def _match_scalar(value: ColumnElement[Any], comparison: str, name: str) -> ColumnElement[bool]:
    """Build the condition that a value is of a type, and so compares to the parameter *name*."""
    kind, relation = comparison.split()
    text = value.op("#>>", return_type=Text())(literal_column("'{}'"))
    if kind == "date":
        zone = case((text.regexp_match(WITH_ZONE), ""), else_="Z")
        moment = cast(text.concat(zone), DateTime(timezone=True))
        asked: ColumnElement[Any] = bindparam(name, type_=DateTime(timezone=True))
        return _relate(case((text.regexp_match(ISO_DATE), moment)), relation, asked)
    if kind == "number":
        # JSON numbers compare as numeric, without a cast that could fail.
        asked = bindparam(name, type_=Json())
        return and_(_is(value, "number"), _relate(value, relation, asked))
    asked = bindparam(name, type_=Text())
    match relation:
        case "$contains":
            return and_(_is(value, "string"), func.strpos(text, asked) > 0)
        case "$like":
            return and_(_is(value, "string"), text.like(asked))
        case _:
            return and_(_is(value, "string"), _relate(collate(text, "C"), relation, asked))


def _is(value: ColumnElement[Any], kind: str) -> ColumnElement[bool]:
    return func.jsonb_typeof(value, type_=Text) == kind


def _relate(
    value: ColumnElement[Any], relation: str, asked: ColumnElement[Any]
) -> ColumnElement[bool]:
    related: ColumnElement[bool] = getattr(value, ORDERED.get(relation, "__eq__"))(asked)
    return related


def _parameter(number: int, key: int | None = None) -> str:
    name = f"{METADATA}_{number}"
    return name if key is None else f"{name}_key_{key}"


Path = tuple[str, ...]


class _Parser:
    """Parses one filter: what it was given counts up to its bounds.

    Attributes:
        values: Parameter → value, of the tests so far.
    """

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}
        self._size = 0
        self._characters = 0

    def parse(self, asked: Mapping[Any, Any], path: Path, place: str, depth: int) -> Tree:
        """Parse a mapping of keys and operators, all of which must hold.

        Args:
            asked: The mapping, not empty.
            path: Keys that lead to the value that its operators compare.
            place: The same for messages.
            depth: How deep it stands.
        """
        _refuse_depth(depth, place)
        if not asked:
            raise InvalidFilter(f"{place}: an empty mapping compares nothing")
        parts = [self._parse_entry(*each, path, place, depth) for each in asked.items()]
        return self._join("$and", parts, place) if len(parts) > 1 else parts[0]

    def _parse_entry(self, key: Any, value: Any, path: Path, place: str, depth: int) -> Tree:
        if not isinstance(key, str):
            raise InvalidFilter(f"{place}: a key is text, not {_show(key)}")
        self._read_text(key, place)
        here = f"{place}.{_cut(key)}"
        if not key.startswith("$"):
            return self._parse_key(key, value, path, here, depth)
        if key == "$not":
            if not isinstance(value, Mapping):
                raise InvalidFilter(f"{here}: it takes a mapping, not {_show(value)}")
            return self._join(key, [self.parse(value, path, here, depth + 1)], here)
        if key in ("$and", "$or"):
            if not _is_list(value) or not value:
                raise InvalidFilter(f"{here}: it takes a list of mappings, not {_show(value)}")
            parts = [
                self._parse_part(each, path, f"{here}[{number}]", depth)
                for number, each in enumerate(value)
            ]
            return self._join(key, parts, here)
        if key not in COMPARING:
            raise InvalidFilter(f"{place}: no operator {_cut(key)}; known: {', '.join(OPERATORS)}")
        if not path:
            raise InvalidFilter(f"{here}: it compares the value of a key; name the key before it")
        return self._compare(key, value, path, here)

    def _parse_part(self, part: Any, path: Path, place: str, depth: int) -> Tree:
        if not isinstance(part, Mapping):
            raise InvalidFilter(f"{place}: it must be a mapping, not {_show(part)}")
        return self.parse(part, path, place, depth + 2)

    def _parse_key(self, key: str, value: Any, path: Path, place: str, depth: int) -> Tree:
        if not KEYS.fullmatch(key):
            raise InvalidFilter(
                f"{place}: a key is not empty, and a backslash in it is followed by the character "
                "that it takes the meaning from"
            )
        keys = [re.sub(r"\\(.)", r"\1", each, flags=re.DOTALL) for each in KEY.findall(key)]
        path = (*path, *keys)
        _refuse_depth(len(path), place)
        value = self._read_date(value, place)
        if isinstance(value, Mapping):
            return self.parse(value, path, place, depth + 1)
        if _is_list(value):
            raise InvalidFilter(
                f"{place}: a list is compared by $in (any of them), $contains (all of them) or $eq"
            )
        return self._equal(value, path, place)

    def _compare(self, operator: str, value: Any, path: Path, place: str) -> Tree:
        if operator in NEGATED:
            return self._join("$not", [self._compare(NEGATED[operator], value, path, place)], place)
        value = self._read_date(value, place)
        if operator in ORDERED:
            return self._order(operator, value, path, place)
        parse = {
            "$eq": self._equal,
            "$in": self._any,
            "$exists": self._exist,
            "$contains": self._contain,
            "$like": self._like,
        }[operator]
        return parse(value, path, place)

    def _equal(self, value: Any, path: Path, place: str) -> Tree:
        if value is None:
            return self._test("absent", place, path=path)
        if isinstance(value, datetime):
            return self._test("date $eq", place, value, path)
        held = self._test("holds", place, self._nest(value, path, place))
        if not isinstance(value, Mapping) and not _is_list(value):
            return held
        # What an array or object is held by may have more than it.
        same = self._test("same", place, self._nest(value, (), place), path)
        return self._join("$and", [held, same], place)

    def _any(self, values: Any, path: Path, place: str) -> Tree:
        each = [self._read_date(value, place) for value in self._read_list(values, place)]
        plain = [value for value in each if isinstance(value, bool | int | float | str)]
        documents = [self._nest(value, path, place) for value in plain]
        parts: list[Tree] = [self._test("holds any", place, documents)]
        others = [value for value in each if not isinstance(value, bool | int | float | str)]
        parts += [self._equal(value, path, place) for value in others]
        return self._join("$or", parts, place) if others else parts[0]

    def _exist(self, value: Any, path: Path, place: str) -> Tree:
        if not isinstance(value, bool):
            raise InvalidFilter(f"{place}: it takes true or false, not {_show(value)}")
        test = self._test("exists", place, path=path)
        return test if value else self._join("$not", [test], place)

    def _contain(self, value: Any, path: Path, place: str) -> Tree:
        elements = self._read_list(value, place) if _is_list(value) else [value]
        for element in elements:
            if element is not None and not isinstance(element, bool | int | float | str):
                raise InvalidFilter(
                    f"{place}: it takes texts, numbers, true, false and null, not {_show(element)}"
                )
        held = self._test("holds", place, self._nest(list(elements), path, place))
        if not isinstance(value, str):
            return held
        return self._join("$or", [held, self._test("text $contains", place, value, path)], place)

    def _like(self, pattern: Any, path: Path, place: str) -> Tree:
        if not isinstance(pattern, str):
            raise InvalidFilter(f"{place}: it takes a text, not {_show(pattern)}")
        if re.search(r"(?<!\\)(?:\\\\)*\\\Z", pattern):
            raise InvalidFilter(f"{place}: the pattern ends with a backslash; write two for one")
        self._read_text(pattern, place)
        return self._test("text $like", place, pattern, path)

    def _order(self, relation: str, value: Any, path: Path, place: str) -> Tree:
        if isinstance(value, datetime):
            return self._test(f"date {relation}", place, value, path)
        if isinstance(value, str):
            self._read_text(value, place)
            return self._test(f"text {relation}", place, value, path)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise InvalidFilter(
                f"{place}: numbers, texts and dates have an order, not {_show(value)}"
            )
        return self._test(f"number {relation}", place, self._nest(value, (), place), path)

    def _test(self, comparison: str, place: str, value: Any = None, path: Path = ()) -> Test:
        number = self._size
        self._count(place)
        if value is not None:
            self.values[_parameter(number)] = value
        self.values |= {_parameter(number, place): key for place, key in enumerate(path)}
        return Test(comparison, number, len(path))

    def _join(self, operator: Any, parts: Sequence[Tree], place: str) -> Junction:
        self._count(place)
        return Junction(operator, tuple(parts))

    def _count(self, place: str) -> None:
        self._size += 1
        if self._size > MAX_TESTS:
            raise InvalidFilter(f"{place}: a filter has at most {MAX_TESTS} tests and operators")

    def _nest(self, value: Any, path: Path, place: str) -> str:
        """Return as JSON the objects that hold a value at the end of a path."""
        self._refuse_unstorable(value, place, 1)
        nested = reduce(lambda held, key: {key: held}, reversed(path), value)
        return json.dumps(nested, ensure_ascii=False, allow_nan=False)

    def _refuse_unstorable(self, value: Any, place: str, depth: int) -> None:
        """Raise if a value is not one of JSON, or too large."""
        _refuse_depth(depth, place)
        if isinstance(value, str):
            self._read_text(value, place)
        elif value is None or isinstance(value, bool):
            self._spend(1, place)
        elif isinstance(value, int | float):
            self._read_number(value, place)
        elif isinstance(value, Mapping):
            for key, each in value.items():
                if not isinstance(key, str):
                    raise InvalidFilter(f"{place}: a key is text, not {_show(key)}")
                self._read_text(key, place)
                self._refuse_unstorable(each, place, depth + 1)
        elif _is_list(value):
            for each in self._read_list(value, place):
                self._refuse_unstorable(each, place, depth + 1)
        else:
            raise InvalidFilter(f"{place}: JSON has no {type(value).__name__} ({_show(value)})")

    def _read_list(self, values: Any, place: str) -> Sequence[Any]:
        if not _is_list(values):
            raise InvalidFilter(f"{place}: it takes a list, not {_show(values)}")
        if len(values) > MAX_LISTED:
            raise InvalidFilter(f"{place}: a list has at most {MAX_LISTED:,} values")
        listed: Sequence[Any] = values
        return listed

    def _read_text(self, value: str, place: str) -> None:
        """Raise if a text cannot be stored, or is one too many."""
        self._spend(1 + len(value), place)
        if not storable(value):
            raise InvalidFilter(f"{place}: {_show(value)} holds a character that no text can hold")

    def _read_number(self, value: float, place: str) -> None:
        """Raise if a number is not one of JSON, or too large."""
        if not math.isfinite(value) if isinstance(value, float) else abs(value) > MAX_MAGNITUDE:
            raise InvalidFilter(f"{place}: the number is not finite, or has too many digits")
        digits = value.bit_length() // 3 if isinstance(value, int) else 0
        self._spend(1 + digits, place)

    def _spend(self, characters: int, place: str) -> None:
        self._characters += characters
        if self._characters > MAX_CHARACTERS:
            raise InvalidFilter(f"{place}: a filter has at most {MAX_CHARACTERS:,} characters")

    def _read_date(self, value: Any, place: str) -> Any:
        """Return the moment that a date is, in UTC where it has no zone; others as they are."""
        if isinstance(value, Mapping) and value.keys() == {DATE}:
            try:
                value = datetime.fromisoformat(value[DATE])
            except (TypeError, ValueError):
                raise InvalidFilter(
                    f"{place}.{DATE}: {_show(value[DATE])} is not like 2025-01-31T12:00:00Z"
                ) from None
        if isinstance(value, date) and not isinstance(value, datetime):
            value = datetime.combine(value, time.min)
        if isinstance(value, datetime) and value.tzinfo is None:
            value = value.replace(tzinfo=UTC)
        return value


def _refuse_depth(depth: int, place: str) -> None:
    if depth > MAX_DEPTH:
        raise InvalidFilter(f"{_cut(place)}: a filter is at most {MAX_DEPTH} deep")


def _is_list(value: object) -> bool:
    return isinstance(value, list | tuple)


SHOWN_CHARACTERS: Final = 80
"""Characters of a value or a key in a message."""


def _cut(shown: str) -> str:
    return shown if len(shown) <= SHOWN_CHARACTERS else f"{shown[:SHOWN_CHARACTERS]}…"


def _show(value: object) -> str:
    """Return a value for a message: its own text, or its type where it has many."""
    if isinstance(value, str):
        return repr(_cut(value))
    if value is None or isinstance(value, bool | float | date):
        return repr(value)
    return f"a value of type {type(value).__name__}"
