"""JSON of any length, split into the conversations it holds without being built as a whole.

Why this and not an incremental parser: the bounds of a value are found by a search for brackets
outside of texts, and the value between them is read by ``json``. So one that is broken, too long,
too deep or not UTF-8 fails alone, at a known byte, and its neighbours go in.
"""

from __future__ import annotations

import codecs
import io
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count
from typing import IO, Any, Final, Literal, overload

import numpy as np

from pgcorpus.db.errors import ImportFailed
from pgcorpus.services.importers.files import MAX_DEPTH, parse_json

MAX_BYTES: Final = 56 * 1024**2
"""Bytes of one conversation as JSON; images embedded in it may make it that long. Where it has
emoji it takes six times its length in memory, four of them as text; tests/prove/chat_memory.py
measures."""

CHUNK: Final = 1024**2
"""Bytes that are read at a time."""

PIECE: Final = 64 * 1024
"""Bytes that are escaped at a time: a run of characters in between is an object each."""

MAX_SCALAR_BYTES: Final = 10_000
"""Bytes of a number, true, false or null. Python reads numbers of up to 4,300 digits."""

MAX_LOCATED: Final = 255
"""Characters of a member's name in a locator."""

HOLDERS: Final = (
    *("conversations", "chats", "data", "items"),
    *("chatgpt", "openai", "claude", "anthropic", "openwebui"),
)
"""Fields of a file's outermost object whose list is one of conversations; who puts several exports
into one file has a list of each provider."""

_PLAIN = rb'[^"\[\]{}]*+'
# Groups are not possessive: before Python 3.11.5 one whose last turn fails stays where it failed
# (gh-106052).
_INSIDE = rb'[^"\\]*+(?:\\.[^"\\]*+)*'
_TO_BRACKET = re.compile(_PLAIN + rb'(?:"' + _INSIDE + rb'"' + _PLAIN + rb")*", re.DOTALL)
_TO_QUOTE = re.compile(_INSIDE, re.DOTALL)
_TO_DELIMITER = re.compile(rb"[^\s,\[\]{}\"]*+")
_SPACE = re.compile(rb"[ \t\r\n]*+")
_HOLDER = re.compile(rb'"(%s)"[ \t\r\n]*:[ \t\r\n]*\Z' % b"|".join(map(str.encode, HOLDERS)))
_HOLDER_BYTES: Final = 200
_FIRST_BYTES: Final = -64
"""Bytes of UTF-8 that begin no character are below, read with a sign (RFC 3629, section 3)."""
_NOT_ASCII = re.compile(r"[^\x00-\x7f]++")
BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"

_QUOTE, _COMMA, _COLON, _LIST, _CLOSE_LIST, _OBJECT, _CLOSE_OBJECT = b'",:[]{}'
_BRACKETS_OPEN = frozenset(b"[{")


@dataclass(frozen=True, slots=True)
class Damage:
    """Bytes of a conversation that are not UTF-8; each was read as U+FFFD.

    Attributes:
        offset: Of the first in the file, from 0.
        count: How many U+FFFD they became.
    """

    offset: int
    count: int


@dataclass(frozen=True, slots=True)
class StoredVectors:
    """Vectors that came along with a conversation.

    Attributes:
        model_name: What the store says made them, or None.
        texts: What each was made of.
        rows: float32 of shape ``(len(texts), dimensions)``.
    """

    model_name: str | None
    texts: Sequence[str]
    rows: np.ndarray


