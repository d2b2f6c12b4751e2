"""Corpora as values, and the ranking statements built from them."""
