"""The exact best genotype within budgets.

A network is a path through the chain of a space: one node per option of each block, one arc per
pair of neighbors. Maximizing the summed score of the chosen options under bounds on the summed
latency, weights and energy is a shortest path with resources, solved here as an integer program by
HiGHS to a gap of zero. A bound on the peak of activations only takes arcs away, and so does an
operator that the runtime refuses.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import coo_array

from hwnas.search.feasible import cheapest_of_each, check_each, meets, no_network, rows_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from hwnas.latency.costs import LinkMasks
    from hwnas.latency.resources import SpaceCosts
    from hwnas.search.budget import Budgets
    from hwnas.search.feasible import Row
    from hwnas.space.genotype import Genotype

    Scores = Sequence[NDArray[np.float64]]

# HiGHS accepts a solution that breaks a row by up to 1e-6; each row of a budget is scaled to a
# right-hand side of 1, and this much is given and then held back, so that the answer meets the
# budgets exactly.
_ROW_TOLERANCE = 2e-6
_EXCLUSIONS = 8


def best_genotype(costs: SpaceCosts, scores: Scores, budgets: Budgets) -> Genotype:
    """Find the genotype of the highest summed score within all budgets.

    Args:
        costs: The costs of the space on the target.
        scores: One (options,) array per searched block, e.g. log-probabilities; finite.
        budgets: Bounds on the predicted costs.

    Returns:
        The optimum. Among networks of equal score it is not specified which, but equal input gives
        equal output.

    Raises:
        BudgetError: No network meets the budgets; what each resource ranges over is named, and
            which budget binds.
        LatencyTableError: A budget is given on what the table does not tell.
    """
    check_each(costs, budgets)
    found = _best_within(costs, scores, budgets)
    if found is None:
        raise no_network(costs, budgets, can_be_met=_can_be_met)
    return found


def check_budgets(costs: SpaceCosts, budgets: Budgets) -> None:
    """Refuse budgets that no network of the space meets. Raises as `best_genotype`."""
    check_each(costs, budgets)
    if not _can_be_met(costs, budgets):
        raise no_network(costs, budgets, can_be_met=_can_be_met)


def _can_be_met(costs: SpaceCosts, budgets: Budgets) -> bool:
    """Tell whether a network meets budgets, each of which can be met alone."""
    allowed = costs.allowed(budgets.memory_kib)
    if any(meets(costs, genotype, budgets) for genotype in cheapest_of_each(costs, budgets)):
        return True
    if len(rows_of(costs, budgets)) == 1 or costs.latency.cost_us.cheapest(allowed) is None:
        return False
    # With nothing to prefer, any network within the budgets is an optimum.
    even = [np.zeros(len(options)) for options in costs.space.options]
    return _best_within(costs, even, budgets) is not None


def _best_within(costs: SpaceCosts, scores: Scores, budgets: Budgets) -> Genotype | None:
    """Return the best network within budgets; None where none is."""
    program = _program(costs, scores, budgets)
    # Given a little more than the budgets, HiGHS misses no network that meets them. One that does
    # not is excluded by name; should there be many such, the answer comes from a little less.
    excluded: list[LinearConstraint] = []
    for _ in range(_EXCLUSIONS):
        chosen = program.optimum(1.0 + _ROW_TOLERANCE, excluded)
        if chosen is None and not excluded:
            return None  # not even with a little more
        if chosen is None:
            break
        genotype = costs.space.genotype_of_choices(program.choices(chosen))
        if meets(costs, genotype, budgets):
            return genotype
        excluded.append(program.all_but(chosen))
    chosen = program.optimum(1.0 - _ROW_TOLERANCE)
    candidates = list(cheapest_of_each(costs, budgets))
    if chosen is not None:
        candidates.append(costs.space.genotype_of_choices(program.choices(chosen)))
    within = [genotype for genotype in candidates if meets(costs, genotype, budgets)]

    def score(genotype: Genotype) -> float:
        choices = costs.space.choices(genotype)
        return float(sum(each[choice] for each, choice in zip(scores, choices, strict=True)))

    return max(within, key=score, default=None)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Program:
    """The integer program: one variable per arc into a searched block.

    Attributes:
        arcs: (block, option before, option here) of each variable.
        gains: What the objective gets of it, (arcs,).
        open: Whether it may be taken, (arcs,).
        path: The arcs taken are one path.
        rows: Of each budget its costs, (arcs,), scaled so that at most 1 may be spent.
        blocks: Searched blocks.
    """

    arcs: list[tuple[int, int, int]]
    gains: NDArray[np.float64]
    open: NDArray[np.bool_]
    path: LinearConstraint
    rows: list[tuple[NDArray[np.float64], float]]
    blocks: int

    def optimum(
        self, share: float, excluded: Sequence[LinearConstraint] = ()
    ) -> NDArray[np.int64] | None:
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

    def all_but(self, chosen: NDArray[np.int64]) -> LinearConstraint:
        """Exclude one path by name."""
        this_path = np.zeros((1, len(self.arcs)))
        this_path[0, chosen] = 1.0
        return LinearConstraint(this_path, ub=self.blocks - 0.5)

    def choices(self, chosen: NDArray[np.int64]) -> list[int]:
        """Return each block's option."""
        return [self.arcs[index][2] for index in chosen]


