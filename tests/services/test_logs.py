"""Log lines: each has a time, and says of which request and trace it is."""

from __future__ import annotations

import io
import json
import logging
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from opentelemetry.sdk.trace import TracerProvider

from pgcorpus.db.settings import Settings
from pgcorpus.services.cli.output import visible
from pgcorpus.services.logs import (
    JsonFormatter,
    TextFormatter,
    find_request_id,
    in_request,
    set_up_logging,
)
from tests.command import Command

TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")
KEYS = {"time", "level", "logger", "message", "trace_id", "span_id", "request_id"}


@contextmanager
def fresh_root() -> Iterator[logging.Logger]:
    """The root logger without pytest's handlers, as a process finds it."""
    root, ours = logging.getLogger(), logging.getLogger("pgcorpus")
    handlers, levels = root.handlers[:], (root.level, ours.level)
    root.handlers = []
    yield root
    root.handlers = handlers
    root.setLevel(levels[0])
    ours.setLevel(levels[1])


def make_record(message: str = "told", **more: Any) -> logging.LogRecord:
    """A record of the level WARNING."""
    fields = {"name": "pgcorpus.x", "levelno": logging.WARNING, "levelname": "WARNING"}
    return logging.makeLogRecord({**fields, "msg": message, **more})


def test_a_line_for_people_begins_with_its_time() -> None:
    """In UTC, to the millisecond; then level, logger and message."""
    line = TextFormatter().format(make_record())

    time, rest = line.split(" ", 1)
    assert TIME.fullmatch(time)
    assert datetime.now(UTC) - datetime.fromisoformat(time) < timedelta(seconds=60)
    assert rest == "WARNING pgcorpus.x: told"


def test_a_json_line_has_the_same_keys_always() -> None:
    """One object, on one line whatever the message holds, in ASCII."""
    line = JsonFormatter().format(make_record("two\nlines \x1b[31m \u202e"))

    told = json.loads(line)
    assert told.keys() == KEYS
    assert "\n" not in line
    assert line.isascii()
    assert line.isprintable()
    assert told["message"] == "two\nlines \x1b[31m \u202e"
    assert (told["trace_id"], told["span_id"], told["request_id"]) == (None, None, None)


def test_an_exception_is_part_of_its_line() -> None:
    """With its trace."""
    try:
        raise ValueError("no")  # noqa: TRY301 - a trace needs one
    except ValueError:
        told = json.loads(JsonFormatter().format(make_record(exc_info=sys.exc_info())))

    assert told.keys() == {*KEYS, "exception"}
    assert told["exception"].endswith("ValueError: no")


@pytest.mark.parametrize("formatter", [TextFormatter(), JsonFormatter()])
def test_lines_of_a_request_name_it(formatter: logging.Formatter) -> None:
    """Within the request, and after it no more."""
    with in_request("req-17"):
        within = formatter.format(make_record())
    after = formatter.format(make_record())

    assert "req-17" in within
    assert "req-17" not in after


def test_an_id_from_outside_can_forge_no_line() -> None:
    """It comes from a header: line ends, quotes and length are the client's choice."""
    with in_request('a\nWARNING "forged" \x1b' + "x" * 1000) as told:
        assert find_request_id() == told
    assert re.fullmatch(r"[\w.:/+=@-]{128}", told, re.ASCII)
    assert find_request_id() is None


def test_lines_within_a_span_name_it_and_its_trace() -> None:
    """An application's own span does, too."""
    tracer = TracerProvider().get_tracer("test")
    with tracer.start_as_current_span("outer") as span:
        told = json.loads(JsonFormatter().format(make_record()))

    context = span.get_span_context()
    assert told["trace_id"] == format(context.trace_id, "032x")
    assert told["span_id"] == format(context.span_id, "016x")


@pytest.mark.parametrize(
    ("variables", "as_json"),
    [
        ({}, False),
        ({"LOG_FORMAT": "json"}, True),
        ({"ENVIRONMENT": "production"}, True),
        ({"ENVIRONMENT": "production", "LOG_FORMAT": "text"}, False),
    ],
)
def test_production_logs_json_unless_it_is_told_otherwise(
    variables: dict[str, str], as_json: bool
) -> None:
    """And everything else logs text."""
    settings = Settings.from_env({"DATABASE_URL": "postgresql://x@127.0.0.1/x", **variables})

    assert settings.logs_json is as_json


def test_our_lines_are_from_the_level_on_and_others_warnings() -> None:
    """Libraries that tell much do not drown ours."""
    stream = io.StringIO()
    with fresh_root():
        set_up_logging(Settings(log_level="DEBUG", log_format="json"), stream=stream)

        logging.getLogger("pgcorpus.x").debug("ours")
        logging.getLogger("library").info("theirs")
        logging.getLogger("library").warning("their warning")

    told = [json.loads(line)["message"] for line in stream.getvalue().splitlines()]
    assert told == ["ours", "their warning"]


def test_lines_of_text_command_no_terminal() -> None:
    """Stored text that a line quotes is shown as it is."""
    stream = io.StringIO()
    with fresh_root():
        set_up_logging(Settings(), make_visible=visible, stream=stream)

        logging.getLogger("pgcorpus").warning("title: %s", "\x1b]0;owned\x07")

    assert "title: \\x1b]0;owned\\x07" in stream.getvalue()


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_a_worker_logs_in_the_format_that_is_set(pgcorpus: Command, log_format: str) -> None:
    """Each line of JSON is an object with a time; each line of text begins with one."""
    done = pgcorpus("worker", "--once", LOG_FORMAT=log_format, LOG_LEVEL="DEBUG")

    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stderr.splitlines() if "pgcorpus.services" in line]
    assert lines
    if log_format == "json":
        objects = [json.loads(line) for line in lines]
        assert all(each.keys() >= KEYS and TIME.fullmatch(each["time"]) for each in objects)
    else:
        assert all(TIME.match(line) for line in lines)


def test_an_outage_is_logged_without_the_password(pgcorpus: Command) -> None:
    """The address has a secret in it."""
    url = "postgresql://service:s3cret-word@127.0.0.1:1/nothing"
    done = pgcorpus(
        "jobs",
        "stats",
        DATABASE_URL=url,
        LOG_FORMAT="json",
        LOG_LEVEL="DEBUG",
        DB_CONNECT_RETRY="0",
    )

    assert done.returncode == 1
    assert "s3cret-word" not in done.stdout + done.stderr
