"""The old documentation system's interface, on PostgreSQL and on its own SQLite files."""
