"""``pgcorpus health``: as a probe and as a person use it."""

from __future__ import annotations

import json
import socket

from tests.command import Command


def test_a_healthy_database_is_0_and_the_json_is_for_scripts(pgcorpus: Command) -> None:
    """Both are one answer."""
    shown, told = pgcorpus("health"), pgcorpus("health", "--json")

    found = json.loads(told.stdout)
    assert (shown.returncode, told.returncode) == (0, 0), (shown.stderr, told.stderr)
    assert (found["status"], found["live"], found["ready"]) == ("healthy", True, True)
    assert found["checks"][0].keys() == {
        "check", "kind", "status", "detail", "remedy", "duration_ms",
    }  # fmt: skip
    assert "vector_index_health" in shown.stdout
    assert shown.stderr.startswith("healthy (")


def test_a_database_that_is_down_is_1_and_the_process_lives(pgcorpus: Command) -> None:
    """Each probe by its own exit code, in time, without a trace."""
    away = {"DATABASE_URL": "postgresql://nobody:invented@127.0.0.1:1/none"}
    ready = pgcorpus("health", "--probe", "ready", **away)
    live = pgcorpus("health", "--probe", "live", **away)
    all_of_it = pgcorpus("health", "--json", **away)

    assert (ready.returncode, live.returncode, all_of_it.returncode) == (1, 0, 1)
    assert "not ready" in ready.stderr
    found = json.loads(all_of_it.stdout)
    assert (found["status"], found["live"], found["ready"]) == ("not_ready", True, False)
    assert found["duration_ms"] < 3500
    assert "Traceback" not in ready.stderr + all_of_it.stderr
    assert "invented" not in ready.stdout + all_of_it.stdout


def test_a_server_that_says_nothing_is_answered_in_time(pgcorpus: Command) -> None:
    """The checks leave a second and more of 5 s for Python to start."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"postgresql://nobody:invented@127.0.0.1:{silent.getsockname()[1]}/none"
        told = pgcorpus("health", "--json", DATABASE_URL=address)

    found = json.loads(told.stdout)
    assert (told.returncode, found["status"], found["live"]) == (1, "not_ready", True)
    assert found["duration_ms"] < 3500


def test_options_that_would_be_ignored_are_refused(pgcorpus: Command) -> None:
    """Liveness asks nothing of the database."""
    refused = pgcorpus("health", "--probe", "live", "--writes")

    assert refused.returncode == 2
    assert "--writes" in refused.stderr


def test_the_table_fits_a_terminal(pgcorpus: Command) -> None:
    """Of 80 columns."""
    shown = pgcorpus("health", COLUMNS="80")

    assert max(map(len, shown.stdout.splitlines())) <= 80
