"""A user's network as a chain: its parts, and how they are built and run one after the other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeGuard

import torch
from torch import Tensor, nn

from hwnas.core.errors import ConfigError
from hwnas.space.user.parts import Follows, Searched

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

FIXED = ""
"""What the only option of a part that is not searched is called."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One part of a user's network.

    Attributes:
        source: The space, for errors.
        name: What it is called: its name in the Sequential, or `part` and its place.
        kind: Whether it is a module as it stands, one that follows the width, or searched.
        options: Builders by name, the largest first, what runs nothing last.
        widths: Output widths to choose from; None where they follow from the input.
    """

    source: str
    name: str
    kind: Literal["fixed", "follows", "searched"]
    options: Mapping[str, Callable[[int, int], nn.Module] | None]
    widths: tuple[int, ...] | None = None

    @property
    def has_weights(self) -> bool:
        """Whether it is a module as it stands with a state, which is of one width alone."""
        if self.kind != "fixed":
            return False
        module = self.build(FIXED, 0, 0)
        assert module is not None
        return bool(list(module.parameters()) or list(module.buffers()))

    def place(self, option: str) -> str:
        """Name it and one of its options, for errors."""
        return f"{self.source}: {self.name}" + (f", option `{option}`," if option else "")

    def build(self, option: str, width_in: int, width_out: int) -> nn.Module | None:
        """Build an option's module; None where nothing runs.

        Raises:
            ConfigError: The user's code fails, or gives no module.
        """
        builder = self.options[option]
        if builder is None:
            return None
        try:
            module = builder(width_in, width_out)
        except Exception as error:
            raise ConfigError(
                f"{self.place(option)} cannot be built for {width_in} -> {width_out} channels: "
                f"{type(error).__name__}: {error}"
            ) from error
        if not isinstance(module, nn.Module):
            raise ConfigError(
                f"{self.place(option)} gives {type(module).__name__}, not a torch.nn.Module",
                hint="write None in place of a function where nothing shall run",
            )
        return module


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A part with its option chosen.

    Attributes:
        part: The part.
        option: The name of its option.
        width: Its output width; None where it follows from the input.
    """

    part: Part
    option: str = FIXED
    width: int | None = None

    def module_for(self, width_in: int) -> nn.Module | None:
        """Build its module for an input width; None where nothing runs."""
        return self.part.build(self.option, width_in, self.width or width_in)


def parts_of(network: nn.Sequential, source: str) -> list[Part]:
    """Return the parts of a network, in order; a Sequential with marks in it is its parts.

    Args:
        network: What the user's function gives.
        source: The space, for errors.

    Raises:
        ConfigError: A mark is where it cannot be searched, none is searched, or names clash.
    """
    parts = list(_flattened(network, source, ""))
    if not any(part.kind == "searched" for part in parts):
        raise ConfigError(
            f"{source} has no searched part",
            hint="mark one: Searched({...}, widths=(32, 24, 16)) of hwnas.space.user.parts",
        )
    names = [part.name for part in parts]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigError(f"{source} has two parts called `{twice[0]}`", hint="rename one")
    return parts


def run_steps(
    steps: Iterable[Step], features: Tensor
) -> tuple[list[tuple[Part, nn.Module | None]], Tensor]:
    """Build parts one after the other, each for the output of the one before.

    Args:
        steps: The parts, with what is chosen of them.
        features: What the first is run on, (batch, channels, ...); its values do not matter.

    Returns:
        Each part's module, in training mode; and what the last one gives.

    Raises:
        ConfigError: One cannot be built or run, or is not as wide as declared.
    """
    built: list[tuple[Part, nn.Module | None]] = []
    for step in steps:
        module = step.module_for(features.shape[1])
        if module is not None:
            features = _run(step, module, features)
        built.append((step.part, module))
    return built, features


def _run(step: Step, module: nn.Module, features: Tensor) -> Tensor:
    place = step.part.place(step.option)
    try:
        with torch.no_grad():
            output = module.eval()(features)
    except Exception as error:
        raise ConfigError(
            f"{place} cannot run on {_shape(features)}: {type(error).__name__}: {error}"
        ) from error
    finally:
        module.train()
    if not isinstance(output, Tensor):
        raise ConfigError(f"{place} gives {type(output).__name__}, not one tensor")
    if len(output) != len(features) or output.ndim < 2:
        raise ConfigError(f"{place} gives {tuple(output.shape)} for a batch of {len(features)}")
    if step.width is not None and output.shape[1] != step.width:
        raise ConfigError(
            f"{place} gives {output.shape[1]} channels where {step.width} were asked for",
            hint="an option takes the input and the output channels: lambda i, o: MyBlock(i, o)",
        )
    return output


def _flattened(network: nn.Sequential, source: str, prefix: str) -> Iterable[Part]:
    for place, (name, child) in enumerate(network._modules.items(), start=1):
        assert child is not None
        called = f"part{place}" if name.isdecimal() else name
        if prefix:
            called = f"{prefix}_{place if name.isdecimal() else name}"
        if isinstance(child, Searched):
            # What runs nothing is the smallest.
            ordered = sorted(child.options.items(), key=lambda option: option[1] is None)
            yield Part(
                source=source,
                name=called,
                kind="searched",
                options=dict(ordered),
                widths=child.widths,
            )
        elif isinstance(child, Follows):
            yield Part(source=source, name=called, kind="follows", options={FIXED: _of(child)})
        elif not any(isinstance(each, Searched | Follows) for each in child.modules()):
            yield Part(source=source, name=called, kind="fixed", options={FIXED: _same(child)})
        elif _is_plain(child):
            yield from _flattened(child, source, called)
        else:
            raise ConfigError(
                f"{source}: {called} is a {type(child).__name__} with a searched place inside it: "
                "only parts of a Sequential can be searched",
                hint="write each choice as an option of its own: "
                "Searched({'a': lambda i, o: MyBlock(i, o, 'a'), ...})",
            )


def _is_plain(network: nn.Module) -> TypeGuard[nn.Sequential]:
    """Tell a Sequential from a class that runs its children in a way of its own."""
    return isinstance(network, nn.Sequential) and type(network).forward is nn.Sequential.forward


def _of(mark: Follows) -> Callable[[int, int], nn.Module]:
    return lambda width_in, _: mark.build(width_in)


def _same(module: nn.Module) -> Callable[[int, int], nn.Module]:
    return lambda *_: module


def _shape(features: Tensor) -> str:
    return "x".join(map(str, features.shape[1:]))
