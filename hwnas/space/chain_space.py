"""What all search spaces share: their networks are chains of operators."""

from __future__ import annotations

import functools
import itertools
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar, TypeAlias

import torch

from hwnas.core.errors import ConfigError
from hwnas.space.blocks import strided
from hwnas.space.operators import (
    HSWISH,
    as_trained,
    head_variant,
    macs_of_operator,
    operator_of,
    parameters_of_operator,
    weights_of_operator,
)
from hwnas_profilers.workload import Chain, Operator, OperatorKey, Workload

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy as np
    from torch import Tensor, nn

    from hwnas.space.chain_spec import ChainSpec
    from hwnas.space.channel.spec import ChannelSpec
    from hwnas.space.genotype import Genotype
    from hwnas.space.mbconv.spec import MBConvSpec
    from hwnas.space.supernet import SlimNetwork, Supernet

# What an option runs: no operator where it is a skip, several where it stands for several places.
Entry: TypeAlias = tuple[OperatorKey, ...]
# What each option of one link of a chain runs: [option before][option here].
Link: TypeAlias = tuple[tuple[Entry, ...], ...]


class ChainSpace(ABC):
    """All networks that a description allows: a fixed begin, searched blocks, a fixed end.

    What an operator costs depends on its own choice and on the one before (its input width), so
    `transitions` gives every operator of the space as one table of keys per link of the chain.

    Args:
        spec: The description.
        batch: Images per call of its operators.
        dtype: Precision that its operators are compiled to: `fp32`, `fp16`, `bf16` or `int8`.

    Attributes:
        options: What each searched block may be, the largest first: widths or names.
        is_sequential: Whether a network is its operators one after the other, with nothing between
            two but one tensor. Then its graph, and its peak of activations, follow from theirs.
    """

    spec: ChainSpec
    options: tuple[tuple[int | str, ...], ...]
    is_sequential: ClassVar[bool] = True

    def __init__(self, spec: ChainSpec, *, batch: int = 1, dtype: str = "fp32") -> None:
        self.spec = spec
        self.batch = batch
        self.dtype = dtype

    # What a space says of its blocks

    @abstractmethod
    def network(self, genotype: Genotype) -> SlimNetwork:
        """Build the slim network of a genotype, newly initialized.

        Raises:
            ConfigError: The genotype is none of this space.
        """

    @abstractmethod
    def supernet(self) -> Supernet:
        """Build the network that holds all others, newly initialized."""

    @abstractmethod
    def _genotype_impl(self, choices: Sequence[int]) -> Genotype:
        """Make the genotype of each block's option index; there is one per block."""

    @abstractmethod
    def _choices_impl(self, genotype: Genotype) -> tuple[int, ...]:
        """Find each block's option index; raise ConfigError where the space lacks it."""

    @abstractmethod
    def _links_impl(self) -> tuple[Link, ...]:
        """Return the keys of all operators: see `transitions`."""

    # What a search learns of it

    @property
    def block_names(self) -> tuple[str, ...]:
        """What each searched block is called."""
        return tuple(f"block {index + 1}" for index in range(len(self.options)))

    @property
    def choice_shapes(self) -> tuple[tuple[int, ...], ...]:
        """Shapes of the tensors that a search learns: here one (options,) per searched block."""
        return tuple((len(options),) for options in self.options)

    def block_logits(self, learned: Sequence[Tensor]) -> list[Tensor]:
        """Return one (options,) tensor of logits per searched block, with gradients.

        Args:
            learned: Tensors of `choice_shapes`.
        """
        return list(learned)

    # Genotypes

    @property
    def smallest(self) -> Genotype:
        """The network of every block's last option."""
        return self.genotype_of_choices([len(options) - 1 for options in self.options])

    @property
    def largest(self) -> Genotype:
        """The network of every block's first option."""
        return self.genotype_of_choices([0] * len(self.options))

    def genotype_of_choices(self, choices: Sequence[int]) -> Genotype:
        """Make a genotype from each block's option index, 0 being the largest.

        Raises:
            ConfigError: A block has no such option, or there are too many or too few.
        """
        self._check_blocks(len(choices))
        for index, (choice, options) in enumerate(zip(choices, self.options, strict=True)):
            if not 0 <= choice < len(options):
                raise ConfigError(
                    f"block {index + 1} of {self.spec.name} has no option {choice}",
                    hint=f"it has {len(options)}, counted from 0",
                )
        return self._genotype_impl(choices)

    def choices(self, genotype: Genotype) -> tuple[int, ...]:
        """Return each block's option index.

        Raises:
            ConfigError: The genotype is of another space, or contradicts itself.
        """
        if genotype.space != self.spec.name:
            raise ConfigError(f"a genotype of {genotype.space} is none of {self.spec.name}")
        choices = self._choices_impl(genotype)
        meant = self._genotype_impl(choices)
        if genotype != meant:
            raise ConfigError(
                f"a genotype of {self.spec.name} contradicts itself: blocks "
                f"{list(genotype.blocks)} with widths {list(genotype.widths)}",
                hint=f"its blocks would be {list(meant.blocks)}, its widths {list(meant.widths)}",
            )
        return choices

    def random_genotype(self, generator: np.random.Generator) -> Genotype:
        """Draw a genotype, each block uniform over its options."""
        return self.genotype_of_choices(
            [int(generator.integers(len(options))) for options in self.options]
        )

    def _check_blocks(self, count: int) -> None:
        if count != len(self.options):
            raise ConfigError(
                f"{self.spec.name} has {len(self.options)} searched blocks, not {count}"
            )

    # Operators

    @functools.cached_property
    def transitions(self) -> tuple[Link, ...]:
        """Keys of all operators: `transitions[link][option before][option here]`.

        The links are the stem (1 x 1), each searched block (options before x options) and the head
        (options before x 1). An entry is what the option runs: one operator, none where it is to
        skip its block, several where it stands for several places of a network. Rows that are equal
        are one object where a space knows it: `distinct_rows` goes through them once.
        """
        return self._links_impl()

    def operator_of(self, key: OperatorKey) -> Operator:
        """Return the operator of a key, as something to be measured."""
        return operator_of(key)

    def operators(self) -> list[Operator]:
        """Return every distinct operator of the space, in the order of the chain."""
        keys = dict.fromkeys(
            key
            for link in self.transitions
            for row in distinct_rows(link)
            for entry in row
            for key in entry
        )
        return [self.operator_of(key) for key in keys]

    def operators_of(self, genotype: Genotype) -> list[OperatorKey]:
        """Return the operators that a network runs, in the order of the chain."""
        chosen = (0, *self.choices(genotype), 0)
        before = (0, *chosen[:-1])
        entries = (link[i][j] for link, i, j in zip(self.transitions, before, chosen, strict=True))
        return [key for entry in entries for key in entry]

    # Costs that no device needs to be asked for

    def macs_of(self, key: OperatorKey) -> int:
        """Count an operator's multiply-accumulates per image: see `macs_of_operator`."""
        return macs_of_operator(key)

    def weights_of(self, key: OperatorKey) -> int:
        """Count an operator's weights, with batch normalization folded into the convolutions."""
        return weights_of_operator(key)

    def parameters_of(self, key: OperatorKey) -> int:
        """Count an operator's trained parameters (batch normalization's included)."""
        return parameters_of_operator(key)

    # Networks

    def workload(self, genotype: Genotype) -> Workload:
        """Return a whole network as something to be measured.

        Where it is its operators one after the other, it is a `Chain` of them.
        """
        name = f"{self.spec.name} {genotype.label}"
        input_shape = (self.batch, *self.spec.image_shape)

        def build() -> nn.Module:
            return as_trained(self.network(genotype)).eval()

        if not self.is_sequential:
            return Workload(name=name, build=build, input_shape=input_shape)
        parts = tuple(self.operator_of(key) for key in self.operators_of(genotype))
        return Chain(name=name, build=build, input_shape=input_shape, parts=parts)

    def macs(self, genotype: Genotype) -> int:
        """Count a network's multiply-accumulates per image: see `macs_of`."""
        return sum(self.macs_of(key) for key in self.operators_of(genotype))

    def parameters(self, genotype: Genotype) -> int:
        """Count a network's trained parameters (batch normalization's included)."""
        with torch.device("meta"):
            network = self.network(genotype)
        return sum(parameter.numel() for parameter in network.parameters())


