"""The rules that turn a chunk as it stands into a record, one after the other.

Each change is recorded.

docs/reference/import-rules.md describes every rule to the people who read the history.
"""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date, datetime
from typing import Any, Final, NamedTuple

from pgcorpus.db.models.knowledge import CHUNK_TYPES
from pgcorpus.db.repositories.imports import Change
from pgcorpus.db.repositories.knowledge.chunks import ChunkRecord
from pgcorpus.services.importers.draft import FALSE_WORDS, TRUE_WORDS, Draft, Rule, Unacceptable
from pgcorpus.services.importers.files import inexact_numbers
from pgcorpus.services.importers.language import (
    CONFIGURATIONS,
    DEFAULT_LANGUAGE,
    LANGUAGES,
    Language,
)
from pgcorpus.services.importers.text import MAX_NAME, SEPARATOR, clean
from pgcorpus.services.knowledge.chunks import Context

VERSION: Final = 1
"""The version of these rules; it is part of a record's hash, so that new rules reach what was
imported."""

MAX_CHARACTERS: Final = 50_000
MAX_WORDS: Final = 15_000
MIN_CHARACTERS_PER_WORD: Final = 3
MAX_LINE: Final = 2**31 - 1
MAX_LINES_APART: Final = 10_000
"""The bounds of the tables' constraints."""


BOOLEANS: Final = {
    "preserves_complete_concept": True,
    "contains_formula": False,
    "contains_list": False,
    "contains_example": False,
    "business_logic_intact": True,
    "validation_passed": True,
}
"""The meaning of an absent boolean: the column's default, but for ``validation_passed``, where the
migration plan's script takes a chunk that says nothing as one that passed."""

VALIDATED: Final = frozenset({"preserves_complete_concept", "business_logic_intact"})
"""Booleans that ``pgcorpus validate`` goes by: that a file does not give them is recorded."""

_NOT_IN_SOURCE_FILE = re.compile(r"[^A-Za-z0-9_.-]+")
_NOT_IN_CONCEPT = re.compile(r"[^A-Za-z0-9&-]+")
_CONCEPT = re.compile(r"[A-Za-z0-9&-]+(?: [A-Za-z0-9&-]+)*")
_LETTER_OR_DIGIT = re.compile(r"[A-Za-z0-9]")

_canonical = json.JSONEncoder(sort_keys=True).encode


@dataclass(frozen=True, slots=True)
class Normalised:
    """A chunk that can be stored.

    Attributes:
        record: The chunk, within all constraints of the tables.
        changes: How it differs from what was given.
        record_hash: SHA-256 of what was given.
        names: Field of the record → its name in the file, where that is another.
    """

    record: ChunkRecord
    changes: list[Change]
    record_hash: bytes
    names: Mapping[str, str] = field(default_factory=dict)


def normalise(
    raw: Any,
    context: Context,
    *,
    strict: bool = False,
    language: Language = DEFAULT_LANGUAGE,
) -> Normalised:
    """Apply every rule to one chunk.

    Args:
        raw: The chunk as it stands in its file, any JSON value.
        context: What the file says of it.
        strict: Refuse instead of changing what was given or making up what is required.
        language: The text search configuration of a chunk that names no language.

    Raises:
        Unacceptable: No rule makes the chunk valid, or ``strict`` forbids the rule.
    """
    if not isinstance(raw, dict):
        raise Unacceptable("a chunk must be an object")
    canonical = _canonical(
        [VERSION, raw, context.framework, context.description, dict(context.defaults)]
    )
    # All that cannot be stored is an escape in ASCII JSON: most chunks are not searched for it.
    draft = _Draft(raw, strict=strict, doubtful="\\u0000" in canonical or "\\ud" in canonical)
    for name, number in inexact_numbers(raw):
        draft.change(clean(name), number.digits, float(number), Rule.NUMBER)
    chunk_id = _chunk_id(draft)
    content = _content(draft)
    start_line, end_line = _lines(draft)
    record = ChunkRecord(
        chunk_id=chunk_id,
        source_file=_source_file(draft, context),
        section=_section(draft, context),
        title=_title(draft, chunk_id),
        description=_description(draft, context),
        content=content,
        language=_language(draft, context, content, language),
        character_count=_count(draft, len(content), "character_count", "char_count"),
        word_count=_count(draft, len(content.split()), "word_count"),
        chunk_type=_chunk_type(draft),
        framework_name=_framework_name(draft, context),
        overlap_with_previous=draft.as_text(draft.take("overlap_with_previous")),
        processing_date=_date(draft, context),
        guidelines_compliance=_cut(draft, draft.take("guidelines_compliance")),
        concepts=_concepts(draft),
        **{name: _boolean(draft, name, absent) for name, absent in BOOLEANS.items()},
        start_line=start_line,
        end_line=end_line,
        extra=draft.rest(),  # last: what no rule has taken
    )
    # With another language than ever the same chunk is another record.
    said = "" if language == DEFAULT_LANGUAGE else record.language
    record_hash = hashlib.sha256((canonical + said).encode()).digest()
    return Normalised(record, draft.changes, record_hash, draft.names)


