"""The old chat archive's HTTP interface: shapes that clients depend on, to the character."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError
from sqlalchemy import URL

from pgcorpus import EmbeddingService, SearchService
from pgcorpus.db.engine import Database
from pgcorpus.db.errors import EmbedderUnavailable
from pgcorpus.db.settings import Settings
from pgcorpus.services.chat import api as compat
from pgcorpus.services.chat.api import ChatApi
from pgcorpus.services.chat.preview import plain, shorten
from pgcorpus.services.embedding.hashing import HashingEmbedder
from tests.conftest import Databases
from tests.services.chat.archive import ANSWER, QUESTION, conversation_key, fill, turn_key

GOLDEN = Path(__file__).with_name("golden")

ROUTES: dict[str, Callable[[ChatApi], tuple[int, BaseModel | str]]] = {
    "conversations": lambda api: api.conversations(),
    "conversations_second_page": lambda api: api.conversations(page="2", limit="3"),
    "conversation": lambda api: api.conversation(str(conversation_key(1))),
    "conversation_unknown": lambda api: api.conversation(str(turn_key(9, 9))),
    "search_keyword": lambda api: api.search("churn", keyword="true"),
    "search_semantic": lambda api: api.search("charge for the outcome", n="2"),
    "search_without_question": lambda api: api.search(),
    "rag_keyword": lambda api: api.rag_query({"query": "price", "search_type": "keyword"}),
    "rag_semantic": lambda api: api.rag_query({"query": "premium price", "n_results": 2}),
    "stats": lambda api: api.stats(),
    "health": lambda api: api.health(),
    "export": lambda api: api.export(str(conversation_key(1))),
}

# The contract's table: the keys of every answer, and the types of what is not an object itself.
TEXT, NUMBER, TRUTH = {str}, {int}, {bool}
PERHAPS = {str, type(None)}
METADATA = {
    "id": TEXT, "title": TEXT, "source": TEXT, "earliest_ts": PERHAPS, "latest_ts": PERHAPS,
    "message_count": NUMBER, "is_chunk": TRUTH,
}  # fmt: skip
STATS = {
    "status": TEXT, "collection_name": TEXT, "document_count": NUMBER, "embedding_model": TEXT
}  # fmt: skip
CONTRACT: dict[str, Any] = {
    "conversations": {
        "conversations": [
            {"id": TEXT, "title": TEXT, "preview": TEXT, "date": TEXT, "source": TEXT}
        ],
        "pagination": {
            "page": NUMBER, "limit": NUMBER, "total": NUMBER, "has_next": TRUTH, "has_prev": TRUTH
        },
    },
    "conversation": {
        "id": TEXT, "title": TEXT, "source": TEXT, "date": PERHAPS, "assistant_name": TEXT,
        "messages": [{"id": TEXT, "role": TEXT, "content": TEXT, "timestamp": PERHAPS}],
    },
    "search": {
        "query": TEXT,
        "results": [{"title": TEXT, "date": PERHAPS, "content": TEXT, "metadata": METADATA}],
    },
    "rag": {
        "query": TEXT, "search_type": TEXT,
        "results": [
            {
                "id": TEXT, "title": TEXT, "content": TEXT, "preview": TEXT, "source": TEXT,
                "distance": {float}, "relevance": {float}, "metadata": METADATA,
            }
        ],
    },
    "stats": STATS,
    "health": STATS,
}  # fmt: skip


def assert_shaped(value: Any, shape: Any) -> None:
    """The value has the shape: the same keys, lists that are not empty, scalars of a type."""
    if isinstance(shape, dict):
        assert value.keys() == shape.keys()
        for key, inner in shape.items():
            assert_shaped(value[key], inner)
    elif isinstance(shape, list):
        assert value
        for each in value:
            assert_shaped(each, shape[0])
    else:
        assert type(value) in shape


@pytest.fixture(scope="module")
def archive(databases: Databases, hosted: Any) -> Iterator[Database]:
    """The small archive, embedded. No test of those that share it commits a change."""
    with databases.opened(hosted.database or "", owner=hosted) as database:
        fill(database)
        EmbeddingService(database).embed("chat")
        yield database


@pytest.fixture(scope="module")
def api(archive: Database) -> ChatApi:
    """Its old interface."""
    return ChatApi(archive)


@pytest.fixture
def unreachable() -> Iterator[ChatApi]:
    """The interface of a database that is not there."""
    nowhere = URL.create("postgresql", "nobody", "secret", "127.0.0.1", 1, "none")
    database = Database(Settings(database_url=nowhere, connect_retry_seconds=0))
    yield ChatApi(database)
    database.close()


@pytest.mark.parametrize("route", ROUTES)
def test_answers_are_those_of_the_snapshots(api: ChatApi, route: str) -> None:
    """Exactly. A change that is meant is written by ``GOLDEN=write pytest``, and read in review."""
    status, body = ROUTES[route](api)
    shown = body.model_dump(mode="json") if isinstance(body, BaseModel) else body
    answer = json.dumps({"status": status, "body": shown}, ensure_ascii=False, indent=2) + "\n"
    file = GOLDEN / f"{route}.json"
    if os.environ.get("GOLDEN") == "write":
        file.write_text(answer)

    assert answer == file.read_text()


def test_every_snapshot_is_of_a_route() -> None:
    """None is left behind when a route is renamed."""
    assert {file.stem for file in GOLDEN.iterdir()} == set(ROUTES)


@pytest.mark.parametrize(
    "route", [route for route in ROUTES if route.partition("_")[0] in CONTRACT]
)
def test_snapshots_have_the_shapes_of_the_contract(route: str) -> None:
    """As its table has them, spelt out here and not taken from the models."""
    snapshot = json.loads((GOLDEN / f"{route}.json").read_text())

    if snapshot["status"] == 200:
        assert_shaped(snapshot["body"], CONTRACT[route.partition("_")[0]])
    else:
        assert_shaped(snapshot["body"], {"error": TEXT})


def test_conversations_are_on_numbered_pages(api: ChatApi) -> None:
    """Newest first; each page says whether there are others before and after it."""
    pages = [api.conversations(page=page, limit=3) for page in (1, 2, 3)]

    assert [status for status, _ in pages] == [200, 200, 200]
    bodies = [body.model_dump() for _, body in pages]
    assert [each["id"] for body in bodies for each in body["conversations"]] == [
        str(conversation_key(number)) for number in (4, 3, 2, 1)
    ]
    assert [
        (body["pagination"]["has_prev"], body["pagination"]["has_next"]) for body in bodies
    ] == [(False, True), (True, False), (True, False)]
    assert {body["pagination"]["total"] for body in bodies} == {4}


@pytest.mark.parametrize(
    ("page", "limit", "meant"),
    [(0, 0, (1, 1)), ("-3", "1000", (1, 100)), (10**30, 50, (10**30, 50)), (" 2 ", "+5", (2, 5))],
)
def test_a_page_out_of_range_is_the_nearest(
    api: ChatApi, page: int | str, limit: int | str, meant: tuple[int, int]
) -> None:
    """Old clients got a page for whatever number they sent."""
    status, body = api.conversations(page, limit)

    assert status == 200
    shown = body.model_dump()["pagination"]
    assert (shown["page"], shown["limit"]) == meant


@pytest.mark.parametrize(
    "call",
    [
        lambda api: api.conversations(limit=2.5),
        lambda api: api.search(),
        lambda api: api.search(" "),
        lambda api: api.search("-price"),
        lambda api: api.search("price", n="many"),
        lambda api: api.rag_query({}),
        lambda api: api.rag_query(None),
        lambda api: api.rag_query({"query": 7}),
        lambda api: api.rag_query({"query": "price", "search_type": "magic"}),
        lambda api: api.rag_query({"query": "price", "search_type": ["keyword"]}),
        lambda api: api.rag_query({"query": "price", "n_results": True}),
    ],
)
def test_what_cannot_be_read_is_a_bad_request(
    api: ChatApi, call: Callable[[ChatApi], tuple[int, BaseModel]]
) -> None:
    """400, and a sentence that says what is wrong."""
    status, body = call(api)

    assert status == 400
    assert len(body.model_dump()["error"]) > 10


@pytest.mark.parametrize(
    "name", ["9ad18fe0-188f-461f-b4d7-f3172d95db2f", "no-such-name", "chatgpt:none", "", "a\0:b"]
)
def test_an_unknown_conversation_is_not_found(api: ChatApi, name: str) -> None:
    """404 on both routes, whatever the name looks like."""
    for route in (api.conversation, api.export):
        status, body = route(name)
        assert status == 404
        assert "conversation" in body.model_dump()["error"]


def test_a_conversation_is_found_by_its_source_too(api: ChatApi) -> None:
    """Identifiers of the old system are kept as ``source_id``."""
    assert api.conversation("claude:c-2") == api.conversation(str(conversation_key(2)))


def test_the_raw_id_of_the_old_system_names_a_conversation(api: ChatApi) -> None:
    """Its clients have kept links; on the route of the export, too."""
    assert api.conversation("c-2") == api.conversation(str(conversation_key(2)))
    assert api.export("c-2") == api.export(str(conversation_key(2)))


def test_a_hit_names_the_conversation_that_can_be_opened(api: ChatApi) -> None:
    """By the id that stands first in it."""
    _, body = api.rag_query({"query": "price", "search_type": "keyword"})

    for hit in body.model_dump()["results"]:
        assert hit["id"] == hit["metadata"]["id"]
        assert api.conversation(hit["id"])[0] == 200


@pytest.mark.parametrize("page", ["abc", "", "two", "-3", 0, None])
def test_what_is_no_page_is_the_first(api: ChatApi, page: Any) -> None:
    """As in the old archive, where links had all kinds of it."""
    assert api.conversations(page=page) == api.conversations(page=1)


def test_null_is_the_default(api: ChatApi) -> None:
    """Clients send the fields that they have not filled in."""
    given = {"query": "price", "n_results": None, "search_type": None}

    assert api.rag_query(given) == api.rag_query({"query": "price"})
    assert api.rag_query(given)[0] == 200


def test_turns_are_counted_per_role(api: ChatApi) -> None:
    """On the main branch alone; what a tool returned is the system's."""
    _, body = api.conversation(str(conversation_key(1)))
    _, claude = api.conversation("claude:c-2")
    _, other = api.conversation("openwebui:w-4")

    assert [each["id"] for each in body.model_dump()["messages"]] == [
        "system-1", "user-1", "assistant-1", "system-2", "assistant-2", "user-2",
    ]  # fmt: skip
    names = [each.model_dump()["assistant_name"] for each in (body, claude, other)]
    assert names == ["ChatGPT", "Claude", "AI"]


