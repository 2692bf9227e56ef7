"""The channel-mask space of RNAS-CL: its genotypes, networks and operators.

References:
    Wan et al., FBNetV2 (arXiv 2004.05565): channel masks (DMaskingNAS).
    Nath et al., RNAS-CL (arXiv 2301.08092): the spaces.
"""

from __future__ import annotations

import functools
import itertools
from typing import TYPE_CHECKING

import torch

from hwnas.core.errors import ConfigError
from hwnas.space.blocks import Head, InvertedResidual, Stem, hidden_width
from hwnas.space.genotype import Genotype
from hwnas.space.network import ChannelNetwork
from hwnas_profilers.workload import Operator, OperatorKey, Workload

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from torch import Tensor, nn

    from hwnas.space.spec import SpaceSpec


class ChannelSpace:
    """All networks that a `SpaceSpec` describes.

    A network is a chain: a fixed stem, the searched blocks, a fixed head. What an operator costs
    depends on its own choice and on the one before (its input width), so `transitions` gives every
    operator of the space as one table of keys per link of the chain.

    Args:
        spec: The space.
        batch: Images per call of its operators.
    """

    def __init__(self, spec: SpaceSpec, *, batch: int = 1) -> None:
        self.spec = spec
        self.batch = batch
        # Options of each searched block.
        self.options = tuple(stage.widths for stage in spec.stages for _ in range(stage.blocks))
        self._strides = tuple(
            stage.stride if index == 0 else 1
            for stage in spec.stages
            for index in range(stage.blocks)
        )

    # Genotypes

    @property
    def smallest(self) -> Genotype:
        """The network of the narrowest blocks."""
        return self.genotype([widths[-1] for widths in self.options])

    @property
    def largest(self) -> Genotype:
        """The network of the widest blocks."""
        return self.genotype([widths[0] for widths in self.options])

    def genotype(self, widths: Sequence[int]) -> Genotype:
        """Make a genotype from the blocks' widths.

        Raises:
            ConfigError: A width is no option of its block, or there are too many or too few.
        """
        if len(widths) != len(self.options):
            raise ConfigError(
                f"{self.spec.name} has {len(self.options)} searched blocks, not {len(widths)}"
            )
        for index, (width, options) in enumerate(zip(widths, self.options, strict=True)):
            if width not in options:
                raise ConfigError(
                    f"block {index + 1} of {self.spec.name} cannot have width {width}",
                    hint=f"its options are {', '.join(map(str, options))}",
                )
        return Genotype(space=self.spec.name, widths=tuple(widths))

    def genotype_of_choices(self, choices: Sequence[int]) -> Genotype:
        """Make a genotype from each block's option index, 0 being the widest."""
        return self.genotype(
            [options[choice] for options, choice in zip(self.options, choices, strict=True)]
        )

    def choices(self, genotype: Genotype) -> tuple[int, ...]:
        """Return each block's option index.

        Raises:
            ConfigError: The genotype is of another space.
        """
        if genotype.space != self.spec.name:
            raise ConfigError(f"a genotype of {genotype.space} is none of {self.spec.name}")
        widths = self.genotype(genotype.widths).widths
        return tuple(
            options.index(width) for options, width in zip(self.options, widths, strict=True)
        )

    def random_genotype(self, generator: np.random.Generator) -> Genotype:
        """Draw a genotype, each block's width uniform over its options."""
        return self.genotype(
            [options[int(generator.integers(len(options)))] for options in self.options]
        )

    # Operators

    @functools.cached_property
    def transitions(self) -> tuple[tuple[tuple[OperatorKey, ...], ...], ...]:
        """Keys of all operators: `transitions[link][option before][option here]`.

        The links are the stem (1 x 1), each searched block (options before x options) and the head
        (options before x 1).
        """
        spec = self.spec
        _, height, width = spec.image_shape
        size = (_strided(height, spec.stem_stride), _strided(width, spec.stem_stride))
        stem = OperatorKey(
            kind="stem",
            in_shape=spec.image_shape,
            out_shape=(spec.stem, *size),
            kernel=3,
            stride=spec.stem_stride,
            variant="hswish",
            batch=self.batch,
        )
        links: list[tuple[tuple[OperatorKey, ...], ...]] = [((stem,),)]
        before: tuple[int, ...] = (spec.stem,)
        for options, stride in zip(self.options, self._strides, strict=True):
            after = (_strided(size[0], stride), _strided(size[1], stride))
            links.append(
                tuple(
                    tuple(
                        OperatorKey(
                            kind="mbconv",
                            in_shape=(width_in, *size),
                            out_shape=(width_out, *after),
                            kernel=spec.kernel,
                            stride=stride,
                            hidden=hidden_width(width_in, spec.expansion),
                            variant="hswish",
                            batch=self.batch,
                        )
                        for width_out in options
                    )
                    for width_in in before
                )
            )
            before, size = options, after
        head = tuple(
            (
                OperatorKey(
                    kind="head",
                    in_shape=(width_in, *size),
                    out_shape=(spec.classes, 1, 1),
                    batch=self.batch,
                ),
            )
            for width_in in before
        )
        return (*links, head)

    def operators(self) -> list[Operator]:
        """Return every distinct operator of the space, in the order of the chain."""
        keys = dict.fromkeys(key for link in self.transitions for row in link for key in row)
        return [
            Operator(
                key=key,
                name=str(key),
                build=functools.partial(module_of_operator, key),
                input_shape=(key.batch, *key.in_shape),
            )
            for key in keys
        ]

    def operators_of(self, genotype: Genotype) -> list[OperatorKey]:
        """Return the operators that a network runs, in order."""
        chosen = (0, *self.choices(genotype), 0)
        before = (0, *chosen[:-1])
        return [link[i][j] for link, i, j in zip(self.transitions, before, chosen, strict=True)]

    # Networks

    def network(self, genotype: Genotype) -> ChannelNetwork:
        """Build the slim network of a genotype, newly initialized."""
        self.choices(genotype)
        return ChannelNetwork(self.spec, genotype.widths)

    def supernet(self) -> ChannelNetwork:
        """Build the network that holds all others: the widest, to be run with masks."""
        return ChannelNetwork(self.spec, self.largest.widths)

    def workload(self, genotype: Genotype) -> Workload:
        """Return a whole network as something to be measured."""
        return Workload(
            name=f"{self.spec.name} {'-'.join(map(str, genotype.widths))}",
            build=lambda: self.network(genotype).eval(),
            input_shape=(self.batch, *self.spec.image_shape),
        )

    def macs(self, genotype: Genotype) -> int:
        """Count a network's multiply-accumulates per image (convolutions and the classifier)."""
        return sum(macs_of_operator(key) for key in self.operators_of(genotype))

    def parameters(self, genotype: Genotype) -> int:
        """Count a network's trained parameters (batch normalization's included)."""
        with torch.device("meta"):
            network = self.network(genotype)
        return sum(parameter.numel() for parameter in network.parameters())

    def slim_state(self, supernet: ChannelNetwork, genotype: Genotype) -> dict[str, Tensor]:
        """Cut a genotype's weights out of a trained supernet: the first channels of each layer.

        Returns:
            A state dict for `network(genotype)`, which then computes what the supernet computes
            with one-hot masks.
        """
        slim = self.network(genotype).state_dict()
        full = supernet.state_dict()
        cut = {}
        for name, value in slim.items():
            window = tuple(slice(size) for size in value.shape)
            cut[name] = full[name][window].clone()
        return cut


