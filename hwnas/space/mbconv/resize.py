"""What a skipped block runs where it is of another width than the one before it."""

from __future__ import annotations

from typing import TYPE_CHECKING, final

from torch import nn

if TYPE_CHECKING:
    from torch import Tensor


def resized(features: Tensor, width: int) -> Tensor:
    """Keep the first channels, or pad with channels of zeros.

    Args:
        features: (batch, channels, height, width).
        width: Channels of the result.
    """
    channels = features.shape[1]
    if width <= channels:
        return features[:, :width]
    return nn.functional.pad(features, (0, 0, 0, 0, 0, width - channels))


@final
class Resize(nn.Module):
    """Keep the first channels, or pad with channels of zeros; there is nothing to learn.

    Args:
        width: Channels of the output.

    References:
        He et al., Deep Residual Learning (arXiv 1512.03385), 3.3: shortcut option A. Theirs only
        widens.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, features: Tensor) -> Tensor:
        """Map (batch, channels, height, width) on."""
        return resized(features, self.width)
