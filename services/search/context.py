"""Contextual retrieval: hits among the turns around them, as a text for a prompt."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC
from typing import Any, Final, Self

from pgcorpus.db.errors import InvalidSearch
from pgcorpus.db.search import corpora
from pgcorpus.db.search.context import Turn, Window, order_of
from pgcorpus.db.search.corpus import Corpus
from pgcorpus.db.search.page import Hit
from pgcorpus.db.uow import UnitOfWork
from pgcorpus.services.choices import MAX_CONTEXT_TOKENS, MAX_NEIGHBOURS
from pgcorpus.services.embedding.tokens import cut, estimate
from pgcorpus.services.search.request import is_whole

UNTITLED: Final = "(untitled)"
APART: Final = "\n\n"
OMITTED: Final = "[...]"
"""The mark where turns between two others were left out, or at the end of one that was cut."""


_UNSEEN: Final = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")
"""Controls, and whatever makes a line read otherwise than it is stored."""

LINE_ENDS: Final = "\n\r\x0b\x0c\x1c-\x1e\x85\u2028\u2029"

_SPEAKER: Final = re.compile(
    rf"(^|[{LINE_ENDS}])(\s*)"
    rf"((?:user|assistant|system|tool)(?: \([^)\n]*\))?:\s*?(?=$|[{LINE_ENDS}]))"
)

_SOURCE: Final = re.compile(rf"(^|[{LINE_ENDS}])([^\S{LINE_ENDS}]*)(\[source:)", re.IGNORECASE)
"""A line of a content that begins like a citation."""


def on_one_line(text: str) -> str:
    """Return a text on one line; what would not be seen in it is escaped."""
    return _UNSEEN.sub(lambda found: f"\\u{ord(found[0]):04x}", " ".join(text.split()))


def quote_name(text: str) -> str:
    """Return a name for a header: one that could end or imitate the header is in quotes."""
    name = on_one_line(text)
    if not set(name) & set('[],"'):
        return name
    quoted = name.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + quoted.replace("[", "\\u005b").replace("]", "\\u005d") + '"'


@dataclass(frozen=True, kw_only=True)
class Excerpt:
    """A run of turns around one hit or several.

    Attributes:
        title: Of what it was taken from, or None.
        within: Its id.
        turns: In their order.
    """

    title: str | None
    within: Any
    turns: tuple[Turn, ...]

    @property
    def text(self) -> str:
        """The excerpt for a prompt; ``docs/how-to/retrieve-context.md`` has the format."""
        return APART.join(block for _, block in self.blocks())

    def blocks(self) -> Iterator[tuple[Turn | None, str]]:
        """Yield the parts of the text, each with its turn.

        The turn is None for the title, and where turns were left out.
        """
        yield None, _heading(self.title)
        last = self.turns[0].place
        for turn in self.turns:
            if turn.place > last + 1:
                yield None, OMITTED
            yield turn, _format_turn(turn)
            last = turn.place


@dataclass(frozen=True, kw_only=True)
class Context:
    """Hits among the turns around them.

    Attributes:
        excerpts: That of the best hit first.
        tokens: Of ``text``, estimated.
        left_out: Turns that ``max_tokens`` left no room for.
        missing: Ids of hits that are gone, or that the role may not see.
        note: What a reader should know of what is not there.
    """

    excerpts: tuple[Excerpt, ...] = ()
    tokens: int = 0
    left_out: int = 0
    missing: tuple[Any, ...] = ()
    note: str | None = None

    @property
    def text(self) -> str:
        """All excerpts, ready for a prompt."""
        return APART.join(excerpt.text for excerpt in self.excerpts)

    @property
    def truncated(self) -> bool:
        """True if ``max_tokens`` left something out."""
        return self.left_out > 0 or any(t.is_cut for each in self.excerpts for t in each.turns)

    def as_json(self) -> dict[str, Any]:
        """Return the context as the command line prints it."""
        shown = asdict(self) | {"truncated": self.truncated, "text": self.text}
        for excerpt in shown["excerpts"]:
            for turn in excerpt["turns"]:
                del turn["title"], turn["within"]  # which the excerpt has
                for name in ("heading", "citation"):
                    if turn[name] is None:
                        del turn[name]
        return shown


@dataclass(frozen=True, kw_only=True)
class ContextRequest:
    """A request for context, checked as far as that needs no database."""

    corpus: Corpus | None
    hits: tuple[Any, ...]
    before: int
    after: int
    max_tokens: int | None

    @classmethod
    def of(cls, hits: Hit | Iterable[Hit], before: int, after: int, max_tokens: int | None) -> Self:
        """Check the arguments of ``SearchService.context``."""
        given = (hits,) if isinstance(hits, Hit) else tuple(hits)
        if not all(isinstance(hit, Hit) for hit in given):
            raise InvalidSearch("a context is of hits, as a page has them")
        for side, turns in (("before", before), ("after", after)):
            if not is_whole(turns, 0, MAX_NEIGHBOURS):
                raise InvalidSearch(f"{side} must be 0 to {MAX_NEIGHBOURS} turns, not {turns!r}")
        if max_tokens is not None and not is_whole(max_tokens, 1, MAX_CONTEXT_TOKENS):
            raise InvalidSearch(
                f"max_tokens must be 1 to {MAX_CONTEXT_TOKENS:,}, not {max_tokens!r}"
            )
        names = sorted({hit.corpus for hit in given})
        if len(names) > 1:
            raise InvalidSearch(f"a context is of one corpus, not of {', '.join(names)}")
        corpus = corpora.get_corpus(names[0]) if names else None
        if corpus is not None:
            order_of(corpus)
        return cls(
            corpus=corpus,
            hits=tuple(dict.fromkeys(hit.id for hit in given)),
            before=before,
            after=after,
            max_tokens=max_tokens,
        )

    def answer(self, work: UnitOfWork) -> Context:
        """Read the context, in one statement."""
        if self.corpus is None:
            return Context()
        windows = work.searches.surroundings(
            self.corpus, self.hits, before=self.before, after=self.after
        )
        missing = tuple(hit for hit in self.hits if hit not in windows)
        unit = order_of(self.corpus).unit
        return assemble(windows, max_tokens=self.max_tokens, missing=missing, unit=unit)


def assemble(
    windows: Mapping[Any, Window],
    *,
    max_tokens: int | None = None,
    missing: Sequence[Any] = (),
    unit: str = "turn",
) -> Context:
    """Merge windows into excerpts within the number of tokens.

    Args:
        windows: Hit → its window, the best hit first.
        max_tokens: Of the text, at most.
        missing: Ids of hits without a window.
        unit: The word for a passage, in notes.
    """
    rank = {hit: place for place, hit in enumerate(windows)}
    runs = sorted(
        (tuple(run[place] for place in sorted(run)) for run in _merge(windows.values())),
        key=lambda run: min(rank[turn.id] for turn in run if turn.is_hit),
    )
    kept = runs if max_tokens is None or not runs else _within(runs, rank, max_tokens)
    context = Context(
        excerpts=tuple(
            Excerpt(title=run[0].title, within=run[0].within, turns=run) for run in kept if run
        ),
        left_out=sum(map(len, runs)) - sum(map(len, kept)),
        missing=tuple(missing),
    )
    lost = rank.keys() - {turn.id for run in kept for turn in run}
    return replace(context, tokens=estimate(context.text), note=_note(context, len(lost), unit))


def _merge(windows: Iterable[Window]) -> list[dict[int, Turn]]:
    """Merge windows that overlap or touch."""
    runs: dict[Any, list[dict[int, Turn]]] = {}
    for window in windows:
        joined = dict(window)
        of_same = runs.setdefault(next(iter(window.values())).within, [])
        apart = []
        for run in of_same:
            if _continues(run, joined):
                joined |= run
            else:
                apart.append(run)
        of_same[:] = [*apart, joined]
    return [run for of_same in runs.values() for run in of_same]


def _continues(one: Window, other: Window) -> bool:
    """Return whether two windows are of one path, and nothing stands between them.

    Those that share a turn are, unless they part: two turns at one place are alternatives. Those
    that share none are where one branch goes on from one to the other.
    """
    shared = one.keys() & other.keys()
    if shared:
        return all(one[place].id == other[place].id for place in shared)
    first, second = sorted((one, other), key=min)
    last, following = first[max(first)], second[min(second)]
    return last.place + 1 == following.place and last.branch == following.branch


def _within(
    runs: Sequence[tuple[Turn, ...]], rank: Mapping[Any, int], max_tokens: int
) -> list[tuple[Turn, ...]]:
    """Choose what fits: hits, the best first, and then turns, the nearest to a kept hit first.

    A turn is kept only if those between it and its hit are. The best hit is cut where it alone is
    too long.
    """
    # Two branches may share their past: a hit in it counts where the better hits are.
    places: dict[Any, tuple[int, int]] = {}
    for n, run in enumerate(runs):
        for i, turn in enumerate(run):
            places.setdefault(turn.id, (n, i))
    kept: set[tuple[int, int]] = set()
    opened: set[int] = set()
    left = max_tokens

    def fits(n: int, i: int) -> bool:
        nonlocal left
        tokens = _tokens(runs[n], i, opened=n in opened)
        if tokens > left:
            return False
        kept.add((n, i))
        opened.add(n)
        left -= tokens
        return True

    best_run, best = places[next(iter(rank))]
    if _tokens(runs[best_run], best, opened=False) > max_tokens:
        shortened = _shorten(runs[best_run][best], max_tokens)
        return [] if shortened is None else [(shortened,)]
    edge = deque(places[hit] for hit in rank if fits(*places[hit]))
    tried = set(edge)
    while edge:  # from hits outwards, step by step
        n, i = edge.popleft()
        for beside in ((n, i - 1), (n, i + 1)):
            if beside not in tried and 0 <= beside[1] < len(runs[n]):
                tried.add(beside)
                if fits(*beside):
                    edge.append(beside)
    return [
        tuple(turn for i, turn in enumerate(run) if (n, i) in kept) for n, run in enumerate(runs)
    ]


def _tokens(run: Sequence[Turn], i: int, *, opened: bool) -> int:
    """Return the tokens that a turn adds to the text, at most.

    Args:
        run: Whose turn it is.
        i: Which.
        opened: Whether a turn of the run is in the text already.
    """
    tokens = estimate(_format_turn(run[i]) + APART)
    if not opened:
        tokens += estimate(_heading(run[i].title) + APART)
    # Turns are left out only between hits, or are not there.
    if (opened and run[i].is_hit) or (i and run[i].place > run[i - 1].place + 1):
        tokens += estimate(OMITTED + APART)
    return tokens


def _shorten(turn: Turn, max_tokens: int) -> Turn | None:
    """Shorten the turn of a hit between words; None where there is no room for any."""
    beside = replace(turn, content="", is_cut=True)
    room = max_tokens - estimate(_heading(turn.title) + APART + _format_turn(beside))
    content, _ = cut(turn.content, max(room, 0))
    if not turn.content[len(content) :][:1].isspace():
        words = content.rsplit(maxsplit=1)
        # Scripts without spaces are cut between characters.
        content = words[0] if len(words) > 1 and 2 * len(words[0]) > len(content) else content
    return replace(turn, content=content.rstrip(), is_cut=True) if content.strip() else None


def _heading(title: str | None) -> str:
    return f"# {on_one_line(title or '') or UNTITLED}"


def _format_turn(turn: Turn) -> str:
    if turn.citation is not None:
        return _format_cited(turn, turn.citation)
    time = f"({turn.time.astimezone(UTC):%Y-%m-%d %H:%M} UTC)" if turn.time else ""
    speaker = " ".join(each for each in (turn.role, time) if each)
    said = _SPEAKER.sub(r"\1\2\\\3", turn.content)  # no turn is made up within another
    content = f"{said} {OMITTED}" if turn.is_cut else said
    return f"{speaker}:\n{content}" if speaker else content


def _format_cited(turn: Turn, citation: str) -> str:
    """Format a passage below a line with its citation and heading, which its content has not."""
    source = on_one_line(citation).replace("]", "\\u005d")
    heading = on_one_line(turn.heading or "")
    content = _SOURCE.sub(r"\1\2\\\3", turn.content)
    content = f"{content} {OMITTED}" if turn.is_cut else content
    return f"[source: {source}] {heading}".rstrip() + f"\n{content}"


def _note(context: Context, hits_left_out: int, unit: str) -> str | None:
    notes = []
    if context.missing:
        notes.append(f"{_format_count(len(context.missing), 'hit')} gone meanwhile")
    if context.left_out:
        among = f", {_format_count(hits_left_out, 'hit')} among them" if hits_left_out else ""
        left_out = _format_count(context.left_out, unit)
        notes.append(f"max_tokens left no room for {left_out}{among}")
    if any(turn.is_cut for each in context.excerpts for turn in each.turns):
        notes.append("the best hit alone was too long, and is cut")
    return "; ".join(notes) or None


def _format_count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
