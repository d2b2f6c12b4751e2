"""Everything a caller does. Owns units of work, writes no SQL."""
