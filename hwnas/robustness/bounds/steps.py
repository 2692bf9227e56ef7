"""The kinds of steps that every network breaks down into, and how bounds go through each.

Linear maps, functions of one value, products of two values, and maxima over windows. Intervals go
forward as a step is made; linear bounds go backward through `pull_back`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, final

import torch

from hwnas.core.errors import UnboundedOperationError
from hwnas.robustness.bounds.bounded import Bounded, Step
from hwnas.robustness.bounds.interval import Interval

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from hwnas.robustness.bounds.elementwise import Elementwise


def linear(
    affine: Callable[..., Tensor],
    *inputs: Bounded,
    magnitude: Callable[..., Tensor] | None = None,
    transposed: Callable[[Tensor], Tensor] | None = None,
    constant: Tensor | float | None = None,
    is_diagonal: bool = False,
) -> Bounded:
    """Apply an affine map, jointly to all inputs.

    Its interval is exact for each output alone: the map of the centers, and the map of the radii
    with the absolute values of its coefficients.

    Args:
        affine: Maps tensors of the inputs' shapes on; it is linear plus a constant in all of them
            together.
        inputs: What it is applied to.
        magnitude: The same with absolute values of the coefficients and without the constant. None
            takes `affine` itself: no coefficient is negative, and there is no constant.
        transposed: Maps coefficients of the output, (functions, batch, *shape), to those of each
            input. None has it found by differentiation, which is slower.
        constant: What `affine` gives for zeros, where `transposed` is given; None is nothing.
        is_diagonal: Each element of the output is of one element of the one input.
    """
    centers = [value.interval.center for value in inputs]
    radii = [value.interval.radius for value in inputs]
    interval = Interval.from_center(affine(*centers), (magnitude or affine)(*radii))
    step = LinearStep(affine, inputs, transposed, constant)
    (first, *others) = inputs
    return _made(
        interval,
        step,
        is_box=is_diagonal and first.is_box,
        is_exact=not others and (first.is_box or (is_diagonal and first.is_exact)),
    )


def elementwise(function: Elementwise, value: Bounded) -> Bounded:
    """Apply a function to each element."""
    interval = value.refine(function.bends)
    return _made(function.over(interval), _Elementwise(function, value, interval))


def product(one: Bounded, other: Bounded) -> Bounded:
    """Multiply two bounded values; shapes are broadcast.

    Its ends are among the four products of ends.
    """
    first, second = one.refine(_everywhere), other.refine(_everywhere)
    products = [a * b for a in (first.lower, first.upper) for b in (second.lower, second.upper)]
    lower = torch.minimum(
        torch.minimum(products[0], products[1]), torch.minimum(products[2], products[3])
    )
    upper = torch.maximum(
        torch.maximum(products[0], products[1]), torch.maximum(products[2], products[3])
    )
    return _made(Interval.from_ends(lower, upper), _Product(one, other, first, second))


def largest(gather: Callable[[Tensor], tuple[Tensor, Tensor]], value: Bounded) -> Bounded:
    """Take the largest element of each window.

    Args:
        gather: Maps (batch, channels, height, width) to the maxima of the windows and to where they
            are found, as indices into the flattened height and width.
        value: (batch, channels, height, width).
    """
    interval = value.refine(_everywhere)
    lower, places = gather(interval.lower)
    upper, _ = gather(interval.upper)
    return _made(Interval.from_ends(lower, upper), _Largest(value, places, upper))


@final
class LinearStep(Step):
    """An affine map: its linear part is transposed."""

    def __init__(
        self,
        affine: Callable[..., Tensor],
        inputs: tuple[Bounded, ...],
        transposed: Callable[[Tensor], Tensor] | None,
        constant: Tensor | float | None,
    ) -> None:
        self.inputs = inputs
        self._affine, self._transposed, self._constant = affine, transposed, constant

    def pull_back(self, coefficients: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
        """Transpose: linear functions of the output are linear functions of the inputs."""
        if self._transposed is None:
            zeros = [torch.zeros_like(value.interval.center) for value in self.inputs]
            pair: Any = torch.func.vjp(self._affine, *zeros)
            constant, transposed = pair
            parts: tuple[Tensor, ...] = torch.func.vmap(transposed)(coefficients)
            return parts, dot(coefficients, constant)
        part = self._transposed(coefficients)
        constants = coefficients.new_zeros(coefficients.shape[:2])
        if self._constant is not None:
            constants = dot(coefficients, torch.as_tensor(self._constant).to(coefficients))
        return (part,) * len(self.inputs), constants


@final
class _Elementwise(Step):
    """Each element is bounded by a line below, where its coefficient is positive, and one above."""

    def __init__(self, function: Elementwise, value: Bounded, interval: Interval) -> None:
        self.inputs = (value,)
        self._function, self._interval = function, interval
        self._lines: tuple[Interval, Interval] | None = None

    def pull_back(self, coefficients: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
        if self._lines is None:
            below, least, above, most = self._function.lines(
                self._interval.lower, self._interval.upper
            )
            self._lines = Interval.from_ends(below, above), Interval.from_ends(least, most)
        slopes, intercepts = self._lines
        # With m and r of the two slopes: a below is a m - |a| r for a > 0, and a above likewise.
        sizes = coefficients.abs()
        constants = dot(coefficients, intercepts.center) - dot(sizes, intercepts.radius)
        found = torch.addcmul(coefficients * slopes.center, sizes, slopes.radius, value=-1.0)
        return (found,), constants


@final
class _Product(Step):
    """x y = cx cy + cy (x - cx) + cx (y - cy) + (x - cx) (y - cy), with centers c.

    The last term is within the product of the radii, so that x y is between two parallel planes:
    the means of McCormick's two below and of his two above, which are as tight at the center.
    """

    def __init__(self, one: Bounded, other: Bounded, first: Interval, second: Interval) -> None:
        self.inputs = (one, other)
        self._intervals = (first, second)

    def pull_back(self, coefficients: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
        first, second = self._intervals
        found = (
            _summed_to(coefficients * second.center, first.center),
            _summed_to(coefficients * first.center, second.center),
        )
        centers, radii = first.center * second.center, first.radius * second.radius
        return found, -dot(coefficients, centers) - dot(coefficients.abs(), radii)


@final
class _Largest(Step):
    """The maximum is at least the element with the largest lower end, and at most the constant."""

    def __init__(self, value: Bounded, places: Tensor, upper: Tensor) -> None:
        self.inputs = (value,)
        self._places, self._upper = places, upper

    def pull_back(self, coefficients: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
        positive, negative = coefficients.clamp(min=0), coefficients.clamp(max=0)
        shape = self.inputs[0].shape
        functions = len(coefficients)
        found = positive.new_zeros(functions, *shape).flatten(3)  # (S, N, C, H * W)
        places = self._places.flatten(2).expand(functions, -1, -1, -1)
        found = found.scatter_add(3, places, positive.flatten(3))
        return (found.view(functions, *shape),), dot(negative, self._upper)


def itself(coefficients: Tensor) -> Tensor:
    """Transpose the identity."""
    return coefficients


def folded(coefficients: Tensor) -> Tensor:
    """Make one batch of functions and batch: (S, N, ...) -> (S * N, ...)."""
    return coefficients.flatten(0, 1)


def unfolded(coefficients: Tensor, functions: int) -> Tensor:
    """Take it apart again."""
    return coefficients.view(functions, -1, *coefficients.shape[1:])


def rows_of(coefficients: Tensor) -> Tensor:
    """Return (S, N, D) of (S, N, ...): a view of features that are channels last."""
    if coefficients.ndim == 5:
        coefficients = coefficients.movedim(2, -1)
    return coefficients.flatten(2) if coefficients.ndim > 2 else coefficients[..., None]


def _everywhere(lower: Tensor, upper: Tensor) -> Tensor:
    return torch.ones_like(lower, dtype=torch.bool)


def _made(
    interval: Interval, step: Step, *, is_box: bool = False, is_exact: bool = False
) -> Bounded:
    recording = step.inputs[0].recording
    shape = interval.shape
    if not shape or shape[0] != recording.batch:
        raise UnboundedOperationError(
            f"it makes {tuple(shape)} of a batch of {recording.batch}, so it mixes its images"
        )
    kept = recording.keeps_steps or len(shape) <= 2
    return Bounded(interval, recording, step if kept else None, is_box=is_box, is_exact=is_exact)


def dot(coefficients: Tensor, values: Tensor) -> Tensor:
    """Sum products over all but functions and batch: (S, N, ...) with (N, ...) -> (S, N)."""
    rows = rows_of(coefficients)
    return torch.einsum("snd,nd->sn", rows, rows_of(values.expand(coefficients.shape[1:])[None])[0])


def _summed_to(coefficients: Tensor, like: Tensor) -> Tensor:
    """Sum (S, N, ...) over the dimensions along which `like`, (N, ...), was broadcast."""
    return coefficients.sum_to_size(len(coefficients), *like.shape)
