"""Searching a supernet under a budget, and deriving the best network from what it learned."""
