"""The image of intervals under h-swish, given and returned as centers and radii, in one function.

Plain formulas would make ten tensors of the features' size; on a CPU, to make one anew costs more
than to compute it. This makes three, and keeps no more for backward than its inputs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional

if TYPE_CHECKING:
    from torch import Tensor

LOWEST = -1.5
"""Where h-swish is least; it falls up to there, and rises from there."""


def hardswish_ball(center: Tensor, radius: Tensor) -> tuple[Tensor, Tensor]:
    """Return center and radius of the image of [center - radius, center + radius]."""
    found: tuple[Tensor, Tensor] = _HardswishBall.apply(center, radius)  # type: ignore[no-untyped-call]
    return found


class _HardswishBall(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, center: Tensor, radius: Tensor) -> tuple[Tensor, Tensor]:
        context.save_for_backward(center, radius)
        lower, upper = center - radius, center + radius
        least = upper.clamp(max=LOWEST)
        torch.maximum(least, lower, out=least)  # the point of the interval nearest to the lowest
        for each in (least, lower, upper):
            functional.hardswish(each, inplace=True)
        torch.maximum(lower, upper, out=upper)
        torch.lerp(least, upper, 0.5, out=lower)
        return lower, upper.sub_(lower)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(context: Any, of_center: Tensor, of_radius: Tensor) -> tuple[Tensor, Tensor]:
        center, radius = context.saved_tensors
        lower, upper = center - radius, center + radius
        of_least, of_most = of_center - of_radius, of_center.add(of_radius)  # each twice
        above = functional.hardswish(upper) >= functional.hardswish(lower)
        # The least value is an end's where that is not beyond the lowest point, where it is flat.
        nothing = torch.zeros((), dtype=center.dtype, device=center.device)
        to_lower = torch.where(lower > LOWEST, of_least, nothing)
        to_lower += torch.where(above, nothing, of_most)
        to_upper = torch.where(upper < LOWEST, of_least, nothing)
        to_upper += torch.where(above, of_most, nothing)
        to_lower = torch.ops.aten.hardswish_backward(to_lower, lower)
        to_upper = torch.ops.aten.hardswish_backward(to_upper, upper)
        of_center = (to_lower + to_upper).mul_(0.5)
        return of_center, to_upper.sub_(to_lower).mul_(0.5)
