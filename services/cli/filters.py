"""pgcorpus filters: what searches can be narrowed by."""

from __future__ import annotations

from datetime import date, datetime
from typing import TYPE_CHECKING, Annotated, Final

import typer

from pgcorpus.db.choices import METADATA
from pgcorpus.services.cli.output import AsJson, print_json, put, say, table

if TYPE_CHECKING:
    from pgcorpus.db.search.corpus import Corpus, Filter


KINDS: Final = {
    bool: "true or false",
    datetime: "a time: 2025-01-31, 2025-01-31T12:00",
    date: "a date: 2025-01-31",
    int: "a whole number",
    float: "a number",
}
"""Type of a column → what a value of it looks like; of all others: text."""


def filters(
    corpus: Annotated[
        str, typer.Argument(autocompletion=lambda: sorted(each.name for each in _list()))
    ] = "knowledge",
    as_json: AsJson = False,
) -> None:
    """List what searches of a corpus can be narrowed by.

    Example: pgcorpus filters documentation
    """
    from pgcorpus.db.search import corpora

    of = corpora.get_corpus(corpus)
    found = [
        {"name": name, "values": _describe(each), "default": of.defaults.get(name)}
        for name, each in sorted(of.filters.items())
    ]
    if as_json:
        print_json(
            {
                "corpus": of.name,
                "filters": found,
                "metadata": of.metadata_column is not None,
                "group_by": list(of.metadata),
            }
        )
        return
    table(
        f"Filters of {of.name}: --filter NAME=VALUE",
        ["name", "values"],
        [
            (
                each["name"],
                f"{each['values']}"
                + ("" if each["default"] is None else f" (by default: {each['default']})".lower()),
            )
            for each in found
        ],
    )
    put(
        "NAME=A,B any of them; NAME=A..B from A up to, not including, B (text, numbers, times); "
        "NAME= no value"
    )
    if of.metadata_column is not None:
        put(f'free metadata: --where \'{{"key": "value"}}\' ({METADATA} in Python)')
    say(f"hits can be grouped: --group-by {', '.join(of.metadata)}")


def _list() -> tuple[Corpus, ...]:
    from pgcorpus.db.search import corpora

    return tuple(corpora.list_corpora())


def _describe(of: Filter) -> str:
    """Describe the values of a filter."""
    if of.choices is not None:
        return ", ".join(of.choices)
    kind = KINDS.get(of.column.type.python_type, "text")
    return f"{kind}, or the beginning of one" if of.prefix else kind
