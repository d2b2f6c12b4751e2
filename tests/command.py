"""The installed command in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

Command = Callable[..., subprocess.CompletedProcess[str]]
PGCORPUS = Path(sys.executable).with_name("pgcorpus")


def run_command(
    environment: Mapping[str, str],
    folder: Path,
    *arguments: str | bytes,
    typed: str = "",
    timeout: float = 120,
) -> subprocess.CompletedProcess[str]:
    """Run it to its end, with nothing but this environment.

    Args:
        environment: Variables and their values.
        folder: Where it runs.
        arguments: Behind its name.
        typed: What it finds on stdin, which is no terminal.
        timeout: Seconds after which it is killed, and the test fails.
    """
    return subprocess.run(
        [PGCORPUS, *arguments],
        check=False,
        capture_output=True,
        text=True,
        env=environment,
        input=typed,
        cwd=folder,
        timeout=timeout,
    )
