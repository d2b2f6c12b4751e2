"""The prelude of a search: a small statement, by whose answer the search's own is chosen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import chain
from typing import Any, NamedTuple, Self

from sqlalchemy import (
    ARRAY,
    CTE,
    Boolean,
    ColumnElement,
    Double,
    FromClause,
    Integer,
    Select,
    String,
    Text,
    all_,
    bindparam,
    case,
    cast,
    column,
    func,
    literal,
    literal_column,
    null,
    or_,
    select,
    true,
)
from sqlalchemy.dialects.postgresql import REGCLASS, TSQUERY, aggregate_order_by

from pgcorpus.db.base import table_of
from pgcorpus.db.models.documentation import LearnedRanking
from pgcorpus.db.search.corpus import Condition, Corpus
from pgcorpus.db.search.driver import in_drivers_words
from pgcorpus.db.search.estimates import estimate_passages
from pgcorpus.db.search.question import list_languages, read_lexemes, select_demands
from pgcorpus.db.search.ranking import Shape, select_matching, select_ranking
from pgcorpus.db.search.words import Lexicon

SURELY_LARGE = 3
"""Times as many passages as are few, by the statistics: a corpus that is not counted."""

SAMPLED_FOR_LANGUAGES = 1000
"""Passages whose language is looked at where the statistics do not list every language."""

SAMPLED_OF_SCOPE = 1000
"""Passages of a scope in which words are counted: half a microsecond for each passage and word, and
two to read the passage. A share of 5 % is then right to 0.7 %."""

ENGLISH = cast(literal_column("'{english}'"), ARRAY(Text))
"""The language of questions where no passage tells its own."""

ANYTHING = "'!''no lexeme has spaces'''"
"""A ``tsquery`` that every passage meets."""


class ActiveRanking(NamedTuple):
    """A learned ranking, as a search reads it.

    Attributes:
        id: Its key.
        scope: ``shared``, or the scope that learned it.
        version: Its number there.
        weights: Leg → weight.
    """

    id: str
    scope: str
    version: int
    weights: Mapping[str, float]


@dataclass(frozen=True)
class Prelude:
    """The answer of the prelude.

    Attributes:
        asked: Language → lexeme of the question → how often it was asked.
        demanded: What the question demands of a passage, as a ``tsquery``, or None for nothing.
        kept: How many passages meet the filters and demands, counted up to one more than are few.
        held: Whether an index finds all that may meet the filters, and they are few.
        counted: Whether they were asked to be; a table with few passages is counted anyway, of
            others ``kept`` is one more than are few then.
        visible: Passages that the transaction may see, estimated; 0 before the first ANALYZE.
        estimated: What filters keep of them, estimated; None where that was not asked for.
        sampled: Passages of the scope that were looked at; fewer than ``SAMPLED_OF_SCOPE`` are all.
            Those that are shared are not among them.
        own: The question's words in these, or None where there are no statistics of the scope.
        own_passages: Passages of the scope beside those that are shared, estimated.
        ranking: The learned ranking that is active, the scope's own before the shared one; None
            where there is none, or it was not asked for.
    """

    asked: Mapping[str, Mapping[str, int]]
    demanded: str | None
    visible: float
    kept: int
    counted: bool
    held: bool = False
    sampled: int = 0
    estimated: float | None = None
    own: Lexicon | None = None
    own_passages: float = 0.0
    ranking: ActiveRanking | None = None

    @classmethod
    def of(cls, row: Mapping[str, Any], *, counted: bool) -> Self:
        """Read a row of the prelude."""
        return cls(
            _read_asked(row),
            row["demanded"],
            row["passages"],
            row["kept"],
            counted,
            row.get("held", False),
            row.get("sampled", 0),
            own=_read_own(row),
            ranking=ActiveRanking(**row["ranking"]) if row.get("ranking") else None,
        )

    def within_scope(
        self, passages: float = 0.0, kept: float | None = None, *, shared: bool = False
    ) -> Self:
        """Limit the estimates to the scope.

        Args:
            passages: The scope's own, as the planner estimates them; 0 where that was not asked.
            kept: What filters keep of them, likewise.
            shared: Whether ``visible`` are the shared passages, and those of the scope are beside
                them; else ``visible`` are those of all scopes.
        """
        if shared:
            is_cut = self.sampled >= SAMPLED_OF_SCOPE
            own = max(passages, self.sampled) if is_cut else float(self.sampled)
            visible = self.visible + own
            return replace(self, visible=visible, estimated=kept, own_passages=own)
        estimated = passages if self.sampled >= SAMPLED_OF_SCOPE else 0.0
        visible = max(self.sampled, min(estimated, self.visible))
        return replace(self, visible=visible, estimated=kept)


def _read_asked(row: Mapping[str, Any]) -> dict[str, dict[str, int]]:
    """Read the question's lexemes: language → lexeme → how often it was asked."""
    asked: dict[str, dict[str, int]] = {}
    for language, lexeme, times in row["asked"] or ():
        asked.setdefault(language, {})[lexeme] = times
    return asked


