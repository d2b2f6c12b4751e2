"""The worker of the job queue, and the handlers of its jobs."""
