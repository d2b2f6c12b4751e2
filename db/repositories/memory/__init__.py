"""Repositories of agent memory."""
