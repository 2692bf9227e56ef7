"""Functions of one value: their images of intervals, and lines that bound them over intervals.

A line is sound by construction, whatever its slope: over [lower, upper] the difference of function
and line is least and greatest at an end, at a kink, or where the function's derivative is the
slope. All of these are tried, so the intercept is exact. What slope is chosen decides on tightness
alone. Ours are those of the function's convex and concave envelopes at the middle of the interval:
of all lines below a function, the one that touches its convex envelope there encloses the least
area. For a ReLU that is CROWN's adaptive choice.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, final

import torch
from torch.nn import functional

from hwnas.robustness.bounds.hardswish import LOWEST, hardswish_ball
from hwnas.robustness.bounds.interval import Interval

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from torch import Tensor


class Elementwise(ABC):
    """A continuous function of one value, applied to each element.

    Attributes:
        kinks: Where its derivative jumps.
    """

    kinks: tuple[float, ...] = ()

    @abstractmethod
    def value(self, at: Tensor) -> Tensor:
        """Compute the function."""

    @abstractmethod
    def image(self, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        """Return the least and the greatest value over [lower, upper]."""

    def over(self, interval: Interval) -> Interval:
        """Return the image of an interval."""
        return Interval.from_ends(*self.image(interval.lower, interval.upper))

    @abstractmethod
    def slopes(self, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        """Choose the slopes of a line below and of one above; any slopes are sound."""

    def bends(self, lower: Tensor, upper: Tensor) -> Tensor:
        """Tell where the function is not a line over the interval; true where in doubt."""
        return torch.ones_like(lower, dtype=torch.bool)

    def points_of_slope(self, slope: Tensor) -> Sequence[Tensor]:
        """Return every place between kinks where the derivative is `slope`, and maybe others."""
        return ()

    @final
    def lines(self, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Bound the function over [lower, upper] by lines.

        Returns:
            Slope and intercept of a line below, and of one above.
        """
        slope_below, slope_above = self.slopes(lower, upper)
        fixed = self._at(lower, upper, self.kinks)
        below = self._intercept(torch.minimum, slope_below, lower, upper, fixed)
        above = self._intercept(torch.maximum, slope_above, lower, upper, fixed)
        return slope_below, below, slope_above, above

    @final
    def intercept(
        self,
        pick: Callable[[Tensor, Tensor], Tensor],
        slope: Tensor,
        lower: Tensor,
        upper: Tensor,
    ) -> Tensor:
        """Return the extreme of function less slope times argument over [lower, upper].

        Args:
            pick: `torch.minimum` or `torch.maximum`.
            slope: Slope of the line, as all others of the intervals' shape.
            lower: Lower ends.
            upper: Upper ends.
        """
        fixed = self._at(lower, upper, self.kinks)
        return self._intercept(pick, slope, lower, upper, fixed)

    def _intercept(
        self,
        pick: Callable[[Tensor, Tensor], Tensor],
        slope: Tensor,
        lower: Tensor,
        upper: Tensor,
        fixed: Iterable[tuple[Tensor, Tensor]],
    ) -> Tensor:
        found = None
        turns = ((point, self.value(point)) for point in self._inside(slope, lower, upper))
        for point, value in (*fixed, *turns):
            gap = torch.addcmul(value, slope, point, value=-1.0)
            found = gap if found is None else pick(found, gap)
        assert found is not None
        return found

    def _inside(self, slope: Tensor, lower: Tensor, upper: Tensor) -> list[Tensor]:
        # A point outside is moved to an end, which is a point of the interval too.
        return [within(point, lower, upper) for point in self.points_of_slope(slope)]

    def _at(
        self, lower: Tensor, upper: Tensor, points: Iterable[float]
    ) -> list[tuple[Tensor, Tensor]]:
        found = [lower, upper, *(within(point, lower, upper) for point in points)]
        return [(point, self.value(point)) for point in found]


