"""Groups of hits, ranked in the statement: the best hits of each document or conversation."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import pytest
from sqlalchemy import Uuid, select

from pgcorpus.db.choices import Fusion
from pgcorpus.db.search.answer import Answer
from pgcorpus.db.search.ask import DEPTHS, Ask
from pgcorpus.db.search.page import Hit
from pgcorpus.db.uow import UnitOfWork
from tests.db.search.shelves import SHELVES, Passage, Shelf
from tests.db.search.test_contract import ask, every_shelf
from tests.factories import axis

SIZES: Final = (9, 1, 4, 2, 6, 3)
"""Passages of each group."""

WAYS: Final[Sequence[tuple[Mapping[str, float], Fusion]]] = (
    ({"vector": 1.0}, "calibrated"),
    ({"text": 1.0}, "calibrated"),
    ({"fuzzy": 1.0}, "calibrated"),
    ({"vector": 0.3, "text": 0.7}, "calibrated"),
    ({"vector": 0.7, "text": 0.3}, "weighted"),
    ({"vector": 1.0, "text": 1.0}, "rrf"),
)

each_way = pytest.mark.parametrize(
    ("legs", "fusion"), WAYS, ids=["vector", "text", "fuzzy", "calibrated", "weighted", "rrf"]
)


def fill(shelf: Shelf, work: UnitOfWork, sizes: Sequence[int]) -> None:
    """Store passages in so many groups of these sizes; the legs disagree on them."""
    drawn = random.Random(7)  # noqa: S311 - no secret
    passages = [
        Passage(
            f"Kettle {n}",
            "kettle " * drawn.randrange(1, 9) + "and other words",
            axis(1, lean=drawn.random(), length=384),
        )
        for n in range(sum(sizes))
    ]
    keys = shelf.fill(work, passages)
    drawn.shuffle(keys)
    table, key, order = shelf.corpus.passages, shelf.corpus.key, shelf.corpus.order
    column = table.c[shelf.grouped[1]]
    for n, size in enumerate(sizes):
        members = [keys.pop() for _ in range(size)]
        value: Any = f"group {n}"
        if isinstance(column.type, Uuid):  # of what there is
            value = work.session.scalar(select(column).where(key == members[0]))
        for place, member in enumerate(members):
            placed = {} if order is None else {order.place.name: place}
            work.session.execute(
                table.update().where(key == member).values({column.name: value} | placed)
            )


def group_in_python(hits: Sequence[Hit], name: str, size: int) -> list[Hit]:
    """Return the best hits of each group, by the definition."""
    groups: dict[Any, list[Hit]] = {}
    for hit in hits:
        groups.setdefault(hit.metadata[name], []).append(hit)
    return [hit for group in groups.values() for hit in group[:size]]


def answer(work: UnitOfWork, shelf: Shelf, asked: Ask, **changes: Any) -> Answer:
    """Search the shelf."""
    return work.searches.answer(shelf.corpus, replace(asked, **changes))


@every_shelf
@each_way
def test_groups_are_the_best_hits_of_each_in_the_order_of_the_best(
    shelf: Shelf, work: UnitOfWork, legs: Mapping[str, float], fusion: Fusion
) -> None:
    """They are those of all hits, grouped by the definition: scores, ranks and reasons, too."""
    fill(shelf, work, SIZES)
    name, _ = shelf.grouped
    asked = ask("kettle", near=1, legs=legs, fusion=fusion)
    hits = answer(work, shelf, asked, limit=DEPTHS[0]).hits

    for size in (1, 3):
        grouped = answer(work, shelf, asked, group_by=name, group_size=size)
        assert list(grouped.hits) == group_in_python(hits, name, size)
        assert grouped.groups == len(SIZES)
        assert {grouped.found[hit.id] for hit in grouped.hits} == set(SIZES)


@every_shelf
def test_pages_of_groups_fit_together(shelf: Shelf, work: UnitOfWork) -> None:
    """Limit and offset count groups: none twice, none missing; beyond the last there are none."""
    fill(shelf, work, SIZES)
    name, _ = shelf.grouped
    asked = ask("kettle", near=1, group_by=name, group_size=2)
    whole = answer(work, shelf, asked)

    pages = [answer(work, shelf, asked, limit=2, offset=offset) for offset in (0, 2, 4, 6)]

    assert [hit for page in pages for hit in page.hits] == list(whole.hits)
    assert [len({hit.metadata[name] for hit in page.hits}) for page in pages] == [2, 2, 2, 0]
    assert {page.groups for page in pages} == {len(SIZES)}


@every_shelf
def test_equal_scores_of_groups_have_an_order(shelf: Shelf, work: UnitOfWork) -> None:
    """Groups whose best hits are equal stay apart, and in the order of these hits."""
    keys = shelf.fill(work, [Passage("Same", "words", axis(5, length=384)) for _ in range(7)])
    grouped = answer(work, shelf, ask("words", near=5), group_by="id", limit=7)

    assert [hit.id for hit in grouped.hits] == sorted(keys)
    assert set(grouped.found.values()) == {1}


def test_a_filter_narrows_before_hits_are_grouped(work: UnitOfWork) -> None:
    """A group has no more than what is kept, and a leg is not short for the rest."""
    shelf = next(shelf for shelf in SHELVES if shelf.name == "documentation")
    fill(shelf, work, SIZES)
    hits = answer(work, shelf, ask("kettle"), limit=DEPTHS[0]).hits
    kept = [hit.metadata["chunk_id"] for hit in hits[::3]]

    grouped = answer(
        work, shelf, ask("kettle"), group_by="document", filters={"chunk_id": kept}, limit=3
    )

    assert len(grouped.hits) == 3
    assert {hit.metadata["chunk_id"] for hit in grouped.hits} <= set(kept)
    assert grouped.kept == len(kept)


def test_what_is_not_grouped_has_no_groups(work: UnitOfWork) -> None:
    """Its statement has no window of groups, and its hits no place in one."""
    shelf = SHELVES[0]
    fill(shelf, work, SIZES)

    plain = answer(work, shelf, ask("kettle"))

    assert (plain.groups, plain.found) == (0, {})
    assert "group" not in plain.statement.sql.replace("GROUP BY", "")
    assert not plain.hits[0].metadata.keys() & {"group_place", "group_found", "group_total"}
