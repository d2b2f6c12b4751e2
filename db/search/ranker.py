"""Searches run: the choice of a ranking statement, its parameters and settings, and its answer."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from math import log
from typing import Any, Final, NamedTuple

from pgcorpus.db.scope import Scope
from pgcorpus.db.search.answer import Answer, Statement
from pgcorpus.db.search.ask import Ask
from pgcorpus.db.search.corpus import Corpus
from pgcorpus.db.search.driver import Exchange, Sent
from pgcorpus.db.search.estimates import explain_matching, explain_own, read_estimate
from pgcorpus.db.search.known import FEW, Known, KnownCorpora
from pgcorpus.db.search.legs import THRESHOLD_SETTING, AskedModel
from pgcorpus.db.search.likeness import LARGE, Look, choose_looks, count_alike
from pgcorpus.db.search.pipeline import Rows
from pgcorpus.db.search.prelude import (
    SAMPLED_OF_SCOPE,
    ActiveRanking,
    Prelude,
    compile_prelude,
)
from pgcorpus.db.search.ranking import Shape
from pgcorpus.db.search.words import FETCH, FETCH_OF_SCOPE, Lexicon, LookUp, look_up

MOST_COMPARED: Final = 5000
"""Passages of a scope up to which all its vectors are compared, in 2 to 3 µs each."""

LEAST_INDEXED: Final = 4600
"""A scope of more vectors has an index of its own, which ``pgcorpus doctor`` asks for. Less than
``MOST_COMPARED``, as a search only estimates how large its scope is. Estimates of a sixth too much
were seen: a scope of a little less is then compared by its half vectors, exactly but slowly."""

MAX_EF_SEARCH: Final = 1000
"""pgvector's own bound of ``hnsw.ef_search``."""

EF_HEADROOM: Final = 1.25
"""An HNSW scan keeps more than it gives: recall@10 at 100,000 x 3072 was 0.989 without."""

EF_SEARCH: Final = ((10_000, 64), (100_000, 125))
"""Passages → the least ``hnsw.ef_search``, however few hits are asked for: what an HNSW scan keeps
decides how near they are. Between the two it grows with the logarithm of the passages. recall@10 of
the benchmark's vectors: 0.9975 and 0.9935 (10,000 x 384 and 100,000 x 1,536); with 64, 0.970 of the
larger."""

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

MOST_REFUSED: Final = 2
"""Candidates that may be refused on the way to a page, where conditions are asked of its hits. If
there are more, those after them were not looked for. Where one in twenty is refused at random, this
happens to a fiftieth of the pages of ten hits."""

MAX_LANGUAGES: Final = 8
"""Languages that a question is read in, the most frequent of the corpus first."""


