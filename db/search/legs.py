"""The three legs of a search: how each finds passages, and how it scores any passage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from pgvector.sqlalchemy import BIT, HALFVEC
from sqlalchemy import (
    ARRAY,
    ColumnElement,
    Double,
    FromClause,
    Integer,
    Select,
    String,
    Text,
    and_,
    bindparam,
    case,
    cast,
    column,
    func,
    literal,
    literal_column,
    null,
    select,
    true,
    union,
    union_all,
)
from sqlalchemy.dialects.postgresql import REAL
from sqlalchemy.sql.type_api import UserDefinedType

from pgcorpus.db.base import Vector
from pgcorpus.db.choices import HALFVEC_MAX_DIMENSIONS, IndexKind
from pgcorpus.db.search.corpus import Corpus
from pgcorpus.db.search.words import ADDED_WORDS, MOST_SATURATED, SATURATION, TEXT_WEIGHT

BINARY_OVERSAMPLING: Final = 4
"""Factor of the candidates ranked by the vectors: signs order less well than numbers."""

LEAST_BY_SIGNS: Final = 100
"""The least number of such candidates, however few a page needs."""

WHOLE_BYTES: Final = 8160
"""Rows that take less are stored as they are; of longer ones, values are compressed, or moved out
of the row where that does not make them shorter."""

LABEL_WEIGHTS: Final = f"'{{{TEXT_WEIGHT},{TEXT_WEIGHT},{TEXT_WEIGHT},1}}'::real[]"
"""Weights of the labels D, C, B and A, as ``ts_rank`` takes them; the title has A."""

THRESHOLD_SETTING: Final = "pg_trgm.word_similarity_threshold"

AS_CONCAT: Final = 10
"""The operator whose precedence ``<%`` has in PostgreSQL: its operands need parentheses."""


class TsQuery(UserDefinedType[str]):
    """A ``tsquery`` parameter without a cast through text, which would be read for every row."""

    cache_ok = True

    def get_col_spec(self, **_: object) -> str:
        """Return the type's name."""
        return "tsquery"


@dataclass(frozen=True)
class AskedModel:
    """The embedding model of a search.

    Attributes:
        name: As registered.
        dimensions: Length of its vectors.
        index_kind: What its index compares: half-precision vectors, or their signs.
        languages: Text search configurations that it knows, or None for all.
    """

    name: str
    dimensions: int
    index_kind: IndexKind = "halfvec"
    languages: tuple[str, ...] | None = None

    def knows_any(self, languages: Sequence[str]) -> bool:
        """Return whether a question in one of *languages* may be in one that the model knows.

        ``simple`` says nothing of a text's language.
        """
        named = {each.removeprefix("pg_catalog.") for each in languages}
        return self.languages is None or not named or bool(named & {"simple", *self.languages})

    def candidates_for(self, depth: int) -> int:
        """Return how many candidates the index gives, of which the best *depth* are kept."""
        if self.index_kind == "binary":
            return BINARY_OVERSAMPLING * max(depth, LEAST_BY_SIGNS)
        return depth


@dataclass(frozen=True, kw_only=True)
class Narrowing:
    """The conditions that a passage must meet beside being found.

    Attributes:
        direct: Conditions that the passage's own row answers.
        distant: Conditions that other tables answer. They are asked of the best first, until
            enough passages meet them.
        few: Whether so few passages meet them that all are compared: an index would have to be
            read far to find enough of them.
        whole: Whether the scope is so small that all its vectors and texts are compared, without an
            index, and most of it meets the conditions. Of vectors they are asked of the nearest
            first then, also where few are left; of texts before.
        beside: Whether that is so of the scope's own, beside shared passages that have an index.
    """

    direct: Sequence[ColumnElement[bool]] = ()
    distant: Sequence[ColumnElement[bool]] = ()
    few: bool = False
    whole: bool = False
    beside: bool = False


