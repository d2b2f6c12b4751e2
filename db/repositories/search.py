"""Searches: the choice of a ranking statement, its parameters, its run, and its rows."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, NamedTuple

import numpy as np
import psycopg
from sqlalchemy import ColumnElement, func, select
from sqlalchemy.exc import DBAPIError
from sqlalchemy.util import await_only

from pgcorpus.db.repositories.base import Repository
from pgcorpus.db.search.context import Turn, Window, surroundings
from pgcorpus.db.search.corpus import SHOWN, Corpus
from pgcorpus.db.search.estimates import explain_matching, explain_own, read_estimate
from pgcorpus.db.search.legs import (
    FUZZY_THRESHOLDS,
    LARGE_FOR_FUZZY,
    LARGE_FUZZY_THRESHOLD,
    LONG_FOR_FUZZY,
    MAX_FUZZY_CHARACTERS,
    THRESHOLD_SETTING,
    UNSPACED_FEW_THRESHOLD,
    UNSPACED_THRESHOLDS,
    AskedModel,
)
from pgcorpus.db.search.options import Options
from pgcorpus.db.search.page import Hit
from pgcorpus.db.search.prelude import (
    SAMPLED_OF_SCOPE,
    SURELY_LARGE,
    ActiveRanking,
    Prelude,
    compile_prelude,
)
from pgcorpus.db.search.question import Question
from pgcorpus.db.search.ranking import Shape, compile_search
from pgcorpus.db.search.snippets import select_snippets
from pgcorpus.db.search.words import FETCH, FETCH_OF_SCOPE, MAX_WORDS, Lexicon, LookUp, look_up

FIRST_DEPTH: Final = 30
"""Candidates of each leg for pages that end within this number of hits. In the default fusion every
leg scores the candidates of all: with 100, nDCG@10 is the same on thirteen collections, to 0.0005.
The others count a leg's own candidates: on three collections they gain up to 0.014, and lose
0.008."""

DEPTHS: Final = (100, 1000, 11_000)
"""Candidates for pages that end beyond: the first of these that reaches the end. Depth does not
grow from page to page, or hits would move between pages that are shown and pages to come."""

FEW: Final = 2000
"""Passages up to which all are compared one by one: that is exact, and cheaper than an index that
passes over what a filter refuses."""

MOST_COMPARED: Final = 5000
"""Passages of a scope up to which all its vectors are compared, in 2 to 3 µs each."""

LEAST_INDEXED: Final = 4600
"""A scope of more vectors has an index of its own, which ``pgcorpus doctor`` asks for. Less than
``MOST_COMPARED``, as a search only estimates how large its scope is. Estimates of a sixth too much
were seen: a scope of a little less is then compared by its half vectors, exactly but slowly."""

MAX_KNOWN: Final = 10_000
"""Scopes of which a database remembers the languages and sizes."""

ESTIMATE_SECONDS: Final = 60.0
"""Seconds for which the planner's estimate of a scope's size will do."""

MAX_EF_SEARCH: Final = 1000
"""pgvector's own bound of ``hnsw.ef_search``."""

EF_HEADROOM: Final = 1.25
"""An HNSW scan keeps more than it gives: recall@10 at 100,000 x 3072 was 0.989 without."""

LEAST_EF_SEARCH: Final = 125
"""The least ``hnsw.ef_search``, however few hits are asked for: what an HNSW scan keeps decides how
near they are."""

INDEX_TUPLE_COST: Final = "0.02"
"""``cpu_index_tuple_cost``. With PostgreSQL's 0.005 the planner reads an index of half a million
passages of a scope, 22 ms, to spare itself a few thousand of the table, 1 µs each."""

PARALLEL_SETUP_COST: Final = "10000"
"""The cost of starting two workers: 11 ms were measured, in which one process reads 4,000 rows.
With PostgreSQL's 1,000 a search for a few hundred passages waits for workers that find nothing."""

MAX_SCAN_TUPLES: Final = 200_000
"""Passages after which an index scan under a filter ends: with at least ``FEW`` passages kept,
enough to find the first hundred in four million."""

MOST_PRELUDES: Final = 3
"""Preludes that one search sends at most. It is sent again where it shows that it was asked in
other languages than the corpus has, or without the count it needs: on the first search, and after a
change."""

MAX_LANGUAGES: Final = 8
"""Languages that a question is read in, the most frequent of the corpus first."""


