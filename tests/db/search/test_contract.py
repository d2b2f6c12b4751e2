"""The contract of every corpus. A new corpus is one more shelf."""

from __future__ import annotations

from dataclasses import replace
from uuid import UUID

import numpy as np
import pytest

from pgcorpus.db.errors import InvalidFilter, UnknownFilter
from pgcorpus.db.search.ask import DEPTHS, FIRST_DEPTH, Ask
from pgcorpus.db.search.corpora import list_corpora
from pgcorpus.db.search.legs import AskedModel
from pgcorpus.db.search.question import Question
from pgcorpus.db.uow import UnitOfWork
from tests.db.search.shelves import DIMENSIONS, MODEL, SHELVES, Passage, Shelf
from tests.factories import axis

LEAST = {bool: "true", int: "0", UUID: str(UUID(int=0))}

every_shelf = pytest.mark.parametrize("shelf", SHELVES, ids=lambda shelf: shelf.name)

OF_OTHER_NAME = {
    "concept",
    "path_prefix",
    "domain",
    "entity",
    "noise",
    "outcome",
    "process",
    "topic",
}
"""Filters on one of many values: a hit shows all of them, under another name."""

PASSAGES = [
    Passage("Anchoring", "A high first price makes the second look small.", axis(1, length=384)),
    Passage("Churn", "Subscribers quit when a habit never forms.", axis(2, length=384)),
    Passage("Guarantees", "A refund moves the risk to the seller.", axis(3, length=384)),
]


def ask(question: str, near: int = 1, **changes: object) -> Ask:
    """A hybrid question whose vector lies along axis *near*."""
    return replace(
        Ask(
            question=Question.parse(question),
            legs={"vector": 0.3, "text": 0.7},
            model=AskedModel(MODEL, DIMENSIONS),
            vector=axis(near, length=DIMENSIONS),
        ),
        **changes,
    )


def test_every_corpus_has_a_shelf() -> None:
    """No corpus is left out of this contract."""
    assert {shelf.corpus.name for shelf in SHELVES} == {each.name for each in list_corpora()}


@every_shelf
def test_the_nearest_vector_comes_first(shelf: Shelf, work: UnitOfWork) -> None:
    """The vector leg ranks by cosine, and its score is the cosine."""
    keys = shelf.fill(work, PASSAGES)

    hits = work.searches.answer(shelf.corpus, ask("x", near=2, legs={"vector": 1.0})).hits

    assert hits[0].id == keys[1]
    assert hits[0].scores == {"vector": pytest.approx(1.0)}
    assert len(hits) == len(PASSAGES)


@every_shelf
def test_no_passage_is_less_similar_than_asked_for(shelf: Shelf, work: UnitOfWork) -> None:
    """The vector leg drops the others, and tells how many."""
    keys = shelf.fill(work, PASSAGES)

    asked = ask("x", near=2, legs={"vector": 1.0}, min_similarity=0.5)
    answer = work.searches.answer(shelf.corpus, asked)

    assert [hit.id for hit in answer.hits] == [keys[1]]
    assert answer.dropped == len(PASSAGES) - 1


@every_shelf
def test_a_word_finds_the_passage_that_holds_it(shelf: Shelf, work: UnitOfWork) -> None:
    """The text leg finds words in another form, and nothing else."""
    keys = shelf.fill(work, PASSAGES)

    hits = work.searches.answer(shelf.corpus, ask("refunding", legs={"text": 1.0})).hits

    assert [hit.id for hit in hits] == [keys[2]]
    assert 0 < hits[0].scores["text"] <= 1


@every_shelf
def test_a_typo_finds_the_passage_it_means(shelf: Shelf, work: UnitOfWork) -> None:
    """The fuzzy leg needs no word to be right."""
    keys = shelf.fill(work, PASSAGES)

    hits = work.searches.answer(shelf.corpus, ask("subscribbers", legs={"fuzzy": 1.0})).hits

    assert hits[0].id == keys[1]


