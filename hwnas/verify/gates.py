"""Gates: a figure, the tolerance that it must keep, and what it means when it does not."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from hwnas.core.errors import ConfigError, GateFailedError
from hwnas.robustness import criteria

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """One gate and how it came out.

    Attributes:
        name: Its name, as in reports and scripts.
        passed: Whether the figure keeps the tolerance.
        figure: What was found; None where it could not be computed, which never passes.
        relation: On which side of the tolerance the figure must be.
        tolerance: The bound; it may itself be met.
        unit: Unit of figure and tolerance.
        meaning: What a failure says about the engine.
    """

    name: str
    passed: bool
    figure: float | None
    relation: Literal["at most", "at least"]
    tolerance: float
    unit: str
    meaning: str

    def __str__(self) -> str:
        figure = "not computable" if self.figure is None else f"{self.figure:.4g}"
        unit = f" {self.unit}" if self.unit else ""
        return f"{self.name}: {figure}, allowed {self.relation} {self.tolerance:.4g}{unit}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Tolerances:
    """What each gate allows. The defaults are for FP32 engines; others need wider parity.

    "Points" are percentage points of accuracy.

    Attributes:
        max_abs_diff: Largest difference of any logit. Sound FP32 engines of the demo's networks
            differ by less than 2e-5; `relative_l2` catches damage too small for this.
        relative_l2: Norm of the difference over the norm of the logits: holds at any scale.
        agreement: Least share of equal predictions on clean images.
        tie_rate: Largest share of images whose two top logits are equal.
        clean_drop_points: Clean accuracy that the engine may lose against its twin.
        robust_drop_points: Accuracy on replayed adversarial examples that it may lose.
        replay_gain_points: ... and that it may gain. Resisting what breaks the twin is no
            robustness: the examples no longer fit the engine, and an attacker would make new ones.
        adversarial_agreement: Least share of equal predictions on adversarial images.
        black_box_gap_points: Accuracy that a black box may take beyond the replayed examples. Two
            attacks never break quite the same samples; more than this says that gradients mislead.
        rise_points: Accuracy that may come back when the attack is made stronger: one or two
            samples of a hundred may, by another random start.
        latency_over_budget: Share of the budget that the median may lie above it. Medians of one
            network, measured minutes apart on a shared machine, differ by a few percent; so an
            exact bound would fail sound engines at random. Set 0 on a quiet device.
        energy_over_budget: The same for the median of the metered energy. Memory and weights are
            counted, not measured: their budgets hold exactly.
    """

    max_abs_diff: float = 1e-3
    relative_l2: float = 1e-4
    agreement: float = 0.995
    tie_rate: float = 0.01
    clean_drop_points: float = 0.5
    robust_drop_points: float = 1.0
    replay_gain_points: float = 1.0
    adversarial_agreement: float = 0.99
    black_box_gap_points: float = 2.0
    rise_points: float = 2.0
    latency_over_budget: float = 0.05
    energy_over_budget: float = 0.05

    def __post_init__(self) -> None:
        shares = ("agreement", "adversarial_agreement", "tie_rate")
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if not math.isfinite(value) or value < 0:
                raise ConfigError(f"tolerance {field.name} must be 0 or more, not {value}")
            if field.name in shares and value > 1:
                raise ConfigError(
                    f"tolerance {field.name} is a share, so at most 1, not {value}",
                    hint=f"did you mean {value / 100:g}?",
                )


def at_most(name: str, figure: float | None, tolerance: float, *, unit: str, meaning: str) -> Gate:
    """Judge a figure that must not exceed its tolerance."""
    return gate_of_check(criteria.at_most(name, figure, tolerance, unit=unit, meaning=meaning))


def at_least(name: str, figure: float | None, tolerance: float, *, unit: str, meaning: str) -> Gate:
    """Judge a figure that must reach its tolerance."""
    return gate_of_check(criteria.at_least(name, figure, tolerance, unit=unit, meaning=meaning))


def gate_of_check(check: criteria.Check) -> Gate:
    """Make a gate of a check: its limit is a tolerance of the engine."""
    return Gate(
        name=check.name,
        passed=check.passed,
        figure=check.figure,
        relation=check.relation,
        tolerance=check.limit,
        unit=check.unit,
        meaning=check.meaning,
    )


def require(gates: Sequence[Gate]) -> None:
    """Do nothing where all gates are passed.

    Raises:
        GateFailedError: Names each failed gate with its figure, tolerance and meaning.
    """
    failed = [gate for gate in gates if not gate.passed]
    if failed:
        lines = "".join(f"\n  {gate}\n    {gate.meaning}" for gate in failed)
        raise GateFailedError(
            f"the engine failed {len(failed)} of {len(gates)} gates:{lines}",
            hint="export the engine again from its twin; where the figures are what you accept, "
            "widen the tolerances of `verify`",
        )
