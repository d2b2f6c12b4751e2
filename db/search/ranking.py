"""Legs joined into one statement: the union of their candidates, fused, and shown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from typing import Any, Final

from sqlalchemy import (
    ARRAY,
    CTE,
    ColumnElement,
    Double,
    FromClause,
    Integer,
    Select,
    String,
    Subquery,
    Text,
    Uuid,
    any_,
    bindparam,
    case,
    cast,
    column,
    except_,
    exists,
    extract,
    func,
    literal,
    literal_column,
    null,
    select,
    true,
    union,
    union_all,
)

from pgcorpus.db.base import SHARED, table_of
from pgcorpus.db.choices import Fusion
from pgcorpus.db.models.documentation import LearnedRanking
from pgcorpus.db.models.embeddings import CorpusSetting, EmbeddingModel
from pgcorpus.db.search.corpus import Condition, Corpus
from pgcorpus.db.search.driver import in_drivers_words
from pgcorpus.db.search.legs import (
    AskedModel,
    FuzzyLeg,
    Narrowing,
    SearchLeg,
    TextLeg,
    TsQuery,
    VectorLeg,
    meets,
)

LEAST_SIMILARITY: Final[ColumnElement[float]] = bindparam("min_similarity", type_=Double())

AWAITED_LOOKED_AT: Final = 20
"""Pending jobs of which one must be of a passage without a vector. Mostly the first is; where a
command made the vectors and left the jobs pending, no search looks through thousands of them."""


@dataclass(frozen=True, kw_only=True)
class Shape:
    """The shape of a search.

    Its statement depends on nothing else but the values of its parameters.

    Attributes:
        corpus: What is searched.
        legs: Which legs run, in this order.
        fusion: How they are joined.
        depth: Candidates of each leg, at most.
        model: The model whose vectors the vector leg compares.
        words: For how many words the text and the fuzzy leg have room.
        most_alike: How many passages the fuzzy leg finds by trigrams; None where it compares all.
        conditions: What the filters ask of a passage.
        demanding: Whether the question demands something of it: the parameter ``demanded``.
        few: Whether all that meet both are compared.
        whole: Whether all of the scope are, without an index, and most of it meets both.
        beside: Whether all vectors of the scope are, beside an index of those that are shared.
        held: Whether an index finds all that may meet a condition, and they are few.
        late: Whether the conditions that other tables answer are asked of the page's hits alone,
            best first: nearly all passages meet them.
        boosted: Whether the corpus's boost counts.
        bounded: Whether the vector leg drops what is less similar than ``min_similarity``.
        group_by: The column of the hits by which they are grouped, or None.
        weighed: Whether it is told which learned ranking is active: the weights are of one.
        learned: Whether boosts of a learned ranking are added: the parameters ``ranking_scope`` and
            ``ranking_id``.
    """

    corpus: Corpus
    legs: tuple[str, ...]
    fusion: Fusion = "calibrated"
    depth: int = 100
    model: AskedModel | None = None
    words: int = 0
    most_alike: int | None = None
    conditions: tuple[Condition, ...] = ()
    demanding: bool = False
    few: bool = False
    whole: bool = False
    beside: bool = False
    held: bool = False
    late: bool = False
    boosted: bool = False
    bounded: bool = False
    group_by: str | None = None
    weighed: bool = False
    learned: bool = False

    def narrowing(self) -> Narrowing:
        """Return the conditions as SQL."""
        corpus = self.corpus
        direct = [corpus.holds(each) for each in self.conditions if corpus.is_direct(each)]
        if self.held:
            direct.append(corpus.is_among(corpus.list_held(cast(null(), Integer))))
        if self.demanding:
            direct.append(corpus.words.op("@@")(bindparam("demanded", type_=TsQuery())))
        return Narrowing(
            direct=direct,
            distant=() if self.late else self.distant_conditions(),
            few=self.few,
            whole=self.whole,
            beside=self.beside,
        )

    def distant_conditions(self) -> list[ColumnElement[bool]]:
        """Return those that other tables than the passages' own answer, as SQL."""
        corpus = self.corpus
        return [corpus.holds(each) for each in self.conditions if not corpus.is_direct(each)]

    def search_legs(self) -> list[SearchLeg]:
        """Return the legs, each of which builds its part of the statement."""
        legs: list[SearchLeg] = []
        for name in self.legs:
            if name == "vector" and self.model is not None:
                legs.append(VectorLeg(self.corpus, self.model))
            elif name == "text":
                legs.append(TextLeg(self.corpus, self.words))
            elif name == "fuzzy":
                legs.append(FuzzyLeg(self.corpus, self.words, self.most_alike))
        return legs


