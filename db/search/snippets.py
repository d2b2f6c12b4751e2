"""Snippets of hits: the words around those of the question, which PostgreSQL marks."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Final

from sqlalchemy import (
    ARRAY,
    Select,
    Text,
    any_,
    bindparam,
    cast,
    column,
    func,
    literal_column,
    select,
)
from sqlalchemy.dialects.postgresql import REGCONFIG, TSQUERY

from pgcorpus.db.search.corpus import Corpus

START: Final = "\ue000"
STOP: Final = "\ue001"
"""The marks around a word, of Unicode's private use: a text that has them loses them."""

LESS_THAN: Final = "\ue002"
"""The character in place of ``<``: PostgreSQL leaves out what it takes for a tag of HTML."""

APART: Final = " … "
"""The mark between two parts of a text."""

MAX_CHARACTERS: Final = 10_000
"""Characters of a passage in which the words are looked for: a thousand take half a millisecond."""

OPTIONS: Final = (
    f"StartSel={START}, StopSel={STOP}, MaxFragments=2, MaxWords=24, MinWords=10, ShortWord=0, "
    f'FragmentDelimiter="{APART}"'
)


@lru_cache(maxsize=64)
def select_snippets(corpus: Corpus) -> Select[Any]:
    """Select (id, snippet) of the passages of hits that hold a word of the question.

    Parameters: ``hits`` (keys) and ``words``, which are read in each passage's own language.
    """
    passages, language = corpus.passages, cast(corpus.language, REGCONFIG).label("language")
    hits = corpus.hits.where(*corpus.in_scope(passages)).subquery("hits")
    keys = any_(bindparam("hits", type_=ARRAY(corpus.key.type)))
    shown = (
        select(hits.c.id, hits.c.content, language, corpus.words.label("words"))
        .join_from(passages, hits, hits.c.id == corpus.key)
        .where(corpus.key == keys, *corpus.in_scope(passages))
        .cte("shown")
    )
    languages = select(shown.c.language).distinct().subquery("languages")
    lexemes = (
        func.unnest(func.to_tsvector(languages.c.language, bindparam("words", type_=Text())))
        .table_valued(column("lexeme", Text), "positions", "weights")
        .render_derived("lexemes")
    )
    escaped = func.replace(func.replace(lexemes.c.lexeme, "\\", "\\\\"), "'", "''")
    any_of = func.string_agg(func.concat("'", escaped, "'"), literal_column("' | '"))
    query = select(cast(any_of, TSQUERY)).scalar_subquery().label("query")
    asked = select(languages.c.language, query).cte("asked").prefix_with("MATERIALIZED")
    # What is read literally, and with which characters, is not up to the passage.
    text = func.translate(
        func.left(shown.c.content, MAX_CHARACTERS), f"<{START}{STOP}{LESS_THAN}", LESS_THAN
    )
    snippet = func.ts_headline(shown.c.language, text, asked.c.query, OPTIONS)
    return (
        select(shown.c.id, func.translate(snippet, LESS_THAN, "<").label("snippet"))
        .join_from(shown, asked, asked.c.language == shown.c.language)
        .where(shown.c.words.op("@@")(asked.c.query))
    )