@dataclass(frozen=True, kw_only=True)
class Ask(Options):
    """A question to one corpus, ready for the database.

    Attributes:
        question: Taken apart.
        legs: Which legs run, each with its weight.
        model: Whose vectors are compared; needed for the vector leg.
        vector: The question's, float32 of shape ``(model.dimensions,)``.
        least_depth: Candidates of each leg, at least: more where fewer are of too few groups.
        least_first_depth: The same for the first page of this size.
        stretch: Factor of the vector leg's weight, which spreads a model's cosines like those that
            the weights were found with.
    """

    question: Question
    legs: Mapping[str, float]
    model: AskedModel | None = None
    vector: np.ndarray | None = None
    least_depth: int = 0
    least_first_depth: int = 0
    stretch: float = 1.0

    @property
    def depth(self) -> int:
        """The number of candidates of each leg."""
        return max(_choose_depth(self.end), self.least_depth, self._least_grouped)

    @property
    def first_depth(self) -> int:
        """The number of candidates of each leg for the first page of this size."""
        return max(_choose_depth(self.limit), self.least_first_depth, self._least_grouped)

    @property
    def enough(self) -> int:
        """The number of candidates of a leg that fill the page; groups may need all."""
        return self.end if self.group_by is None else self.depth

    @property
    def _least_grouped(self) -> int:
        return 0 if self.group_by is None else DEPTHS[0]


@dataclass(frozen=True, kw_only=True)
class Statement:
    """The statement of a search, with all that it depends on.

    Attributes:
        shape: What it is made of.
        values: Its parameters.
        settings: Those of the transaction it runs in.
        thresholds: Least similarities of the fuzzy leg, in the order in which they are tried;
            ``settings`` has the first.
        look_up: The words it scores, or None without the text leg.
        kept: How many passages meet filters and demands, or None when they are not few.
        known: Whether there are statistics of the corpus's words.
        counted: Whether the passages were counted, so that ``kept`` tells.
        ranking: The learned ranking that it ranks by, or None.
    """

    shape: Shape
    values: Mapping[str, Any]
    settings: Mapping[str, str]
    thresholds: Sequence[float]
    look_up: LookUp | None
    kept: int | None
    known: bool
    counted: bool
    ranking: ActiveRanking | None = None

    @property
    def weights(self) -> dict[str, float]:
        """The weights of the legs that run."""
        return {leg: self.values[f"leg_{leg}"] for leg in self.shape.legs}

    @property
    def sql(self) -> str:
        """The statement as the driver takes it."""
        return compile_search(self.shape)

    @property
    def stops_early(self) -> bool:
        """True if the fuzzy leg stops at ``LARGE_FUZZY_THRESHOLD``.

        It does where a large number of passages is searched.
        """
        return _stop_early(self.thresholds)


class ModelState(NamedTuple):
    """The state of a model that a search relies on; when it has changed, the search runs again."""

    active: str | None
    index_kind: str | None
    cosine_spread: float | None


@dataclass(frozen=True, kw_only=True)
class Answer:
    """The answer of the database.

    Attributes:
        hits: Best first.
        candidates: Leg → how many passages it found.
        durations_ms: Leg → its share of the statement's time; legs that found none are absent.
        model: Of the vector leg, in the snapshot of the search; None without that leg.
        awaited: Whether vectors of the model are still to be made, so that the vector leg cannot
            find all passages.
        dropped: How many candidates of the vector leg were less similar than was asked for.
        statement: What was run.
        groups: How many groups the candidates are of; 0 where they are not grouped.
        found: Hit's id → how many candidates are of its group; empty where they are not grouped.
    """

    hits: tuple[Hit, ...]
    candidates: Mapping[str, int]
    durations_ms: Mapping[str, float]
    model: ModelState | None
    awaited: bool
    dropped: int
    statement: Statement
    groups: int = 0
    found: Mapping[Any, int] = field(default_factory=dict)

    @property
    def is_full(self) -> bool:
        """True if a leg found as many passages as it was asked for: there may be more."""
        return any(found >= self.statement.shape.depth for found in self.candidates.values())

    @property
    def words_asked(self) -> int:
        """The number of lexemes that the text leg looked up."""
        return len(self.statement.look_up.words) if self.statement.look_up else 0

    @property
    def words_known(self) -> int:
        """The number of lexemes whose rarity is known; 0 before the first ANALYZE."""
        return self.words_asked if self.statement.known else 0

    @property
    def kept(self) -> int | None:
        """The number of passages that meet filters and demands, or None when they are not few."""
        return self.statement.kept


