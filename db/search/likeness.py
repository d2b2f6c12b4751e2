"""The fuzzy leg's choice: which words trigrams look for and compare, and in how many passages."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from typing import Any, Final, NamedTuple

from pgcorpus.db.search.question import Question
from pgcorpus.db.search.words import LookUp

THRESHOLD: Final = 0.6
"""Least word similarity of a passage to a word that trigrams look for: pg_trgm's own default."""

LEAST: Final = 0.3
"""The same where a page is still not full, and where all passages are compared."""

LARGE: Final = 20_000
"""Passages of a scope beyond which nothing less alike than ``THRESHOLD`` is looked for: the
function that finds them compares all that have the trigrams, which took seconds at 100,000."""

LEAST_PART: Final = 3
"""Letters of the halves of a word, at least: trigrams find no less."""

SIMPLE: Final = re.compile("[a-z0-9]+", re.ASCII | re.IGNORECASE)
"""A word of which PostgreSQL knows in any locale where it begins and ends."""

SLACK: Final = 2
"""Letters by which a word with a typo is longer or shorter, at most."""

LONGEST_ENDING: Final = 4
"""Letters that a stem lacks of its word, at most."""

UNSPACED_THRESHOLDS: Final = (0.5, 0.3, 0.2, 0.1)
"""The same for a question without spaces between its words, which is one long word to pg_trgm: no
passage holds it as it was asked. nDCG@10 on Chinese XQuAD: 0.37 at 0.3, 0.83 at 0.1."""

UNSPACED_LEAST: Final = 0.001
"""The same where all passages are compared, so that a page is full: nDCG@10 0.85 there."""

FALLBACK_WEIGHT: Final = 0.01
"""Weight of likeness where passages hold all words: it fills a page, and hardly moves a hit."""

COMPARED_LEXEMES: Final = 12_000
"""Size of the passages that are compared for one search, in lexemes. A comparison takes time in
proportion to the passage: some 3 µs for each of its lexemes."""

MOST_ALIKE: Final = 2048
"""Passages that trigrams find at most, however short."""

MAX_CHARACTERS: Final = 300
"""Trigrams compare what a person types, not pages: what is longer is cut here."""


class Look(NamedTuple):
    """A look for passages by trigrams.

    Attributes:
        word: A passage must have something like it; nothing is looked for where it is empty.
        halves: Of the word, of which a passage must have one; nothing is asked where there are
            none. In spite of a typo one is whole: a comparison by trigrams is ten times as
            expensive. Without a scope, a word of the passage begins with the first, or it begins
            with the same letter, ends with the second and is about as long.
        threshold: The least word similarity that counts as found.
        compared: What passages are compared with.
        weight: Its share of the question, in [0, 1].
    """

    word: str
    halves: tuple[str, ...]
    threshold: float
    compared: str
    weight: float

    def values(self) -> dict[str, Any]:
        """Return the parameters of the statement."""
        return {
            "fuzzy_word": self.word[:MAX_CHARACTERS],
            "fuzzy_halves": list(self.halves),
            "fuzzy_pattern": _match_halves(self.word[:MAX_CHARACTERS], *self.halves),
            "fuzzy_question": self.compared[:MAX_CHARACTERS],
            "fuzzy_weight": self.weight,
        }


def count_alike(depth: int, average_length: float) -> int:
    """Return how many passages trigrams may find: at least *depth*, beyond it a power of two.

    Args:
        depth: Candidates that the leg gives.
        average_length: Of the passages, in lexemes.
    """
    most = min(MOST_ALIKE, int(COMPARED_LEXEMES / max(average_length, 1.0)))
    return max(depth, 1 << (max(most, 1).bit_length() - 1))


def choose_looks(
    question: Question,
    found: LookUp | None,
    of_languages: Collection[Collection[str]],
    is_held: Callable[[str], bool],
    *,
    all_compared: bool,
    only_first: bool,
) -> tuple[Look, ...]:
    """Choose what trigrams look for, in the order in which it is tried until the page is full.

    Words that no passage is known to hold may be typos: these are compared, and the longest is
    looked for. Where passages hold all words, the rarest is looked for only to fill a page.

    Args:
        question: As it was asked.
        found: Its words, None where it has none.
        of_languages: Its lexemes in each of the languages that it is read in.
        is_held: Whether passages are known to hold a lexeme.
        all_compared: Whether all passages are compared.
        only_first: Whether too many passages are searched to look for less alike ones.
    """
    asked = question.words
    if found is None:
        thresholds = (UNSPACED_LEAST,) if all_compared else UNSPACED_THRESHOLDS
        return tuple(Look(asked, (), each, asked, 1.0) for each in thresholds)
    # The stems that other languages make of a word are no typos.
    in_language = max(of_languages, key=lambda lexemes: sum(map(is_held, lexemes)), default=())
    # Of a compound the parts are words of their own.
    unheld = [
        word
        for word in found.words
        if word.lexeme in in_language and not all(map(is_held, word.lexeme.split("-")))
    ]
    if not unheld:
        rarest = found.words[0].lexeme
        fill = Look(rarest, (), THRESHOLD if only_first else LEAST, rarest, FALLBACK_WEIGHT)
        return (Look("", (), 1.0, asked, 0.0), fill)
    is_all = len(unheld) == len(in_language)
    compared = asked if is_all else " ".join(word.lexeme for word in unheld)
    weight = 1.0 if is_all else min(1.0, sum(word.weight for word in unheld) / found.total)
    longest = asked if len(asked.split()) == 1 else max((w.lexeme for w in unheld), key=len)
    halves = split_halves(longest[:MAX_CHARACTERS])
    looks = [Look(longest, halves, THRESHOLD, compared, weight)]
    if all_compared or not only_first:
        looks += [Look(longest, each, LEAST, compared, weight) for each in (halves, ())]
    return tuple(looks[-1:] if all_compared else looks)


def split_halves(word: str) -> tuple[str, str]:
    """Split a word in halves, which overlap where it is short."""
    size = max(LEAST_PART, (len(word) + 1) // 2)
    return word[:size], word[-size:]


def _match_halves(word: str, *halves: str) -> str:
    """Return the pattern of words that begin like a word, or end like it and are about as long."""
    if not halves or not SIMPLE.fullmatch(word):
        return "|".join(map(re.escape, halves))
    first, last = halves
    between = len(word) - 1 - len(last)
    about = f"{{{max(0, between - SLACK)},{between + SLACK}}}"
    return rf"\m(?:{first}|{word[0]}\w{about}{last}\w{{0,{LONGEST_ENDING}}}\M)"


def stop_early(looks: Sequence[Look]) -> bool:
    """Return whether less alike passages are left out, as too many are searched."""
    return [each.threshold for each in looks][-1:] == [THRESHOLD]
