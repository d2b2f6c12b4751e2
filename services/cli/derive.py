"""Commands that are made from the services of corpora, and not written for each of them."""

from __future__ import annotations

from collections.abc import Callable, Collection
from inspect import Parameter, Signature
from typing import Annotated, Any

import typer

from pgcorpus.services.cli.output import AsJson
from pgcorpus.services.importers.options import Option


def parameter(name: str, annotation: Any, default: Any = None) -> Parameter:
    """Return a parameter of a command; with ``Parameter.empty`` for its default, it is required."""
    return Parameter(name, Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


AS_JSON = parameter("as_json", AsJson, default=False)


def parameter_of(option: Option) -> Parameter:
    """Return the parameter that takes *option*."""
    low, high = option.bounds or (None, None)
    shown = typer.Option(
        *(option.flags or (flag_of(option),)),  # named alone, it gets no --no-... beside it
        help=option.help,
        metavar=option.metavar,
        min=low,
        max=high,
        callback=require_one_of(option.known) if option.known else None,
        autocompletion=(lambda: list(option.known)) if option.known else None,
    )
    return parameter(option.name, Annotated[option.kind, shown], option.default)


def flag_of(option: Option) -> str:
    """Return how *option* is called on the command line."""
    return f"--{option.name.replace('_', '-')}"


def flow(text: str) -> str:
    """Return a help text with each paragraph on one line, for terminals of any width."""
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in text.split("\n\n"))


def build_command(run: Callable[..., None], *parameters: Parameter) -> Callable[..., None]:
    """Make a command that takes the given parameters, in the order of its help, and calls *run*."""

    def command(**given: Any) -> None:
        run(**given)

    # typer asks inspect.signature, which asks this.
    vars(command)["__signature__"] = Signature(parameters)
    return command


def require_one_of(known: Collection[str]) -> Callable[[str], str]:
    """Return what refuses any other value of an option than *known* ones, for its ``callback``."""

    def check(value: str) -> str:
        if value not in known:
            raise typer.BadParameter(f"there is no {value!r}; known: {', '.join(known)}")
        return value

    return check


def corpus_option(known: Collection[str], more: str = "") -> Any:
    """Return the option ``--corpus`` of a command for *known* corpora."""
    return typer.Option(
        "--corpus",
        "-c",
        metavar="|".join(known),
        callback=require_one_of(known),
        autocompletion=lambda: list(known),
        help=f"Of which corpus.{more}",
    )