@lru_cache(maxsize=512)
def compile_search(shape: Shape) -> str:
    """Compile the statement of a search for the driver, once for each shape."""
    return in_drivers_words(build_statement(shape))


def build_statement(shape: Shape) -> Select[Any]:
    """Build the statement of a search: every leg, one snapshot.

    ``weighted`` and ``rrf`` add weight · score and weight / (``rrf_k`` + place) for each leg that
    found a passage. ``calibrated`` adds weight · score for every leg: what one leg alone found is
    scored by the others too, so that a passage is not judged by what a leg's depth happened to cut
    off.
    A learned ranking adds its boost of the passage to that.
    Where it is boosted, a score is multiplied by 1 + ``boost`` · the corpus's boost. Grouped, the
    page has the best hits of each group, and ``page_limit`` and ``page_offset`` count groups.

    Returns:
        At least one row, whose first columns report of the search: of each leg
        ``<leg>_candidates`` and ``<leg>_ended``, in milliseconds from the start of the statement;
        of the vector leg ``active`` (the corpus's active model), ``index_kind`` and
        ``cosine_spread`` of the model compared, in the same snapshot, ``awaited`` (whether vectors
        of it are still to be made) and ``dropped`` (how many candidates were less similar than the
        search asks for); of groups ``group_total``; of learned weights ``active_ranking``, or null.
        Of each hit it has ``<leg>_place``, null where another leg found it, and ``<leg>_score``,
        null where the leg gives none; with groups ``group_place``, from 1, and ``group_found``: how
        many of the candidates are of its group; where conditions are asked late ``asked_place``:
        its place among all that were asked. Where nothing was found, the columns of the hit are
        null.
    """
    corpus, narrowing = shape.corpus, shape.narrowing()
    legs = shape.search_legs()
    found = {leg.name: _rank_candidates(leg, shape.depth, narrowing) for leg in legs}
    dropped: ColumnElement[int] = literal_column("0", Integer)
    if shape.bounded and "vector" in found:
        nearest = found["vector"]
        near_enough = select(nearest).where(nearest.c.score >= LEAST_SIMILARITY)
        found["vector"] = near_enough.cte("vector_kept")
        below = select(func.count()).where(nearest.c.score < LEAST_SIMILARITY)
        dropped = below.scalar_subquery()
    rows = [_label_leg(name, cte) for name, cte in found.items()]
    if shape.fusion == "calibrated" and len(legs) > 1:
        rows += [_complete_scores(leg, found, bounded=shape.bounded) for leg in legs]
    candidates = union_all(*rows).cte("candidates").prefix_with("MATERIALIZED")
    scores: Select[Any] = select(
        candidates.c.passage_id,
        func.sum(_gain(candidates, shape)).label("score"),
        *chain.from_iterable(_select_leg(candidates, name) for name in found),
    ).group_by(candidates.c.passage_id)
    if shape.learned:
        scores = _add_learned(scores, corpus)
    scored = (_boost(scores, corpus) if shape.boosted else scores).subquery("scored")
    grouped = None if shape.group_by is None else _group(scored, corpus, shape.group_by)
    fused = _cut_page(scored, shape) if grouped is None else _cut_page_of_groups(grouped)
    hits = corpus.hits.where(*corpus.in_scope(corpus.passages)).subquery("hits")
    shown = (
        select(*fused.c, *hits.c)
        .join_from(fused, hits, hits.c.id == fused.c.passage_id)
        .subquery("page")
    )
    report = _report(candidates, shape, dropped, grouped)
    place = () if grouped is None else (shown.c.group_place,)
    return (
        select(report, shown)
        .join_from(report, shown, true(), isouter=True)
        .order_by(*place, shown.c.score.desc(), shown.c.passage_id)
    )


