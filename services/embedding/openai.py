"""Embeddings over HTTP: OpenAI, and any server that speaks its ``/embeddings`` protocol."""

from __future__ import annotations

import logging
import os
import random
import time
import weakref
from base64 import b64decode, b64encode
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextvars import copy_context
from email.utils import parsedate_to_datetime
from functools import partial
from threading import Event
from typing import Any, Final
from urllib.parse import unquote_to_bytes, urlsplit

import httpx
import numpy as np
import openai

from pgcorpus.db.errors import EmbedderUnavailable, EmbeddingError, TextsRefused
from pgcorpus.services.embedding.embedder import unit_rows
from pgcorpus.services.embedding.tokens import cut
from pgcorpus.services.embedding.usage import charge, charge_unanswered, note_tokens

logger = logging.getLogger("pgcorpus.embedding")

MAX_TEXTS_PER_REQUEST: Final = 2048
MAX_TOKENS_PER_TEXT: Final = 8192
MAX_TOKENS_PER_REQUEST: Final = 300_000
NATIVE_DIMENSIONS: Final = {"text-embedding-3-large": 3072, "text-embedding-3-small": 1536}
"""The models whose vectors may be asked for shorter, and their full length.

These four are from OpenAI's API reference, "Create embeddings", and its embeddings guide.
"""

NOTHING: Final = "."
"""The text that is sent for an empty one: the API refuses empty strings, and every text needs its
vector."""

MAX_BYTES_PER_TEXT: Final = 3 * MAX_TOKENS_PER_TEXT
"""The longest text that is sent, see ``tokens.cut``."""

SPECIAL_TOKENS: Final = 16
"""Tokens that a model may add to a text: BERT's have two, OpenAI's none."""

MAX_RETRIES: Final = 8
FIRST_WAIT_SECONDS: Final = 0.5
LONGEST_WAIT_SECONDS: Final = 30.0
QUESTION_PATIENCE_SECONDS: Final = 10.0
"""A person waits for a question; a search that gives up on it can still answer by words."""

RETRIED: Final = frozenset({408, 409, 429})
FIRST_SERVER_ERROR: Final = 500
OUT_OF_CREDIT: Final = "insufficient_quota"
"""OpenAI's code of the 429 that no waiting mends."""
PERHAPS_DONE: Final = frozenset({408, 504})
"""Answers that a server behind another gives when it has waited for that: it may have worked."""
NEVER_SENT: Final = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)
OF_THE_TEXTS: Final = frozenset({400, 413, 422})
"""Answers that lie with what was sent: fewer or other texts may pass."""
CURES: Final = {
    401: "the API key was refused: set a valid OPENAI_API_KEY",
    403: "the key may not use this model: allow it in the provider's settings, or use another key",
    404: "the endpoint has no such model: check its name and OPENAI_BASE_URL",
    413: "the request was too large: lower texts_per_request",
}


