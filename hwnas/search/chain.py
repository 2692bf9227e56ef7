"""A space with its costs and scores as a chain of states, which is what both solvers solve.

What a link of a chain costs depends on the option before it only by that option's row: its output
width. Options with equal rows in all costs lead to the same future, so they lead to one state. In a
space of 57 options a block that have 3 widths, 3 states are left of 57.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from hwnas.latency.costs import LinkMasks
    from hwnas.search.feasible import Row

    Floats = NDArray[np.float64]
    Ints = NDArray[np.int64]
    Scores = Sequence[Floats]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Step:
    """One link of a chain of states.

    Attributes:
        costs: Of each bounded cost, (costs, states before, options); infinity where an option must
            not be taken.
        scores: Of each option, (options,).
        states: State that each option leads to, (options,).
    """

    costs: Floats
    scores: Floats
    states: Ints

    @property
    def state_count(self) -> int:
        """Number of states after it."""
        return int(self.states.max()) + 1


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StateChain:
    """All networks as paths from the stem to the head.

    Attributes:
        steps: The stem, each searched block and the head. The first and the last have one option,
            of score 0.
        rows: The bounded costs.
    """

    steps: tuple[Step, ...]
    rows: tuple[Row, ...]

    @property
    def limits(self) -> Floats:
        """What may be spent along the chain of each cost, (costs,)."""
        return np.array([row.cost.sum_within(row.bound) for row in self.rows])

    def meets(self, totals: Floats) -> NDArray[np.bool_]:
        """Tell which paths meet the budgets, in the arithmetic of `feasible.meets`.

        Args:
            totals: Their costs summed from the stem on, (costs, N).

        Returns:
            (N,).
        """
        met = np.ones(totals.shape[1], dtype=np.bool_)
        for row, total in zip(self.rows, totals, strict=True):
            met &= row.cost.of_sums(total) / row.divisor <= row.budget
        return met


def state_chain(
    rows: Sequence[Row], scores: Scores, allowed: LinkMasks, *, merge: bool = True
) -> StateChain:
    """Make the chain of states.

    Args:
        rows: The bounded costs, at least one.
        scores: One (options,) array per searched block.
        allowed: Which arcs may be taken, per link.
        merge: Whether options with the same future share a state; else each has its own, which is
            larger, and as a proof owes nothing to the merging.
    """
    links = [
        np.stack([np.where(mask, row.cost.links[index], np.inf) for row in rows])
        for index, mask in enumerate(allowed)
    ]
    certain = np.zeros(1)
    steps = []
    first_of_state = np.zeros(1, dtype=np.int64)  # an option that stands for each state before
    futures = [*links[1:], None]
    for link, score, future in zip(links, (certain, *scores, certain), futures, strict=True):
        states = np.arange(link.shape[2]) if future is None or not merge else _states_of(future)
        steps.append(Step(costs=link[:, first_of_state], scores=score, states=states))
        first_of_state = np.unique(states, return_index=True)[1]
    return StateChain(steps=tuple(steps), rows=tuple(rows))


def _states_of(future: Floats) -> Ints:
    """Number options by their rows in the next link, (costs, options, ...) -> (options,)."""
    seen: dict[bytes, int] = {}
    # Adding 0 makes a negative zero a plain one: they are equal, but their bytes are not.
    rows = np.ascontiguousarray(future.swapaxes(0, 1)) + 0.0  # -> (options, costs, ...)
    return np.array([seen.setdefault(row.tobytes(), len(seen)) for row in rows], dtype=np.int64)
