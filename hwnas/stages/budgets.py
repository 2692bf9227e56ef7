"""What stages say and record of budgets and of what they are held against."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from hwnas.core.errors import ConfigError
from hwnas.search.budget import Budgets
from hwnas.search.records import Resources

if TYPE_CHECKING:
    from hwnas.core.progress import Progress
    from hwnas.latency.resources import SpaceCosts
    from hwnas.space.genotype import Genotype
    from hwnas_profilers.records import EnergyStatistics


def budgets_from_options(budget_ms: float | None, **others: float | None) -> Budgets:
    """Return the budgets of a command's options; without one on latency, that is infinite.

    Args:
        budget_ms: Bound on the latency.
        **others: The other bounds, by their names in `Budgets`.

    Raises:
        ConfigError: There is none at all.
    """
    if budget_ms is None and all(bound is None for bound in others.values()):
        names = ", ".join(f"--{name.replace('_', '-')}" for name in others)
        raise ConfigError(
            "no budget is given, and without one the likeliest network is of no device",
            hint=f"give --budget-ms, or one of {names}",
        )
    return Budgets(latency_ms=math.inf if budget_ms is None else budget_ms, **others)


def say_what_is_out(costs: SpaceCosts, budgets: Budgets, progress: Progress) -> None:
    """Tell what the runtime has put out of the space, and that energies are uncalibrated."""
    closed = costs.latency.closed_options
    if closed:
        progress.say(
            f"the target refuses operators of {costs.space.spec.name}: no network can have "
            f"{', '.join(closed)}"
        )
    if budgets.energy_mj is not None:
        progress.say(
            "the budget on energy is held against the sum of operators that ran alone: it is not "
            "calibrated by whole networks"
        )


def resources_of(
    costs: SpaceCosts, genotype: Genotype, budgets: Budgets, metered: EnergyStatistics | None
) -> Resources:
    """Return what a network takes besides time, beside its bounds.

    Args:
        costs: The costs of its space.
        genotype: The network.
        budgets: The bounds.
        metered: Its energy as metered whole, where it was.
    """
    figures = costs.figures(genotype)
    return Resources(
        batch=costs.space.batch,
        memory_kib=figures.memory_kib,
        weights_kib=figures.weights_kib,
        uncalibrated_energy_mj=figures.uncalibrated_energy_mj,
        metered=metered,
        memory_budget_kib=budgets.memory_kib,
        weights_budget_kib=budgets.weights_kib,
        energy_budget_mj=budgets.energy_mj,
        macs_budget_m=budgets.macs_m,
        params_budget_k=budgets.params_k,
    )
