"""The mbconv space: blocks choose kernel, expansion and squeeze-and-excitation, or are skipped."""

from __future__ import annotations

from typing import TYPE_CHECKING, final

from hwnas.core.errors import ConfigError, nearest
from hwnas.space.chain_space import ChainSpace
from hwnas.space.genotype import Genotype
from hwnas.space.mbconv_network import MBConvNetwork, hidden_of_expansion
from hwnas.space.mbconv_spec import SKIP
from hwnas.space.operators import HSWISH, HSWISH_SE
from hwnas_profilers.workload import OperatorKey

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hwnas.space.mbconv_spec import MBConvSpec
    from hwnas.space.supernet import Supernet


@final
class MBConvSpace(ChainSpace):
    """A space whose blocks choose what they are; their widths are those of their stage.

    Args:
        spec: The description.
        batch: Images per call of its operators.
        dtype: Precision that its operators are compiled to.

    Attributes:
        options: Names of what each searched block may be, the largest first, a skip last.
    """

    spec: MBConvSpec
    options: tuple[tuple[str, ...], ...]

    def __init__(self, spec: MBConvSpec, *, batch: int = 1, dtype: str = "fp32") -> None:
        super().__init__(spec, batch=batch, dtype=dtype)
        self._blocks = spec.blocks
        self._named = spec.options
        self.options = tuple(block.options for block in self._blocks)

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
        widths = tuple(block.width for block in self._blocks)
        return Genotype(space=self.spec.name, widths=widths, blocks=tuple(blocks))

    def network(self, genotype: Genotype) -> MBConvNetwork:
        """Build the slim network of a genotype, newly initialized.

        Raises:
            ConfigError: The genotype is none of this space.
        """
        self.choices(genotype)
        return MBConvNetwork(self.spec, genotype.blocks)

    def supernet(self) -> Supernet:
        """Build the network that holds all others, newly initialized."""
        raise NotImplementedError

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
        return tuple((block.width,) * len(block.options) for block in self._blocks)

    def _key_impl(
        self,
        block: int,
        choice: int,
        in_shape: tuple[int, int, int],
        out_shape: tuple[int, int, int],
        stride: int,
    ) -> OperatorKey | None:
        name = self.options[block][choice]
        if name == SKIP:
            return None
        option = self._named[name]
        return OperatorKey(
            kind="mbconv",
            in_shape=in_shape,
            out_shape=out_shape,
            kernel=option.kernel,
            stride=stride,
            hidden=hidden_of_expansion(in_shape[0], option.expansion),
            variant=HSWISH_SE if option.se else HSWISH,
            batch=self.batch,
            dtype=self.dtype,
        )
