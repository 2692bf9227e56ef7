from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hwnas.search.budget import BudgetMultiplier

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
