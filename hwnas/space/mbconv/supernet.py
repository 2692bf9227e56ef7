"""The supernet of an mbconv space: its largest network, run with masks."""

from __future__ import annotations

from typing import TYPE_CHECKING, final

import torch
from torch import nn

from hwnas.space.blocks import Head, Stem
from hwnas.space.energy import channel_energy
from hwnas.space.mbconv.superblock import PARTS, MBConvSuperblock
from hwnas.space.supernet import Observed, Supernet

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from hwnas.space.blocks import Normalize
    from hwnas.space.genotype import Genotype
    from hwnas.space.mbconv.space import MBConvSpace


@final
class MBConvSupernet(Supernet):
    """All networks of an mbconv space with one set of weights: see `MBConvSuperblock`.

    Args:
        space: The space.
    """

    def __init__(self, space: MBConvSpace) -> None:
        super().__init__()
        self._space = space
        spec = space.spec
        self.stem = Stem(spec.image_shape[0], spec.stem, stride=spec.stem_stride)
        self.blocks = nn.ModuleList(MBConvSuperblock(spec, block) for block in spec.blocks)
        self.head = Head(spec.stages[-1].widths[0], spec.classes)
        blocks = range(len(self.blocks))
        self.tap_names = (
            "stem",
            *(f"block{index + 1}.{part}" for index in blocks for part in PARTS),
        )

    @property
    def normalize(self) -> Normalize:
        """Where pixels of [0, 1] are shifted and scaled."""
        return self.stem.normalize

    def forward(self, images: Tensor, gates: Sequence[Tensor], *, observe: bool = True) -> Observed:
        """Compute the logits of a mix of networks: see `Supernet`."""
        features = self.stem(images)
        energies = [channel_energy(features)] if observe else []
        widths = gates[0].new_ones(1)
        for block, gate in zip(self.blocks, gates, strict=True):
            features, widths, seen = block(features, widths, gate, observe=observe)
            energies += seen
        logits: Tensor = self.head(features)
        return Observed(logits, tuple(energies))

    def slim_state(self, genotype: Genotype) -> dict[str, Tensor]:
        """Cut a genotype's weights out: the first channels, and the center of each kernel."""
        with torch.device("meta"):
            slim = self._space.network(genotype).state_dict()
        full = self.state_dict()
        blocks = self._space.spec.blocks
        paths = []
        for block, name in zip(blocks, genotype.blocks, strict=True):
            option = block.options[name].block
            paths.append("narrow" if option and option.expansion == 1 else "wide")
        state = {}
        for name, value in slim.items():
            part, _, rest = name.partition(".")
            if part == "blocks":
                index, _, rest = rest.partition(".")
                part = f"blocks.{index}.{paths[int(index)]}"
            state[name] = _cut(full[f"{part}.{rest}"], value.shape)
        return state


def _cut(weights: Tensor, shape: torch.Size) -> Tensor:
    """Keep the first channels of both sides, and the center of what lies behind them."""
    starts = [
        0 if axis < 2 else (weights.shape[axis] - shape[axis]) // 2 for axis in range(len(shape))
    ]
    windows = (slice(start, start + size) for start, size in zip(starts, shape, strict=True))
    return weights[tuple(windows)].clone()
