"""Everything that knows a table."""
