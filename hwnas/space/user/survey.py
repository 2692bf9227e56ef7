"""Find out what a user's network can be, by building and running all of its parts."""

from __future__ import annotations

import functools
import hashlib
import itertools
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from hwnas.core.errors import ConfigError
from hwnas.space.blocks import Normalize
from hwnas.space.operators import folded_weights
from hwnas.space.user.chain import FIXED, Part, Step, run_steps
from hwnas.space.user.source import declared_parts, function_of, shape_and_classes
from hwnas.space.user.spec import UserBlock, UserOperator, UserOption, UserSpec

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

MAX_OPTIONS = 96
"""Options of one block: each is measured after each width that may come before it."""

_BATCH = 2  # so that a module which mixes a batch up shows
_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")


class _Shape(NamedTuple):
    width: int
    height: int
    breadth: int

    def __str__(self) -> str:
        return "x".join(map(str, self))

    @property
    def size(self) -> tuple[int, int]:
        return self.height, self.breadth


@dataclass(frozen=True, slots=True, kw_only=True)
class _Path:
    """One way through the parts of a block so far."""

    steps: tuple[Step, ...]
    width_out: int

    @property
    def picks(self) -> tuple[str, ...]:
        return tuple(step.option for step in self.steps if step.part.kind == "searched")

    @property
    def width(self) -> int | None:
        return self.steps[0].width


def user_spec(
    name: str, *, image_shape: tuple[int, int, int] | None = None, classes: int | None = None
) -> UserSpec:
    """Describe the space of a user's network; its code is run.

    Args:
        name: `user:path/to/file.py:function` or `user:package.module:function`.
        image_shape: (channels, height, width); by default what the function itself declares.
        classes: Number of classes; likewise.

    Raises:
        InputFileError: The file does not exist.
        ConfigError: There is no such function, or it declares no space.
    """
    shape, count = shape_and_classes(name, image_shape, classes)
    return _surveyed(function_of(name), name, shape, count)


@functools.lru_cache(maxsize=8)
def _surveyed(
    _: Callable[..., object], name: str, image_shape: tuple[int, int, int], classes: int
) -> UserSpec:
    with torch.random.fork_rng(devices=[]):  # first weights are drawn, and thrown away
        return _Survey(name, image_shape, classes).of(declared_parts(name, image_shape, classes))