class VectorLeg:
    """The vector leg: candidates by an approximate index, ranked by the cosine of the full vectors.

    ``score`` is the cosine similarity, 0 where it is negative.
    """

    name: Final = "vector"

    def __init__(self, corpus: Corpus, model: AskedModel) -> None:
        self._corpus = corpus
        self._model = model
        self._question = bindparam("question_vector", type_=Vector())

    def find(self, depth: int, narrowing: Narrowing) -> Select[Any]:
        """Select (passage_id, score) of the nearest *depth* passages."""
        corpus = self._corpus
        near = select(corpus.item.label("passage_id"), corpus.vectors.c.embedding)
        near = near.where(self._is_of_model())
        if narrowing.whole:
            compared = near.where(*corpus.in_scope(corpus.vectors)).subquery("vector_near")
            cosine = self._cosine(compared.c.embedding)
            conditions = (*narrowing.direct, *narrowing.distant)
            return _best(compared.c.passage_id, cosine, depth, corpus, conditions)
        if narrowing.direct or narrowing.distant:
            near = near.join_from(corpus.vectors, corpus.passages, corpus.vector_join)
            # The planner knows how large a scope is where it is named, not where a policy asks.
            near = near.where(
                *corpus.in_scope(corpus.passages), *narrowing.direct, *narrowing.distant
            )
        approximate = self._approximate_distance()
        if narrowing.few or approximate is None:
            return self._rank(near.where(*corpus.in_scope(corpus.vectors)), depth)
        # The bare shape ORDER BY ... LIMIT that the index serves.
        fetched = literal_column(str(self._model.candidates_for(depth)), Integer)
        *shared, own = (near.where(*part) for part in corpus.split_scope(corpus.vectors))
        indexed = shared if narrowing.beside else [*shared, own]
        parts = [each.order_by(approximate).limit(fetched) for each in indexed]
        parts += [own] if narrowing.beside else []
        ranked = [self._rank(each, depth) for each in parts]
        if len(ranked) == 1:
            return ranked[0]
        nearest = union_all(*ranked).subquery("vector_nearest")
        return _best(nearest.c.passage_id, nearest.c.score, depth)

    def _rank(self, near: Select[Any], depth: int) -> Select[Any]:
        """Select (passage_id, score) of the best of some passages by their full vectors."""
        each = near.subquery()
        return _best(each.c.passage_id, self._cosine(each.c.embedding), depth)

    def score_passages(self, passages: Select[Any]) -> Select[Any]:
        """Select (passage_id, score) of given passages, without those that have no vector."""
        corpus, given = self._corpus, passages.subquery()
        return (
            select(given.c.passage_id, self._cosine(corpus.vectors.c.embedding).label("score"))
            .join_from(given, corpus.vectors, corpus.item == given.c.passage_id)
            .where(self._is_of_model(), *corpus.in_scope(corpus.vectors))
        )

    def _is_of_model(self) -> ColumnElement[bool]:
        # A literal, or the planner cannot see that the partial index serves.
        name = self._model.name.replace("'", "''")
        return self._corpus.vectors.c.model_name == literal_column(f"'{name}'", String)

    def _cosine(self, embedding: ColumnElement[Any]) -> ColumnElement[float]:
        distance = cast(embedding.op("<=>")(self._question), Double)
        return func.greatest(1 - distance, 0, type_=Double)

    def _approximate_distance(self) -> ColumnElement[Any] | None:
        """Return the expression that the model's index is ordered by, as its definition has it."""
        dimensions = self._model.dimensions
        embedding = self._corpus.vectors.c.embedding
        if self._model.index_kind == "binary":
            bits = BIT(dimensions)
            signs = cast(func.binary_quantize(embedding), bits)
            return signs.op("<~>")(cast(func.binary_quantize(self._question), bits))
        if dimensions > HALFVEC_MAX_DIMENSIONS:
            return None
        half = HALFVEC(dimensions)
        return cast(embedding, half).op("<=>")(cast(self._question, half))


