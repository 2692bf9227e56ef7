"""The building blocks of networks: one module per operator of a latency table."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

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


def expansion_width(width: int, expansion: int) -> int:
    """Return the channels of an expanding convolution; 0 at expansion 1, which has none."""
    return 0 if expansion == 1 else hidden_width(width, expansion)


def squeeze_width(hidden: int) -> int:
    """Return the channels that squeeze-and-excitation reduces to: a quarter, a multiple of 8.

    Rounded half up, but never to less than nine tenths of the quarter.

    References:
        Howard et al., MobileNetV3 (arXiv 1905.02244), 5.3: a quarter of the hidden channels; the
        rounding is that of the authors' code.
    """
    width = max(8, (hidden + 16) // 32 * 8)
    return width + 8 if 10 * 4 * width < 9 * hidden else width


def strided(size: int, stride: int) -> int:
    """Return the output size of a padded convolution of odd kernel."""
    return (size - 1) // stride + 1


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
        self.activate = activate

    @property
    def conv(self) -> nn.Conv2d:
        """The convolution."""
        return cast("nn.Conv2d", self[0])

    @property
    def norm(self) -> nn.BatchNorm2d:
        """The batch normalization."""
        return cast("nn.BatchNorm2d", self[1])


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


class SqueezeExcite(nn.Module):
    """Weigh each channel by a factor of [0, 1] that is computed from the mean of every channel.

    Average pooling, 1x1 convolution to `squeeze_width` channels, ReLU, 1x1 convolution back,
    hard-sigmoid; the input is multiplied by the result. Both convolutions have biases, and no batch
    normalization.

    References:
        Hu et al., Squeeze-and-Excitation (arXiv 1709.01507); Howard et al., MobileNetV3 (arXiv
        1905.02244): the hard-sigmoid and the fixed quarter. We depart in where it is used: any
        block of a space may choose it, at any resolution.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        squeezed = squeeze_width(channels)
        self.reduce = nn.Conv2d(channels, squeezed, 1)
        self.expand = nn.Conv2d(squeezed, channels, 1)

    def forward(self, features: Tensor) -> Tensor:
        """Map (batch, channels, height, width) on."""
        means = features.mean(dim=(2, 3), keepdim=True)  # (batch, channels, 1, 1)
        factors = nn.functional.hardsigmoid(self.expand(nn.functional.relu(self.reduce(means))))
        return features * factors


class InvertedResidual(nn.Module):
    """1x1 expansion, depthwise convolution, 1x1 linear projection; h-swish after the first two.

    Where asked for, squeeze-and-excitation weighs what the depthwise convolution gives, after its
    activation. Without hidden channels there is no expansion, as in the first block of MobileNetV3.

    The input is added where stride is 1 and the widths are equal (`ir_k3_hs` of FBNetV2, as used by
    RNAS-CL).

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        hidden: Channels of the expansion; at 0 the depthwise convolution works on the input.
        kernel: Side of the depthwise kernel.
        stride: Stride of the depthwise convolution.
        se: Squeeze and excite.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        hidden: int,
        kernel: int,
        stride: int,
        se: bool = False,
    ) -> None:
        super().__init__()
        inner = hidden or in_channels
        self.expand = ConvUnit(in_channels, hidden) if hidden else nn.Identity()
        self.depthwise = ConvUnit(inner, inner, kernel=kernel, stride=stride, groups=inner)
        self.squeeze_excite = SqueezeExcite(inner) if se else None
        self.project = ConvUnit(inner, out_channels, activate=False)
        self.has_residual = stride == 1 and in_channels == out_channels

    def forward(self, features: Tensor, taps: list[Tensor] | None = None) -> Tensor:
        """Compute the block.

        Args:
            features: (batch, in_channels, height, width).
            taps: Where given, the outputs of expansion, depthwise convolution and projection are
                appended to it; without an expansion its output is the input.
        """
        expanded = self.expand(features)
        filtered = self.depthwise(expanded)
        if self.squeeze_excite is not None:
            filtered = self.squeeze_excite(filtered)
        projected: Tensor = self.project(filtered)
        if taps is not None:
            taps.extend((expanded, filtered, projected))
        return projected + features if self.has_residual else projected


class Head(nn.Module):
    """Global average pooling and the linear classifier."""

    def __init__(self, in_channels: int, classes: int) -> None:
        super().__init__()
        self.classifier = nn.Linear(in_channels, classes)

    def forward(self, features: Tensor) -> Tensor:
        """Map (batch, channels, height, width) on."""
        logits: Tensor = self.classifier(features.mean(dim=(2, 3)))
        return logits


class FeatureHead(nn.Module):
    """A head that makes features of its own: 1x1 expansion, average, h-swish features, classifier.

    The features are a linear layer (with biases, and no batch normalization) of the averages.

    References:
        Howard et al., MobileNetV3 (arXiv 1905.02244), 5.1: features are made after the average,
        where they cost one pixel. `ir_pool_hs` of FBNetV2, as used by RNAS-CL.

    Args:
        in_channels: Channels of the input.
        classes: Classes to tell apart.
        hidden: Channels of the expansion.
        features: What the classifier sees.
    """

    def __init__(self, in_channels: int, classes: int, *, hidden: int, features: int) -> None:
        super().__init__()
        self.expand = ConvUnit(in_channels, hidden)
        self.features = nn.Linear(hidden, features)
        self.classifier = nn.Linear(features, classes)

    def forward(self, features: Tensor, taps: list[Tensor] | None = None) -> Tensor:
        """Map (batch, channels, height, width) on.

        Args:
            features: (batch, in_channels, height, width).
            taps: Where given, the outputs of the expansion and of the features' layer are appended
                to it, the latter as (batch, features, 1, 1).
        """
        expanded = self.expand(features)
        means = expanded.mean(dim=(2, 3))
        pooled = nn.functional.hardswish(self.features(means))
        if taps is not None:
            taps.extend((expanded, pooled[:, :, None, None]))
        logits: Tensor = self.classifier(pooled)
        return logits