def _read_own(row: Mapping[str, Any]) -> Lexicon | None:
    """Read the statistics of the scope, where there are any."""
    if row.get("own_elements") is None:
        return None
    return Lexicon(
        frequencies=dict(zip(row["own_elements"], row["own_frequencies"], strict=True)),
        mean_length=row["mean_length"],
    )


@lru_cache(maxsize=512)
def compile_prelude(
    corpus: Corpus,
    conditions: tuple[Condition, ...],
    *,
    demanding: bool,
    by_words: bool,
    scoped: bool,
    learned: bool = False,
) -> str:
    """Compile the prelude of searches with these conditions, for the driver.

    Parameters beside those of the filters and demands: ``words``, ``languages`` (empty at first),
    ``known_languages`` and ``known_version`` (of the statistics that they are known by, which the
    caller has), ``few`` and ``counted``.

    Args:
        corpus: What is searched.
        conditions: Its filters.
        demanding: Whether the question demands something of a passage.
        by_words: Whether words matter; else those of a scope are not counted.
        scoped: Whether the search has a scope.
        learned: Whether the active learned ranking is read, too.

    Returns:
        One row: ``asked``, ``demanded``, ``passages``, ``kept``, ``languages``, where an index
        serves the filters ``held``, and of the statistics ``version``, ``elements`` and
        ``frequencies``, the last two null when the caller has them. Of a scope there are
        ``own_elements``, the question's lexemes alone, ``own_frequencies``, ``mean_length``, in
        lexemes, and ``sampled``: how many of its passages were looked at. ``ranking`` is JSON: see
        ``ActiveRanking``.
    """
    relation = cast(literal(corpus.passages.name, String()), REGCLASS)
    known: list[ColumnElement[Any]] = [*map(_label_null, ("version", "elements", "frequencies"))]
    own: list[ColumnElement[Any]] = []
    sources: list[FromClause] = []
    if not corpus.needs_scope:
        statistics = _of_table(corpus, relation)
        sources.append(statistics)
        known = [statistics.c[each] for each in ("version", "elements", "frequencies")]
        languages: ColumnElement[Any] = case(
            (statistics.c.all_languages, statistics.c.languages),
            else_=_some_languages(corpus, statistics.c.languages),
        )
        if corpus.shared_words is not None:
            # The statistics are of an index, which has no languages: those of before stay for as
            # long as they do.
            before = cast(bindparam("known_languages", type_=ARRAY(Text())), ARRAY(Text))
            same = statistics.c.version == cast(bindparam("known_version", type_=Text()), Text)
            languages = case((same, before), else_=languages)
    if corpus.scope is not None and scoped:
        of_scope = _of_scope(corpus) if by_words else _of_scope_without_words(corpus)
        sources.append(of_scope)
        own = [each for each in of_scope.c if each.key != "languages"]
        languages = of_scope.c.languages if corpus.needs_scope else _unite(languages, of_scope)
    few = bindparam("few", type_=Integer())
    nothing: Select[Any] = select(cast(null(), Text).label("demanded"))
    read = (select_demands() if demanding else nothing).cte("read").prefix_with("MATERIALIZED")
    narrowing = Shape(corpus=corpus, legs=(), conditions=conditions).narrowing()
    if demanding:
        met = select(cast(func.coalesce(read.c.demanded, literal_column(ANYTHING)), TSQUERY))
        condition = corpus.words.op("@@")(met.scalar_subquery())
        narrowing = replace(narrowing, direct=[*narrowing.direct, condition])
    some = select_matching(corpus, narrowing).limit(few + 1)
    counted: ColumnElement[Any] = (
        select(func.count()).select_from(some.subquery()).scalar_subquery()
    )
    held: list[ColumnElement[Any]] = []
    if any(condition.indexed for condition in conditions):
        addresses = corpus.list_held(few + 1)
        is_few = func.cardinality(addresses) <= few
        among = replace(narrowing, direct=[corpus.is_among(addresses), *narrowing.direct])
        of_held = select(func.count()).select_from(select_matching(corpus, among).subquery())
        counted = case((is_few, of_held.scalar_subquery()), else_=counted)
        held.append(is_few.label("held"))
    passages = estimate_passages(corpus)
    small = or_(
        cast(bindparam("counted", type_=Boolean()), Boolean), passages <= SURELY_LARGE * few
    )
    statement = select(
        _collect_lexemes().label("asked"),
        select(read.c.demanded).scalar_subquery().label("demanded"),
        passages.label("passages"),
        case((small, counted), else_=few + 1).label("kept"),
        *held,
        languages.label("languages"),
        *known,
        *own,
        *([_read_ranking(corpus)] if learned else []),
    ).select_from(*sources)
    return in_drivers_words(statement)


