"""Memory as agents use it: remembered, recalled, touched, forgotten, and told as a context."""
