"""Export conversations, in our own format and in those of others."""