def select_matching(corpus: Corpus, narrowing: Narrowing) -> Select[Any]:
    """Select the passages that meet the filters and the question's demands, to be counted."""
    some: Select[Any] = select(literal_column("1")).select_from(corpus.passages)
    return some.where(*corpus.in_scope(corpus.passages), *narrowing.direct, *narrowing.distant)


def select_ranking(corpus: Corpus, shown: ColumnElement[Any]) -> Select[Any]:
    """Select of the active learned ranking: the scope's own before the shared one."""
    rankings = table_of(LearnedRanking)
    return (
        select(shown)
        .where(
            rankings.c.scope == any_(bindparam("scopes", type_=ARRAY(Text))),
            rankings.c.corpus == literal(corpus.name, String()),
            rankings.c.is_active,
        )
        .order_by(rankings.c.scope == literal(SHARED, String()))
        .limit(literal_column("1", Integer))
    )


def _cut_page(scored: Subquery, shape: Shape) -> CTE:
    """Select the hits of the page."""
    order = (scored.c.score.desc(), scored.c.passage_id)
    best_first = select(scored).order_by(*order)
    if shape.late:
        place = func.row_number().over(order_by=order).label("asked_place")
        # OFFSET 0, or the conditions would be asked of all before they are ordered.
        ordered = best_first.add_columns(place).offset(literal_column("0", Integer))
        each = ordered.subquery("best_first")
        met = meets(shape.corpus, each, shape.distant_conditions())
        best_first = select(each).where(met).order_by(each.c.asked_place)
    return (
        best_first.limit(bindparam("page_limit", type_=Integer()))
        .offset(bindparam("page_offset", type_=Integer()))
        .cte("fused")
    )


def _group(scored: Subquery, corpus: Corpus, group_by: str) -> CTE:
    """Select the best hits of each group, with the group's place by its best hit."""
    hits = corpus.hits.where(*corpus.in_scope(corpus.passages)).subquery("grouped_hits")
    key = hits.c[group_by]
    best_first = (scored.c.score.desc(), scored.c.passage_id)

    def of_best(column: ColumnElement[Any]) -> ColumnElement[Any]:
        return func.first_value(column).over(partition_by=key, order_by=best_first)

    placed = (
        select(
            *scored.c,
            of_best(scored.c.score).label("best_score"),
            of_best(scored.c.passage_id).label("best"),
            func.row_number().over(partition_by=key, order_by=best_first).label("place"),
            func.count().over(partition_by=key).label("group_found"),
        )
        .join_from(scored, hits, hits.c.id == scored.c.passage_id)
        .subquery("placed")
    )
    group_place = func.dense_rank().over(order_by=(placed.c.best_score.desc(), placed.c.best))
    return (
        select(
            *(placed.c[each.key] for each in scored.c),
            group_place.label("group_place"),
            placed.c.group_found,
        )
        .where(placed.c.place <= bindparam("group_size", type_=Integer()))
        .cte("grouped")
        .prefix_with("MATERIALIZED")
    )


def _cut_page_of_groups(grouped: CTE) -> CTE:
    """Select the hits of the page's groups."""
    before = bindparam("page_offset", type_=Integer())
    end = before + bindparam("page_limit", type_=Integer())
    of_page = grouped.c.group_place > before, grouped.c.group_place <= end
    return select(grouped).where(*of_page).cte("fused")


