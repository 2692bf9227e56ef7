"""The mbconv space: blocks choose kernel, expansion, squeeze-and-excitation, width, or a skip."""

from __future__ import annotations

from typing import TYPE_CHECKING, final

from hwnas.core.errors import ConfigError, nearest
from hwnas.space.blocks import expansion_width
from hwnas.space.chain_space import BlockSpace
from hwnas.space.genotype import Genotype
from hwnas.space.mbconv.network import MBConvNetwork
from hwnas.space.mbconv.supernet import MBConvSupernet
from hwnas.space.operators import HSWISH, HSWISH_SE, RESIZE
from hwnas_profilers.workload import OperatorKey

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hwnas.space.mbconv.spec import MBConvSpec


@final
class MBConvSpace(BlockSpace):
    """A space whose blocks choose what they are, and their width among those of their stage.

    Args:
        spec: The description.
        batch: Images per call of its operators.
        dtype: Precision that its operators are compiled to.

    Attributes:
        options: Names of what each searched block may be, the largest first, skips last.
    """

    spec: MBConvSpec
    options: tuple[tuple[str, ...], ...]

    def __init__(self, spec: MBConvSpec, *, batch: int = 1, dtype: str = "fp32") -> None:
        super().__init__(spec, batch=batch, dtype=dtype)
        self._blocks = spec.blocks
        self.options = tuple(tuple(block.options) for block in self._blocks)

    def genotype(self, blocks: Sequence[str]) -> Genotype:
        """Make a genotype from what each block is.

        Raises:
            ConfigError: A block has no such option, or there are too many or too few.
        """
        self._check_blocks(len(blocks))
        for index, (name, options) in enumerate(zip(blocks, self.options, strict=True)):
            if name not in options:
                similar = nearest(name, options)
                hint = f"did you mean `{similar[0]}`? " if similar else ""
                raise ConfigError(
                    f"block {index + 1} of {self.spec.name} cannot be `{name}`",
                    hint=f"{hint}its options are {', '.join(options)}",
                )
        widths = (
            block.options[name].width for block, name in zip(self._blocks, blocks, strict=True)
        )
        return Genotype(space=self.spec.name, widths=tuple(widths), blocks=tuple(blocks))

    def network(self, genotype: Genotype) -> MBConvNetwork:
        """Build the slim network of a genotype, newly initialized.

        Raises:
            ConfigError: The genotype is none of this space.
        """
        self.choices(genotype)
        return MBConvNetwork(self.spec, genotype.blocks)

    def supernet(self) -> MBConvSupernet:
        """Build the network that holds all others: one path per block, run with masks."""
        return MBConvSupernet(self)

    def _genotype_impl(self, choices: Sequence[int]) -> Genotype:
        return self.genotype(
            [options[choice] for options, choice in zip(self.options, choices, strict=True)]
        )

    def _choices_impl(self, genotype: Genotype) -> tuple[int, ...]:
        blocks = self.genotype(genotype.blocks).blocks
        return tuple(
            options.index(name) for options, name in zip(self.options, blocks, strict=True)
        )

    def _strides_impl(self) -> tuple[int, ...]:
        return tuple(block.stride for block in self._blocks)

    def _widths_impl(self) -> tuple[tuple[int, ...], ...]:
        return tuple(
            tuple(choice.width for choice in block.options.values()) for block in self._blocks
        )

    def _head_impl(self, width_in: int) -> tuple[int, int]:
        return 0, 0

    def _key_impl(
        self,
        block: int,
        choice: int,
        in_shape: tuple[int, int, int],
        out_shape: tuple[int, int, int],
        stride: int,
    ) -> OperatorKey | None:
        option = self._blocks[block].options[self.options[block][choice]].block
        if option is None:
            if in_shape == out_shape:
                return None
            return OperatorKey(
                kind=RESIZE,
                in_shape=in_shape,
                out_shape=out_shape,
                batch=self.batch,
                dtype=self.dtype,
            )
        return OperatorKey(
            kind="mbconv",
            in_shape=in_shape,
            out_shape=out_shape,
            kernel=option.kernel,
            stride=stride,
            hidden=expansion_width(in_shape[0], option.expansion),
            variant=HSWISH_SE if option.se else HSWISH,
            batch=self.batch,
            dtype=self.dtype,
        )
