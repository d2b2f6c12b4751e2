"""Readers of documents, one module a format. Nothing is executed, and nothing is fetched."""