class _Known(NamedTuple):
    """A database's knowledge of a corpus from the last search."""

    lexicon: Lexicon = Lexicon()
    languages: tuple[str, ...] = ()
    passages: float = 0.0
    default_share: float | None = None  # of the passages, what the corpus's defaults keep
    plenty: bool = False  # the scope was counted without filters, and has more than are few
    estimated: float = 0.0  # passages of the scope, by the planner
    estimated_at: float | None = None  # by time.monotonic()

    @property
    def is_fresh(self) -> bool:
        """True if the planner was asked a moment ago how large the scope is."""
        at = self.estimated_at
        return at is not None and time.monotonic() - at < ESTIMATE_SECONDS

    @property
    def surely_large(self) -> bool:
        return self.passages > SURELY_LARGE * FEW

    def narrows(self, ask: Ask) -> bool:
        """Return whether a search may be left with few passages of many.

        The defaults of a corpus mostly keep most of it: then a large one is not counted.
        """
        kept = self.passages * (1.0 if self.default_share is None else self.default_share)
        return bool(ask.filters or ask.question.demands) or (
            self.surely_large and kept <= SURELY_LARGE * FEW
        )

    def must_count(self, corpus: Corpus, ask: Ask) -> bool:
        """Return whether only a count tells that few passages are left to search."""
        in_doubt = corpus.needs_scope and not (self.plenty and self.surely_large)
        return in_doubt or self.narrows(ask)


KNOWN: Final = "known of searches"
"""The key in a session's ``info`` of what the searches of its database know of each corpus."""


