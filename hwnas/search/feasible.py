"""Whether networks meet budgets, and what to say where none does."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import inf, isfinite
from typing import TYPE_CHECKING, Any, TypeAlias

from hwnas.core.errors import BudgetError
from hwnas.search.budget import ADDED_COSTS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from hwnas.latency.costs import ChainCost
    from hwnas.latency.resources import SpaceCosts
    from hwnas.search.budget import Budgets
    from hwnas.space.genotype import Genotype

# Tells whether budgets, each of which can be met alone, can be met together.
CanBeMet: TypeAlias = "Callable[[SpaceCosts, Budgets], bool]"

_ADDED = {added.budget: added for added in ADDED_COSTS}
_MEMORY = "memory_kib"
_MEMORY_UNIT = "KiB of activations"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Row:
    """A budget on a cost that adds up along the chain.

    Attributes:
        name: Its name in `Budgets`.
        cost: The cost, in the unit of the table.
        divisor: Units of the table in one unit of the budget.
        budget: The bound, in its own unit.
    """

    name: str
    cost: ChainCost
    divisor: float
    budget: float

    @property
    def bound(self) -> float:
        """The bound in the unit of the cost."""
        return self.budget * self.divisor


def rows_of(costs: SpaceCosts, budgets: Budgets) -> list[Row]:
    """Return the budgets that are given on costs that add up.

    Raises:
        LatencyTableError: One is given on what the table does not tell.
    """
    rows = []
    for added in ADDED_COSTS:
        bound = getattr(budgets, added.budget)
        if bound is not None:
            cost = added.cost(costs)
            rows.append(Row(name=added.budget, cost=cost, divisor=added.divisor, budget=bound))
    return rows


def meets(costs: SpaceCosts, genotype: Genotype, budgets: Budgets) -> bool:
    """Tell whether a network runs and meets all budgets, in plain arithmetic."""
    choices = costs.space.choices(genotype)
    if budgets.memory_kib is not None and costs.memory_kib_of(genotype) > budgets.memory_kib:
        return False
    return all(row.cost.of(choices) / row.divisor <= row.budget for row in rows_of(costs, budgets))


def cheapest_of_each(costs: SpaceCosts, budgets: Budgets) -> Iterator[Genotype]:
    """Yield, for each cost with a budget, the network that takes least of it within the memory."""
    allowed = costs.allowed(budgets.memory_kib)
    for row in rows_of(costs, budgets):
        choices = row.cost.cheapest(allowed)
        if choices is not None:
            yield costs.space.genotype_of_choices(choices)


def check_each(costs: SpaceCosts, budgets: Budgets) -> None:
    """Refuse a budget that is no number, or that no network meets, whatever the others are.

    Raises:
        BudgetError: One is. Both ends of each resource are named.
        LatencyTableError: One is given on what the table does not tell.
    """
    given = _given(budgets)
    for name, bound in given.items():
        if not (isfinite(bound) and bound > 0):
            units = _MEMORY_UNIT if name == _MEMORY else _ADDED[name].units
            raise BudgetError(
                f"a budget is a positive number of {units}, not {bound}: "
                f"{_span(costs, name, costs.space.spec.name)}"
            )
    for name, bound in given.items():
        if bound < _range(costs, name)[0]:
            raise _too_small(costs, given, name)


def latency_range_ms(costs: SpaceCosts, memory_kib: float | None) -> tuple[float, float]:
    """Return the latencies of the fastest and the slowest network within a bound on memory.

    Raises:
        BudgetError: No network is within it; both ends of the memory are named.
    """
    allowed = costs.allowed(memory_kib)
    if memory_kib is not None and costs.latency.cost_us.cheapest(allowed) is None:
        raise _too_small(costs, {"memory_kib": memory_kib}, "memory_kib")
    return costs.latency.range_ms(allowed)


def with_finite_latency(costs: SpaceCosts, budgets: Budgets) -> Budgets:
    """Return budgets with a bound on latency: where it is infinite, that of the slowest network.

    The slowest is so within the memory. All that follows can then count on a number.

    Raises:
        BudgetError: No network is within the memory.
    """
    if budgets.latency_ms != inf:
        return budgets
    return replace(budgets, latency_ms=latency_range_ms(costs, budgets.memory_kib)[1])


def no_network(costs: SpaceCosts, budgets: Budgets, *, can_be_met: CanBeMet) -> BudgetError:
    """Make the error for budgets that can be met each alone, but not together.

    Args:
        costs: The costs of the space.
        budgets: The budgets.
        can_be_met: Tells it of others, to find out which of these bind.
    """
    given = _given(budgets)
    asked = "; ".join(
        f"{_name(name)} {bound:.4g} {_unit(name)} ({_span(costs, name)})"
        for name, bound in given.items()
    )
    binding = [name for name in given if can_be_met(costs, _without(costs, budgets, name))]
    if binding:
        which = " or ".join(f"`{name}`" for name in binding)
        hint = (
            f"what binds is {which}: with more of one of these, or without it, there is a network"
        )
        if len(binding) == 1:
            hint = f"what binds is {which}: with more of it, there is a network"
    else:
        hint = "no single one binds: raise at least two of them"
    return BudgetError(
        f"no network of {costs.space.spec.name} meets all budgets at once, though each can be met "
        f"alone: {asked}",
        hint=hint,
    )


def _without(costs: SpaceCosts, budgets: Budgets, name: str) -> Budgets:
    """Return the budgets less one. The latency's must be some number: that of the slowest."""
    if name == "latency_ms":
        return replace(budgets, latency_ms=costs.latency.range_ms()[1])
    free: dict[str, Any] = {name: None}
    return replace(budgets, **free)


def _given(budgets: Budgets) -> dict[str, float]:
    names = ("latency_ms", _MEMORY, *(name for name in _ADDED if name != "latency_ms"))
    bounds = {name: getattr(budgets, name) for name in names}
    return {name: float(bound) for name, bound in bounds.items() if bound is not None}


def _range(costs: SpaceCosts, name: str) -> tuple[float, float]:
    """Return both ends of a resource, over all networks that run."""
    if name == _MEMORY:
        return costs.memory_range_kib()
    added = _ADDED[name]
    ends = added.cost(costs).range(costs.latency.supported)
    assert ends is not None  # the latency model has seen to it that a network is left
    return ends[0] / added.divisor, ends[1] / added.divisor


def _name(name: str) -> str:
    return "memory" if name == _MEMORY else _ADDED[name].name


def _unit(name: str) -> str:
    return _MEMORY_UNIT if name == _MEMORY else _ADDED[name].unit


def _span(costs: SpaceCosts, name: str, space: str = "") -> str:
    low, high = _range(costs, name)
    what = f"networks of {space}" if space else "networks"
    note = "" if name == _MEMORY else _ADDED[name].note
    where = " on this target" if space and name not in ("macs_m", "params_k") else ""
    return f"{what} take {low:.4g} to {high:.4g} {_unit(name)}{note}{where}"


def _too_small(costs: SpaceCosts, given: Mapping[str, float], name: str) -> BudgetError:
    """Make the error for a budget that no network meets, whatever the others are."""
    others = ", ".join(
        f"{bound:.4g} {_unit(other)} ({_span(costs, other)})"
        for other, bound in given.items()
        if other != name
    )
    low, _ = _range(costs, name)
    return BudgetError(
        f"no network meets a budget of {given[name]:.4g} {_unit(name)}: "
        f"{_span(costs, name, costs.space.spec.name)}"
        f"{f'; asked for besides: {others}' if others else ''}",
        hint=f"ask for at least {low:.4g} {_unit(name)}, or search a space of smaller networks",
    )
