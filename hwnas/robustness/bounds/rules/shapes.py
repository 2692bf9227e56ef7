"""Rules of what moves values about, and of what leaves them as they are.

No rule lets values of one image come beside those of another: bounds are found image by image.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from hwnas.robustness.bounds.bounded import Bounded
from hwnas.robustness.bounds.rules.refusals import refuse
from hwnas.robustness.bounds.steps import itself, linear

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from hwnas.robustness.bounds.rules.refusals import Table


def _cat(tensors: Sequence[Bounded | Tensor], dim: int = 0) -> Bounded:
    return _joined(torch.cat, tensors, dim)


def _stack(tensors: Sequence[Bounded | Tensor], dim: int = 0) -> Bounded:
    return _joined(torch.stack, tensors, dim)


def _joined(join: Callable[..., Tensor], tensors: Sequence[Bounded | Tensor], dim: int) -> Bounded:
    values = [each for each in tensors if isinstance(each, Bounded)]
    if dim == 0 or dim == -(values[0].ndim + (join is torch.stack)):
        refuse("it mixes the images of a batch")

    def joined(*given: Tensor, keeps_constants: bool = True) -> Tensor:
        parts = iter(given)
        return join(
            [
                next(parts)
                if isinstance(each, Bounded)
                else each
                if keeps_constants
                else torch.zeros_like(each)
                for each in tensors
            ],
            dim,
        )

    return linear(joined, *values, magnitude=lambda *given: joined(*given, keeps_constants=False))


def _getitem(input: Bounded, index: Any) -> Bounded:
    parts = index if isinstance(index, tuple) else (index,)
    first = parts[0] if parts else None
    if not (first is Ellipsis or (isinstance(first, slice) and first == slice(None))):
        refuse("it picks images of a batch")
    if any(isinstance(each, Bounded) for each in parts):
        refuse("which element is taken depends on the images")
    if first is Ellipsis and sum(map(_dims_taken, parts[1:])) >= input.ndim:
        refuse("it picks images of a batch")
    if sum(isinstance(each, Tensor | list) for each in parts) > 1:
        refuse("several lists of indices may move the batch")
    return linear(lambda one: one[index], input)


def _dims_taken(index: Any) -> int:
    """Count the dimensions that a part of an index is for: a mask is for all that it has."""
    if index is None:
        return 0
    if isinstance(index, Tensor | list):
        given = torch.as_tensor(index)
        return given.ndim if given.dtype == torch.bool else 1
    return 1


def _permute(input: Bounded, *dims: Any) -> Bounded:
    order = dims[0] if len(dims) == 1 and isinstance(dims[0], tuple | list) else dims
    if order[0] not in (0, -input.ndim):
        refuse("it moves the batch")
    return linear(lambda one: one.permute(*order), input)


def _transpose(input: Bounded, dim0: int, dim1: int) -> Bounded:
    if {dim0 % input.ndim, dim1 % input.ndim} & {0}:
        refuse("it moves the batch")
    return linear(lambda one: one.transpose(dim0, dim1), input)


def _chunk(input: Bounded, chunks: int, dim: int = 0) -> tuple[Bounded, ...]:
    return _pieces(input, [len(each) for each in torch.arange(input.shape[dim]).chunk(chunks)], dim)


def _split(input: Bounded, split_size: Any, dim: int = 0) -> tuple[Bounded, ...]:
    whole = torch.arange(input.shape[dim])
    return _pieces(input, [len(each) for each in torch.split(whole, split_size)], dim)


def _pieces(input: Bounded, sizes: Iterable[int], dim: int) -> tuple[Bounded, ...]:
    found, start = [], 0
    for size in sizes:
        found.append(_narrow(input, dim, start, size))
        start += size
    return tuple(found)


def _narrow(input: Bounded, dim: int, start: int, length: int) -> Bounded:
    if dim % input.ndim == 0:
        refuse("it picks images of a batch")
    return linear(lambda one: one.narrow(dim, start, length), input)


def _view(input: Bounded, *shape: Any) -> Bounded:
    if shape and isinstance(shape[0], torch.dtype):
        refuse("it reads bits as another type")
    return linear(lambda one: one.reshape(*shape), input)


def _expand(input: Bounded, *sizes: Any) -> Bounded:
    size = sizes[0] if len(sizes) == 1 and isinstance(sizes[0], tuple | list) else sizes
    if len(size) != input.ndim:
        refuse("it moves the batch")
    return linear(lambda one: one.expand(*size), input)


def _expand_as(input: Bounded, other: Bounded | Tensor) -> Bounded:
    return _expand(input, *other.shape)


def _flatten(input: Bounded, start_dim: int = 0, end_dim: int = -1) -> Bounded:
    return linear(lambda one: one.flatten(start_dim, end_dim), input)


def _unsqueeze(input: Bounded, dim: int) -> Bounded:
    if dim % (input.ndim + 1) == 0:
        refuse("it moves the batch")
    return linear(lambda one: one.unsqueeze(dim), input)


def _squeeze(input: Bounded, dim: Any = None) -> Bounded:
    if dim is None and input.shape[0] == 1:
        refuse("it takes the batch away")
    if dim is None:
        return linear(torch.squeeze, input)
    return linear(lambda one: one.squeeze(dim), input)


def _same(input: Bounded, *args: Any, **kwargs: Any) -> Bounded:
    return input


def _clone(input: Bounded, *, memory_format: Any = None) -> Bounded:
    return linear(torch.clone, input)


def _detach(input: Bounded) -> Bounded:
    # To differentiation it is a constant; to bounds it is the value itself.
    return linear(torch.detach, input, transposed=itself)


def _to(input: Bounded, *args: Any, **kwargs: Any) -> Bounded:
    wanted = [each for each in (*args, *kwargs.values()) if isinstance(each, torch.dtype)]
    own = input.interval.any_tensor
    wanted += [each.dtype for each in args if isinstance(each, Tensor)]
    if any(dtype != own.dtype for dtype in wanted):
        refuse(f"it rounds: bounds are computed in {own.dtype} throughout")
    places = [each for each in (*args, *kwargs.values()) if isinstance(each, torch.device | str)]
    if any(torch.device(place) != own.device for place in places):
        refuse("it moves to another device")
    return input


def _as_dtype(dtype: torch.dtype) -> Callable[[Bounded], Bounded]:
    """Return the rule of a conversion to a type."""

    def rule(input: Bounded, memory_format: Any = None) -> Bounded:
        return _to(input, dtype)

    return rule


def _dropout(input: Bounded, p: float = 0.5, training: bool = True) -> Bounded:
    if training and p > 0:
        refuse("it is random: put the network into eval mode")
    return input


def _filled(like: Bounded, value: float, kwargs: dict[str, Any]) -> Tensor:
    return torch.full_like(like.interval.any_tensor, value, **kwargs)


def _zeros_like(input: Bounded, **kwargs: Any) -> Tensor:
    return _filled(input, 0.0, kwargs)


def _ones_like(input: Bounded, **kwargs: Any) -> Tensor:
    return _filled(input, 1.0, kwargs)


VIEWS = frozenset(
    {
        _getitem, _permute, _transpose, _chunk, _split, _narrow, _view, _expand, _expand_as,
        _flatten, _unsqueeze, _squeeze, _detach,
    }
)  # fmt: skip
"""Rules whose results share memory with what they were made of, or may."""

SHAPES: Table = (
    (_cat, ("cat", "concat", "concatenate")),
    (_stack, ("stack",)),
    (_getitem, ("__getitem__",)),
    (_permute, ("permute",)),
    (_transpose, ("transpose", "swapaxes", "swapdims")),
    (_chunk, ("chunk",)),
    (_split, ("split",)),
    (_narrow, ("narrow",)),
    (_view, ("view", "reshape")),
    (_expand, ("expand",)),
    (_expand_as, ("expand_as",)),
    (_flatten, ("flatten",)),
    (_unsqueeze, ("unsqueeze",)),
    (_squeeze, ("squeeze",)),
    (_same, ("contiguous",)),
    (_clone, ("clone",)),
    (_detach, ("detach",)),
    (_to, ("to",)),
    (_as_dtype(torch.float32), ("float",)),
    (_as_dtype(torch.float64), ("double",)),
    (_as_dtype(torch.float16), ("half",)),
    (_as_dtype(torch.bfloat16), ("bfloat16",)),
    (_zeros_like, ("zeros_like",)),
    (_ones_like, ("ones_like",)),
    (_dropout, ("dropout", "dropout1d", "dropout2d", "feature_dropout", "alpha_dropout")),
)
