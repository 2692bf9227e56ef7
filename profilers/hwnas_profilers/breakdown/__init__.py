"""Whose latency? That of any model, split over the operators that its runtime made of it."""
