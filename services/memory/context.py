"""The context of an agent's answer: memories and episodes within a number of tokens."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from itertools import chain, zip_longest
from operator import itemgetter
from typing import Any, Final, Literal

from pgcorpus.db.errors import InvalidValue
from pgcorpus.db.search.page import SearchPage
from pgcorpus.services.choices import MAX_CONTEXT_TOKENS
from pgcorpus.services.embedding.tokens import cut, estimate
from pgcorpus.services.memory.records import Episode, EpisodeRecall, Memory, Recall
from pgcorpus.services.search.context import APART, LINE_ENDS, OMITTED, UNTITLED, quote_name
from pgcorpus.services.search.request import is_whole

EPISODE_TOKENS: Final = 400
"""Tokens of what is told of an episode, so that a long one leaves room for others."""

QUOTABLE: Final = 40
"""Characters of a quotation; that less stands in an episode may be chance, unless it is part of
it."""

LEAST_TOKENS: Final = 16
"""The least that a text is cut to: less says nothing."""

TOLD: Final = {
    "outcome": "Outcome",
    "interruption_reason": "Interrupted",
    "time_context": "When",
}
"""Parts of an episode that are told beside its summary: key of ``llm_tags`` → label."""


_HEADER: Final = re.compile(rf"(^|[{LINE_ENDS}])(\s*)(\[(?:mem|ep)_)")
"""A line of a content that begins like that of a source."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """A memory or an episode, as a prompt has it.

    Attributes:
        kind: ``memory``: what was said, and how; ``episode``: what came of it, why and when.
        id: ``mem_...`` or ``ep_...``.
        source: Where it is from: id, date, and the conversation or the episode's title.
        content: What is told of it.
        score: Of the search; those of memories and of episodes cannot be compared.
        episode_id: Of the episode above, which this memory is part of, or None.
        is_cut: Whether the content ends early.
    """

    kind: Literal["memory", "episode"]
    id: str
    source: str
    content: str
    score: float | None
    episode_id: str | None = None
    is_cut: bool = False

    @property
    def text(self) -> str:
        """The part as text.

        It has a line with its source, and below it the content, which has no such line.
        """
        content = _HEADER.sub(r"\1\2\\\3", self.content)
        return f"[{self.source}]\n{content}"


@dataclass(frozen=True, kw_only=True)
class MemoryContext:
    """Memories and episodes that answer a question.

    Attributes:
        parts: In the order of the text: the best first, and the memories of an episode below it.
        tokens: Of ``text``, estimated.
        left_out: Ids of what was found and ``max_tokens`` left no room for, best first.
        repeated: Ids of memories that another part tells already.
        note: What a reader should know of what is not there.
        pages: The searches, of memories and of episodes.
    """

    parts: tuple[Part, ...] = ()
    tokens: int = 0
    left_out: tuple[str, ...] = ()
    repeated: tuple[str, ...] = ()
    note: str | None = None
    pages: tuple[SearchPage, ...] = field(default=(), repr=False)

    @property
    def text(self) -> str:
        """All parts, ready for a prompt."""
        return APART.join(part.text for part in self.parts)

    @property
    def degraded(self) -> bool:
        """True if a leg of a search did not answer, so that something may not have been found."""
        return any(page.degraded for page in self.pages)

    def as_json(self) -> dict[str, Any]:
        """Return the context as the command line prints it."""
        shown = asdict(replace(self, pages=()))
        del shown["pages"]
        return shown | {"degraded": self.degraded, "text": self.text}


def check_tokens(max_tokens: int) -> int:
    """Return the limit of a context, or raise if it cannot be one.

    Raises:
        InvalidValue: It is not 1 to ``MAX_CONTEXT_TOKENS``.
    """
    if not is_whole(max_tokens, 1, MAX_CONTEXT_TOKENS):
        raise InvalidValue(f"max_tokens must be 1 to {MAX_CONTEXT_TOKENS:,}, not {max_tokens!r}")
    return max_tokens


@dataclass(frozen=True)
class _Found:
    """A part, with what decides whether another part has its words already."""

    part: Part
    words: tuple[str, ...] = ()
    duplicate_of: str | None = None
    memory_ids: tuple[str, ...] = ()

    @property
    def tokens(self) -> int:
        return estimate(self.part.text + APART)

    def tells(self, memory: _Found) -> bool:
        """Return whether this part makes the memory superfluous."""
        if self.part.kind == "memory":
            return self.words == memory.words or self.part.id == memory.duplicate_of
        content = _line(self.part.content)
        quotable = memory.part.id in self.memory_ids or sum(map(len, memory.words)) >= QUOTABLE
        return quotable and all(words in content for words in memory.words)


def assemble(recall: Recall, episodes: EpisodeRecall, *, max_tokens: int) -> MemoryContext:
    """Merge memories and episodes into a context within the number of tokens.

    Memories and episodes take turns, by their ranks, a memory first. What does not fit is passed
    over for what does; the best of all is cut where it alone is too long. A memory is not told
    again where an episode or a memory that is told says the same. The same question to the same
    memories gives the same text.

    Args:
        recall: The memories.
        episodes: The episodes.
        max_tokens: Of the text, at most.
    """
    turns = zip_longest(map(_of_memory, recall.memories), map(_of_episode, episodes.episodes))
    found = [each for each in chain.from_iterable(turns) if each is not None]
    kept = _choose_fitting(found, max_tokens)
    told = {each.part.id for each in kept}
    left = [each for each in found if each.part.id not in told]
    repeated = [each for each in left if _is_told(each, kept)]
    context = MemoryContext(
        parts=_group(kept),
        left_out=tuple(each.part.id for each in left if each not in repeated),
        repeated=tuple(each.part.id for each in repeated),
        pages=(recall.page, episodes.page),
    )
    return replace(context, tokens=estimate(context.text), note=_note(context))


def _is_told(found: _Found, kept: Sequence[_Found]) -> bool:
    return found.part.kind == "memory" and any(other.tells(found) for other in kept)


def _choose_fitting(found: Sequence[_Found], max_tokens: int) -> list[_Found]:
    """Choose the parts that fit, without those whose words another has, in their order."""
    kept: list[_Found] = []
    for each in found:
        if _is_told(each, kept):
            continue
        # An episode makes room by what it quotes.
        is_episode = each.part.kind == "episode"
        others = [o for o in kept if not (is_episode and _is_told(o, [each]))]
        if each.tokens + sum(other.tokens for other in others) <= max_tokens:
            kept = [*others, each]
    if not kept and found and (part := _shorten(found[0].part, max_tokens)) is not None:
        kept = [replace(found[0], part=part)]
    return kept


def _group(kept: Sequence[_Found]) -> tuple[Part, ...]:
    """Put memories below the episode that they are part of, in its order; else keep the order."""
    of: dict[str, tuple[str, int]] = {}
    for each in kept:
        for place, memory_id in enumerate(each.memory_ids):
            of.setdefault(memory_id, (each.part.id, place))
    groups: dict[str, list[tuple[int, Part]]] = {}
    for each in kept:
        episode_id, place = of.get(each.part.id, (None, -1))
        part = replace(each.part, episode_id=episode_id)
        groups.setdefault(episode_id or part.id, []).append((place, part))
    by_place = (sorted(group, key=itemgetter(0)) for group in groups.values())
    return tuple(part for group in by_place for _, part in group)


def _of_memory(memory: Memory) -> _Found:
    place = f"conversation {quote_name(memory.conversation_id)}, exchange {memory.sequence_index}"
    said = (("human", memory.human), ("assistant", memory.assistant))
    part = Part(
        kind="memory",
        id=memory.id,
        source=f"{memory.id}, {_time(memory.created_at)}, {place}, {quote_name(memory.source)}",
        content="\n".join(f"{speaker}: {words}" for speaker, words in said if words.strip()),
        score=memory.score,
    )
    return _Found(part, tuple(_line(words) for _, words in said), memory.duplicate_of)


def _of_episode(episode: Episode) -> _Found:
    title = quote_name(episode.title) or UNTITLED
    content, is_cut = _cut("\n".join(_describe_episode(episode)), EPISODE_TOKENS)
    part = Part(
        kind="episode",
        id=episode.id,
        source=f"{episode.id}, {_time(episode.created_at)}, episode {title}, "
        f"{quote_name(episode.source)}",
        content=content,
        score=episode.score,
        is_cut=is_cut,
    )
    return _Found(part, memory_ids=episode.memory_ids)


def _describe_episode(episode: Episode) -> Iterator[str]:
    """Yield the lines of an episode.

    They are a model's summary and tags; without a summary, the conversation.
    """
    tags = episode.llm_tags
    yield str(tags["summary"]) if tags.get("summary") else episode.content
    for key, label in TOLD.items():
        if value := tags.get(key):
            yield f"{label}: {value}"


def _shorten(part: Part, max_tokens: int) -> Part | None:
    room = max_tokens - estimate(replace(part, content="").text)
    if room < LEAST_TOKENS:
        return None
    content, _ = _cut(part.content, room)
    return replace(part, content=content, is_cut=True)


def _cut(text: str, most_tokens: int) -> tuple[str, bool]:
    """Cut a text to a number of tokens, if possible between words; return whether it was cut."""
    if estimate(text) <= most_tokens:
        return text, False
    kept, _ = cut(text, most_tokens - estimate(f" {OMITTED}"))
    words = kept.rsplit(maxsplit=1)
    if len(words) > 1 and 2 * len(words[0]) > len(kept):
        kept = words[0]
    return f"{kept.rstrip()} {OMITTED}", True


def _note(context: MemoryContext) -> str | None:
    notes = []
    if context.left_out:
        notes.append(f"max_tokens left no room for {', '.join(context.left_out)}")
    if any(part.is_cut and part.kind == "memory" for part in context.parts):
        notes.append("the best memory alone was too long, and is cut")
    notes += [
        f"{page.corpus}: the {leg.name} leg did not answer ({leg.reason or leg.status})"
        for page in context.pages
        for leg in page.legs
        if leg.status != "ok" and page.degraded
    ]
    return "; ".join(notes) or None


def _line(text: str) -> str:
    return " ".join(text.split())


def _time(moment: datetime) -> str:
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M} UTC"