def _add_learned(summed: Select[Any], corpus: Corpus) -> Select[Any]:
    """Add the boosts of a learned ranking to the scores.

    They are looked up one by one: a join would be made of all boosts where they are thought few.
    """
    unlearned, boosts = summed.subquery("unlearned"), corpus.get_boosts()
    boost = (
        select(cast(boosts.c.boost, Double))
        .where(
            boosts.c.scope == bindparam("ranking_scope", type_=Text()),
            boosts.c.ranking_id == bindparam("ranking_id", type_=Uuid()),
            boosts.c[corpus.item.key] == unlearned.c.passage_id,
        )
        .correlate(unlearned)
        .scalar_subquery()
    )
    # OFFSET 0, or the look-up would be copied to each place that names it.
    each = (
        select(*unlearned.c, func.coalesce(boost, 0.0, type_=Double).label("learned_gain"))
        .offset(literal_column("0", Integer))
        .subquery("each_learned")
    )
    others = [kept for kept in each.c if kept.key != "score"]
    return select(*others, (each.c.score + each.c.learned_gain).label("score"))


def _boost(summed: Select[Any], corpus: Corpus) -> Select[Any]:
    """Multiply the scores by the corpus's boost."""
    each = summed.subquery("summed")
    weight: ColumnElement[float] = bindparam("boost", type_=Double())
    boost = weight * corpus.boost
    others = [kept for kept in each.c if kept.key != "score"]
    return (
        select(*others, (each.c.score * (1 + boost)).label("score"))
        .join_from(each, corpus.passages, corpus.key == each.c.passage_id)
        .where(*corpus.in_scope(corpus.passages))
    )


def _rank_candidates(leg: SearchLeg, depth: int, narrowing: Narrowing) -> CTE:
    """Rank a leg's candidates, each with the time at which it was there."""
    best = leg.find(depth, narrowing).subquery(f"{leg.name}_best")
    elapsed = extract("epoch", func.clock_timestamp() - func.statement_timestamp())
    return (
        select(
            best.c.passage_id,
            best.c.score,
            func.row_number()
            .over(order_by=(best.c.score.desc(), best.c.passage_id))
            .label("place"),
            cast(elapsed * 1000, Double).label("ended"),
        )
        .cte(f"{leg.name}_found")
        .prefix_with("MATERIALIZED")
    )


def _label_leg(name: str, found: CTE) -> Select[Any]:
    return select(
        literal_column(f"'{name}'").label("leg"),
        found.c.passage_id,
        found.c.score,
        found.c.place,
        found.c.ended,
    )


def _complete_scores(leg: SearchLeg, found: dict[str, CTE], *, bounded: bool) -> Select[Any]:
    """Score with one leg the candidates that only the others found."""
    own = found[leg.name]
    others: Sequence[Select[Any]] = [
        select(cte.c.passage_id) for name, cte in found.items() if name != leg.name
    ]
    found_by_others = union(*others) if len(others) > 1 else others[0]
    missing = except_(found_by_others, select(own.c.passage_id)).subquery("missing")
    scores = leg.score_passages(select(missing.c.passage_id)).subquery(f"{leg.name}_completed")
    completed = select(
        literal_column(f"'{leg.name}'").label("leg"),
        scores.c.passage_id,
        scores.c.score,
        cast(null(), Integer).label("place"),
        cast(null(), Double).label("ended"),
    )
    if bounded and leg.name == "vector":
        completed = completed.where(scores.c.score >= LEAST_SIMILARITY)
    return completed


def _gain(candidates: CTE, shape: Shape) -> ColumnElement[Any]:
    weight = case(
        *(
            (
                candidates.c.leg == literal_column(f"'{name}'"),
                bindparam(f"leg_{name}", type_=Double()),
            )
            for name in shape.legs
        )
    )
    if shape.fusion == "rrf":
        constant: ColumnElement[int] = bindparam("rrf_k", type_=Integer())
        return weight / (cast(candidates.c.place, Double) + constant)
    return weight * candidates.c.score


