"""A web server of one application, for metrics: threads, short waits, no log of requests."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from socketserver import ThreadingMixIn
from typing import Any, Final
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from pgcorpus.db.errors import DataLayerError

IDLE_SECONDS: Final = 10
"""The longest that a client may take over its request."""


class CannotListen(DataLayerError):
    """The address cannot be listened on.

    Remedy: Choose another port, or a host of this machine.
    """


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True

    def server_bind(self) -> None:
        """Bind, without a look-up of the host's name, which may take long."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = self.server_address[:2]  # type: ignore[assignment]
        self.setup_environ()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Pass over clients that are gone before their answer."""


class _Server6(_Server):
    address_family = socket.AF_INET6


class _Handler(WSGIRequestHandler):
    timeout = IDLE_SECONDS

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - as its base has it
        """Log no scrapes."""


@contextmanager
def serve(app: Any, host: str, port: int) -> Iterator[str]:
    """Serve an application of WSGI by threads of this process.

    Args:
        app: The application.
        host: Address to listen on.
        port: 0 takes a free one.

    Yields:
        The address, as ``http://127.0.0.1:9464``.

    Raises:
        CannotListen: The port is taken, or the address is not of this machine.
    """
    kind = _Server6 if ":" in host else _Server
    try:
        server = kind((host, port), _Handler)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise CannotListen(
            f"cannot listen on {host}, port {port}: {reason}; choose another --port, or a --host "
            "of this machine"
        ) from error
    server.set_app(app)
    threading.Thread(target=server.serve_forever, name="metrics", daemon=True).start()
    try:
        shown = f"[{host}]" if ":" in host else host
        yield f"http://{shown}:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