class _Survey:
    def __init__(self, name: str, image_shape: tuple[int, int, int], classes: int) -> None:
        self.name, self.image_shape, self.classes = name, image_shape, classes

    def of(self, parts: Sequence[Part]) -> UserSpec:
        places = [place for place, part in enumerate(parts) if part.kind == "searched"]
        first, last = places[0], places[-1]
        begin, middle, end = parts[:first], parts[first : last + 1], parts[last + 1 :]
        begin_shape, begin_operator = self._begin(begin)
        blocks: list[UserBlock] = []
        before = [begin_shape]
        while middle:
            block, taken = self._block(middle, before)
            blocks.append(block)
            before = [_Shape(width, *block.size) for width in block.widths]
            middle = middle[taken:]
        if not end:
            raise ConfigError(
                f"{self.name}: the last part, {parts[-1].name}, is searched: nothing makes logits",
                hint="end with Follows(lambda width: MyHead(width, classes))",
            )
        return UserSpec(
            name=self.name,
            image_shape=self.image_shape,
            classes=self.classes,
            begin_parts=_names(begin),
            begin_shape=begin_shape,
            begin=begin_operator,
            blocks=tuple(blocks),
            end_parts=_names(end),
            end=self._end(end, before),
        )

    def _begin(self, parts: Sequence[Part]) -> tuple[_Shape, UserOperator]:
        pixels = Normalize(self.image_shape[0])
        operator, output = _measured(
            [Step(part=part) for part in parts], self.image_shape, first=pixels
        )
        assert operator is not None  # there is the normalization, at least
        return _shape_of(output, parts[-1].name if parts else self.name), operator

    def _block(self, parts: Sequence[Part], before: Sequence[_Shape]) -> tuple[UserBlock, int]:
        """Take the parts that are chosen together off the front; return how many they are."""
        first, widest = parts[0], max(before)
        # One that keeps a searched width would have been taken with the block before.
        assert first.widths is not None or len(before) == 1
        paths = self._extended([_Path(steps=(), width_out=widest.width)], first, widest)
        taken = 1
        for part in parts[1:]:
            widths = {path.width_out for path in paths}
            if part.kind == "searched" and (part.widths is not None or len(widths) == 1):
                break
            _check_fixed(part, widths)
            taken += 1
            count = len(paths) * len(part.options)
            if count > MAX_OPTIONS:
                names = ", ".join(each.name for each in parts[:taken] if each.kind == "searched")
                raise ConfigError(
                    f"{self.name}: {names} have {count} options together, more than "
                    f"{MAX_OPTIONS}: as they keep a width that is searched, they are chosen as one",
                    hint=f"give {part.name} a width of its own, e.g. widths=({max(widths)},), or "
                    "have fewer options or widths",
                )
            paths = self._extended(paths, part, widest)
        return self._described(parts[:taken], paths, before), taken

    def _extended(self, paths: Sequence[_Path], part: Part, widest: _Shape) -> list[_Path]:
        """Go on by one part: every option of it after every path."""
        steps = [
            Step(part=part, option=option, width=width)
            for option in part.options
            for width in part.widths or (None,)
        ]
        extended: list[_Path] = []
        shapes: dict[str, _Shape] = {}
        for path, step in itertools.product(paths, steps):
            _, output = run_steps((*path.steps, step), _zeros(widest))
            shape = _shape_of(output, part.place(step.option))
            _check_width(step, path.width_out, shape)
            shapes[step.option] = shape
            extended.append(_Path(steps=(*path.steps, step), width_out=shape.width))
        if len({shape.size for shape in shapes.values()}) > 1:
            told = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
            raise ConfigError(
                f"{self.name}: the options of {part.name} give different sizes ({told})",
                hint="give all of them the same stride; only channels can differ, by `widths`",
            )
        return extended

    def _described(
        self, parts: Sequence[Part], paths: Sequence[_Path], before: Sequence[_Shape]
    ) -> UserBlock:
        options: list[UserOption] = []
        size: tuple[int, int] | None = None
        several = len({path.width for path in paths}) > 1
        for path in paths:
            operators: list[UserOperator | None] = []
            for shape in before:
                operator, output = _measured(path.steps, shape)
                found = _shape_of(output, parts[-1].name)
                if found.width != path.width_out or found.size != (size or found.size):
                    raise ConfigError(
                        f"{self.name}: {parts[-1].name} gives {found} after {shape.width} "
                        f"channels, but {path.width_out} channels"
                        + (f" of {size[0]}x{size[1]}" if size else "")
                        + " otherwise: a block's output must not depend on the width before it"
                    )
                size = found.size
                operators.append(operator)
            name, *more = path.picks
            label = f"{name}-{path.width}" if several else name
            options.append(
                UserOption(
                    name="+".join((label, *more)),
                    picks=path.picks,
                    width=path.width,
                    width_out=path.width_out,
                    operators=tuple(operators),
                )
            )
        assert size is not None
        return UserBlock(
            parts=_names(parts),
            searched=_names(part for part in parts if part.kind == "searched"),
            size=size,
            options=tuple(options),
        )

    def _end(self, parts: Sequence[Part], before: Sequence[_Shape]) -> tuple[UserOperator, ...]:
        steps = [Step(part=part) for part in parts]
        for place, part in enumerate(parts):
            reached = [run_steps(steps[:place], _zeros(shape))[1] for shape in before]
            _check_fixed(part, {features.shape[1] for features in reached})
        operators: list[UserOperator] = []
        for shape in before:
            operator, output = _measured(steps, shape)
            if output.shape != (_BATCH, self.classes):
                raise ConfigError(
                    f"{self.name}: {parts[-1].name} gives {tuple(output.shape[1:])} per image, not "
                    f"{self.classes} logits",
                    hint="the function can take the number: def network(classes): ...",
                )
            assert operator is not None  # no part of the end is a skip
            operators.append(operator)
        return tuple(operators)


