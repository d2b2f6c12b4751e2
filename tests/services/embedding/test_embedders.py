"""Embedders: what every one promises, and the hosted one against a server that misbehaves."""

from __future__ import annotations

import logging
import math
import os
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pgcorpus.db.errors import EmbedderUnavailable, EmbeddingError, UnknownModel
from pgcorpus.db.settings import Settings
from pgcorpus.services.embedding.choice import Choice
from pgcorpus.services.embedding.embedder import Embedder, Embedders, unit_rows
from pgcorpus.services.embedding.hashing import HashingEmbedder
from pgcorpus.services.embedding.openai import (
    MAX_TOKENS_PER_REQUEST,
    MAX_TOKENS_PER_TEXT,
    OpenAIEmbedder,
    cut,
    retry_after_seconds,
)
from tests.services.embedding.loopback_api import Answer, LoopbackAPI

KEY = "sk-invented-0123456789"
TEXTS = [f"text number {number}" for number in range(19)]
BUSY = Answer(status=429, headers={"Retry-After-Ms": "10"})
FAILING = Answer(status=500)


@pytest.fixture(autouse=True)
def _direct(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loopback is reached directly on machines that have a proxy, too."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def client_of(api: LoopbackAPI, **options: Any) -> OpenAIEmbedder:
    """An embedder of the server's model."""
    options = {"model_name": "bge-m3", "dimensions": api.dimensions} | options
    return OpenAIEmbedder(api_key=KEY, base_url=api.base_url, **options)


def expect_vectors(texts: list[str], dimensions: int = 384) -> np.ndarray:
    """Return the server's vectors as they should arrive."""
    return HashingEmbedder(dimensions=dimensions).embed_documents(texts)


def cosine(one: str, other: str) -> float:
    """Return the cosine between two texts by the hashing embedder."""
    first, second = HashingEmbedder().embed_documents([one, other])
    return float(first @ second)


def break_vector(value: float) -> Callable[[list[dict[str, Any]]], list[dict[str, Any]]]:
    """Return a change to an answer: every number of the first vector becomes *value*."""
    return lambda data: [
        {**data[0], "embedding": np.full_like(data[0]["embedding"], value)},
        *data[1:],
    ]


# Unit length


def test_rows_of_any_magnitude_come_out_at_length_one() -> None:
    """Squares that leave the range of a float make neither zero nor infinity of a good row."""
    rows = unit_rows(np.array([[3.0, 4.0], [3e300, 4e300], [3e-300, 4e-300]]))

    assert rows.dtype == np.float32
    np.testing.assert_allclose(rows, [[0.6, 0.8]] * 3, rtol=1e-6)


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf, 0.0])
def test_a_row_without_a_direction_is_refused_by_its_number(wrong: float) -> None:
    """NaN, infinity and all zeros have no place in cosine space."""
    with pytest.raises(EmbeddingError, match="row 1 holds"):
        unit_rows(np.array([[1.0, 0.0], [wrong, 0.0], [0.0, 1.0]]))


def test_no_rows_are_no_error() -> None:
    """Nothing in, nothing out, with the right shape."""
    assert unit_rows(np.empty((0, 7))).shape == (0, 7)


# Hashing


@given(text=st.text(), dimensions=st.integers(1, 50))
@settings(deadline=None)
def test_any_text_in_any_number_of_dimensions_has_a_unit_vector(text: str, dimensions: int) -> None:
    """Empty, punctuation, emoji, lone accents: no text is a zero vector."""
    vector = HashingEmbedder(dimensions=dimensions).embed_question(text)

    assert vector.shape == (dimensions,)
    assert vector.dtype == np.float32
    assert np.linalg.norm(vector) == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("text", ["", "   ", "?!", "\0", "\ud800", "👩‍🔬", "…" * 100_000])
def test_texts_without_words_have_vectors_all_the_same(text: str) -> None:
    """A question may be a text that a database would never hold."""
    assert np.linalg.norm(HashingEmbedder().embed_question(text)) == pytest.approx(1.0)


