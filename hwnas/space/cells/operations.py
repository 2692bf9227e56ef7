"""What runs in a cell: the candidate operations of DARTS as operators and as modules.

| operation | of the paper | operator |
|---|---|---|
| `none` | none | nothing; an edge that is not there |
| `max3`, `avg3` | max_pool_3x3, avg_pool_3x3 | `pool` |
| `skip` | skip_connect | nothing; at stride 2 `factorized` |
| `sep3`, `sep5` | sep_conv_3x3, sep_conv_5x5 | `sep` |
| `dil3`, `dil5` | dil_conv_3x3, dil_conv_5x5 | `dil` |
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional

from hwnas.core.errors import ConfigError
from hwnas.space.blocks import ConvUnit, Normalize, strided
from hwnas_profilers.workload import OperatorKey

if TYPE_CHECKING:
    from torch import Tensor

SEP = "sep"
DIL = "dil"
POOL = "pool"
FACTORIZED = "factorized"
PREPROCESS = "preprocess"
CELL_KINDS = (SEP, DIL, POOL, FACTORIZED, PREPROCESS)
"""Kinds of operators that cells are made of."""

LINEAR = "linear"
"""Variant of the stem of a network of cells: it ends without an activation."""

NONE = "none"
SKIP = "skip"


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """A candidate operation of an edge.

    Attributes:
        paper: What the paper's code calls it.
        kind: Kind of its operator; empty where none runs, whatever the stride.
        kernel: Side of its kernel.
        variant: Variant of its operator.
    """

    paper: str
    kind: str = ""
    kernel: int = 0
    variant: str = ""


OPERATIONS: dict[str, Operation] = {
    NONE: Operation(paper="none"),
    "max3": Operation(paper="max_pool_3x3", kind=POOL, kernel=3, variant="max"),
    "avg3": Operation(paper="avg_pool_3x3", kind=POOL, kernel=3, variant="avg"),
    SKIP: Operation(paper="skip_connect", kind=FACTORIZED),
    "sep3": Operation(paper="sep_conv_3x3", kind=SEP, kernel=3),
    "sep5": Operation(paper="sep_conv_5x5", kind=SEP, kernel=5),
    "dil3": Operation(paper="dil_conv_3x3", kind=DIL, kernel=3),
    "dil5": Operation(paper="dil_conv_5x5", kind=DIL, kernel=5),
}
"""The eight operations, in the order of the paper's code."""


def operation_key(
    name: str,
    channels: int,
    size: tuple[int, int],
    stride: int,
    *,
    batch: int = 1,
    dtype: str = "fp32",
) -> OperatorKey | None:
    """Return the operator of an operation; None where nothing runs.

    Args:
        name: One of `OPERATIONS`, other than `none`.
        channels: Channels of its input, and of its output.
        size: Height and width of its input.
        stride: 1, or 2 from the inputs of a reduction cell.
        batch: Images per call.
        dtype: Precision that it is compiled to.
    """
    operation = OPERATIONS[name]
    if name == NONE or (name == SKIP and stride == 1):
        return None
    return OperatorKey(
        kind=operation.kind,
        in_shape=(channels, *size),
        out_shape=(channels, strided(size[0], stride), strided(size[1], stride)),
        kernel=operation.kernel,
        stride=stride,
        variant=operation.variant,
        batch=batch,
        dtype=dtype,
    )


