"""Networks of a channel-mask space."""

from __future__ import annotations

from typing import TYPE_CHECKING, final

from torch import nn

from hwnas.space.blocks import Head, InvertedResidual, Stem, hidden_width
from hwnas.space.supernet import SlimNetwork

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from hwnas.space.blocks import Normalize
    from hwnas.space.channel_spec import ChannelSpec


@final
class ChannelNetwork(SlimNetwork):
    """A network of a channel-mask space at given widths.

    Args:
        spec: The space.
        widths: Output width of each searched block.
    """

    def __init__(self, spec: ChannelSpec, widths: Sequence[int]) -> None:
        super().__init__()
        self.stem = Stem(spec.image_shape[0], spec.stem, stride=spec.stem_stride)
        strides = [
            stage.stride if first else 1
            for stage in spec.stages
            for first in (True, *(False,) * (stage.blocks - 1))
        ]
        self.blocks = nn.ModuleList(
            InvertedResidual(
                width_in,
                width_out,
                hidden=hidden_width(width_in, spec.expansion),
                kernel=spec.kernel,
                stride=stride,
            )
            for width_in, width_out, stride in zip(
                (spec.stem, *widths), widths, strides, strict=False
            )
        )
        self.head = Head(widths[-1], spec.classes)

        parts = ("expand", "depthwise", "project")
        blocks = range(len(self.blocks))
        self.tap_names = (
            "stem",
            *(f"block{index + 1}.{part}" for index in blocks for part in parts),
        )

    @property
    def normalize(self) -> Normalize:
        """Where pixels of [0, 1] are shifted and scaled."""
        return self.stem.normalize

    def forward(self, images: Tensor, taps: list[Tensor] | None = None) -> Tensor:
        """Compute logits; the taps are the stem and every convolution after it."""
        features = self.stem(images)
        if taps is not None:
            taps.append(features)
        for block in self.blocks:
            features = block(features, taps=taps)
        logits: Tensor = self.head(features)
        return logits