def _label_null(name: str) -> ColumnElement[Any]:
    return cast(null(), Text).label(name)


def _read_ranking(corpus: Corpus) -> ColumnElement[Any]:
    """Read the active learned ranking."""
    rankings = table_of(LearnedRanking)
    parts = [(literal(name, String()), rankings.c[name]) for name in ActiveRanking._fields]
    built = func.jsonb_build_object(*chain.from_iterable(parts))
    return select_ranking(corpus, built).scalar_subquery().label("ranking")


def _unite(languages: ColumnElement[Any], of_scope: FromClause) -> ColumnElement[Any]:
    """Unite languages with those of the scope, which come last."""
    more = select(func.unnest(of_scope.c.languages)).except_(select(func.unnest(languages)))
    return func.array_cat(languages, func.array(more.scalar_subquery()))


def _of_table(corpus: Corpus, relation: ColumnElement[Any]) -> FromClause:
    """Read the statistics that ANALYZE keeps of the table, or of what is shared of it."""
    words: str = corpus.words.name
    if corpus.shared_words is not None:
        relation = cast(literal(corpus.shared_words, String()), REGCLASS)
        words = "tsvector_to_array"  # so PostgreSQL calls a column by its expression's function
    return (
        func.lexeme_statistics(
            relation,
            literal(words, String()),
            literal(corpus.language.name, String()),
            cast(bindparam("known_version", type_=Text()), Text),
        )
        .table_valued(
            column("version", Text),
            column("languages", ARRAY(Text)),
            column("all_languages", Boolean),
            column("elements", ARRAY(Text)),
            column("frequencies", ARRAY(Double)),
        )
        .render_derived()
    )


