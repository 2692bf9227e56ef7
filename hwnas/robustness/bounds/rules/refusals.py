"""Why a rule refuses, and the checks that several of them make."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn, TypeAlias

from torch import Tensor

from hwnas.core.errors import UnboundedOperationError
from hwnas.robustness.bounds.bounded import Bounded

Operand: TypeAlias = Bounded | Tensor | float
"""What arithmetic takes."""

Table: TypeAlias = tuple[tuple[Callable[..., Any], tuple[str, ...]], ...]
"""Rules, each with the names under which torch has its function."""


def refuse(reason: str) -> NoReturn:
    """Say why there is no sound bound; who asked adds what, and where.

    Raises:
        UnboundedOperationError: Always.
    """
    raise UnboundedOperationError(reason)


def check_constant(*parameters: Bounded | Tensor | None) -> None:
    """Check that the weights of a layer do not depend on the images."""
    if any(isinstance(each, Bounded) for each in parameters):
        refuse("its weights depend on the images")


def check_shapes(*operands: Operand) -> None:
    """Check that no broadcasting puts the batch of one operand beside another dimension."""
    bounded = [each.ndim for each in operands if isinstance(each, Bounded)]
    others = [each.ndim for each in operands if isinstance(each, Tensor)]
    if len(set(bounded)) > 1 or any(ndim > bounded[0] for ndim in others):
        refuse("broadcasting mixes the images of a batch")


def check_rank(value: Bounded, *, least: int) -> None:
    """Check that a function that works on the last dimensions does not take the batch for one."""
    if value.ndim < least:
        refuse("it takes the batch for a dimension of one image")


def check_dims(value: Bounded, dim: Any) -> None:
    """Check that a sum over dimensions leaves the batch alone."""
    dims = (dim,) if isinstance(dim, int) else dim
    if not dims or any(each % value.ndim == 0 for each in dims):
        refuse("it sums over the images of a batch, whose statistics have no bound")
