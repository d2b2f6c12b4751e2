"""A page of hits at a terminal: a block for each, which reads at any width."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

from rich.text import Text

from pgcorpus.services.cli.explanation import describe_leg
from pgcorpus.services.cli.output import cut, out, say, visible

if TYPE_CHECKING:
    from pgcorpus.db.search.page import Hit, Leg, SearchPage
    from pgcorpus.services.search.context import Context


TEXT_LINES: Final = 2
"""Lines of a hit's text."""

LEAST_CHARACTERS: Final = 20
"""A line's characters on the narrowest terminal; what is narrower breaks lines itself."""

INDENT: Final = "   "


def show_page(page: SearchPage, offset: int = 0, *, verbose: bool = False) -> None:
    """Print the hits, and of legs what a reader has to know.

    Args:
        page: What was found.
        offset: Hits before the page.
        verbose: Print each leg's numbers, too, and all metadata of each hit.
    """
    how = [page.corpus, page.mode, *([page.fusion] if page.mode == "hybrid" else [])]
    out.print(Text(visible(page.question), style="bold"), soft_wrap=True)
    out.print(Text(", ".join([*how, *(["offline model"] if page.stand_in else [])]), style="dim"))
    for place, hit, heading in _number(page, offset + 1):
        out.print()
        if heading is not None:
            out.print(heading, soft_wrap=True)
        _show_hit(place, hit, verbose=verbose)
    if page.hits:
        out.print()
    for leg in page.legs:
        if verbose or leg.status != "ok" or leg.reason:
            style = "dim" if leg.status == "ok" else ""
            out.print(Text(describe_leg(leg), style=style), soft_wrap=True)
    if page.learned:
        what = f"ranked by what clicks taught: version {page.learned.version}, {page.learned.scope}"
        out.print(Text(visible(what), style="dim"))
    if verbose and page.stand_in:
        say(f"note: {page.stand_in}")
    if page.note:
        say(f"note: {page.note}")


def show_context(context: Context) -> None:
    """Print the turns around hits, as a prompt would have them, hits in bold."""
    for excerpt in context.excerpts:
        for turn, block in excerpt.blocks():
            out.print()
            out.print(Text(visible(block), style="bold" if turn is None or turn.is_hit else ""))
    say(f"context: about {context.tokens} tokens")
    if context.note:
        say(f"note: {context.note}")


def _number(page: SearchPage, first: int) -> Iterator[tuple[str, Hit, Text | None]]:
    """Yield each hit with its number, and at the first of a group with the group's heading."""
    if page.groups is None:
        yield from ((f"{n}.", hit, None) for n, hit in enumerate(page.hits, start=first))
        return
    for n, group in enumerate(page.groups, start=first):
        count = "1 hit" if group.found == 1 else f"{group.found} hits"
        heading = Text(f"{n}. {visible(str(group.key))}, {count}", style="bold")
        yield "-", group.hits[0], heading
        yield from (("-", hit, None) for hit in group.hits[1:])


def _show_hit(place: str, hit: Hit, *, verbose: bool) -> None:
    width = max(LEAST_CHARACTERS, out.width - len(INDENT))
    beginning = f"{place:<{len(INDENT)}}{hit.score:.4f}  "
    title = cut(hit.title, max(LEAST_CHARACTERS, out.width - len(beginning)))
    line = Text.assemble(beginning, (visible(title), "bold"))
    out.print(line, soft_wrap=True)
    text = _text_of(hit, TEXT_LINES * width)
    lines = list(text.wrap(out, width))
    if len(lines) > TEXT_LINES:
        lines = lines[:TEXT_LINES]
        lines[-1].truncate(width - 1)
        lines[-1].rstrip()
        lines[-1].append("…")
    for each in lines:
        each.rstrip()
        out.print(Text.assemble(INDENT, each), soft_wrap=True)
    for known in _list_metadata(hit, verbose=verbose):
        # An identifier is there to be copied: it is never cut, and the terminal breaks it.
        out.print(Text(f"{INDENT}{visible(known)}", style="dim"), soft_wrap=True)


def _text_of(hit: Hit, characters: int) -> Text:
    if hit.snippet is None:
        return Text(visible(cut(hit.content, characters)))
    return _mark(hit.snippet, characters)


def _mark(snippet: str, characters: int) -> Text:
    """Return a snippet with its marked words in bold, which a file cannot show."""
    from pgcorpus.db.search.snippets import START, STOP
    from pgcorpus.services.search.request import MARKERS
    from pgcorpus.services.search.snippets import shorten

    before, after = ("", "") if out.is_terminal else MARKERS
    beginning, *parts = shorten(snippet, characters).split(START)
    text = Text(visible(beginning))
    for part in parts:
        marked, _, plain = part.partition(STOP)
        text.append(f"{before}{visible(marked)}{after}", style="bold yellow")
        text.append(visible(plain))
    return text


def _list_metadata(hit: Hit, *, verbose: bool) -> Iterator[str]:
    """Yield the lines below a hit: its labels, or with *verbose* the numbers and all columns."""
    from pgcorpus.db.search import corpora

    of: Mapping[str, Any] = {"id": hit.id, **hit.metadata}
    labels = [(name, of[name]) for name in corpora.get_corpus(hit.corpus).labels if of.get(name)]
    if not verbose:
        if labels:
            yield "  ".join(_write(value) for _, value in labels)
        return
    for name, score in hit.scores.items():
        rank = f"#{hit.ranks[name]}" if name in hit.ranks else "not among its best"
        gain = hit.contributions.get(name)
        added = "" if gain is None else f", adds {gain:.3f}"
        yield f"{name}: {score:.3f} {rank}{added}"
    for name, gain in hit.contributions.items():
        if name not in hit.scores:
            yield f"{name}: adds {gain:.3f}"
    for name, value in of.items():
        if value not in (None, "", [], {}):
            yield f"{name}: {_write(value)}"


def _write(value: Any) -> str:
    """Write a value on one line."""
    if isinstance(value, datetime):
        return f"{value:%Y-%m-%d %H:%M}"
    if isinstance(value, list):
        return ", ".join(map(_write, value))
    return " ".join(str(value).split())


def could_not_answer(leg: Leg) -> bool:
    """Return whether a leg failed, timed out or had no vectors.

    A text leg is skipped for what the question is, which is no failure.
    """
    return leg.status in {"failed", "timed_out"} or (leg.name, leg.status) == ("vector", "skipped")