class SearchRepository(Repository):
    """Ranks the passages of any corpus."""

    def answer(self, corpus: Corpus, ask: Ask) -> Answer:
        """Run a search: one statement, one snapshot, after its settings.

        Raises:
            UnknownFilter: The corpus has no such filter.
            InvalidFilter: A filter's value is of the wrong kind.
            MissingScope: The corpus has a scope, and the unit of work has none.
        """
        statement = self.prepare(corpus, ask)
        answer = self._run(statement)
        for threshold in statement.thresholds[1:]:
            if answer.candidates.get("fuzzy", 0) >= ask.enough:
                break
            statement = replace(statement, settings=_settings_with(statement, threshold))
            answer = self._run(statement)
        short = {leg for leg in statement.shape.legs if answer.candidates.get(leg, 0) < ask.enough}
        words = statement.look_up
        if words and words.complete:
            short.discard("text")  # there are no more that hold a word
        if answer.dropped:
            short.discard("vector")  # nor any that are more similar
        # The words that were looked up were to give more than is asked for: less may be left to
        # search than was thought, and what is left may hold other words. Of a scope it is estimated
        # for each search.
        is_thin = (
            corpus.scope is None
            and words is not None
            and not words.complete
            and answer.candidates.get("text", 0) < ask.depth
        )
        return self._without_starving(corpus, ask, answer, short) if short or is_thin else answer

    def _without_starving(
        self, corpus: Corpus, ask: Ask, answer: Answer, short: Collection[str]
    ) -> Answer:
        """Search deeper where legs found less than a page, unless that is all there is."""
        if answer.kept is None and not answer.statement.counted:
            counted = self.prepare(corpus, ask, counted=True)
            if counted.kept is not None:  # less is left than was thought
                return self._run(counted)
        if "text" in short:
            # The rarest words were too few, or held by passages that the filters refuse.
            return self._run(self.prepare(corpus, ask, everything=True))
        return answer

    def prepare(
        self, corpus: Corpus, ask: Ask, *, everything: bool = False, counted: bool = False
    ) -> Statement:
        """Choose the statement of a search, and its parameters.

        Args:
            corpus: What is searched.
            ask: The question.
            everything: Score all passages that hold a word, whatever it costs.
            counted: Count what is left to search even where it is thought to be much.
        """
        corpus.refuse_without(self.scope)
        conditions, values = corpus.parse_filters(ask.filters)
        values |= corpus.bind_scope(self.scope)
        shape = Shape(
            corpus=corpus,
            legs=tuple(ask.legs),
            fusion=ask.fusion,
            depth=ask.depth,
            model=ask.model if "vector" in ask.legs else None,
            conditions=conditions,
            boosted=ask.boost > 0,
            bounded=ask.min_similarity > 0,
            group_by=ask.group_by,
        )
        prelude, known = self._prelude(shape, ask, values, counted=counted)
        shape = replace(shape, demanding=prelude.demanded is not None)
        values = values | {"demanded": prelude.demanded}
        if (ranking := prelude.ranking) is not None:
            shape = replace(shape, learned=True)
            values |= {"ranking_scope": ranking.scope, "ranking_id": ranking.id}
            ask = replace(ask, legs=_relearn(ask.legs, ranking.weights))
        kept = prelude.kept if prelude.kept <= FEW else None
        is_scoped = self._is_scoped(corpus)
        narrows = counted or is_scoped or known.narrows(ask)
        # Words are weighed, and looked up, among what the transaction may see.
        searched = max(prelude.visible, float(kept or 0), 1.0)
        kept_share = 1.0
        if narrows and kept is None and (shape.conditions or shape.demanding):
            left = prelude.estimated
            left = self._estimate(shape, values) if left is None else left
            kept_share = min(1.0, left / searched)
        found: LookUp | None = None
        if "text" in ask.legs:
            found = look_up(
                prelude.asked,
                known.lexicon,
                searched,
                share=kept_share,
                depth=ask.depth,
                fetch=FETCH_OF_SCOPE if corpus.scope is not None else FETCH,
                everything=everything or kept is not None,
            )
            if found is None:
                shape = replace(shape, legs=tuple(leg for leg in shape.legs if leg != "text"))
            else:
                shape = replace(shape, words=found.size)
                values |= found.values()
        thresholds: Sequence[float] = ()
        compared = ask.question.words
        if "fuzzy" in shape.legs:
            thresholds = _thresholds(ask.question, searched, few=kept is not None)
            if _stop_early(thresholds) and len(compared) > LONG_FOR_FUZZY:
                compared = self._rarest_word(ask.question, known)
        values |= {
            "page_limit": ask.limit,
            "page_offset": ask.offset,
            "group_size": ask.group_size,
            "question_vector": ask.vector,
            "fuzzy_question": compared[:MAX_FUZZY_CHARACTERS],
            "min_similarity": ask.min_similarity,
            "rrf_k": ask.rrf_k,
            "boost": ask.boost,
            "half_life_days": ask.half_life_days,
            **{f"leg_{name}": weight for name, weight in _weights(ask, shape.legs).items()},
        }
        mostly_kept = kept is None or kept >= searched / 2
        whole = is_scoped and searched <= MOST_COMPARED and mostly_kept
        is_mixed = is_scoped and not corpus.needs_scope
        return Statement(
            shape=replace(
                shape,
                few=kept is not None,
                whole=whole,
                beside=is_mixed and prelude.own_passages <= MOST_COMPARED,
                held=prelude.held and kept is not None and not whole,
            ),
            values=values,
            thresholds=thresholds,
            settings=_PLANNED[_planning(shape, narrows=narrows)]
            | {"hnsw.ef_search": str(_ef_search(ask, kept_share))}
            | ({THRESHOLD_SETTING: str(thresholds[0])} if thresholds else {}),
            look_up=found,
            kept=kept,
            known=known.lexicon.is_known,
            counted=prelude.counted,
            ranking=ranking,
        )

    def surroundings(
        self, corpus: Corpus, hits: Sequence[Any], *, before: int, after: int
    ) -> dict[Any, Window]:
        """Return the turns around hits, in one statement.

        Args:
            corpus: Of the hits.
            hits: Their ids.
            before: How many passages before each, at most.
            after: How many after each.

        Returns:
            Id → window, in the order of *hits*; those that are gone, or hidden, are absent.

        Raises:
            InvalidSearch: The corpus has no order.
            MissingScope: The corpus has a scope, and the unit of work has none.
        """
        corpus.refuse_without(self.scope)
        asked = {"hits": list(hits), "before": before, "after": after}
        asked |= corpus.bind_scope(self.scope)
        windows: dict[Any, dict[int, Turn]] = {}
        for row in self.session.execute(surroundings(corpus), asked).mappings():
            turn = Turn(
                is_hit=row["id"] in row["hits"],
                **{key: value for key, value in row.items() if key != "hits"},
            )
            for hit in row["hits"]:
                windows.setdefault(hit, {})[turn.place] = turn
        return {hit: windows[hit] for hit in hits if hit in windows}

    def find_snippets(self, corpus: Corpus, hits: Sequence[Any], words: str) -> dict[Any, str]:
        """Return snippets of hits, in which the words of a question are marked.

        Args:
            corpus: Of the hits.
            hits: Their ids.
            words: Of the question.

        Returns:
            Id → snippet with ``START`` and ``STOP`` around each word that matches, of those hits
            that hold any.

        Raises:
            MissingScope: The corpus has a scope, and the unit of work has none.
        """
        corpus.refuse_without(self.scope)
        asked = {"hits": list(hits), "words": words} | corpus.bind_scope(self.scope)
        found = self.session.execute(select_snippets(corpus), asked)
        return {row.id: row.snippet for row in found}

    def is_empty(self, corpus: Corpus) -> bool:
        """Return whether the corpus has no passage, within the scope."""
        some = select(corpus.key).where(*self._readable(corpus)).limit(1)
        return self.session.scalar(some, corpus.bind_scope(self.scope)) is None

    def count(self, corpus: Corpus) -> int:
        """Count the passages of the corpus, within the scope."""
        counted = select(func.count()).select_from(corpus.passages).where(*self._readable(corpus))
        return self.session.scalar(counted, corpus.bind_scope(self.scope)) or 0

    def _readable(self, corpus: Corpus) -> tuple[ColumnElement[bool], ...]:
        """Restrict the passages to what a search reads; without a needed scope, to all visible."""
        if corpus.needs_scope and self.scope is None:
            return ()
        return corpus.in_scope(corpus.passages)

    def explain(self, statement: Statement, *, analyze: bool = True) -> dict[str, Any]:
        """Return the plan of a search, as PostgreSQL's EXPLAIN gives it in JSON.

        Args:
            statement: As ``prepare`` made it, or an answer has it.
            analyze: Run it, and tell times and buffers.
        """
        options = "ANALYZE, BUFFERS, " if analyze else ""
        explained = f"EXPLAIN ({options}SETTINGS, FORMAT JSON) {statement.sql}"
        _, (row,) = self._exchange([_set(statement.settings), (explained, statement.values)])
        plan: dict[str, Any] = row["QUERY PLAN"][0]
        return plan

    def _run(self, statement: Statement) -> Answer:
        if not statement.shape.legs:
            rows: list[dict[str, Any]] = [
                {"report": None, "id": None, "model": None, "awaited": False, "dropped": 0}
            ]
        else:
            _, rows = self._exchange([_set(statement.settings), (statement.sql, statement.values)])
        report = rows[0]["report"] or {}
        hits = [row for row in rows if row["id"] is not None]
        grouped = statement.shape.group_by is not None
        return Answer(
            hits=tuple(
                _hit(row, statement.shape.corpus, boosted=statement.shape.boosted) for row in hits
            ),
            candidates={leg: done["candidates"] for leg, done in report.items()},
            durations_ms=_durations(report),
            model=ModelState(*rows[0]["model"]) if rows[0]["model"] else None,
            awaited=rows[0]["awaited"],
            dropped=rows[0]["dropped"],
            statement=statement,
            groups=rows[0].get("group_total") or 0,
            found={row["id"]: row["group_found"] for row in hits} if grouped else {},
        )

    def _prelude(
        self, shape: Shape, ask: Ask, values: Mapping[str, Any], *, counted: bool
    ) -> tuple[Prelude, _Known]:
        """Run the prelude.

        It counts the passages left to search, if few, and reads the words' frequencies.
        """
        corpus = shape.corpus
        scoped = self._is_scoped(corpus)
        known = self._recall(corpus)
        counts = counted or known.must_count(shape.corpus, ask)
        learned = ask.learned and corpus.boosts is not None
        if shape.legs == ("vector",) and known.surely_large and not (counts or scoped or learned):
            # Nothing is to be found out that a moment ago would not do for.
            return Prelude({}, None, known.passages, FEW + 1, counted=False), known
        # Of what is shared it is known how rare words are. The first search of a scope looks at its
        # own passages, too, for the languages they are in.
        samples_words = corpus.needs_scope or not (known.lexicon.is_known and known.languages)
        explained = self._list_explained(shape, ask, known, values) if scoped else []
        before = [known.estimated] if known.is_fresh else []
        for _ in range(MOST_PRELUDES):
            asked_in = (ask.language,) if ask.language else known.languages
            _, (row,), *estimated = self._exchange(
                [
                    _set(_PLANNED[_planning(shape, narrows=counts or scoped)]),
                    (
                        compile_prelude(
                            shape.corpus,
                            shape.conditions,
                            demanding=bool(ask.question.demands),
                            by_words=samples_words
                            and (bool(ask.question.demands) or shape.legs != ("vector",)),
                            scoped=scoped,
                            learned=learned,
                        ),
                        {
                            **values,
                            **ask.question.demands,
                            # What is known of words may be from another scope's search.
                            "known_version": known.lexicon.version if known.languages else None,
                            "known_languages": list(known.languages),
                            "languages": list(asked_in),
                            "words": ask.question.words,
                            "few": FEW,
                            "counted": counts,
                        },
                    ),
                    *explained,
                ]
            )
            prelude = Prelude.of(row, counted=counts)
            if scoped:
                estimates = [*before, *map(read_estimate, estimated)]
                if estimates and not before:
                    known = known._replace(estimated=estimates[0], estimated_at=time.monotonic())
                prelude = prelude.within_scope(*estimates, shared=not corpus.needs_scope)
            if scoped and counts and not (ask.filters or ask.question.demands):
                known = known._replace(plenty=prelude.kept > FEW)
            same = row["version"] == known.lexicon.version
            known = known._replace(
                lexicon=known.lexicon if same else _lexicon(row),
                languages=tuple(row["languages"][:MAX_LANGUAGES]),
                passages=prelude.visible,
            )
            stale = not scoped and (not same or known.default_share is None)
            if stale and shape.corpus.defaults and not ask.filters:
                share = self._estimate(shape, values) / max(known.passages, 1.0)
                known = known._replace(default_share=min(1.0, share))
            self._remember(corpus, known)
            read_in = (ask.language,) if ask.language else known.languages
            uncounted = not counts and known.must_count(shape.corpus, ask)
            if asked_in == read_in and not uncounted:
                break
            counts = counts or uncounted
        if prelude.own is not None:
            known = known._replace(lexicon=_mix(known.lexicon, prelude))
        return prelude, known._replace(languages=asked_in)

    def _list_explained(
        self, shape: Shape, ask: Ask, known: _Known, values: Mapping[str, Any]
    ) -> list[tuple[str, Mapping[str, Any]]]:
        """Return what the planner is asked to estimate: the scope, and what filters keep of it.

        A sample of a small scope tells by itself.
        """
        if shape.corpus.needs_scope and 0 < known.passages < SAMPLED_OF_SCOPE:
            return []
        filters = shape.conditions and not ask.question.demands
        explained = [_explain_matching(shape)] if filters else []
        explained = explained if known.is_fresh else [explain_own(shape.corpus), *explained]
        return [(sql, values) for sql in explained]

    def _is_scoped(self, corpus: Corpus) -> bool:
        """Return whether the search reads passages of a scope, beside those that are shared."""
        return corpus.needs_scope or (corpus.scope is not None and self.scope is not None)

    @property
    def _remembered(self) -> dict[tuple[str, str | None], _Known]:
        """The knowledge of searches, by corpus and scope."""
        remembered: dict[tuple[str, str | None], _Known] = self.session.info.setdefault(KNOWN, {})
        return remembered

    def _recall(self, corpus: Corpus) -> _Known:
        """Return what the last search within the scope knew of a corpus."""
        of_all = self._remembered.get((corpus.name, None), _Known())
        if not self._is_scoped(corpus):
            return of_all
        own = self._remembered.get((corpus.name, str(self.scope)), _Known())
        return own._replace(lexicon=of_all.lexicon)

    def _remember(self, corpus: Corpus, known: _Known) -> None:
        """Keep what a search knows: words that are shared for all, the rest for its scope."""
        remembered = self._remembered
        if len(remembered) >= MAX_KNOWN:
            remembered.clear()
        if not self._is_scoped(corpus):
            remembered[corpus.name, None] = known
            return
        # The words of a scope are counted for each question, and kept from the next.
        remembered[corpus.name, str(self.scope)] = known._replace(lexicon=Lexicon())
        if not corpus.needs_scope:
            of_all = remembered.get((corpus.name, None), _Known())
            remembered[corpus.name, None] = of_all._replace(lexicon=known.lexicon)

    def _estimate(self, shape: Shape, values: Mapping[str, Any]) -> float:
        """Return how many passages the filters keep, as the planner estimates it."""
        (plan,) = self._exchange([(_explain_matching(shape), values)])
        return read_estimate(plan)

    def _rarest_word(self, question: Question, known: _Known) -> str:
        """Return the word of the question that the fewest passages hold, stop words aside."""
        words = question.words.split()[:MAX_WORDS]
        asked = {"words": words, "languages": list(known.languages)}
        frequencies = {
            row["word"]: max(map(known.lexicon.frequency, row["lexemes"]))
            for row in self._exchange([(LEXEMES, asked)])[0]
            if row["lexemes"]
        }
        return min(words, key=lambda word: (frequencies.get(word, 1.0), -len(word)))

    def _exchange(
        self, statements: Sequence[tuple[str, Mapping[str, Any]]]
    ) -> list[list[dict[str, Any]]]:
        """Send statements together, in one round trip.

        Returns:
            The rows of each statement.
        """
        connection = self.session.connection()
        try:
            with self.driver() as driver:
                if isinstance(driver, psycopg.AsyncConnection):
                    return await_only(_send_async(driver, statements))
                return _send(driver, statements)
        except psycopg.Error as error:
            gone = bool(driver.closed)
            if gone:
                connection.invalidate(error)
            raise DBAPIError.instance(  # as if SQLAlchemy had run it
                statements[-1][0],
                None,
                error,
                psycopg.Error,
                connection_invalidated=gone,
                dialect=connection.dialect,
            ) from error