def test_relevance_is_one_minus_distance(api: ChatApi) -> None:
    """To the bit, both in [0, 1], the most relevant first."""
    for search_type in ("semantic", "keyword"):
        _, body = api.rag_query({"query": "price by the hour", "search_type": search_type})
        results = body.model_dump()["results"]

        assert results
        for each in results:
            assert 0 <= each["distance"] <= 1
            assert each["relevance"] == 1.0 - each["distance"]
        distances = [each["distance"] for each in results]
        assert distances == sorted(distances)


def test_texts_of_hits_are_bounded(api: ChatApi) -> None:
    """300 characters in a list, 500 in a preview, whole for a prompt."""
    _, found = api.search("discussion about minutes", keyword=True)
    _, ready = api.rag_query({"query": "discussion about minutes", "search_type": "keyword"})

    (shown,), (whole,) = found.model_dump()["results"], ready.model_dump()["results"]
    assert len(QUESTION) > 300
    assert shown["content"].endswith("...")
    assert QUESTION.startswith(shown["content"].removesuffix("..."))
    assert len(shown["content"]) <= 300
    assert whole["content"] == QUESTION
    assert whole["metadata"]["id"] == str(conversation_key(1))


class Unavailable(HashingEmbedder):
    """An embedder that does not answer."""

    def embed_question(self, question: str) -> np.ndarray:
        """Nothing."""
        raise EmbedderUnavailable


