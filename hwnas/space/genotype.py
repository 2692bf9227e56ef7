"""A discrete architecture: plain data, hashable, readable."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Genotype:
    """One network of a space.

    Attributes:
        space: Name of the space.
        widths: Output width of each searched block, in order; empty where blocks have none of
            their own.
        blocks: What each searched block is, e.g. `k5-e6-se` or `skip`; empty in the spaces whose
            blocks differ in width alone.

    >>> Genotype(space="rnas-cl-xs", widths=(16, 8)).label
    '16-8'
    """

    space: str
    widths: tuple[int, ...]
    blocks: tuple[str, ...] = ()

    @property
    def options(self) -> tuple[int | str, ...]:
        """What each searched block is, as `ChainSpace.options` has it: a name or a width."""
        return self.blocks or self.widths

    @property
    def label(self) -> str:
        """What tells it from others of its space, in one line."""
        return " ".join(self.blocks) if self.blocks else "-".join(map(str, self.widths))
