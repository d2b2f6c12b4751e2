"""Frozen interfaces of the systems that this one replaces."""
