"""Which channels of a block the gates open, and how far."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, final

import torch
from torch import nn

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor


class BlockMasks(NamedTuple):
    """Masks of a block: the probability that its sampled slim block has a channel.

    Attributes:
        hidden: Of the hidden channels, (hidden,); None where every slim block has all of them.
        out: Of the output channels, (out,).
        shortcut: What the input's channels are added to the output's with, (out,): the output's
            mask times the probability that both widths are equal. None where they never are.
    """

    hidden: Tensor | None
    out: Tensor
    shortcut: Tensor | None


@final
class ChannelMasks(nn.Module):
    """A mask is sum_i g_i m_i, with m_i ones on the channels that option i has (DMaskingNAS).

    Args:
        before: Widths of the input, the widest first.
        hidden: Hidden channels that go with each of them.
        widths: Widths of the output, the widest first.
        shortcut: Add the input where the widths are equal.
    """

    hidden: Tensor  # (options before, hidden)
    out: Tensor  # (options, out)
    equal: Tensor  # (options before, options)

    def __init__(
        self,
        before: Sequence[int],
        hidden: Sequence[int],
        widths: Sequence[int],
        *,
        shortcut: bool,
    ) -> None:
        super().__init__()
        equal = torch.tensor([[float(i == j) for j in widths] for i in before])
        self.register_buffer("hidden", first_channels(hidden), persistent=False)
        self.register_buffer("out", first_channels(widths), persistent=False)
        self.register_buffer("equal", equal, persistent=False)
        self._hides = len(set(hidden)) > 1
        self._adds = shortcut and not set(before).isdisjoint(widths)

    def forward(self, before: Tensor, gates: Tensor) -> BlockMasks:
        """Say what is open.

        Args:
            before: Gates of the block before, (options before,).
            gates: Of this one, (options,).
        """
        # Sums of products, not products of matrices: autocast would round those.
        out = (gates[:, None] * self.out).sum(0)
        return BlockMasks(
            hidden=(before[:, None] * self.hidden).sum(0) if self._hides else None,
            out=out,
            shortcut=out * (before[:, None] * self.equal * gates).sum() if self._adds else None,
        )


def first_channels(widths: Sequence[int]) -> Tensor:
    """Return (options, the widest): row i is one on the first `widths[i]` channels."""
    channels = torch.arange(max(widths))
    return (channels[None, :] < torch.tensor(widths)[:, None]).to(torch.float32)