@dataclass(slots=True)
class Element:
    """A value of a file, as it stands.

    Attributes:
        locator: Where in the file, as a JSON path.
        offset: Of its first byte in the file, from 0.
        size_bytes: How many they are.
        text: Its bytes, or None when they are too many, or were read and can be read again.
        fault: Why it is not read, or None.
        vectors: What a legacy store has beside it, or None.
        reopen: Opens the file that it stands in, or None where it cannot be read again.
    """

    locator: str
    offset: int
    size_bytes: int
    text: bytes | None
    fault: str | None = None
    vectors: StoredVectors | None = None
    reopen: Callable[[], IO[bytes]] | None = None

    def read(self) -> tuple[Any, Damage | None]:
        """Return the value, and the bytes that had to be replaced to read it.

        Raises:
            ImportFailed: It is too long, too deep or not JSON.
        """
        given = self._again()
        if given is None or self.fault is not None:
            raise ImportFailed(self.fault)
        text, damage = self._decode(given)
        del given  # and the text: of a long value every copy counts
        if self.reopen is not None:
            self.text = None
        return parse_json(text, self._name, finite=False), damage

    def as_json(self) -> Any:
        """Return the value as it is kept when refused.

        It is the value, or its text where it is no JSON.
        """
        if (given := self._again()) is None:
            return None
        if self.fault is None:
            try:
                return parse_json(self._decode(given)[0], self._name)
            except ImportFailed:
                pass
        return given.decode(errors="replace")

    @property
    def _name(self) -> str:
        return f"it (byte {self.offset:,} of the file)"

    def _again(self) -> bytes | None:
        """Return the value's bytes, read once more if they were dropped."""
        if self.text is not None or self.reopen is None or self.fault is not None:
            return self.text
        with self.reopen() as file:
            file.seek(self.offset)
            return file.read(self.size_bytes)

    def _decode(self, text: bytes) -> tuple[str, Damage | None]:
        try:
            return _compact(text) if len(text) > CHUNK else text.decode(), None
        except UnicodeDecodeError as error:
            replaced = text.decode(errors="replace")
            count = replaced.count("\ufffd") - text.count("\ufffd".encode())
            return replaced, Damage(self.offset + error.start, count)


def elements(stream: IO[bytes], *, whole: bool = False) -> Iterator[Element]:
    """Yield the values of a file that may be conversations.

    Args:
        stream: A list; an object with a list in one of ``HOLDERS``; values one after the other, as
            in JSON lines; or a single value.
        whole: Take an object as it is, whatever lists it has.

    Raises:
        ImportFailed: From here on it is not JSON. What was yielded before stands.
    """
    file = _Reader(stream)
    first = file.next_byte()
    if first is None:
        raise ImportFailed("the file is empty")
    if first == _LIST:
        yield from file.list_elements("$")
        file.end()
    elif first == _OBJECT:
        yield from _objects(file, whole=whole)
    else:
        raise ImportFailed(f"the file is not JSON: '[' or '{{' expected at byte {file.offset:,}")


class Records:
    """The values of a file that may be records of one kind.

    Args:
        stream: A list; an object with a list under *holder*; or an object whose members are the
            records, each under its name.
        holder: Of the list.

    Attributes:
        listed: Whether a list was met: what else the object has is then no record.
    """

    def __init__(self, stream: IO[bytes], holder: str) -> None:
        self._stream = stream
        self._holder = holder
        self.listed = False

    def __iter__(self) -> Iterator[tuple[str | None, Element]]:
        """Yield each value in its order, with its name where it is a member of the object.

        Raises:
            ImportFailed: From here on it is not JSON. What was yielded before stands.
        """
        file = _Reader(self._stream)
        first = file.next_byte()
        if first is None:
            raise ImportFailed("the file is empty")
        if first == _LIST:
            yield from self._list(file, "$")
        elif first == _OBJECT:
            for name in file.members():
                if name == self._holder and file.next_byte() == _LIST:
                    yield from self._list(file, f"$.{name}")
                else:
                    yield name, file.value(f"$.{name[:MAX_LOCATED]}")
        else:
            raise ImportFailed(f"the file is not JSON: '[' or '{{' expected at byte {file.offset}")
        file.end()

    def _list(self, file: _Reader, path: str) -> Iterator[tuple[None, Element]]:
        self.listed = True
        for element in file.list_elements(path):
            yield None, element


def _objects(file: _Reader, *, whole: bool) -> Iterator[Element]:
    """Yield the values of a file that begins with an object."""
    begun = file.value("$") if whole else file.value("$", holders=True)
    if isinstance(begun, str):
        while isinstance(begun, str):
            yield from file.list_elements(f"$.{begun}")
            begun = file.value("$", depth=1, holders=True)
        file.end()
        return
    lines = 0
    while file.next_byte() == _OBJECT:
        line = [replace(begun, locator=f"$[{lines}]")]
        del begun  # or it would be in memory while the next is read
        yield line.pop()
        lines += 1
        begun = file.value(f"$[{lines}]")
    yield begun
    file.end()


