"""The evaluation: figures that are right, on a database that is gone afterwards."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import ir_measures
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ir_measures import RR, R, nDCG
from psycopg.pq import ConnStatus, PGconn
from sqlalchemy import URL, create_engine, text
from sqlalchemy.exc import ProgrammingError

import pgcorpus
from pgcorpus.db.choices import Group
from pgcorpus.db.engine import Database
from pgcorpus.db.errors import (
    ImportFailed,
    InvalidSearch,
    NotPermitted,
    UnknownCorpus,
    UnknownModel,
)
from pgcorpus.db.migrations import current, drift, upgrade
from pgcorpus.db.scratch import PREFIX, scratch_database
from pgcorpus.services.evaluation.beir import missing_files, read_collection
from pgcorpus.services.evaluation.evaluate import (
    Evaluation,
    EvaluationService,
    GivenVectors,
    Result,
)
from pgcorpus.services.evaluation.loading import LOADINGS, Loaded, load_collection
from pgcorpus.services.evaluation.metrics import ndcg, recall, reciprocal_rank
from pgcorpus.services.ops.switch import ModelSwitch
from pgcorpus.services.search.service import Request
from tests import factories
from tests.command import PGCORPUS
from tests.conftest import Databases, settings_for
from tests.logins import logged_in
from tests.pooler import variables_of

PROJECT = Path(pgcorpus.__file__).parents[1]
SCRATCH = text("""
    SELECT DISTINCT regexp_replace(name, '^rag_search_', '')
    FROM (SELECT datname FROM pg_database UNION ALL SELECT nspname FROM pg_namespace
          UNION ALL SELECT rolname FROM pg_roles) AS made (name)
    WHERE starts_with(regexp_replace(name, '^rag_search_', ''), :prefix)
