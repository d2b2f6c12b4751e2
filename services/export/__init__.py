"""What is stored, as files for others."""
