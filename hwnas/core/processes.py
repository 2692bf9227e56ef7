"""Which process of a run this is, as torchrun tells it. Needs no torch."""

from __future__ import annotations

import os


def process_count() -> int:
    """Return how many processes torchrun has started for this run; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def process_rank() -> int:
    """Return which one this is, from 0."""
    return int(os.environ.get("RANK", "0"))


def is_first() -> bool:
    """Say whether this is the process that writes and reports for all."""
    return process_rank() == 0
