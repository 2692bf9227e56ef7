"""The exact best path through a chain of states as an integer program, solved by HiGHS.

It takes any number of costs, and shares nothing with the labels of `hwnas.search.labels` but the
chain: it takes over where there are too many of these, and it is the proof that they are right on
spaces that are too large to try all networks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from hwnas.search.chain import Floats, Ints, StateChain

# HiGHS accepts a solution that breaks a row by up to 1e-6; each row of a budget is scaled to a
# right-hand side of 1, and this much is given and then held back, so that the answer meets the
# budgets exactly.
_ROW_TOLERANCE = 2e-6
_EXCLUSIONS = 8

SCORE_GAP = 1e-6
"""How far below the optimum HiGHS may stop: its absolute gap, which SciPy does not let us set."""


def best_path(chain: StateChain) -> tuple[int, ...] | None:
    """Return the options of the best path within the limits, its score to within `SCORE_GAP`.

    Args:
        chain: The chain, of any number of costs.

    Returns:
        The option of each searched block; None where none is found. A path that is within the
        limits by less than a share of 2e-6 may be passed over where more than eight that are
        better are beyond them by as little.
    """
    program = _program(chain)
    # Given a little more than the budgets, HiGHS misses no network that meets them. One that does
    # not is excluded by name; should there be many such, the answer comes from a little less.
    excluded: list[LinearConstraint] = []
    for _ in range(_EXCLUSIONS):
        chosen = program.optimum(1.0 + _ROW_TOLERANCE, excluded)
        if chosen is None and not excluded:
            return None  # not even with a little more
        if chosen is None:
            break
        choices = program.choices(chosen)
        if _meets(chain, choices):
            return choices
        excluded.append(program.all_but(chosen))
    chosen = program.optimum(1.0 - _ROW_TOLERANCE)
    if chosen is None:
        return None
    choices = program.choices(chosen)
    return choices if _meets(chain, choices) else None


def _meets(chain: StateChain, choices: Sequence[int]) -> bool:
    totals = np.array([[row.cost.sum_of(choices)] for row in chain.rows])
    return bool(chain.meets(totals)[0])


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Program:
    """The integer program: one variable per arc into a searched block.

    Attributes:
        blocks: Block of each variable, (arcs,).
        options: Option of each variable, (arcs,).
        gains: What the objective gets of it, (arcs,).
        open: Whether it may be taken, (arcs,).
        path: The arcs taken are one path.
        rows: Of each budget its costs, (arcs,), scaled so that at most 1 may be spent, and what may
            be.
    """

    blocks: Ints
    options: Ints
    gains: Floats
    open: NDArray[np.bool_]
    path: LinearConstraint
    rows: list[tuple[Floats, float]]

    def optimum(self, share: float, excluded: Sequence[LinearConstraint] = ()) -> Ints | None:
        """Return the arcs of the best path within a share of the budgets; None of no path."""
        budgets = [LinearConstraint(row[None, :], ub=room + share - 1.0) for row, room in self.rows]
        result = milp(
            -self.gains,
            integrality=np.ones(len(self.gains), dtype=np.int64),
            bounds=Bounds(np.zeros(len(self.gains)), self.open.astype(np.float64)),
            constraints=[self.path, *budgets, *excluded],
            options={"mip_rel_gap": 0.0},
        )
        return None if result.x is None else np.flatnonzero(result.x > 0.5)

    def all_but(self, chosen: Ints) -> LinearConstraint:
        """Exclude one path by name."""
        this_path = np.zeros((1, len(self.gains)))
        this_path[0, chosen] = 1.0
        return LinearConstraint(this_path, ub=len(chosen) - 0.5)

    def choices(self, chosen: Ints) -> tuple[int, ...]:
        """Return each block's option."""
        return tuple(self.options[chosen].tolist())


def _program(chain: StateChain) -> _Program:
    stem, *searched, head = chain.steps
    blocks, before, options = [], [], []
    for block, step in enumerate(searched):
        states, here = np.indices(step.costs.shape[1:]).reshape(2, -1)
        blocks.append(np.full(len(here), block))
        before.append(states)
        options.append(here)
    # The stem is the same for all; the head depends on the last block alone, and is laid upon it.
    costs = [step.costs for step in searched]
    costs[-1] = costs[-1] + head.costs[:, searched[-1].states, 0][:, None, :]
    costs[0] = costs[0] + np.where(np.isfinite(stem.costs), 0.0, np.inf)
    values = np.concatenate([each.reshape(len(chain.rows), -1) for each in costs], axis=1)
    is_open = np.isfinite(values).all(axis=0)
    room = chain.limits - np.where(np.isfinite(stem.costs), stem.costs, 0.0)[:, 0, 0]
    gains = [np.broadcast_to(step.scores, step.costs.shape[1:]).ravel() for step in searched]
    return _Program(
        blocks=np.concatenate(blocks),
        options=np.concatenate(options),
        gains=np.concatenate(gains),
        open=is_open,
        path=_one_path(chain, blocks, before, options),
        rows=[
            _scaled(np.where(is_open, row, 0.0), float(spare))
            for row, spare in zip(values, room, strict=True)
        ],
    )


def _scaled(values: Floats, spare: float) -> tuple[Floats, float]:
    """Return costs per arc and what may be spent on them, scaled to 1 if any may."""
    scale = spare if spare > 0 else max(float(values.max()), 1.0)
    return values / scale, spare / scale


def _one_path(
    chain: StateChain, blocks: Sequence[Ints], before: Sequence[Ints], options: Sequence[Ints]
) -> LinearConstraint:
    """Exactly one arc enters the first block, and what enters a state leaves it again."""
    searched = chain.steps[1:-1]
    first_row = np.cumsum([1, *(step.state_count for step in searched)])
    arcs = sum(map(len, options))
    rows, columns, values = [np.zeros(len(options[0]))], [np.arange(len(options[0]))], []
    values.append(np.ones(len(options[0])))
    column = 0
    for block, step in enumerate(searched):
        places = np.arange(column, column + len(blocks[block]))
        if block > 0:
            rows.append(first_row[block - 1] + before[block])
            columns.append(places)
            values.append(-np.ones(len(places)))
        if block < len(searched) - 1:
            rows.append(first_row[block] + step.states[options[block]])
            columns.append(places)
            values.append(np.ones(len(places)))
        column += len(places)
    count = int(first_row[len(searched) - 1])
    places_of = (np.concatenate(rows).astype(np.int64), np.concatenate(columns))
    matrix = csr_array((np.concatenate(values), places_of), shape=(count, arcs))
    balance = np.zeros(count)
    balance[0] = 1.0
    return LinearConstraint(matrix, lb=balance, ub=balance)
