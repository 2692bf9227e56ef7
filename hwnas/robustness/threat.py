"""Threat models: what an adversary may do, with its size in pixel units.

Images hold pixels in [0, 1] and normalization is inside the model, so one epsilon means the same
for every model. `Eps` is a type of its own, so that a bare number, in 0-255 units or in normalized
space, does not drift into an attack unnoticed.
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
"""Size of a perturbation in pixel units: the largest change of any pixel, in [0, 1)."""

# Madry et al. 2018: 2.5 eps / steps lets the attack cross the ball and still settle.
_STEPS_TO_CROSS = 2.5


def parse_eps(value: float | str) -> Eps:
    """Read an epsilon as people write it.

    Args:
        value: A number in [0, 1), or text: a number, or a fraction such as "8/255".

    Raises:
        ConfigError: Not a number, negative, or 1 and more, which is not in pixel units.

    >>> parse_eps("8/255") == parse_eps(8 / 255)
    True
    """
    try:
        eps = float(Fraction(value.replace(" ", ""))) if isinstance(value, str) else float(value)
    except (ValueError, ZeroDivisionError, OverflowError) as error:
        raise ConfigError(
            f"eps {value!r} is not a number", hint='write a number or a fraction, e.g. "8/255"'
        ) from error
    if not math.isfinite(eps) or eps < 0:
        raise ConfigError(
            f"eps {value} is not a size", hint='write a number in [0, 1), e.g. "8/255"'
        )
    if eps >= 1:
        suggestion = f"{eps:g}/255" if eps < 255 else "8/255"
        raise ConfigError(
            f"eps {value} is not in pixel units: pixels live in [0, 1]",
            hint=f'did you mean "{suggestion}"?',
        )
    return Eps(eps)


@dataclass(frozen=True, slots=True, kw_only=True)
class ThreatModel:
    """What the adversary may do, and how hard the white-box attack tries.

    Attributes:
        norm: Norm of the perturbation: the largest change of any pixel.
        eps: Its bound as written in a configuration: 0.03 or "8/255".
        steps: Gradient steps of the attack.
        restarts: Random starts of the attack; each sample keeps its worst.
        step_size: Length of a step, written as `eps`; None takes 2.5 eps / steps.
    """

    norm: Literal["linf"] = "linf"
    eps: float | str = "8/255"
    steps: int = 20
    restarts: int = 1
    step_size: float | str | None = None

    def __post_init__(self) -> None:
        parse_eps(self.eps)
        if self.steps < 1 or self.restarts < 1:
            raise ConfigError(
                f"an attack needs at least 1 step and 1 restart, not {self.steps} and "
                f"{self.restarts}"
            )
        if self.step_size is not None and not parse_eps(self.step_size) > 0:
            raise ConfigError("step_size 0 moves nothing", hint="leave it out for 2.5 eps / steps")

    @property
    def eps_pixels(self) -> Eps:
        """The bound in pixel units."""
        return parse_eps(self.eps)

    @property
    def step_size_pixels(self) -> float:
        """The length of a step in pixel units."""
        if self.step_size is None:
            return default_step_size(self.eps_pixels, self.steps)
        return parse_eps(self.step_size)


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
