"""The supernet of a channel-mask space: its widest network, run with masks."""

from __future__ import annotations

from typing import TYPE_CHECKING, final

import torch
from torch import nn
from torch.nn import functional

from hwnas.space.batch_norm import batch_norm
from hwnas.space.blocks import (
    ConvUnit,
    FeatureHead,
    InvertedResidual,
    expansion_width,
    hidden_width,
)
from hwnas.space.channel.masks import ChannelMasks, first_channels
from hwnas.space.channel.network import ChannelNetwork
from hwnas.space.energy import observed
from hwnas.space.supernet import Observed, Supernet

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from hwnas.space.blocks import Normalize
    from hwnas.space.channel.masks import BlockMasks
    from hwnas.space.channel.space import ChannelSpace
    from hwnas.space.genotype import Genotype


@final
class ChannelSupernet(Supernet):
    """The widest network, with masks that close the channels a sampled width does not have.

    A block's output mask is sum_i g_i m_i, with m_i ones on the first w_i channels (DMaskingNAS).
    Departures, so that a supernet with one-hot gates computes what the slim network will:

    - The hidden channels that the slim block would not have are masked too. (The released RNAS-CL
      code leaves them open, so that it trains another network than the one it derives.)
    - The input is added with the probability that both widths are equal, which is 1 or 0 for
      one-hot gates: the slim block has no shortcut where they differ.

    Masks are never multiplied with features, which would be a pass over each of them: they are
    folded into the scale and shift of the batch normalization before. H-swish gives 0 for 0, so
    what it closes is closed behind the activation, and energies are of masked activations.

    Running statistics follow a batch by how far it had their channel open, so that they are those
    of the networks that have the channel.

    Args:
        space: The space.

    References:
        Wan et al., FBNetV2 (arXiv 2004.05565), 3.1: channel masks.
    """

    head_hidden: Tensor  # (options of the last block, hidden channels of the head)

    def __init__(self, space: ChannelSpace) -> None:
        super().__init__()
        self._space = space
        spec = space.spec
        self.network = ChannelNetwork(spec, space.largest.widths)
        self.tap_names = self.network.tap_names
        before = [(spec.stem,), *space.options]
        self.masks = nn.ModuleList(
            ChannelMasks(
                widths_in,
                [expansion_width(width, block.expansion) or width for width in widths_in],
                widths,
                shortcut=block.stride == 1,
            )
            for block, widths_in, widths in zip(spec.blocks, before, space.options, strict=False)
        )
        if spec.head:
            hidden = first_channels([hidden_width(width, spec.expansion) for width in before[-1]])
            self.register_buffer("head_hidden", hidden, persistent=False)

    @property
    def normalize(self) -> Normalize:
        """Where pixels of [0, 1] are shifted and scaled."""
        return self.network.normalize

    def forward(self, images: Tensor, gates: Sequence[Tensor], *, observe: bool = True) -> Observed:
        """Compute the logits of a mix of networks: see `Supernet`."""
        energies = _Energies(observe=observe)
        features = energies.of(self.network.stem(images))
        before = gates[0].new_ones(1)
        for block, masks, gate in zip(self.network.blocks, self.masks, gates, strict=True):
            assert isinstance(block, InvertedResidual)
            features = _run_block(block, features, masks(before, gate), energies)
            before = gate
        head = self.network.head
        if isinstance(head, FeatureHead):
            hidden = (before[:, None] * self.head_hidden).sum(0)
            logits = _run_head(head, features, hidden, energies)
        else:
            logits = head(features)
        return Observed(logits, tuple(energies.seen))

    def slim_state(self, genotype: Genotype) -> dict[str, Tensor]:
        """Cut a genotype's weights out: the first channels of each layer."""
        with torch.device("meta"):
            slim = self._space.network(genotype).state_dict()
        full = self.network.state_dict()
        windows = {name: tuple(slice(size) for size in value.shape) for name, value in slim.items()}
        return {name: full[name][window].clone() for name, window in windows.items()}


class _Energies:
    """Collects energies of layers, in order, where they are asked for."""

    def __init__(self, *, observe: bool) -> None:
        self.seen: list[Tensor] = []
        self._observe = observe

    def of(self, features: Tensor, mask: Tensor | None = None) -> Tensor:
        """Take a layer's energy, and return the features to go on with: see `observed`."""
        if not self._observe:
            return features
        features, energy = observed(features, mask)
        self.seen.append(energy)
        return features


def _run_block(
    block: InvertedResidual, features: Tensor, masks: BlockMasks, energies: _Energies
) -> Tensor:
    """Compute a block; closed channels of `features` are 0, and those of the output will be."""
    expanded = features
    if isinstance(block.expand, ConvUnit):
        expanded = energies.of(_run_unit(block.expand, features, masks.hidden))
    filtered = energies.of(_run_unit(block.depthwise, expanded, masks.hidden))
    projected = energies.of(_run_unit(block.project, filtered, masks.out))
    if masks.shortcut is None:
        return projected
    # Where the widest input and output differ, channels that are missing are 0.
    missing = projected.shape[1] - features.shape[1]
    shortcut = functional.pad(features, (0, 0, 0, 0, 0, missing)) if missing else features
    return torch.addcmul(projected, shortcut, masks.shortcut.to(projected.dtype)[:, None, None])


def _run_unit(unit: ConvUnit, features: Tensor, mask: Tensor | None) -> Tensor:
    """Compute a layer; h-swish gives 0 for what the mask has closed before it."""
    conv, norm = unit.conv, unit.norm
    if mask is None:
        features = norm(conv(features))
    else:
        features = batch_norm(
            norm, conv(features), norm.weight * mask, norm.bias * mask, openness=mask
        )
    return functional.hardswish(features) if unit.activate else features


def _run_head(head: FeatureHead, features: Tensor, hidden: Tensor, energies: _Energies) -> Tensor:
    expanded = energies.of(_run_unit(head.expand, features, hidden))
    pooled = functional.hardswish(head.features(expanded.mean(dim=(2, 3))))
    logits: Tensor = head.classifier(energies.of(pooled[:, :, None, None]).flatten(1))
    return logits