def identifier_of(raw: Any) -> str | None:
    """Return the identifier that ``normalise`` gives a chunk, also one that it refuses, or None."""
    if not isinstance(raw, dict):
        return None
    try:
        return _chunk_id(_Draft(raw, strict=False, doubtful=True))
    except Unacceptable:
        return None


class _Given(NamedTuple):
    """A field's value, and the name that the file gives it under.

    Attributes:
        field: Its name in the file.
        value: Any JSON; None when it is null or absent.
        present: Whether the field is there.
    """

    field: str
    value: Any
    present: bool


class _Draft(Draft):
    """A chunk being read: the fields not yet taken, and the changes made so far.

    Attributes:
        names: First name of a field that was taken → its name in the file, where that is another.
    """

    def __init__(self, raw: dict[str, Any], *, strict: bool, doubtful: bool) -> None:
        super().__init__(strict=strict)
        self.names: dict[str, str] = {}
        self._top = self._clean_fields("", raw) if doubtful else dict(raw)
        nested = self._top.get("metadata")
        self._nested: dict[str, Any] = {}
        if isinstance(nested, dict):
            del self._top["metadata"]
            self._nested = self._clean_fields("metadata.", nested) if doubtful else dict(nested)

    def take(self, *names: str) -> _Given:
        """Take a field under any of its names, at the top or in ``metadata``; the first wins."""
        winner: _Given | None = None
        for place, prefix in ((self._top, ""), (self._nested, "metadata.")):
            for name in names:
                if name not in place:
                    continue
                given = _Given(prefix + name, place.pop(name), present=True)
                if winner is None or winner.value is None:
                    winner = given
                elif given.value is not None and given.value != winner.value:
                    self.change(given.field, given.value, winner.value, Rule.PRECEDENCE)
        return self._note(names[0], winner or _Given(names[0], None, present=False))

    def borrow(self, name: str) -> _Given:
        """Take a field from the top, and only where it is absent there from ``metadata``.

        A title or a description in ``metadata`` is often the book's.
        """
        for place, prefix in ((self._top, ""), (self._nested, "metadata.")):
            if place.get(name) is not None:
                if place is self._nested:
                    self._top.pop(name, None)  # a null
                return self._note(name, _Given(prefix + name, place.pop(name), present=True))
        present = name in self._top
        return _Given(name, self._top.pop(name, None), present)

    def _note(self, name: str, given: _Given) -> _Given:
        """Remember where a field was found."""
        if given.field != name:
            self.names[name] = given.field
        return given

    def as_text(self, given: _Given) -> str | None:
        """Return the value as text; what is not text is stored as it stands in JSON."""
        return None if given.value is None else self.text(given.field, given.value)

    def as_filled_text(self, given: _Given) -> str | None:
        """Return the value as text, or None when it is blank."""
        value = self.as_text(given)
        return value if value and value.strip() else None

    def require(self, given: _Given, stored: Any, rule: Rule = Rule.DEFAULT) -> None:
        """Record a value for a field that must have one and has none.

        Raises:
            Unacceptable: That is forbidden.
        """
        if self.strict:
            raise Unacceptable(f"{given.field} is missing")
        self.change(given.field, given.value, stored, rule)

    def inherit(self, given: _Given, said: Any) -> str | None:
        """Take the file's statement on all its chunks, for one that has none itself."""
        if not isinstance(said, str) or not said.strip():
            return None
        stored: str = clean(said)
        if stored != said:
            self.change(given.field, said, stored, Rule.CHARACTERS)
        if not stored.strip():
            return None
        self.change(given.field, given.value, stored, Rule.INHERITED)
        return stored

    def rest(self) -> dict[str, Any]:
        """Return the fields that no rule took, in their places."""
        return self._top | ({"metadata": self._nested} if self._nested else {})

    def _clean_fields(self, prefix: str, raw: dict[str, Any]) -> dict[str, Any]:
        """Return the object without what PostgreSQL cannot store: NUL and half surrogate pairs."""
        cleaned: dict[str, Any] = {}
        for key, value in raw.items():
            name = clean(key)
            if name != key and (name in raw or name in cleaned):
                self.change(prefix + name, {key: value}, None, Rule.CHARACTERS)
                continue
            # The fields of "metadata" are cleaned, and told, one by one.
            whole = prefix == "" and key == "metadata" and isinstance(value, dict)
            cleaned[name] = value if whole else clean(value)
            if name != key:
                self.change(prefix + name, {key: value}, {name: cleaned[name]}, Rule.CHARACTERS)
            elif cleaned[name] != value:
                self.change(prefix + name, value, cleaned[name], Rule.CHARACTERS)
        return cleaned