def _measured(
    steps: Sequence[Step], shape: tuple[int, int, int], *, first: nn.Module | None = None
) -> tuple[UserOperator | None, Tensor]:
    """Build and run parts: what they cost (None where nothing runs), and what they give."""
    # Attention is counted where it is spelled out; kernels that fuse it are not, on processors.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        built, output = run_steps(steps, _zeros(shape))
    modules = [module for _, module in built if module is not None]
    modules = modules if first is None else [first, *modules]
    if not modules:
        return None, output
    whole = nn.Sequential(*modules)
    return UserOperator(
        macs=counter.get_total_flops() // (2 * _BATCH),
        params=sum(parameter.numel() for parameter in whole.parameters()),
        weights=folded_weights(whole),
        digest=_digest(modules),
    ), output


def _digest(modules: Sequence[nn.Module]) -> str:
    hashed = hashlib.sha256()
    for module in modules:
        classes = [
            f"{type(each).__module__}.{type(each).__qualname__}" for each in module.modules()
        ]
        # A file's module is called by where it lies, which is no part of what it says.
        classes = [
            name.rpartition(".")[2] if name.startswith("_hwnas_") else name for name in classes
        ]
        tensors = [
            f"{name} {tuple(tensor.shape)} {tensor.dtype}"
            for name, tensor in (*module.named_parameters(), *module.named_buffers())
        ]
        for line in (*classes, _ADDRESS.sub("", repr(module)), *tensors):
            hashed.update(line.encode() + b"\n")
    return hashed.hexdigest()[:16]


def _check_fixed(part: Part, widths: set[int]) -> None:
    if len(widths) > 1 and part.has_weights:
        module = part.build(FIXED, 0, 0)
        kind = type(module).__name__
        listed = ", ".join(map(str, sorted(widths, reverse=True)))
        raise ConfigError(
            f"{part.place(FIXED)} is a fixed {kind} behind a searched width ({listed}): it fits "
            "one width alone",
            hint=f"have it built for what is before it: Follows(lambda width: {kind}(width, ...))",
        )


def _check_width(step: Step, before: int, shape: _Shape) -> None:
    """Refuse a part without `widths` that changes the width, and a skip of one that has some."""
    part, place = step.part, step.part.place(step.option)
    if part.kind == "searched" and part.widths is None and shape.width != before:
        raise ConfigError(
            f"{place} gives {shape.width} channels for {before}, but {part.name} has no `widths`, "
            "so it keeps the width",
            hint="declare what it may give: Searched({...}, widths=(32, 24, 16))",
        )
    if part.options[step.option] is None and step.width not in (None, before):
        raise ConfigError(
            f"{place} runs nothing, so it keeps {before} channels, but {part.name} has widths "
            f"{', '.join(map(str, part.widths or ()))}",
            hint="leave `widths` out, so that all of its options keep the width, or leave the "
            "option out",
        )


def _shape_of(output: Tensor, place: str) -> _Shape:
    if output.ndim != 4:
        raise ConfigError(
            f"{place} gives {tuple(output.shape[1:])} per image, not channels, height and width",
            hint="within the searched part of a network features are images; flatten them in what "
            "comes after it",
        )
    return _Shape(*output.shape[1:])


def _zeros(shape: tuple[int, ...]) -> Tensor:
    return torch.zeros(_BATCH, *shape)


def _names(parts: Iterable[Part]) -> tuple[str, ...]:
    return tuple(part.name for part in parts)
