"""Criteria that attacks which work must meet: a figure, its limit, and what a failure means."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from hwnas.robustness.signs import MaskingSigns

Relation = Literal["at most", "at least"]

BLACK_BOX_GAP = "black_box_gap"

SLACK_POINTS = 2.0
"""Points by which two attacks of equal strength may differ: each draws its own random starts."""

# A limit that is met to the last digit must not fail by the rounding of a subtraction.
_ROUNDING = 1e-9
# Of few samples, two may fall either way by another random start, however many points that is.
_SLACK_SAMPLES = 2
# Any working attack gains far more; 0 would pass a network that answers the same to everything.
_LEAST_GAIN = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One check and how it came out.

    Attributes:
        name: Its name, as in reports and scripts.
        passed: Whether the figure keeps the limit.
        figure: What was found; None where it could not be computed, which never passes.
        relation: On which side of the limit the figure must be.
        limit: The bound; it may itself be met.
        unit: Unit of figure and limit.
        meaning: What a failure says, and which figures then mean nothing.
    """

    name: str
    passed: bool
    figure: float | None
    relation: Relation
    limit: float
    unit: str
    meaning: str

    def __str__(self) -> str:
        figure = "not computable" if self.figure is None else f"{self.figure:.4g}"
        return f"{self.name}: {figure}, allowed {self.relation} {self.limit:.4g} {self.unit}"


def judged(figure: float | None, relation: Relation, limit: float) -> tuple[float | None, bool]:
    """Return a figure as it is recorded, and whether it keeps its limit.

    NaN and infinity are recorded as None: JSON has no such numbers, and they keep no limit.
    """
    if figure is None or not math.isfinite(figure):
        return None, False
    over = figure - limit if relation == "at most" else limit - figure
    return figure, over <= _ROUNDING


def at_most(name: str, figure: float | None, limit: float, *, unit: str, meaning: str) -> Check:
    """Check a figure that must not exceed its limit."""
    return _check(name, figure, "at most", limit, unit, meaning)


def at_least(name: str, figure: float | None, limit: float, *, unit: str, meaning: str) -> Check:
    """Check a figure that must reach its limit."""
    return _check(name, figure, "at least", limit, unit, meaning)


def slack_of(n: int, points: float = SLACK_POINTS) -> float:
    """Return by how many points two attacks of equal strength may differ on n samples."""
    return max(points, 100 * _SLACK_SAMPLES / n)


def masking_checks(signs: MaskingSigns, rise_points: float) -> tuple[Check, ...]:
    """Check that an attack moves accuracy and loss as it must when it is made stronger or blind.

    Args:
        signs: What was measured.
        rise_points: Accuracy that may come back, in points.
    """
    gain: float | None = None
    if signs.attacked_loss is not None and signs.noise_loss is not None:
        gain = signs.attacked_loss - signs.noise_loss
    return (
        more_steps_check(signs.attacked, signs.more_steps, rise_points),
        larger_eps_check(signs.attacked, signs.larger_eps, rise_points),
        unbounded_eps_check(signs.unbounded, signs.majority),
        at_least(
            "attack_beats_noise",
            gain,
            _LEAST_GAIN,
            unit="cross-entropy",
            meaning="the attack raises the loss no more than random noise does: it has no gradient "
            "to follow",
        ),
    )


def more_steps_check(attacked: float, stronger: float, rise_points: float) -> Check:
    """Check the accuracy under an attack of twice the steps, or queries."""
    return at_most(
        "more_steps",
        100 * (stronger - attacked),
        rise_points,
        unit="points",
        meaning="twice the steps gave accuracy back: the attack does not converge, and what it "
        "leaves is no robust accuracy",
    )


def larger_eps_check(attacked: float, stronger: float, rise_points: float) -> Check:
    """Check the accuracy under an attack of twice the eps."""
    return at_most(
        "larger_eps",
        100 * (stronger - attacked),
        rise_points,
        unit="points",
        meaning="twice the eps gave accuracy back: what the attack follows misleads it, and what "
        "it leaves is no robust accuracy",
    )


def unbounded_eps_check(attacked: float, majority: float) -> Check:
    """Check the accuracy under an attack that can make any image gray."""
    return at_most(
        "unbounded_eps",
        100 * attacked,
        100 * majority,
        unit="percent accuracy",
        meaning="with eps 0.5 any image can be made gray, yet the class is still seen: what the "
        "attack follows misleads it, at every eps",
    )


def noise_check(attacked: Mapping[str, float], noise: float, slack_points: float) -> Check:
    """Check that random noise is weaker than each attack.

    Args:
        attacked: Accuracy under each attack, by its name.
        noise: Accuracy under noise of the same eps, on the same samples.
        slack_points: Points by which noise may win.
    """
    weakest = max(attacked, key=lambda name: attacked[name])
    return at_most(
        "attack_beats_noise",
        100 * (attacked[weakest] - noise),
        slack_points,
        unit="points",
        meaning=f"random noise breaks more than {weakest} does: it has nothing to follow, and its "
        "figure means nothing",
    )


def iterative_check(
    accuracies: Mapping[str, float], single_step: float, slack_points: float
) -> Check:
    """Check that no iterative attack is weaker than one step.

    Args:
        accuracies: Accuracy under each iterative attack, by its name.
        single_step: Accuracy under FGSM, on the same samples.
        slack_points: Points by which it may win.
    """
    weakest = max(accuracies, key=lambda name: accuracies[name])
    return at_most(
        "iterative_beats_single_step",
        100 * (accuracies[weakest] - single_step),
        slack_points,
        unit="points",
        meaning=f"one step of FGSM breaks more than all steps of {weakest}: gradients mislead it, "
        "and its figure means nothing",
    )


def black_box_check(
    white_box: NDArray[np.bool_], black_box: NDArray[np.bool_], slack_points: float
) -> Check:
    """Check that a black box finds nothing that gradients did not.

    Args:
        white_box: (N,): broken by any attack with gradients.
        black_box: (N,): broken by scores alone.
        slack_points: Points that it may take on its own.
    """
    return at_most(
        BLACK_BOX_GAP,
        100 * float(np.mean(black_box & ~white_box)),
        slack_points,
        unit="points",
        meaning="a black box breaks what no attack with gradients did: gradients are masked, and "
        "the figures of PGD, APGD, FAB and CW are too high; the worst case may be too",
    )


def _check(
    name: str, figure: float | None, relation: Relation, limit: float, unit: str, meaning: str
) -> Check:
    figure, passed = judged(figure, relation, limit)
    return Check(
        name=name, passed=passed, figure=figure, relation=relation, limit=limit, unit=unit,
        meaning=meaning,
    )  # fmt: skip
