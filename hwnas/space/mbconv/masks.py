"""Which channels and which taps of a superkernel a mix of options has open, and how likely.

A searched block computes all its options with one set of weights, the largest of each: smaller
kernels are the center of the largest, smaller expansions and widths its first channels. Which of
them are open is up to the gates of the block and of the one before, whose width decides on the
hidden channels. As the two choose independently, a pair of choices is as likely as the product.

All figures here are conditional: the kernel of a hidden channel is mixed over those options alone
that have the channel. So what one-hot gates leave open is exactly the slim block's, and batch
normalization, which takes out any scale, is given features of the scale that it is to see. What no
option has open is mixed as if all options were alike, so that there is always a feature to tell how
much an option is missed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, final

import torch
from torch import nn

from hwnas.space.blocks import hidden_width, squeeze_width
from hwnas.space.channel.masks import first_channels

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

FLOOR = 1e-9
"""Added to gates before anything is divided by them: below float32's rounding of a gate of 1."""


class PathMasks(NamedTuple):
    """What is open of a path. All but the first two is given that the path is taken.

    Attributes:
        share: Probability that the path is taken, a scalar.
        hidden_share: Probability that it is taken and a hidden channel is open, (hidden,).
        hidden: Probability that a hidden channel is open, (hidden,).
        taps: Of the superkernel, given that its channel is open, (hidden, 1, kernel, kernel);
            None where there is one kernel.
        excited: Of squeeze-and-excitation, given that the channel is open, (hidden,); None where
            all or none of the options have it.
        hidden_excited: Of a hidden channel, given squeeze-and-excitation, (hidden,).
        squeezed: Of a squeezed channel, likewise, (squeezed,).
        projection: Of a hidden channel, given that the output channel is open, (width or 1,
            hidden).
        out: Probability that an output channel is open, (width or 1,).
    """

    share: Tensor
    hidden_share: Tensor
    hidden: Tensor
    taps: Tensor | None
    excited: Tensor | None
    hidden_excited: Tensor
    squeezed: Tensor
    projection: Tensor
    out: Tensor


@final
class PathOptions(nn.Module):
    """The options of a path: what each has open.

    Args:
        widths_in: Widths of the input, the widest first.
        widths: Widths of the output, the widest first.
        kernels: Sides of kernels, the largest first.
        expansions: The largest first; or 1 alone, whose hidden channels are those of the input.
        se: Whether squeeze and excite is put in: true first.

    Attributes:
        hidden: Hidden channels of the widest option.
        squeezed: Squeezed channels of the widest option.
        kernel: Side of the largest kernel.
    """

    hidden_masks: Tensor  # (widths_in * expansions, hidden)
    squeezed_masks: Tensor  # (widths_in * expansions, squeezed)
    tap_masks: Tensor  # (kernels, 1, kernel * kernel)

    def __init__(
        self,
        widths_in: Sequence[int],
        widths: Sequence[int],
        *,
        kernels: Sequence[int],
        expansions: Sequence[int],
        se: Sequence[bool],
    ) -> None:
        super().__init__()
        hidden = [
            width if expansion == 1 else hidden_width(width, expansion)
            for width in widths_in
            for expansion in expansions
        ]
        squeezed = [squeeze_width(each) for each in hidden]
        self.hidden, self.squeezed, self.kernel = max(hidden), max(squeezed), max(kernels)
        self.se = tuple(se)
        self._steps = [
            width - narrower for width, narrower in zip(widths, (*widths[1:], 0), strict=True)
        ]
        taps = torch.stack([_center(kernel, self.kernel) for kernel in kernels])
        masks = {
            "hidden_masks": first_channels(hidden),
            "squeezed_masks": first_channels(squeezed),
            "tap_masks": taps.flatten(1)[:, None],
        }
        for name, mask in masks.items():
            self.register_buffer(name, mask, persistent=False)

    def forward(self, before: Tensor, gates: Tensor) -> PathMasks:
        """Say what is open.

        Args:
            before: Probability of each input width, (widths_in,); above 0.
            gates: Of each option, (kernels, expansions, se, widths); above 0. Their sum is how
                likely the path is taken.
        """
        # All sums are of products, not products of matrices: autocast would round those.
        given = [gates.sum((2, 3)), gates.sum((0, 2)).cumsum(1).T]  # (K, E); (W, E)
        if True in self.se:
            given.append(gates[:, :, 0].sum((0, 2))[None])  # (1, E)
        # -> (K + W + 1, widths_in * E)
        cells = (torch.cat(given)[:, None] * before[:, None]).flatten(1)
        totals = cells.sum(1)
        opened = (cells[:, :, None] * self.hidden_masks).sum(1)  # (K + W + 1, H)
        kernels, widths = len(gates), gates.shape[3]
        # Every option has the last, the narrowest width's channels.
        hidden_share, total = opened[kernels + widths - 1], totals[kernels + widths - 1]
        return PathMasks(
            share=total,
            hidden_share=hidden_share,
            hidden=hidden_share / total,
            taps=self._taps(opened[:kernels] / hidden_share) if kernels > 1 else None,
            excited=opened[-1] / hidden_share if len(self.se) > 1 else None,
            hidden_excited=opened[-1] / totals[-1],
            squeezed=(cells[-1][:, None] * self.squeezed_masks).sum(0) / totals[-1],
            projection=self._by_channel((opened / totals[:, None])[kernels : kernels + widths]),
            out=self._by_channel(totals[kernels : kernels + widths] / total),
        )

    def _taps(self, kernels: Tensor) -> Tensor:
        """Map probabilities of kernels, (kernels, hidden), to those of taps."""
        taps = (kernels[:, :, None] * self.tap_masks).sum(0)
        return taps.view(-1, 1, self.kernel, self.kernel)

    def _by_channel(self, values: Tensor) -> Tensor:
        """Give every output channel the value of the narrowest width that has it."""
        if len(values) == 1:
            return values
        steps = reversed(list(zip(values, self._steps, strict=True)))
        return torch.cat([value.expand(step, *value.shape) for value, step in steps])


def _center(kernel: int, largest: int) -> Tensor:
    """Return (largest, largest): one on the taps of the smaller kernel."""
    border = (largest - kernel) // 2
    return nn.functional.pad(torch.ones(kernel, kernel), (border,) * 4)
