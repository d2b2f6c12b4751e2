"""The curated knowledge base: importing and validating."""