class BlockSpace(ChainSpace):
    """A space of our own blocks: a stem, blocks that are searched, a head; see `operators`."""

    spec: ChannelSpec | MBConvSpec

    @abstractmethod
    def _strides_impl(self) -> Sequence[int]:
        """Return the stride of each searched block."""

    @abstractmethod
    def _widths_impl(self) -> Sequence[Sequence[int]]:
        """Return the output width of each option of each searched block."""

    @abstractmethod
    def _head_impl(self, width_in: int) -> tuple[int, int]:
        """Return a head's hidden channels and features; both are 0 where it has none of its own."""

    @abstractmethod
    def _key_impl(
        self,
        block: int,
        choice: int,
        in_shape: tuple[int, int, int],
        out_shape: tuple[int, int, int],
        stride: int,
    ) -> OperatorKey | None:
        """Return the operator of a block's option at given shapes; None for a skip."""

    def _links_impl(self) -> tuple[Link, ...]:
        spec = self.spec
        _, height, width = spec.image_shape
        size = (strided(height, spec.stem_stride), strided(width, spec.stem_stride))
        stem = OperatorKey(
            kind="stem",
            in_shape=spec.image_shape,
            out_shape=(spec.stem, *size),
            kernel=3,
            stride=spec.stem_stride,
            variant=HSWISH,
            batch=self.batch,
            dtype=self.dtype,
        )
        links: list[Link] = [((entry_of(stem),),)]
        before: Sequence[int] = (spec.stem,)
        blocks = zip(self._strides_impl(), self._widths_impl(), strict=True)
        for block, (stride, widths) in enumerate(blocks):
            after = (strided(size[0], stride), strided(size[1], stride))
            # Options before that differ in more than their width have one row between them.
            rows = {
                width_in: tuple(
                    entry_of(
                        self._key_impl(
                            block, choice, (width_in, *size), (width_out, *after), stride
                        )
                    )
                    for choice, width_out in enumerate(widths)
                )
                for width_in in dict.fromkeys(before)
            }
            links.append(tuple(rows[width_in] for width_in in before))
            before, size = widths, after
        head = tuple((entry_of(self._head_key(width_in, size)),) for width_in in before)
        return (*links, head)

    def _head_key(self, width_in: int, size: tuple[int, int]) -> OperatorKey:
        hidden, features = self._head_impl(width_in)
        return OperatorKey(
            kind="head",
            in_shape=(width_in, *size),
            out_shape=(self.spec.classes, 1, 1),
            hidden=hidden,
            variant=head_variant(features),
            batch=self.batch,
            dtype=self.dtype,
        )


def entry_of(key: OperatorKey | None) -> Entry:
    """Return what an option runs that runs one operator, or, where it is a skip, none."""
    return () if key is None else (key,)


def distinct_rows(link: Link) -> Iterator[tuple[Entry, ...]]:
    """Yield the rows of a link that are different objects, in order."""
    yield from {id(row): row for row in link}.values()


def all_genotypes(space: ChainSpace) -> list[Genotype]:
    """List every genotype: for spaces small enough to be searched by brute force."""
    choices = itertools.product(*(range(len(options)) for options in space.options))
    return [space.genotype_of_choices(chosen) for chosen in choices]
