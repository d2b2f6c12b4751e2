"""Repositories of the knowledge base."""
