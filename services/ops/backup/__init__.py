"""Backups: made, verified, restored and pruned."""
