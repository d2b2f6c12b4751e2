"""Agent memory from files."""
