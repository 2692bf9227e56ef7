"""Holding a budget during a search: an augmented Lagrangian, so that no weight is left to tune."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(slots=True, kw_only=True)
class BudgetMultiplier:
    """Multiplier of the constraint cost / budget - 1 <= 0.

    The penalty is (max(0, m + s c)^2 - m^2) / (2 s) for the excess c, and after each step
    m <- max(0, m + r c): the multiplier grows for as long as the cost is over the budget and falls
    back once it is under.

    The textbook method minimizes fully between updates of m and takes r = s. Here m follows every
    single step, so r is far below s: the stiff part answers at once and lets go as soon as the cost
    is under the budget, the slow part finds the pressure that keeps it there.

    Attributes:
        budget: The bound, in the unit of the cost.
        stiffness: s above. The excess is relative to the budget and the search weighs the penalty
            by the size of its own loss, so that neither unit matters and one value can serve.
        rate: r above.
        multiplier: m above.

    References:
        Rockafellar, "The multiplier method of Hestenes and Powell applied to convex programming"
        (1973): the form for inequalities.
    """

    budget: float
    stiffness: float = 20.0
    rate: float = 0.5
    multiplier: float = 0.0

    def penalty(self, cost: Tensor) -> Tensor:
        """Return the penalty to add to the loss; its gradient is max(0, m + s c) / budget."""
        excess = cost / self.budget - 1.0
        pressure = (self.multiplier + self.stiffness * excess).clamp(min=0.0)
        penalty: Tensor = (pressure**2 - self.multiplier**2) / (2.0 * self.stiffness)
        return penalty

    def update(self, cost: float) -> None:
        """Move the multiplier after a step that ended at this cost."""
        excess = cost / self.budget - 1.0
        self.multiplier = max(0.0, self.multiplier + self.rate * excess)

    def state_dict(self) -> dict[str, float]:
        """Return what a checkpoint must keep."""
        return {"multiplier": self.multiplier}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Take back what a checkpoint kept."""
        self.multiplier = state["multiplier"]