def _select_leg(candidates: CTE, name: str) -> list[ColumnElement[Any]]:
    """Select the place and the score that a leg gives to each passage."""
    of_leg = candidates.c.leg == literal_column(f"'{name}'")
    return [
        func.max(candidates.c[column]).filter(of_leg).label(f"{name}_{column}")
        for column in ("place", "score")
    ]


def _report(
    candidates: CTE, shape: Shape, dropped: ColumnElement[int], grouped: CTE | None
) -> Subquery:
    """Select the row that reports of the search itself."""
    legs: list[ColumnElement[Any]] = []
    for name in shape.legs:
        of_leg = candidates.c.leg == literal_column(f"'{name}'")
        legs += [
            func.count(candidates.c.place).filter(of_leg).label(f"{name}_candidates"),
            func.max(candidates.c.ended).filter(of_leg).label(f"{name}_ended"),
        ]
    counted = select(*legs).select_from(candidates).subquery("counted")
    columns: list[ColumnElement[Any]] = [*counted.c]
    source: FromClause = counted
    if shape.model is not None:
        state = _select_state(shape.corpus, shape.model)
        columns += [*state.c, _is_vector_pending(shape.corpus, shape.model).label("awaited")]
        columns += [dropped.label("dropped")] if shape.bounded else []
        source = counted.outerjoin(state, true())
    if shape.weighed:
        active = select_ranking(shape.corpus, table_of(LearnedRanking).c.id)
        columns.append(active.scalar_subquery().label("active_ranking"))
    if grouped is not None:
        total = select(func.max(grouped.c.group_place)).scalar_subquery()
        columns.append(total.label("group_total"))
    return select(*columns).select_from(source).subquery("report")


def _select_state(corpus: Corpus, model: AskedModel) -> Subquery:
    """Select the corpus's active model, and index kind and cosine spread of the one compared."""
    active = select(CorpusSetting.active_model).where(CorpusSetting.corpus == corpus.name)
    return (
        select(
            active.scalar_subquery().label("active"),
            EmbeddingModel.index_kind,
            EmbeddingModel.cosine_spread,
        )
        .where(EmbeddingModel.name == model.name)
        .subquery("state")
    )


def _select_pending(jobs_of: ColumnElement[str]) -> Select[Any]:
    """Select the keys of some passages for which a job is pending; of no scope there are none."""
    pending = (
        func.passages_to_embed(jobs_of, literal(AWAITED_LOOKED_AT, Integer()))
        .table_valued(column("item", Text))
        .render_derived()
    )
    return select(pending.c.item)


def _is_vector_pending(corpus: Corpus, model: AskedModel) -> ColumnElement[bool]:
    """Build the condition that a job is pending for a vector which the vector leg misses."""
    jobs_of: list[ColumnElement[str]] = []
    if not corpus.needs_scope:
        jobs_of.append(literal(corpus.name, String()))
    if corpus.scope is not None:
        scope = bindparam("scope", type_=Text)
        jobs_of.append(literal(corpus.name, String()) + literal(":", String()) + scope)
    pending = union_all(*map(_select_pending, jobs_of)).subquery("pending")
    has_vector = exists().where(
        corpus.vector_join, corpus.vectors.c.model_name == literal(model.name)
    )
    # As an array: a join would read all keys of a scope, where it is thought to be small.
    items = select(func.array_agg(cast(pending.c.item, corpus.key.type))).scalar_subquery()
    asked = corpus.key == any_(cast(items, ARRAY(corpus.key.type)))
    return exists(
        select(literal_column("1"))
        .select_from(corpus.passages)
        .where(*corpus.in_scope(corpus.passages), asked, ~has_vector)
    )