def test_another_process_makes_the_same_vectors() -> None:
    """Python's own hash differs from process to process; stored vectors must not."""
    code = (
        "from pgcorpus.services.embedding.hashing import HashingEmbedder;"
        "print(HashingEmbedder().embed_question('price of a premium offer').tobytes().hex())"
    )
    run = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONHASHSEED": "7"},
        capture_output=True,
        text=True,
        check=True,
    )

    here = HashingEmbedder().embed_question("price of a premium offer")
    assert bytes.fromhex(run.stdout) == here.tobytes()


def test_the_vectors_are_those_of_earlier_releases() -> None:
    """Vectors in databases stay comparable; if this must change, the model needs a new name."""
    vector = HashingEmbedder(dimensions=6).embed_question("Grüße an PostgreSQL 18")

    np.testing.assert_allclose(
        vector, [0.009724, 0.321219, -0.334279, 0.806822, -0.338843, -0.138583], atol=1e-5
    )


def test_a_batch_embeds_as_its_texts_do_alone() -> None:
    """Neighbours leave no mark."""
    embedder = HashingEmbedder()
    alone = np.stack([embedder.embed_question(text) for text in TEXTS])

    np.testing.assert_array_equal(embedder.embed_documents(TEXTS), alone)


@pytest.mark.parametrize(
    ("near", "far"),
    [
        ("configuraton of teh databse", "onion soup with cheese"),  # typos
        ("configuring databases", "cooking onions"),  # inflection
        ("DATABASE: CONFIGURATION!", "SOUP: ONIONS!"),  # case and punctuation
    ],
)
def test_shared_words_and_parts_of_words_make_texts_near(near: str, far: str) -> None:
    """A search by these vectors is sensible."""
    text = "configuration of the database"

    assert cosine(text, near) > 0.3
    assert abs(cosine(text, far)) < 0.2


@pytest.mark.parametrize(
    ("text", "near", "far"),
    [
        ("数据库的全文检索", "全文检索", "今天天气很好"),
        ("हिन्दी भाषा का इतिहास", "भाषा का इतिहास", "मौसम अच्छा है"),
        ("поиск по базе данных", "в базе данных", "хорошая погода"),
    ],
)
def test_scripts_other_than_latin_are_searchable(text: str, near: str, far: str) -> None:
    """With and without spaces between words."""
    assert cosine(text, near) > cosine(text, far) + 0.2


def test_spelling_variants_of_unicode_are_the_same_text() -> None:
    """Full width, ligatures, composed or not, sharp s."""
    assert cosine("\ufb01ne \uff33traße café", "FINE STRASSE CAFE\u0301") == pytest.approx(1.0)


def test_order_of_words_and_repetition_count_for_little() -> None:
    """Pairs see order; a word said ten times does not drown the rest."""
    assert 0.7 < cosine("dog bites man", "man bites dog") < 0.999
    assert cosine("vector " * 10 + "database", "vector database") > 0.7


def test_a_vector_needs_a_dimension() -> None:
    """Zero dimensions are refused at once."""
    with pytest.raises(EmbeddingError, match="0 dimensions"):
        HashingEmbedder(dimensions=0)


# A hosted model that answers


def test_vectors_come_in_the_order_of_the_texts_however_the_answer_is_shuffled() -> None:
    """Within an answer by its index, between answers by their batch."""
    shuffled = Answer(change=lambda data: data[::-1])
    with LoopbackAPI(answers=lambda *_: shuffled, latency_seconds=0.01) as api:
        vectors = client_of(api, texts_per_request=4).embed_documents(TEXTS)

    np.testing.assert_allclose(vectors, expect_vectors(TEXTS), atol=1e-6)


def test_slow_answers_and_a_busy_server_now_and_then_still_give_every_vector() -> None:
    """The ordinary day of a hosted model: 200 ms, and a 429 for every fourth request."""
    with LoopbackAPI(
        latency_seconds=0.2, answers=lambda number, _: BUSY if number % 4 == 1 else Answer()
    ) as api:
        vectors = client_of(api, texts_per_request=3).embed_documents(TEXTS)

    np.testing.assert_allclose(vectors, expect_vectors(TEXTS), atol=1e-6)
    assert len(api.requests) > 7  # 19 texts by 3, and what was refused


def test_a_question_is_embedded_as_a_document_is() -> None:
    """One space for both."""
    with LoopbackAPI() as api:
        np.testing.assert_allclose(
            client_of(api).embed_question("why?"), expect_vectors(["why?"])[0], atol=1e-6
        )