class CellStem(nn.Module):
    """Normalization and the first convolution, with batch normalization and no activation."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.normalize = Normalize(in_channels)
        self.conv = ConvUnit(in_channels, out_channels, kernel=3, activate=False)

    def forward(self, images: Tensor) -> Tensor:
        """Map (batch, channels, height, width) on."""
        features: Tensor = self.conv(self.normalize(images))
        return features


class DepthwiseSeparable(nn.Sequential):
    """ReLU, depthwise convolution, 1x1 convolution, batch normalization; once or twice.

    Args:
        channels: Channels of the input, and of the output.
        kernel: Side of the depthwise kernel.
        stride: Stride of the first depthwise convolution.
        dilation: Dilation of the depthwise convolutions.
        times: How often all of it is done.
        affine: Whether batch normalization has a scale and a shift of its own.
    """

    def __init__(
        self,
        channels: int,
        *,
        kernel: int,
        stride: int,
        dilation: int = 1,
        times: int = 1,
        affine: bool = True,
    ) -> None:
        layers: list[nn.Module] = []
        for time in range(times):
            layers += [
                nn.ReLU(),
                nn.Conv2d(
                    channels,
                    channels,
                    kernel,
                    stride if time == 0 else 1,
                    dilation * (kernel // 2),
                    dilation,
                    groups=channels,
                    bias=False,
                ),
                nn.Conv2d(channels, channels, 1, bias=False),
                nn.BatchNorm2d(channels, affine=affine),
            ]
        super().__init__(*layers)


class FactorizedReduce(nn.Module):
    """Halve height and width without losing pixels to the stride: two 1x1 convolutions, shifted.

    ReLU; one convolution of stride 2 sees the pixels of even rows and columns, one those of odd;
    each makes half of the output channels, batch-normalized.

    References:
        Liu et al., DARTS (arXiv 1806.09055), as released. We depart in that each half has its own
        batch normalization: computed per channel it is the same, and runtimes can fold it. Of odd
        sizes the released code can make nothing; here a row or column of zeros is added.
    """

    def __init__(self, in_channels: int, out_channels: int, *, affine: bool = True) -> None:
        super().__init__()
        half = out_channels // 2
        self.even, self.odd = (
            nn.Sequential(
                nn.Conv2d(in_channels, width, 1, 2, bias=False),
                nn.BatchNorm2d(width, affine=affine),
            )
            for width in (half, out_channels - half)
        )

    def forward(self, features: Tensor) -> Tensor:
        """Map (batch, channels, height, width) on."""
        active = functional.relu(features)
        height, width = features.shape[-2:]
        shifted = active
        if height % 2 or width % 2:
            shifted = functional.pad(active, (0, width % 2, 0, height % 2))
        return torch.cat([self.even(active), self.odd(shifted[:, :, 1:, 1:])], dim=1)


class Preprocess(nn.Sequential):
    """ReLU, 1x1 convolution, batch normalization: makes a cell's input as wide as its nodes."""

    def __init__(self, in_channels: int, out_channels: int, *, affine: bool = True) -> None:
        super().__init__(
            nn.ReLU(),
            nn.Conv2d(in_channels, out_channels, 1, bias=False),
            nn.BatchNorm2d(out_channels, affine=affine),
        )


def cell_module(key: OperatorKey | None, *, affine: bool = True) -> nn.Module:
    """Build the module of an operator of a cell, newly initialized.

    Args:
        key: Of one of `CELL_KINDS`; None, where nothing runs, gives an identity.
        affine: Whether batch normalization has a scale and a shift of its own.

    Raises:
        ConfigError: It is of another kind or variant.
    """
    if key is None:
        return nn.Identity()
    inputs, outputs = key.in_shape[0], key.out_shape[0]
    if key.kind == SEP:
        return DepthwiseSeparable(
            inputs, kernel=key.kernel, stride=key.stride, times=2, affine=affine
        )
    if key.kind == DIL:
        return DepthwiseSeparable(
            inputs, kernel=key.kernel, stride=key.stride, dilation=2, affine=affine
        )
    if key.kind == FACTORIZED:
        return FactorizedReduce(inputs, outputs, affine=affine)
    if key.kind == PREPROCESS:
        return Preprocess(inputs, outputs, affine=affine)
    if key.kind == POOL and key.variant == "max":
        return nn.MaxPool2d(key.kernel, key.stride, key.kernel // 2)
    if key.kind == POOL and key.variant == "avg":
        return nn.AvgPool2d(key.kernel, key.stride, key.kernel // 2, count_include_pad=False)
    raise ConfigError(
        f"no operator of kind `{key.kind}` and variant `{key.variant}`",
        hint=f"of cells there are: {', '.join(CELL_KINDS)}; a pool is `max` or `avg`",
    )


def macs_of_cell_operator(key: OperatorKey) -> int:
    """Count the multiply-accumulates per image of an operator of `CELL_KINDS`: convolutions."""
    inputs, outputs = key.in_shape[0], key.out_shape[0]
    pixels = key.out_shape[1] * key.out_shape[2]
    if key.kind == POOL:
        return 0
    if key.kind in (FACTORIZED, PREPROCESS):
        return inputs * outputs * pixels
    once = inputs * (key.kernel**2 + outputs) * pixels
    return 2 * once if key.kind == SEP else once
