"""The provider of a conversation, detected by its fields."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol

from pgcorpus.services.chat.importing import chatgpt, chroma, claude, openwebui, pgcorpus
from pgcorpus.services.chat.importing.rules import Parsed


class Reader(Protocol):
    """Reads one conversation; raises ``Unacceptable`` where it cannot be stored."""

    def __call__(self, raw: Any, *, strict: bool = False) -> Parsed: ...  # noqa: D102


@dataclass(frozen=True, slots=True)
class Format:
    """The format of one provider.

    Attributes:
        read: One JSON value → a conversation that can be stored.
        recognises: Whether a JSON value is of this format, perhaps broken.
        marks: What its JSON has one of: without it, a value need not be parsed to be told apart.
        accepts: What is taken for it where it alone is asked for; None: what it recognises.
    """

    read: Reader
    recognises: Callable[[Any], bool]
    marks: tuple[bytes, ...]
    accepts: Callable[[Any], bool] | None = None


FORMATS: Final[Mapping[str, Format]] = {
    chatgpt.SOURCE: Format(chatgpt.read, chatgpt.recognises, (b'"mapping"',)),
    claude.SOURCE: Format(claude.read, claude.recognises, (b'"chat_messages"',)),
    openwebui.SOURCE: Format(
        openwebui.read, openwebui.recognises, (b'"chat"', b'"messages"'), openwebui.accepts
    ),
}
"""The formats of the providers; the names are also the ``source_type`` of conversations."""

READERS: Final[Mapping[str, Format]] = {
    **FORMATS,
    chroma.SOURCE: Format(chroma.read, chroma.recognises, (b'"documents"',)),
    pgcorpus.SOURCE: Format(pgcorpus.read, pgcorpus.recognises, (b'"pgcorpus-chat"',)),
}
"""Every reader, by the name that ``--format`` takes."""