def test_no_texts_are_no_request() -> None:
    """An empty batch costs nothing."""
    with LoopbackAPI() as api:
        assert client_of(api).embed_documents([]).shape == (0, 384)

    assert api.requests == []


def test_servers_that_send_numbers_for_base64_are_understood() -> None:
    """Several servers that speak the protocol ignore encoding_format."""
    body = b'{"object": "list", "data": [{"index": 0, "embedding": [3.0, 4.0]}]}'
    with LoopbackAPI(2, answers=[Answer(body=body)]) as api:
        vector = client_of(api).embed_question("a")

    np.testing.assert_allclose(vector, [0.6, 0.8])


@pytest.mark.parametrize(
    ("model_name", "dimensions", "sent"),
    [
        ("text-embedding-3-large", 3072, None),
        ("text-embedding-3-large", 1024, 1024),
        ("text-embedding-3-small", 1536, None),
        ("bge-m3", 1024, None),
    ],
)
def test_dimensions_are_sent_only_to_shorten(
    model_name: str, dimensions: int, sent: int | None
) -> None:
    """Other models refuse the parameter."""
    with LoopbackAPI(dimensions) as api:
        client_of(api, model_name=model_name).embed_question("a")

    assert api.requests[0].body.get("dimensions") == sent
    assert api.requests[0].body["model"] == model_name


def test_empty_texts_and_nul_bytes_are_never_sent() -> None:
    """OpenAI refuses empty strings; each text has its vector even so."""
    with LoopbackAPI() as api:
        vectors = client_of(api).embed_documents(["", " \n", "a\0b", "\ud800", "c"])

    assert api.texts == [".", ".", "a b", "?", "c"]
    assert vectors.shape == (5, 384)


# Batches


def test_a_full_batch_keeps_every_connection_busy() -> None:
    """Callers who hand over batch_size texts get all the concurrency there is."""
    with LoopbackAPI() as api:
        embedder = client_of(api, texts_per_request=4, concurrency=3)
        embedder.embed_documents(["a"] * embedder.batch_size)

    assert [len(request.texts) for request in api.requests] == [4, 4, 4]


def test_batches_are_bounded_by_count() -> None:
    """No request has more than texts_per_request texts, and all are sent once."""
    with LoopbackAPI() as api:
        client_of(api, texts_per_request=5).embed_documents(TEXTS)

    assert sorted(len(request.texts) for request in api.requests) == [4, 5, 5, 5]
    assert sorted(api.texts) == sorted(TEXTS)


def test_batches_are_bounded_by_tokens() -> None:
    """Each text is 4,000 estimated tokens: three of them pass 10,000."""
    texts = [f"{number:02}" + "x" * 11_998 for number in range(7)]
    with LoopbackAPI() as api:
        client_of(api, tokens_per_request=10_000).embed_documents(texts)

    assert sorted(len(request.texts) for request in api.requests) == [1, 2, 2, 2]
    assert sorted(api.texts) == texts


def test_a_text_over_the_limit_is_cut_and_the_log_says_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Its own row is named, never its words."""
    caplog.set_level(logging.WARNING, "pgcorpus")
    with LoopbackAPI() as api:
        client_of(api).embed_documents(["short", "secret " * 10_000])

    assert len(api.texts[1]) == 3 * MAX_TOKENS_PER_TEXT
    assert [record.getMessage() for record in caplog.records if record.name.startswith("pgc")] == [
        "text 1 was cut from 70000 to 24576 characters: bge-m3 takes 8192 tokens"
    ]


@given(text=st.text(max_size=60), most=st.integers(0, 30))
@settings(deadline=None)
def test_a_cut_keeps_whole_characters_from_the_beginning(text: str, most: int) -> None:
    """And no more of them than the estimate allows."""
    kept, tokens = cut(text, most)

    assert text.startswith(kept)
    assert tokens <= most
    assert kept == text or cut(text[: len(kept) + 1], 1000)[1] > most


def test_concurrency_reaches_its_bound_and_never_passes_it() -> None:
    """The server answers only when three requests are there together, and counts."""
    together = threading.Barrier(3, timeout=20)

    def when_three(*_: object) -> Answer:
        together.wait()
        return Answer()

    with LoopbackAPI(answers=when_three) as api:
        client_of(api, texts_per_request=1, concurrency=3).embed_documents(TEXTS[:18])

    assert len(api.requests) == 18
    assert api.most_at_once == 3


@pytest.mark.parametrize(
    "options",
    [
        {"texts_per_request": 0},
        {"texts_per_request": 2049},
        {"tokens_per_request": MAX_TOKENS_PER_TEXT - 1},
        {"tokens_per_request": MAX_TOKENS_PER_REQUEST + 1},
        {"concurrency": 0},
        {"model_name": "text-embedding-3-small", "dimensions": 1537},
        {"dimensions": 0},
    ],
)
def test_options_out_of_range_are_refused_before_anything_is_sent(options: dict[str, Any]) -> None:
    """The API's own bounds are the bounds."""
    given = {"model_name": "bge-m3", "dimensions": 1024} | options
    with pytest.raises(EmbeddingError):
        OpenAIEmbedder(api_key=KEY, base_url="http://127.0.0.1:9/v1", **given)


