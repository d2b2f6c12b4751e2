"""The units, the Dockerfile and ``compose.yaml``: parsed, and checked where a program is at hand.

No container is started here.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.main import get_command

from pgcorpus.services.cli.lazy import LazyCommand
from pgcorpus.services.cli.main import app
from pgcorpus.services.ops.maintenance.schedule import COMMAND, make_units
from tests.command import PGCORPUS

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
UNITS = sorted((DEPLOY / "systemd").iterdir())


@pytest.fixture
def compose() -> dict[str, Any]:
    """The contents of ``compose.yaml``."""
    parsed: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    return parsed


def has_command(words: list[str]) -> bool:
    """Return whether pgcorpus has this command."""
    command: Any = get_command(app)
    for word in words:
        command = command.commands.get(word)
        if isinstance(command, LazyCommand):
            command = command.load()
        if command is None or not hasattr(command, "commands"):
            break
    return command is not None


def test_the_units_of_maintenance_are_those_that_the_command_prints() -> None:
    """One text, for who has the repository and for who has not."""
    printed = make_units()
    kept = {unit.name: unit.read_text() for unit in UNITS if "maintenance" in unit.name}

    assert kept == printed


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_systemd_takes_every_unit(tmp_path: Path) -> None:
    """With the path of a command that is there."""
    for unit in UNITS:
        text = unit.read_text()
        assert str(COMMAND) in text or unit.suffix == ".timer"
        (tmp_path / unit.name).write_text(text.replace(str(COMMAND), str(PGCORPUS)))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *sorted(tmp_path.iterdir())],  # noqa: S607
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )

    assert [line for line in done.stderr.splitlines() if "pgcorpus" in line] == []


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_systemd_complains_of_a_unit_that_is_wrong(tmp_path: Path) -> None:
    """Or the test above could not fail."""
    wrong = UNITS[-1].read_text().replace("Restart=always", "Restart=sometimes")
    (tmp_path / "pgcorpus-wrong.service").write_text(wrong)
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", tmp_path / "pgcorpus-wrong.service"],  # noqa: S607
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )

    assert "pgcorpus-wrong.service" in done.stderr


def test_the_units_run_commands_that_there_are() -> None:
    """Each with a login of its own, from a file that is not in the unit."""
    for unit in UNITS:
        if unit.suffix == ".service":
            text = unit.read_text()
            started = re.search(r"^ExecStart=\S+ (.+)$", text, re.MULTILINE)
            assert started is not None
            assert has_command(started[1].replace("%i", "weekly").split()), unit.name
            assert "EnvironmentFile=/etc/pgcorpus/" in text
            assert "PASSWORD" not in text


def test_compose_names_nothing_that_is_not_there(compose: dict[str, Any]) -> None:
    """Networks, volumes, secrets, files and commands."""
    services = compose["services"]
    assert {"postgresql", "upgrade", "worker", "metrics"} == set(services)
    for name, service in services.items():
        assert set(service["secrets"]) <= set(compose["secrets"]), name
        assert set(service["networks"]) <= set(compose["networks"]), name
        assert set(service.get("depends_on", {})) <= set(services), name
        for volume in service.get("volumes", ()):
            source = volume.split(":")[0]
            assert source in compose["volumes"] or (DEPLOY / source).is_file(), volume
        if "build" in service:
            assert (DEPLOY / service["build"]["context"]).resolve() == ROOT
            assert (ROOT / service["build"]["dockerfile"]).is_file()
            assert has_command(service["command"]), name


def test_compose_publishes_no_port_and_holds_no_secret(compose: dict[str, Any]) -> None:
    """Passwords come from files beside it; what is reached from elsewhere, the operator decides."""
    text = (DEPLOY / "compose.yaml").read_text()

    assert not any("ports" in service for service in compose["services"].values())
    assert "password=" not in text.lower()
    assert all("file" in secret for secret in compose["secrets"].values())


def test_the_image_runs_as_nobody_in_particular() -> None:
    """Not as root, with the command as its entry point; what it copies is not the tests."""
    instructions = [
        line.split(maxsplit=1)
        for line in (DEPLOY / "Dockerfile").read_text().replace("\\\n", " ").splitlines()
        if line and not line.startswith("#")
    ]
    last = dict(instructions)

    assert {name for name, _ in instructions} <= {
        "FROM", "WORKDIR", "COPY", "RUN", "ENV", "USER", "ENTRYPOINT", "CMD",
    }  # fmt: skip
    assert last["USER"].isdecimal()
    assert last["USER"] != "0"
    assert last["ENTRYPOINT"] == '["pgcorpus"]'
    assert "tests" in (DEPLOY / "Dockerfile.dockerignore").read_text().split()


@pytest.mark.skipif(shutil.which("hadolint") is None, reason="hadolint is not installed")
def test_the_dockerfile_has_no_findings() -> None:
    """Of the linter for such files."""
    subprocess.run(["hadolint", DEPLOY / "Dockerfile"], check=True, timeout=60)  # noqa: S607