def _program(costs: SpaceCosts, scores: Scores, budgets: Budgets) -> _Program:
    allowed = costs.allowed(budgets.memory_kib)
    arcs = list(_arcs(allowed))
    last = len(scores) - 1
    # The stem is the same for all; the head depends on the last block alone, and is laid upon it.
    is_open = [
        allowed[0].item()
        and allowed[block + 1][before, here]
        and (block < last or allowed[-1][here, 0])
        for block, before, here in arcs
    ]
    sizes = [len(option_scores) for option_scores in scores]
    return _Program(
        arcs=arcs,
        gains=np.array([float(scores[block][here]) for block, _, here in arcs]),
        open=np.array(is_open, dtype=np.bool_),
        path=_one_path(arcs, sizes),
        rows=[_scaled(row, arcs, last) for row in rows_of(costs, budgets)],
        blocks=len(sizes),
    )


def _arcs(allowed: LinkMasks) -> Iterator[tuple[int, int, int]]:
    for block, link in enumerate(allowed[1:-1]):
        for before, here in np.ndindex(*link.shape):
            yield block, before, here


def _scaled(
    row: Row, arcs: Sequence[tuple[int, int, int]], last: int
) -> tuple[NDArray[np.float64], float]:
    """Return a budget's costs per arc and what may be spent on them, scaled to 1 if any may."""
    links = [np.where(np.isfinite(link), link, 0.0) for link in row.cost.links]
    values = np.array(
        [
            links[block + 1][before, here] + (links[-1][here, 0] if block == last else 0.0)
            for block, before, here in arcs
        ]
    )
    spare = row.bound - row.cost.fixed - links[0].item()
    scale = spare if spare > 0 else max(float(values.max()), 1.0)
    return values / scale, spare / scale


def _one_path(arcs: Sequence[tuple[int, int, int]], sizes: Sequence[int]) -> LinearConstraint:
    """Exactly one arc enters the first block, and what enters an option leaves it again."""
    rows, columns, values = [], [], []
    first_row = (
        np.concatenate([[1], 1 + np.cumsum(sizes[:-1])]) if len(sizes) > 1 else np.array([1])
    )
    for column, (block, before, here) in enumerate(arcs):
        if block == 0:
            rows.append(0)
            columns.append(column)
            values.append(1.0)
        else:
            rows.append(int(first_row[block - 1]) + before)
            columns.append(column)
            values.append(-1.0)
        if block < len(sizes) - 1:
            rows.append(int(first_row[block]) + here)
            columns.append(column)
            values.append(1.0)
    count = 1 + sum(sizes[:-1])
    matrix = coo_array((values, (rows, columns)), shape=(count, len(arcs))).tocsr()
    balance = np.zeros(count)
    balance[0] = 1.0
    return LinearConstraint(matrix, lb=balance, ub=balance)
