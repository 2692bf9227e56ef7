"""All options of a searched mbconv block at once, at about the cost of the largest."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, TypeAlias, final

import torch
from torch import nn
from torch.nn import functional

from hwnas.space.batch_norm import batch_norm
from hwnas.space.blocks import ConvUnit, SqueezeExcite
from hwnas.space.channel.masks import first_channels
from hwnas.space.energy import observed
from hwnas.space.mbconv.masks import FLOOR, PathOptions
from hwnas.space.mbconv.resize import resized

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from hwnas.space.mbconv.masks import PathMasks
    from hwnas.space.mbconv.spec import MBConvBlock, MBConvSpec

PARTS = ("expand", "depthwise", "project")
"""Layers of a block that may learn from a tutor."""

Energies: TypeAlias = "tuple[Tensor, ...]"


class PathOutput(NamedTuple):
    """What a path gives.

    Attributes:
        features: (batch, width, height, width), as if the path were taken for sure.
        share: Probability that it is taken, a scalar.
        energies: (batch, height, width) of each of `PARTS`; empty where not asked for.
    """

    features: Tensor
    share: Tensor
    energies: Energies


class BlockOutput(NamedTuple):
    """What a superblock gives.

    Attributes:
        features: (batch, width, height, width).
        widths: Probability of each output width, (widths,).
        energies: (batch, height, width) of each of `PARTS`; empty where not asked for.
    """

    features: Tensor
    widths: Tensor
    energies: Energies


@final
class MBConvPath(nn.Module):
    """An inverted residual of the largest size, run with masks, and without its shortcut.

    Its weights have the names that they have in an `InvertedResidual`. No mask is multiplied with
    features: those of hidden channels are folded into the projection's weights, those of output
    channels into the scale and shift of the last batch normalization.

    Running statistics follow a batch by how likely it had their channel open, so that they are
    those of the networks that have the channel.

    Args:
        spec: The space.
        block: The block.
        expansions: Those of its options, the largest first; or 1 alone, without an expanding
            convolution.
    """

    def __init__(self, spec: MBConvSpec, block: MBConvBlock, expansions: Sequence[int]) -> None:
        super().__init__()
        self.options = PathOptions(
            block.widths_in,
            block.widths,
            kernels=tuple(reversed(spec.kernels)),
            expansions=expansions,
            se=tuple(reversed(spec.se)),
        )
        hidden = self.options.hidden
        self.expand = None if max(expansions) == 1 else ConvUnit(block.widths_in[0], hidden)
        self.depthwise = ConvUnit(
            hidden, hidden, kernel=self.options.kernel, stride=block.stride, groups=hidden
        )
        self.squeeze_excite = SqueezeExcite(hidden) if True in spec.se else None
        self.project = ConvUnit(hidden, block.widths[0], activate=False)

    def forward(
        self, features: Tensor, before: Tensor, gates: Tensor, *, observe: bool
    ) -> PathOutput:
        """Compute the mix of the path's options.

        Args:
            features: (batch, the widest input, height, width).
            before: Probability of each input width, (widths_in,); above 0.
            gates: Of each option, (kernels, expansions, se, widths); above 0.
            observe: Compute the energies too.
        """
        masks: PathMasks = self.options(before, gates)
        energies: list[Tensor] = []

        def seen(layer: Tensor, mask: Tensor | None = None) -> Tensor:
            if not observe:
                return layer
            layer, energy = observed(layer, mask)
            energies.append(energy)
            return layer

        expanded = features
        if self.expand is not None:
            conv, norm = self.expand.conv, self.expand.norm
            expanded = batch_norm(norm, conv(features), openness=masks.hidden_share)
            expanded = functional.hardswish(expanded)
        # Without an expansion it is the input, which is masked already.
        expanded = seen(expanded, None if self.expand is None else masks.hidden)

        conv, norm = self.depthwise.conv, self.depthwise.norm
        kernel = conv.weight if masks.taps is None else conv.weight * masks.taps
        filtered = functional.conv2d(
            expanded,
            kernel,
            stride=conv.stride,
            padding=self.options.kernel // 2,
            groups=len(kernel),
        )
        filtered = functional.hardswish(batch_norm(norm, filtered, openness=masks.hidden_share))
        if self.squeeze_excite is not None:
            filtered = filtered * _factors(self.squeeze_excite, filtered, masks)
        filtered = seen(filtered, masks.hidden)

        conv, norm = self.project.conv, self.project.norm
        kernel = conv.weight * masks.projection[:, :, None, None]
        projected = batch_norm(
            norm,
            functional.conv2d(filtered, kernel),
            norm.weight * masks.out,
            norm.bias * masks.out,
            openness=(masks.out * masks.share).expand_as(norm.weight),
        )
        return PathOutput(seen(projected), masks.share, tuple(energies))


@final
class MBConvSuperblock(nn.Module):
    """A searched block with all its options.

    Options that expand share one path; those of expansion 1 have another one, as their depthwise
    convolution works on the input. What is mixed are the paths' outputs, the shortcut and the skip.
    The mix is exact over pairs of an option and a width before where operations are linear. Of
    squeeze-and-excitation and the output width, the one is taken as independent of the other, given
    that a hidden channel is open: else there would be two projections.

    The energy of a layer is that of each path, weighted by how likely it is taken, given that the
    block is not skipped: a block that is hardly ever run still says where it would look, but the
    less it is run, the less it learns from that. Channels count by how likely they are open.
    `expand` of a path without an expansion is the block's input, as it is in the slim block.

    Args:
        spec: The space.
        block: The block.

    References:
        Stamoulis et al., Single-Path NAS (arXiv 1904.02877), and Cai et al., Once for All (arXiv
        1908.09791): smaller kernels are the center of the largest. We depart in that they share
        weights as they are (Once for All transforms them), and that gates are categorical over
        whole options (Single-Path NAS compares norms of weights with thresholds).
        Wan et al., FBNetV2 (arXiv 2004.05565), 3.1: channel masks.
    """

    widths_in: Tensor  # (widths_in, channels that the widest input and output share)
    widths: Tensor  # (widths, channels that they share)
    equal: Tensor  # (widths_in, widths)

    def __init__(self, spec: MBConvSpec, block: MBConvBlock) -> None:
        super().__init__()
        expansions = tuple(each for each in reversed(spec.expansions) if each > 1)
        self.wide = MBConvPath(spec, block, expansions) if expansions else None
        self.narrow = MBConvPath(spec, block, (1,)) if 1 in spec.expansions else None
        self._expansions = len(expansions)
        self._shape = (len(spec.kernels), len(spec.expansions), len(spec.se), len(block.widths))
        self._count = len(spec.options) * len(block.widths)
        self._width = block.widths[0]
        self._can_skip = len(block.options) > self._count
        self._can_add = block.stride == 1 and not set(block.widths_in).isdisjoint(block.widths)

        shared = min(block.widths_in[0], block.widths[0])
        masks = {
            "widths_in": first_channels(block.widths_in)[:, :shared],
            "widths": first_channels(block.widths)[:, :shared],
            "equal": torch.tensor([[float(i == j) for j in block.widths] for i in block.widths_in]),
        }
        for name, mask in masks.items():
            self.register_buffer(name, mask, persistent=False)

    def forward(
        self, features: Tensor, before: Tensor, gates: Tensor, *, observe: bool
    ) -> BlockOutput:
        """Compute the mix of all options.

        Args:
            features: (batch, the widest input, height, width); closed channels are 0.
            before: Probability of each input width, (widths_in,).
            gates: Of each option, (options,).
            observe: Compute the energies too.
        """
        gates = gates + FLOOR
        before = before + FLOOR
        options, skips = gates[: self._count].view(self._shape), gates[self._count :]
        paths = []
        if self.wide is not None:
            own = options[:, : self._expansions]
            paths.append(self.wide(features, before, own, observe=observe))
        if self.narrow is not None:
            own = options[:, self._expansions :]
            paths.append(self.narrow(features, before, own, observe=observe))

        widths = options.sum((0, 1, 2))
        mixed, energies = _mixed(paths), _mean_energies(paths)
        if self._can_add:  # as every block can that can be skipped
            weights = self._passed_on(before, widths, skips).to(features.dtype)
            shortcut = resized(features, len(weights)) * weights[:, None, None]
            mixed = mixed + resized(shortcut, self._width)
        if self._can_skip:
            # A mean given that the block is run has no bounded gradient where it hardly ever is.
            run = widths.detach().sum()
            energies = tuple(torch.lerp(each.detach(), each, run) for each in energies)
            widths = widths + skips
        return BlockOutput(mixed, widths, energies)

    def _passed_on(self, before: Tensor, widths: Tensor, skips: Tensor) -> Tensor:
        """Return how much of each channel of the input is added to the output, (channels,)."""
        # The input was mixed with weights `opened`: what it would be at a given width is that much
        # more.
        opened = (before[:, None] * self.widths_in).sum(0)
        both = (before[:, None] * self.equal * widths).sum(1)  # (widths_in,)
        weights = (both[:, None] * self.widths_in).sum(0) / opened
        return weights + (skips[:, None] * self.widths).sum(0) if self._can_skip else weights


def _factors(excite: SqueezeExcite, features: Tensor, masks: PathMasks) -> Tensor:
    """Return what squeeze-and-excitation multiplies features by, (batch, hidden, 1, 1).

    Its squeeze is given the hidden channels that the options with it have, and has the channels
    that go with them.
    """
    means = features.mean(dim=(2, 3)) * masks.hidden_excited  # (B, hidden)
    reduced = functional.linear(means, excite.reduce.weight.flatten(1), excite.reduce.bias)
    reduced = functional.relu(reduced) * masks.squeezed
    factors = functional.linear(reduced, excite.expand.weight.flatten(1), excite.expand.bias)
    factors = functional.hardsigmoid(factors)
    if masks.excited is not None:
        factors = 1.0 + masks.excited * (factors - 1.0)
    return factors.to(features.dtype)[:, :, None, None]


def _mixed(paths: Sequence[PathOutput]) -> Tensor:
    parts = [path.features * path.share.to(path.features.dtype) for path in paths]
    return parts[0] if len(parts) == 1 else parts[0] + parts[1]


def _mean_energies(paths: Sequence[PathOutput]) -> Energies:
    if len(paths) == 1:
        return paths[0].energies
    wide, narrow = paths
    part = narrow.share / (wide.share + narrow.share)
    return tuple(
        torch.lerp(one, other, part)
        for one, other in zip(wide.energies, narrow.energies, strict=True)
    )