def _chunk_id(draft: _Draft) -> str:
    given = draft.borrow("chunk_id")
    if isinstance(given.value, bool | float | list | dict):
        raise Unacceptable("chunk_id is not text")
    chunk_id = draft.as_filled_text(given)
    if chunk_id is None:
        raise Unacceptable("chunk_id is missing or blank")
    if len(chunk_id) > MAX_NAME:
        raise Unacceptable(f"chunk_id has {len(chunk_id)} characters; at most {MAX_NAME} are kept")
    return chunk_id


def _content(draft: _Draft) -> str:
    content, text = draft.borrow("content"), draft.borrow("text")
    if content.value is not None and text.value is not None and content.value != text.value:
        raise Unacceptable("'content' and 'text' are both given, and differ")
    value = text.value if content.value is None else content.value
    if content.value is None and text.present:
        draft.names["content"] = text.field
    if value is not None and not isinstance(value, str):
        raise Unacceptable("content is not text")
    if value is None or not value.strip():
        raise Unacceptable("content is missing or blank")
    if len(value) > MAX_CHARACTERS:
        raise Unacceptable(f"content has {len(value)} characters; at most {MAX_CHARACTERS} fit")
    words = len(value.split())
    if words > MAX_WORDS:
        raise Unacceptable(f"content has {words} words; at most {MAX_WORDS} fit")
    if len(value) < words * MIN_CHARACTERS_PER_WORD:
        raise Unacceptable(
            f"content has {words} words in {len(value)} characters: fewer than "
            f"{MIN_CHARACTERS_PER_WORD} a word, spaces included"
        )
    return value


def _source_file(draft: _Draft, context: Context) -> str:
    given = draft.take("source_file")
    value = draft.as_filled_text(given) or draft.inherit(given, context.defaults.get("source_file"))
    if value is None:
        draft.require(given, "unknown")
        return "unknown"
    stored = _NOT_IN_SOURCE_FILE.sub("_", value)
    if stored != value:
        draft.change(given.field, value, stored, Rule.SOURCE_FILE)
    return _shorten(draft, given.field, stored)


def _section(draft: _Draft, context: Context) -> str:
    given = draft.borrow("section")
    value = draft.as_filled_text(given) or draft.inherit(given, context.framework)
    if value is None:
        draft.require(given, "unknown")
        return "unknown"
    return _shorten(draft, given.field, value)


def _title(draft: _Draft, chunk_id: str) -> str:
    given = draft.borrow("title")
    title = draft.as_filled_text(given)
    if title is None:
        draft.require(given, chunk_id)
        return chunk_id
    if len(title) > MAX_CHARACTERS:
        raise Unacceptable(f"title has {len(title)} characters; at most {MAX_CHARACTERS} fit")
    return title


def _description(draft: _Draft, context: Context) -> str | None:
    given = draft.borrow("description")
    value = draft.as_text(given)
    return value if given.present else draft.inherit(given, context.description)


def _framework_name(draft: _Draft, context: Context) -> str | None:
    given = draft.take("framework_name")
    if given.present:
        return _cut(draft, given)
    value = draft.inherit(given, context.framework)
    return None if value is None else _shorten(draft, given.field, value)


def _language(draft: _Draft, context: Context, content: str, default: Language) -> str:
    given = draft.take("language")
    value = draft.as_filled_text(given) or draft.inherit(given, context.defaults.get("language"))
    if value is None:
        assumed = default if isinstance(default, str) else default(content)
        if given.value is not None:
            draft.change(given.field, given.value, assumed, Rule.DEFAULT)
        return assumed
    name = value.strip().lower()
    code = re.split("[-_]", name)[0]
    stored = name if name in CONFIGURATIONS else LANGUAGES.get(code, "simple")
    if stored != value:
        draft.change(given.field, value, stored, Rule.LANGUAGE)
    return stored


def _count(draft: _Draft, counted: int, *names: str) -> int:
    given = draft.take(*names)
    if given.value is None:
        draft.require(given, counted, Rule.DERIVED)
    elif _integer(given.value) != counted:
        draft.change(given.field, given.value, counted, Rule.RECOUNTED)
    elif type(given.value) is not int:
        draft.change(given.field, given.value, counted, Rule.INTEGER)
    return counted


