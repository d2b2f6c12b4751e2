"""Measure ranking on test collections."""