LEXEMES: Final = (
    "SELECT word, tsvector_to_array(to_tsvector(language::regconfig, word)) AS lexemes"
    " FROM unnest(%(words)s::text[]) AS word, unnest(%(languages)s::text[]) AS language"
)

SETTINGS: Final = (
    "SELECT count(set_config(name, value, true))"
    " FROM unnest(%(names)s::text[], %(values)s::text[]) AS each (name, value)"
)


RANKING: Final = SHOWN | {
    "report",
    "model",
    "awaited",
    "dropped",
    "group_total",
    "passage_id",
    "score",
    "learned_gain",
    "group_place",
    "group_found",
    "why",
}
"""Columns of the statement that are no metadata of a hit."""


def _set(settings: Mapping[str, str]) -> tuple[str, Mapping[str, Any]]:
    return SETTINGS, {"names": list(settings), "values": list(settings.values())}


def _choose_depth(hits: int) -> int:
    return FIRST_DEPTH if hits <= FIRST_DEPTH else next(each for each in DEPTHS if each >= hits)


def _explain_matching(shape: Shape) -> str:
    return explain_matching(shape.corpus, shape.conditions, shape.demanding)


def _send(
    connection: psycopg.Connection[Any], statements: Sequence[tuple[str, Mapping[str, Any]]]
) -> list[list[dict[str, Any]]]:
    with connection.pipeline():
        cursors = [connection.execute(sql, values) for sql, values in statements]
    return [_name(cursor, cursor.fetchall()) for cursor in cursors]


