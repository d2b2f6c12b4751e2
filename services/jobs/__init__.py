"""The job queue worked off: handlers, worker and what is done periodically."""