@every_shelf
def test_a_passage_found_only_by_its_words_is_not_lost(shelf: Shelf, work: UnitOfWork) -> None:
    """The union of the legs is ranked: a passage without a vector is a hit of the words leg."""
    keys = shelf.fill(work, [*PASSAGES, Passage("Upsell", "Offer the larger kettle last.")])

    hits = work.searches.answer(shelf.corpus, ask("kettle")).hits

    found = {hit.id: hit for hit in hits}
    assert found[keys[3]].ranks == {"text": 1}
    assert found[keys[3]].contributions == {"text": pytest.approx(found[keys[3]].score)}


@every_shelf
def test_a_hit_shows_what_the_corpus_shows(shelf: Shelf, work: UnitOfWork) -> None:
    """Title and content are the passage's, and every filter column is among the metadata."""
    shelf.fill(work, PASSAGES)

    hit = work.searches.answer(shelf.corpus, ask("kettle", near=1)).hits[0]

    assert hit.title == PASSAGES[0].title
    assert hit.content.endswith(PASSAGES[0].content)
    assert hit.metadata.keys() | OF_OTHER_NAME >= shelf.corpus.filters.keys()
    assert not hit.metadata.keys() & {"report", "words", "passage_id", "ranks"}


@every_shelf
def test_every_filter_keeps_what_has_its_value(shelf: Shelf, work: UnitOfWork) -> None:
    """Each filter works in each leg, and a filter that nothing meets keeps nothing."""
    shelf.fill(work, PASSAGES)
    assert shelf.filters.keys() == shelf.corpus.filters.keys()

    for name, value in shelf.filters.items():
        narrowed = ask("price refund subscribers", filters={name: value})
        assert len(work.searches.answer(shelf.corpus, narrowed).hits) == len(PASSAGES), name
        for legs in ({"vector": 1.0}, {"text": 1.0}, {"fuzzy": 1.0}):
            for empty in ([], None):
                nothing = replace(narrowed, filters={name: empty}, legs=legs)
                assert work.searches.answer(shelf.corpus, nothing).hits == (), name
        either = replace(narrowed, filters={name: [None, *_one(value)]})
        found = work.searches.answer(shelf.corpus, either).hits
        assert len(found) == (0 if isinstance(value, dict) else len(PASSAGES)), name


def _one(value: object) -> list[object]:
    return [] if isinstance(value, dict) else [value]


@every_shelf
def test_a_range_is_for_what_has_an_order(shelf: Shelf, work: UnitOfWork) -> None:
    """Every filter takes a range, but for true and false."""
    shelf.fill(work, PASSAGES)

    for name, filtered in shelf.corpus.filters.items():
        least = {"gte": LEAST.get(filtered.column.type.python_type, "2020-01-01")}
        narrowed = ask("price refund subscribers", filters={name: least})
        if filtered.column.type.python_type is bool:
            with pytest.raises(InvalidFilter, match="no range"):
                work.searches.answer(shelf.corpus, narrowed)
        else:
            assert len(work.searches.answer(shelf.corpus, narrowed).hits) == len(PASSAGES), name


@every_shelf
def test_an_unknown_filter_lists_the_known_ones(shelf: Shelf, work: UnitOfWork) -> None:
    """The error is as helpful as it can be."""
    shelf.fill(work, PASSAGES)

    known = {*shelf.corpus.filters} | (
        {"metadata"} if shelf.corpus.metadata_column is not None else set()
    )
    with pytest.raises(UnknownFilter, match=", ".join(sorted(known))):
        work.searches.answer(shelf.corpus, ask("x", filters={"colour": "red"}))


@every_shelf
def test_a_range_with_an_unknown_bound_is_refused(shelf: Shelf, work: UnitOfWork) -> None:
    """A misspelt bound is not ignored."""
    shelf.fill(work, PASSAGES)

    with pytest.raises(InvalidFilter, match="gte"):
        work.searches.answer(shelf.corpus, ask("x", filters={shelf.own_name: {"above": 1}}))


