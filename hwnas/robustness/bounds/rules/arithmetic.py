"""Rules of sums, differences, products and quotients."""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

import torch
from torch import Tensor

from hwnas.robustness.bounds.bounded import Bounded
from hwnas.robustness.bounds.rules.refusals import check_shapes, refuse
from hwnas.robustness.bounds.steps import itself, linear, product

if TYPE_CHECKING:
    from hwnas.robustness.bounds.rules.refusals import Operand, Table


def _add(input: Operand, other: Operand, *, alpha: float = 1) -> Bounded:
    check_shapes(input, other)
    if not isinstance(input, Bounded):
        assert isinstance(other, Bounded)
        return _add(_scaled(other, alpha), input)
    if not isinstance(other, Bounded):
        return _plus(input, alpha * other)
    other = _scaled(other, alpha)
    alike = input.shape == other.shape
    return linear(torch.add, input, other, transposed=itself if alike else None)


def _scaled(input: Bounded, factor: float) -> Bounded:
    return input if factor == 1 else _mul(input, factor)


def _plus(value: Bounded, constant: Tensor | float) -> Bounded:
    is_alike = _keeps_shape(value, constant)
    return linear(
        lambda one: one + constant,
        value,
        magnitude=itself if is_alike else lambda one: one + 0.0 * constant,
        transposed=itself if is_alike else None,
        constant=constant,
        is_diagonal=is_alike,
    )


def _sub(input: Operand, other: Operand, *, alpha: float = 1) -> Bounded:
    return _add(input, other, alpha=-alpha)


def _rsub(input: Operand, other: Operand, *, alpha: float = 1) -> Bounded:
    return _add(other, input, alpha=-alpha)


def _neg(input: Bounded) -> Bounded:
    return _mul(input, -1.0)


def _mul(input: Operand, other: Operand) -> Bounded:
    check_shapes(input, other)
    if isinstance(input, Bounded):
        return product(input, other) if isinstance(other, Bounded) else _times(input, other)
    assert isinstance(other, Bounded)
    return _times(other, input)


def _times(value: Bounded, factor: Tensor | float) -> Bounded:
    is_alike = _keeps_shape(value, factor)
    return linear(
        lambda one: one * factor,
        value,
        magnitude=lambda one: one * abs(factor),
        transposed=(lambda each: each * factor) if is_alike else None,
        is_diagonal=is_alike,
    )


def _keeps_shape(value: Bounded, constant: Tensor | float) -> bool:
    """Tell whether what comes of both is of the value's own shape."""
    if not isinstance(constant, Tensor):
        return True
    sizes = zip(reversed(value.shape), reversed(constant.shape), strict=False)
    return all(size in (1, own) for own, size in sizes)


def _div(input: Operand, other: Operand, *, rounding_mode: str | None = None) -> Bounded:
    if rounding_mode is not None:
        refuse("rounding is no continuous function")
    if isinstance(other, Bounded):
        refuse("a division by a bounded value")
    return _mul(input, 1.0 / other)


def _reciprocal(input: Bounded, other: float = 1.0) -> NoReturn:
    refuse("a division by a bounded value")


def _addcmul(input: Operand, tensor1: Operand, tensor2: Operand, *, value: float = 1) -> Bounded:
    if isinstance(tensor1, Bounded) or isinstance(tensor2, Bounded):
        return _add(input, _mul(tensor1, tensor2), alpha=value)
    return _add(input, tensor1 * tensor2, alpha=value)


def _where(condition: Bounded | Tensor, input: Operand, other: Operand) -> Bounded:
    if isinstance(condition, Bounded):
        refuse("a condition that depends on the images")
    check_shapes(input, other, condition)
    values = [each for each in (input, other) if isinstance(each, Bounded)]

    def chosen(*given: Tensor, keeps_constants: bool = True) -> Tensor:
        parts = iter(given)
        one, two = (
            next(parts) if isinstance(each, Bounded) else each if keeps_constants else 0.0
            for each in (input, other)
        )
        return torch.where(condition, one, two)

    return linear(chosen, *values, magnitude=lambda *given: chosen(*given, keeps_constants=False))


ARITHMETIC: Table = (
    (_add, ("add", "__add__", "__radd__")),
    (_sub, ("sub", "subtract", "__sub__")),
    (_rsub, ("rsub", "__rsub__")),
    (_neg, ("neg", "negative", "__neg__")),
    (_mul, ("mul", "multiply", "__mul__", "__rmul__")),
    (_div, ("div", "divide", "true_divide", "__truediv__")),
    (_reciprocal, ("reciprocal", "__rdiv__", "__rtruediv__")),
    (_addcmul, ("addcmul",)),
    (_where, ("where",)),
)