async def _send_async(
    connection: psycopg.AsyncConnection[Any], statements: Sequence[tuple[str, Mapping[str, Any]]]
) -> list[list[dict[str, Any]]]:
    async with connection.pipeline():
        cursors = [await connection.execute(sql, values) for sql, values in statements]
    return [_name(cursor, await cursor.fetchall()) for cursor in cursors]


def _name(
    cursor: psycopg.Cursor[Any] | psycopg.AsyncCursor[Any], rows: Sequence[Sequence[Any]]
) -> list[dict[str, Any]]:
    """Give the values of *rows* the names of their columns."""
    names = [each.name for each in cursor.description or ()]
    return [dict(zip(names, row, strict=True)) for row in rows]


def _thresholds(question: Question, passages: float, *, few: bool) -> Sequence[float]:
    """Return the least similarities, in the order in which they are tried."""
    if question.is_unspaced:
        return (UNSPACED_FEW_THRESHOLD,) if few else UNSPACED_THRESHOLDS
    if few:
        return FUZZY_THRESHOLDS[-1:]
    if passages <= LARGE_FOR_FUZZY:
        return FUZZY_THRESHOLDS
    return tuple(each for each in FUZZY_THRESHOLDS if each >= LARGE_FUZZY_THRESHOLD)


def _stop_early(thresholds: Sequence[float]) -> bool:
    return tuple(thresholds[-1:]) == (LARGE_FUZZY_THRESHOLD,)


