"""Which layers of a network may be tutors: found by watching one forward pass.

Every function that PyTorch calls in the pass is recorded, and every tensor that enters or leaves a
submodule. From each convolution we follow its output through normalization, a residual sum and the
activation, and tap what comes out at the submodule where it can be seen.
"""

from __future__ import annotations

import fnmatch
from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from hwnas.core.errors import ConfigError, nearest
from hwnas.distill.features import Tap

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from torch import nn

_CONVOLUTIONS = {"conv2d"}
_NORMALIZATIONS = {"batch_norm", "group_norm", "instance_norm"}
_ACTIVATIONS = {
    "relu", "relu6", "leaky_relu", "prelu", "elu", "selu", "celu", "gelu", "silu", "mish",
    "hardswish", "hardtanh", "softplus",
}  # fmt: skip
_PASSING = {"dropout", "dropout2d", "contiguous", "clone", "detach"}
_SUMS = {"add", "iadd"}

_SHOWN = 6  # kinds of outputs that an error lists


@dataclass(frozen=True, slots=True)
class _Step:
    """A function that was called: its name, and the values that it took and made."""

    function: str
    inputs: tuple[int, ...]
    output: int


@dataclass(frozen=True, slots=True)
class _Site:
    """A value that was seen to enter or leave a submodule."""

    value: int
    module: str
    entering: bool
    call: int


def choose_layers(
    network: nn.Module, images: Tensor, wanted: Sequence[str] = (), *, what: str
) -> tuple[str, ...]:
    """Choose the layers of a network that may be tutors, in the order in which they run.

    By default every convolution, after its normalization, residual sum and activation; where the
    network calls no convolution that PyTorch tells of, the outputs of its blocks.

    Args:
        network: The network, in eval mode.
        images: A few of the images that it takes, (batch, channels, height, width).
        wanted: Submodules to take instead: names, patterns such as `layer?.*`, or taps.
        what: What the network is, for errors.

    Returns:
        Taps, as `FeatureTaps` takes them.

    Raises:
        ConfigError: There are no usable feature maps, or a wanted layer is unknown or has none.

    References:
        Nath et al., RNAS-CL (arXiv 2301.08092): the 31 tutors of WRN-34-10 are its stem and the
        30 convolutions of its blocks. A shortcut's convolution ends in the same sum as its block.
    """
    watched = _watch(network, images)
    if wanted:
        return _wanted(watched, wanted, what)
    values = _after_convolutions(watched) if watched.convolutions else _blocks(watched, network)
    # A tutor is selected among layers: of one layer there is nothing to select.
    if len(values) < 2:
        raise ConfigError(
            f"{what} has no usable feature maps to learn from: a layer must give (batch, channels, "
            f"height, width), larger than 1x1; seen: {_seen(watched)}",
            hint="name layers that do, `[teacher] layers = [...]`; for token features, give a "
            "callable whose network passes them on through a module that reshapes them to maps",
        )
    return tuple(watched.address(values[value]) for value in sorted(values))


class _Watched(TorchFunctionMode):
    """Record a forward pass.

    A value is what a tensor held at some time: a function that works in place makes a new value of
    the same tensor. Later values have higher numbers.
    """

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[_Step] = []
        self.sites: list[_Site] = []
        self.shapes: list[tuple[int, ...]] = []
        self.calls: Counter[tuple[str, bool]] = Counter()
        self._values: dict[int, int] = {}
        self._alive: list[Tensor] = []  # so that no two tensors have the same id

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        inputs = tuple(self._value(tensor) for tensor in _tensors((args, kwargs)))
        made = func(*args, **kwargs)
        name = getattr(func, "__name__", "").strip("_")
        for tensor in _tensors(made):
            self.steps.append(_Step(name, inputs, self._new_value(tensor)))
        return made

    def see(self, module: str, features: object, *, entering: bool) -> None:
        """Record what enters or leaves a submodule."""
        self.calls[module, entering] += 1
        if isinstance(features, Tensor):
            value = self._value(features)
            self.sites.append(_Site(value, module, entering, self.calls[module, entering]))

    def usable(self, value: int) -> bool:
        """Say whether a value is a feature map."""
        shape = self.shapes[value]
        return len(shape) == 4 and min(shape[2:]) > 1

    def address(self, site: _Site) -> str:
        """Write where a value can be tapped."""
        repeated = self.calls[site.module, site.entering] > 1
        call = site.call if repeated else None
        return str(Tap(module=site.module, entering=site.entering, call=call))

    @property
    def convolutions(self) -> list[int]:
        """Outputs of convolutions."""
        return [step.output for step in self.steps if step.function in _CONVOLUTIONS]

    def best_sites(self) -> dict[int, _Site]:
        """Return where to tap each value: the first module that gives it, or else that takes it.

        The first to give it is the innermost; one that is called once comes before others.
        """

        def rank(site: _Site) -> tuple[bool, bool]:
            return (site.entering, self.calls[site.module, site.entering] > 1)

        best: dict[int, _Site] = {}
        for site in self.sites:
            if site.value not in best or rank(site) < rank(best[site.value]):
                best[site.value] = site
        return best

    def _value(self, tensor: Tensor) -> int:
        known = self._values.get(id(tensor))
        return self._new_value(tensor) if known is None else known

    def _new_value(self, tensor: Tensor) -> int:
        value = len(self.shapes)
        self.shapes.append(tuple(tensor.shape))
        self._values[id(tensor)] = value
        self._alive.append(tensor)
        return value


