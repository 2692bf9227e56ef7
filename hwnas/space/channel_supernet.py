"""The supernet of a channel-mask space: its widest network, run with masks."""

from __future__ import annotations

from typing import TYPE_CHECKING, final

import torch

from hwnas.space.blocks import hidden_width
from hwnas.space.energy import channel_energy
from hwnas.space.network import ChannelNetwork
from hwnas.space.supernet import Observed, Supernet

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from hwnas.space.blocks import Normalize
    from hwnas.space.channel_space import ChannelSpace
    from hwnas.space.genotype import Genotype


@final
class ChannelSupernet(Supernet):
    """The widest network, with masks that close the channels a sampled width does not have.

    A block's output mask is sum_i g_i m_i, with m_i ones on the first w_i channels (DMaskingNAS).
    Departures, so that a supernet with one-hot gates computes what the slim network will: the
    hidden channels are masked by the width before, and the shortcut is weighted by the probability
    that both widths are equal. See `InvertedResidual`.

    Args:
        space: The space.

    References:
        Wan et al., FBNetV2 (arXiv 2004.05565), 3.1: channel masks.
    """

    def __init__(self, space: ChannelSpace) -> None:
        super().__init__()
        self._space = space
        self.network = ChannelNetwork(space.spec, space.largest.widths)
        self.tap_names = self.network.tap_names
        before: tuple[int, ...] = (space.spec.stem,)
        self._masks: list[tuple[str, str, str]] = []
        for index, options in enumerate(space.options):
            hidden = [hidden_width(width, space.spec.expansion) for width in before]
            names = (f"hidden{index}", f"out{index}", f"equal{index}")
            self.register_buffer(names[0], _first_channels(hidden), persistent=False)
            self.register_buffer(names[1], _first_channels(options), persistent=False)
            equal = torch.tensor([[float(i == j) for j in options] for i in before])
            self.register_buffer(names[2], equal, persistent=False)
            self._masks.append(names)
            before = options

    @property
    def normalize(self) -> Normalize:
        """Where pixels of [0, 1] are shifted and scaled."""
        return self.network.normalize

    def forward(self, images: Tensor, gates: Sequence[Tensor], *, observe: bool = True) -> Observed:
        """Compute the logits of a mix of networks: see `Supernet`."""
        features = self.network.stem(images)
        taps: list[Tensor] | None = [features] if observe else None
        before = gates[0].new_ones(1)
        blocks = zip(self.network.blocks, gates, self._masks, strict=True)
        for block, gate, (hidden, out, equal) in blocks:
            features = block(
                features,
                (before @ self.get_buffer(hidden))[:, None, None],
                (gate @ self.get_buffer(out))[:, None, None],
                before @ self.get_buffer(equal) @ gate,
                taps,
            )
            before = gate
        logits: Tensor = self.network.head(features)
        return Observed(logits, tuple(channel_energy(tap) for tap in taps or ()))

    def slim_state(self, genotype: Genotype) -> dict[str, Tensor]:
        """Cut a genotype's weights out: the first channels of each layer."""
        with torch.device("meta"):
            slim = self._space.network(genotype).state_dict()
        full = self.network.state_dict()
        windows = {name: tuple(slice(size) for size in value.shape) for name, value in slim.items()}
        return {name: full[name][window].clone() for name, window in windows.items()}


def _first_channels(widths: Sequence[int]) -> Tensor:
    """Return (options, max width): row i is one on the first `widths[i]` channels."""
    channels = torch.arange(max(widths))
    return (channels[None, :] < torch.tensor(widths)[:, None]).to(torch.float32)
