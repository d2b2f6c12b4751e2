"""The chat archive: importing, exporting, and the interface of the old archive."""
