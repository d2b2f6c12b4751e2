"""The rules that turn a memory or an episode into a record.

Each change is recorded, without what is stored.

docs/reference/import-rules.md describes every rule to the people who read the history. It has
numbers, words of the schema, and what would be lost without it; all is erased with the memory.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any, Final, NamedTuple

from pgcorpus.db.choices import TAGS
from pgcorpus.db.models.memory import (
    COMPLEXITIES,
    CONVERSATION_MODES,
    EMOTIONAL_VALENCES,
    INTENT_TYPES,
    MAX_DEPTH,
    NOISE,
    URGENCIES,
    memory_id,
)
from pgcorpus.db.repositories.imports import Change
from pgcorpus.db.repositories.memory.imports import EpisodeRecord, NodeRecord, Record
from pgcorpus.services.importers.draft import FALSE_WORDS, TRUE_WORDS, Draft, Rule, Unacceptable
from pgcorpus.services.importers.language import CONFIGURATIONS, LANGUAGES, Language
from pgcorpus.services.importers.text import MAX_NAME, SEPARATOR, clean

UNKNOWN: Final = "unknown"
MAX_SOURCE: Final = 50
MAX_INTEGER: Final = 2**31 - 1
"""The bounds of the tables' columns."""

STAMPED: Final = frozenset({"user_id", "tenant_id", "scope"})
"""Fields that say to whom a memory belongs: the call decides that, and not the file."""

NODE_FIELDS: Final = frozenset(
    {
        *("id", "conversation_id", "sequence_index", "human_content", "assistant_content"),
        *("source", "created_at", "intent_type", "complexity", "technical_depth"),
        *("emotional_valence", "urgency", "conversation_mode", "action_required", "has_code"),
        *("has_error", "tags", "cluster_id", "cluster_label", "cluster_confidence"),
        *("access_count", "last_accessed", "duplicate_of", "language"),
        *TAGS,
    }
)
OF_LLM: Final = (
    *("summary", "primary_intent", "outcome", "interruption_reason", "key_entities"),
    *("domains", "time_context"),
)
"""Statements of a model on an episode: in ``llm_tags``, or beside it. ``emotional_arc`` is a
column, too, and so only looked for where it stands."""

EPISODE_FIELDS: Final = frozenset(
    {
        *("id", "title", "messages", "message_count", "source", "created_at", "updated_at"),
        *("duration_minutes", "llm_tags", "dominant_intent", "avg_complexity"),
        *("avg_technical_depth", "emotional_arc", "has_code", "has_errors", "urgency_max"),
        *("memory_node_ids", "related_episode_ids", "access_count", "last_accessed"),
        *("language", *OF_LLM),
    }
)


class Normalised(NamedTuple):
    """A memory or an episode that can be stored.

    Attributes:
        record: Within all constraints of the tables.
        changes: How it differs from what was given.
        unknown: Names of fields that have no column.
    """

    record: Record
    changes: list[Change]
    unknown: list[str]


