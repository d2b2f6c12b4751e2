"""The words of a question: how rare each is, which passages are looked up, how they are scored.

The score is BM25's. PostgreSQL has what it needs, in two unusual places. ANALYZE keeps the
frequency of every common lexeme of a ``tsvector`` column, which gives the idf. And ``ts_rank`` of a
single lexeme, with the label weights equal, is z = Σ 1/j² over its occurrences j = 1…tf, divided by
π²/6: a function of tf alone, whose inverse is tf = z / ((1 - z) · π²/6) to within 6 %. So BM25's
tf / (tf + norm) is z / (z + (1 - z) · norm · π²/6), and the passage's length is the quotient of two
normalisations of one rank.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import combinations
from math import inf, log, pi
from typing import Final

TEXT_WEIGHT: Final = 0.8
"""The weight in ``ts_rank`` of an occurrence in the text, an occurrence in the title counting 1: a
word in the title is worth two in the text, with one in the text as well six. Of 0.67 to 1 tried on
Cranfield and CACM (the collections with titles), 0.8 to 0.9 were best."""

MOST_SATURATED: Final = 0.99
"""z is cut here, which is an occurrence of sixty times: a word in the title and three times in the
text has more than 1. With a cut at ten times, nDCG@10 on texts of 600 to 2,000 words was up to 0.03
less."""

COMPOUND: Final = re.compile(r"\w+(-\w+)+")
"""A lexeme such as ``x-ray``, beside which PostgreSQL makes lexemes of ``x`` and ``ray``."""

COMPOUND_WEIGHT: Final = 0.7
"""Factor of its weight: a passage that holds it holds its parts, too. Of 0 to 1 tried, it is the
least with which no collection lost: docs/decisions/0005-bm25.md."""

ADDED_WORDS: Final = 25
"""Every passage is taken to be this much longer. BM25's b of 0.75 suits texts of 300 words and
spoils chat turns of 25, b = 0.2 the other way round; b = average / (average + 25) suits both."""

SATURATION: Final = pi**2 / 6
"""The saturation of norm (k1 = 1), in units of z; see above."""

MAX_WORDS: Final = 64
"""Words of a question that are scored, the rarest first; the rest hardly changes an order, and
costs."""

BUDGET: Final = 36_000
"""The number of times that words may be scored for one question: passages looked up x (words +
``fetch``). Chosen for 10 ms at 100,000 passages of 60 words; costs were measured to be about 0.3 µs
each."""

FETCH: Final = 3
"""The cost of fetching a passage, in words scored."""

FETCH_OF_SCOPE: Final = 24
"""The same within a scope, whose passages lie among those of others. Each costs a page, and is read
twice: by the function that finds it, and under row security. Measured as 8 µs in a scope of 38,000
of a million passages; of the ten best, as many are found as with 10."""

TOGETHER: Final = 2
"""Words of one question occur together this much more often than chance has it, at least."""

MAX_PAIRED: Final = 12
"""The most frequent words of which pairs are looked up."""

ENOUGH_PAIRED: Final = 3
"""A multiple of the leg's candidates. Where even the rarest word is too frequent, and so many
passages have two words of the question, those with one word are left out."""

SIZES: Final = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 24, 32, 48, MAX_WORDS)
"""Numbers of words that statements exist for; a question is padded with words that none has."""


@dataclass(frozen=True, kw_only=True)
class Lexicon:
    """The frequencies of a corpus's words, from ANALYZE's statistics or a sample.

    Attributes:
        version: Changes with every ANALYZE; None before the first.
        frequencies: Lexeme → share of the passages that hold it, of the common ones.
        mean_length: Distinct lexemes of the average passage, where that was counted.
    """

    version: str | None = None
    frequencies: Mapping[str, float] = field(default_factory=dict, repr=False)
    mean_length: float | None = None

    @property
    def is_known(self) -> bool:
        """True if there are statistics."""
        return bool(self.frequencies)

    def frequency(self, lexeme: str) -> float:
        """Return the share of passages that hold a lexeme.

        An unlisted one is rarer than any listed.
        """
        return self.frequencies.get(lexeme, self._rarest / 2)

    def mix(self, own: Lexicon, share: float) -> Lexicon:
        """Return the lexicon of these passages and others together.

        Args:
            own: Of the others, with the words of a question alone.
            share: Part of all passages that are the others, in [0, 1].
        """

        def mean(mine: float, theirs: float) -> float:
            return (1 - share) * mine + share * theirs

        return Lexicon(
            version=self.version,
            frequencies={
                lexeme: mean(self.frequency(lexeme), frequency)
                for lexeme, frequency in own.frequencies.items()
            },
            mean_length=mean(self.average_length, own.average_length),
        )

    @cached_property
    def average_length(self) -> float:
        """Distinct lexemes of the average passage."""
        return sum(self.frequencies.values()) if self.mean_length is None else self.mean_length

    @cached_property
    def _rarest(self) -> float:
        return min(self.frequencies.values(), default=0.0)


@dataclass(frozen=True)
class Word:
    """One lexeme of a question.

    Attributes:
        lexeme: As the text search configuration writes it.
        weight: Its idf times how often it was asked; of a compound less.
        passages: How many hold it, estimated.
    """

    lexeme: str
    weight: float
    passages: float


@dataclass(frozen=True, kw_only=True)
class LookUp:
    """A question's words, ready for the statement.

    Attributes:
        words: The scored ones, the rarest first.
        total: Weight of all words in one language: what a passage could hold at most.
        any_of: Passages that hold one of these lexemes are scored.
        pairs: Passages that hold both of one of these pairs are, too.
        complete: Whether those are all that hold a word.
        left_out: How many words of the question are not scored.
        norm: By how many lexemes the average passage is long, ``ADDED_WORDS`` included.
    """

    words: Sequence[Word]
    total: float
    any_of: Sequence[str]
    pairs: Sequence[tuple[str, str]]
    complete: bool
    left_out: int
    norm: float

    @property
    def size(self) -> int:
        """The number of words that the statement must have room for."""
        return next(size for size in SIZES if size >= len(self.words))

    @property
    def candidates(self) -> str:
        """The ``tsquery`` of the passages that are scored, as text."""
        others: dict[str, list[str]] = {}
        for one, other in self.pairs:
            others.setdefault(quote(one), []).append(quote(other))
        paired = [f"{one} & ({' | '.join(of)})" for one, of in others.items()]
        return " | ".join([*map(quote, self.any_of), *paired])

    def values(self) -> dict[str, object]:
        """Return the parameters of the statement."""
        spare = self.size - len(self.words)
        queries = [quote(word.lexeme) for word in self.words]
        weights = [word.weight / self.total for word in self.words]
        return {
            "words_candidates": self.candidates,
            "words_any_of": list(self.any_of),
            "words_one": [one for one, _ in self.pairs],
            "words_other": [other for _, other in self.pairs],
            "words_all": " | ".join(queries),
            "words_norm": self.norm,
            **{f"word_{n}": query for n, query in enumerate(queries + [""] * spare)},
            **{f"weight_{n}": weight for n, weight in enumerate(weights + [0.0] * spare)},
        }


def look_up(
    asked: Mapping[str, Mapping[str, int]],
    lexicon: Lexicon,
    passages: float,
    *,
    share: float = 1.0,
    depth: int = 100,
    fetch: int = FETCH,
    everything: bool = False,
) -> LookUp | None:
    """Decide which passages are scored.

    All that hold a word, when they are few enough for ``BUDGET``. Else those that hold one of the
    rarest words, and those that hold two of the others, each until half of the budget is spent: a
    passage with only one frequent word of the question is hardly ever among the best. The rarest
    word is left to the pairs only where these are enough.

    Args:
        asked: Language → lexeme → how often the question has it.
        lexicon: How rare they are.
        passages: How many there are.
        share: Of the passages, how many the filters keep.
        depth: How many candidates the leg gives.
        fetch: What fetching a passage costs, in words scored.
        everything: Look up all that hold a word, whatever it costs.

    Returns:
        None when no word is left: all were stop words.
    """
    times: dict[str, int] = {}
    for of_language in asked.values():
        for lexeme, count in of_language.items():
            times[lexeme] = max(times.get(lexeme, 0), count)
    if not times:
        return None
    half = 0.5 / passages  # half a passage: no frequency is 0 or 1, as in BM25
    weighed = {}
    for lexeme, count in times.items():
        frequency = lexicon.frequency(lexeme)
        idf = log(1 + (1 - frequency + half) / (frequency + half)) if lexicon.is_known else 1.0
        factor = COMPOUND_WEIGHT if COMPOUND.fullmatch(lexeme) else 1.0
        weighed[lexeme] = Word(lexeme, factor * count * idf, frequency * passages)
    words = sorted(weighed.values(), key=lambda word: (word.passages, word.lexeme))[:MAX_WORDS]
    scored = {word.lexeme for word in words}
    total = max(
        sum(weighed[lexeme].weight for lexeme in of_language if lexeme in scored)
        for of_language in asked.values()
    )
    # Without statistics it is unknown which words are rare: all are looked up.
    budget = inf if everything or not lexicon.is_known else BUDGET / (fetch + share * len(words))
    found = sum(word.passages for word in words)
    any_of: Sequence[str] = [word.lexeme for word in words]
    pairs: Sequence[tuple[str, str]] = ()
    if found > budget:
        enough = ENOUGH_PAIRED * depth / share if share else inf
        any_of, pairs = _cheap(words, asked, passages, budget, enough)
    return LookUp(
        words=words,
        total=total,
        any_of=any_of,
        pairs=pairs,
        complete=found <= budget,
        left_out=len(weighed) - len(words),
        norm=lexicon.average_length + ADDED_WORDS if lexicon.is_known else 2 * ADDED_WORDS,
    )


def _cheap(
    words: Sequence[Word],
    asked: Mapping[str, Mapping[str, int]],
    passages: float,
    budget: float,
    enough: float,
) -> tuple[list[str], list[tuple[str, str]]]:
    """Choose the rarest words, and pairs of the others, within half of the budget each."""
    single, spent = 0, 0.0
    for word in words:
        if spent + word.passages > budget / 2:
            break
        single, spent = single + 1, spent + word.passages
    if not single:
        paired, found = _choose_pairs(words, asked, passages, budget, least=1)
        if found >= enough:
            return [], paired
        single = 1
    paired, _ = _choose_pairs(words[single:], asked, passages, budget / 2)
    return [word.lexeme for word in words[:single]], paired


def _choose_pairs(
    words: Sequence[Word],
    asked: Mapping[str, Mapping[str, int]],
    passages: float,
    budget: float,
    *,
    least: int = 0,
) -> tuple[list[tuple[str, str]], float]:
    """Choose the rarest pairs, and count what passages these have if words meet by chance.

    The first *least* pairs are chosen whatever they cost: fewer passages hold both words than one.
    """
    pairs: list[tuple[str, str]] = []
    found = 0.0
    for expected, one, other in sorted(
        (one.passages * other.passages / passages, one.lexeme, other.lexeme)
        for one, other in combinations(words[:MAX_PAIRED], 2)
        # A passage is in one language, and so has no words of two.
        if any(one.lexeme in of and other.lexeme in of for of in asked.values())
    ):
        if len(pairs) >= least and TOGETHER * (found + expected) > budget:
            break
        found += expected
        pairs.append((one, other))
    return pairs, found


def quote(lexeme: str) -> str:
    """Quote a lexeme as a ``tsquery`` of its own."""
    return "'" + lexeme.replace("\\", "\\\\").replace("'", "''") + "'"
