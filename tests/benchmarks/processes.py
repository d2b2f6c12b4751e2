"""Contenders as processes, each with the Python that has its packages."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, TextIO

ROOT: Final = Path(__file__).parents[2]
HOME: Final = ROOT / ".bench"
"""Environments of the peers, kept between runs, and the folder of the run under way."""

LOG_LINES_SHOWN: Final = 5
STOP_SECONDS: Final = 30
PEERS: Final = ("langchain", "llamaindex")


class ContenderFailed(Exception):
    """A contender could not do what it was asked."""


class Process:
    """A contender's process.

    Args:
        module: Below ``tests.benchmarks``, without the package's name.
        python: The interpreter that has its packages.
        log: Where its stderr goes.
        start: What it works with: ``url``, ``data`` and ``ef_search``.

    Raises:
        ContenderFailed: It did not start.
    """

    def __init__(self, module: str, python: Path, log: TextIO, start: dict[str, Any]) -> None:
        self._name = module.rsplit(".", maxsplit=1)[-1]
        self._log = log
        self._process = subprocess.Popen(
            [python, "-m", f"tests.benchmarks.{module}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            cwd=ROOT,
            env={key: value for key, value in os.environ.items() if key != "PYTHONPATH"},
            text=True,
            bufsize=1,
            start_new_session=True,  # Ctrl-C is for the benchmark, which then ends its processes
        )
        self.started = self._exchange(start, None)

    def ask(self, do: str, progress: Callable[[int], None] | None = None, **arguments: Any) -> Any:
        """Have it do something, and wait for the answer.

        Args:
            do: See ``tests.benchmarks.contender``.
            progress: Called with what it says while it works.
            arguments: Of what it does.

        Raises:
            ContenderFailed: It ended instead; the message has the end of its log.
        """
        return self._exchange({"do": do} | arguments, progress)

    def close(self) -> None:
        """Let it end, and make it end if it does not."""
        try:
            self._process.communicate(timeout=STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()

    def kill(self) -> None:
        """End it at once."""
        self._process.kill()
        self._process.communicate()

    def _exchange(self, request: dict[str, Any], progress: Callable[[int], None] | None) -> Any:
        stdin, stdout = self._process.stdin, self._process.stdout
        if stdin is None or stdout is None:
            raise AssertionError  # both are pipes
        try:
            stdin.write(json.dumps(request) + "\n")
        except BrokenPipeError:
            raise self._failure() from None
        for line in stdout:
            reply = json.loads(line)
            if not (isinstance(reply, dict) and reply.keys() == {"progress"}):
                return reply
            if progress:
                progress(reply["progress"])
        raise self._failure()

    def _failure(self) -> ContenderFailed:
        self._process.wait()
        lines = Path(self._log.name).read_text(errors="replace").strip().splitlines()
        return ContenderFailed(f"{self._name} failed: " + "\n".join(lines[-LOG_LINES_SHOWN:]))


@contextmanager
def start_process(
    module: str, python: Path, folder: Path, start: dict[str, Any]
) -> Iterator[Process]:
    """Run a process for a while; its log is in *folder*."""
    with (folder / f"{module}.log").open("a") as log:
        process = Process(module, python, log, start)
        try:
            yield process
        except BaseException:
            process.kill()
            raise
        process.close()


def python_of(peer: str) -> Path:
    """The interpreter of a peer's environment, which is made when it is missing or outdated.

    Raises:
        ContenderFailed: The peer could not be installed.
    """
    pins = Path(__file__).parent / "peers" / f"{peer}.txt"
    environment = HOME / peer
    python, installed = environment / "bin" / "python", environment / pins.name
    if not installed.exists() or installed.read_text() != pins.read_text():
        shutil.rmtree(environment, ignore_errors=True)
        try:
            _run(sys.executable, "-m", "venv", environment)
            _run(python, "-m", "pip", "install", "--quiet", "--requirement", pins)
        except subprocess.CalledProcessError as error:
            last = (error.stderr.strip().splitlines() or ["no message"])[-1]
            raise ContenderFailed(f"{peer} could not be installed: {last}") from None
        shutil.copy(pins, installed)
    return python


def _run(*command: str | Path) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True)
