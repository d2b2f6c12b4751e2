"""The pgcorpus command."""