@final
class PiecewiseLinear(Elementwise):
    """A function that is linear but for at most two kinks: ReLU, clamps, hard-sigmoid.

    Args:
        function: The function.
        convex: Where its slope grows, if anywhere.
        concave: Where its slope falls, if anywhere; not before `convex` where both are given.
        rises: It falls nowhere.
    """

    def __init__(
        self,
        function: Callable[[Tensor], Tensor],
        *,
        convex: float | None = None,
        concave: float | None = None,
        rises: bool = True,
    ) -> None:
        self._function, self._rises = function, rises
        self._convex, self._concave = convex, concave
        self.kinks = tuple(kink for kink in (convex, concave) if kink is not None)

    def value(self, at: Tensor) -> Tensor:
        """Compute the function."""
        return self._function(at)

    def image(self, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        """Return the values of the ends, or search all kinks."""
        if self._rises:
            return self.value(lower), self.value(upper)
        flat = torch.zeros_like(lower)
        least = self.intercept(torch.minimum, flat, lower, upper)
        return least, self.intercept(torch.maximum, flat, lower, upper)

    def bends(self, lower: Tensor, upper: Tensor) -> Tensor:
        """Tell where a kink is inside."""
        found = torch.zeros_like(lower, dtype=torch.bool)
        for kink in self.kinks:
            found |= (lower < kink) & (kink < upper)
        return found

    def slopes(self, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        """Return the slopes of both hulls at the middle."""
        # With the convex kink first, the hull below bends there alone, that above at the other.
        return self._bent(self._convex, lower, upper), self._bent(self._concave, lower, upper)

    def _bent(self, kink: float | None, lower: Tensor, upper: Tensor) -> Tensor:
        """Return the slope at the middle of the chords from end to kink to end."""
        if kink is None:
            return chord(self.value, lower, upper)
        is_before = torch.lerp(lower, upper, 0.5) < kink
        bend = within(kink, lower, upper)
        return chord(
            self.value, torch.where(is_before, lower, bend), torch.where(is_before, bend, upper)
        )


@final
class Hardswish(Elementwise):
    """H-swish, x clamp(x + 3, 0, 6) / 6: 0, then a parabola, then x.

    It falls from -3 to its least value at -1.5, and rises from there. Both kinks are concave.
    """

    kinks = (-3.0, 3.0)

    def value(self, at: Tensor) -> Tensor:
        """Compute the function."""
        return functional.hardswish(at)

    def image(self, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        """Return the value nearest to the lowest point, and the larger one of the ends."""
        least = self.value(within(LOWEST, lower, upper))
        return least, torch.maximum(self.value(lower), self.value(upper))

    def over(self, interval: Interval) -> Interval:
        """Return the image of an interval, from center and radius where that is what it is of."""
        if interval.has_ends:
            return Interval.from_ends(*self.image(interval.lower, interval.upper))
        return Interval.from_center(*hardswish_ball(interval.center, interval.radius))

    def points_of_slope(self, slope: Tensor) -> Sequence[Tensor]:
        """Return where the parabola has the slope."""
        # The parabola (x^2 + 3 x) / 6 has the slope (2 x + 3) / 6.
        return ((3.0 * slope - 1.5).clamp(*self.kinks),)

    def bends(self, lower: Tensor, upper: Tensor) -> Tensor:
        """Tell where a part of the parabola is inside."""
        left, right = self.kinks
        return (lower < right) & (upper > left)

    def slopes(self, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        """Return the slopes of both envelopes at the middle."""
        middle = torch.lerp(lower, upper, 0.5)
        return self._below(lower, upper, middle), self._above(lower, upper, middle)

    def _below(self, lower: Tensor, upper: Tensor, middle: Tensor) -> Tensor:
        """Return the slope of the convex envelope at the middle.

        It is the tangent from a lower end below -3 to the parabola, the parabola itself, and the
        tangent to an upper end above 3; the chord where a tangent would touch beyond the other end.
        """
        left, right = self.kinks
        before, behind = lower < left, upper > right
        # Tangents from (l, 0): t^2 - 2 l t - 3 l = 0; to (u, u): t^2 - 2 u t + 3 u = 0. Written as
        # quotients, as the differences cancel. Where there is no tangent, any root will do.
        far = torch.where(before, lower, 2 * left)
        first = torch.where(before, -3.0 * far / (far - (far * far + 3.0 * far).sqrt()), lower)
        far = torch.where(behind, upper, 2 * right)
        last = torch.where(behind, 3.0 * far / (far + (far * far - 3.0 * far).sqrt()), upper)
        tangent = (2.0 * within(middle, first, last) + 3.0) / 6.0
        beyond = (before & (first >= upper)) | (behind & (last <= lower))
        return torch.where(beyond, chord(self.value, lower, upper), tangent)

    def _above(self, lower: Tensor, upper: Tensor, middle: Tensor) -> Tensor:
        """Return the slope of the concave envelope at the middle.

        The pieces are convex, so it is the hull of ends and kinks. It bends at -3 where the upper
        end lies between there and 0, and at 3 where the lower end lies between 0 and there: else
        the chord of the ends is above the kink.
        """
        left, right = self.kinks
        at_left = (lower < left) & (upper > left) & (upper < 0.0)
        at_right = (lower > 0.0) & (lower < right) & (upper > right)
        bend = torch.where(at_left, left, right)
        bends = at_left | at_right
        is_before = middle < bend
        return chord(
            self.value,
            torch.where(bends & ~is_before, bend, lower),
            torch.where(bends & is_before, bend, upper),
        )


@final
class Sigmoid(Elementwise):
    """1 / (1 + exp(-x)): convex up to 0, concave from there."""

    def value(self, at: Tensor) -> Tensor:
        """Compute the function."""
        return torch.sigmoid(at)

    def image(self, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        """Return the values of the ends."""
        return self.value(lower), self.value(upper)

    def points_of_slope(self, slope: Tensor) -> Sequence[Tensor]:
        """Return the two places, on either side of 0."""
        # s (1 - s) = slope at s = (1 +- root) / 2, and x = log(s / (1 - s)).
        flattest = torch.finfo(slope.dtype).eps
        root = (1.0 - 4.0 * slope.clamp(flattest, 0.25 - flattest)).sqrt()
        # With (1 - root) (1 + root) = 4 slope, nothing cancels.
        point = torch.log((1.0 + root).square() / (4.0 * slope.clamp(min=flattest)))
        return point, -point

    def slopes(self, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        """Take, of the chord and three tangents, those whose lines are tightest at the middle."""
        middle = torch.lerp(lower, upper, 0.5)
        tangents = [value * (1.0 - value) for value in map(torch.sigmoid, (lower, middle, upper))]
        choices = torch.stack([chord(self.value, lower, upper), *tangents])
        least = torch.stack([self.intercept(torch.minimum, each, lower, upper) for each in choices])
        most = torch.stack([self.intercept(torch.maximum, each, lower, upper) for each in choices])
        below = (choices * middle + least).argmax(0, keepdim=True)
        above = (choices * middle + most).argmin(0, keepdim=True)
        return choices.gather(0, below)[0], choices.gather(0, above)[0]


RELU = PiecewiseLinear(functional.relu, convex=0.0)
RELU6 = PiecewiseLinear(functional.relu6, convex=0.0, concave=6.0)
HARDSIGMOID = PiecewiseLinear(functional.hardsigmoid, convex=-3.0, concave=3.0)
ABSOLUTE = PiecewiseLinear(torch.abs, convex=0.0, rises=False)
HARDSWISH = Hardswish()
SIGMOID = Sigmoid()


def chord(function: Callable[[Tensor], Tensor], lower: Tensor, upper: Tensor) -> Tensor:
    """Return a function's slope between two points; 0 where they are one."""
    width = upper - lower
    return (function(upper) - function(lower)) / torch.where(width > 0, width, 1.0)


def within(point: Tensor | float, lower: Tensor, upper: Tensor) -> Tensor:
    """Move points into intervals."""
    if isinstance(point, float):
        return torch.minimum(lower.clamp(min=point), upper)
    return torch.minimum(torch.maximum(point, lower), upper)
