"""The channel-mask space of RNAS-CL: its genotypes, networks and operators.

References:
    Wan et al., FBNetV2 (arXiv 2004.05565): channel masks (DMaskingNAS).
    Nath et al., RNAS-CL (arXiv 2301.08092): the spaces.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, final

from hwnas.core.errors import ConfigError
from hwnas.space.blocks import expansion_width, hidden_width
from hwnas.space.chain_space import BlockSpace
from hwnas.space.channel.network import ChannelNetwork
from hwnas.space.channel.supernet import ChannelSupernet
from hwnas.space.genotype import Genotype
from hwnas.space.operators import HSWISH
from hwnas_profilers.workload import OperatorKey

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hwnas.space.channel.spec import ChannelSpec


@final
class ChannelSpace(BlockSpace):
    """A space whose blocks choose their output width.

    Args:
        spec: The description.
        batch: Images per call of its operators.
        dtype: Precision that its operators are compiled to.

    Attributes:
        options: Widths of each searched block, the widest first.
    """

    spec: ChannelSpec
    options: tuple[tuple[int, ...], ...]

    def __init__(self, spec: ChannelSpec, *, batch: int = 1, dtype: str = "fp32") -> None:
        super().__init__(spec, batch=batch, dtype=dtype)
        self.options = tuple(stage.widths for stage in spec.stages for _ in range(stage.blocks))

    def genotype(self, widths: Sequence[int]) -> Genotype:
        """Make a genotype from the blocks' widths.

        Raises:
            ConfigError: A width is no option of its block, or there are too many or too few.
        """
        self._check_blocks(len(widths))
        for index, (width, options) in enumerate(zip(widths, self.options, strict=True)):
            if width not in options:
                raise ConfigError(
                    f"block {index + 1} of {self.spec.name} cannot have width {width}",
                    hint=f"its options are {', '.join(map(str, options))}",
                )
        return Genotype(space=self.spec.name, widths=tuple(widths))

    def network(self, genotype: Genotype) -> ChannelNetwork:
        """Build the slim network of a genotype, newly initialized.

        Raises:
            ConfigError: The genotype is none of this space.
        """
        self.choices(genotype)
        return ChannelNetwork(self.spec, genotype.widths)

    def supernet(self) -> ChannelSupernet:
        """Build the network that holds all others: the widest, with masks."""
        return ChannelSupernet(self)

    def _genotype_impl(self, choices: Sequence[int]) -> Genotype:
        widths = (options[choice] for options, choice in zip(self.options, choices, strict=True))
        return Genotype(space=self.spec.name, widths=tuple(widths))

    def _choices_impl(self, genotype: Genotype) -> tuple[int, ...]:
        widths = self.genotype(genotype.widths).widths
        return tuple(
            options.index(width) for options, width in zip(self.options, widths, strict=True)
        )

    def _strides_impl(self) -> tuple[int, ...]:
        return tuple(block.stride for block in self.spec.blocks)

    def _widths_impl(self) -> tuple[tuple[int, ...], ...]:
        return self.options

    def _head_impl(self, width_in: int) -> tuple[int, int]:
        spec = self.spec
        return (hidden_width(width_in, spec.expansion), spec.head) if spec.head else (0, 0)

    def _key_impl(
        self,
        block: int,
        choice: int,
        in_shape: tuple[int, int, int],
        out_shape: tuple[int, int, int],
        stride: int,
    ) -> OperatorKey:
        return OperatorKey(
            kind="mbconv",
            in_shape=in_shape,
            out_shape=out_shape,
            kernel=self.spec.kernel,
            stride=stride,
            hidden=expansion_width(in_shape[0], self.spec.blocks[block].expansion),
            variant=HSWISH,
            batch=self.batch,
            dtype=self.dtype,
        )