""")
DOCUMENTS = (
    {"_id": "kettle", "title": "Kettle", "text": "Water boils in a kettle."},
    {"_id": "stove", "title": "Stove", "text": "A stove heats the room."},
    {"_id": "lamp", "title": "Lamp", "text": "The lamp gives light to read by."},
)
QUERIES = (
    {"_id": "q1", "text": "boiling water"},
    {"_id": "q2", "text": "light for reading"},
)
QRELS = (("q1", "kettle", 2), ("q1", "stove", 1), ("q2", "lamp", 1))


def write(
    folder: Path,
    *,
    documents: Sequence[Mapping[str, Any]] = DOCUMENTS,
    queries: Sequence[Mapping[str, Any]] = QUERIES,
    qrels: Sequence[tuple[str, str, int]] = QRELS,
    vectors: tuple[np.ndarray, np.ndarray] | None = None,
) -> Path:
    """A collection's files."""
    for name, lines in (("corpus", documents), ("queries", queries)):
        (folder / f"{name}.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    rows = ["query-id\tcorpus-id\tscore", *("\t".join(map(str, row)) for row in qrels)]
    (folder / "qrels.tsv").write_text("\n".join(rows) + "\n")
    if vectors is not None:
        np.save(folder / "emb_docs.npy", vectors[0])
        np.save(folder / "emb_queries.npy", vectors[1])
    return folder


def axes(*leans: tuple[float, ...]) -> np.ndarray:
    """Rows of float32, not of unit length: what a cosine is, it must compute."""
    return np.array(leans, dtype=np.float32)


def scratches(database: Database) -> list[str]:
    """Names of what evaluations have made: databases, and schemas and roles of a name."""
    with database.engine.connect() as connection:
        return list(connection.scalars(SCRATCH, {"prefix": PREFIX}))


def run_in_scratch(database: Database, *statements: str) -> None:
    """Change the scratch schema of the evaluation that runs."""
    (name,) = scratches(database)
    options = f"-c role={name} -c search_path={name},public"
    url = database.settings.admin_url or database.url
    engine = create_engine(url.update_query_dict({"options": options}))
    with engine.begin() as connection:
        for statement in statements:
            connection.execute(text(statement))
    engine.dispose()


WHO = ("owner", pytest.param("superuser", marks=pytest.mark.superuser))
"""A superuser's scratch is a database of its own, an owner's a schema of the same database."""


def of(evaluation: Evaluation, mode: str, fusion: str = "default") -> Result:
    """One mode's figures."""
    (result,) = [r for r in evaluation.results if (r.mode, r.fusion) == (mode, fusion)]
    return result


KEYS = st.sampled_from([f"d{n}" for n in range(30)])


@given(
    runs=st.lists(
        st.tuples(
            st.lists(KEYS, unique=True, max_size=30),
            st.dictionaries(KEYS, st.integers(-1, 3), min_size=1).filter(
                lambda grades: max(grades.values()) > 0
            ),
        ),
        min_size=1,
        max_size=5,
    )
)
def test_the_measures_agree_with_trec_eval(
    runs: list[tuple[list[str], dict[str, int]]],
) -> None:
    """To 1e-6, on any ranking with any grades, at depths that cut it and that do not."""
    qrels = {f"q{n}": grades for n, (_, grades) in enumerate(runs)}
    # trec_eval orders by score: a document's is higher the nearer to the top it stands.
    ranked = {
        f"q{n}": {key: float(-place) for place, key in enumerate(ranking)}
        for n, (ranking, _) in enumerate(runs)
    }
    wanted = {
        (metric.query_id, str(metric.measure)): metric.value
        for metric in ir_measures.iter_calc([nDCG @ 10, R @ 10, R @ 100, RR], qrels, ranked)
    }

    for n, (ranking, grades) in enumerate(runs):
        for name, value in (
            ("nDCG@10", ndcg(ranking, grades, 10)),
            ("R@10", recall(ranking, grades, 10)),
            ("R@100", recall(ranking, grades, 100)),
            ("RR", reciprocal_rank(ranking, grades)),
        ):
            assert value == pytest.approx(wanted.get((f"q{n}", name), 0), abs=1e-6)


def test_the_vectors_of_a_collection_rank_it_as_their_cosines_do(
    database: Database, tmp_path: Path
) -> None:
    """Of three documents q1's best is second, and q2's only one third: figures by hand."""
    vectors = (
        axes((3, 1, 0), (3, 0, 0), (0, 1, 3)),
        axes((1, 0, 0), (5, 1, 0)),
    )
    collection = read_collection(write(tmp_path, vectors=vectors))

    evaluation = EvaluationService(database).evaluate(collection, modes=["vector"])

    result = of(evaluation, "vector")
    gained = (1 + 2 / np.log2(3)) / (2 + 1 / np.log2(3))  # stove, kettle instead of the other way
    assert result.ndcg == pytest.approx((gained + 1 / np.log2(4)) / 2)
    assert (result.recall_10, result.recall_100) == (1, 1)
    assert result.mrr == pytest.approx((1 + 1 / 3) / 2)
    assert 0 < result.p50_ms <= result.p95_ms
    assert evaluation.model == "given-3"


def test_every_mode_has_a_result_and_hybrid_one_for_each_fusion(
    database: Database, tmp_path: Path
) -> None:
    """The fusion that a caller gets who names none is called the default, and is measured once."""
    vectors = (axes((1, 0), (0, 1), (1, 1)), axes((1, 0), (1, 1)))
    collection = read_collection(write(tmp_path, vectors=vectors))

    evaluation = EvaluationService(database).evaluate(collection)

    measured = [(result.mode, result.fusion) for result in evaluation.results]
    assert measured[:4] == [
        ("vector", "default"),
        ("text", "default"),
        ("fuzzy", "default"),
        ("hybrid", "default"),
    ]
    fusions = {fusion for mode, fusion in measured[4:] if mode == "hybrid"}
    assert "rrf" in fusions
    assert Request.fusion not in fusions
    assert len(measured) == len(set(measured)) == 4 + len(fusions)
    assert evaluation.notes == []
    assert of(evaluation, "text").ndcg == pytest.approx((2 / (2 + 1 / np.log2(3)) + 1) / 2)


def test_a_query_with_a_scope_finds_only_documents_of_its_scope(
    database: Database, tmp_path: Path
) -> None:
    """The other scope has the better document, which would take the first place."""
    documents = [
        {"_id": "a/1", "title": "", "text": "water water water", "scope": "a"},
        {"_id": "b/1", "title": "", "text": "some water on a stove in a room", "scope": "b"},
    ]
    queries = [
        {"_id": "inside", "text": "water", "scope": "b"},
        {"_id": "nowhere", "text": "water", "scope": "scope 1"},
    ]
    qrels = [("inside", "b/1", 1), ("inside", "a/1", 0), ("nowhere", "b/1", 1)]
    folder = write(tmp_path, documents=documents, queries=queries, qrels=qrels)

    evaluation = EvaluationService(database).evaluate(read_collection(folder), modes=["text"])

    assert of(evaluation, "text").mrr == 0.5


ODD = (
    {"_id": "only a title", "title": "Two Square-Root Approximations", "text": ""},
    {"_id": "only a text", "title": "", "text": "Glossary of computing."},
    {"_id": "neither", "title": " ", "text": "\n"},
    {"_id": "terse", "title": "T", "text": "I am as I am"},
    {"_id": "the same again", "title": "T", "text": "I am as I am"},
    {"_id": "long", "title": "L", "text": " ".join(f"word{n}" for n in range(900))},
    {"_id": "odd \u202e / \ud800 \x00 'id'" + "x" * 300, "title": "O", "text": "-- %s {x} \\N"},
    {"_id": 7, "text": "No title at all."},
)
STORED = text(
    "SELECT chunk_search = setweight(to_tsvector('english', :title), 'A')"
    " || to_tsvector('english', :text), chunks.language::text, chunks.text"
    " FROM chunks JOIN documents ON documents.id = document_id WHERE path = :place"
)


def test_no_document_gets_or_loses_a_word(database: Database, tmp_path: Path) -> None:
    """Without text, without title, terse, twice the same, under any name; nothing is padded."""
    collection = read_collection(write(tmp_path, documents=ODD, qrels=[("q1", "terse", 1)]))

    loaded = load_collection(
        database,
        collection,
        LOADINGS["scratch"].config,
        language="english",
        model_name=None,
        progress=lambda _done, _total: None,
    )

    assert loaded == Loaded(passages=len(ODD) - 1, is_cut=False)
    with database.engine.connect() as connection:
        for place, document in enumerate(collection.documents):
            title, said = document.title.strip(), document.text.strip()
            if not said:  # a title alone is the text
                title, said = "", title
            stored = connection.execute(
                STORED, {"place": str(place), "title": title, "text": said}
            ).all()
            assert stored == ([(True, "english", said)] if said else []), document


LONG = " ".join(f"word{n} of a saga." for n in range(10_300))
"""More than 200,000 characters in one paragraph."""


@pytest.mark.parametrize("with_vectors", [True, False])
def test_texts_of_any_length_are_taken(
    database: Database, tmp_path: Path, *, with_vectors: bool
) -> None:
    """Three words are a passage; 200,000 characters are several, of which the best one counts."""
    documents = [
        {"_id": "terse", "title": "", "text": "I am it"},
        {"_id": "tome", "title": "Saga", "text": LONG},
        *DOCUMENTS,
    ]
    queries = [{"_id": "end", "text": "word10299"}, {"_id": "short", "text": "am it -saga"}]
    vectors = (axes((0, 1), (1, 0), (1, 9), (1, 9), (1, 9)), axes((1, 0), (0, 1)))
    folder = write(
        tmp_path,
        documents=documents,
        queries=queries,
        qrels=[("end", "tome", 1), ("short", "terse", 1)],
        vectors=vectors if with_vectors else None,
    )
    assert len(LONG) > 200_000

    evaluation = EvaluationService(database).evaluate(
        read_collection(folder), modes=["vector", "fuzzy"] if with_vectors else ["text", "fuzzy"]
    )

    (told,) = evaluation.notes
    assert told.startswith("5 documents were cut into ")
    found = evaluation.results[0]
    if with_vectors:  # each passage has the vector of its document
        assert (found.ndcg, found.recall_100) == (1, 1)
    else:  # stop words alone find nothing
        assert (found.ndcg, found.recall_100) == (0.5, 0.5)


def test_a_query_without_a_word_scores_nothing_and_is_told(
    database: Database, tmp_path: Path
) -> None:
    """It stays in the mean: a caller who asks it finds nothing."""
    queries = [*QUERIES, {"_id": "q3", "text": "?!"}]
    folder = write(tmp_path, queries=queries, qrels=[*QRELS, ("q3", "lamp", 1)])

    evaluation = EvaluationService(database).evaluate(read_collection(folder), modes=["text"])

    assert evaluation.queries == 3
    assert of(evaluation, "text").mrr == pytest.approx(2 / 3)
    assert evaluation.notes == ["queries without a word to search for, which score 0: 1"]


def test_without_vectors_the_modes_that_need_them_are_left_out_and_told(
    database: Database, tmp_path: Path
) -> None:
    """If nothing else was asked for, that is an error with its cure."""
    collection = read_collection(write(tmp_path))
    service = EvaluationService(database)

    evaluation = service.evaluate(collection, modes=["hybrid", "text"])

    assert [result.mode for result in evaluation.results] == ["text"]
    assert evaluation.model is None
    assert "hybrid left out" in evaluation.notes[0]
    with pytest.raises(InvalidSearch, match="--model hashing"):
        service.evaluate(collection, modes=["vector"])


def test_a_named_model_embeds_documents_and_queries(database: Database, tmp_path: Path) -> None:
    """One that every database has, or one that only the user's has registered."""
    collection = read_collection(write(tmp_path))
    ModelSwitch(database).add("hashing-64", dimensions=64, provider="hashing")
    stages: list[str] = []

    evaluation = EvaluationService(database).evaluate(
        collection,
        modes=["vector"],
        model="hashing-64",
        progress=lambda stage, _done, _total: stages.append(stage),
    )

    assert evaluation.model == "hashing-64"
    assert of(evaluation, "vector").recall_10 == 1
    assert list(dict.fromkeys(stages)) == [
        "scratch schema",
        "importing",
        "embedding documents",
        "embedding queries",
        "vector",
        "vector, timed",
    ]


def test_a_model_that_nobody_knows_is_refused_also_before_the_first_upgrade(
    empty: Database, tmp_path: Path
) -> None:
    """The user's database has no registry to look into then."""
    collection = read_collection(write(tmp_path))

    with pytest.raises(UnknownModel, match="gpt"):
        EvaluationService(empty).evaluate(collection, model="gpt")


def test_vectors_of_a_known_model_must_have_its_length(database: Database, tmp_path: Path) -> None:
    """Under a name that nobody has they may have any."""
    vectors = (axes((1, 0), (0, 1), (1, 1)), axes((1, 0), (1, 1)))
    collection = read_collection(write(tmp_path, vectors=vectors))
    service = EvaluationService(database)

    with pytest.raises(InvalidSearch, match="2 dimensions and those of hashing have 384"):
        service.evaluate(collection, model="hashing")
    assert service.evaluate(collection, modes=["vector"], model="mine").model == "mine"


def test_a_leg_that_fails_is_told_with_its_reason(database: Database, tmp_path: Path) -> None:
    """The other leg answers, and nobody must take its figures for those of both."""
    vectors = (axes((1, 0), (0, 1), (1, 1)), axes((1, 0), (1, 1)))
    collection = read_collection(write(tmp_path, vectors=vectors))

    def break_the_vectors(stage: str, done: int, _total: int) -> None:
        if (stage, done) == ("hybrid", 0):
            run_in_scratch(
                database, "ALTER TABLE documentation_embeddings RENAME embedding TO gone"
            )

    evaluation = EvaluationService(database).evaluate(
        collection, modes=["hybrid"], progress=break_the_vectors
    )

    assert of(evaluation, "hybrid").recall_10 > 0
    assert any("hybrid: the vector leg failed" in note for note in evaluation.notes)


def test_given_vectors_are_of_unit_length_and_unknown_texts_are_refused() -> None:
    """They stand where an embedder stands, and keep its promises."""
    given_vectors = GivenVectors("mine", ["a", "b"], axes((3, 4), (0, 2)))

    assert given_vectors.embed_question("a") == pytest.approx([0.6, 0.8])
    assert given_vectors.embed_documents([]).shape == (0, 2)
    with pytest.raises(Exception, match="no vector was given for the text 'c'"):
        given_vectors.embed_question("c")


def test_a_collection_in_another_language_is_stored_and_asked_in_it(
    database: Database, tmp_path: Path
) -> None:
    """German stems join what English ones do not; a named language is taken as it is."""
    documents = [
        {"_id": "haus", "title": "", "text": "In den alten Häusern der Stadt wohnen viele Kinder."},
        {"_id": "wald", "title": "", "text": "Der Wald beginnt gleich hinter dem letzten Garten."},
    ]
    queries = [{"_id": "q", "text": "Welches Haus?"}]
    folder = write(tmp_path, documents=documents, queries=queries, qrels=[("q", "haus", 1)])
    service = EvaluationService(database)

    found = service.evaluate(read_collection(folder), modes=["text"])
    named = service.evaluate(read_collection(folder), modes=["text"], language="simple")

    assert (found.language, named.language) == ("german", "simple")
    assert of(found, "text").mrr == 1


@pytest.mark.parametrize(("language", "found"), [("auto", 1), ("german", 0)])
def test_queries_are_read_in_the_languages_of_the_corpus_unless_one_is_named(
    database: Database, tmp_path: Path, language: str, found: int
) -> None:
    """As a caller's are: a document that has lost its stems is found by who names no language."""
    documents = [
        {"_id": "häuser", "title": "", "text": "In den alten Häusern der Stadt wohnen Kinder."},
        {"_id": "haus", "title": "", "text": "Das Haus steht gleich hinter dem letzten Garten."},
    ]
    queries = [{"_id": "q", "text": "Häusern"}]
    folder = write(tmp_path, documents=documents, queries=queries, qrels=[("q", "häuser", 1)])

    def without_stems(stage: str, done: int, _total: int) -> None:
        if (stage, done) == ("text", 0):
            run_in_scratch(
                database,
                "UPDATE chunks SET language = 'simple' WHERE text ~ 'Häusern'",
                "ANALYZE chunks",
            )

    evaluation = EvaluationService(database).evaluate(
        read_collection(folder), modes=["text"], language=language, progress=without_stems
    )

    assert evaluation.language == "german"
    assert of(evaluation, "text").recall_10 == found


def test_only_queries_with_a_relevant_document_count(tmp_path: Path) -> None:
    """Judgments where BEIR has them; what does not fit together is counted and told."""
    queries = [*QUERIES, {"_id": "unjudged", "text": "who?"}]
    qrels = [*QRELS, ("q1", "gone", 1), ("lost", "lamp", 1)]
    folder = write(tmp_path, queries=queries, qrels=qrels)
    (folder / "qrels").mkdir()
    (folder / "qrels.tsv").rename(folder / "qrels" / "test.tsv")

    collection = read_collection(folder)

    assert [query.id for query in collection.queries] == ["q1", "q2"]
    assert collection.judgments["q1"] == {"kettle": 2, "stove": 1, "gone": 1}
    assert collection.notes == (
        "judged queries that are not in queries.jsonl: 1, such as 'lost'",
        "queries without a relevant document, left out: 1",
        (
            "judged documents that are not in corpus.jsonl: 1, such as 'gone'; "
            "those that are relevant count as not found"
        ),
    )


def test_the_vectors_of_queries_without_judgments_are_left_out_with_them(tmp_path: Path) -> None:
    """Row i belongs to line i, not to the i-th query that is asked."""
    queries = [{"_id": "unjudged", "text": "who?"}, *QUERIES]
    vectors = (axes((1, 0), (0, 1), (1, 1)), axes((9, 9), (1, 0), (0, 1)))

    collection = read_collection(write(tmp_path, queries=queries, vectors=vectors))

    assert collection.vectors is not None
    assert collection.vectors.queries.tolist() == [[1, 0], [0, 1]]


@pytest.mark.parametrize(
    ("file", "content", "complaint"),
    [
        ("corpus.jsonl", b'{"_id": "a", "text": "b"}\n{"_id": ', "line 2 is not JSON"),
        ("corpus.jsonl", b"[" * 100_000, "line 1 is not JSON"),
        ("corpus.jsonl", b'\n["_id"]', "line 2 is not an object with an '_id'"),
        ("corpus.jsonl", b'{"_id": 1}\n{"_id": "1"}', "line 2 has the '_id' '1' of line 1"),
        ("corpus.jsonl", b'{"_id": "a", "text": ["b"]}', "line 1: 'text' is not text"),
        ("corpus.jsonl", b'{"_id": "\xff"}', "line 1 is not UTF-8"),
        ("corpus.jsonl", b"\n\n", "corpus.jsonl is empty"),
        ("queries.jsonl", b"", "no query has a document that is judged relevant"),
        ("qrels.tsv", b"query-id\tcorpus-id\tscore\nq1\tkettle\n", "line 2 has not the three"),
        ("qrels.tsv", b"q\td\ts\nq1\tkettle\thigh\n", "line 2: the score 'high"),
        ("qrels.tsv", b"q1\td\t1\nq1\td\t2\n", "line 2 judges 'd' for 'q1' again"),
        ("qrels.tsv", b"q1\tkettle\t0\n", "no query has a document that is judged relevant"),
    ],
)
def test_a_file_that_cannot_be_used_is_named_with_its_line(
    tmp_path: Path, file: str, content: bytes, complaint: str
) -> None:
    """And with what is wrong there."""
    (write(tmp_path) / file).write_bytes(content)

    with pytest.raises(ImportFailed, match=complaint):
        read_collection(tmp_path)


@pytest.mark.parametrize(
    ("documents", "queries", "complaint"),
    [
        (np.ones((2, 4)), np.ones((2, 4)), "emb_docs.npy has 2 vectors for 3 lines"),
        (np.ones((3, 4)), np.ones((3, 4)), "emb_queries.npy has 3 vectors for 2 lines"),
        (np.ones((3, 4)), np.ones((2, 5)), "4 dimensions and the queries' 5"),
        (np.ones((3, 0)), np.ones((2, 0)), "1 to 16000 dimensions"),
        (np.ones(3), np.ones((2, 4)), "vectors are a table"),
        (np.ones((3, 4), dtype=int), np.ones((2, 4)), "must be float16, float32, float64"),
        (np.array([[{}], [{}], [{}]]), np.ones((2, 1)), "holds object"),
        (np.full((3, 4), np.nan), np.ones((2, 4)), "NaN"),
        (np.ones((3, 4)), np.zeros((2, 4)), "all zeros"),
    ],
)
def test_vectors_are_read_without_trust(
    tmp_path: Path, documents: np.ndarray, queries: np.ndarray, complaint: str
) -> None:
    """Counts, shapes, kinds and every number; nothing in them is executed."""
    with pytest.raises(ImportFailed, match=complaint):
        read_collection(write(tmp_path, vectors=(documents, queries)))


def test_vectors_of_documents_alone_are_of_no_use(tmp_path: Path) -> None:
    """Both files, or none."""
    write(tmp_path, vectors=(np.ones((3, 4)), np.ones((2, 4))))
    (tmp_path / "emb_queries.npy").unlink()

    with pytest.raises(ImportFailed, match="it must have both"):
        read_collection(tmp_path)


def test_missing_files_are_named(tmp_path: Path) -> None:
    """With both places where judgments may be."""
    (tmp_path / "corpus.jsonl").touch()

    assert missing_files(tmp_path) == ["queries.jsonl", "qrels.tsv or qrels/test.tsv"]
    with pytest.raises(ImportFailed, match=r"has no queries\.jsonl, qrels\.tsv or"):
        read_collection(tmp_path)


@pytest.mark.parametrize("by", WHO)
def test_the_scratch_is_dropped_however_it_ends(
    by: str, database: Database, tmp_path: Path
) -> None:
    """In the middle of a search, by a key."""
    collection = read_collection(write(tmp_path))
    seen: list[int] = []

    def interrupt(stage: str, done: int, _total: int) -> None:
        if (stage, done) != ("scratch schema", 0):
            seen.append(len(scratches(database)))
        if stage == "text":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        EvaluationService(database).evaluate(collection, modes=["text"], progress=interrupt)

    assert set(seen) == {1}
    assert scratches(database) == []


@pytest.mark.parametrize("by", WHO)
def test_the_scratch_is_dropped_with_whoever_is_connected(by: str, database: Database) -> None:
    """A connection that somebody left open does not keep it."""
    with scratch_database(database) as scratch:
        left_open = scratch.schema_engine().connect()
        left_open.execute(text("SELECT FROM framework_documents"))
        assert len(scratches(database)) == 1

    left_open.invalidate()
    left_open.close()
    assert scratches(database) == []


CONTENTS = text("""
    SELECT nspname, relname, pg_class.xmin, pg_relation_size(pg_class.oid), relacl
    FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace
    WHERE nspname NOT LIKE 'pg\\_%' ORDER BY 1, 2
""")


def test_an_owner_is_given_the_figures_of_a_superuser_without_a_trace_in_the_database(
    database: Database, databases: Databases, tmp_path: Path
) -> None:
    """No right to make databases is needed, and none of the extensions is made again."""
    vectors = (axes((1, 0), (0, 1), (1, 1)), axes((1, 0), (1, 1)))
    collection = read_collection(write(tmp_path, vectors=vectors))
    by_superuser = Database(settings_for(databases.superuser_of(database.url)))
    with database.engine.connect() as connection:
        before = connection.execute(CONTENTS).all()

    figures = [
        [(r.mode, r.fusion, r.ndcg, r.recall_10, r.recall_100, r.mrr) for r in evaluation.results]
        for evaluation in (
            EvaluationService(each).evaluate(collection) for each in (database, by_superuser)
        )
    ]

    by_superuser.close()
    assert figures[0] == figures[1]
    with database.engine.connect() as connection:
        assert connection.execute(CONTENTS).all() == before


@pytest.mark.parametrize("by", WHO)
def test_the_address_for_administration_leads_to_the_scratch_too(
    by: str, database: Database
) -> None:
    """Its own database is at the newest revision already: an upgrade there would change nothing."""
    settings = replace(database.settings, admin_url=database.settings.admin_url or database.url)
    with scratch_database(Database(settings)) as scratch, scratch.unit_of_work() as work:
        assert work.session.scalar(text("SELECT count(*) FROM framework_documents")) == 0
        home = (scratch.url.database, work.session.scalar(text("SELECT current_schema()")))
        assert any(name.startswith(PREFIX) for name in home)


def test_an_owners_scratch_is_shut_off_from_the_rest_of_the_database(database: Database) -> None:
    """Its searcher has no right to any table of the schema beside, not even to look."""
    with scratch_database(database) as scratch:
        assert current(scratch) == current(database)
        with scratch.engine.connect() as connection:
            home = connection.scalar(text("SELECT current_schema()"))
            assert connection.scalar(text("SELECT current_user")) == home
            assert connection.scalar(text("SELECT count(*) FROM framework_documents")) == 0
            with pytest.raises(ProgrammingError, match="permission denied for table"):
                connection.execute(text("SELECT FROM public.framework_documents"))


def test_no_memory_is_seen_by_way_of_a_scratch(empty: Database) -> None:
    """Its role may become the one that searches run as, and has none of its rights."""
    upgrade(empty)  # under its own name: the searcher is that of these tables
    with empty.unit_of_work() as work:
        factories.bind(work.session)
        factories.MemoryNodeFactory()
        work.commit()

    with scratch_database(empty) as scratch:
        with (
            scratch.engine.connect() as connection,
            pytest.raises(ProgrammingError, match="permission denied for table"),
        ):
            connection.execute(text("SELECT FROM public.memory_nodes"))
        with empty.engine.connect() as connection:
            assert connection.scalar(text("SELECT count(*) FROM memory_nodes")) == 0


def test_evaluations_that_overlap_leave_no_role(database: Database) -> None:
    """In a copy of a database the first makes the role that searches run as; the last drops it."""
    made = text("SELECT count(*) FROM pg_roles WHERE rolname = 'rag_search_' || current_database()")
    with ExitStack() as first:
        first.enter_context(scratch_database(database))
        with scratch_database(database) as second:
            first.close()
            assert drift(second) == []

    assert scratches(database) == []
    with database.engine.connect() as connection:
        assert connection.scalar(made) == 0


def test_extensions_in_a_schema_that_is_shut_are_opened_to_the_scratch_alone(
    database: Database,
) -> None:
    """As where an administrator has revoked what is everybody's in a new database."""
    searcher = f'"rag_search_{database.url.database}"'  # an upgrade of this database made it
    with database.engine.begin() as connection:
        connection.execute(text(f"CREATE ROLE {searcher} NOLOGIN"))
        connection.execute(text(f"GRANT USAGE ON SCHEMA public TO {searcher}"))
        connection.execute(text("REVOKE USAGE ON SCHEMA public FROM PUBLIC"))

    try:
        with scratch_database(database) as scratch:
            assert drift(scratch) == []
    finally:
        with database.engine.begin() as connection:
            connection.execute(text(f"REVOKE USAGE ON SCHEMA public FROM {searcher}"))
            connection.execute(text(f"DROP ROLE {searcher}"))

    assert scratches(database) == []


@pytest.mark.parametrize("group", ["rag_read_only", "rag_read_write", "rag_admin"])
def test_a_login_that_may_make_no_scratch_is_told_what_mends_it(
    database: Database, tmp_path: Path, group: Group
) -> None:
    """The message names a group that may, and the very statement that would let this login."""
    collection = read_collection(write(tmp_path))

    with logged_in(database, group) as login:
        said = f"log in as the owner of the database.*ALTER ROLE {login.url.username} CREATEROLE"
        with pytest.raises(NotPermitted, match=said):
            EvaluationService(login).evaluate(collection, modes=["text"])

    assert scratches(database) == []


def test_a_corpus_or_mode_that_there_is_not_is_refused_with_those_there_are(
    database: Database, tmp_path: Path
) -> None:
    """Before anything is made."""
    collection = read_collection(write(tmp_path))
    service = EvaluationService(database)

    with pytest.raises(UnknownCorpus, match="known: documentation, scratch"):
        service.evaluate(collection, corpus="recipes")
    with pytest.raises(InvalidSearch, match="'psychic'; known: vector, text, fuzzy, hybrid"):
        service.evaluate(collection, modes=["psychic"])  # type: ignore[list-item]


def pgcorpus_eval(database: Database, *arguments: str) -> subprocess.Popen[str]:
    """The installed command, under way."""
    return subprocess.Popen(
        [PGCORPUS, "eval", *arguments],
        env={
            "PATH": os.environ["PATH"],
            **variables_of(database.settings),
            "PYTHONPATH": str(PROJECT),
            "COLUMNS": "200",
        },
        cwd=arguments[0] if arguments and Path(arguments[0]).is_dir() else None,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_scripts_get_one_document_of_json_and_people_the_notes(
    database: Database, tmp_path: Path
) -> None:
    """The keys that the reference names, and what was left out on stderr."""
    process = pgcorpus_eval(database, str(write(tmp_path)), "--modes", "text, hybrid", "--json")

    answer, notes = process.communicate(timeout=120)

    evaluation = json.loads(answer)
    assert process.returncode == 0, notes
    assert evaluation.keys() == {
        "collection", "corpus", "documents", "queries", "language", "model", "results", "notes",
    }  # fmt: skip
    assert (evaluation["documents"], evaluation["queries"]) == (3, 2)
    (result,) = evaluation["results"]
    assert result.keys() == {
        "mode", "fusion", "ndcg@10", "recall@10", "recall@100", "mrr", "p50_ms", "p95_ms",
    }  # fmt: skip
    assert "hybrid left out" in notes


def test_people_get_a_table(database: Database, tmp_path: Path) -> None:
    """With the figures to four places."""
    process = pgcorpus_eval(database, str(write(tmp_path)), "--modes", "text")

    shown, complaint = process.communicate(timeout=120)

    assert process.returncode == 0, complaint
    assert "3 documents, 2 queries, english, no vectors" in shown
    assert "nDCG@10" in shown
    assert of_row(shown, "text")[2:6] == ["0.8801", "0.7500", "0.7500", "1.0000"]


def of_row(shown: str, mode: str) -> list[str]:
    """The cells of a mode's row."""
    rows = [[cell.strip() for cell in line.strip("│ ").split("│")] for line in shown.splitlines()]
    (row,) = [row for row in rows if row[0] == mode]
    return row


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("nowhere",), "does not exist"),
        ((".",), "has no corpus.jsonl"),
        ((), "missing argument"),
        (("COLLECTION", "--corpus", "recipes"), "known: documentation, scratch"),
        (("COLLECTION", "--modes", "text,psychic"), "known: vector, text, fuzzy, hybrid"),
        (("COLLECTION", "--modes", "vector"), "--model hashing"),
        (("COLLECTION", "--language", "klingon"), "known: auto"),
    ],
)
def test_wrong_use_ends_with_2_and_says_what_would_be_right(
    database: Database, tmp_path: Path, arguments: tuple[str, ...], complaint: str
) -> None:
    """No other try can mend it, and no bar is drawn for work that does not begin."""
    folder = tmp_path / "collection"
    folder.mkdir()
    write(folder)
    process = pgcorpus_eval(
        database,
        *(str(folder) if each == "COLLECTION" else each.replace(".", str(tmp_path))
          for each in arguments),
    )  # fmt: skip

    answer, complained = process.communicate(timeout=120)

    assert process.returncode == 2
    assert answer == ""
    assert complaint in complained
    assert "Traceback" not in complained
    assert "scratch schema" not in complained


