"""The exact best genotype under a latency budget.

A network is a path through the chain of a space: one node per option of each block, one arc per
pair of neighbors. Maximizing the summed score of the chosen options under a bound on the summed
latency is a shortest path with one resource, solved here as an integer program by HiGHS to a gap
of zero.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import coo_array

from hwnas.core.errors import BudgetError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from hwnas.latency.model import LatencyModel
    from hwnas.space.genotype import Genotype

# HiGHS accepts a solution that breaks a row by up to 1e-6; the latency row is scaled to a
# right-hand side of 1, and this much is given and then held back, so that the answer meets the
# budget exactly.
_ROW_TOLERANCE = 2e-6
_EXCLUSIONS = 8


def best_genotype(
    latency: LatencyModel, scores: Sequence[NDArray[np.float64]], budget_ms: float
) -> Genotype:
    """Find the genotype of the highest summed score within a latency budget.

    Args:
        latency: The calibrated latency of every link.
        scores: One (options,) array per searched block, e.g. log-probabilities; finite.
        budget_ms: Bound on the predicted latency, in milliseconds.

    Returns:
        The optimum. Among networks of equal score it is not specified which, but equal input gives
        equal output.

    Raises:
        BudgetError: The budget is no positive number, or less than the fastest network's latency.
    """
    check_budget(latency, budget_ms)
    sizes = [len(option_scores) for option_scores in scores]
    links = latency.links_us[1:-1]
    # The stem's cost is the same for all; the head's depends on the last block alone.
    fixed_us = latency.intercept_us + latency.links_us[0].item()
    head_us = latency.links_us[-1][:, 0]

    gains = []
    costs_us = []
    arcs: list[tuple[int, int, int]] = []  # (block, option before, option here)
    for block, (link, option_scores) in enumerate(zip(links, scores, strict=True)):
        for before, here in np.ndindex(*link.shape):
            cost_us = link[before, here]
            if block == len(links) - 1:
                cost_us = cost_us + head_us[here]
            arcs.append((block, before, here))
            gains.append(float(option_scores[here]))
            costs_us.append(cost_us)

    path = _one_path(arcs, sizes)
    spare_us = budget_ms * 1e3 - fixed_us
    if spare_us <= 0:
        return fastest_genotype(latency)
    row = np.array(costs_us)[None, :] / spare_us
    # Given a little more than the budget, HiGHS misses no network that meets it. One that does not
    # is excluded by name; should there be many such, the answer comes from a little less instead.
    constraints = [path, LinearConstraint(row, ub=1.0 + _ROW_TOLERANCE)]
    for _ in range(_EXCLUSIONS):
        chosen = _optimum(gains, constraints)
        if chosen is None:
            break
        genotype = latency.space.genotype_of_choices([arcs[index][2] for index in chosen])
        if latency.predict_ms(genotype) <= budget_ms:
            return genotype
        this_path = np.zeros((1, len(arcs)))
        this_path[0, chosen] = 1.0
        constraints.append(LinearConstraint(this_path, ub=len(sizes) - 0.5))
    chosen = _optimum(gains, [path, LinearConstraint(row, ub=1.0 - _ROW_TOLERANCE)])
    if chosen is not None:
        genotype = latency.space.genotype_of_choices([arcs[index][2] for index in chosen])
        if latency.predict_ms(genotype) <= budget_ms:
            return genotype
    return fastest_genotype(latency)


def fastest_genotype(latency: LatencyModel) -> Genotype:
    """Find the genotype of the lowest predicted latency, by dynamic programming."""
    cost = np.zeros(1)
    came_from = []
    for link in latency.links_us:
        total = cost[:, None] + link
        came_from.append(total.argmin(axis=0))
        cost = total.min(axis=0)
    choice = 0
    path = []
    for best_before in reversed(came_from):
        choice = int(best_before[choice])
        path.append(choice)
    # Read backward, the head and each block named the option before it; the last two are the
    # stem's, which is not searched.
    return latency.space.genotype_of_choices(path[-3::-1])


def check_budget(latency: LatencyModel, budget_ms: float) -> None:
    """Refuse a budget that is no number or that no network of the space meets.

    Raises:
        BudgetError: It is one; the fastest network's latency is named.
    """
    low, high = latency.range_ms()
    span = f"networks of {latency.space.spec.name} take {low:.4g} to {high:.4g} ms on this target"
    if not (np.isfinite(budget_ms) and budget_ms > 0):
        raise BudgetError(f"a budget is a positive number of milliseconds, not {budget_ms}: {span}")
    if budget_ms < low:
        raise BudgetError(
            f"no network meets a budget of {budget_ms:.4g} ms: {span}",
            hint=f"ask for at least {low:.4g} ms, or search a space of smaller networks",
        )


def _optimum(
    gains: Sequence[float], constraints: Sequence[LinearConstraint]
) -> NDArray[np.int64] | None:
    """Return the arcs of the path of the highest gain, in order; None where there is no path."""
    result = milp(
        -np.array(gains),
        integrality=np.ones(len(gains), dtype=np.int64),
        bounds=Bounds(0, 1),
        constraints=constraints,
        options={"mip_rel_gap": 0.0},
    )
    return None if result.x is None else np.flatnonzero(result.x > 0.5)


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
