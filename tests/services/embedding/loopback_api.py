"""A real HTTP server on loopback that speaks OpenAI's ``/embeddings`` and can misbehave."""

from __future__ import annotations

import json
import threading
import time
from base64 import b64encode
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

import numpy as np

from pgcorpus.services.embedding.hashing import HashingEmbedder


@dataclass(frozen=True, kw_only=True)
class Answer:
    """An answer of the server to one request; the default is as it should be.

    Attributes:
        status: HTTP status; anything but 200 comes with an error object and no vectors.
        headers: Sent in addition, such as ``Retry-After``.
        message: The words of an error.
        code: OpenAI's code of an error.
        hang_seconds: How long the server says nothing first; leaving the context ends it.
        disconnect: Close the connection without a word.
        body: Sent as it is, in place of the vectors.
        change: Given the list of ``{"index", "embedding"}``, with numbers in arrays, returns the
            list to send.
    """

    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    message: str = "no"
    code: str | None = None
    hang_seconds: float = 0.0
    disconnect: bool = False
    body: bytes | None = None
    change: Callable[[list[dict[str, Any]]], list[dict[str, Any]]] = list


@dataclass(frozen=True, kw_only=True)
class Request:
    """One request as it arrived.

    Attributes:
        path: Where it was sent.
        authorization: The header of that name.
        body: The decoded JSON.
        at_seconds: Monotonic time of arrival.
    """

    path: str
    authorization: str
    body: dict[str, Any]
    at_seconds: float

    @property
    def texts(self) -> list[str]:
        """The texts that were to be embedded."""
        return list(self.body["input"])


class LoopbackAPI:
    """The server; a text's vector is the one ``HashingEmbedder`` makes of it.

    Args:
        dimensions: Length of the vectors, unless a request asks for another.
        latency_seconds: How long every answer takes.
        count_tokens: The tokens of a text, as answers tell them; by default all texts are one.
        answers: The answers of the first requests, in the order they arrive (later ones are well
            answered), or a function from the number of the request, from 0, and the request.

    Attributes:
        requests: Every request so far, in the order of arrival.
        most_at_once: The largest number of requests that were under way together.
    """

    def __init__(
        self,
        dimensions: int = 384,
        *,
        latency_seconds: float = 0.0,
        count_tokens: Callable[[str], int] | None = None,
        answers: Iterable[Answer] | Callable[[int, Request], Answer] = (),
    ) -> None:
        if callable(answers):
            self._answer = answers
        else:
            script = dict(enumerate(answers))
            self._answer = lambda number, _: script.get(number, Answer())
        self.dimensions = dimensions
        self.latency_seconds = latency_seconds
        self.count_tokens = count_tokens
        self.requests: list[Request] = []
        self.most_at_once = 0
        self._under_way = 0
        self._lock = threading.Lock()
        self._closing = threading.Event()

    def __enter__(self) -> Self:
        api = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def do_POST(self) -> None:
                api._serve(self)

            def log_message(self, *_: object) -> None:
                """Say nothing: what arrived is in ``requests``."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        # An idle connection is the client's to close; nobody waits for its thread.
        self._server.daemon_threads = True
        self._server.block_on_close = False
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    @property
    def base_url(self) -> str:
        """The address that ``OPENAI_BASE_URL`` is set to."""
        return f"http://127.0.0.1:{self._server.server_port}/v1"

    @property
    def texts(self) -> list[str]:
        """Every text that was sent so far, repetitions included."""
        return [text for request in self.requests for text in request.texts]

    def _serve(self, handler: BaseHTTPRequestHandler) -> None:
        """Read one request and answer it."""
        body = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
        request = Request(
            path=handler.path,
            authorization=handler.headers.get("Authorization", ""),
            body=body,
            at_seconds=time.monotonic(),
        )
        with self._lock:
            number = len(self.requests)
            self.requests.append(request)
            self._under_way += 1
            self.most_at_once = max(self.most_at_once, self._under_way)
        try:
            answer = _refusal(request) or self._answer(number, request)
            self._closing.wait(self.latency_seconds + answer.hang_seconds)
        finally:
            with self._lock:  # before the answer leaves: its reader may send the next at once
                self._under_way -= 1
        if answer.disconnect or self._closing.is_set():
            handler.close_connection = True
            return
        content = self._content(request, answer)
        try:
            handler.send_response(answer.status)
            for name, value in {"Content-Type": "application/json", **answer.headers}.items():
                handler.send_header(name, value)
            handler.send_header("Content-Length", str(len(content)))
            handler.end_headers()
            handler.wfile.write(content)
        except OSError:  # the client has stopped waiting
            handler.close_connection = True

    def _content(self, request: Request, answer: Answer) -> bytes:
        """The body of the answer."""
        if answer.body is not None:
            return answer.body
        if answer.status != 200:
            error = {"message": answer.message, "code": answer.code, "type": "error"}
            return json.dumps({"error": error}).encode()
        embedder = HashingEmbedder(dimensions=request.body.get("dimensions", self.dimensions))
        vectors = embedder.embed_documents(request.texts)
        data = [{"index": row, "embedding": vector} for row, vector in enumerate(vectors)]
        encode = _base64 if request.body.get("encoding_format") == "base64" else np.ndarray.tolist
        data = [
            {"object": "embedding", **item, "embedding": encode(item["embedding"])}
            for item in answer.change(data)
        ]
        tokens = 1 if self.count_tokens is None else sum(map(self.count_tokens, request.texts))
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        return json.dumps(
            {"object": "list", "data": data, "model": request.body["model"], "usage": usage}
        ).encode()


def _refusal(request: Request) -> Answer | None:
    """Return the refusal that OpenAI gives whatever the script says."""
    if request.path != "/v1/embeddings":
        return Answer(status=404, message=f"there is nothing at {request.path}")
    if not 1 <= len(request.texts) <= 2048 or "" in request.texts:
        return Answer(status=400, message="input: 1 to 2048 texts, none of them empty")
    return None


def _base64(vector: np.ndarray) -> str:
    """Little-endian float32, as OpenAI sends it."""
    return b64encode(vector.astype("<f4").tobytes()).decode()