def _chunk_type(draft: _Draft) -> str:
    given = draft.take("chunk_type")
    value = draft.as_filled_text(given)
    if value is None:
        draft.require(given, "supporting")
        return "supporting"
    if value in CHUNK_TYPES:
        return value
    spelled = re.sub(r"[\s_-]+", "_", value.strip().lower())
    stored = spelled if spelled in CHUNK_TYPES else "supporting"
    draft.change(given.field, value, stored, Rule.CHUNK_TYPE)
    return stored


def _boolean(draft: _Draft, name: str, absent: bool) -> bool | None:
    given = draft.take(name)
    if isinstance(given.value, bool):
        return given.value
    if not given.present:
        if name == "validation_passed":  # searches go by it, and the default is not the column's
            draft.require(given, absent)
        elif name in VALIDATED:
            draft.change(given.field, None, absent, Rule.DEFAULT)
        return absent
    if given.value is None:
        return None
    word = str(given.value).strip().lower()
    if word in TRUE_WORDS | FALSE_WORDS:
        draft.change(given.field, given.value, word in TRUE_WORDS, Rule.BOOLEAN)
        return word in TRUE_WORDS
    draft.change(given.field, given.value, None, Rule.UNREADABLE)
    return None


def _date(draft: _Draft, context: Context) -> date | None:
    given = draft.take("processing_date")
    value = given.value
    if not given.present:
        value = draft.inherit(given, context.defaults.get("processing_date"))
    if value is None:
        return None
    try:
        stored = datetime.fromisoformat(value.strip()).date()
    except (AttributeError, ValueError):  # not text, or not a date
        draft.change(given.field, value, None, Rule.UNREADABLE)
        return None
    if stored.isoformat() != value:
        draft.change(given.field, value, stored.isoformat(), Rule.DATE)
    return stored


def _lines(draft: _Draft) -> tuple[int | None, int | None]:
    given = {name: draft.take(name) for name in ("start_line", "end_line")}
    lines = {name: _integer(line.value) for name, line in given.items()}
    start, end = lines.values()
    valid = (
        start is not None
        and end is not None
        and 0 < start <= end <= MAX_LINE
        and end - start <= MAX_LINES_APART
    )
    for name, line in given.items():
        if line.value is None:
            continue
        if not valid:
            draft.change(line.field, line.value, None, Rule.LINES)
        elif type(line.value) is not int:
            draft.change(line.field, line.value, lines[name], Rule.INTEGER)
    return (start, end) if valid else (None, None)


def _concepts(draft: _Draft) -> frozenset[str]:
    given = draft.take("key_concepts")
    draft.names["concepts"] = given.field
    names = given.value
    if isinstance(names, str):
        names = [name.strip() for name in SEPARATOR.split(names) if name.strip()]
        draft.change(given.field, given.value, names, Rule.CONCEPT_LIST)
    elif names is not None and not isinstance(names, list):
        draft.change(given.field, names, None, Rule.CONCEPT_DROPPED)
        names = None
    concepts: set[str] = set()
    for index, name in enumerate(names or ()):
        field = f"{given.field}[{index}]"
        stored = _concept(name)
        if stored is None:
            draft.change(field, name, None, Rule.CONCEPT_DROPPED)
        elif stored != name:
            draft.change(field, name, stored, Rule.CONCEPT)
        elif stored in concepts:
            draft.change(field, name, None, Rule.CONCEPT_MERGED)
        if stored is not None:
            concepts.add(stored)
    return frozenset(concepts)


def _concept(name: Any) -> str | None:
    """Return the concept's name with only letters, digits, spaces, ``&`` and ``-``, or None."""
    if isinstance(name, int | float) and not isinstance(name, bool):
        name = str(name)
    if not isinstance(name, str):
        return None
    if len(name) > MAX_NAME or not _CONCEPT.fullmatch(name):
        letters = unicodedata.normalize("NFKD", name)
        # Marks go without a gap: an accent inside a word does not end it.
        bare = "".join(letter for letter in letters if not unicodedata.combining(letter))
        name = _NOT_IN_CONCEPT.sub(" ", bare).strip()[:MAX_NAME].rstrip()
    return name if _LETTER_OR_DIGIT.search(name) else None


def _cut(draft: _Draft, given: _Given) -> str | None:
    value = draft.as_text(given)
    return None if value is None else _shorten(draft, given.field, value)


def _shorten(draft: _Draft, field: str, value: str) -> str:
    if len(value) > MAX_NAME:
        draft.change(field, value, value[:MAX_NAME], Rule.CUT)
    return value[:MAX_NAME]


def _integer(value: Any) -> int | None:
    """Return the whole number that a value means, or None."""
    match value:
        case bool():
            return None
        case int():
            return value
        case float() if value.is_integer():
            return int(value)
        case str() if re.fullmatch(r"\s*[0-9]{1,10}\s*", value):
            return int(value)
        case _:
            return None
