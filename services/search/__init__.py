"""Search, and context for a language model, over every corpus."""
