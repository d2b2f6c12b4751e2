"""The export of documents: files that the old system opens."""