@every_shelf
def test_pages_do_not_overlap_and_miss_nothing(shelf: Shelf, work: UnitOfWork) -> None:
    """Equal scores have an order of their own, so that pages fit together."""
    passages = [Passage(f"Same {n}", "equal words", axis(5, length=384)) for n in range(23)]
    keys = shelf.fill(work, passages)
    asked = ask("equal words", near=5)

    pages = [
        work.searches.answer(shelf.corpus, replace(asked, limit=5, offset=offset)).hits
        for offset in range(0, 30, 5)
    ]

    assert [len(page) for page in pages] == [5, 5, 5, 5, 3, 0]
    assert [hit.id for page in pages for hit in page] == sorted(keys)


@every_shelf
def test_pages_fit_together_when_the_legs_disagree(shelf: Shelf, work: UnitOfWork) -> None:
    """Pages of ten are the hits of one page of their depth: none twice, none missing."""
    passages = [
        Passage(
            f"Kettle {n}", "kettle " * (1 + n * 7 % 13), axis(1, lean=n * 11 % 97 / 97, length=384)
        )
        for n in range(250)
    ]
    shelf.fill(work, passages)
    for legs in ({"vector": 0.3, "text": 0.7}, {"vector": 1.0}):
        asked = ask("kettle", near=0, legs=legs)

        for start, end in ((0, FIRST_DEPTH), (FIRST_DEPTH, DEPTHS[0])):
            paged = [
                hit.id
                for offset in range(start, end, 10)
                for hit in work.searches.answer(shelf.corpus, replace(asked, offset=offset)).hits
            ]
            whole = replace(asked, offset=start, limit=end - start)

            assert paged == [hit.id for hit in work.searches.answer(shelf.corpus, whole).hits]
            assert len(set(paged)) == end - start


@every_shelf
def test_a_narrow_filter_still_fills_the_page(shelf: Shelf, work: UnitOfWork) -> None:
    """Of many passages near the question few are kept; they are all found, far as they are."""
    crowd = [Passage(f"Crowd {n}", "near", axis(1, lean=n / 1000, length=384)) for n in range(400)]
    shelf.fill(work, crowd)
    few = [Passage(f"Few {n}", "far away", axis(7, length=384)) for n in range(10)]
    keys = shelf.fill(work, few)
    name = shelf.own_name
    named = [
        hit.metadata[name]
        for hit in work.searches.answer(
            shelf.corpus, ask("far away", legs={"text": 1.0}, limit=10)
        ).hits
    ]

    answer = work.searches.answer(shelf.corpus, ask("near", near=1, filters={name: named}))

    assert {hit.id for hit in answer.hits} == set(keys)
    assert answer.kept == len(few)


@every_shelf
def test_a_changed_text_makes_its_vector_stale(shelf: Shelf, work: UnitOfWork) -> None:
    """Staleness is a comparison of hashes; a vector of the old text is not stored over it."""
    keys = shelf.fill(work, PASSAGES)
    old = work.embeddings.list_pending(shelf.corpus, "bge-m3", limit=10)
    table = shelf.corpus.passages
    work.session.execute(table.update().where(shelf.corpus.key == keys[0]).values(**shelf.changed))

    pending = work.embeddings.list_pending(shelf.corpus, MODEL, limit=10)
    coverage = work.embeddings.coverage(shelf.corpus, MODEL)
    stored = work.embeddings.store(
        shelf.corpus,
        "bge-m3",
        [each.id for each in old],
        np.ones((3, 1024)),
        [each.content_hash for each in old],
    )

    assert [(each.id, each.stale) for each in pending] == [(keys[0], True)]
    assert (coverage.total, coverage.embedded, coverage.stale) == (3, 2, 1)
    assert stored == 2


@every_shelf
@pytest.mark.parametrize(
    "question",
    ['"', "-", "or", "!!!", '""', "- -", " ' & | ! : * ", "()<->"],
)
def test_operators_beside_a_word_do_no_harm(shelf: Shelf, work: UnitOfWork, question: str) -> None:
    """None of them is an operator to PostgreSQL."""
    shelf.fill(work, PASSAGES)

    hits = work.searches.answer(shelf.corpus, ask(f"price {question}")).hits

    assert hits[0].title == "Anchoring"