def node(raw: Any, *, name: str | None, strict: bool, language: Language) -> Normalised:
    """Apply every rule to one memory.

    Args:
        raw: The memory as it stands in its file, any JSON value.
        name: Under which it stands, where the file is an object of memories.
        strict: Refuse instead of changing what was given.
        language: The text search configuration, or what finds it.

    Raises:
        Unacceptable: No rule makes it valid, or ``strict`` forbids the rule.
    """
    draft = _Draft.of(raw, NODE_FIELDS, "memory", strict=strict)
    human = draft.words("human_content")
    assistant = draft.words("assistant_content")
    if not (human.strip() or assistant.strip()):
        raise Unacceptable("it has neither a human_content nor an assistant_content")
    given = draft.find_id(name)
    conversation = draft.short("conversation_id", MAX_NAME)
    index = draft.whole("sequence_index", least=0)
    if given is None and (conversation is None or index is None):
        raise Unacceptable(
            "it has no id, and none can be made without conversation_id and sequence_index"
        )
    if conversation is None:
        conversation = draft.default("conversation_id", UNKNOWN)
    record = NodeRecord(
        id=given or draft.derive("id", memory_id(conversation, index or 0, human)),
        conversation_id=conversation,
        sequence_index=index or 0,
        human_content=human,
        assistant_content=assistant,
        source=draft.short("source", MAX_SOURCE) or draft.default("source", UNKNOWN),
        created_at=draft.moment("created_at"),
        intent_type=draft.choice("intent_type", INTENT_TYPES, "statement"),
        complexity=draft.choice("complexity", COMPLEXITIES, "simple"),
        technical_depth=draft.whole("technical_depth", least=0, most=MAX_DEPTH) or 0,
        emotional_valence=draft.choice("emotional_valence", EMOTIONAL_VALENCES, "neutral"),
        urgency=draft.choice("urgency", URGENCIES, "low"),
        conversation_mode=draft.choice("conversation_mode", CONVERSATION_MODES, "chat"),
        action_required=draft.boolean("action_required"),
        has_code=draft.boolean("has_code"),
        has_error=draft.boolean("has_error"),
        tags=draft.tags(),
        cluster_id=draft.whole("cluster_id", least=NOISE),
        cluster_label=draft.short("cluster_label", MAX_NAME),
        cluster_confidence=draft.number("cluster_confidence", most=1.0),
        access_count=draft.whole("access_count", least=0) or 0,
        last_accessed=draft.time("last_accessed", draft.raw.get("last_accessed")),
        duplicate_of=draft.short("duplicate_of", MAX_NAME),
        language=draft.language(language, f"{human}\n{assistant}"),
        extra=draft.extra,
    )
    return Normalised(record, draft.changes, list(draft.extra))


def episode(raw: Any, *, name: str | None, strict: bool, language: Language) -> Normalised:
    """Apply every rule to one episode; arguments and errors as of ``node``."""
    draft = _Draft.of(raw, EPISODE_FIELDS, "episode", strict=strict)
    title = draft.words("title")
    messages = list(draft.as_list("messages", draft.raw.get("messages")))
    llm_tags = draft.llm_tags()
    if not (messages or title.strip() or llm_tags.get("summary")):
        raise Unacceptable("it has no messages, no title and no summary")
    said = json.dumps([title, messages], ensure_ascii=False, default=float)
    digest = sha256(said.encode()).hexdigest()[:16]
    count = draft.whole("message_count", least=0)
    record = EpisodeRecord(
        id=draft.find_id(name) or draft.derive("id", f"ep_{digest}"),
        title=title,
        messages=messages,
        message_count=draft.derive("message_count", len(messages)) if count is None else count,
        source=draft.short("source", MAX_SOURCE) or draft.default("source", UNKNOWN),
        created_at=draft.moment("created_at"),
        updated_at=draft.moment("updated_at"),
        duration_minutes=draft.number("duration_minutes"),
        llm_tags=llm_tags,
        dominant_intent=draft.choice("dominant_intent", INTENT_TYPES, None),
        avg_complexity=draft.number("avg_complexity"),
        avg_technical_depth=draft.number("avg_technical_depth", most=float(MAX_DEPTH)),
        emotional_arc=draft.words("emotional_arc") or None,
        has_code=draft.boolean("has_code"),
        has_errors=draft.boolean("has_errors"),
        urgency_max=draft.choice("urgency_max", URGENCIES, None),
        memory_node_ids=draft.names("memory_node_ids", draft.raw.get("memory_node_ids")),
        related_episode_ids=draft.names(
            "related_episode_ids", draft.raw.get("related_episode_ids")
        ),
        access_count=draft.whole("access_count", least=0) or 0,
        last_accessed=draft.time("last_accessed", draft.raw.get("last_accessed")),
        language=draft.language(language, said),
        extra=draft.extra,
    )
    return Normalised(record, draft.changes, list(draft.extra))