def _of_scope(corpus: Corpus) -> FromClause:
    """Count the question's words in a sample of the scope.

    ANALYZE's statistics are of all scopes: they would tell, and rank by, what others say.
    """
    language = cast(corpus.language, Text).label("language")
    sample = _sample_scope(corpus, corpus.words.label("words"), language)
    distinct = select(_read_question().c.lexeme).distinct().subquery("distinct_lexemes")
    escaped = func.replace(func.replace(distinct.c.lexeme, "\\", "\\\\"), "'", "''")
    as_query = cast(func.concat("'", escaped, "'"), TSQUERY).label("query")
    # OFFSET 0, or the planner copies the expression to where it is computed for each passage.
    lexemes = (
        select(distinct.c.lexeme, as_query).offset(literal_column("0", Integer)).subquery("lexemes")
    )
    held = (
        select(func.avg(cast(sample.c.words.op("@@")(lexemes.c.query), Integer)))
        .correlate(lexemes)
        .scalar_subquery()
    )
    share = cast(func.coalesce(held, 0), Double)  # of no passages there is no mean
    known = select(lexemes.c.lexeme, share.label("frequency")).subquery("known")
    length = select(cast(func.avg(func.length(sample.c.words)), Double)).scalar_subquery()
    return select(
        func.coalesce(_by_frequency(sample.c.language), ENGLISH).label("languages"),
        func.array_agg(known.c.lexeme).label("own_elements"),
        func.array_agg(known.c.frequency).label("own_frequencies"),
        length.label("mean_length"),
        select(func.count()).select_from(sample).scalar_subquery().label("sampled"),
    ).subquery("of_scope")


def _of_scope_without_words(corpus: Corpus) -> FromClause:
    """Count the passages in a sample of the scope, from an index alone."""
    sample = _sample_scope(corpus, literal_column("1").label("one"))
    return select(
        cast(bindparam("known_languages", type_=ARRAY(Text())), ARRAY(Text)).label("languages"),
        select(func.count()).select_from(sample).scalar_subquery().label("sampled"),
    ).subquery("of_scope")


def _sample_scope(corpus: Corpus, *columns: ColumnElement[Any]) -> CTE:
    """Select a sample of the scope's own passages."""
    *_, own = corpus.split_scope(corpus.passages)
    some = select(*columns).where(*own)
    some = some.limit(literal_column(str(SAMPLED_OF_SCOPE), Integer))
    return some.cte("sample").prefix_with("MATERIALIZED")


def _read_question() -> FromClause:
    """Parse the question in each language into ``name``, ``lexeme`` and ``positions``."""
    language = list_languages()
    read = read_lexemes(language, cast(bindparam("words", type_=Text()), Text))
    each = select(language.c.name, read.c.lexeme, read.c.positions)
    return each.select_from(language).join(read, true()).subquery("question")


def _collect_lexemes() -> ColumnElement[Any]:
    """Collect the question's lexemes as (language, lexeme, times)."""
    question = _read_question()
    triple = func.jsonb_build_array(
        question.c.name, question.c.lexeme, func.cardinality(question.c.positions)
    )
    return select(func.jsonb_agg(triple)).scalar_subquery()


def _some_languages(corpus: Corpus, listed: ColumnElement[Any]) -> ColumnElement[Any]:
    """Combine the languages of the statistics with those of some passages.

    The most frequent come first.
    """
    none = cast(literal_column("'{}'"), ARRAY(Text))
    first = func.coalesce(listed, none)
    shared, *_ = corpus.split_scope(corpus.passages)
    some = select(corpus.language).where(*shared).limit(SAMPLED_FOR_LANGUAGES).subquery()
    others = _by_frequency(cast(some.c[0], Text), but=first)
    every = func.array_cat(first, func.coalesce(others, none))
    return func.coalesce(func.nullif(every, none), ENGLISH)


def _by_frequency(
    language: ColumnElement[str], but: ColumnElement[Any] | None = None
) -> ColumnElement[Any]:
    """Order the names of languages by frequency, the highest first; null where there are none."""
    counted = (
        select(language.label("name"), func.count().label("passages")).group_by(language).subquery()
    )
    ordered = aggregate_order_by(counted.c.name, counted.c.passages.desc(), counted.c.name)
    names = select(func.array_agg(ordered))
    return (names if but is None else names.where(counted.c.name != all_(but))).scalar_subquery()
