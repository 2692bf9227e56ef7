"""The building blocks of networks: one module per operator of a latency table."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor


def hidden_width(width: int, expansion: int) -> int:
    """Return the hidden channels of an inverted residual: a multiple of 8, rounded half up.

    References:
        Nath et al., RNAS-CL (arXiv 2301.08092), as released: hidden widths are multiples of 8.
    """
    return max(8, (width * expansion + 4) // 8 * 8)


class ConvUnit(nn.Sequential):
    """Convolution, batch normalization and, where asked for, h-swish.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel: Side of the kernel; padded so that stride 1 keeps the size.
        stride: Spatial stride.
        groups: Groups of the convolution; `in_channels` makes it depthwise.
        activate: End with h-swish.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        kernel: int = 1,
        stride: int = 1,
        groups: int = 1,
        activate: bool = True,
    ) -> None:
        layers: list[nn.Module] = [
            nn.Conv2d(
                in_channels, out_channels, kernel, stride, kernel // 2, groups=groups, bias=False
            ),
            nn.BatchNorm2d(out_channels),
        ]
        if activate:
            layers.append(nn.Hardswish())
        super().__init__(*layers)


class Normalize(nn.Module):
    """Shift and scale pixels of [0, 1] by the data set's mean and standard deviation, per channel.

    It is part of the network, so that nothing outside needs to know it and an attack's epsilon
    stays in pixel units. Its buffers are saved with the weights.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(1, channels, 1, 1))
        self.register_buffer("std", torch.ones(1, channels, 1, 1))

    def set_statistics(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """Take the statistics of a data set: one value per channel, in pixel units of [0, 1]."""
        self.mean.copy_(torch.tensor(mean).view_as(self.mean))
        # A channel that is constant over the data set carries nothing; leave its scale alone.
        scale = torch.tensor([value if value > 1e-6 else 1.0 for value in std])
        self.std.copy_(scale.view_as(self.std))

    def forward(self, images: Tensor) -> Tensor:
        """Map (batch, channels, height, width) on."""
        return (images - self.mean) / self.std


class Stem(nn.Module):
    """Normalization and the first convolution."""

    def __init__(self, in_channels: int, out_channels: int, *, stride: int) -> None:
        super().__init__()
        self.normalize = Normalize(in_channels)
        self.conv = ConvUnit(in_channels, out_channels, kernel=3, stride=stride)

    def forward(self, images: Tensor) -> Tensor:
        """Map (batch, channels, height, width) on."""
        features: Tensor = self.conv(self.normalize(images))
        return features


class InvertedResidual(nn.Module):
    """1x1 expansion, depthwise convolution, 1x1 linear projection; h-swish after the first two.

    The input is added where stride is 1 and the widths are equal (`ir_k3_hs` of FBNetV2, as used by
    RNAS-CL).

    In a supernet the block is built at its full widths, and `forward` takes masks that close
    channels. With one-hot gates it then computes exactly what the slim block computes:

    - the hidden channels that the slim block would not have are closed too. (The released RNAS-CL
      code leaves them open, so that it trains another network than the one it derives.)
    - the input is added with weight `residual`, which is 1 where the sampled widths are equal and 0
      where they differ, as the slim block has no shortcut there.
    """

    def __init__(
        self, in_channels: int, out_channels: int, *, hidden: int, kernel: int, stride: int
    ) -> None:
        super().__init__()
        self.expand = ConvUnit(in_channels, hidden)
        self.depthwise = ConvUnit(hidden, hidden, kernel=kernel, stride=stride, groups=hidden)
        self.project = ConvUnit(hidden, out_channels, activate=False)
        self.has_residual = stride == 1 and in_channels == out_channels

    def forward(
        self,
        features: Tensor,
        hidden_mask: Tensor | None = None,
        out_mask: Tensor | None = None,
        residual: Tensor | None = None,
        taps: list[Tensor] | None = None,
    ) -> Tensor:
        """Compute the block.

        Args:
            features: (batch, in_channels, height, width).
            hidden_mask: (hidden, 1, 1) in [0, 1]; None leaves all open.
            out_mask: (out_channels, 1, 1) in [0, 1]; None leaves all open.
            residual: Scalar weight of the shortcut; None is 1.
            taps: Where given, the outputs of the three convolutions are appended to it.
        """
        expanded = self.expand(features)
        if hidden_mask is not None:
            expanded = expanded * hidden_mask
        filtered = self.depthwise(expanded)
        if hidden_mask is not None:
            filtered = filtered * hidden_mask
        projected: Tensor = self.project(filtered)
        output = projected
        if self.has_residual:
            output = output + (features if residual is None else features * residual)
        if out_mask is not None:
            output = output * out_mask
            projected = projected * out_mask
        if taps is not None:
            taps.extend((expanded, filtered, projected))
        return output


class Head(nn.Module):
    """Global average pooling and the linear classifier."""

    def __init__(self, in_channels: int, classes: int) -> None:
        super().__init__()
        self.classifier = nn.Linear(in_channels, classes)

    def forward(self, features: Tensor) -> Tensor:
        """Map (batch, channels, height, width) on."""
        logits: Tensor = self.classifier(features.mean(dim=(2, 3)))
        return logits
