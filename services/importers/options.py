"""Options of importers, as values: each corpus lists those that its own takes."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Final

from pgcorpus.services.importers.language import AUTO, DEFAULT_LANGUAGE, NAMES


@dataclass(frozen=True, kw_only=True)
class Option:
    """An option that a caller may give.

    Attributes:
        name: Of the parameter that takes it.
        kind: Its type: a class, ``X | None``, or the ``Literal`` of its words.
        help: For people.
        default: What it is where it is not given.
        flags: How it is called on the command line; by default after its name.
        metavar: What stands for its value in the help.
        known: The only values it has, where they are too many for a ``Literal``.
        bounds: The least and the greatest number, or None for no number.
    """

    name: str
    kind: Any
    help: str
    default: Any = None
    flags: tuple[str, ...] = ()
    metavar: str | None = None
    known: Collection[str] = ()
    bounds: tuple[int, int] | None = None


STRICT: Final = Option(
    name="strict", kind=bool, default=False, help="Reject what would have to be changed."
)
DRY_RUN: Final = Option(
    name="dry_run", kind=bool, default=False, help="Report what would be done; write nothing."
)
LANGUAGE: Final = Option(
    name="language",
    kind=str,
    default=DEFAULT_LANGUAGE,
    metavar="auto|NAME",
    known=(AUTO, *NAMES),
    help="Text search configuration of what names no language; auto finds it for each chunk or "
    "message.",
)
