"""Rules of functions of one value."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional

from hwnas.robustness.bounds import elementwise as functions
from hwnas.robustness.bounds.bounded import Bounded
from hwnas.robustness.bounds.rules.refusals import refuse
from hwnas.robustness.bounds.steps import elementwise, linear

if TYPE_CHECKING:
    from collections.abc import Callable

    from hwnas.robustness.bounds.rules.refusals import Table


def _applied(function: functions.Elementwise) -> Callable[[Bounded], Bounded]:
    """Return the rule of a function of one value."""

    def rule(input: Bounded) -> Bounded:
        return elementwise(function, input)

    return rule


def _clamp(input: Bounded, min: Any = None, max: Any = None) -> Bounded:
    if isinstance(min, Bounded | Tensor) or isinstance(max, Bounded | Tensor):
        refuse("its limits are tensors")
    if min is not None and max is not None and min > max:
        refuse("its limits are crossed")
    function = functions.PiecewiseLinear(
        lambda at: torch.clamp(at, min, max),
        convex=None if min is None else float(min),
        concave=None if max is None else float(max),
    )
    return elementwise(function, input)


def _clamp_min(input: Bounded, min: Any) -> Bounded:
    return _clamp(input, min)


def _clamp_max(input: Bounded, max: Any) -> Bounded:
    return _clamp(input, None, max)


def _hardtanh(input: Bounded, min_val: float = -1.0, max_val: float = 1.0) -> Bounded:
    return _clamp(input, min_val, max_val)


def _leaky_relu(input: Bounded, negative_slope: float = 0.01) -> Bounded:
    if not 0 <= negative_slope <= 1:
        refuse(f"its slope {negative_slope} is not between 0 and 1")
    function = functions.PiecewiseLinear(
        lambda at: functional.leaky_relu(at, negative_slope), convex=0.0
    )
    return elementwise(function, input)


def _tanh(input: Bounded) -> Bounded:
    # tanh(x) = 2 sigmoid(2 x) - 1
    inner = elementwise(functions.SIGMOID, linear(lambda one: 2.0 * one, input))
    return linear(lambda one: 2.0 * one - 1.0, inner, magnitude=lambda one: 2.0 * one)


FUNCTIONS: Table = (
    (_applied(functions.RELU), ("relu",)),
    (_applied(functions.RELU6), ("relu6",)),
    (_applied(functions.ABSOLUTE), ("abs", "absolute", "__abs__")),
    (_applied(functions.HARDSIGMOID), ("hardsigmoid",)),
    (_applied(functions.HARDSWISH), ("hardswish",)),
    (_applied(functions.SIGMOID), ("sigmoid",)),
    (_clamp, ("clamp", "clip")),
    (_clamp_min, ("clamp_min",)),
    (_clamp_max, ("clamp_max",)),
    (_hardtanh, ("hardtanh",)),
    (_leaky_relu, ("leaky_relu",)),
    (_tanh, ("tanh",)),
)