class TextLeg:
    """The text leg: BM25, in which rare words count more (``pgcorpus.db.search.words``).

    ``score`` is in [0, 1): the share of the question's information that a passage holds, a word
    that occurs once in a passage of average length counting as half held. It does not depend on
    what else was found.

    Args:
        corpus: What is searched.
        size: Of how many words, as ``LookUp.size`` has it.
    """

    name: Final = "text"

    def __init__(self, corpus: Corpus, size: int) -> None:
        self._corpus = corpus
        self._size = size

    def find(self, depth: int, narrowing: Narrowing) -> Select[Any]:
        """Select (passage_id, score) of the best *depth* candidates of the look-up."""
        corpus = self._corpus
        passages = select(corpus.key.label("passage_id"), corpus.words.label("words")).where(
            *corpus.in_scope(corpus.passages),
            *narrowing.direct,
            *(narrowing.distant if narrowing.few else ()),
        )
        if corpus.scope is not None and not narrowing.few:
            words = ("words_any_of", "words_one", "words_other")
            passages = _join_scope_index(
                passages, corpus, "with_words", *(bindparam(w, type_=ARRAY(Text())) for w in words)
            )
        asked = passages.subquery("asked")
        matching = select(asked.c.passage_id, self._unpack(asked.c.words)).where(
            asked.c.words.op("@@")(bindparam("words_candidates", type_=TsQuery()))
        )
        if narrowing.few:
            return _best(*self._score(matching), depth)
        return _best(*self._score(matching), depth, corpus, narrowing.distant)

    def score_passages(self, passages: Select[Any]) -> Select[Any]:
        """(passage_id, score) of given passages, those that hold none of the words left out."""
        corpus, given = self._corpus, passages.subquery()
        # First the passages, then their words: an index has those of all others, too.
        held = (
            select(given.c.passage_id, corpus.words.label("words"))
            .join_from(given, corpus.passages, corpus.key == given.c.passage_id)
            .where(*corpus.in_scope(corpus.passages))
            .offset(literal_column("0", Integer))
            .subquery("held")
        )
        matching = select(held.c.passage_id, self._unpack(held.c.words)).where(
            held.c.words.op("@@")(bindparam("words_all", type_=TsQuery()))
        )
        passage_id, score = self._score(matching)
        return select(passage_id, score.label("score"))

    @staticmethod
    def _unpack(words: ColumnElement[Any]) -> ColumnElement[Any]:
        """Read the words of a very long passage once: each rank would do it anew."""
        whole = and_(
            func.pg_column_compression(words).is_(None),
            func.pg_column_size(words) < WHOLE_BYTES,
        )
        unpacked = words.op("||")(literal_column("''::tsvector"))
        return case((whole, words), else_=unpacked).label("words")

    def _score(self, matching: Select[Any]) -> tuple[ColumnElement[Any], ColumnElement[float]]:
        # OFFSET 0 keeps the planner from copying an expression to each place that names it.
        zero = literal_column("0", Integer)
        each = matching.offset(zero).subquery("matching")
        ranks = [self._rank(each.c.words, f"word_{n}").label(f"z{n}") for n in range(self._size)]
        ranked = select(each.c.passage_id, each.c.words, *ranks).offset(zero).subquery("ranked")
        z = [ranked.c[f"z{n}"] for n in range(self._size)]
        # The rank of a word that is there, over its quotient by the length, is the length.
        quotients = (
            (rank > 0, rank / self._rank(ranked.c.words, f"word_{n}", normalised=True))
            for n, rank in enumerate(z)
        )
        length = case(*quotients, else_=literal_column("1", Double))
        norm = (SATURATION * (length + ADDED_WORDS)) / cast(
            bindparam("words_norm", type_=Double()), Double
        )
        normed = (
            select(ranked.c.passage_id, cast(norm, Double).label("norm"), *z)
            .offset(zero)
            .subquery("normed")
        )
        score: ColumnElement[Any] = literal_column("0", Double)
        for n in range(self._size):
            rank = normed.c[f"z{n}"]
            held = func.least(rank * (1 / TEXT_WEIGHT), MOST_SATURATED, type_=Double)
            weight: ColumnElement[float] = bindparam(f"weight_{n}", type_=Double())
            # Most passages hold few of the words: nothing is computed of the others.
            gain = weight * held / (held + (1 - held) * normed.c.norm)
            score = score + case((rank > 0, gain), else_=literal_column("0", Double))
        return normed.c.passage_id, score

    @staticmethod
    def _rank(
        words: ColumnElement[Any], query: str, *, normalised: bool = False
    ) -> ColumnElement[float]:
        weights: ColumnElement[Any] = literal_column(LABEL_WEIGHTS)
        by_length: ColumnElement[int] = literal_column("2" if normalised else "0", Integer)
        asked: ColumnElement[str] = bindparam(query, type_=TsQuery())
        return cast(func.ts_rank(weights, words, asked, by_length, type_=REAL), Double)


