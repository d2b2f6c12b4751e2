"""Learning from clicks: weights of legs and boosts of passages, proposed only where they help."""