TELLABLE: Final = frozenset(
    {
        *(*INTENT_TYPES, *COMPLEXITIES, *EMOTIONAL_VALENCES, *URGENCIES, *CONVERSATION_MODES),
        UNKNOWN,
    }
)
"""Words that the history may have: they are ours."""

WHOLE: Final = frozenset({Rule.CHARACTERS, Rule.TEXT})
"""Rules after which the row has what was given; of others the history alone has it."""


@dataclass(slots=True)
class _Draft(Draft):
    """A memory or an episode being read.

    Attributes:
        raw: Its fields that are known, of which every value can be stored.
        extra: The others, but for those that say to whom it belongs.
    """

    raw: dict[str, Any] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, raw: Any, known: frozenset[str], what: str, *, strict: bool) -> _Draft:
        """Take the fields of an object in a file.

        Raises:
            Unacceptable: It is no object, or nested too deep.
        """
        if not isinstance(raw, dict):
            raise Unacceptable(f"it must be an object: one {what}")
        draft = cls(strict=strict)
        storable = draft.storable(raw)
        draft.raw = {key: value for key, value in storable.items() if key in known}
        draft.extra = {
            key: value for key, value in storable.items() if key not in known and key not in STAMPED
        }
        return draft

    def change(self, name: str, original: Any, stored: Any, rule: Rule) -> None:
        """Record that a given value is stored otherwise; it is told where it is lost otherwise.

        Raises:
            Unacceptable: That is forbidden.
        """
        name = re.split(r"[.\[]", name, maxsplit=1)[0]
        if self.strict and original is not None:
            raise Unacceptable(f"{name} would be changed (rule {rule.value})")
        told = _redact(original) if rule in WHOLE else original
        self.changes.append(Change(name, told, _redact(stored), rule.value))

    def default(self, name: str, stored: str) -> str:
        """Record a default for a field that must have a value and has none."""
        self.change(name, None, stored, Rule.DEFAULT)
        return stored

    def derive(self, name: str, stored: Any) -> Any:
        """Record a value that follows from the others, where none is given."""
        self.change(name, None, stored, Rule.DERIVED)
        return stored

    def find_id(self, name: str | None) -> str | None:
        """Return the identifier, or the name it stands under; None where it has to be made."""
        value = self.raw.get("id", name)
        if isinstance(value, str) and value.strip() and len(value) <= MAX_NAME:
            stored: str = clean(value)
            return stored
        if type(value) is int and abs(value) <= MAX_INTEGER:
            self.change("id", value, value, Rule.IDENTIFIER)
            return str(value)
        if value is not None:
            self.change("id", value, None, Rule.IDENTIFIER)
        return None

    def language(self, default: Language, said: str) -> str:
        """Return the text search configuration of what was said."""
        value = self.raw.get("language")
        assumed = default if isinstance(default, str) else default(said)
        if value is None:
            return assumed
        name = value.strip().lower() if isinstance(value, str) else ""
        code = re.split("[-_]", name)[0]
        stored = name if name in CONFIGURATIONS else LANGUAGES.get(code, assumed)
        if stored != value:
            self.change("language", value, stored, Rule.LANGUAGE)
        return stored

    def words(self, name: str) -> str:
        """Return a text, empty where there is none.

        Other values are stored as they stand in JSON.
        """
        value = self.raw.get(name)
        return "" if value is None else self.text(name, value)

    def short(self, name: str, characters: int) -> str | None:
        """Return the beginning of a text, or None where it is blank."""
        value = self.words(name)
        if len(value) > characters:
            self.change(name, value, None, Rule.CUT)
            value = value[:characters]
        return value if value.strip() else None

    def moment(self, name: str) -> Any:
        """Return a time that a row must have: the repository fills the gap."""
        value = self.raw.get(name)
        if value is None:
            self.change(name, None, None, Rule.DEFAULT)
        return self.time(name, value)

    def number(self, name: str, *, most: float = math.inf) -> float | None:
        """Return a number that is not negative, or None where there is none."""
        value = self.raw.get(name)
        number = _number_of(value)
        if number is None:
            if value is not None:
                self.change(name, value, None, Rule.UNREADABLE)
            return None
        within = float(min(max(number, 0.0), most))
        if within != value:
            self.change(name, value, within, Rule.NUMBER if within == number else Rule.RANGE)
        return within

    def whole(self, name: str, *, least: int, most: int = MAX_INTEGER) -> int | None:
        """Return a whole number within bounds, or None where there is none."""
        value = self.raw.get(name)
        number = _number_of(value)
        if number is None:
            if value is not None:
                self.change(name, value, None, Rule.UNREADABLE)
            return None
        within = min(max(round(number), least), most)
        if within != value or not isinstance(value, int):
            is_cut = within != round(number)
            self.change(name, value, within, Rule.RANGE if is_cut else Rule.INTEGER)
        return within

    def boolean(self, name: str) -> bool:
        """Return a boolean, false where there is none."""
        value = self.raw.get(name)
        if value is None or isinstance(value, bool):
            return bool(value)
        word = str(value).strip().lower() if isinstance(value, str | int | float) else ""
        readable = word in TRUE_WORDS or word in FALSE_WORDS
        stored = word in TRUE_WORDS
        self.change(name, value, stored, Rule.BOOLEAN if readable else Rule.UNREADABLE)
        return stored

    def choice(self, name: str, words: tuple[str, ...], otherwise: str | None) -> Any:
        """Return one of a few words."""
        value = self.raw.get(name)
        if value is None or value in words:
            return value or otherwise
        word = value.strip().lower() if isinstance(value, str) else None
        stored = word if word in words else otherwise
        self.change(name, value, stored, Rule.CHOICE)
        return stored

    def names(self, name: str, value: Any) -> list[str]:
        """Return a list of names, each once."""
        given = SEPARATOR.split(value) if isinstance(value, str) else value
        listed = given if isinstance(given, list) else []
        texts = (str(each) for each in listed if isinstance(each, str | int | float))
        stored = list(dict.fromkeys(text.strip() for text in texts if text.strip()))
        if stored != value and value is not None:
            self.change(name, value, None, Rule.TAGS)
        return stored

    def tags(self) -> dict[str, Any]:
        """Return the tags of a memory: an object, names beside it at the top, or a list."""
        given = self.raw.get("tags")
        if isinstance(given, list | str):
            given = {"topics": self.names("tags", given)}
        given = self.as_object("tags", given)
        return self._join_lists(given, "tags", TAGS)

    def llm_tags(self) -> dict[str, Any]:
        """Return a model's tags of an episode: an object, or fields beside it at the top."""
        given = self.as_object("llm_tags", self.raw.get("llm_tags"))
        beside = {name: self.raw[name] for name in OF_LLM if self.raw.get(name) is not None}
        lists = ("key_entities", "domains")
        said = {name: value for name, value in beside.items() if name not in lists}
        return self._join_lists(said | given, "llm_tags", lists)

    def _join_lists(
        self, given: Mapping[str, Any], name: str, lists: tuple[str, ...]
    ) -> dict[str, Any]:
        """Return an object, in which these are lists of names, joined with those at the top."""
        found = {key: value for key, value in given.items() if key not in lists}
        for key in lists:
            inside, beside = given.get(key), self.raw.get(key)
            if inside is not None or beside is not None:
                names = [*self.names(name, inside), *self.names(key, beside)]
                found[key] = list(dict.fromkeys(names))
        return found


def _number_of(value: Any) -> float | int | None:
    """Return a value as a number that PostgreSQL can store, or None."""
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return value if math.isfinite(value) else None
    except OverflowError:  # an integer that no double reaches
        return None


def _redact(value: Any) -> Any:
    """Return a value as the history has it: numbers, and words of our own vocabulary."""
    if isinstance(value, str):
        return value if value in TELLABLE else None
    return value if isinstance(value, bool | int | float) and _is_short(value) else None


def _is_short(number: float) -> bool:
    return isinstance(number, bool) or abs(number) <= MAX_INTEGER