class FuzzyLeg:
    """The fuzzy leg: trigrams, for typos, identifiers, and languages without spaces between words.

    ``score`` in [0, 1]: the text leg's, for the words that passages hold, and what that leaves, by
    how alike the other words and the most similar run of words are. A comparison by trigrams takes
    time in proportion to the passage: only the best by the words are compared, and those in which
    an index finds something like the rarest of the others.

    Args:
        corpus: What is searched.
        size: Of how many words, as ``LookUp.size`` has it; 0 for none.
        most_alike: How many passages the index finds at most; None where all are compared.
    """

    name: Final = "fuzzy"

    def __init__(self, corpus: Corpus, size: int, most_alike: int | None) -> None:
        self._corpus = corpus
        self._text = TextLeg(corpus, size) if size else None
        self._most_alike = most_alike

    def find(self, depth: int, narrowing: Narrowing) -> Select[Any]:
        """Select (passage_id, score) of the best *depth* passages."""
        parts = [self._find_alike(narrowing)]
        if self._text is not None:
            by_words = self._text.find(depth, narrowing).subquery()
            parts.append(select(by_words.c.passage_id))
        found = union(*parts).subquery("found_alike")
        scored = self.score_passages(select(found.c.passage_id)).subquery("scored_alike")
        return _best(scored.c.passage_id, scored.c.score, depth)

    def score_passages(self, passages: Select[Any]) -> Select[Any]:
        """Select (passage_id, score) of given passages."""
        corpus, given = self._corpus, passages.cte()
        asked = cast(bindparam("fuzzy_question", type_=Text()), Text)
        weight = cast(bindparam("fuzzy_weight", type_=Double()), Double)
        zero = literal_column("0", Double)
        compared = weight * cast(func.word_similarity(asked, corpus.shown), Double)
        alike = case((weight > zero, compared), else_=zero)
        scored = select(given.c.passage_id).join_from(
            given, corpus.passages, corpus.key == given.c.passage_id
        )
        score: ColumnElement[Any] = alike
        if self._text is not None:
            of_words = self._text.score_passages(select(given.c.passage_id)).subquery("by_words")
            scored = scored.outerjoin(of_words, of_words.c.passage_id == given.c.passage_id)
            held = func.coalesce(of_words.c.score, zero, type_=Double)
            score = held + (1 - held) * alike
        return scored.add_columns(score.label("score")).where(*corpus.in_scope(corpus.passages))

    def _find_alike(self, narrowing: Narrowing) -> Select[Any]:
        """Select the passages in which something is like the question's rarest word."""
        corpus = self._corpus
        word = cast(bindparam("fuzzy_word", type_=Text()), Text)
        threshold = func.current_setting(THRESHOLD_SETTING).cast(REAL)
        alike = select(corpus.key.label("passage_id"))
        alike = alike.where(
            word != literal_column("''", Text),
            *corpus.in_scope(corpus.passages),
            *narrowing.direct,
        )
        if self._most_alike is None:  # without the operator that the index serves
            alike = alike.where(*narrowing.distant)
            return alike.where(func.word_similarity(word, corpus.shown) >= threshold)
        if corpus.scope is None:
            # One scan of the index serves both, and the first is the cheaper to ask again.
            pattern = cast(bindparam("fuzzy_pattern", type_=Text()), Text)
            alike = alike.where(
                corpus.shown.op("~*")(pattern), word.op("<%", precedence=AS_CONCAT)(corpus.shown)
            )
        else:
            # Of what is found here, conditions may refuse any number.
            narrowed = narrowing.direct or narrowing.distant
            most = cast(null() if narrowed else literal(self._most_alike), Integer)
            halves = bindparam("fuzzy_halves", type_=ARRAY(Text()))
            alike = _join_scope_index(alike, corpus, "alike", word, halves, threshold, most)
        # Alone, or the planner reads the passages in the order of their keys, to join them.
        found = alike.offset(literal_column("0", Integer)).subquery("alike")
        met = select(found.c.passage_id)
        if narrowing.distant:
            met = met.where(meets(corpus, found, narrowing.distant))
        first = met.limit(literal_column(str(self._most_alike), Integer)).subquery("most_alike")
        return select(first.c.passage_id)


