"""The same network, wider: what an ensemble of the same latency is compared with."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from hwnas.core.errors import ConfigError
from hwnas.space.cells.network import CellNetwork
from hwnas.space.cells.spec import CellSpec
from hwnas.space.channel.network import ChannelNetwork
from hwnas.space.channel.spec import ChannelSpec
from hwnas.space.handcrafted.parts import check_width, scaled_width
from hwnas.space.mbconv.network import MBConvNetwork
from hwnas.space.mbconv.spec import MBConvSpec

if TYPE_CHECKING:
    from hwnas.space.chain_space import ChainSpace
    from hwnas.space.genotype import Genotype
    from hwnas.space.supernet import SlimNetwork


def widened(space: ChainSpace, genotype: Genotype, width: float) -> SlimNetwork:
    """Build the network of a genotype with all its channels multiplied, newly initialized.

    It may be wider than any network of the space: kernels, expansions, depth and strides are the
    genotype's, stem and blocks are wider. The head is as wide as the last block makes it.

    Args:
        space: The space.
        genotype: Its genotype.
        width: What channels are multiplied by, to multiples of 4; 1 is the network itself.

    Raises:
        ConfigError: The genotype is none of the space, the width is no positive number, or the
            space does not know what its channels are.
    """
    check_width(width)
    choices = space.choices(genotype)
    spec = space.spec
    if isinstance(spec, ChannelSpec):
        wide = replace(spec, stem=scaled_width(spec.stem, width))
        return ChannelNetwork(wide, [scaled_width(each, width) for each in genotype.widths])
    if isinstance(spec, MBConvSpec):
        return _widened_mbconv(spec, choices, width)
    if isinstance(spec, CellSpec):
        # All channels follow from those of the first cell; the parts of a supernet's do not matter.
        cells = replace(spec, channels=scaled_width(spec.channels, width), partial=1)
        return CellNetwork(cells, genotype.blocks)
    raise ConfigError(
        f"networks of {spec.name} cannot be widened: only its own code knows which of its channels "
        "belong together",
        hint='compare with a hand-crafted network: set `wider`, e.g. `wider = "resnet20"`',
    )


def _widened_mbconv(spec: MBConvSpec, choices: tuple[int, ...], width: float) -> MBConvNetwork:
    stages = tuple(
        # Two widths may become one: then it stands there once.
        replace(
            stage,
            widths=tuple(dict.fromkeys(scaled_width(each, width) for each in stage.widths)),
        )
        for stage in spec.stages
    )
    wide = replace(spec, stem=scaled_width(spec.stem, width), stages=stages)
    options = []
    for narrow, block, choice in zip(spec.blocks, wide.blocks, choices, strict=True):
        chosen = [*narrow.options.values()][choice]
        meant = replace(chosen, width=scaled_width(chosen.width, width))
        options.append(next(name for name, each in block.options.items() if each == meant))
    return MBConvNetwork(wide, options)
