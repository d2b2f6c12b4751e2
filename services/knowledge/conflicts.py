"""The decision on a chunk whose identifier is taken."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Final

from pgcorpus.db.repositories.imports import Change
from pgcorpus.db.repositories.knowledge.chunks import ChunkRecord, Known
from pgcorpus.services.choices import OnConflict
from pgcorpus.services.importers.draft import Rule
from pgcorpus.services.importers.report import Outcome
from pgcorpus.services.knowledge.rules import Normalised

FIELDS: Final = tuple(field.name for field in fields(ChunkRecord))


@dataclass(frozen=True, slots=True)
class Stored:
    """A chunk that has the identifier already.

    Attributes:
        known: Its key, its hash and the file that wrote it.
        record: The chunk; None when its hash is the only one that is compared.
    """

    known: Known
    record: ChunkRecord | None


@dataclass(frozen=True, slots=True)
class Decision:
    """The outcome for a chunk, and what is written.

    Attributes:
        outcome: How it counts.
        changes: What goes into the history.
        same_text: Whether its title and content are what is stored afterwards.
        reason: Why it is rejected, or None.
    """

    outcome: Outcome
    changes: list[Change]
    same_text: bool = True
    reason: str | None = None


def decide(
    incoming: Normalised,
    stored: Stored | None,
    *,
    file: str,
    place: str,
    first: str | None,
    on_conflict: OnConflict,
    kept: Collection[tuple[str, str, str]] = (),
) -> Decision:
    """Decide what becomes of one chunk.

    Args:
        incoming: The chunk.
        stored: What has its identifier, or None.
        file: Full path of the file that it comes from.
        place: Where it stands, for messages.
        first: Where this run has met the identifier first, or None when it has not. That chunk has
            decided: two of one run do not take turns in replacing each other, run after run.
        on_conflict: What to do when the texts differ.
        kept: Earlier decisions to keep a text: an identifier, the text that came, the text that
            stayed. What was decided once is not asked again.
    """
    if stored is None:
        return Decision("added", incoming.changes)
    if stored.known.record_hash == incoming.record_hash or stored.record is None:
        return Decision("unchanged", [])
    given, there = incoming.record, stored.record
    different = [name for name in FIELDS if getattr(given, name) != getattr(there, name)]
    same_words = given.content == there.content
    from_here = stored.known.imported_from in {None, file}
    wins = first is None and (from_here if same_words else on_conflict == "update")
    if different and wins:
        replaced = _list_differences(different, there, given, Rule.REPLACED, incoming.names)
        return Decision("updated", incoming.changes + replaced)
    if on_conflict == "reject" and (given.chunk_id, given.content, there.content) in kept:
        on_conflict = "keep"
    if same_words or on_conflict == "keep":
        rule = Rule.DUPLICATE if same_words else Rule.KEPT
        left = _list_differences(different, given, there, rule, incoming.names)
        same_text = same_words and given.title == there.title
        return Decision("unchanged", incoming.changes + left, same_text)
    if first is not None and on_conflict == "update":
        reason = (
            f"{given.chunk_id!r} at {place} has another text than at {first}, where it stands "
            "first; import the one that is meant alone, or try this one again: "
            "pgcorpus import retry --on-conflict update"
        )
        return Decision("rejected", [], same_text=False, reason=reason)
    writer = stored.known.imported_from
    reason = (
        f"{given.chunk_id!r} is stored with a different text, "
        f"{'made by code' if writer is None else f'from {writer}'}; to decide between them: "
        "--on-conflict keep or --on-conflict update"
    )
    return Decision("rejected", [], same_text=False, reason=reason)


def _list_differences(
    fields: Sequence[str],
    original: ChunkRecord,
    stored: ChunkRecord,
    rule: Rule,
    names: Mapping[str, str],
) -> list[Change]:
    """List the fields that differ, by the names that the file has for them."""
    changes = [
        Change(
            names.get(field, field),
            _as_json(getattr(original, field)),
            _as_json(getattr(stored, field)),
            rule.value,
        )
        for field in fields
        if field != "extra"
    ]
    before, after = _list_extra(original.extra), _list_extra(stored.extra)
    return changes + [
        Change(name, before.get(name), after.get(name), rule.value)
        for name in dict.fromkeys([*before, *after])
        if name not in before or name not in after or before[name] != after[name]
    ]


def _list_extra(extra: Mapping[str, Any]) -> dict[str, Any]:
    """List the fields that no rule took, by their names in the file."""
    nested = extra.get("metadata")
    if not isinstance(nested, dict):
        return dict(extra)
    top = {name: value for name, value in extra.items() if name != "metadata"}
    return top | {f"metadata.{name}": value for name, value in nested.items()}


def _as_json(value: Any) -> Any:
    """Return the value as JSON."""
    if isinstance(value, frozenset):
        return sorted(value)
    return value if value is None or isinstance(value, str | int | dict) else str(value)
