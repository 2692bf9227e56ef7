"""A discrete architecture: plain data, hashable, readable."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Genotype:
    """One network of a space.

    Attributes:
        space: Name of the space.
        widths: Output width of each searched block, in order.
    """

    space: str
    widths: tuple[int, ...]