def test_without_vectors_words_answer(database: Database) -> None:
    """A question by meaning is answered by words while no vector has been made."""
    fill(database)

    status, body = ChatApi(database).search("churn")

    assert status == 200
    assert [each["title"] for each in body.model_dump()["results"]] == ["Churn"]


def test_a_search_that_failed_is_no_empty_list(archive: Database) -> None:
    """The client is told that a leg did not answer, and so nothing was found."""
    api = ChatApi(archive, search=SearchService(archive, embedder=Unavailable()))

    status, body = api.rag_query({"query": "churn"})

    assert status == 500
    assert "did not answer" in body.model_dump()["error"]


def test_a_database_that_is_gone_is_an_error_and_unhealthy(
    unreachable: ChatApi, caplog: pytest.LogCaptureFixture
) -> None:
    """500, in the shape of the route, and no password."""
    answers = [
        unreachable.conversations(),
        unreachable.conversation(str(uuid4())),
        unreachable.search("price", keyword=True),
        unreachable.rag_query({"query": "price"}),
        unreachable.stats(),
        unreachable.export(str(uuid4())),
    ]
    health = unreachable.health()
    cleared = unreachable.clear_db()

    assert {status for status, _ in (*answers, health, cleared)} == {500}
    assert all(body.model_dump().keys() == {"error"} for _, body in answers)
    assert health[1].model_dump().keys() == {"status", "error"}
    assert health[1].status == "unhealthy"
    assert cleared[1].model_dump().keys() == {"status", "message"}
    assert cleared[1].status == "error"
    assert not any("secret" in str(body) for _, body in (*answers, health, cleared))
    assert "secret" not in caplog.text