class _Reader:
    """A stream of JSON, read value by value; memory of what was read is freed."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._data = stream.read(CHUNK + len(BYTE_ORDER_MARK)).removeprefix(BYTE_ORDER_MARK)
        self._at = 0
        self._behind = stream.tell() - len(self._data)

    @property
    def offset(self) -> int:
        """The place of the next byte in the file."""
        return self._behind + self._at

    def next_byte(self) -> int | None:
        """Return the next byte that is no space, without taking it; None at the end."""
        while True:
            self._at = self._end_of(_SPACE)
            if self._at < len(self._data):
                return self._data[self._at]
            if not self._more(self._at):
                return None

    def end(self) -> None:
        """Raise if anything follows.

        Raises:
            ImportFailed: Something does.
        """
        if self.next_byte() is not None:
            raise ImportFailed(f"the file is not JSON: its end expected at byte {self.offset:,}")

    def list_elements(self, path: str) -> Iterator[Element]:
        """Yield the values of the list that begins here."""
        self._at += 1
        if self.next_byte() == _CLOSE_LIST:
            self._at += 1
            return
        for index in count():
            yield self.value(f"{path}[{index}]")
            following = self.next_byte()
            if following not in {_COMMA, _CLOSE_LIST}:
                raise self._describe_break("',' or ']' expected", following)
            self._at += 1
            if following == _CLOSE_LIST:
                return

    def members(self) -> Iterator[str]:
        """Yield the names in the object that begins here.

        The caller takes the value behind each.
        """
        self._at += 1
        if self.next_byte() == _CLOSE_OBJECT:
            self._at += 1
            return
        while True:
            self._expect(_QUOTE, "a name expected")
            name = self._scalar("$").read()[0]
            self._expect(_COLON, "':' expected")
            self._at += 1
            yield name
            following = self.next_byte()
            if following not in {_COMMA, _CLOSE_OBJECT}:
                raise self._describe_break("',' or '}' expected", following)
            self._at += 1
            if following == _CLOSE_OBJECT:
                return

    @overload
    def value(self, locator: str, *, depth: int = 0) -> Element: ...

    @overload
    def value(self, locator: str, *, depth: int = 0, holders: Literal[True]) -> Element | str: ...

    def value(self, locator: str, *, depth: int = 0, holders: bool = False) -> Element | str:
        """Return the value that begins here.

        Args:
            locator: Of the value.
            depth: How many arrays and objects of the value are open already.
            holders: Whether to stop before a list that may be one of conversations.

        Returns:
            The value, or the name of the field whose list begins here.

        Raises:
            ImportFailed: The file ends before the value does, or there is none.
        """
        if depth == 0 and self.next_byte() not in _BRACKETS_OPEN:
            return self._scalar(locator)
        offset = self.offset
        start, deepest = self._at, depth
        while True:
            start = self._to_bracket(start, offset)
            bracket = self._data[self._at]
            if holders and depth == 1 and bracket == _LIST and (name := self._holder(start)):
                return name
            self._at += 1
            depth += 1 if bracket in _BRACKETS_OPEN else -1
            if depth > deepest:
                deepest = depth
            elif depth == 0:
                return self._element(locator, offset, start, deepest)

    def _element(self, locator: str, offset: int, start: int, depth: int) -> Element:
        size = self.offset - offset
        text: bytes | None = self._data[start : self._at]
        fault = None
        if size > MAX_BYTES:
            text, fault = (
                None,
                f"it has {_mib(size)} MiB of JSON; at most {_mib(MAX_BYTES)} are read",
            )
        elif depth > MAX_DEPTH:
            fault = f"it is nested deeper than {MAX_DEPTH} levels"
        if size > CHUNK:  # or the text would be in memory twice until the next is read
            self._data = self._data[self._at :]
            self._behind, self._at = self._behind + self._at, 0
        return Element(locator, offset, size, text, fault)

    def _scalar(self, locator: str) -> Element:
        offset, start = self.offset, self._at
        following = self.next_byte()
        if following == _QUOTE:
            self._at += 1
            start = self._to_quote(start, offset)
        else:
            end = self._end_of(_TO_DELIMITER)
            while end == len(self._data) and end - start < MAX_SCALAR_BYTES and self._more(start):
                start, end = 0, self._end_of(_TO_DELIMITER)
            self._at = end
        if self.offset == offset:
            raise self._describe_break("a value expected", following)
        return self._element(locator, offset, start, 0)

    def _to_bracket(self, start: int, offset: int) -> int:
        """Go to the next bracket that is not in a text, and return where the value then begins."""
        while True:
            self._at = self._end_of(_TO_BRACKET)
            if self._at == len(self._data):
                start = self._further(start, offset)
            elif self._data[self._at] == _QUOTE:  # of a text that does not end in what is read
                self._at += 1
                start = self._to_quote(start, offset)
            else:
                return start

    def _to_quote(self, start: int, offset: int) -> int:
        """Go behind the quote that ends a text, and return where the value then begins."""
        while True:
            self._at = self._end_of(_TO_QUOTE)
            if self._at < len(self._data) and self._data[self._at] == _QUOTE:
                self._at += 1
                return start
            start = self._further(start, offset)

    def _further(self, start: int, offset: int) -> int:
        """Read on within a value, and return where it then begins in the buffer."""
        keep = self._at if self.offset - offset > MAX_BYTES else start
        if not self._more(keep):
            raise ImportFailed(
                f"the file ends at byte {self._behind + len(self._data):,}, in the middle of what "
                f"begins at byte {offset:,}"
            )
        return 0

    def _more(self, keep: int) -> bool:
        """Read on, and drop what is before *keep*; False at the end."""
        # More of what is long already, or it would be copied for every chunk; not much more, for
        # it would be in memory beside the value while that is imported.
        read = self._stream.read(max(CHUNK, (len(self._data) - keep) // 4))
        if read:
            self._data = self._data[keep:] + read
            self._behind += keep
            self._at -= keep
        return bool(read)

    def _end_of(self, pattern: re.Pattern[bytes]) -> int:
        found = pattern.match(self._data, self._at)
        return found.end() if found else self._at  # all of them match nothing, too

    def _holder(self, start: int) -> str | None:
        found = _HOLDER.search(self._data, max(start, self._at - _HOLDER_BYTES), self._at)
        return found[1].decode() if found else None

    def _expect(self, byte: int, expected: str) -> None:
        if (following := self.next_byte()) != byte:
            raise self._describe_break(expected, following)

    def _describe_break(self, expected: str, following: int | None) -> ImportFailed:
        if following is None:
            return ImportFailed(f"the file ends at byte {self.offset:,}: {expected}")
        return ImportFailed(f"the file is not JSON: {expected} at byte {self.offset:,}")


def _compact(text: bytes) -> str:
    """Decode UTF-8 of JSON as text that takes little memory.

    One emoji makes a text four bytes a character. Where nearly all of them are ASCII the others are
    escaped, so that it stays at one.

    Raises:
        UnicodeDecodeError: It is not UTF-8. ``start`` counts from the beginning of *text*.
    """
    characters = np.count_nonzero(np.frombuffer(text, np.int8) >= _FIRST_BYTES)
    if characters == len(text) or characters < len(text) / 2:
        return text.decode()
    escaped = io.StringIO()
    start = 0
    while start < len(text):
        try:
            piece, read = codecs.utf_8_decode(text[start : start + PIECE], "strict", False)
        except UnicodeDecodeError as error:
            error.start += start
            raise
        if not read:  # in the middle of a character at the very end
            raise UnicodeDecodeError("utf-8", text[start:], start, len(text), "unexpected end")
        escaped.write(_NOT_ASCII.sub(lambda run: json.dumps(run[0])[1:-1], piece))
        start += read
    return escaped.getvalue()


def _mib(size_bytes: int) -> str:
    return f"{size_bytes / 1024**2:,.1f}"
