"""Repositories of the chat archive."""
