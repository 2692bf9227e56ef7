"""The exact best genotype within budgets.

A network is a path through the chain of a space: one node per option of each block, one arc per
pair of neighbors. Maximizing the summed score of the chosen options under bounds on summed costs
(latency, weights, energy, multiply-accumulates, parameters) is a shortest path with resources. A
bound on the peak of activations only takes arcs away, and so does an operator that the runtime
refuses.

Two exact solvers share the chain: labels (`hwnas.search.labels`), which find the whole Pareto front
of score and latency, with one more bound at most, and an integer program (`hwnas.search.program`)
where there are too many of them.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import numpy as np

from hwnas.search.feasible import cheapest_of_each, check_each, meets, no_network, rows_of
from hwnas.search.front import chain_within, pareto_front, score_of_choices
from hwnas.search.labels import TooManyLabels
from hwnas.search.program import best_path

if TYPE_CHECKING:
    from hwnas.latency.resources import SpaceCosts
    from hwnas.search.budget import Budgets
    from hwnas.search.chain import Scores
    from hwnas.space.genotype import Genotype

_log = logging.getLogger(__name__)

_QUICK = 200_000
"""Labels of two costs that are compared for one network alone, in less time than HiGHS needs."""


def best_genotype(costs: SpaceCosts, scores: Scores, budgets: Budgets) -> Genotype:
    """Find the genotype of the highest summed score within all budgets.

    Args:
        costs: The costs of the space on the target.
        scores: One (options,) array per searched block, e.g. log-probabilities; finite.
        budgets: Bounds on the predicted costs.

    Returns:
        The optimum. Of networks of equal score the fastest, and of those that are equal in that
        too, one, the same each time. Where an integer program must be solved, as other budgets
        bind besides that on latency, the score is within 1e-6 of the optimum, and it is not
        specified which of equal networks it is.

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
    by_latency_alone = len(rows_of(costs, budgets)) == 1
    most = None if by_latency_alone else _QUICK
    try:
        front = pareto_front(costs, scores, budgets, max_candidates=most)
    except TooManyLabels as error:
        if by_latency_alone:
            _log.warning("%s: an integer program is solved instead", error)
        return best_by_program(costs, scores, budgets)
    return front.best(budgets.latency_ms)


def best_by_program(
    costs: SpaceCosts, scores: Scores, budgets: Budgets, *, merge: bool = True
) -> Genotype | None:
    """Return the best network within budgets by integer programming; None where none is found.

    Args:
        costs: The costs of the space.
        scores: One (options,) array per searched block.
        budgets: The bounds.
        merge: See `hwnas.search.chain.state_chain`.
    """
    candidates = list(cheapest_of_each(costs, budgets))
    choices = best_path(chain_within(costs, scores, budgets, merge=merge))
    if choices is not None:
        candidates.append(costs.space.genotype_of_choices(choices))
    return max(
        (genotype for genotype in candidates if meets(costs, genotype, budgets)),
        key=lambda genotype: score_of_choices(scores, costs.space.choices(genotype)),
        default=None,
    )