class OpenAIEmbedder:
    """A hosted model, through the official client.

    Retries are made here and not by the client (its own are switched off): it knows no deadline,
    so that a search would sit out a ``Retry-After`` of two minutes, and its jitter of a quarter
    keeps workers that were refused together together.

    Args:
        model_name: Name in the registry, and what the endpoint is asked for.
        dimensions: Length of the vectors. Sent along where the model can shorten them and this is
            not its full length.
        api_key: Secret; never logged or shown.
        base_url: The endpoint, or None for ``OPENAI_BASE_URL`` and then OpenAI's own.
        texts_per_request: 1 to 2048.
        tokens_per_request: Estimated, 8,192 to 300,000.
        concurrency: Requests under way at once in one call, 1 to 64. ``batch_size`` is what keeps
            all of them busy.
        timeout_seconds: How long one request may stay without an answer.
        patience_seconds: How long one batch is retried for, all its waits included.

    Raises:
        EmbeddingError: An argument lies outside these ranges, or the model's vectors cannot have
            this length.
    """

    provider: Final = "openai"

    def __init__(
        self,
        model_name: str,
        dimensions: int,
        *,
        api_key: str,
        base_url: str | None = None,
        texts_per_request: int = 128,
        tokens_per_request: int = MAX_TOKENS_PER_REQUEST,
        concurrency: int = 4,
        timeout_seconds: float = 60.0,
        patience_seconds: float = 300.0,
    ) -> None:
        native = NATIVE_DIMENSIONS.get(model_name)
        if not 1 <= dimensions <= (native or dimensions):
            raise EmbeddingError(f"{model_name} cannot make vectors of {dimensions} dimensions")
        for name, value, low, high in (
            ("texts_per_request", texts_per_request, 1, MAX_TEXTS_PER_REQUEST),
            ("tokens_per_request", tokens_per_request, MAX_TOKENS_PER_TEXT, MAX_TOKENS_PER_REQUEST),
            ("concurrency", concurrency, 1, 64),
        ):
            if not low <= value <= high:
                raise EmbeddingError(f"{name} is {value}; allowed: {low} to {high}")
        if not (api_key.strip() and api_key.isascii() and api_key.isprintable()):
            raise EmbeddingError("OPENAI_API_KEY is empty or holds characters that no key has")
        self.model_name = model_name
        self.dimensions = dimensions
        self.batch_size = texts_per_request * concurrency
        self._texts_per_request = texts_per_request
        self._tokens_per_request = tokens_per_request
        self._concurrency = concurrency
        self._timeout_seconds = timeout_seconds
        self._patience_seconds = patience_seconds
        self._shortened = dimensions if native not in {None, dimensions} else openai.omit
        self._api_key = api_key
        address, authorization = _without_login(base_url or os.environ.get("OPENAI_BASE_URL"))
        self._client = openai.OpenAI(
            api_key=api_key, base_url=address, default_headers=authorization, max_retries=0
        )
        # Dropping the embedder closes its connections: no protocol of embedders needs a close().
        weakref.finalize(self, self._client.close)

    def embed_documents(self, texts: Sequence[str]) -> np.ndarray:
        """Turn *texts* into vectors, one per text, in the same order.

        Args:
            texts: Any number of texts. One over 8,192 estimated tokens is cut there, with a
                warning in the log; an empty one is embedded as a full stop.

        Returns:
            float32 of shape ``(len(texts), dimensions)``, each row of unit length.

        Raises:
            EmbedderUnavailable: A batch was not answered within its patience; the other batches
                are given up too. The call may be repeated.
            EmbeddingError: The endpoint refused the key, the model or the texts, or its answer is
                unusable.
        """
        prepared = [self._prepare(text, row) for row, text in enumerate(texts)]
        vectors = np.empty((len(texts), self.dimensions), dtype=np.float32)
        given_up = Event()
        with ThreadPoolExecutor(self._concurrency, "embedding") as pool:
            batches: dict[Future[np.ndarray], slice] = {
                pool.submit(
                    copy_context().run,  # for the ids of the request and its trace, and the tokens
                    partial(self._request, [text for text, _ in prepared[rows]], given_up=given_up),
                ): rows
                for rows in self._batches([tokens for _, tokens in prepared])
            }
            try:
                for done in as_completed(batches):
                    rows = batches[done]
                    vectors[rows] = done.result()
            finally:  # after a failure, what is under way ends and nothing new begins
                given_up.set()
                pool.shutdown(wait=False, cancel_futures=True)
        return vectors

    def count_most_tokens(self, texts: Sequence[str]) -> list[int]:
        """Return the most tokens that each text can take when it is sent.

        A token of a byte-level tokenizer, as OpenAI's are, is at least one byte of UTF-8: bytes are
        never fewer than tokens. The estimate of ``tokens.estimate`` is nearer, and no bound.
        """
        return [
            min(len(text.encode("utf-8", "replace")), MAX_BYTES_PER_TEXT) + SPECIAL_TOKENS
            for text in texts
        ]

    def embed_question(self, text: str) -> np.ndarray:
        """Turn a question into a vector, or give up within seconds.

        Args:
            text: The question; cut and replaced as a document is.

        Returns:
            float32 of shape ``(dimensions,)``, of unit length.

        Raises:
            EmbedderUnavailable: No answer within 10 seconds, or sooner where the embedder's own
                patience is less.
            EmbeddingError: As for ``embed_documents``.
        """
        patience_seconds = min(self._patience_seconds, QUESTION_PATIENCE_SECONDS)
        prepared, _ = self._prepare(text, row=0)
        return np.asarray(self._request([prepared], patience_seconds=patience_seconds)[0])

    def _prepare(self, text: str, row: int) -> tuple[str, int]:
        """Return the text as it is sent, and its estimated tokens."""
        # No endpoint takes lone surrogates, and some choke on NUL.
        text = text.replace("\0", " ").encode("utf-8", "replace").decode()
        text = text if text.strip() else NOTHING
        kept, tokens = cut(text, MAX_TOKENS_PER_TEXT)
        if len(kept) < len(text):
            logger.warning(
                "text %d was cut from %d to %d characters: %s takes %d tokens",
                row,
                len(text),
                len(kept),
                self.model_name,
                MAX_TOKENS_PER_TEXT,
            )
        return kept, tokens

    def _batches(self, tokens: Sequence[int]) -> Iterator[slice]:
        """Yield the neighbouring rows that fit into one request, by count and by tokens."""
        start, total = 0, 0
        for row, more in enumerate(tokens):
            if row - start == self._texts_per_request or total + more > self._tokens_per_request:
                yield slice(start, row)
                start, total = row, 0
            total += more
        if tokens:
            yield slice(start, len(tokens))

    def _request(
        self,
        texts: Sequence[str],
        *,
        patience_seconds: float | None = None,
        given_up: Event | None = None,
    ) -> np.ndarray:
        """Embed one batch, and repeat failures that may pass, until patience or retries end."""
        given_up = given_up or Event()
        deadline = time.monotonic() + (patience_seconds or self._patience_seconds)
        for attempt in range(MAX_RETRIES + 1):
            left_seconds = deadline - time.monotonic()
            try:
                answer = self._client.embeddings.create(
                    model=self.model_name,
                    input=list(texts),
                    encoding_format="base64",  # a quarter of the bytes of decimal numbers
                    dimensions=self._shortened,
                    timeout=max(0.001, min(self._timeout_seconds, left_seconds)),
                )
            except openai.APIConnectionError as error:  # timeouts included
                failure, asked_seconds = f"{type(error).__name__}: {error}", None
                perhaps_done = not isinstance(error.__cause__, NEVER_SENT)
            except openai.APIStatusError as error:
                if not _passes(error):
                    raise self._refusal(error) from None  # the trace would show the server's words
                failure = f"HTTP {error.status_code}"
                asked_seconds = retry_after_seconds(error.response.headers)
                perhaps_done = error.status_code in PERHAPS_DONE
            except (openai.OpenAIError, ValueError) as error:
                raise EmbeddingError(f"{self.model_name}: unusable answer ({error})") from error
            else:
                tokens = _count_tokens(answer)
                note_tokens(tokens)
                charge(tokens or sum(self.count_most_tokens(texts)))
                return self._vectors(answer, len(texts))
            may_repeat = not perhaps_done or charge_unanswered(sum(self.count_most_tokens(texts)))
            # Full jitter: what was refused together does not come back together.
            backoff = min(FIRST_WAIT_SECONDS * 2**attempt, LONGEST_WAIT_SECONDS)
            jittered = random.uniform(0, backoff)  # noqa: S311 - no secret
            # An instruction of the server is a lower bound, and needs jitter no less.
            wait_seconds = jittered if asked_seconds is None else asked_seconds + jittered / 4
            if (
                not may_repeat
                or attempt == MAX_RETRIES
                or time.monotonic() + wait_seconds > deadline
            ):
                break
            logger.info("%s: %s; again in %.1f s", self.model_name, failure, wait_seconds)
            if given_up.wait(wait_seconds):
                break
        raise EmbedderUnavailable(
            f"{self.model_name} did not answer (attempts: {attempt + 1}, last: {failure}); "
            "check OPENAI_BASE_URL and the provider's status, then repeat"
        )

    def _refusal(self, error: openai.APIStatusError) -> EmbeddingError:
        """Explain a status that will not pass, and what to do about it."""
        cure = CURES.get(error.status_code)
        if error.code == OUT_OF_CREDIT:
            cure = "the account has no credit left: add credit with the provider"
        # The server's words help with everything but keys, which some servers repeat.
        words = error.message.replace(self._api_key, "***")[:300]
        kind = TextsRefused if error.status_code in OF_THE_TEXTS else EmbeddingError
        return kind(
            f"{self.model_name}: {cure or f'the texts were refused: {words}'} "
            f"(HTTP {error.status_code})"
        )

    def _vectors(self, answer: openai.types.CreateEmbeddingResponse, count: int) -> np.ndarray:
        """Return the vectors of an answer, in the order of the texts, checked."""
        # The client hands on whatever it was sent, so that any attribute may be missing.
        try:
            rows: dict[Any, Any] = {item.index: item.embedding for item in answer.data}
            vectors = [_decode(rows[index]) for index in range(count)]
            complete = len(answer.data) == count
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise EmbeddingError(
                f"{self.model_name}: the answer does not hold one vector for each of {count} texts"
            ) from error
        if not complete:
            raise EmbeddingError(
                f"{self.model_name}: {len(answer.data)} vectors came for {count} texts"
            )
        for vector in vectors:
            if vector.shape != (self.dimensions,):
                raise EmbeddingError(
                    f"{self.model_name}: a vector of {vector.size} dimensions came; "
                    f"the registry says {self.dimensions}"
                )
        return unit_rows(np.stack(vectors))


