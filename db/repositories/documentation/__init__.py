"""Repositories of documentation and of one's own documents."""
