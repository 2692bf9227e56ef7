"""Networks of a channel-mask space."""

from __future__ import annotations

from typing import TYPE_CHECKING, final

from torch import nn

from hwnas.space.blocks import (
    FeatureHead,
    Head,
    InvertedResidual,
    Stem,
    expansion_width,
    hidden_width,
)
from hwnas.space.supernet import SlimNetwork

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from hwnas.space.blocks import Normalize
    from hwnas.space.channel.spec import ChannelSpec

PARTS = ("expand", "depthwise", "project")
"""Convolutions of a block."""


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
        self.blocks = nn.ModuleList(
            InvertedResidual(
                width_in,
                width_out,
                hidden=expansion_width(width_in, block.expansion),
                kernel=spec.kernel,
                stride=block.stride,
            )
            for width_in, width_out, block in zip(
                (spec.stem, *widths), widths, spec.blocks, strict=False
            )
        )
        self.head = (
            FeatureHead(
                widths[-1],
                spec.classes,
                hidden=hidden_width(widths[-1], spec.expansion),
                features=spec.head,
            )
            if spec.head
            else Head(widths[-1], spec.classes)
        )

        # Every convolution: a block without an expansion has two.
        self._parts = [PARTS if block.expansion > 1 else PARTS[1:] for block in spec.blocks]
        self.tap_names = (
            "stem",
            *(
                f"block{index + 1}.{part}"
                for index, parts in enumerate(self._parts)
                for part in parts
            ),
            *(("head.expand", "head.features") if spec.head else ()),
        )

    @property
    def normalize(self) -> Normalize:
        """Where pixels of [0, 1] are shifted and scaled."""
        return self.stem.normalize

    def forward(self, images: Tensor, taps: list[Tensor] | None = None) -> Tensor:
        """Compute logits; the taps are the stem and every convolution after it."""
        features = self.features(images, taps)
        head = self.head
        logits: Tensor = head(features, taps) if isinstance(head, FeatureHead) else head(features)
        return logits

    def features(self, images: Tensor, taps: list[Tensor] | None = None) -> Tensor:
        """Compute what the last block gives; the taps are those of `forward` before the head."""
        features: Tensor = self.stem(images)
        if taps is not None:
            taps.append(features)
        for block, parts in zip(self.blocks, self._parts, strict=True):
            own: list[Tensor] | None = None if taps is None else []
            features = block(features, taps=own)
            if taps is not None and own is not None:
                taps.extend(own[-len(parts) :])
        return features
