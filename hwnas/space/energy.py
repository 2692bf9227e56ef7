"""Where a layer's activations are: the map that cross-layer distillation compares."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def channel_energy(features: Tensor, mask: Tensor | None = None) -> Tensor:
    """Sum the squared activations of a layer over its channels.

    Args:
        features: (batch, channels, height, width)
        mask: What each channel is multiplied by first, (channels,).

    Returns:
        (batch, height, width), in float32.
    """
    squares = features.float().square()
    if mask is not None:
        squares = squares * mask.float().square()[:, None, None]
    return squares.sum(dim=1)