@pytest.mark.parametrize("key", ["", " ", "sk-é-secret", "sk-\nsecret"])
def test_a_key_that_no_header_can_carry_is_refused_unseen(key: str) -> None:
    """A slip of copy and paste is not reported as a broken connection."""
    with pytest.raises(EmbeddingError, match="OPENAI_API_KEY is empty or holds") as raised:
        OpenAIEmbedder("bge-m3", 1024, api_key=key, base_url="http://127.0.0.1:9/v1")

    assert "secret" not in str(raised.value)


# A hosted model that does not answer, or not well


def test_retry_after_is_waited_for() -> None:
    """One second, where the embedder's own first wait is at most half of one."""
    busy = Answer(status=429, headers={"Retry-After": "1"})
    with LoopbackAPI(answers=[busy]) as api:
        client_of(api).embed_question("a")

    first, second = api.requests
    assert second.at_seconds - first.at_seconds >= 1.0


@pytest.mark.parametrize(
    ("headers", "low", "high"),
    [
        ({"retry-after": "7"}, 7, 7),
        ({"retry-after": "0.5"}, 0.5, 0.5),
        ({"retry-after-ms": "250", "retry-after": "7"}, 0.25, 0.25),
        ({"retry-after": "Fri, 01 Jan 2100 00:00:00 GMT"}, 1, math.inf),
        ({"retry-after": "Sat, 01 Jan 2000 00:00:00 GMT"}, 0, 0),
    ],
)
def test_retry_after_is_read_in_every_form(
    headers: dict[str, str], low: float, high: float
) -> None:
    """Seconds, OpenAI's milliseconds, and an HTTP date."""
    assert low <= (retry_after_seconds(headers) or 0.0) <= high


@pytest.mark.parametrize("value", ["", "soon", "1.2.3", "-5"])
def test_a_retry_after_that_means_nothing_is_ignored(value: str) -> None:
    """Backoff decides then."""
    assert retry_after_seconds({"retry-after": value}) is None
    assert retry_after_seconds({}) is None


@pytest.mark.parametrize(
    "trouble",
    [
        FAILING,
        replace(FAILING, status=503),
        BUSY,
        replace(BUSY, status=408),
        Answer(disconnect=True),
    ],
    ids=["500", "503", "429", "408", "disconnect"],
)
def test_what_may_pass_is_tried_again(trouble: Answer) -> None:
    """Twice in trouble, then well."""
    with LoopbackAPI(answers=[trouble, trouble]) as api:
        vectors = client_of(api).embed_documents(["a"])

    np.testing.assert_allclose(vectors, expect_vectors(["a"]), atol=1e-6)
    assert len(api.requests) == 3


def test_a_server_that_hangs_is_given_up_on() -> None:
    """The message names the model, what happened, and the cure."""
    with (
        LoopbackAPI(answers=lambda *_: Answer(hang_seconds=60)) as api,
        pytest.raises(EmbedderUnavailable, match=r"bge-m3 did not answer .*Timeout.*BASE_URL"),
    ):
        client_of(api, timeout_seconds=0.1, patience_seconds=0.3).embed_question("a")


