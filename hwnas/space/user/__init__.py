"""Spaces of a user's own modules."""
