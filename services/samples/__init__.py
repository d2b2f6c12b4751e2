"""Sample files for the knowledge importer, in every shape that occurs in the wild.

They are deliberately untidy: wrong counts, an unknown chunk type, punctuation in concepts, a chunk
that occurs twice. Each of them can be imported once it is normalised.
"""

from __future__ import annotations

from pathlib import Path


def folder() -> Path:
    """Return the folder that holds the sample files, beside this module."""
    return Path(__file__).parent