def test_a_server_that_keeps_failing_is_given_up_on() -> None:
    """After its patience, with the last thing it said."""
    with (
        LoopbackAPI(answers=lambda *_: FAILING) as api,
        pytest.raises(EmbedderUnavailable, match="HTTP 500"),
    ):
        client_of(api, patience_seconds=0.3).embed_documents(TEXTS)


def test_a_server_that_is_not_there_is_given_up_on() -> None:
    """A refused connection counts as no answer."""
    with LoopbackAPI() as api:
        embedder = client_of(api, patience_seconds=0.2)

    with pytest.raises(EmbedderUnavailable, match="Connection"):
        embedder.embed_question("a")


def test_a_question_does_not_wait_as_long_as_a_server_asks() -> None:
    """Ten minutes are longer than a person's patience: one request, and the search goes on."""
    busy = Answer(status=429, headers={"Retry-After": "600"})
    with (
        LoopbackAPI(answers=lambda *_: busy) as api,
        pytest.raises(EmbedderUnavailable, match="attempts: 1"),
    ):
        client_of(api, patience_seconds=3600).embed_question("a")

    assert len(api.requests) == 1


@pytest.mark.parametrize(
    ("status", "cure"),
    [(400, "texts were refused"), (401, "OPENAI_API_KEY"), (403, "another key"), (404, "its name")],
)
def test_what_will_not_pass_is_not_tried_again_and_never_shows_the_key(
    status: int, cure: str
) -> None:
    """Some servers repeat the key in their words; neither message nor trace does."""
    refusal = Answer(status=status, message=f"the key {KEY} is not welcome")
    with LoopbackAPI(answers=lambda *_: refusal) as api, pytest.raises(EmbeddingError) as raised:
        client_of(api).embed_question("a")

    assert not isinstance(raised.value, EmbedderUnavailable)
    assert cure in str(raised.value)
    assert KEY not in "".join(traceback.format_exception(raised.value))
    assert [request.authorization for request in api.requests] == [f"Bearer {KEY}"]


def test_an_account_without_credit_is_not_tried_again() -> None:
    """The same 429 as a busy server, told apart by its code."""
    empty = Answer(status=429, code="insufficient_quota")
    with (
        LoopbackAPI(answers=lambda *_: empty) as api,
        pytest.raises(EmbeddingError, match="add credit"),
    ):
        client_of(api).embed_question("a")

    assert len(api.requests) == 1


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (Answer(change=lambda data: data[:-1]), "one vector for each of 3 texts"),
        (Answer(change=lambda data: [*data, data[0]]), "4 vectors came for 3 texts"),
        (Answer(change=lambda data: [data[0]] * 3), "one vector for each of 3 texts"),
        (Answer(change=lambda _: []), "one vector for each of 3 texts"),
        (Answer(change=break_vector(np.nan)), "row 0 holds NaN"),
        (Answer(change=break_vector(np.inf)), "row 0 holds NaN or infinity"),
        (Answer(change=break_vector(0.0)), "row 0 holds only zeros"),
        (Answer(body=b'{"data": null}'), "one vector for each of 3 texts"),
        (Answer(body=b'{"data": [{"index": 0, "embedding": "?"}]}'), "one vector for each"),
        (Answer(body=b"[]"), "one vector for each"),
        (Answer(body=b"{"), "unusable answer"),
        (Answer(body=b"<p>hello", headers={"Content-Type": "text/html"}), "one vector for each"),
    ],
    ids=[
        "too few",
        "too many",
        "repeated",
        "none",
        "NaN",
        "infinity",
        "zeros",
        "null",
        "not Base64",
        "a list",
        "not JSON",
        "a web page",
    ],
)
def test_an_unusable_answer_is_an_error_and_not_a_vector(answer: Answer, says: str) -> None:
    """And is not asked for again: it would come again."""
    with (
        LoopbackAPI(answers=lambda *_: answer) as api,
        pytest.raises(EmbeddingError, match=says),
    ):
        client_of(api).embed_documents(["a", "b", "c"])

    assert len(api.requests) == 1


def test_vectors_of_another_length_are_an_error_that_names_both() -> None:
    """A wrong OPENAI_BASE_URL shows before the database has to refuse."""
    with (
        LoopbackAPI(768) as api,
        pytest.raises(EmbeddingError, match=r"768 dimensions.*registry says 1024"),
    ):
        client_of(api, dimensions=1024).embed_question("a")


