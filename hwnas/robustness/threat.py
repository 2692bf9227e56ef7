"""Threat models: what an adversary may do, with its size in pixel units.

Images hold pixels in [0, 1] and normalization is inside the model, so one epsilon means the same
for every model. `Eps` is a type of its own, so that a bare number, in 0-255 units or in normalized
space, does not drift into an attack unnoticed.

The one exception has a name, `protocol="normalized"`, and is there to compare with tables of papers
alone: see `ThreatModel`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Literal, NewType

import torch

from hwnas.core.errors import ConfigError, DataError

if TYPE_CHECKING:
    from torch import Tensor

Eps = NewType("Eps", float)
"""Size of a perturbation in pixel units. In l_inf: the largest change of any pixel, in [0, 1). In
l_2: the root of the summed squares of all changes, which may exceed 1."""

Norm = Literal["linf", "l2"]
"""How the size of a perturbation is measured, over all pixels and channels of one image."""

Protocol = Literal["pixel", "normalized"]
"""The space that an epsilon and the box [0, 1] are meant in. See `ThreatModel`."""

# Madry et al. 2018: 2.5 eps / steps lets the attack cross the ball and still settle.
_STEPS_TO_CROSS = 2.5


def parse_eps(value: float | str, norm: Norm = "linf") -> Eps:
    """Read an epsilon as people write it.

    Args:
        value: A number, or text: a number, or a fraction such as "8/255". In [0, 1) for l_inf,
            above 0 for l_2.
        norm: The norm that it is a size in.

    Raises:
        ConfigError: Not a number, negative, or too large to be in pixel units.

    >>> parse_eps("8/255") == parse_eps(8 / 255)
    True
    """
    bounds = "in [0, 1)" if norm == "linf" else "above 0"
    example = "8/255" if norm == "linf" else "0.5"
    try:
        eps = float(Fraction(value.replace(" ", ""))) if isinstance(value, str) else float(value)
    except (ValueError, ZeroDivisionError, OverflowError) as error:
        raise ConfigError(
            f"eps {value!r} is not a number",
            hint=f'write a number or a fraction, e.g. "{example}"',
        ) from error
    if not math.isfinite(eps) or eps < 0 or (norm == "l2" and eps == 0):
        raise ConfigError(
            f"eps {value} is not a size", hint=f'write a number {bounds}, e.g. "{example}"'
        )
    if norm == "linf" and eps >= 1:
        suggestion = f"{eps:g}/255" if eps < 255 else "8/255"
        raise ConfigError(
            f"eps {value} is not in pixel units: pixels live in [0, 1]",
            hint=f'did you mean "{suggestion}"?',
        )
    return Eps(eps)


@dataclass(frozen=True, slots=True, kw_only=True)
class ThreatModel:
    """What the adversary may do, and how hard the gradient attacks try.

    Attributes:
        norm: Norm of the perturbation.
        eps: Its bound as written in a configuration: 0.03 or "8/255".
        steps: Gradient steps of PGD, MI-FGSM and CW. AutoAttack's parts have their own.
        restarts: Random starts of PGD and CW; each sample keeps its worst.
        step_size: Length of a step, written as `eps`; None takes 2.5 eps / steps.
        protocol: "pixel": images hold pixels in [0, 1], and eps is in their units. "normalized":
            eps and the box [0, 1] are applied behind the model's normalization, as the released
            code of RNAS-CL does. With the usual standard deviations that is about a quarter of the
            same number in pixels, and its box cuts off all that is below the mean: such a figure
            compares with that paper's table alone, and every output names the protocol.

    References:
        Nath et al., "RNAS-CL: Robust Neural Architecture Search by Cross-Layer Knowledge
        Distillation", 2023; its released evaluation code for "normalized".
    """

    norm: Norm = "linf"
    eps: float | str = "8/255"
    steps: int = 20
    restarts: int = 1
    step_size: float | str | None = None
    protocol: Protocol = "pixel"

    def __post_init__(self) -> None:
        parse_eps(self.eps, self.norm)
        if self.steps < 1 or self.restarts < 1:
            raise ConfigError(
                f"an attack needs at least 1 step and 1 restart, not {self.steps} and "
                f"{self.restarts}"
            )
        if self.step_size is not None and not parse_eps(self.step_size, self.norm) > 0:
            raise ConfigError("step_size 0 moves nothing", hint="leave it out for 2.5 eps / steps")

    @property
    def eps_pixels(self) -> Eps:
        """The bound as a number: in pixel units unless the protocol is "normalized"."""
        return parse_eps(self.eps, self.norm)

    @property
    def step_size_pixels(self) -> float:
        """The length of a step, in the units of `eps_pixels`."""
        if self.step_size is None:
            return default_step_size(self.eps_pixels, self.steps)
        return parse_eps(self.step_size, self.norm)


def default_step_size(eps: Eps, steps: int) -> float:
    """Return the step length in pixel units that suits a number of steps."""
    return _STEPS_TO_CROSS * eps / steps


def check_images(images: Tensor) -> None:
    """Refuse images that an epsilon in pixel units means nothing for.

    Args:
        images: Any shape.

    Raises:
        DataError: A pixel lies outside [0, 1] or is not a number.
    """
    if not images.numel():
        return
    low, high = (float(bound) for bound in torch.aminmax(images.detach()))
    # Written so that NaN, which compares as false, is refused too.
    if not (low >= 0 and high <= 1):
        raise DataError(
            f"an attack needs pixels in [0, 1]; these are in [{low:g}, {high:g}]",
            hint="scale the images to [0, 1] and put the normalization into the model",
        )
