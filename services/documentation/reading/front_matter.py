"""Front matter: what a Markdown file says of itself before its text, in YAML or TOML."""

from __future__ import annotations

import datetime as dt
import math
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

import yaml

MAX_FRONT_MATTER_CHARACTERS: Final = 16 * 1024
"""Real ones have hundreds. Python's reader of TOML takes time by the square of a dotted key."""

MAX_NODES: Final = 5_000
"""Values and keys. Real front matter has dozens."""

MAX_NESTING: Final = 20
"""Levels within one another. Real front matter has three."""

_MAX_BITS: Final = 1024
"""Bits of a whole number: more than any that is meant, less than Python takes long to write."""

_FENCES: Final = {"---": re.compile(r"^(?:---|\.\.\.)[ \t]*$", re.MULTILINE)} | {
    "+++": re.compile(r"^\+\+\+[ \t]*$", re.MULTILINE)
}
_KEY: Final = re.compile(r"\s*[\w.\"'-]+\s*[:=]")
_SURROGATE: Final = re.compile("[\ud800-\udfff\0]")
_SOURCE_KEYS: Final = ("source_url", "canonical_url", "canonical", "url")
_YAML: Final = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Broken(Exception):
    """Front matter that cannot be read."""


@dataclass(frozen=True, kw_only=True)
class FrontMatter:
    """The front matter of a text.

    Attributes:
        metadata: Its values, of JSON alone.
        start: Offset of the text after it; 0 where there is none, or it is broken.
        broken_end: Offset after front matter that cannot be read, else 0. It stays in the text.
    """

    metadata: Mapping[str, Any]
    start: int = 0
    broken_end: int = 0


_NONE: Final = FrontMatter(metadata={})


def split_front_matter(text: str) -> FrontMatter:
    """Find the front matter of *text*: YAML between ``---``, or TOML between ``+++``.

    What cannot be read is no reason to refuse a document: it stays part of the text, whole, and
    there is no metadata. The same goes for YAML with anchors and aliases, which front matter has
    no use for and bombs are made of. Two thematic breaks with prose between them are none.
    """
    fence = text[:3]
    pattern = _FENCES.get(fence)
    first_end = text.find("\n")
    if pattern is None or first_end < 0 or text[:first_end].rstrip() != fence:
        return _NONE
    begin = first_end + 1
    end = pattern.search(text, begin)
    if end is None:
        return _NONE
    inner = text[begin : end.start()]
    try:
        if len(inner) > MAX_FRONT_MATTER_CHARACTERS:
            raise _Broken  # noqa: TRY301 - as for what is found out later
        value = _read_yaml(inner) if fence == "---" else tomllib.loads(inner)
        metadata = _to_json(value, _Budget())
    except (_Broken, yaml.YAMLError, ValueError, TypeError, RecursionError, OverflowError):
        return FrontMatter(metadata={}, broken_end=end.end()) if _KEY.match(inner) else _NONE
    if metadata is None and not any(
        line.strip() and not line.lstrip().startswith("#") for line in inner.splitlines()
    ):
        metadata = {}  # nothing between the fences, or comments
    if not isinstance(metadata, dict):
        return _NONE
    after = end.end()
    return FrontMatter(metadata=metadata, start=after + text.startswith("\n", after))


def find_source_url(metadata: Mapping[str, Any]) -> str | None:
    """Return the address that metadata names as the document's own, or None."""
    for key in _SOURCE_KEYS:
        value = metadata.get(key)
        if isinstance(value, str) and is_web_address(value):
            return value
    return None


def find_text(metadata: Mapping[str, Any], key: str) -> str | None:
    """Return a value of metadata that is text with at least a word in it, or None."""
    value = metadata.get(key)
    return value.strip() or None if isinstance(value, str) else None


def is_web_address(value: str) -> bool:
    """Return whether *value* is an absolute address of the web."""
    try:
        parts = urlsplit(value)
    except ValueError:
        return False
    return parts.scheme in {"http", "https"} and bool(parts.netloc)


def _read_yaml(text: str) -> Any:
    depth = 0
    for count, event in enumerate(yaml.parse(text, Loader=_YAML)):
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise _Broken
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > MAX_NESTING or count > 2 * MAX_NODES:  # a collection ends in an event, too
            raise _Broken
    return yaml.load(text, Loader=_YAML)  # noqa: S506 - both loaders are safe ones


@dataclass
class _Budget:
    left: int = MAX_NODES


def _to_json(value: Any, budget: _Budget, depth: int = 0) -> Any:
    budget.left -= 1
    if budget.left < 0 or depth > MAX_NESTING:
        raise _Broken
    if isinstance(value, dict):
        return {_to_key(key): _to_json(each, budget, depth + 1) for key, each in value.items()}
    if isinstance(value, list | tuple | set):
        return [_to_json(each, budget, depth + 1) for each in value]
    return _to_scalar(value)


def _to_scalar(value: Any) -> Any:
    if isinstance(value, str):
        return _SURROGATE.sub("\ufffd", value)  # neither can be stored
    if isinstance(value, dt.date | dt.time):
        return value.isoformat()
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, int) and value.bit_length() > _MAX_BITS:
        raise _Broken
    if value is None or isinstance(value, bool | int | float):
        return value
    raise _Broken  # bytes


def _to_key(key: Any) -> str:
    if isinstance(key, str):
        return _SURROGATE.sub("\ufffd", key)
    if isinstance(key, bool) or key is None:
        return {True: "true", False: "false", None: "null"}[key]
    if isinstance(key, int | float | dt.date | dt.time):
        return str(key)
    raise _Broken