def test_a_broken_file_ends_with_1(database: Database, tmp_path: Path) -> None:
    """It can be mended, and tried again."""
    (write(tmp_path) / "queries.jsonl").write_text("{")
    process = pgcorpus_eval(database, str(tmp_path))

    _, complaint = process.communicate(timeout=120)

    assert process.returncode == 1
    assert "queries.jsonl, line 1 is not JSON" in complaint


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_a_signal_ends_it_without_a_trace_and_without_its_database(
    database: Database, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    """Thousands of queries are under way when it comes."""
    queries = [{"_id": str(n), "text": f"boiling water {n}"} for n in range(2000)]
    qrels = [(str(n), "kettle", 1) for n in range(2000)]
    process = pgcorpus_eval(database, str(write(tmp_path, queries=queries, qrels=qrels)))
    try:
        while process.poll() is None and not scratches(database):
            time.sleep(0.05)
        process.send_signal(number)
        answer, complaint = process.communicate(timeout=120)
    finally:
        process.kill()
        process.communicate()

    assert (process.returncode, answer) == (code, "")
    assert "Traceback" not in complaint
    assert scratches(database) == []


def test_what_comes_while_a_connection_is_made_does_not_hold_up_the_end(database: Database) -> None:
    """The server waits for who has begun to log in, for a minute, unless they hang up."""

    def interrupt(url: URL) -> None:
        address = f"host={url.host} port={url.port} user={url.username} dbname=postgres"
        held = PGconn.connect_start(address.encode())
        while held.status != ConnStatus.AWAITING_RESPONSE:
            held.connect_poll()
        raise KeyboardInterrupt

    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt), scratch_database(database) as scratch:
        interrupt(scratch.url)

    assert scratches(database) == []
    assert time.monotonic() - began < 30, "of 60 seconds that the server has patience"


