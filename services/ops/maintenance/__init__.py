"""Maintenance: what is done each week and each month, while searches run."""
