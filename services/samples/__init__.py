"""Sample files, for the demo and the tutorial.

Those of documentation are the project's own ``docs``.
Those of the knowledge base come in every shape that occurs in the wild, and are deliberately
untidy: wrong counts, an unknown chunk type, punctuation in concepts, a chunk that occurs twice.
Those of the chat archive are exports of two providers, with a photo and an abandoned answer.
Those of agent memory are twelve memories, of which some are noise and some break a rule, and two
episodes that are made of them; they come without vectors.
"""

from __future__ import annotations

from pathlib import Path


def folder(corpus: str) -> Path:
    """Return the folder that holds the sample files of a corpus, beside this module."""
    found = Path(__file__).parent / corpus
    if corpus == "documentation" and not found.is_dir():  # a checkout without symbolic links
        return Path(__file__).parents[2] / "docs"
    return found