SearchLeg = VectorLeg | TextLeg | FuzzyLeg


def _join_scope_index(
    passages: Select[Any], corpus: Corpus, kind: str, *asked: ColumnElement[Any]
) -> Select[Any]:
    """Restrict to the passages that a function of the database finds in the indexes of the scope.

    Under row security no index serves a condition on words: it would be asked of others' passages,
    and could tell of them by an error. The function takes data alone, and the scope from the
    transaction; what it finds is read under row security again.
    """
    function = getattr(func, f"{corpus.passages.name}_{kind}")
    found = function(*asked).table_valued(column("address")).render_derived("found")
    address: ColumnElement[Any] = literal_column(f"{corpus.passages.name}.ctid")
    # One by one: the planner does not know how many are found, and would read the whole table.
    at_address = passages.where(address == found.c.address).correlate(found)
    each = at_address.offset(literal_column("0", Integer)).lateral()
    return select(*each.c).select_from(found).join(each, true())


def _best(
    passage_id: ColumnElement[Any],
    score: ColumnElement[float],
    depth: int,
    corpus: Corpus | None = None,
    distant: Sequence[ColumnElement[bool]] = (),
) -> Select[Any]:
    """Select (passage_id, score) of the best *depth* that meet *distant*.

    Ties are ordered by id.
    """
    limit = literal_column(str(depth), Integer)
    best = select(passage_id.label("passage_id"), score.label("score"))
    best = best.order_by(literal_column("score").desc(), literal_column("passage_id"))
    if corpus is None or not distant:
        return best.limit(limit)
    # In their order and one by one: most conditions keep most passages. A join would be made of
    # all of them, where the planner doubts that the best are enough.
    ordered = best.offset(literal_column("0", Integer)).subquery("ordered")
    return (
        select(ordered.c.passage_id, ordered.c.score)
        .where(meets(corpus, ordered, distant))
        .order_by(ordered.c.score.desc(), ordered.c.passage_id)
        .limit(limit)
    )


def meets(
    corpus: Corpus, found: FromClause, distant: Sequence[ColumnElement[bool]]
) -> ColumnElement[bool]:
    """Ask of each passage that was found, on its own, whether it meets *distant*."""
    met = select(true()).where(
        *corpus.in_scope(corpus.passages), corpus.key == found.c.passage_id, *distant
    )
    return met.correlate(found).scalar_subquery()
