"""Memory for agents.

Exchanges remembered, recalled, touched and erased, and contexts for prompts.
"""
