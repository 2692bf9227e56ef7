"""Tapping the layers of a network that is not ours to edit."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from torch import Tensor

from hwnas.core.errors import ConfigError, nearest

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import TracebackType

    from torch import nn

_INPUT = ":input"


@dataclass(frozen=True, slots=True, kw_only=True)
class Tap:
    """A place in a forward pass: what a submodule gives or takes, in one of its calls.

    Written `layer1.0.conv2`, `layer1.0.conv2:input` (what it takes) and `layer1.0.relu#2` (what
    it gives when it is called for the second time).

    Attributes:
        module: The submodule, as in `named_modules`.
        entering: What it takes instead of what it gives.
        call: Which of its calls, from 1; None where there is but one.
    """

    module: str
    entering: bool = False
    call: int | None = None

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a tap as it is written.

        >>> Tap.parse("layer1.0.relu#2")
        Tap(module='layer1.0.relu', entering=False, call=2)
        """
        place, _, number = text.rpartition("#")
        call = int(number) if place and number.isdecimal() else None
        place = place if call is not None else text
        return cls(module=place.removesuffix(_INPUT), entering=place.endswith(_INPUT), call=call)

    def __str__(self) -> str:
        side = _INPUT if self.entering else ""
        return f"{self.module}{side}" + (f"#{self.call}" if self.call is not None else "")


class FeatureTaps:
    """Collect what flows through named places of a network during a forward pass.

    What is collected is taken at that moment, so that a later operation in place, such as
    `ReLU(inplace=True)`, does not change what `reduce` has made of it.

    Args:
        module: The network.
        layers: The places: submodules as in `named_modules`, or taps as `Tap` writes them.
        reduce: What to keep of each tensor; None keeps the tensor itself.

    Raises:
        ConfigError: No submodule has one of the names. In a forward pass: a submodule gives no
            tensor, or is called twice where one call was asked for.

    Example:
        with FeatureTaps(teacher, ("stem", "blocks.0")) as taps:
            logits = teacher(images)
            stem, block = taps.take()
    """

    def __init__(
        self,
        module: nn.Module,
        layers: Sequence[str],
        *,
        reduce: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        known = dict(module.named_modules())
        self._layers = tuple(layers)
        self._taps: dict[tuple[str, bool], list[tuple[int | None, int]]] = defaultdict(list)
        for index, layer in enumerate(layers):
            tap = Tap.parse(layer)
            if tap.module not in known:
                similar = nearest(tap.module, known)
                hint = f"did you mean `{similar[0]}`?" if similar else ""
                raise ConfigError(f"{type(module).__name__} has no layer `{layer}`", hint=hint)
            self._taps[tap.module, tap.entering].append((tap.call, index))
        self._root, self._known = module, known
        self._reduce = reduce or (lambda features: features)
        self._calls: Counter[tuple[str, bool]] = Counter()
        self._kept: dict[int, Tensor] = {}

    def __enter__(self) -> Self:
        self._handles = [self._root.register_forward_pre_hook(self._begin)]
        for name, entering in self._taps:
            module = self._known[name]
            self._handles.append(
                module.register_forward_pre_hook(self._taker(name))
                if entering
                else module.register_forward_hook(self._giver(name))
            )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._kept.clear()

    def take(self) -> list[Tensor]:
        """Return what the last forward pass left, in the order of the layers, and forget it.

        Raises:
            ConfigError: A layer did not run; it is named.
        """
        for index, layer in enumerate(self._layers):
            if index not in self._kept:
                raise ConfigError(
                    f"layer `{layer}` of {type(self._root).__name__} did not run",
                    hint="tap layers that every forward pass goes through",
                )
        kept = [self._kept[index] for index in range(len(self._layers))]
        self._kept.clear()
        return kept

    def _begin(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        self._calls.clear()
        self._kept.clear()

    def _taker(self, name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def hook(module: nn.Module, inputs: tuple[Any, ...]) -> None:
            self._keep(name, entering=True, features=inputs[0] if inputs else None)

        return hook

    def _giver(self, name: str) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
        def hook(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            self._keep(name, entering=False, features=output)

        return hook

    def _keep(self, name: str, *, entering: bool, features: Any) -> None:
        self._calls[name, entering] += 1
        now = self._calls[name, entering]
        for call, index in self._taps[name, entering]:
            if call not in (None, now):
                continue
            layer = self._layers[index]
            if call is None and now > 1:
                raise ConfigError(
                    f"layer `{layer}` is called more than once in a forward pass",
                    hint=f"say which call: `{layer}#1`",
                )
            if not isinstance(features, Tensor):
                kind = type(features).__name__
                raise ConfigError(f"layer `{layer}` gives {kind}, not a tensor")
            self._kept[index] = self._reduce(features)
