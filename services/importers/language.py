"""Which language a text is in, as the name of a text search configuration."""

from __future__ import annotations

from functools import cache
from typing import Any, Final

from sqlalchemy import Dialect

from services.importers.rules import CONFIGURATIONS, LANGUAGES

AUTO: Final = "auto"
"""In place of a name: find out."""

SINCE: Final = {"estonian": 18}
"""Configurations younger than the oldest PostgreSQL that is supported → the version that has them
(release notes of PostgreSQL 18, "Add full text search stemming for Estonian")."""

NAMES: Final = tuple(sorted(CONFIGURATIONS | SINCE.keys()))
"""Text search configurations that rows may be stored in."""

NEWEST_POSTGRESQL: Final = 18
_OF_CODE: Final = {**LANGUAGES, "et": "estonian"}


def configuration_of(text: str, *, postgresql: int = NEWEST_POSTGRESQL) -> str:
    """Find the text search configuration for the language that a text is in.

    Args:
        text: The more the better; a single sentence may be mistaken for one of a near language.
        postgresql: Major version of the server that is to know the configuration.

    Returns:
        One of ``NAMES``; ``simple`` for a language that PostgreSQL has no configuration for, and
        for a text that is in none.
    """
    if not any(character.isalpha() for character in text):
        return "simple"
    code, _ = _classifier().classify(text)
    name = _OF_CODE.get(code, "simple")
    return name if SINCE.get(name, 0) <= postgresql else "simple"


def postgresql_of(dialect: Dialect) -> int:
    """Major version of the server that an engine has connected to."""
    version = dialect.server_version_info or (0,)
    return int(version[0])


@cache
def _classifier() -> Any:  # noqa: ANN401 - the package has no types
    # Loaded on first use: the model takes most of a second, and most imports do without.
    import py3langid  # noqa: PLC0415 - see above

    return py3langid
