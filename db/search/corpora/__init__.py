"""The corpora: ours, a module each, and those that applications register."""

from __future__ import annotations

from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Final

from pgcorpus.db.choices import METADATA
from pgcorpus.db.errors import InvalidCorpus, UnknownCorpus
from pgcorpus.db.search.corpora.chat import CHAT
from pgcorpus.db.search.corpora.documentation import DOCUMENTATION
from pgcorpus.db.search.corpora.knowledge import KNOWLEDGE
from pgcorpus.db.search.corpora.memory import EPISODES, MEMORY
from pgcorpus.db.search.corpus import Corpus

__all__ = [
    "CHAT",
    "DOCUMENTATION",
    "EPISODES",
    "KNOWLEDGE",
    "MEMORY",
    "get_corpus",
    "list_corpora",
    "register",
]

ENTRY_POINTS: Final = "pgcorpus.corpora"
"""The group in which an installed application names its corpora, as ``name = "module:VALUE"``."""

OURS: Final = (KNOWLEDGE, DOCUMENTATION, CHAT, MEMORY, EPISODES)

_registered: Final = {each.name: each for each in OURS}


def register(corpus: Corpus) -> None:
    """Add a corpus of an application: searches, workers, models and checks then serve it.

    Every process that serves the database needs it, workers and the command line included: an
    installed application names its corpus in the entry points ``pgcorpus.corpora`` instead.

    Args:
        corpus: Its tables are made by a revision of the application, by ``pgcorpus.db.operations``.

    Raises:
        InvalidCorpus: Another corpus has the name, or this one has two filters ``metadata``.
    """
    if corpus.metadata_column is not None and METADATA in corpus.filters:
        raise InvalidCorpus(
            f"the corpus {corpus.name!r} has a metadata_column and a filter {METADATA!r}, which is "
            "the name of the filter on that column; give the other one another name"
        )
    if _registered.setdefault(corpus.name, corpus) is not corpus:
        raise InvalidCorpus(f"another corpus is called {corpus.name!r}; give this one another name")


def list_corpora() -> tuple[Corpus, ...]:
    """Return every corpus, ours first.

    Raises:
        InvalidCorpus: An installed application names a corpus that cannot be loaded.
    """
    _load_announced()
    return tuple(_registered.values())


def get_corpus(name: str) -> Corpus:
    """Return the corpus of that name.

    Raises:
        UnknownCorpus: There is none; the message lists those there are.
        InvalidCorpus: An installed application names a corpus that cannot be loaded.
    """
    if not isinstance(name, str) or name not in _registered:
        _load_announced()  # not before: an application that is broken hides no corpus of ours
    try:
        return _registered[name]
    except (KeyError, TypeError):  # or no name at all
        raise UnknownCorpus(
            f"there is no corpus {name!r}; known: {', '.join(sorted(_registered))}"
        ) from None


@cache
def _load_announced() -> None:
    """Register the corpora of installed applications, once.

    Not when this module is imported: an application's module imports from here.
    """
    for announced in entry_points(group=ENTRY_POINTS):
        register(_load(announced))


def _load(announced: EntryPoint) -> Corpus:
    """Import the value that an entry point names."""
    try:
        corpus = announced.load()
    except Exception as error:  # an application's own code
        raise InvalidCorpus(
            f"the corpus {announced.name!r} cannot be loaded from {announced.value!r} "
            f"({type(error).__name__}: {error}); mend or uninstall the application that names it"
        ) from error
    if not isinstance(corpus, Corpus):
        raise InvalidCorpus(
            f"{announced.value!r}, which is to be the corpus {announced.name!r}, is no Corpus"
        )
    return corpus
