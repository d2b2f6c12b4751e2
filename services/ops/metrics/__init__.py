"""Metrics for Prometheus: of this process, and of the whole database."""