def _without_login(base_url: str | None) -> tuple[str | None, dict[str, str]]:
    """Take name and password out of an address, which logs of requests would show.

    Returns:
        The address, and the header that says the same.
    """
    parts = urlsplit(base_url or "")
    login, at, host = parts.netloc.rpartition("@")
    if not at:
        return base_url or None, {}
    encoded = b64encode(unquote_to_bytes(login if ":" in login else f"{login}:")).decode()
    return parts._replace(netloc=host).geturl(), {"Authorization": f"Basic {encoded}"}


def retry_after_seconds(headers: Mapping[str, str]) -> float | None:
    """Return how long the server asks its clients to wait, or None.

    Args:
        headers: Of its answer, under lower-case names.

    Returns:
        Seconds, at least 0, or None where it does not say or cannot be understood.
    """
    try:
        if "retry-after-ms" in headers:
            return max(0.0, float(headers["retry-after-ms"]) / 1000)
        asked = headers.get("retry-after", "")
        if asked[:1].isdigit():
            return max(0.0, float(asked))
        return max(0.0, parsedate_to_datetime(asked).timestamp() - time.time())
    except (TypeError, ValueError):
        return None


def _passes(error: openai.APIStatusError) -> bool:
    """Return whether the same request may succeed later."""
    status = error.status_code
    return (status in RETRIED or status >= FIRST_SERVER_ERROR) and error.code != OUT_OF_CREDIT


def _count_tokens(answer: openai.types.CreateEmbeddingResponse) -> int:
    """Return the tokens that the endpoint counted; 0 where it says none."""
    tokens: Any = getattr(getattr(answer, "usage", None), "prompt_tokens", 0)
    return tokens if isinstance(tokens, int) and tokens > 0 else 0


def _decode(embedding: object) -> np.ndarray:
    """Decode a vector from Base64 of little-endian float32, or from a list of numbers."""
    if isinstance(embedding, str):
        return np.frombuffer(b64decode(embedding, validate=True), dtype="<f4")
    return np.asarray(embedding, dtype=np.float64)
