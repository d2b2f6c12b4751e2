"""A crowd of passages: enough for indexes to be worth it, and any search of it can be computed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Final
from uuid import UUID

import numpy as np
from sqlalchemy import text

from pgcorpus.db.engine import Database
from pgcorpus.db.search.ask import Ask
from pgcorpus.db.search.corpora import KNOWLEDGE
from pgcorpus.db.search.legs import AskedModel
from pgcorpus.db.search.question import Question
from pgcorpus.db.search.words import ADDED_WORDS
from pgcorpus.db.uow import UnitOfWork, WorkSession

ROWS: Final = 30_000
VOCABULARY: Final = 4_000
WORDS: Final = (8, 40)
"""Least and most words of a passage."""

KEPT: Final = {"50 %": 15_000, "5 %": 1_500, "0.5 %": 150, "0.05 %": 15, "one": 1}
"""Section → how many passages are in it."""

FILL: Final = (
    """
    INSERT INTO framework_documents
        (chunk_id, source_file, section, title, content, language, extra)
    SELECT to_char(n, 'FM00000'), 'f.md', section, 'Passage', content, 'simple',
        jsonb_build_object('share', section, 'number', n, 'tags', jsonb_build_array(section, 'a'))
    FROM unnest(CAST(:sections AS text[]), CAST(:contents AS text[]))
        WITH ORDINALITY AS each (section, content, n)
    """,
    """
    INSERT INTO framework_metadata
        (document_id, character_count, word_count, chunk_type, framework_name, validation_passed)
    SELECT id, 300, 20, 'supporting', section, true FROM framework_documents
    """,
)

MODEL: Final = AskedModel("crowd", 64)
"""A model of its own: vectors that are short make a graph that is soon made."""

INDEX: Final = "crowd_hnsw"

BUILD: Final = (
    # Several processes would share the graph in /dev/shm, which containers keep small.
    "SET LOCAL max_parallel_maintenance_workers = 0",
    f"""
    CREATE INDEX {INDEX} ON chunk_embeddings
    USING hnsw ((embedding::halfvec(64)) halfvec_cosine_ops)
    WITH (m = 16, ef_construction = 64) WHERE model_name = 'crowd'
    """,
    "ANALYZE",
)


@dataclass(frozen=True, eq=False)
class Crowd:
    """The passages, as the database and as arrays have them.

    Attributes:
        database: Where they are, analysed.
        keys: Of the passages.
        sections: str of shape ``(ROWS,)``; the framework's name is the same.
        words: int of shape ``(ROWS, max(WORDS))``: numbers of words, -1 after the last.
        vectors: float32 of shape ``(ROWS, MODEL.dimensions)``, each row of unit length.
    """

    database: Database
    keys: list[UUID]
    sections: np.ndarray
    words: np.ndarray
    vectors: np.ndarray

    def cosines(self, vector: np.ndarray) -> np.ndarray:
        """Cosine of each passage to a vector, 0 where it is negative; shape ``(ROWS,)``."""
        return np.maximum(self.vectors @ (vector / np.linalg.norm(vector)), 0)

    @cached_property
    def holding(self) -> np.ndarray:
        """Return the number of passages that hold each word; shape ``(VOCABULARY,)``."""
        pairs = np.arange(ROWS)[:, None] * VOCABULARY + self.words
        each = np.unique(pairs[self.words >= 0]) % VOCABULARY
        return np.bincount(each, minlength=VOCABULARY)

    def bm25(self, question: str) -> np.ndarray:
        """Share of the question's information in each passage; shape ``(ROWS,)``.

        BM25 by its definition, with k1 = 1 and ``ADDED_WORDS`` in place of b.
        """
        lengths = (self.words >= 0).sum(axis=1) + 1  # the title's one word
        average = self.holding.sum() / ROWS + 1
        norm = (lengths + ADDED_WORDS) / (average + ADDED_WORDS)
        score, total = np.zeros(ROWS), 0.0
        for word, times in Counter(question.split()).items():
            holding = self.holding[NUMBERS[word]]
            weight = times * np.log(1 + (ROWS - holding + 0.5) / (holding + 0.5))
            tf = (self.words == NUMBERS[word]).sum(axis=1)
            score += weight * tf / (tf + norm)
            total += weight
        return score / total


def _vocabulary() -> list[str]:
    """Words of three syllables, all different; the first are the frequent ones."""
    syllables = [consonant + vowel for consonant in "bdfgklmnprstvz" for vowel in "aeiou"]
    drawn = np.random.default_rng(5).choice(len(syllables) ** 3, VOCABULARY, replace=False)
    places = np.unravel_index(drawn, (len(syllables),) * 3)
    return ["".join(syllables[n] for n in word) for word in zip(*places, strict=True)]


WORD: Final = _vocabulary()
NUMBERS: Final = {word: number for number, word in enumerate(WORD)}


def fill(database: Database) -> Crowd:
    """Put the crowd into a database of the newest schema.

    Words are as frequent as in a language (Zipf's law): the first is in most passages, the last in
    a handful. Vectors lie in eight dimensions, as those of real texts lie in few.
    """
    random = np.random.default_rng(7)
    words = (VOCABULARY ** random.random((ROWS, WORDS[1]))).astype(int) - 1
    words[np.arange(WORDS[1]) >= random.integers(WORDS[0], WORDS[1] + 1, (ROWS, 1))] = -1
    numbers = np.arange(ROWS)
    sections = np.full(ROWS, "others")
    sections[numbers % 2 == 0] = "50 %"
    sections[numbers % 20 == 1] = "5 %"
    sections[numbers % 200 == 3] = "0.5 %"
    sections[numbers % 2000 == 5] = "0.05 %"
    sections[7] = "one"
    vectors = random.normal(size=(ROWS, 8)).repeat(MODEL.dimensions // 8, axis=1).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    contents = [" ".join(WORD[n] for n in row if n >= 0) for row in words]
    with database.unit_of_work() as work:
        work.embeddings.lift_timeout()  # the client gives up waiting, too
        for statement in FILL:
            work.session.execute(
                text(statement), {"sections": sections.tolist(), "contents": contents}
            )
        in_order = text("SELECT id FROM framework_documents ORDER BY chunk_id")
        keys = list(work.session.scalars(in_order))
        work.models.add_model(MODEL.name, dimensions=MODEL.dimensions, provider="hashing")
        work.embeddings.store(KNOWLEDGE, MODEL.name, keys, vectors)
        for statement in BUILD:
            work.session.execute(text(statement))
        work.commit()
    return Crowd(database, keys, sections, words, vectors)


def near(number: int) -> np.ndarray:
    """The vector of a question, another for each number, where the crowd's are; float32."""
    vector = np.random.default_rng(100 + number).normal(size=8).repeat(MODEL.dimensions // 8)
    return vector.astype(np.float32)


def ask(question: str, legs: Mapping[str, float], **changes: Any) -> Ask:
    """A question to the crowd."""
    asked = Ask(
        question=Question.parse(question),
        legs=legs,
        model=MODEL,
        vector=near(0),
    )
    return replace(asked, **changes)


@contextmanager
def undo_all(crowd: Crowd) -> Iterator[UnitOfWork]:
    """A unit of work that has searched nothing before, and is rolled back at the end."""
    with (
        closing(Database(crowd.database.settings)) as database,  # its engine remembers nothing
        database.engine.connect() as connection,
        connection.begin() as transaction,
    ):
        with UnitOfWork(lambda: WorkSession(connection)) as work:
            yield work
        transaction.rollback()
