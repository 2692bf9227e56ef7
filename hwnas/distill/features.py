"""Tapping the layers of a network that is not ours to edit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from hwnas.core.errors import ConfigError, nearest

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

    from torch import Tensor, nn


class FeatureTaps:
    """Collect the outputs of named submodules during a forward pass.

    Args:
        module: The network.
        names: Submodules, as in `named_modules`; each must run once per forward pass.

    Raises:
        ConfigError: No submodule has one of the names.

    Example:
        with FeatureTaps(teacher, ("stem", "blocks.0")) as taps:
            logits = teacher(images)
            stem, block = taps.take()
    """

    def __init__(self, module: nn.Module, names: Sequence[str]) -> None:
        known = dict(module.named_modules())
        for name in names:
            if name not in known:
                similar = nearest(name, known)
                hint = f"did you mean `{similar[0]}`?" if similar else ""
                raise ConfigError(f"{type(module).__name__} has no layer `{name}`", hint=hint)
        self._modules = [known[name] for name in names]
        self._outputs: dict[int, Tensor] = {}

    def __enter__(self) -> Self:
        self._handles = [
            module.register_forward_hook(self._keeper(index))
            for index, module in enumerate(self._modules)
        ]
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._outputs.clear()

    def take(self) -> list[Tensor]:
        """Return the last forward pass's outputs, in the order of the names, and forget them."""
        outputs = [self._outputs[index] for index in range(len(self._modules))]
        self._outputs.clear()
        return outputs

    def _keeper(self, index: int) -> object:
        def keep(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            self._outputs[index] = output

        return keep
