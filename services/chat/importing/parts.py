"""The parts of a message beside text: a placeholder in the text, the whole in the details.

A picture is ``[image: cat.png]``; what has text of its own follows its placeholder, so that it is
found: ``[code: python]`` and the code.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from pgcorpus.services.chat.importing.rules import ConversationDraft, compact

UNKNOWN_LABEL: Final = 40
"""Characters of an unknown kind's name that a placeholder shows."""

NO_NAME: Final = frozenset({"", "unknown"})


class Kind(NamedTuple):
    """The placeholder of one kind of part.

    Attributes:
        label: First word of the placeholder; None shows the text alone.
        names: Fields of which the first that is given names the part in the placeholder.
        texts: Fields that hold its text, or parts again.
        arguments: The field that holds what a tool was called with.
        alone: Whether it is shown without text, too: a picture says something, no code nothing.
    """

    label: str | None = None
    names: tuple[str, ...] = ()
    texts: tuple[str, ...] = ()
    arguments: str | None = None
    alone: bool = False


TEXTS: Final = ("summary", "title", "text", "content", "parts", "result", "output", "transcript")
"""Fields that hold the text of parts of which nothing is known."""

UNTOLD: Final = frozenset(
    {"chunks", "cut_off", "finished", "flags", "start_timestamp", "stop_timestamp", "truncated"}
)
"""Fields that repeat the text or say how it was shown."""

PLAIN: Final = Kind(texts=TEXTS)


@dataclass(slots=True)
class Spoken:
    """The text of one message, collected part by part.

    Attributes:
        draft: Where changes are recorded.
        kinds: What is known of the format's parts, by their ``content_type`` or ``type``.
        texts: In order, placeholders among them.
        parts: What is not text, without its text.
    """

    draft: ConversationDraft
    kinds: Mapping[str, Kind]
    texts: list[str] = field(default_factory=list)
    parts: list[dict[str, Any]] = field(default_factory=list)

    @property
    def content(self) -> str:
        """The whole text, empty when nothing is said."""
        return "\n\n".join(self.texts)

    def add(self, name: str, value: Any) -> None:
        """Add a text, a part or a list of both; *name* is the field's, for the history."""
        match value:
            case str():
                if value.strip():
                    self.texts.append(value)
            case list():
                for each in value:
                    self.add(name, each)
            case dict():
                self._add_part(name, value)
            case None:
                pass
            case _:
                self.texts.append(self.draft.text(name, value))

    def mention(self, label: str, names: Sequence[str | None]) -> None:
        """Add a placeholder for each thing, by its name if it has one."""
        self.texts += [placeholder(label, each) for each in names]

    def _add_part(self, name: str, part: dict[str, Any]) -> None:
        kind = self._kind(part)
        inner = Spoken(self.draft, self.kinds)
        for each in kind.texts:
            inner.add(f"{name}.{each}", part.get(each))
        said = inner.texts
        if kind.arguments is not None:
            said = [*said, *_arguments(part.get(kind.arguments))]
        if kind.label is None:
            self.texts += said
        elif said or kind.alone:
            header = placeholder(kind.label, _name(part, kind))
            self.texts.append("\n".join([header, "\n\n".join(said)]) if said else header)
        taken = {*kind.texts, kind.arguments} | UNTOLD
        rest = compact({key: value for key, value in part.items() if key not in taken})
        if kind.label is not None or rest.keys() - {"content_type", "type"}:
            self.parts.append(self.draft.detail(name, rest))
        self.parts += inner.parts

    def _kind(self, part: dict[str, Any]) -> Kind:
        given = part.get("content_type", part.get("type"))
        if not isinstance(given, str) or not given.strip():
            return PLAIN
        unknown = Kind(given[:UNKNOWN_LABEL], ("name", "filename", "title"), TEXTS, alone=True)
        return self.kinds.get(given, unknown)


def placeholder(label: str, name: str | None = None) -> str:
    """Return the placeholder of a part that is no text."""
    return f"[{label}: {name}]" if name else f"[{label}]"


def _name(part: dict[str, Any], kind: Kind) -> str | None:
    for each in kind.names:
        value = part.get(each)
        if isinstance(value, str) and value.strip() not in NO_NAME:
            return " ".join(value.split())
    return None


def _arguments(given: Any) -> list[str]:
    """List the arguments of a tool's call, a line for each."""
    if isinstance(given, dict):
        lines = [f"{key}: {_format_argument(value)}" for key, value in given.items()]
        return ["\n".join(lines)] if lines else []
    shown = _format_argument(given)
    return [shown] if shown.strip() else []


def _format_argument(value: Any) -> str:
    if value is None or isinstance(value, str):
        return value or ""
    return json.dumps(value, ensure_ascii=False, default=float)
