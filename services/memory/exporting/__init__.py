"""Agent memory as files."""
