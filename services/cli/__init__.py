"""The pgcorpus command."""

from pgcorpus.services.cli.main import main

__all__ = ["main"]
