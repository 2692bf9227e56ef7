"""The space of a user's own network: its genotypes, networks and operators."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, final

import torch
from torch import nn

from hwnas.core.errors import ConfigError, nearest
from hwnas.space.blocks import Normalize
from hwnas.space.chain_space import ChainSpace, entry_of
from hwnas.space.genotype import Genotype
from hwnas.space.operators import as_trained
from hwnas.space.user.chain import run_steps
from hwnas.space.user.network import UserNetwork, fixed_steps, steps_of
from hwnas.space.user.source import declared_parts
from hwnas.space.user.spec import differences
from hwnas.space.user.supernet import UserSupernet
from hwnas.space.user.survey import user_spec
from hwnas_profilers.workload import Operator, OperatorKey

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from hwnas.space.chain_space import Link
    from hwnas.space.user.chain import Part, Step
    from hwnas.space.user.spec import UserOperator, UserSpec

    Shape = tuple[int, int, int]
    # Given the parts, newly made: those that an operator runs.
    Steps = Callable[[Mapping[str, Part]], list[Step]]

KIND = "user"
BEGIN, END = "begin", "end"


@final
class UserSpace(ChainSpace):
    """A space that a user declared with marks in a network of their own.

    What it costs is known from its description. The user's code is run only where a module is
    built, and it must then still be what the description says.

    Args:
        spec: The description.
        batch: Images per call of its operators.
        dtype: Precision that its operators are compiled to.

    Attributes:
        options: Names of what each block may be, the largest first.
    """

    spec: UserSpec
    options: tuple[tuple[str, ...], ...]

    def __init__(self, spec: UserSpec, *, batch: int = 1, dtype: str = "fp32") -> None:
        super().__init__(spec, batch=batch, dtype=dtype)
        self.options = tuple(
            tuple(option.name for option in block.options) for block in spec.blocks
        )
        self._operators: dict[OperatorKey, tuple[UserOperator, Steps]] = {}

    def genotype(self, blocks: Sequence[str]) -> Genotype:
        """Make a genotype from what each block is.

        Raises:
            ConfigError: A block has no such option, or there are too many or too few.
        """
        self._check_blocks(len(blocks))
        widths = []
        for name, block, options in zip(blocks, self.spec.blocks, self.options, strict=True):
            if name not in options:
                similar = nearest(name, options)
                hint = f"did you mean `{similar[0]}`? " if similar else ""
                raise ConfigError(
                    f"{block.name} of {self.spec.name} cannot be `{name}`",
                    hint=f"{hint}its options are {', '.join(options)}",
                )
            widths.append(block.options[options.index(name)].width_out)
        return Genotype(space=self.spec.name, widths=tuple(widths), blocks=tuple(blocks))

    def network(self, genotype: Genotype) -> UserNetwork:
        """Build the slim network of a genotype, newly initialized.

        Raises:
            ConfigError: The genotype is none of this space, or the user's code has changed.
            InputFileError: The user's code is not there.
        """
        choices = self.choices(genotype)
        return UserNetwork(self.spec, self.parts(), choices)

    def supernet(self) -> UserSupernet:
        """Build the network that holds all others, newly initialized. Raises as `network`."""
        return UserSupernet(self.spec, self.parts())

    def parts(self) -> dict[str, Part]:
        """Run the user's code, and return its parts, newly made, by name.

        Raises:
            ConfigError: It is not what the description says.
            InputFileError: It is not there.
        """
        self._check_code()
        declared = declared_parts(self.spec.name, self.spec.image_shape, self.spec.classes)
        return {part.name: part for part in declared}

    def operator_of(self, key: OperatorKey) -> Operator:
        """Return the operator of a key, as something to be measured.

        Raises:
            ConfigError: It is none of this space.
        """
        self._found(key)
        return Operator(
            key=key,
            name=str(key),
            build=functools.partial(self._module_of, key),
            input_shape=(key.batch, *key.in_shape),
        )

    def macs_of(self, key: OperatorKey) -> int:
        """Count an operator's multiply-accumulates per image: convolutions, products of matrices.

        Raises:
            ConfigError: It is none of this space.
        """
        return self._found(key)[0].macs

    def weights_of(self, key: OperatorKey) -> int:
        """Count an operator's weights, with batch normalization folded. Raises as `macs_of`."""
        return self._found(key)[0].weights

    def parameters_of(self, key: OperatorKey) -> int:
        """Count an operator's trained parameters. Raises as `macs_of`."""
        return self._found(key)[0].params

    def parameters(self, genotype: Genotype) -> int:
        """Count a network's trained parameters (batch normalization's included)."""
        return sum(self.parameters_of(key) for key in self.operators_of(genotype))

    def _genotype_impl(self, choices: Sequence[int]) -> Genotype:
        return self.genotype(
            [options[choice] for options, choice in zip(self.options, choices, strict=True)]
        )

    def _choices_impl(self, genotype: Genotype) -> tuple[int, ...]:
        blocks = self.genotype(genotype.blocks).blocks
        return tuple(
            options.index(name) for options, name in zip(self.options, blocks, strict=True)
        )

    def _links_impl(self) -> tuple[Link, ...]:
        spec = self.spec
        begin = self._key(
            BEGIN,
            spec.image_shape,
            spec.begin_shape,
            spec.begin,
            lambda parts: fixed_steps(spec.begin_parts, parts),
        )
        links: list[Link] = [((entry_of(begin),),)]
        before: Sequence[int] = (spec.begin_shape[0],)
        for index, block in enumerate(spec.blocks):
            size = spec.size_before(index)
            rows = {
                width: tuple(
                    entry_of(
                        self._key(
                            f"{block.name}.{option.name}",
                            (width, *size),
                            (option.width_out, *block.size),
                            option.operators[place],
                            functools.partial(steps_of, block, option),
                        )
                    )
                    for option in block.options
                )
                for place, width in enumerate(spec.widths_before(index))
            }
            links.append(tuple(rows[width] for width in before))
            before = [option.width_out for option in block.options]
        size = spec.blocks[-1].size
        ends = {
            width: self._key(
                END,
                (width, *size),
                (spec.classes, 1, 1),
                operator,
                lambda parts: fixed_steps(spec.end_parts, parts),
            )
            for width, operator in zip(spec.widths_before(len(spec.blocks)), spec.end, strict=True)
        }
        links.append(tuple((entry_of(ends[width]),) for width in before))
        return tuple(links)

    def _key(
        self,
        variant: str,
        in_shape: Shape,
        out_shape: Shape,
        operator: UserOperator | None,
        steps: Steps,
    ) -> OperatorKey | None:
        """Return the key of an operator, and remember what it stands for."""
        if operator is None:
            return None
        key = OperatorKey(
            kind=KIND,
            in_shape=in_shape,
            out_shape=out_shape,
            stride=max(1, in_shape[1] // out_shape[1]) if variant != END else 1,
            variant=variant,
            batch=self.batch,
            dtype=self.dtype,
        )
        self._operators[key] = operator, steps
        return key

    def _found(self, key: OperatorKey) -> tuple[UserOperator, Steps]:
        assert self.transitions  # makes all keys
        if key not in self._operators:
            raise ConfigError(f"{key} is no operator of {self.spec.name}")
        return self._operators[key]

    def _module_of(self, key: OperatorKey) -> nn.Module:
        """Build an operator's module, in eval mode, `as_trained`."""
        _, steps = self._found(key)
        built, _ = run_steps(steps(self.parts()), torch.zeros(2, *key.in_shape))
        modules = [module for _, module in built if module is not None]
        if key.variant == BEGIN:
            modules = [Normalize(self.spec.image_shape[0]), *modules]
        return as_trained(nn.Sequential(*modules)).eval()

    @functools.cached_property
    def _now(self) -> UserSpec:
        spec = self.spec
        return user_spec(spec.name, image_shape=spec.image_shape, classes=spec.classes)

    def _check_code(self) -> None:
        spec = self.spec
        changed = differences(spec, self._now)
        if changed:
            shape = ",".join(map(str, spec.image_shape))
            raise ConfigError(
                f"the code of {spec.name} has changed since it was profiled: {'; '.join(changed)}",
                hint=f"profile it again into a new table: hwnas profile --space {spec.name} "
                f"--image-shape {shape} --classes {spec.classes} --out NEW.jsonl; or undo the "
                "change",
            )
