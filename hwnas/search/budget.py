"""Budgets, and holding them in a search by augmented Lagrangians: no weight is left to tune."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, final

from hwnas.latency.costs import ChainCost
from hwnas.latency.resources import KIB, UJ_PER_MJ

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from hwnas.latency.resources import SpaceCosts


@dataclass(frozen=True, slots=True, kw_only=True)
class Budgets:
    """What a network may take at most. Each bound may itself be met.

    Bounds that are no positive numbers are refused where the space is known, so that the message
    can name what its networks take: `hwnas.search.derive.check_budgets`.

    Attributes:
        latency_ms: Latency of a call, in milliseconds.
        memory_kib: Peak of live activations, in KiB; None leaves it free.
        weights_kib: Size of the weights, in KiB; None leaves it free.
        energy_mj: Energy of a call, in millijoules, held against the uncalibrated sum of isolated
            operators; None leaves it free.
        macs_m: Multiply-accumulates per image, in millions; None leaves them free.
        params_k: Trained parameters, in thousands; None leaves them free.
    """

    latency_ms: float
    memory_kib: float | None = None
    weights_kib: float | None = None
    energy_mj: float | None = None
    macs_m: float | None = None
    params_k: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AddedCost:
    """A cost that adds up along the chain, and can be bounded.

    Attributes:
        budget: Its bound's name in `Budgets`.
        name: What it is called.
        unit: Unit of the bound, behind a number.
        units: The same, written out.
        figure: Name of its expectation in the figures of a search.
        divisor: Units of the cost in one unit of the bound.
        cost: Finds it among the costs of a space.
        note: What must be said beside a figure of it.
    """

    budget: str
    name: str
    unit: str
    units: str
    figure: str
    divisor: float
    cost: Callable[[SpaceCosts], ChainCost]
    note: str = ""


ADDED_COSTS = (
    AddedCost(
        budget="latency_ms",
        name="latency",
        unit="ms",
        units="milliseconds",
        figure="expected_ms",
        divisor=1e3,
        cost=lambda costs: costs.latency.cost_us,
    ),
    AddedCost(
        budget="weights_kib",
        name="weights",
        unit="KiB of weights",
        units="KiB of weights",
        figure="expected_weights_kib",
        divisor=KIB,
        cost=lambda costs: costs.weights_bytes,
    ),
    AddedCost(
        budget="energy_mj",
        name="energy",
        unit="mJ",
        units="millijoules",
        figure="expected_uncalibrated_energy_mj",
        divisor=UJ_PER_MJ,
        cost=lambda costs: costs.energy_uj,
        note=", an uncalibrated sum",
    ),
    AddedCost(
        budget="macs_m",
        name="macs",
        unit="million multiply-accumulates",
        units="millions of multiply-accumulates",
        figure="expected_macs_m",
        divisor=1e6,
        cost=lambda costs: costs.macs,
    ),
    AddedCost(
        budget="params_k",
        name="params",
        unit="thousand parameters",
        units="thousands of parameters",
        figure="expected_params_k",
        divisor=1e3,
        cost=lambda costs: costs.params,
    ),
)
"""All such costs, the latency first. The peak of activations does not add up: see `HeldBudgets`."""


@dataclass(slots=True, kw_only=True)
class BudgetMultiplier:
    """Multiplier of the constraint cost / budget - 1 <= 0.

    To a loss f the term |f| (max(0, m + s c)^2 - m^2) / (2 s) is added for the relative excess
    c = cost / budget - 1, and after each step m <- max(0, m + r c): the multiplier grows for as
    long as the cost is over the budget and falls back once it is under. Excess and penalty have no
    unit and the penalty is weighed by the size of the loss, so that one setting serves all tasks.

    The textbook method minimizes fully between updates of m and takes r = s. Here m follows every
    single step, so r is far below s: the stiff part answers at once and lets go as soon as the cost
    is under the budget, the slow part finds the pressure that keeps it there. While the cost is far
    off, m moves by a bounded amount: what it would gather on the way would overshoot on arrival.

    Attributes:
        budget: The bound, in the unit of the cost.
        stiffness: s above.
        rate: r above.
        reach: Largest |c| that moves m.
        multiplier: m above.

    References:
        Rockafellar, "The multiplier method of Hestenes and Powell applied to convex programming"
        (1973): the form for inequalities.
    """

    budget: float
    stiffness: float = 50.0
    rate: float = 5.0
    reach: float = 0.02
    multiplier: float = 0.0

    def constrain(self, loss: Tensor, cost: Tensor) -> Tensor:
        """Return the loss with the penalty added."""
        return loss + self.penalty(loss, cost)

    def penalty(self, loss: Tensor, cost: Tensor) -> Tensor:
        """Return what is added to a loss, weighed by the loss's size."""
        excess = cost / self.budget - 1.0
        pressure = (self.multiplier + self.stiffness * excess).clamp(min=0.0)
        weighed: Tensor = (
            loss.detach().abs() * (pressure**2 - self.multiplier**2) / (2.0 * self.stiffness)
        )
        return weighed

    def update(self, cost: float) -> None:
        """Move the multiplier after a step that ended at this cost."""
        excess = cost / self.budget - 1.0
        bounded = min(max(excess, -self.reach), self.reach)
        self.multiplier = max(0.0, self.multiplier + self.rate * bounded)

    def state_dict(self) -> dict[str, float]:
        """Return what a checkpoint must keep."""
        return {"multiplier": self.multiplier}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Take back what a checkpoint kept."""
        self.multiplier = state["multiplier"]


@final
class HeldBudgets:
    """All budgets of a search, each held by a multiplier of its own.

    The costs that add up have exact expectations along the chain. The peak of activations has none;
    but a budget on it only forbids operators, so the expected number of forbidden operators is held
    at zero. Operators that the runtime refuses are among them. Beside the task of one, c is that
    number itself: the constraint is 1 + number <= 1.

    Args:
        costs: The costs of the space.
        budgets: The bounds.
        hold_latency: Whether to hold the latency; not where the loss is multiplied by it.

    Raises:
        LatencyTableError: A bound is given on what the table does not tell.
    """

    def __init__(self, costs: SpaceCosts, budgets: Budgets, *, hold_latency: bool = True) -> None:
        self._latency = costs.latency
        self.latency_multiplier = BudgetMultiplier(budget=budgets.latency_ms)
        # By name: the multiplier, the cost, its share of the multiplier's unit, and its figure.
        self._held: dict[str, tuple[BudgetMultiplier, ChainCost, float, str]] = {}
        for added in ADDED_COSTS:
            bound = getattr(budgets, added.budget)
            is_latency = added.name == "latency"
            if bound is None or (is_latency and not hold_latency):
                continue
            multiplier = self.latency_multiplier if is_latency else BudgetMultiplier(budget=bound)
            self._held[added.name] = (
                multiplier, added.cost(costs), 1 / added.divisor, added.figure,
            )  # fmt: skip
        forbidden = [~allowed for allowed in costs.allowed(budgets.memory_kib)]
        if any(mask.any() for mask in forbidden):
            count = ChainCost(tuple(mask.astype(float) for mask in forbidden), fixed=1.0)
            self._held["forbidden"] = (
                BudgetMultiplier(budget=1.0), count, 1.0, "expected_forbidden_operators",
            )  # fmt: skip

    def constrain(self, loss: Tensor, probabilities: Sequence[Tensor]) -> Tensor:
        """Return the loss with all penalties added, and let the multipliers follow."""
        constrained = loss
        for multiplier, cost, unit, _ in self._held.values():
            expected = cost.expected(probabilities) * unit
            constrained = constrained + multiplier.penalty(loss, expected)
            multiplier.update(float(expected.detach()))
        return constrained

    def figures(self, probabilities: Sequence[Tensor]) -> dict[str, float]:
        """Return expected costs and multipliers, by the names that a history has for them."""
        figures = {
            "expected_ms": float(self._latency.expected_ms(probabilities)),
            "multiplier": self.latency_multiplier.multiplier,
        }
        for name, (multiplier, cost, unit, figure) in self._held.items():
            if name != "latency":
                expected = float(cost.expected(probabilities)) * unit
                # The count of forbidden operators has one more, to be held beside the task of one.
                figures[figure] = expected - (cost.fixed if name == "forbidden" else 0.0)
                figures[f"{name}_multiplier"] = multiplier.multiplier
        return figures

    def state_dict(self) -> dict[str, dict[str, float]]:
        """Return what a checkpoint must keep."""
        return {name: multiplier.state_dict() for name, (multiplier, *_) in self._held.items()}

    def load_state_dict(self, state: dict[str, dict[str, float]]) -> None:
        """Take back what a checkpoint kept."""
        for name, (multiplier, *_) in self._held.items():
            multiplier.load_state_dict(state[name])
