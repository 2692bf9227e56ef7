"""The tensor that a network's own forward is called with, to find bounds instead of values."""

from __future__ import annotations

import inspect
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import torch
from torch import nn

from hwnas.core.errors import UnboundedOperationError
from hwnas.robustness.bounds.bounded import Bounded
from hwnas.robustness.bounds.rules.shapes import VIEWS
from hwnas.robustness.bounds.rules.table import METADATA, RULES, in_place_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from types import FrameType

_HINT = (
    "use layers that have a rule (convolution, batch normalization in eval mode, linear layers, "
    "ReLU, h-swish, pooling, sums and products), or leave certified bounds out"
)
_PACKAGE = Path(__file__).parent


@final
class BoundedTensor(torch.Tensor):
    """A tensor of which only bounds are known.

    It has a shape, a type and a device, and no values. Every function of torch that it is given to
    is looked up in `RULES`; what has no rule raises, be it called through torch's Python interface
    or below it, so that no operation is ever passed over.

    Attributes:
        bounded: The value.
        is_aliased: It is a view, or has views: what changes it in place changes others too.
    """

    bounded: Bounded
    is_aliased: bool

    @staticmethod
    def __new__(cls, bounded: Bounded) -> BoundedTensor:
        """Wrap a bounded value."""
        center = bounded.interval.any_tensor
        self = torch.Tensor._make_wrapper_subclass(
            cls, center.shape, dtype=center.dtype, device=center.device
        )
        self.bounded, self.is_aliased = bounded, False
        return self

    def __init__(self, bounded: Bounded) -> None:
        pass

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Apply the rule of a function."""
        kwargs = kwargs or {}
        if func in METADATA or _is_getter(func):
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **kwargs)
        return _apply(func, args, dict(kwargs))

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Refuse what reached torch past its Python interface."""
        raise _unbounded(str(func), "")

    def __repr__(self) -> str:  # type: ignore[override]
        return f"BoundedTensor(shape={tuple(self.shape)}, dtype={self.dtype})"


def _apply(func: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    name = _name_of(func)
    plain, in_place = in_place_of(func)
    in_place = bool(kwargs.pop("inplace", False)) or in_place
    rule = RULES.get(plain)
    if rule is None:
        raise _unbounded(name, "")
    try:
        given = inspect.signature(rule).bind(*_unwrapped(args), **_unwrapped(kwargs))
    except TypeError as error:
        raise _unbounded(name, f"with these arguments ({error})") from error
    try:
        result = rule(*given.args, **given.kwargs)
    except UnboundedOperationError as error:
        raise _unbounded(name, error.message) from error
    if in_place:
        return _replaced(name, args[0], result)
    found = _wrapped(result, {id(each.bounded): each for each in _handles((args, kwargs))})
    if rule in VIEWS:
        for each in _handles((args, kwargs, found)):
            each.is_aliased = True
    return found


def _replaced(name: str, target: Any, result: Any) -> Any:
    """Let a tensor hold another value, as an operation in place does."""
    if not isinstance(target, BoundedTensor):
        raise _unbounded(name, "it writes bounded values into a tensor of constants")
    if target.is_aliased or not isinstance(result, Bounded) or result.shape != target.shape:
        raise _unbounded(name, "it changes a tensor in place that others are views of")
    target.bounded = result
    return target


def _handles(tree: Any) -> list[BoundedTensor]:
    if isinstance(tree, BoundedTensor):
        return [tree]
    if isinstance(tree, dict):
        tree = list(tree.values())
    if isinstance(tree, tuple | list):
        return [found for each in tree for found in _handles(each)]
    return []


def _unwrapped(tree: Any) -> Any:
    if isinstance(tree, BoundedTensor):
        return tree.bounded
    if isinstance(tree, dict):
        return {key: _unwrapped(value) for key, value in tree.items()}
    # Exactly these: a torch.Size or a named tuple holds no tensors of ours.
    if type(tree) in (tuple, list):
        return type(tree)(map(_unwrapped, tree))
    return tree


def _wrapped(tree: Any, known: Mapping[int, BoundedTensor]) -> Any:
    if isinstance(tree, Bounded):
        # What a rule hands through is the same tensor, as it is in torch.
        return known[id(tree)] if id(tree) in known else BoundedTensor(tree)
    if type(tree) in (tuple, list):
        return type(tree)(_wrapped(each, known) for each in tree)
    return tree


def _name_of(func: Callable[..., Any]) -> str:
    name: str = getattr(func, "__name__", str(func))
    # A property: what it is called is known to what it is read through.
    return getattr(getattr(func, "__self__", None), "__name__", name) if name == "__get__" else name


def _is_getter(func: Callable[..., Any]) -> bool:
    """Tell whether a property is read, such as `shape`: one that has no values in it."""
    return (
        getattr(func, "__name__", "") == "__get__" and getattr(func, "__self__", None) in METADATA
    )


def _unbounded(name: str, reason: str) -> UnboundedOperationError:
    because = f": {reason}" if reason else ""
    return UnboundedOperationError(
        f"`{name}` has no sound bound{because} ({_caller()})", hint=_HINT
    )


def _caller() -> str:
    """Say which line called torch, and in which module."""
    frame: FrameType | None = sys._getframe(1)
    line = ""
    while frame is not None:
        file = Path(frame.f_code.co_filename)
        ours = file.is_relative_to(_PACKAGE)
        if not ours and not line and "torch" not in file.parts:
            line = f"{file.name}:{frame.f_lineno}"
        module = frame.f_locals.get("self")
        if not ours and isinstance(module, nn.Module):
            return f"in {type(module).__name__}, {line or f'{file.name}:{frame.f_lineno}'}"
        frame = frame.f_back
    return f"at {line or 'an unknown place'}"
