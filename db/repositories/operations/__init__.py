"""Repositories for operators of the database: roles, audit, isolation, diagnosis."""