def test_a_fault_of_ours_is_logged_and_not_shown(
    api: ChatApi, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Clients get JSON; the trace is in the log."""

    def fail(_summary: object) -> None:
        raise ZeroDivisionError("inside")

    monkeypatch.setattr(compat, "summary_of", fail)

    status, body = api.conversations()

    assert (status, set(body.model_dump())) == (500, {"error"})
    assert "inside" not in str(body)
    assert "ZeroDivisionError: inside" in caplog.text


def test_the_archive_is_cleared(database: Database) -> None:
    """Of all conversations, for good."""
    fill(database)
    api = ChatApi(database)

    status, body = api.clear_db()

    assert (status, body.status) == (200, "success")
    assert body.message == "4 conversations were deleted"
    assert api.conversations()[1].model_dump()["pagination"]["total"] == 0
    assert api.stats()[1].model_dump()["document_count"] == 0


def test_shapes_have_no_field_more_and_none_less() -> None:
    """A typo in the adapter is an error here, not a surprise for a client."""
    whole = {"id": "a", "title": "t", "preview": "p", "date": "", "source": "s"}

    assert compat.Summary(**whole).date == ""
    for wrong in (
        whole | {"extra": 1},
        {key: value for key, value in whole.items() if key != "date"},
        whole | {"date": None},
        whole | {"preview": "p" * 201},
    ):
        with pytest.raises(ValidationError):
            compat.Summary(**wrong)


@pytest.mark.parametrize(
    ("markdown", "text"),
    [
        ("# Title\n\nText", "Title Text"),
        ("**bold** *it* __bold__ _it_ ~~gone~~", "bold it bold it gone"),
        ("[text](https://a.b/c) ![image](x.png) [ref][1]", "text image ref"),
        ("[cut](https://exam", "cut"),
        ("> quoted\n> > twice", "quoted twice"),
        ("- a\n* b\n1. c\n- [x] done", "a b c done"),
        ("---\ntext\n***", "text"),
        ("Title\n=====\ntext", "Title text"),
        ("`code_with_marks *x*` and ``a`b``", "code_with_marks *x* and a`b"),
        ("```python\n# not a title\n__init__\n```\nafter", "# not a title __init__ after"),
        ("~~~\nopen *code*", "open *code*"),
        ("snake_case 2 * 3 < 4", "snake_case 2 * 3 < 4"),
        ("", ""),
    ],
)
def test_a_preview_has_no_marks(markdown: str, text: str) -> None:
    """A reader sees the text without them; code stays as it is."""
    assert plain(markdown) == text


@pytest.mark.parametrize(
    ("text", "cut"),
    [
        ("one two", "one two"),
        ("one two three", "one two..."),
        ("one twothree", "one..."),
        ("onetwothree", "onetwot..."),
        ("one two  three", "one two..."),
        ("\n" * 7 + "one two", "one two"),
        ("\n" * 7 + "one two three", "one two..."),
        (" " * 11, ""),
        ("", ""),
    ],
)
def test_a_preview_is_cut_between_words(text: str, cut: str) -> None:
    """Ten characters, the dots included; a word that is longer is cut itself."""
    assert shorten(text, 10) == cut


def test_what_was_cut_already_loses_its_last_word() -> None:
    """It may be half of one."""
    assert shorten("one two", 10, goes_on=True) == "one..."
    assert plain(ANSWER).endswith("Not hours.")
    assert shorten("", 10, goes_on=True) == "..."


@given(text=st.text("ab \n\u2003é", max_size=40), most=st.integers(4, 20), goes_on=st.booleans())
def test_any_text_is_shortened_to_its_beginning(text: str, most: int, goes_on: bool) -> None:
    """White space included, wherever it stands: no more than asked for, and no word cut in two."""
    cut, whole = shorten(text, most, goes_on=goes_on), text.lstrip()

    assert len(cut) <= most
    if len(whole) <= most and not goes_on:
        assert cut == whole
        return
    assert cut.endswith("...")
    begun = cut.removesuffix("...")
    assert whole.startswith(begun)
    first = (whole.split() or [""])[0]
    assert begun.split() == whole.split()[: len(begun.split())] or first.startswith(begun)


def test_a_hit_that_begins_with_empty_lines_is_shown(database: Database) -> None:
    """By what it says after them, and the search goes on."""
    with database.unit_of_work() as work:
        said = "\n" * 297 + "churn and more churn " * 20
        work.chat.append(work.chat.create().id, role="user", content=said)
        work.commit()

    status, body = ChatApi(database).search("churn", keyword="true")

    assert status == 200
    assert [each.content[:9] for each in body.results] == ["churn and"]
