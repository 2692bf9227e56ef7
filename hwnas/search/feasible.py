"""Whether networks meet budgets, and what to say where none does."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import isfinite
from typing import TYPE_CHECKING, Any, TypeAlias

from hwnas.core.errors import BudgetError
from hwnas.latency.resources import KIB, UJ_PER_MJ

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from hwnas.latency.costs import ChainCost
    from hwnas.latency.resources import SpaceCosts
    from hwnas.search.budget import Budgets
    from hwnas.space.genotype import Genotype

# Tells whether budgets, each of which can be met alone, can be met together.
CanBeMet: TypeAlias = "Callable[[SpaceCosts, Budgets], bool]"

UNITS = {
    "latency_ms": "ms",
    "memory_kib": "KiB of activations",
    "weights_kib": "KiB of weights",
    "energy_mj": "mJ",
}
"""Unit of each budget, by its name."""

_NAMES = {
    "latency_ms": "latency",
    "memory_kib": "memory",
    "weights_kib": "weights",
    "energy_mj": "energy",
}


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
    rows = [
        Row(
            name="latency_ms",
            cost=costs.latency.cost_us,
            divisor=1e3,
            budget=budgets.latency_ms,
        )
    ]
    if budgets.weights_kib is not None:
        rows.append(
            Row(
                name="weights_kib",
                cost=costs.weights_bytes,
                divisor=KIB,
                budget=budgets.weights_kib,
            )
        )
    if budgets.energy_mj is not None:
        rows.append(
            Row(
                name="energy_mj",
                cost=costs.energy_uj,
                divisor=UJ_PER_MJ,
                budget=budgets.energy_mj,
            )
        )
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
            unit = UNITS[name].replace("ms", "milliseconds").replace("mJ", "millijoules")
            raise BudgetError(
                f"a budget is a positive number of {unit}, not {bound}: "
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


def no_network(costs: SpaceCosts, budgets: Budgets, *, can_be_met: CanBeMet) -> BudgetError:
    """Make the error for budgets that can be met each alone, but not together.

    Args:
        costs: The costs of the space.
        budgets: The budgets.
        can_be_met: Tells it of others, to find out which of these bind.
    """
    given = _given(budgets)
    asked = "; ".join(
        f"{_NAMES[name]} {bound:.4g} {UNITS[name]} ({_span(costs, name)})"
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
    bounds = {name: getattr(budgets, name) for name in UNITS}
    return {name: float(bound) for name, bound in bounds.items() if bound is not None}


def _range(costs: SpaceCosts, name: str) -> tuple[float, float]:
    """Return both ends of a resource, over all networks that run."""
    if name == "latency_ms":
        return costs.latency.range_ms()
    if name == "memory_kib":
        return costs.memory_range_kib()
    cost, divisor = (
        (costs.weights_bytes, KIB) if name == "weights_kib" else (costs.energy_uj, UJ_PER_MJ)
    )
    ends = cost.range()
    assert ends is not None  # the latency model has seen to it that a network is left
    return ends[0] / divisor, ends[1] / divisor


def _span(costs: SpaceCosts, name: str, space: str = "") -> str:
    low, high = _range(costs, name)
    what = f"networks of {space}" if space else "networks"
    uncalibrated = ", an uncalibrated sum" if name == "energy_mj" else ""
    where = " on this target" if space else ""
    return f"{what} take {low:.4g} to {high:.4g} {UNITS[name]}{uncalibrated}{where}"


def _too_small(costs: SpaceCosts, given: Mapping[str, float], name: str) -> BudgetError:
    """Make the error for a budget that no network meets, whatever the others are."""
    others = ", ".join(
        f"{bound:.4g} {UNITS[other]} ({_span(costs, other)})"
        for other, bound in given.items()
        if other != name
    )
    low, _ = _range(costs, name)
    return BudgetError(
        f"no network meets a budget of {given[name]:.4g} {UNITS[name]}: "
        f"{_span(costs, name, costs.space.spec.name)}"
        f"{f'; asked for besides: {others}' if others else ''}",
        hint=f"ask for at least {low:.4g} {UNITS[name]}, or search a space of smaller networks",
    )
