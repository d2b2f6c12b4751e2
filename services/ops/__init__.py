"""Validation and upkeep."""
