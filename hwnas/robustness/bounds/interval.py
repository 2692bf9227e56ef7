"""Intervals: for each value of a tensor, a lower and an upper end."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self, final

import torch

if TYPE_CHECKING:
    from torch import Tensor


@final
class Interval:
    """Lower and upper ends, or center and radius: what linear maps take, and what others take.

    Whichever of the two it was not made of is computed once it is asked for.
    """

    __slots__ = ("_center", "_lower", "_radius", "_upper")

    def __init__(self) -> None:
        self._lower: Tensor | None = None
        self._upper: Tensor | None = None
        self._center: Tensor | None = None
        self._radius: Tensor | None = None

    @classmethod
    def from_ends(cls, lower: Tensor, upper: Tensor) -> Self:
        """Make an interval of its ends."""
        made = cls()
        made._lower, made._upper = lower, upper
        return made

    @classmethod
    def from_center(cls, center: Tensor, radius: Tensor) -> Self:
        """Make an interval of its center and radius; the radius is at least 0."""
        made = cls()
        made._center, made._radius = center, radius
        return made

    @property
    def any_tensor(self) -> Tensor:
        """Whichever of its tensors there is: for its shape, type and device."""
        found = self._center if self._lower is None else self._lower
        assert found is not None
        return found

    @property
    def shape(self) -> torch.Size:
        """The shape of its tensors."""
        return self.any_tensor.shape

    @property
    def has_ends(self) -> bool:
        """Whether it was made of its ends, or these were asked for."""
        return self._lower is not None

    @property
    def lower(self) -> Tensor:
        """The lower ends."""
        if self._lower is None:
            assert self._center is not None
            assert self._radius is not None
            self._lower = self._center - self._radius
        return self._lower

    @property
    def upper(self) -> Tensor:
        """The upper ends."""
        if self._upper is None:
            assert self._center is not None
            assert self._radius is not None
            self._upper = self._center + self._radius
        return self._upper

    @property
    def center(self) -> Tensor:
        """The middle."""
        if self._center is None:
            self._center = torch.lerp(self.lower, self.upper, 0.5)
        return self._center

    @property
    def radius(self) -> Tensor:
        """Half the width."""
        if self._radius is None:
            self._radius = self.upper - self.center
        return self._radius

    def meet(self, other: Interval) -> Interval:
        """Return where two intervals that hold the same value overlap."""
        lower = torch.maximum(self.lower, other.lower)
        # Rounding may put them a hair apart where both are exact.
        return Interval.from_ends(
            lower, torch.maximum(lower, torch.minimum(self.upper, other.upper))
        )