# As documents


def test_a_collection_of_documents_is_chunked_and_its_best_chunks_count(
    database: Database, tmp_path: Path
) -> None:
    """Long texts are cut, nothing is padded or refused, and each document is found once."""
    long = "\n\n".join(f"Paragraph {n} is about kettles and boiling water." for n in range(200))
    documents = (
        {"_id": "long", "title": "Kettles", "text": long},
        *DOCUMENTS,
        {"_id": "blank", "title": "", "text": ""},
        {"_id": "title", "title": "Only a title", "text": ""},
        {"_id": "terse", "title": "", "text": "x \x00 # y"},
    )
    folder = write(tmp_path, documents=documents, qrels=(*QRELS, ("q1", "long", 2)))

    evaluation = EvaluationService(database).evaluate(
        read_collection(folder), corpus="documentation", modes=["text", "hybrid"], model="hashing"
    )

    assert evaluation.documents == 7
    (told,) = (note for note in evaluation.notes if "passages" in note)
    assert int(told.split()[5]) > 10
    assert {result.mode for result in evaluation.results} == {"text", "hybrid"}
    assert of(evaluation, "text").recall_10 == pytest.approx((2 / 3 + 1) / 2)
    assert not scratches(database)


def test_vectors_of_whole_documents_are_not_taken_for_those_of_chunks(
    database: Database, tmp_path: Path
) -> None:
    """It is told; modes that need vectors need a model."""
    vectors = (axes((1, 0), (0, 1), (1, 1)), axes((1, 0), (0, 1)))

    evaluation = EvaluationService(database).evaluate(
        read_collection(write(tmp_path, vectors=vectors)), corpus="documentation"
    )

    assert "of whole documents" in evaluation.notes[0]
    assert evaluation.model is None
    assert [result.mode for result in evaluation.results] == ["text", "fuzzy"]


def test_scopes_of_a_collection_are_collections_of_documents(
    database: Database, tmp_path: Path
) -> None:
    """A question is asked within its own."""
    documents = [
        {**each, "scope": f"of {n % 2}"} for n, each in enumerate((*DOCUMENTS, *DOCUMENTS))
    ]
    documents = [{**each, "_id": str(n)} for n, each in enumerate(documents)]
    queries = [{"_id": "q", "text": "boiling water", "scope": "of 1"}]
    folder = write(tmp_path, documents=documents, queries=queries, qrels=[("q", "3", 1)])

    evaluation = EvaluationService(database).evaluate(
        read_collection(folder), corpus="documentation", modes=["text"]
    )

    assert of(evaluation, "text").ndcg == 1.0
