"""Repositories: the questions that may be asked of the tables, a class for each corpus."""