def _settings_with(statement: Statement, threshold: float) -> dict[str, str]:
    return {**statement.settings, THRESHOLD_SETTING: str(threshold)}


def _weights(ask: Ask, legs: Sequence[str]) -> dict[str, float]:
    """Return the weights of the legs that take part, summing to 1; ranks have no such sum."""
    weights = {name: ask.legs[name] for name in legs}
    if ask.fusion == "rrf":
        return weights
    if "vector" in weights:
        weights["vector"] *= ask.stretch
    total = sum(weights.values()) or 1.0
    return {name: weight / total for name, weight in weights.items()}


def _relearn(legs: Mapping[str, float], learned: Mapping[str, float]) -> dict[str, float]:
    """Replace weights by learned ones; where fuzzy stands in for text, it has its weight."""
    return {
        name: learned.get("text" if name == "fuzzy" else name, weight)
        for name, weight in legs.items()
    }


def _ef_search(ask: Ask, share: float) -> int:
    """Return the number of nearest that an index scan keeps.

    After the filters, enough are left for a leg's depth.
    """
    fetched = ask.model.candidates_for(ask.depth) if ask.model else ask.depth
    wanted = max(LEAST_EF_SEARCH, fetched * EF_HEADROOM)
    return min(MAX_EF_SEARCH, round(wanted / max(share, wanted / MAX_EF_SEARCH)))


