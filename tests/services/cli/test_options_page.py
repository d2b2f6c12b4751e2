"""The page docs/reference/command-options.md: every command with its arguments and options."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import groupby
from typing import Any, Final

import typer

from tests.commands import list_commands
from tests.pages import check_page, write_code, write_table, write_words

CHOICES: Final = re.compile(r"[<\[]([\w.-]+(?:\|[\w.-]+)+)[>\]]")
RANGE: Final = re.compile(r"(?:(?P<low>[\d.-]+)<=)?\bx\b(?:<=(?P<high>[\d.-]+))?")


def write_paragraphs(help_text: str) -> Iterator[str]:
    """Yield the paragraphs of a help text as Markdown, its examples as one block of code."""
    lines = [
        " ".join(re.sub(r"^Examples?:\s*", "", paragraph).split())
        for paragraph in help_text.strip().split("\n\n")
    ]
    for are_examples, some in groupby(
        filter(None, lines), lambda line: line.startswith("pgcorpus ")
    ):
        if are_examples:
            yield "\n".join(("```console", *(f"$ {line}" for line in some), "```"))
        else:
            yield from map(write_words, some)


def name_parameter(parameter: Any) -> str:
    """Return the names of an option, or the place holder of an argument."""
    if parameter.param_type_name == "argument":
        many = "..." if parameter.nargs == -1 else ""
        return write_code((parameter.metavar or parameter.name.upper()).removesuffix("...") + many)
    names = sorted(parameter.opts, key=len)
    value = f" {parameter.metavar}" if parameter.metavar else ""
    return ", ".join(write_code(f"{name}{value}") for name in (*names, *parameter.secondary_opts))


def describe_parameter(parameter: Any, context: typer.Context) -> str:
    """Return what a parameter means, the values that it takes, and its default."""
    named, described = parameter.get_help_record(context) or ("", "")
    words = [write_words(parameter.help)] if parameter.help else []
    if found := CHOICES.search(named):
        words.append(f"One of {', '.join(map(write_code, found[1].split('|')))}.")
    if (found := RANGE.search(described)) and found["low"]:
        low, high = (write_code(each) if each else "" for each in found.group("low", "high"))
        words.append(f"From {low} to {high}." if high else f"At least {low}.")
    if parameter.required:
        words.append("Required.")
    elif isinstance(parameter.default, bool):
        if parameter.secondary_opts:
            chosen = parameter.opts if parameter.default else parameter.secondary_opts
            words.append(f"Default: {write_code(chosen[0])}.")
    elif isinstance(parameter.default, str | int | float) and str(parameter.default):
        words.append(f"Default: {write_code(str(parameter.default))}.")
    return " ".join(words)


def describe_command(name: str, command: Any) -> str:
    """Return the section of a command."""
    context = typer.Context(command, info_name=name)
    shown = [each for each in command.params if not getattr(each, "hidden", False)]
    parts = [f"## pgcorpus {name}", *write_paragraphs(command.help or "")]
    if shown:
        rows = [(name_parameter(each), describe_parameter(each, context)) for each in shown]
        parts.append(write_table(("option", "meaning"), rows))
    return "\n\n".join(parts)


def describe_commands() -> str:
    """Return the page."""
    sections = "\n\n".join(describe_command(name, command) for name, command in list_commands())
    return f"""# Options of each command

The same as `pgcorpus COMMAND --help` shows, of all commands. [Command line](command-line.md) tells
what is common to them: exit codes, output, JSON. Each also has `-h` and `--help`.

{sections}
"""


def test_the_page_of_the_options_is_current() -> None:
    """A new option gets its line there."""
    check_page("command-options.md", __file__, describe_commands())
