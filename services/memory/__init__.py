"""Memory for agents: exchanges that are remembered, recalled and erased, and contexts."""