def _planning(shape: Shape, *, narrows: bool) -> str:
    """Return the setting of planning.

    The planner must see values where filters keep unequal shares.

    The nearest of all are found by the same plan whatever was asked.
    """
    if narrows:
        return "force_custom_plan"
    return "force_generic_plan" if shape.legs == ("vector",) else "auto"


_PLANNED: Final[Mapping[str, dict[str, str]]] = {
    planning: {
        "plan_cache_mode": planning,
        "hnsw.iterative_scan": "relaxed_order",
        "hnsw.max_scan_tuples": str(MAX_SCAN_TUPLES),
        "cpu_index_tuple_cost": INDEX_TUPLE_COST,
        "parallel_setup_cost": PARALLEL_SETUP_COST,
        "jit": "off",  # compiling costs more than a search
    }
    for planning in ("auto", "force_generic_plan", "force_custom_plan")
}
"""Settings for a transaction alone: those of a session would leak through the pool."""


def _mix(shared: Lexicon, prelude: Prelude) -> Lexicon:
    """Return the words of a question in all that a search within a scope reads."""
    assert prelude.own is not None  # noqa: S101 - the caller has looked
    if not shared.is_known:
        return prelude.own
    return shared.mix(prelude.own, min(1.0, prelude.own_passages / max(prelude.visible, 1.0)))


def _lexicon(row: Mapping[str, Any]) -> Lexicon:
    if row["elements"] is None:
        return Lexicon(version=row["version"])
    return Lexicon(
        version=row["version"],
        # after those of the elements follow the smallest and the largest
        frequencies=dict(zip(row["elements"], row["frequencies"], strict=False)),
    )


def _hit(row: Mapping[str, Any], corpus: Corpus, *, boosted: bool) -> Hit:
    ranks, scores, contributions = {}, {}, {}
    for leg, place, score, gain in row["why"]:
        scores[leg], contributions[leg] = score, gain
        if place is not None:
            ranks[leg] = place
    if row.get("learned_gain"):
        contributions["learned"] = row["learned_gain"]
    if boosted:
        contributions["boost"] = row["score"] - sum(contributions.values())
    return Hit(
        id=row["id"],
        corpus=corpus.name,
        score=row["score"],
        title=row["title"],
        content=row["content"],
        ranks=ranks,
        scores=scores,
        contributions=contributions,
        metadata={key: value for key, value in row.items() if key not in RANKING},
    )


def _durations(report: Mapping[str, Mapping[str, float | None]]) -> dict[str, float]:
    """Return each leg's own duration: legs run one after another, and each notes its end."""
    before, durations = 0.0, {}
    ended = {leg: done["ended"] or 0.0 for leg, done in report.items() if done["candidates"]}
    for leg, moment in sorted(ended.items(), key=lambda item: item[1]):
        durations[leg] = round(moment - before, 3)
        before = moment
    return durations
