"""Holding a budget during a search: an augmented Lagrangian, so that no weight is left to tune."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


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
        excess = cost / self.budget - 1.0
        pressure = (self.multiplier + self.stiffness * excess).clamp(min=0.0)
        penalty = (pressure**2 - self.multiplier**2) / (2.0 * self.stiffness)
        constrained: Tensor = loss + loss.detach().abs() * penalty
        return constrained

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
