"""The old system's SQLite files: read without trust, and written as the old system opens them."""
