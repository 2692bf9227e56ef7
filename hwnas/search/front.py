"""Every network of a space that no other beats in score and latency at once: its Pareto front."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, final

import numpy as np

from hwnas.search.chain import state_chain
from hwnas.search.dominance import undominated
from hwnas.search.feasible import check_each, rows_of
from hwnas.search.labels import best_paths
from hwnas.search.program import best_path

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hwnas.latency.resources import SpaceCosts
    from hwnas.search.budget import Budgets
    from hwnas.search.chain import Floats, Ints, Scores, StateChain
    from hwnas.space.chain_space import ChainSpace
    from hwnas.space.genotype import Genotype


@final
@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ParetoFront:
    """Networks in ascending order of latency and of score; each is the best within its latency.

    Attributes:
        space: Their space.
        latencies_ms: Predicted, (N,), ascending.
        scores: Summed over the blocks, (N,), ascending.
        choices: Option of each searched block, (N, blocks).
        complete: Whether it is all of the front, not some points of it.
    """

    space: ChainSpace
    latencies_ms: Floats
    scores: Floats
    choices: Ints
    complete: bool = True

    def __len__(self) -> int:
        return len(self.scores)

    def genotype(self, place: int) -> Genotype:
        """Return the network at a place."""
        return self.space.genotype_of_choices(self.choices[place].tolist())

    def best(self, latency_ms: float) -> Genotype | None:
        """Return the best network within a latency; None where none of the front is."""
        place = int(np.searchsorted(self.latencies_ms, latency_ms, side="right")) - 1
        return None if place < 0 else self.genotype(place)

    def spread(self, points: int) -> Ints:
        """Return the places of some points, evenly over the latency; both ends are among them.

        Args:
            points: How many at most; of one alone, it is the middle.

        Returns:
            Ascending places: of each of as many even latencies the nearest point.
        """
        if len(self) <= points:
            return np.arange(len(self))
        if points < 2:
            return np.array([len(self) // 2] * points, dtype=np.int64)
        even = np.linspace(self.latencies_ms[0], self.latencies_ms[-1], points)
        after = np.searchsorted(self.latencies_ms, even).clip(1, len(self) - 1)
        is_before = even - self.latencies_ms[after - 1] <= self.latencies_ms[after] - even
        return np.unique(after - is_before)


def pareto_front(
    costs: SpaceCosts, scores: Scores, budgets: Budgets, *, max_candidates: int | None = None
) -> ParetoFront:
    """Find the Pareto front of score and latency within budgets, exactly.

    Args:
        costs: The costs of the space on the target.
        scores: One (options,) array per searched block, e.g. log-probabilities; finite.
        budgets: Bounds on the predicted costs.
        max_candidates: See `best_paths`.

    Returns:
        The whole front; empty where no network meets the budgets. Of networks of equal score the
        fastest is on it; of those that are equal in both, one, the same each time.

    Raises:
        BudgetError: A budget is no number, or cannot be met whatever the others are.
        LatencyTableError: A budget is given on what the table does not tell.
        TooManyLabels: More budgets bind, or more networks are on it, than can be managed.
    """
    check_each(costs, budgets)
    chain = chain_within(costs, scores, budgets)
    paths = best_paths(chain, max_candidates=max_candidates)
    (latency, *_) = chain.rows
    latencies_ms = latency.cost.of_sums(paths.costs[0]) / latency.divisor
    # Where other costs are bounded too, some are on the front for taking less of these alone.
    places = undominated(paths.scores, latencies_ms[None, :])
    return ParetoFront(
        space=costs.space,
        latencies_ms=latencies_ms[places],
        scores=paths.scores[places],
        choices=paths.choices[places],
    )


def front_by_program(
    costs: SpaceCosts, scores: Scores, budgets: Budgets, points: int
) -> ParetoFront:
    """Find some points of the front by an integer program each, within even latencies.

    Slower by far than `pareto_front`, for spaces and budgets that have too many labels for it. The
    arguments and errors are its own, and `points`, at least two.
    """
    check_each(costs, budgets)
    allowed = costs.allowed(budgets.memory_kib)
    low_ms, high_ms = costs.latency.range_ms(allowed)
    found: dict[tuple[int, ...], None] = {}
    for bound_ms in np.linspace(low_ms, min(high_ms, budgets.latency_ms), points):
        within = replace(budgets, latency_ms=float(bound_ms))
        choices = best_path(chain_within(costs, scores, within))
        if choices is not None:
            found[choices] = None
    blocks = len(costs.space.options)
    choices_of = np.array(list(found), dtype=np.int64).reshape(-1, blocks)
    latencies_ms = np.array([costs.latency.cost_us.of(each) / 1e3 for each in found])
    score_of = np.array([score_of_choices(scores, each) for each in found])
    places = undominated(score_of, latencies_ms[None, :])
    return ParetoFront(
        space=costs.space,
        latencies_ms=latencies_ms[places],
        scores=score_of[places],
        choices=choices_of[places],
        complete=False,
    )


def chain_within(
    costs: SpaceCosts, scores: Scores, budgets: Budgets, *, merge: bool = True
) -> StateChain:
    """Make the chain of states for budgets; bounds that no network exceeds are left out.

    Args:
        costs: The costs of the space.
        scores: One (options,) array per searched block.
        budgets: The bounds; the latency's is always kept, and is the first.
        merge: See `state_chain`.
    """
    allowed = costs.allowed(budgets.memory_kib)
    latency, *others = rows_of(costs, budgets)
    binding = []
    for row in others:
        ends = row.cost.range(allowed)
        if ends is None or ends[1] / row.divisor > row.budget:
            binding.append(row)
    return state_chain([latency, *binding], scores, allowed, merge=merge)


def score_of_choices(scores: Scores, choices: Sequence[int]) -> float:
    """Add up a network's score from the first block on, as labels do."""
    total = 0.0
    for each, choice in zip(scores, choices, strict=True):
        total += float(each[choice])
    return total