class Ranker:
    """Ranks the passages of any corpus.

    Args:
        exchange: Sends statements to the database, in the scope.
        scope: Whose passages are searched, too.
        known: What earlier searches of the database learnt of each corpus.
    """

    def __init__(self, exchange: Exchange, scope: Scope | None, known: KnownCorpora) -> None:
        self.exchange = exchange
        self._scope = scope
        self._known = known

    def answer(self, corpus: Corpus, ask: Ask) -> Answer:
        """Run a search: one statement, one snapshot, after its settings.

        Raises:
            UnknownFilter: The corpus has no such filter.
            InvalidFilter: A filter's value is of the wrong kind.
            MissingScope: The corpus has a scope, and the unit of work has none.
        """
        statement = self.prepare(corpus, ask)
        answer = self._run(statement)
        if answer.outdated:
            self._known.look_again(corpus, self._scope)
            statement = self.prepare(corpus, ask)
            answer = self._run(statement)
        statement = answer.statement
        for look in statement.looks[1:]:
            if answer.candidates.get("fuzzy", 0) >= ask.enough:
                break
            statement = replace(
                statement,
                values={**statement.values, **look.values()},
                settings={**statement.settings, THRESHOLD_SETTING: str(look.threshold)},
            )
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
        corpus.refuse_without(self._scope)
        conditions, values = corpus.parse_filters(ask.filters)
        values |= corpus.bind_scope(self._scope)
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
        # Of one leg no weights matter; what a role may not read for nothing, it is not asked for.
        weighed = ask.learned and (corpus.boosts is not None or len(shape.legs) > 1)
        shape = replace(shape, weighed=weighed)
        prelude, known = self._prelude(shape, ask, values, counted=counted)
        shape = replace(
            shape,
            demanding=prelude.demanded is not None,
            learned=prelude.ranking is not None and corpus.boosts is not None,
        )
        values["demanded"] = prelude.demanded
        foreign = _find_foreign(shape.model, (ask.language,) if ask.language else known.languages)
        ask = _reweigh(ask, prelude.ranking, foreign)
        size = self._measure(shape, ask, prelude, known, values, counted=counted)
        found = _look_up(corpus, ask, prelude, known, size, everything=everything)
        looks = self._choose_looks(shape, ask, prelude, known, size=size, found=found)
        legs = [leg for leg in shape.legs if leg != "text" or found is not None]
        values |= found.values() if found is not None else {}
        values |= looks.first.values() if looks.first is not None else {}
        values |= _bind(ask, prelude.ranking, legs)
        # A scope that has an index of its own must be named where the index is chosen.
        by_values = _plan_by_values(ask, known, counted=counted, scoped=size.scoped) or (
            size.scoped and not (size.whole or size.beside)
        )
        return Statement(
            shape=replace(
                shape,
                legs=tuple(legs),
                words=found.size if found is not None else 0,
                most_alike=looks.most,
                few=size.kept is not None,
                whole=size.whole,
                beside=size.beside,
                held=prelude.held and size.kept is not None and not size.whole,
                late=size.kept is None
                and known.keeps_nearly_all(ask)
                and bool(shape.distant_conditions()),
            ),
            values=values,
            looks=looks.in_turn,
            settings=_choose_planning(by_values=by_values, scoped=size.scoped)
            | {"hnsw.ef_search": str(_ef_search(ask, size))}
            | looks.settings(),
            look_up=found,
            kept=size.kept,
            known=known.lexicon.is_known,
            counted=prelude.counted,
            ranking=prelude.ranking,
            foreign=foreign,
        )

    def _measure(
        self,
        shape: Shape,
        ask: Ask,
        prelude: Prelude,
        known: Known,
        values: Mapping[str, Any],
        *,
        counted: bool,
    ) -> _Size:
        """Find how much is searched, by the counts of the prelude and by estimates."""
        corpus = shape.corpus
        scoped = corpus.is_scoped(self._scope)
        kept = prelude.kept if prelude.kept <= FEW else None
        # Words are weighed, and looked up, among what the transaction may see.
        searched = max(prelude.visible, float(kept or 0), 1.0)
        share = 1.0
        narrows = counted or scoped or known.narrows(ask)
        if narrows and kept is None and (shape.conditions or shape.demanding):
            left = prelude.estimated
            left = self._estimate(shape, values) if left is None else left
            share = min(1.0, left / searched)
        mostly_kept = kept is None or kept >= searched / 2
        mixed = scoped and not corpus.needs_scope
        return _Size(
            kept=kept,
            searched=searched,
            share=share,
            scoped=scoped,
            whole=scoped and searched <= MOST_COMPARED and mostly_kept,
            beside=mixed and prelude.own_passages <= MOST_COMPARED,
        )

    def _choose_looks(
        self,
        shape: Shape,
        ask: Ask,
        prelude: Prelude,
        known: Known,
        *,
        size: _Size,
        found: LookUp | None,
    ) -> _Looks:
        """Choose what the fuzzy leg looks for; nothing where it does not take part."""
        if "fuzzy" not in shape.legs:
            return _Looks((), None)
        most = count_alike(ask.depth, known.lexicon.average_length)
        all_compared = size.kept is not None and (size.kept <= most or found is None)
        looks = choose_looks(
            ask.question,
            found,
            [*prelude.asked.values()],
            partial(self._is_held, shape.corpus, prelude),
            all_compared=all_compared,
            only_first=shape.corpus.scope is not None and size.searched > LARGE,
        )
        return _Looks(looks, None if all_compared else most)

    def answer_exactly(self, answer: Answer) -> Answer:
        """Run a search by vectors again without an index: all vectors are compared, in full.

        Args:
            answer: Of a search whose only leg is the vector leg. It takes seconds where there are
                millions of vectors.
        """
        statement = answer.statement
        shape = replace(statement.shape, whole=True, few=False, beside=False, held=False)
        settings = {**statement.settings, "enable_seqscan": "on"}
        return self._run(replace(statement, shape=shape, settings=settings))

    def explain(self, statement: Statement, *, analyze: bool = True) -> dict[str, Any]:
        """Return the plan of a search, as PostgreSQL's EXPLAIN gives it in JSON.

        Args:
            statement: As ``prepare`` made it, or an answer has it.
            analyze: Run it, and tell times and buffers.
        """
        options = "ANALYZE, BUFFERS, " if analyze else ""
        explained = f"EXPLAIN ({options}SETTINGS, FORMAT JSON) {statement.sql}"
        ((row,),) = self.exchange([(explained, statement.values)], statement.settings)
        plan: dict[str, Any] = row["QUERY PLAN"][0]
        return plan

    def _run(self, statement: Statement) -> Answer:
        if not statement.shape.legs:
            return Answer.of(statement, ())
        (rows,) = self.exchange([(statement.sql, statement.values)], statement.settings)
        answer = Answer.of(statement, rows)
        if answer.refused <= MOST_REFUSED:
            return answer
        return self._run(replace(statement, shape=replace(statement.shape, late=False)))

    def _ask_alone(self, statement: Sent) -> Rows:
        (rows,) = self.exchange([statement])
        return rows

    def _prelude(
        self, shape: Shape, ask: Ask, values: Mapping[str, Any], *, counted: bool
    ) -> tuple[Prelude, Known]:
        """Run the prelude.

        It counts the passages left to search, if few, and reads the words' frequencies.
        """
        corpus = shape.corpus
        scoped = corpus.is_scoped(self._scope)
        known = self._known.recall(corpus, self._scope)
        counts = counted or known.must_count(shape.corpus, ask)
        again = None if counted else self._prelude_again(shape, ask, known)
        if again is not None:
            return again
        # Of what is shared it is known how rare words are. The first search of a scope looks at its
        # own passages, too, for the languages they are in.
        samples_words = corpus.needs_scope or not (known.lexicon.is_known and known.languages)
        explained = self._list_explained(shape, ask, known, values) if scoped else []
        before = [known.estimated] if known.is_fresh else []
        for _ in range(MOST_PRELUDES):
            asked_in = (ask.language,) if ask.language else known.languages
            (row,), *estimated = self.exchange(
                [
                    (
                        compile_prelude(
                            shape.corpus,
                            shape.conditions,
                            demanding=bool(ask.question.demands),
                            by_words=samples_words
                            and (bool(ask.question.demands) or shape.legs != ("vector",)),
                            scoped=scoped,
                            learned=shape.weighed,
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
                ],
                _choose_planning(
                    by_values=_plan_by_values(ask, known, counted=counts, scoped=scoped),
                    scoped=scoped,
                ),
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
            if not (ask.filters or ask.question.demands):
                known = known._replace(
                    last=replace(prelude, asked={}, own=None),
                    looked_at=time.monotonic(),
                    ranking_read=shape.weighed,
                )
            self._known.remember(corpus, self._scope, known)
            read_in = (ask.language,) if ask.language else known.languages
            uncounted = not counts and known.must_count(shape.corpus, ask)
            if asked_in == read_in and not uncounted:
                break
            counts = counts or uncounted
        if prelude.own is not None:
            known = known._replace(lexicon=_mix(known.lexicon, prelude))
        return prelude, known._replace(languages=asked_in)

    def _prelude_again(self, shape: Shape, ask: Ask, known: Known) -> tuple[Prelude, Known] | None:
        """Return the prelude of a moment ago with the words of this question, if that will do.

        Of what passages are a scope's alone, the words are counted for each question.
        """
        corpus, recent = shape.corpus, known.recent
        if recent is None or ask.filters or ask.question.demands:
            return None
        if shape.weighed and not known.ranking_read:
            return None
        recent = replace(recent, ranking=recent.ranking if shape.weighed else None)
        if shape.legs == ("vector",):
            return recent, known
        unsure = known.must_count(corpus, ask) or corpus.needs_scope
        if unsure or not known.may_read_words_alone:
            return None
        languages = (ask.language,) if ask.language else known.languages
        words = ask.question.words
        asked = self._known.vocabulary.read(words, languages, self._scope, self._ask_alone)
        return replace(recent, asked=asked), known._replace(languages=languages)

    def _list_explained(
        self, shape: Shape, ask: Ask, known: Known, values: Mapping[str, Any]
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

    def _estimate(self, shape: Shape, values: Mapping[str, Any]) -> float:
        """Return how many passages the filters keep, as the planner estimates it."""
        (plan,) = self.exchange([(_explain_matching(shape), values)])
        return read_estimate(plan)

    def _is_held(self, corpus: Corpus, prelude: Prelude, lexeme: str) -> bool:
        """Return whether passages are known to hold a lexeme."""
        known = self._known.recall(corpus, self._scope).lexicon, prelude.own
        return any(each is not None and each.frequencies.get(lexeme, 0) > 0 for each in known)


class _Size(NamedTuple):
    """The size of what a search reads.

    Attributes:
        kept: Passages that the filters leave, if they are few.
        searched: Passages that the transaction may see.
        share: Of these, what the filters keep, in [0, 1].
        scoped: Whether the corpus is searched within a scope.
        whole: Whether all vectors of the scope are compared.
        beside: Whether the scope's own are, beside an index of the shared ones.
    """

    kept: int | None
    searched: float
    share: float
    scoped: bool
    whole: bool
    beside: bool


class _Looks(NamedTuple):
    """The looks of the fuzzy leg by trigrams.

    Attributes:
        in_turn: One after another, until a page is full; empty where the leg does not take part.
        most: How many passages the index finds at most; None where all are compared.
    """

    in_turn: tuple[Look, ...]
    most: int | None

    @property
    def first(self) -> Look | None:
        """The look that is tried first; None where there is none."""
        return self.in_turn[0] if self.in_turn else None

    def settings(self) -> dict[str, str]:
        """Return the settings of the first look."""
        settings = {} if self.first is None else {THRESHOLD_SETTING: str(self.first.threshold)}
        # The planner takes a comparison by trigrams for as cheap as one of numbers.
        return settings if self.most is None else settings | {"enable_seqscan": "off"}


def _look_up(
    corpus: Corpus, ask: Ask, prelude: Prelude, known: Known, size: _Size, *, everything: bool
) -> LookUp | None:
    """Choose the words that indexes are asked for; None where no leg needs any, or none is left."""
    by_words = "fuzzy" in ask.legs and not ask.question.is_unspaced
    if "text" not in ask.legs and not by_words:
        return None
    return look_up(
        prelude.asked,
        known.lexicon,
        size.searched,
        share=size.share,
        depth=ask.depth,
        fetch=FETCH_OF_SCOPE if corpus.scope is not None else FETCH,
        everything=everything or size.kept is not None,
    )


def _reweigh(ask: Ask, ranking: ActiveRanking | None, foreign: tuple[str, ...]) -> Ask:
    """Give the legs their learned weights, and the vector leg less in a foreign language."""
    if ranking is not None:
        return replace(ask, legs=_relearn(ask.legs, ranking.weights), foreign=1.0)
    return replace(ask, stretch=ask.stretch * ask.foreign) if foreign else ask


def _bind(ask: Ask, ranking: ActiveRanking | None, legs: Sequence[str]) -> dict[str, Any]:
    """Return the parameters of a ranking statement that the question and its options give."""
    values: dict[str, Any] = {
        "page_limit": ask.limit,
        "page_offset": ask.offset,
        "group_size": ask.group_size,
        "question_vector": ask.vector,
        "min_similarity": ask.min_similarity,
        "rrf_k": ask.rrf_k,
        "boost": ask.boost,
        "half_life_days": ask.half_life_days,
        **{f"leg_{name}": weight for name, weight in _weights(ask, legs).items()},
    }
    if ranking is not None:
        values |= {"ranking_scope": ranking.scope, "ranking_id": ranking.id}
    return values


def _explain_matching(shape: Shape) -> str:
    return explain_matching(shape.corpus, shape.conditions, shape.demanding)


def _weights(ask: Ask, legs: Sequence[str]) -> dict[str, float]:
    """Return the weights of the legs that take part, summing to 1; ranks have no such sum."""
    weights = {name: ask.legs[name] for name in legs}
    if ask.fusion == "rrf":
        return weights
    if "vector" in weights:
        weights["vector"] *= ask.stretch
    total = sum(weights.values()) or 1.0
    return {name: weight / total for name, weight in weights.items()}


def _find_foreign(model: AskedModel | None, languages: tuple[str, ...]) -> tuple[str, ...]:
    """Return the languages of a question where the model knows none of them."""
    return () if model is None or model.knows_any(languages) else languages


def _relearn(legs: Mapping[str, float], learned: Mapping[str, float]) -> dict[str, float]:
    """Replace weights by learned ones; where fuzzy stands in for text, it has its weight."""
    return {
        name: learned.get("text" if name == "fuzzy" else name, weight)
        for name, weight in legs.items()
    }


def _ef_search(ask: Ask, size: _Size) -> int:
    """Return the number of nearest that an index scan keeps.

    After the filters, enough are left for a leg's depth.
    """
    fetched = ask.model.candidates_for(ask.depth) if ask.model else ask.depth
    (few, least), (many, most) = EF_SEARCH
    searched = size.searched if size.searched > 1 else many  # unknown before the first ANALYZE
    way = log(min(max(searched, few), many) / few, many / few)
    wanted = max(least + way * (most - least), fetched * EF_HEADROOM)
    return min(MAX_EF_SEARCH, round(wanted / max(size.share, wanted / MAX_EF_SEARCH)))


def _plan_by_values(ask: Ask, known: Known, *, counted: bool, scoped: bool) -> bool:
    """Return whether the planner must see the values: filters keep unequal shares of passages.

    Planning takes longer than most searches: all others keep the plan of the first of their kind.
    """
    filtered = bool(ask.filters or ask.question.demands)
    return filtered or (not scoped and (counted or known.narrows(ask)))


def _choose_planning(*, by_values: bool, scoped: bool) -> dict[str, str]:
    """Return the settings of the planner.

    A plan for any scope does not know that this one is small: an index serves the large, too.
    """
    reads_tables = "on" if by_values or not scoped else "off"
    planning = "force_custom_plan" if by_values else "force_generic_plan"
    return PLANNER | {"plan_cache_mode": planning, "enable_seqscan": reads_tables}


PLANNER: Final = {
    "hnsw.iterative_scan": "relaxed_order",
    "hnsw.max_scan_tuples": str(MAX_SCAN_TUPLES),
    "cpu_index_tuple_cost": INDEX_TUPLE_COST,
    "parallel_setup_cost": PARALLEL_SETUP_COST,
    "jit": "off",  # compiling costs more than a search
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
