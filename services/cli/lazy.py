"""Commands whose modules are imported when they are run, so that ``--help`` answers at once.

A module of commands imports what describes them, and their bodies import what they need to work:
the help of a command, and the answer to its misuse, import neither the database's layer nor NumPy.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from importlib import import_module
from typing import Any

import typer
from typer.core import TyperCommand
from typer.main import get_command, get_group

from pgcorpus.services.cli.preparation import prepare


class LazyCommand(TyperCommand):
    """A command, or a group of some, in a module that is not imported yet.

    Args:
        name: Its name on the command line.
        target: The module, below ``pgcorpus.services.cli``, and the function or application in it:
            ``module:name``.
        summary: The first paragraph of its help, for the list of commands.
    """

    def __init__(self, name: str, target: str, summary: str) -> None:
        super().__init__(name, help=summary)
        self._target = target

    def load(self) -> Any:
        """Import the module, and return typer's command."""
        module, _, name = self._target.partition(":")
        found = getattr(import_module(f"pgcorpus.services.cli.{module}"), name)
        if isinstance(found, typer.Typer):
            loaded: Any = get_group(found)
        else:
            alone = typer.Typer(add_completion=False)
            alone.command()(found)
            loaded = get_command(alone)
        loaded.name = self.name
        return loaded

    def make_context(self, *arguments: Any, **options: Any) -> Any:
        """Make the context of the command itself, which is run in this one's place."""
        command = self.load()
        prepare_before(command)
        return command.make_context(*arguments, **options)


def prepare_before(command: Any) -> None:
    """Let a command, or each of a group, call ``prepare`` before it works; help does without."""
    if hasattr(command, "commands"):
        for each in command.commands.values():
            prepare_before(each)
    else:
        command.callback = _with_preparation(command.callback)


def _with_preparation(work: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(work)
    def run(*arguments: Any, **options: Any) -> Any:
        prepare()
        return work(*arguments, **options)

    return run