def test_one_failing_batch_ends_the_others() -> None:
    """Waiting batches are neither sent nor repeated."""

    def first_refused(number: int, *_: object) -> Answer:
        return Answer(status=400) if number == 0 else replace(BUSY, headers={"Retry-After": "60"})

    with LoopbackAPI(answers=first_refused) as api, pytest.raises(EmbeddingError, match="refused"):
        client_of(api, texts_per_request=1, concurrency=2).embed_documents(TEXTS)

    assert len(api.requests) < len(TEXTS)


# Which embedder serves a model


def embedder_of(name: str, dimensions: int, provider: str, settings: Settings) -> Embedder:
    """Return the embedder of a model that is registered so."""
    return Embedders(settings).of(Choice(name, dimensions, provider))


@pytest.mark.parametrize(
    ("model_name", "dimensions", "provider", "kind"),
    [("hashing", 384, "hashing", HashingEmbedder), ("bge-m3", 1024, "openai", OpenAIEmbedder)],
)
def test_a_provider_has_its_embedder(
    model_name: str, dimensions: int, provider: str, kind: type
) -> None:
    """With the model's name and length."""
    embedder = embedder_of(model_name, dimensions, provider, Settings(openai_api_key=KEY))

    assert isinstance(embedder, kind)
    assert (embedder.model_name, embedder.dimensions) == (model_name, dimensions)


def test_a_hosted_model_is_asked_at_the_address_of_the_settings() -> None:
    """OPENAI_BASE_URL serves every model of the provider openai."""
    with LoopbackAPI(1024) as api:
        address = Settings(openai_api_key=KEY, openai_base_url=api.base_url)
        vector = embedder_of("bge-m3", 1024, "openai", address).embed_question("a")

    assert vector.shape == (1024,)
    assert api.requests[0].path == "/v1/embeddings"


def test_a_hosted_model_without_a_key_names_the_variable_and_the_way_without() -> None:
    """Nothing falls back in silence."""
    with pytest.raises(EmbedderUnavailable, match=r"OPENAI_API_KEY.*models use <corpus> hashing"):
        embedder_of("bge-m3", 1024, "openai", Settings())


def test_threads_share_the_embedder_of_a_model() -> None:
    """The weights of a local model are loaded once; another model has its own."""
    embedders, choices = Embedders(Settings()), [Choice("hashing", n, "hashing") for n in (8, 9)]

    with ThreadPoolExecutor(8) as threads:
        made = list(threads.map(embedders.of, choices * 8))

    assert len(set(map(id, made))) == 2
    assert [each.dimensions for each in made[:2]] == [8, 9]


def test_an_embedder_that_was_given_serves_every_model() -> None:
    """Nobody is asked for a key then."""
    given = HashingEmbedder("hashing", 8)
    embedders = Embedders(Settings(), given)

    assert embedders.of(Choice("bge-m3", 1024, "openai")) is given
    assert (embedders.model_name, Embedders(Settings()).model_name) == ("hashing", None)


def test_an_unknown_provider_lists_the_known() -> None:
    """As the registry may hold a row of a later release."""
    with pytest.raises(UnknownModel, match=r"'acme'; known: openai, hashing, local"):
        embedder_of("acme-1", 8, "acme", Settings())


@pytest.mark.parametrize("given", ["argument", "variable"])
def test_the_login_of_a_gateway_reaches_it_and_no_log(
    given: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Name and password in the address go as a header, which no library logs with the address."""
    caplog.set_level("DEBUG")
    with LoopbackAPI(answers=[FAILING, Answer()]) as api:
        address = api.base_url.replace("//", "//user:hunt%40r2@")
        monkeypatch.setenv("OPENAI_BASE_URL", address)
        base_url = address if given == "argument" else None
        embedder = OpenAIEmbedder("bge-m3", api.dimensions, api_key=KEY, base_url=base_url)
        embedder.embed_documents(["a kettle"])

    assert {each.authorization for each in api.requests} == {"Basic dXNlcjpodW50QHIy"}
    assert "hunt" not in caplog.text + repr(vars(embedder)) + repr(embedder._client.base_url)
