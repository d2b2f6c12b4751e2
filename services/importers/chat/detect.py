"""Which provider a conversation is from, by what it is made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol

from services.importers.chat import chatgpt, claude, openwebui
from services.importers.chat.rules import Parsed


class Reader(Protocol):
    """Reads one conversation; raises ``Unacceptable`` where it cannot be stored."""

    def __call__(self, raw: Any, *, strict: bool = False) -> Parsed: ...  # noqa: ANN401, D102


@dataclass(frozen=True, slots=True)
class Format:
    """How one provider writes a conversation.

    Attributes:
        read: One JSON value → a conversation that can be stored.
        recognises: Whether a JSON value is of this format, perhaps broken.
    """

    read: Reader
    recognises: Callable[[Any], bool]


FORMATS: Final[Mapping[str, Format]] = {
    each.SOURCE: Format(each.read, each.recognises) for each in (chatgpt, claude, openwebui)
}
"""Name → format; the names are also the ``source_type`` of conversations."""


def recognised(raw: Any) -> str | None:  # noqa: ANN401 - any JSON
    """The name of the format of one conversation, or None where it is of none."""
    return next((name for name, each in FORMATS.items() if each.recognises(raw)), None)
