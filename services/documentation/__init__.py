"""Documentation and one's own documents: reading, chunking, storing, importing, exporting."""
