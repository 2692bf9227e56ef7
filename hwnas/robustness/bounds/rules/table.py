"""All rules, by the functions that torch calls."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional

from hwnas.robustness.bounds.rules.arithmetic import ARITHMETIC
from hwnas.robustness.bounds.rules.functions import FUNCTIONS
from hwnas.robustness.bounds.rules.layers import LAYERS
from hwnas.robustness.bounds.rules.shapes import SHAPES

if TYPE_CHECKING:
    from collections.abc import Callable

_TABLE = (*ARITHMETIC, *LAYERS, *SHAPES, *FUNCTIONS)


def _named(*names: str) -> list[Callable[..., Any]]:
    """Return what torch has under these names, wherever it keeps its functions."""
    places = (torch, Tensor, functional, torch._C._nn)
    return [getattr(place, name) for name in names for place in places if hasattr(place, name)]


RULES: dict[Callable[..., Any], Callable[..., Any]] = {
    function: rule for rule, names in _TABLE for function in _named(*names)
}
"""The rule of each function of torch that has one."""

METADATA: frozenset[Any] = frozenset(
    _named(
        "shape", "ndim", "dtype", "device", "is_cuda", "requires_grad", "layout", "size", "dim",
        "ndimension", "numel", "nelement", "__len__", "is_floating_point", "is_complex",
        "element_size", "is_contiguous", "get_device", "__hash__",
    )
)  # fmt: skip
"""What tells of a tensor without its values."""


def in_place_of(function: Callable[..., Any]) -> tuple[Callable[..., Any], bool]:
    """Return the function that a function is the form in place of, or itself, and whether it is."""
    return _IN_PLACE.get(function, (function, False))


def _forms_in_place() -> dict[Callable[..., Any], tuple[Callable[..., Any], bool]]:
    found = {}
    for _, names in _TABLE:
        for name in names:
            form = f"__i{name[2:]}" if name.startswith("__") else f"{name}_"
            for function in _named(form):
                found[function] = (_named(name)[0], True)
    return found


_IN_PLACE = _forms_in_place()
