"""Misuse of the command line, in the style of all other errors: a sentence, and where to look."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final, cast

import typer

Misused: Final = cast("type[Exception]", typer.BadParameter.__base__)
"""Typer's class of all errors of usage; it has no public name for it."""

QUESTION: Final = "question"
"""The argument that is a question, in every command that takes one."""


def describe_misuse(error: Any) -> Iterator[str]:
    """Yield what was used wrongly, a hint where there is one, and the command that tells more.

    Args:
        error: Of the class ``Misused``. One that typer has answered by its help yields nothing.
    """
    if type(error).__name__ == "NoArgsIsHelpError":
        return
    context = error.ctx
    yield _describe(error)
    if context is None:
        return
    word = getattr(error, "option_name", "--")
    if not word.startswith("--") and any(
        parameter.name == QUESTION for parameter in context.command.params
    ):
        yield (
            "to leave out passages that hold a word, put the question after --: "
            f"{context.command_path} -- 'words -word'"
        )
    usage = " ".join(context.get_usage().split())
    yield f"{usage[:1].lower()}{usage[1:]}"
    yield f"all options: {context.command_path} --help"


def _describe(error: Any) -> str:
    """Write the sentence of an error, which names the option or argument first."""
    parameter, hint = getattr(error, "param", None), getattr(error, "param_hint", None)
    if hint is None and parameter is not None:
        hint = parameter.get_error_hint()
    if not error.message or hint is None:
        return _begin_small(error.format_message())
    named = (hint if isinstance(hint, str) else " / ".join(hint)).replace("'", "")
    low, high = (getattr(parameter, bound, None) for bound in ("min", "max"))
    message = _begin_small(error.message.removeprefix("Value error, "))
    if low is not None and high is not None:
        return f"{named} takes a number from {low} to {high}: {message}"
    return f"{named}: {message}"


def _begin_small(sentence: str) -> str:
    """Begin and end a sentence as our own do: with no capital, but that of a name, and no stop."""
    beginning = sentence[:1] if sentence[1:2].isupper() else sentence[:1].lower()
    return f"{beginning}{sentence[1:]}".rstrip(".")
