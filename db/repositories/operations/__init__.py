"""Repositories for those who operate the database: roles, audit, isolation, diagnosis."""
