"""Many commands of pgcorpus, each in a process of its own that need not import everything again.

Run as a script it reads lists of arguments from stdin, and prints what became of each as JSON.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any


@dataclass(frozen=True)
class Result:
    """The result of a command.

    Attributes:
        code: Of its exit.
        stdout: What it printed.
        stderr: What it told.
    """

    code: int
    stdout: str
    stderr: str


def list_commands() -> Iterator[tuple[str, Any]]:
    """Yield each command of pgcorpus that is no group, and its name behind those of its groups."""
    from typer.main import get_command  # noqa: PLC0415 - as below

    from pgcorpus.services.cli.main import app  # noqa: PLC0415

    def walk(command: Any, path: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
        found = command.load() if hasattr(command, "load") else command
        if not hasattr(found, "commands"):
            yield " ".join(path), found
        else:
            for name, each in found.commands.items():
                yield from walk(each, (*path, name))

    yield from walk(get_command(app), ())


def run_commands(
    environment: Mapping[str, str], folder: Path, commands: Sequence[Sequence[str]]
) -> list[Result]:
    """Run commands one after the other, each as ``run_command`` does; none of them is asked."""
    done = subprocess.run(
        [sys.executable, __file__],
        check=True,
        capture_output=True,
        text=True,
        env=environment,
        input=json.dumps(commands),
        cwd=folder,
        timeout=600,
    )
    return [Result(**each) for each in json.loads(done.stdout)]


def _run_all() -> Iterator[dict[str, int | str]]:
    # Here once, and not in the tests or in each command's process.
    import pgcorpus  # noqa: PLC0415
    from pgcorpus.services.cli.main import COMMANDS, main  # noqa: PLC0415

    for command in COMMANDS:
        command.load()
    for name in pgcorpus.__all__:
        getattr(pgcorpus, name)
    commands = json.load(sys.stdin)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for arguments in commands:
        with TemporaryFile("w+") as out, TemporaryFile("w+") as err:
            if (child := os.fork()) == 0:
                os.dup2(out.fileno(), 1)
                os.dup2(err.fileno(), 2)
                sys.argv = ["pgcorpus", *arguments]
                main()
                sys.exit()
            status = os.waitpid(child, 0)[1]
            out.seek(0)
            err.seek(0)
            yield {
                "code": os.waitstatus_to_exitcode(status),
                "stdout": out.read(),
                "stderr": err.read(),
            }


if __name__ == "__main__":
    sys.stdout.write(json.dumps(list(_run_all())))
