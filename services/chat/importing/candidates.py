"""The values of a file, read as candidates: conversations, what is refused, and what is neither."""

from __future__ import annotations

import ctypes
import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from typing import Any, Final

from pgcorpus.db.errors import ImportFailed
from pgcorpus.db.repositories.chat.imports import ConversationRecord
from pgcorpus.db.repositories.imports import Change
from pgcorpus.services.chat.importing import chroma
from pgcorpus.services.chat.importing.detect import READERS
from pgcorpus.services.chat.importing.rules import NothingSaid
from pgcorpus.services.choices import ChatFormat
from pgcorpus.services.importers.draft import Rule, Unacceptable
from pgcorpus.services.importers.language import DEFAULT_LANGUAGE, Language
from pgcorpus.services.importers.stream import Damage, Element

Key = tuple[str, str]

LEGACY: Final = chroma.SOURCE

BROKEN: Final = "broken"
"""The name in place of a format that cannot be told."""

BATCH_MESSAGES: Final = 2000
BATCH_BYTES: Final = 4 * 1024**2
"""A transaction ends with the conversation that reaches one of these. While it is written the next
is read, but not beside one of more bytes."""

LANGUAGE_CHARACTERS: Final = 200
"""A message is in a language of its own from this length on; a shorter one, in its
conversation's: what is found from a single sentence is often a near language."""

LANGUAGE_SAMPLE: Final = 10_000
"""Characters that a language is found from."""


