"""Filters on free metadata by their definition, in Python: what the SQL must agree with."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Final

MISSING: Final = object()

ISO: Final = re.compile(
    r"\d{4}-\d\d-\d\d([T ]\d\d:\d\d(:\d\d(\.\d{1,6})?)?(Z|[+-]\d\d(:?\d\d)?)?)?", re.ASCII
)

NEGATED: Final = {"$ne": "$eq", "$nin": "$in"}


def meets(document: Any, asked: Mapping[str, Any]) -> bool:
    """Return whether a document, or the value of a key, meets every key and operator."""
    return all(_meets_one(document, key, wanted) for key, wanted in asked.items())


def _meets_one(value: Any, key: str, wanted: Any) -> bool:
    match key:
        case "$and":
            return all(meets(value, each) for each in wanted)
        case "$or":
            return any(meets(value, each) for each in wanted)
        case "$not":
            return not meets(value, wanted)
        case _ if key.startswith("$"):
            return COMPARE[NEGATED.get(key, key)](value, wanted) != (key in NEGATED)
    for each in key.split("."):
        value = value.get(each, MISSING) if isinstance(value, dict) else MISSING
    if isinstance(wanted, dict) and not _is_date(wanted):
        return meets(value, wanted)
    return _equals(value, wanted)


def _equals(value: Any, wanted: Any) -> bool:
    if wanted is None:
        return value is None or value is MISSING
    if _is_date(wanted):
        return _moment(value) == _pair(wanted)
    return value is not MISSING and _same(value, wanted)


def _order(value: Any, wanted: Any, holds: Callable[[Any, Any], bool]) -> bool:
    left, right = (
        _moment(value) if _is_date(wanted) else _pair(value),
        _pair(wanted),
    )
    return left is not None and left[0] == right[0] and holds(left[1], right[1])


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_same(a[key], b[key]) for key in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(_same, a, b))
    return _pair(a) == _pair(b) if not isinstance(a, dict | list) else False


def _contains(value: Any, wanted: Any) -> bool:
    if isinstance(value, list):
        elements = wanted if isinstance(wanted, list) else [wanted]
        return all(any(_same(each, element) for each in value) for element in elements)
    return isinstance(value, str) and isinstance(wanted, str) and wanted in value


def _pair(value: Any) -> tuple[str, Any]:
    """Return a value beside its type: values of two types are neither equal nor in order."""
    if isinstance(value, bool):
        return "boolean", value
    if isinstance(value, int | float):
        return "number", Decimal(repr(value))
    if _is_date(value):
        moment = _moment(value["$date"])
        assert moment is not None
        return moment
    return type(value).__name__, value


def _is_date(value: Any) -> bool:
    return isinstance(value, dict) and value.keys() == {"$date"}


def _moment(value: Any) -> tuple[str, datetime] | None:
    if not isinstance(value, str) or not ISO.fullmatch(value):
        return None
    try:
        moment = datetime.fromisoformat(value)
    except ValueError:
        return None
    return "date", moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)


def _pattern(like: str) -> re.Pattern[str]:
    """A pattern of LIKE as a regular expression."""
    parts = re.findall(r"\\.|.", like, re.DOTALL)
    wild = {"%": ".*", "_": "."}
    return re.compile("".join(wild.get(part) or re.escape(part[-1]) for part in parts), re.DOTALL)


COMPARE: Final[dict[str, Callable[[Any, Any], bool]]] = {
    "$eq": _equals,
    "$in": lambda value, wanted: any(_equals(value, each) for each in wanted),
    "$exists": lambda value, wanted: (value is not MISSING) == wanted,
    "$contains": _contains,
    "$like": lambda value, wanted: (
        isinstance(value, str) and bool(_pattern(wanted).fullmatch(value))
    ),
    "$gt": lambda value, wanted: _order(value, wanted, operator.gt),
    "$gte": lambda value, wanted: _order(value, wanted, operator.ge),
    "$lt": lambda value, wanted: _order(value, wanted, operator.lt),
    "$lte": lambda value, wanted: _order(value, wanted, operator.le),
}
