"""What may be asked of the tables, one repository per corpus."""