class NoConversations(ImportFailed):
    """The file holds no conversations; the report of the import says so.

    Remedy: Name an export in one of the formats of ``docs/reference/chat-formats.md``.
    """

    def __init__(self) -> None:
        super().__init__(f"it holds no conversations; known formats: {', '.join(READERS)}")


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A value of a file after a reader has read it.

    Attributes:
        element: As it stands.
        format: Which format it is of, or None.
        record: The conversation, or None when it is refused.
        record_hash: SHA-256 of the record.
        languages: Of its messages.
        changes: What its reader changed.
        reason: Why it is refused, or skipped.
        is_skipped: Whether it is left alone, because there is nothing in it.
        stands_at: Where the one is that it was refused for before, or None.
    """

    element: Element
    format: str | None = None
    record: ConversationRecord | None = None
    record_hash: bytes = b""
    languages: Sequence[str] = ()
    changes: Sequence[Change] = ()
    reason: str = ""
    is_skipped: bool = False
    stands_at: str | None = None

    @cached_property
    def key(self) -> Key | None:
        """The identifier of the conversation in its source, or None."""
        return None if self.record is None else (self.record.source_type, self.record.source_id)


@dataclass
class Batch:
    """The candidates of one transaction, each conversation once.

    Attributes:
        candidates: In the order of the file.
        keys: Of those that are conversations.
        messages: How many they have.
        size_bytes: Of them all, as they stand.
        end: Offset in the file of what comes behind them.
    """

    candidates: list[Candidate] = field(default_factory=list)
    keys: set[Key] = field(default_factory=set)
    messages: int = 0
    size_bytes: int = 0
    end: int = 0

    @property
    def is_full(self) -> bool:
        """True if the transaction is long enough."""
        return self.messages >= BATCH_MESSAGES or self.size_bytes >= BATCH_BYTES

    def is_long(self) -> bool:
        """Return whether the batch is so long that nothing else should be in memory beside it."""
        return self.size_bytes > BATCH_BYTES

    def add(self, candidate: Candidate) -> None:
        """Add a candidate."""
        self.candidates.append(candidate)
        self.size_bytes += candidate.element.size_bytes
        self.end = candidate.element.offset + candidate.element.size_bytes
        if candidate.record is not None and candidate.key is not None:
            self.keys.add(candidate.key)
            self.messages += len(candidate.record.messages)


class Reading:
    """The options and steps of reading a value.

    Args:
        format: The only format to take, or ``auto``.
        strict: Refuse what would have to be changed.
        language: The text search configuration of the messages, or what finds it.
    """

    def __init__(self, format: ChatFormat, *, strict: bool, language: Language) -> None:  # noqa: A002 - as the option is called
        self._formats = tuple(READERS) if format == "auto" else (format,)
        self._is_asked_for = format != "auto"
        self._strict = strict
        self._language = language

    def takes(self, format: str) -> bool:  # noqa: A002 - as above
        """Return whether conversations of the format are wanted."""
        return format in self._formats

    def knows(self, element: Element) -> bool:
        """Return whether the value is a conversation, perhaps broken.

        Most others are not even parsed.
        """
        if element.text is None:
            return True  # it cannot be told
        marks = (mark for name in self._formats for mark in READERS[name].marks)
        return any(mark in element.text for mark in marks) and (
            self.candidate(element).format is not None
        )

    def candidate(self, element: Element) -> Candidate:
        """Read one value; a fault in it, or in its reader, concerns this value alone."""
        if element.size_bytes > BATCH_BYTES:
            _give_memory_back()
        try:
            raw, damage = element.read()
        except ImportFailed as error:
            return Candidate(element=element, format=BROKEN, reason=str(error))
        format_ = self._format_of(raw)
        if format_ is None:
            reason = f"it is no conversation of a format asked for: {', '.join(self._formats)}"
            return Candidate(element=element, reason=reason)
        try:
            parsed = READERS[format_].read(raw, strict=self._strict)
            changes = [*_list_damage(damage, strict=self._strict), *parsed.changes]
        except NothingSaid as nothing:
            return Candidate(element=element, format=format_, reason=str(nothing), is_skipped=True)
        except Unacceptable as refusal:
            return Candidate(element=element, format=format_, reason=str(refusal))
        except Exception as error:  # noqa: BLE001 - it is kept, and the others go in
            reason = f"it cannot be read: {type(error).__name__}: {error}"
            return Candidate(element=element, format=format_, reason=reason)
        languages = self._languages(parsed.record)
        return Candidate(
            element=element,
            format=format_,
            record=parsed.record,
            record_hash=_hash(parsed.record, languages),
            languages=languages,
            changes=changes,
        )

    def _format_of(self, raw: Any) -> str | None:
        """Return the format of a value, among the wanted ones."""
        for name in self._formats:
            format_ = READERS[name]
            takes = (self._is_asked_for and format_.accepts) or format_.recognises
            if takes(raw):
                return name
        return None

    def _languages(self, record: ConversationRecord) -> list[str]:
        """Return the text search configuration of each message."""
        if isinstance(self._language, str):
            return [message.language or self._language for message in record.messages]
        texts = [message.content[:LANGUAGE_SAMPLE] for message in record.messages]
        whole = self._language(" ".join(texts)[:LANGUAGE_SAMPLE])
        return [
            message.language
            or (self._language(text) if len(text) >= LANGUAGE_CHARACTERS else whole)
            for message, text in zip(record.messages, texts, strict=True)
        ]


def _give_memory_back() -> None:
    """Return free memory to the system.

    The next long conversation seldom fits the holes of the last.

    Of itself glibc gives back only what is on top of its heaps (malloc_trim(3)): four conversations
    of 55 MiB in a row took 510 MiB without this, and 360 with it. Elsewhere nothing is done.
    """
    with suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def batches(candidates: Iterator[Candidate]) -> Iterator[Batch]:
    """Yield the candidates in batches; those before an error are yielded before it is raised.

    Who is done with a batch empties it, or it would be in memory while the next is read.
    """
    batch = Batch()
    failure = None
    try:
        for candidate in candidates:
            if candidate.key in batch.keys:
                yield batch
                batch = Batch()
            batch.add(candidate)
            del candidate  # as above
            if batch.is_full:
                yield batch
                batch = Batch()
    except ImportFailed as error:
        failure = error
    if batch.candidates:
        yield batch
    if failure is not None:
        raise failure


def _list_damage(damage: Damage | None, *, strict: bool) -> list[Change]:
    """List the changes to record for bytes that are not UTF-8.

    Raises:
        Unacceptable: They may not be replaced.
    """
    if damage is None:
        return []
    if strict:
        raise Unacceptable(f"it is not UTF-8: byte {damage.offset:,} of the file (rule encoding)")
    given = {"offset": damage.offset, "count": damage.count}
    return [Change("bytes", given, "\ufffd", Rule.ENCODING.value)]


def _hash(record: ConversationRecord, languages: Sequence[str]) -> bytes:
    """Return the SHA-256 of a conversation.

    The same conversation in other languages has another hash.
    """
    digest = hashlib.sha256()
    said = [record.source_type, record.source_id, record.title, record.is_saved]
    digest.update(_canonical([*said, record.created_at, record.source_updated_at]))
    for each in record.messages:  # one by one: together, a long conversation would be there twice
        place = [each.source_id, each.branch, each.position, each.role, each.created_at]
        digest.update(_canonical([*place, each.content, each.details]))
    if set(languages) != {DEFAULT_LANGUAGE}:
        digest.update(_canonical(languages))
    return digest.digest()


def _canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, default=datetime.isoformat).encode()