def _watch(network: nn.Module, images: Tensor) -> _Watched:
    watched = _Watched()
    handles = []

    def watch(name: str, module: nn.Module) -> None:
        def before(_: nn.Module, inputs: tuple[Any, ...]) -> None:
            watched.see(name, inputs[0] if inputs else None, entering=True)

        def after(_: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            watched.see(name, output, entering=False)

        handles.append(module.register_forward_pre_hook(before))
        handles.append(module.register_forward_hook(after))

    for name, module in network.named_modules():
        if name:
            watch(name, module)
    try:
        with torch.no_grad(), watched:
            network(images)
    finally:
        for handle in handles:
            handle.remove()
    return watched


def _after_convolutions(watched: _Watched) -> dict[int, _Site]:
    """Follow every convolution's output; several that end in one sum are one layer."""
    consumers: dict[int, list[_Step]] = defaultdict(list)
    for step in watched.steps:
        for value in set(step.inputs):
            consumers[value].append(step)
    best = watched.best_sites()
    found = {}
    for convolution in watched.convolutions:
        if not watched.usable(convolution):
            continue
        # Where what comes out last cannot be seen at a module, take the last that can.
        for value in reversed(_path(watched, consumers, convolution)):
            if value in best:
                found[value] = best[value]
                break
    return found


def _path(watched: _Watched, consumers: dict[int, list[_Step]], start: int) -> list[int]:
    """Follow a value through normalization, at most one sum, and up to the first activation."""
    path = [start]
    sums = 0
    while True:
        uses = [
            step
            for step in consumers[path[-1]]
            if watched.shapes[step.output] == watched.shapes[start]
        ]
        by_function = {step.function: step for step in reversed(uses)}
        activation = _first(by_function, _ACTIVATIONS)
        onward = _first(by_function, _NORMALIZATIONS) or activation
        # The sum that ends a block is all that its last layer is used for. What also goes
        # elsewhere is the shortcut of the next block, whose sum is another layer's.
        if onward is None and len(consumers[path[-1]]) == 1:
            onward = _first(by_function, _PASSING)
            if onward is None and sums == 0:
                onward = _first(by_function, _SUMS)
                sums += onward is not None
        if onward is None:
            return path
        path.append(onward.output)
        if onward is activation:
            return path


def _first(steps: dict[str, _Step], functions: set[str]) -> _Step | None:
    return next((step for name, step in steps.items() if name in functions), None)


def _blocks(watched: _Watched, network: nn.Module) -> dict[int, _Site]:
    """Take what modules that hold others give; where those give too little, what all give."""
    modules = dict(network.named_modules())
    given = {
        value: site
        for value, site in watched.best_sites().items()
        if watched.usable(value) and not site.entering
    }
    holders = {
        site.value: site
        for site in watched.sites
        if site.value in given and not site.entering and any(modules[site.module].children())
    }
    return holders if len(holders) > 1 else given


def _wanted(watched: _Watched, wanted: Sequence[str], what: str) -> tuple[str, ...]:
    taps = {watched.address(site): site for site in watched.sites}
    chosen = set()
    for text in wanted:
        named = [
            address
            for address, site in taps.items()
            if text == address or (text == site.module and not site.entering)
        ]
        matching = named or [
            address
            for address, site in taps.items()
            if not site.entering and fnmatch.fnmatchcase(address, text)
        ]
        usable = [address for address in matching if watched.usable(taps[address].value)]
        if not matching:
            similar = nearest(text, (address for address in taps if ":" not in address))
            hint = f"did you mean `{similar[0]}`?" if similar else f"it has {_seen(watched)}"
            raise ConfigError(f"{what} runs no layer `{text}`", hint=hint)
        if not usable:
            shape = watched.shapes[taps[matching[0]].value]
            raise ConfigError(
                f"layer `{matching[0]}` of {what} gives {_written(shape)}: no feature map, which "
                "is (batch, channels, height, width), larger than 1x1",
                hint=f"it has {_seen(watched)}",
            )
        chosen.update(usable)
    return tuple(address for address in taps if address in chosen)


def _seen(watched: _Watched) -> str:
    """List what modules give, each shape once, by the first module that gives it."""
    first: dict[tuple[int, ...], str] = {}
    count: Counter[tuple[int, ...]] = Counter()
    for site in watched.sites:
        if not site.entering:
            shape = watched.shapes[site.value]
            first.setdefault(shape, watched.address(site))
            count[shape] += 1
    listed = [
        f"{_written(shape)} from `{name}`"
        + (f" and {count[shape] - 1} more" if count[shape] > 1 else "")
        for shape, name in first.items()
    ]
    more = [f"{len(listed) - _SHOWN} other shapes"] if len(listed) > _SHOWN else []
    return ", ".join([*listed[:_SHOWN], *more]) or "no module that gives a tensor"


def _written(shape: tuple[int, ...]) -> str:
    return f"({', '.join(['batch', *map(str, shape[1:])])})"


def _tensors(value: object) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)
