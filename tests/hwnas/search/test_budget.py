from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hwnas.latency.resources import SpaceCosts
from hwnas.search.budget import BudgetMultiplier, Budgets, HeldBudgets
from hwnas.space.channel.space import ChannelSpace
from hwnas_profilers.records import EnergyStatistics

if TYPE_CHECKING:
    from collections.abc import Callable

    from hwnas.space.channel.spec import ChannelSpec
    from hwnas_profilers.table import LatencyTable
    from hwnas_profilers.workload import OperatorKey

    TableMaker = Callable[..., LatencyTable]

pytestmark = pytest.mark.usefixtures("one_thread")

costs = st.floats(0.01, 10)


def penalty(held: BudgetMultiplier, cost: torch.Tensor) -> torch.Tensor:
    """What is added to a loss of size 1."""
    return held.constrain(torch.ones((), dtype=cost.dtype), cost) - 1


@given(cost=costs, budget=costs, multiplier=st.floats(0, 20), stiffness=st.floats(0.5, 50))
def test_the_gradient_is_the_pressure_per_budget(
    cost: float, budget: float, multiplier: float, stiffness: float
) -> None:
    held = BudgetMultiplier(budget=budget, stiffness=stiffness, multiplier=multiplier)
    value = torch.tensor(cost, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(penalty(held, value), value)
    pressure = max(0.0, multiplier + stiffness * (cost / budget - 1))
    assert float(gradient) == pytest.approx(pressure / budget, rel=1e-9, abs=1e-12)
    assert gradient >= 0  # never a reward for being slower


@given(budget=costs, multiplier=st.floats(0, 20))
def test_being_at_the_budget_costs_nothing(budget: float, multiplier: float) -> None:
    held = BudgetMultiplier(budget=budget, multiplier=multiplier)
    assert float(penalty(held, torch.tensor(budget))) == pytest.approx(0, abs=1e-4)


def test_over_costs_more_than_under() -> None:
    held = BudgetMultiplier(budget=2.0, multiplier=1.0)
    under, at, over = (float(penalty(held, torch.tensor(cost))) for cost in (1.0, 2.0, 3.0))
    assert under < at < over
    # Without pressure from before, being under is no merit.
    assert float(penalty(BudgetMultiplier(budget=2.0), torch.tensor(1.0))) == 0


@given(multiplier=st.floats(0, 20), excess=st.floats(0.01, 5))
def test_the_multiplier_grows_over_the_budget_and_falls_under_it(
    multiplier: float, excess: float
) -> None:
    held = BudgetMultiplier(budget=1.0, multiplier=multiplier)
    held.update(1.0 + excess)
    assert held.multiplier == pytest.approx(multiplier + held.rate * min(excess, held.reach))
    before = held.multiplier
    held.update(max(0.0, 1.0 - excess))
    assert 0 <= held.multiplier < before
    for _ in range(5_000):
        held.update(0.9)
    assert held.multiplier == 0
    held.update(1.0)
    assert held.multiplier == 0


@given(multiplier=st.floats(0, 1e6))
def test_its_state_survives_the_round_trip(multiplier: float) -> None:
    other = BudgetMultiplier(budget=1.0)
    other.load_state_dict(BudgetMultiplier(budget=1.0, multiplier=multiplier).state_dict())
    assert other.multiplier == multiplier


@pytest.mark.parametrize("weight", [0.1, 1.0, 10.0])
@pytest.mark.parametrize("budget", [1.2, 1.5, 2.0, 2.7])
def test_a_search_in_small_ends_at_its_budget(weight: float, budget: float) -> None:
    """Six blocks, each wanting its slowest option by another strength; all slow costs 3, fast 1."""
    logits = torch.nn.Parameter(torch.zeros(6, 3))
    cost_of = torch.tensor([3.0, 2.0, 1.0]) / 6
    worth_of = torch.linspace(0.5, 1.5, 6)[:, None] * torch.tensor([1.0, 0.7, 0.0])
    optimizer = torch.optim.Adam([logits], lr=0.1)
    held = BudgetMultiplier(budget=budget)
    steps = 400
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 0.05 * (1 + math.cos(math.pi * step / steps))
        probabilities = logits.softmax(1)
        cost = (probabilities * cost_of).sum()
        task = weight * (10 - (probabilities * worth_of).sum())
        loss = held.constrain(task, cost)
        held.update(float(cost.detach()))
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
    assert float(cost.detach()) == pytest.approx(budget, rel=0.02)
    # What there is to spend goes where it is worth the most.
    spent = (probabilities * cost_of).sum(1)
    assert spent[5] > spent[0] - 0.01
    assert held.multiplier > 0


def test_a_constraint_that_does_not_bind_changes_nothing() -> None:
    x = torch.nn.Parameter(torch.tensor(0.0))
    optimizer = torch.optim.Adam([x], lr=0.05)
    held = BudgetMultiplier(budget=10.0)
    for _ in range(400):
        loss = held.constrain((x - 3) ** 2, x)
        held.update(float(x.detach()))
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
    assert float(x.detach()) == pytest.approx(3, abs=0.01)
    assert held.multiplier == 0


def costs_of(spec: ChannelSpec, table_of: TableMaker, *, refuse_widest: bool = False) -> SpaceCosts:
    """All costs grow with a block's width; the widest option of the last block may be refused."""
    space = ChannelSpace(spec)
    table = table_of(space, lambda key: 10.0 + key.hidden + key.out_shape[0])

    def peak_bytes(key: OperatorKey) -> int:
        return 4 * key.out_shape[0] * key.out_shape[1] ** 2

    measurements = {
        key: replace(
            each,
            weights_bytes=100 * key.out_shape[0] + key.hidden,
            peak_activation_bytes=peak_bytes(key),
            energy=EnergyStatistics(
                n=6, median_uj=float(key.out_shape[0]), low_uj=1.0, high_uj=99.0
            ),
        )
        for key, each in table.measurements.items()
    }
    refused = {
        key: "no such kernel"
        for row in space.transitions[3]
        for (key,) in row
        if refuse_widest and key.out_shape[0] == 16
    }
    kept = {key: each for key, each in measurements.items() if key not in refused}
    return SpaceCosts(space, replace(table, measurements=kept, unsupported=refused))


def search_in_small(
    costs: SpaceCosts, budgets: Budgets, *, hold_latency: bool = True, steps: int = 400
) -> tuple[list[torch.Tensor], dict[str, float]]:
    """Search with a task that wants the widest option of every block; return what is found."""
    logits = [torch.nn.Parameter(torch.zeros(len(each))) for each in costs.space.options]
    worth = [torch.linspace(1, 0, len(each)) for each in costs.space.options]
    optimizer = torch.optim.Adam(logits, lr=0.1)
    held = HeldBudgets(costs, budgets, hold_latency=hold_latency)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 0.05 * (1 + math.cos(math.pi * step / steps))
        probabilities = [each.softmax(0) for each in logits]
        gain = sum(
            ((p * w).sum() for p, w in zip(probabilities, worth, strict=True)), torch.zeros(())
        )
        loss = held.constrain(4 - gain, probabilities)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
    with torch.no_grad():
        probabilities = [each.softmax(0) for each in logits]
        return probabilities, held.figures(probabilities)


def test_a_search_without_pressure_takes_what_it_wants(
    small_spec: ChannelSpec, table_of: TableMaker
) -> None:
    costs = costs_of(small_spec, table_of)
    probabilities, figures = search_in_small(costs, Budgets(latency_ms=1e9))
    assert all(float(p[0]) > 0.9 for p in probabilities)
    assert set(figures) == {"expected_ms", "multiplier"}
    assert figures["multiplier"] == 0


@pytest.mark.parametrize("latency_binds", [False, True])
def test_each_budget_that_adds_up_is_held_by_its_own_multiplier(
    small_spec: ChannelSpec, table_of: TableMaker, latency_binds: bool
) -> None:
    costs = costs_of(small_spec, table_of)
    free, _ = search_in_small(costs, Budgets(latency_ms=1e9))
    # What the free search takes, less what makes the one bound or the other bind.
    weights_kib = float(costs.weights_bytes.expected(free)) / 1024
    energy_mj = float(costs.energy_uj.expected(free)) / 1e3
    latency_ms = float(costs.latency.expected_ms(free))
    asked = Budgets(
        latency_ms=latency_ms * (0.8 if latency_binds else 10),
        weights_kib=weights_kib * (10 if latency_binds else 0.8),
        energy_mj=energy_mj * 10,
    )
    _, figures = search_in_small(costs, asked)
    assert asked.weights_kib is not None
    if latency_binds:
        assert figures["expected_ms"] == pytest.approx(asked.latency_ms, rel=0.03)
        assert figures["multiplier"] > 0 == figures["weights_multiplier"]
    else:
        assert figures["expected_weights_kib"] == pytest.approx(asked.weights_kib, rel=0.03)
        assert figures["weights_multiplier"] > 0 == figures["multiplier"]
    assert figures["energy_multiplier"] == 0
    assert figures["expected_uncalibrated_energy_mj"] < energy_mj


@pytest.mark.parametrize("hold_latency", [False, True])
def test_a_bound_on_memory_drives_what_exceeds_it_out(
    small_spec: ChannelSpec, table_of: TableMaker, hold_latency: bool
) -> None:
    costs = costs_of(small_spec, table_of)
    # The first block is at 8x8: 8 channels take 2 KiB, 4 take 1. The stem has its 8 in any case.
    space = costs.space
    stem_kib = 4 * 8 * 64 / 1024
    assert costs.memory_range_kib() == (stem_kib, stem_kib)
    wide = costs.peak_bytes
    wide[1][:, 0] = 4096.0  # make the widest option of the first block need more than the stem
    budgets = Budgets(latency_ms=1e9, memory_kib=3.0)
    probabilities, figures = search_in_small(costs, budgets, hold_latency=hold_latency)
    assert float(probabilities[0][0]) < 0.05
    assert all(float(p[0]) > 0.9 for p in probabilities[1:])
    assert figures["expected_forbidden_operators"] == pytest.approx(
        float(probabilities[0][0]), abs=1e-5
    )
    assert figures["forbidden_multiplier"] > 0
    assert len(space.options) == 3


@pytest.mark.parametrize("name", ["macs", "params"])
def test_macs_and_parameters_are_held_like_any_other_cost(
    small_spec: ChannelSpec, table_of: TableMaker, name: str
) -> None:
    costs = costs_of(small_spec, table_of)
    low, high = getattr(costs, name).range()
    divisor, budget, figure = {
        "macs": (1e6, "macs_m", "expected_macs_m"),
        "params": (1e3, "params_k", "expected_params_k"),
    }[name]
    bound = (low + 0.5 * (high - low)) / divisor
    bounds: dict[str, float] = {budget: bound}
    _, figures = search_in_small(costs, Budgets(latency_ms=1e9, **bounds))
    assert figures[figure] == pytest.approx(bound, rel=0.03)
    assert figures[f"{name}_multiplier"] > 0 == figures["multiplier"]


def test_what_the_runtime_refuses_is_driven_out_without_any_other_bound(
    small_spec: ChannelSpec, table_of: TableMaker
) -> None:
    costs = costs_of(small_spec, table_of, refuse_widest=True)
    probabilities, figures = search_in_small(costs, Budgets(latency_ms=1e9))
    assert float(probabilities[2][0]) < 0.05
    assert float(probabilities[2][1]) > 0.8  # the next best
    assert figures["expected_forbidden_operators"] < 0.05


def test_the_state_of_all_multipliers_survives_the_round_trip(
    small_spec: ChannelSpec, table_of: TableMaker
) -> None:
    costs = costs_of(small_spec, table_of, refuse_widest=True)
    asked = Budgets(latency_ms=0.01, weights_kib=0.01, energy_mj=0.001, macs_m=0.001, params_k=0.01)
    even = [torch.full((len(each),), 1 / len(each)) for each in costs.space.options]
    first, second = HeldBudgets(costs, asked), HeldBudgets(costs, asked)
    for _ in range(3):
        first.constrain(torch.ones(()), even)
    assert first.figures(even) != second.figures(even)
    second.load_state_dict(first.state_dict())
    assert first.figures(even) == second.figures(even)
    assert set(first.state_dict()) == {
        "latency",
        "weights",
        "energy",
        "macs",
        "params",
        "forbidden",
    }
