"""Certified bounds: what a network's outputs can be over a whole ball of images."""

from hwnas.robustness.bounds.margins import Method, margin_lower_bounds

__all__ = ["Method", "margin_lower_bounds"]
