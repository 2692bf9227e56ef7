"""What passes of a training are computed in."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

TrainingPrecision: TypeAlias = Literal["fp32", "bf16"]


def in_precision(
    forward: Callable[..., Tensor], precision: TrainingPrecision
) -> Callable[..., Tensor]:
    """Return a forward pass under autocast to a precision, whose logits are in float32.

    Args:
        forward: Takes images first, gives logits.
        precision: `fp32` returns `forward` itself.
    """
    if precision == "fp32":
        return forward

    def passed(images: Tensor, *others: Any, **named: Any) -> Tensor:
        with torch.autocast(images.device.type, dtype=torch.bfloat16):
            logits = forward(images, *others, **named)
        return logits.float()

    return passed
