"""The functions that find passages of a scope by index: what they find, and what they refuse."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import Connection, text

from pgcorpus.db.scope import Scope
from tests.tenancy import Tenancy, enter, secret

WITH_WORDS = text("""
    SELECT human_content FROM memory_nodes JOIN memory_nodes_with_words(
            CAST(:any_of AS text[]), CAST(:one AS text[]), CAST(:other AS text[]))
        AS found (address) ON memory_nodes.ctid = address ORDER BY 1
""")
ALIKE = text("""
    SELECT human_content FROM memory_nodes JOIN memory_nodes_alike(
            :words, CAST(:halves AS text[]), CAST(:threshold AS real), :at_most)
        AS found (address) ON memory_nodes.ctid = address ORDER BY 1
""")
COUNTED = text("SELECT count(*) FROM memory_nodes_with_words(CAST(:any_of AS text[]), '{}', '{}')")

SAID = (
    "The sourdough rises overnight in the cold kitchen",
    "A kettle whistles while the sourdough rests",
    "Croissants need butter that is neither soft nor hard",
    "Ein Kaffee ohne Zucker, bitte",
    "x",
    "",
)


def look_for(words: str, threshold: float) -> dict[str, object]:
    """Return the parameters of a look for all that is as alike."""
    return {"words": words, "halves": [], "threshold": threshold, "at_most": None}


@pytest.fixture
def inside(tenancy: Tenancy) -> Iterator[Connection]:
    """The application's connection within ``ours``, with some memories more, rolled back."""
    with tenancy.application.engine.connect() as connection:
        for scope in (tenancy.theirs, tenancy.ours):
            enter(connection, scope)
            for number, said in enumerate(SAID):
                connection.execute(
                    text("""
                        INSERT INTO memory_nodes (id, tenant_id, conversation_id, sequence_index,
                            human_content, assistant_content, source)
                        VALUES (:id, :tenant, 'c', 0, :said, 'answered', 'openai')
                    """),
                    {"id": f"mem_said_{number}", "tenant": scope.tenant_id, "said": said},
                )
        yield connection


def test_passages_with_any_of_the_words_and_with_pairs_are_found(inside: Connection) -> None:
    """As a tsquery of the same words would find them, each once."""
    asked = {"any_of": ["kettl"], "one": ["sourdough", "sourdough"], "other": ["rise", "butter"]}

    found = list(inside.scalars(WITH_WORDS, asked))

    assert found == sorted([SAID[0], SAID[1]])


@pytest.mark.parametrize("asked", ["sourdoh", "whistels", "croissants butter", "kafee", "zuker"])
@pytest.mark.parametrize("threshold", [0.8, 0.6, 0.45, 0.3, 0.1])
def test_whatever_is_as_alike_as_asked_is_found(
    inside: Connection, asked: str, threshold: float
) -> None:
    """None is lost to the index: the groups of trigrams leave room for all that may be missing."""
    by_comparing_all = text("""
        SELECT human_content FROM memory_nodes
        WHERE word_similarity(:words, human_content || ' ' || assistant_content)
            >= CAST(:threshold AS real)
        ORDER BY 1
    """).bindparams(words=asked, threshold=threshold)

    found = list(inside.scalars(ALIKE, look_for(asked, threshold)))

    assert found == list(inside.scalars(by_comparing_all))


@pytest.mark.parametrize(
    ("halves", "found"),
    [
        (["sourd", "ugh"], [SAID[1], SAID[0]]),
        (["SOURD", "nowhere"], [SAID[1], SAID[0]]),
        (["nowhere", "rests"], [SAID[1]]),
        (["nowhere"], []),
        ([None], []),
    ],
    ids=str,
)
def test_what_is_found_has_one_of_the_halves(
    inside: Connection, halves: list[str | None], found: list[str]
) -> None:
    """In any case, as trigrams have none."""
    asked = look_for("sourdoh", 0.3) | {"halves": halves}

    assert list(inside.scalars(ALIKE, asked)) == found


@pytest.mark.parametrize("at_most", [0, 1, 2, 3])
def test_no_more_are_found_than_asked_for(inside: Connection, at_most: int) -> None:
    """Each comparison takes time."""
    found = list(inside.scalars(ALIKE, look_for("sourdoh", 0.3) | {"at_most": at_most}))

    assert len(found) == min(at_most, 2)


def test_only_the_scope_of_the_transaction_is_looked_in(
    tenancy: Tenancy, inside: Connection
) -> None:
    """Not even the number of what others have is told."""
    theirs = {"any_of": [secret(tenancy.theirs)]}

    assert inside.scalar(COUNTED, theirs) == 0
    assert inside.scalar(COUNTED, {"any_of": [secret(tenancy.ours)]}) == 3
    enter(inside, None)
    assert inside.scalar(COUNTED, theirs) == 0
    enter(inside, tenancy.theirs)
    assert inside.scalar(COUNTED, theirs) == 3


@pytest.mark.parametrize(
    "hostile",
    [
        ["'", "\\", "a' | 'b", "!x", "(((", "*", ":*"],
        ["x" * 3000],
        [""],
        [None],
        [],
        ["word"] * 100_000,
    ],
    ids=str,
)
def test_what_is_asked_is_data_and_never_an_expression(
    inside: Connection, hostile: list[str | None]
) -> None:
    """Signs of a tsquery are letters of a word that nobody has; more words than asked are cut."""
    asked = {"any_of": hostile, "one": hostile[:300], "other": hostile[:300]}

    assert list(inside.scalars(WITH_WORDS, asked)) == []


@pytest.mark.parametrize("words", ["", "%", "_", "\\", "(", "x" * 100_000, "  "])
@pytest.mark.parametrize("threshold", [-1.0, 0.0, 0.5, 1.0, 2.0, float("nan"), float("inf")])
def test_no_threshold_and_no_text_is_an_error(
    inside: Connection, words: str, threshold: float
) -> None:
    """Whatever is asked, an answer depends on rows of the scope alone."""
    inside.execute(ALIKE, look_for(words, threshold) | {"halves": [words, words]})


def test_the_sizes_of_scopes_are_told_to_administrators_alone(
    tenancy: Tenancy, inside: Connection
) -> None:
    """They are needed to build indexes."""
    sizes = text("SELECT scope, vectors FROM memory_embeddings_large_scopes(2)")
    allowed = "SELECT has_function_privilege('memory_embeddings_large_scopes(bigint)', 'EXECUTE')"

    assert not inside.scalar(text(allowed))
    with tenancy.owner.engine.connect() as owner:
        told = {row.scope: row.vectors for row in owner.execute(sizes)}
    scopes: tuple[Scope, ...] = (tenancy.ours, tenancy.theirs, tenancy.person)
    assert told == {str(scope): 3 for scope in scopes}
