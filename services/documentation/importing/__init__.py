"""The import of documents: files, folders, zips, and the old system's SQLite files."""
