"""Pages made from the database's answer: legs, reasons, the order of a reranker, groups."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final, get_args

from pgcorpus.db.search.answer import Answer
from pgcorpus.db.search.ask import DEPTHS, Ask
from pgcorpus.db.search.likeness import THRESHOLD
from pgcorpus.db.search.page import Explainer, Group, Hit, LearnedVersion, Leg, LegName, SearchPage
from pgcorpus.db.search.words import MAX_WORDS
from pgcorpus.services.search.request import RERANKED, Prepared, Request, Reranker

MOST_GROUPED: Final = DEPTHS[-1]
"""Candidates of each leg that are grouped where fewer are of too few groups."""

AWAITED: Final = (
    "vectors of some passages are still being made: the vector leg does not find these yet"
)


def page_of(
    prepared: Prepared,
    answer: Answer | None,
    explainer: Explainer | None = None,
) -> SearchPage:
    """Build the page of an answer, not yet reranked, grouped or cut."""
    request, ask = prepared.request, prepared.ask
    notes = [request.question.note, *prepared.notes]
    legs = list(prepared.silent)
    if answer is not None:
        named = {leg.name for leg in legs}
        legs += [_leg(name, answer, ask) for name in ask.legs if name not in named]
        if _units(answer.hits, request) < request.end - ask.offset:
            notes.append(_why_fewer(request, ask, answer))
        if "vector" in ask.legs and answer.awaited:
            notes.append(AWAITED)
        first_depth = DEPTHS[0] if request.cuts_windows else ask.first_depth
        if request.offset and ask.depth > first_depth:
            notes.append(
                f"this far down, hits are ranked among {ask.depth} candidates of each leg; "
                "they may repeat hits of the first pages"
            )
        if request.offset and request.rerank and ask.limit > RERANKED:
            notes.append(
                f"this far down, {ask.limit} hits are reranked; they may repeat those of the first "
                "pages"
            )
    order = get_args(LegName)
    hits, found = ((), {}) if answer is None else (answer.hits, answer.found)
    return SearchPage(
        corpus=request.corpus.name,
        mode=request.mode,
        fusion=request.fusion,
        question=request.asked,
        degraded=any(leg.status != "ok" for leg in legs),
        legs=tuple(sorted(legs, key=lambda leg: order.index(leg.name))),
        hits=hits,
        groups=None if ask.group_by is None else _make_groups(hits, request, found),
        note="; ".join(note for note in notes if note) or None,
        offset=request.offset,
        stand_in=prepared.stand_in,
        weights={} if answer is None else answer.statement.weights,
        learned=_find_version(answer),
        explainer=explainer,
    )


def _find_version(answer: Answer | None) -> LearnedVersion | None:
    ranking = None if answer is None else answer.statement.ranking
    return None if ranking is None else LearnedVersion(ranking.scope, ranking.version)


def _leg(name: str, answer: Answer, ask: Ask) -> Leg:
    reasons = []
    if name == "vector" and answer.statement.foreign and ask.model is not None:
        reasons.append(
            f"{ask.model.name} knows {', '.join(ask.model.languages or ())}, and the question is "
            f"read in {', '.join(answer.statement.foreign)}"
            + (
                ": its leg weighs less"
                if ask.foreign < 1 and len(answer.statement.weights) > 1
                else ""
            )
        )
    if name == "text" and not answer.words_known:
        reasons.append(
            "no statistics of words that this role may read, so all weigh the same: run ANALYZE as "
            "the owner, who must be able to read pg_stats"
        )
    if name == "text" and answer.statement.look_up and answer.statement.look_up.left_out:
        reasons.append(f"scored by the {MAX_WORDS} rarest words of the question")
    if name == "fuzzy" and answer.statement.stops_early:
        reasons.append(f"of so many passages only those more alike than {THRESHOLD} are found")
    if name == "fuzzy" and (compared := answer.compared) not in {"", ask.question.words}:
        reasons.append(f"compared by {compared!r} of the question")
    candidates = answer.candidates.get(name, 0)
    if not candidates and any(hit.scores.get(name) for hit in answer.hits):
        reasons.append("it found none itself, and scored what the other legs found")
    return Leg(
        name=name,  # type: ignore[arg-type]
        status="ok",
        candidates=candidates,
        duration_ms=answer.durations_ms.get(name),
        reason="; ".join(reasons) or None,
    )


def _why_fewer(request: Request, ask: Ask, answer: Answer) -> str:
    """Explain why a page is not full."""
    found = sum(answer.candidates.values())
    asked_for = "hits" if request.group_by is None else "groups"
    if ask.group_by is not None and answer.is_full:
        return f"fewer groups than asked for: the best {ask.depth} hits are of no more"
    if request.group_by is not None and ask.group_by is None and len(answer.hits) == ask.limit:
        return f"fewer groups than asked for: the best {ask.limit} hits are of no more"
    if request.filters and answer.kept is not None:
        passages = "passage" if answer.kept == 1 else "passages"
        return f"fewer {asked_for} than asked for: the filters keep {answer.kept} {passages}"
    if answer.dropped:
        return (
            f"fewer {asked_for} than asked for: {answer.dropped} found by their vectors were less "
            f"similar than min_similarity {ask.min_similarity:g}"
        )
    if not found:
        return "no passage was found"
    return f"fewer {asked_for} than asked for: the legs found no more passages"


def finish_page(page: SearchPage, request: Request) -> SearchPage:
    """Rerank a page, group it, and cut it to the limit."""
    if request.rerank is None:
        return page
    page = _rerank(page, request.rerank)
    cut = slice(request.offset, request.end)
    if request.group_by is not None:
        groups = _make_groups(page.hits, request, {})[cut]
        return replace(page, groups=groups, hits=tuple(h for each in groups for h in each.hits))
    return replace(page, hits=page.hits[cut])


def find_deeper(ask: Ask, answer: Answer) -> int | None:
    """Return how many candidates may be of enough groups, where these are not, or None."""
    if ask.group_by is None or answer.groups >= ask.end or not answer.is_full:
        return None
    return next((depth for depth in DEPTHS if ask.depth < depth <= MOST_GROUPED), None)


def _units(hits: Sequence[Hit], request: Request) -> int:
    """Count the hits, or their groups."""
    return len(hits) if request.group_by is None else len(_split_groups(hits, request.group_by))


def _split_groups(hits: Sequence[Hit], group_by: str) -> list[list[Hit]]:
    """Split hits by their value of a column, in the order of the best of each."""
    groups: dict[str, list[Hit]] = {}
    for hit in hits:  # by a text, as a value may be a list or a mapping
        groups.setdefault(repr(hit.metadata[group_by]), []).append(hit)
    return list(groups.values())


def _make_groups(
    hits: Sequence[Hit], request: Request, found: Mapping[Any, int]
) -> tuple[Group, ...]:
    """Make groups of hits; *found* has how large a group is where these are not all of it."""
    return tuple(
        Group(
            key=_key(of[0], request),
            hits=tuple(of[: request.group_size]),
            found=found.get(of[0].id, len(of)),
        )
        for of in _split_groups(hits, request.group_by or "")
    )


def _key(hit: Hit, request: Request) -> Any:
    value = hit.metadata[request.group_by or ""]
    return tuple(value) if isinstance(value, list) else value


def _rerank(page: SearchPage, rerank: Reranker) -> SearchPage:
    """Return the hits in the order of the reranker; as they were where it fails."""
    try:
        scores = [float(score) for score in rerank(page.question, page.hits)]
        if len(scores) != len(page.hits) or not all(map(math.isfinite, scores)):
            raise ValueError(  # noqa: TRY301 - one way out for all that a reranker can do wrong
                f"{len(page.hits)} hits need as many finite scores, not {scores[:10]}"
            )
    except Exception as error:  # noqa: BLE001 - whatever a caller's function raises
        note = f"the reranker failed, so hits are in the order of the legs: {error!r}"
        notes = "; ".join(each for each in (page.note, note) if each)
        return replace(page, degraded=True, note=notes)
    scored = [
        replace(hit, score=score, scores={**hit.scores, "rerank": score})
        for hit, score in zip(page.hits, scores, strict=True)
    ]
    return replace(page, hits=tuple(sorted(scored, key=lambda hit: hit.score, reverse=True)))
