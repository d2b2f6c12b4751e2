"""The results of a search: hits with their reasons, and what each leg did."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from pgcorpus.db.errors import SearchError

LegName = Literal["vector", "text", "fuzzy"]
Status = Literal["ok", "failed", "timed_out", "skipped"]


@dataclass(frozen=True, kw_only=True)
class Leg:
    """The part of one leg in a search.

    Attributes:
        name: ``vector``, ``text`` or ``fuzzy``.
        status: Whether it answered.
        candidates: Passages it found, at most the depth it was asked for.
        duration_ms: Its share of the statement's time, or None when it did not run or found none.
        reason: Why it did not answer, or what its answer lacks.
    """

    name: LegName
    status: Status
    candidates: int = 0
    duration_ms: float | None = None
    reason: str | None = None


@dataclass(frozen=True)
class LearnedVersion:
    """The version of a learned ranking that ordered a page.

    Attributes:
        scope: ``shared``, or the scope that learned it.
        version: Its number there.
    """

    scope: str
    version: int


@dataclass(frozen=True, kw_only=True)
class Hit:
    """A passage that was found, with its score, and the ranks and contributions behind it.

    Attributes:
        id: The passage's key.
        corpus: Whose passage it is.
        score: Sum of the contributions; a reranked hit has the reranker's.
        title: Of the passage.
        content: Of the passage.
        ranks: Leg → place in that leg, from 1. A leg that did not find the passage is absent.
        scores: Leg → the leg's own score in [0, 1].
        contributions: Leg → what it added to ``score``; ``boost`` and ``learned`` → what freshness
            and use, and what clicks have taught of the passage, added.
        metadata: The corpus's further columns.
        snippet: On one line, the words around those of the question, which are marked; the
            beginning of a content that holds none. None where snippets were not asked for.
    """

    id: Any
    corpus: str
    score: float
    title: str
    content: str
    ranks: Mapping[str, int]
    scores: Mapping[str, float]
    contributions: Mapping[str, float]
    metadata: Mapping[str, Any] = field(default_factory=dict)
    snippet: str | None = None


@dataclass(frozen=True, kw_only=True)
class Group:
    """Hits that have the same value in a column.

    Attributes:
        key: The column's value.
        hits: The best of them, best first.
        found: How many of the hits that were grouped have it, those that are not shown included.
    """

    key: Any
    hits: tuple[Hit, ...]
    found: int


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """The explanation of a page: its statement, plan, and what each leg gave to each hit.

    Attributes:
        statement: The SQL that was run, with ``%(name)s`` for each parameter.
        parameters: Their values; the question's vector as its length alone.
        settings: Those of its transaction.
        plan: PostgreSQL's, with times and buffers, as EXPLAIN gives it in JSON. The statement was
            run again for it.
        contributions: For each hit in order: leg → what it added to the score.
    """

    statement: str
    parameters: Mapping[str, Any]
    settings: Mapping[str, str]
    plan: Mapping[str, Any]
    contributions: tuple[Mapping[str, float], ...] = ()


class Explainer:
    """Explains a page; copies of a page have none, for it holds on to the database."""

    def __init__(self, explain: Callable[[], Explanation]) -> None:
        self.explain = explain

    def __deepcopy__(self, memo: object) -> None:
        """Return None: a copy does not hold on to the database."""

    def __reduce__(self) -> tuple[type[None], tuple[()]]:
        """Return None in a pickle, which does not hold on to the database."""
        return type(None), ()


@dataclass(frozen=True, kw_only=True)
class SearchPage:
    """A page of hits, with what is known of its completeness.

    Attributes:
        corpus: What was searched.
        mode: The mode asked for.
        fusion: How legs are joined, where the mode has several.
        question: As asked.
        degraded: Whether a leg that the mode calls for did not answer.
        legs: What each leg did.
        hits: Best first; grouped, those of the first group before those of the second.
        groups: The same in their groups, that of the best hit first; None where none were asked
            for.
        note: What a reader should know: why there are fewer hits than asked for, what was left out
            of the question, which leg stood in for another.
        offset: Hits before the page; of a grouped page, groups.
        stand_in: The reason why the offline model stands in for the corpus's own, or None.
        weights: Leg that answered → its weight; but for ``rrf`` their sum is 1.
        learned: The learned ranking that ordered the page, or None.
    """

    corpus: str
    mode: str
    fusion: str
    question: str
    degraded: bool
    legs: tuple[Leg, ...]
    hits: tuple[Hit, ...]
    groups: tuple[Group, ...] | None = None
    note: str | None = None
    offset: int = 0
    stand_in: str | None = None
    weights: Mapping[str, float] = field(default_factory=dict)
    learned: LearnedVersion | None = None
    explainer: Explainer | None = field(default=None, repr=False, compare=False)

    def explain(self) -> Explanation:
        """Explain the page: the statement, its plan, what each leg gave to each hit.

        The statement is run again, under EXPLAIN, and waited for: under asyncio call this in a
        thread.

        Raises:
            SearchError: No statement was run, for no leg could answer; or the page is a copy.
        """
        if self.explainer is None:
            raise SearchError(
                "there is nothing to explain: no leg could answer, or the page is a copy"
            )
        explanation = self.explainer.explain()
        return replace(explanation, contributions=tuple(hit.contributions for hit in self.hits))

    def as_json(self) -> dict[str, Any]:
        """Return the page as the command line prints it."""
        shown = asdict(replace(self, groups=None))
        del shown["explainer"], shown["groups"]
        for hit in shown["hits"]:
            del hit["corpus"]  # which the page has
            if hit["snippet"] is None:
                del hit["snippet"]
        if self.groups is not None:
            shown["groups"] = [
                {"key": each.key, "hits": [hit.id for hit in each.hits], "found": each.found}
                for each in self.groups
            ]
        return shown
