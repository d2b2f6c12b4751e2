"""Log lines: each has a time, and the ids of its trace and request; as text or as JSON."""

from __future__ import annotations

import json
import logging
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any, Final, TextIO

from pgcorpus.db.settings import Settings
from pgcorpus.db.tracing import find_trace

UNUSUAL: Final = re.compile(r"[^\w.:/+=@-]", re.ASCII)
LONGEST_REQUEST_ID: Final = 128

_request_id: Final[ContextVar[str | None]] = ContextVar("request_id", default=None)


@contextmanager
def in_request(request_id: str) -> Iterator[str]:
    """Note the id of a request on each log line that is written within it.

    Args:
        request_id: From a header of the request, perhaps: it is cut to 128 characters, and what is
            none of ``A-Z a-z 0-9 _ . : / + = @ -`` becomes ``_``.

    Yields:
        The id as it is logged.
    """
    usual = UNUSUAL.sub("_", request_id[:LONGEST_REQUEST_ID])
    token = _request_id.set(usual)
    try:
        yield usual
    finally:
        _request_id.reset(token)


def find_request_id() -> str | None:
    """Return the id of the present request, or None outside of any."""
    return _request_id.get()


def describe_context() -> dict[str, str]:
    """Return the ids of the present trace, span and request, as far as there are any."""
    found: dict[str, str] = {}
    if (trace := find_trace()) is not None:
        found["trace_id"], found["span_id"] = trace
    if (request_id := find_request_id()) is not None:
        found["request_id"] = request_id
    return found


class TextFormatter(logging.Formatter):
    """Formats a record as a line for people: time in UTC, level, logger, message, ids.

    Args:
        make_visible: Escapes what a terminal would obey.
    """

    def __init__(self, make_visible: Callable[[str], str] = str) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s%(ids)s")
        self._make_visible = make_visible

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, and after it the trace of an exception."""
        ids = " ".join(f"{name}={value}" for name, value in describe_context().items())
        record.ids = f" [{ids}]" if ids else ""
        return self._make_visible(super().format(record))

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:  # noqa: ARG002, N802 - as logging has it
        """Return the time of a record, as RFC 3339 has it."""
        return format_time(record)


class JsonFormatter(logging.Formatter):
    """Formats a record as one JSON object on one line, in ASCII."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the object: time, level, logger, message, ids, and an exception's trace."""
        line: dict[str, Any] = {
            "time": format_time(record),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            "trace_id": None,
            "span_id": None,
            "request_id": None,
            **describe_context(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)


def format_time(record: logging.LogRecord) -> str:
    """Return the time of a record in UTC, to the millisecond, as RFC 3339 has it."""
    moment = datetime.fromtimestamp(record.created, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def set_up_logging(
    settings: Settings,
    *,
    make_visible: Callable[[str], str] = str,
    stream: TextIO | None = None,
) -> None:
    """Send log lines to a stream: ours from ``LOG_LEVEL`` on, of other libraries warnings.

    What is logged already is left as it is: an application that sets up its own logging can use
    ``JsonFormatter`` there.

    Args:
        settings: The level and the format, ``LOG_LEVEL`` and ``LOG_FORMAT``.
        make_visible: Escapes what a terminal would obey, in lines of text.
        stream: By default stderr.
    """
    handler = logging.StreamHandler(stream or sys.stderr)
    as_json = settings.logs_json
    handler.setFormatter(JsonFormatter() if as_json else TextFormatter(make_visible))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    logging.getLogger("pgcorpus").setLevel(settings.log_level)