def module_of_operator(key: OperatorKey) -> nn.Module:
    """Build the module that a key of this space names, in eval mode.

    Raises:
        ConfigError: No operator of this space is of that kind.
    """
    module: nn.Module
    if key.kind == "stem":
        module = Stem(key.in_shape[0], key.out_shape[0], stride=key.stride)
    elif key.kind == "mbconv":
        module = InvertedResidual(
            key.in_shape[0],
            key.out_shape[0],
            hidden=key.hidden,
            kernel=key.kernel,
            stride=key.stride,
        )
    elif key.kind == "head":
        module = Head(key.in_shape[0], key.out_shape[0])
    else:
        raise ConfigError(f"no operator of kind `{key.kind}`", hint="known: stem, mbconv, head")
    return module.eval()


def macs_of_operator(key: OperatorKey) -> int:
    """Count an operator's multiply-accumulates per image."""
    inputs, height_in, width_in = key.in_shape
    outputs, height_out, width_out = key.out_shape
    pixels_in, pixels_out = height_in * width_in, height_out * width_out
    if key.kind == "head":
        return inputs * outputs
    if key.kind == "stem":
        return inputs * outputs * key.kernel**2 * pixels_out
    expand = inputs * key.hidden * pixels_in
    depthwise = key.hidden * key.kernel**2 * pixels_out
    project = key.hidden * outputs * pixels_out
    return expand + depthwise + project


def all_genotypes(space: ChannelSpace) -> list[Genotype]:
    """List every genotype: for spaces small enough to be searched by brute force."""
    return [space.genotype(widths) for widths in itertools.product(*space.options)]


def _strided(size: int, stride: int) -> int:
    """Return the output size of a padded convolution of odd kernel."""
    return (size - 1) // stride + 1
