"""The language of a text, as the name of a text search configuration."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from sqlalchemy import Dialect

LANGUAGES: Final = {
    "ar": "arabic",
    "hy": "armenian",
    "eu": "basque",
    "ca": "catalan",
    "da": "danish",
    "nl": "dutch",
    "en": "english",
    "fi": "finnish",
    "fr": "french",
    "de": "german",
    "el": "greek",
    "hi": "hindi",
    "hu": "hungarian",
    "id": "indonesian",
    "ga": "irish",
    "it": "italian",
    "lt": "lithuanian",
    "ne": "nepali",
    "no": "norwegian",
    "nb": "norwegian",
    "nn": "norwegian",
    "pt": "portuguese",
    "ro": "romanian",
    "ru": "russian",
    "sr": "serbian",
    "es": "spanish",
    "sv": "swedish",
    "ta": "tamil",
    "tr": "turkish",
    "yi": "yiddish",
}
"""ISO 639-1 → the text search configuration that PostgreSQL 15 and newer have for it."""

CONFIGURATIONS: Final = frozenset({*LANGUAGES.values(), "simple"})

DEFAULT_LANGUAGE: Final = "english"
Language = str | Callable[[str], str]
"""The configuration of chunks that name none, or what finds it from a chunk's content."""

AUTO: Final = "auto"
"""The language that means: find out from the content."""

SINCE: Final = {"estonian": 18}
"""Configurations younger than the oldest PostgreSQL that is supported → the version that has them
(release notes of PostgreSQL 18, "Add full text search stemming for Estonian")."""

NAMES: Final = tuple(sorted(CONFIGURATIONS | SINCE.keys()))
"""Text search configurations that rows may be stored in."""

NEWEST_POSTGRESQL: Final = 18
_OF_CODE: Final = {**LANGUAGES, "et": "estonian"}


def configuration_of(text: str, *, postgresql: int = NEWEST_POSTGRESQL) -> str:
    """Find the text search configuration of a text's language.

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
    """Return the major version of the server that an engine has connected to."""
    version = dialect.server_version_info or (0,)
    return int(version[0])


@cache
def _classifier() -> Any:
    # Loaded on first use: the model takes most of a second, and most imports do without.
    import py3langid  # noqa: PLC0415 - see above

    return py3langid
