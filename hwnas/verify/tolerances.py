"""What each gate allows, by the precision of the engine."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Self

from hwnas.core.errors import ConfigError, nearest

_SHARES = ("agreement", "adversarial_agreement", "tie_rate", "distinct_logits")


@dataclass(frozen=True, slots=True, kw_only=True)
class Tolerances:
    """What each gate allows. The defaults are for FP32 engines: see `for_precision` for others.

    "Points" are percentage points of accuracy.

    Attributes:
        max_abs_diff: Largest difference of any logit. Sound FP32 engines of the demo's networks
            differ by less than 2e-5; `relative_l2` catches damage too small for this.
        relative_l2: Norm of the difference over the norm of the logits: holds at any scale.
        margin_drift: 99th percentile of the change of the margin between the two top logits, over
            the median margin of the twin: what an attacker gains or loses where it decides.
        agreement: Least share of equal predictions on clean images.
        tie_rate: Largest share of images whose two top logits are equal.
        distinct_logits: Least share of the different values among the twin's logits, of which the
            first 1,000 count, that the engine gives. An output in 8 bits has at most 256.
        clean_drop_points: Clean accuracy that the engine may lose against its twin.
        robust_drop_points: Accuracy on replayed adversarial examples that it may lose.
        replay_gain_points: ... and that it may gain. Resisting what breaks the twin is no
            robustness: the examples no longer fit the engine, and an attacker would make new ones.
        adversarial_agreement: Least share of equal predictions on adversarial images.
        black_box_gap_points: Accuracy that a black box may take beyond the replayed examples. Two
            attacks never break quite the same samples; more than this says that gradients mislead.
        square_gap_points: Accuracy that the black box may take beyond all attacks by gradients, of
            the twin and of the engine together.
        adaptive_gap_points: Accuracy that attacks made for the engine itself may take beyond the
            replayed examples of as strong an attack on the twin.
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
    margin_drift: float = 1e-3
    agreement: float = 0.995
    tie_rate: float = 0.01
    distinct_logits: float = 0.5
    clean_drop_points: float = 0.5
    robust_drop_points: float = 1.0
    replay_gain_points: float = 1.0
    adversarial_agreement: float = 0.99
    black_box_gap_points: float = 2.0
    square_gap_points: float = 2.0
    adaptive_gap_points: float = 1.0
    rise_points: float = 2.0
    latency_over_budget: float = 0.05
    energy_over_budget: float = 0.05

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if not math.isfinite(value) or value < 0:
                raise ConfigError(f"tolerance {field.name} must be 0 or more, not {value}")
            if field.name in _SHARES and value > 1:
                raise ConfigError(
                    f"tolerance {field.name} is a share, so at most 1, not {value}",
                    hint=f"did you mean {value / 100:g}?",
                )

    @classmethod
    def for_precision(cls, precision: str) -> Self:
        """Return what an engine of a precision is allowed by default.

        Rounding moves logits, and the images whose margin is smaller than the move change their
        class: that many may differ, whatever the network. What stays as it is in FP32: the rate of
        ties and the count of distinct logits, as attacks that follow scores are blind on a coarse
        output; and what attacks may find on the engine beyond its twin's examples, as that is no
        matter of rounding.

        fp16: 11 bits of mantissa round by 5e-4, layer upon layer. A sound engine of a robust digit
        network lay 3e-4 from its twin in the relative norm and decided alike everywhere; weights
        beyond the range of fp16 move it by more than 1e-2. bf16 has three bits less.

        int8: a step of the activations is 1/255 of their range, and what that does grows with depth
        and with how unlike the channels are. The same digit network lay 3e-3 away and gave 99.5 %
        of the adversarial predictions; a robust CIFAR-10 network of 89,000 parameters withstood 2.4
        points more of the replayed examples, though a new attack showed it to be no more robust,
        and a standard one gave 98.6 % of the clean predictions. The tolerances leave room beyond;
        a wrong scale, zero point or range of one layer moves the logits by more.

        Raises:
            ConfigError: The precision is unknown.
        """
        if precision not in _OF_PRECISION:
            similar = nearest(precision, _OF_PRECISION)
            known = f"known: {', '.join(_OF_PRECISION)}"
            raise ConfigError(
                f"there are no tolerances for precision `{precision}`",
                hint=f"did you mean `{similar[0]}`? {known}" if similar else known,
            )
        return cls(**_OF_PRECISION[precision])

    def at_precision(self, precision: str) -> Self:
        """Return these for an engine of a precision: what was set here, else its defaults.

        What equals the default of FP32 counts as not set.

        Raises:
            ConfigError: The precision is unknown.
        """
        default = type(self)()
        set_here = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if getattr(self, field.name) != getattr(default, field.name)
        }
        return dataclasses.replace(type(self).for_precision(precision), **set_here)


_HALF: dict[str, float] = {
    "max_abs_diff": 0.1,
    "relative_l2": 1e-2,
    "margin_drift": 0.05,
    "agreement": 0.99,
    "adversarial_agreement": 0.985,
}
_OF_PRECISION: dict[str, dict[str, float]] = {
    "fp32": {},
    "fp16": _HALF,
    "bf16": {**_HALF, "max_abs_diff": 0.5, "relative_l2": 3e-2, "margin_drift": 0.2},
    "int8": {
        "max_abs_diff": 3.0,
        "relative_l2": 0.15,
        "margin_drift": 1.0,
        "agreement": 0.96,
        "clean_drop_points": 1.0,
        "robust_drop_points": 2.0,
        "replay_gain_points": 3.0,
        "adversarial_agreement": 0.92,
    },
}
