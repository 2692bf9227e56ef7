"""Rules of layers: convolutions, linear layers, batch normalization, pooling."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional

from hwnas.robustness.bounds.bounded import Bounded
from hwnas.robustness.bounds.rules.refusals import check_constant, check_dims, check_rank, refuse
from hwnas.robustness.bounds.steps import folded, largest, linear, unfolded

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from hwnas.robustness.bounds.rules.refusals import Operand, Table


def _convolution(layer: Callable[..., Tensor]) -> Callable[..., Bounded]:
    """Return the rule of a convolution of any number of dimensions."""

    def rule(
        input: Bounded,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
    ) -> Bounded:
        check_constant(weight, bias)
        check_rank(input, least=weight.ndim)
        settings = (stride, padding, dilation, groups)
        return linear(
            lambda one: layer(one, weight, bias, *settings),
            input,
            magnitude=lambda one: layer(one, weight.abs(), None, *settings),
            transposed=_transposed_convolution(input.shape, weight, *settings),
            constant=None if bias is None else bias.view(-1, *(1,) * (input.ndim - 2)),
        )

    return rule


def _transposed_convolution(
    shape: torch.Size, weight: Tensor, stride: Any, padding: Any, dilation: Any, groups: int
) -> Callable[[Tensor], Tensor] | None:
    """Return the transposed map of a two-dimensional convolution; None of one that has no name."""
    if len(shape) != 4 or isinstance(padding, str):
        return None
    strides, paddings, dilations = (
        tuple(each) * (2 // len(each)) if isinstance(each, tuple | list) else (each, each)
        for each in (stride, padding, dilation)
    )
    # What the last step of a stride leaves over of the input.
    rests = [
        (size + 2 * padding - dilation * (kernel - 1) - 1) % stride
        for size, padding, dilation, kernel, stride in zip(
            shape[2:], paddings, dilations, weight.shape[2:], strides, strict=True
        )
    ]

    def transposed(coefficients: Tensor) -> Tensor:
        found = functional.conv_transpose2d(
            folded(coefficients), weight, None, strides, paddings, rests, groups, dilations
        )
        return unfolded(found, len(coefficients))

    return transposed


def _linear_layer(input: Bounded, weight: Tensor, bias: Tensor | None = None) -> Bounded:
    check_constant(weight, bias)
    check_rank(input, least=2)
    return linear(
        lambda one: functional.linear(one, weight, bias),
        input,
        magnitude=lambda one: functional.linear(one, weight.abs()),
        transposed=lambda coefficients: coefficients @ weight,
        constant=bias,
    )


def _matmul(input: Operand, other: Operand) -> Bounded:
    if isinstance(input, Bounded) and isinstance(other, Bounded):
        refuse("a product of two bounded matrices")
    if isinstance(input, Bounded):
        assert isinstance(other, Tensor)
        check_rank(input, least=2)
        if other.ndim > 2 and other.ndim > input.ndim:
            refuse("it mixes the images of a batch")
        return linear(lambda one: one @ other, input, magnitude=lambda one: one @ other.abs())
    assert isinstance(input, Tensor)
    assert isinstance(other, Bounded)
    if other.ndim < 3 or input.ndim > other.ndim:
        refuse("it mixes the images of a batch")
    return linear(lambda one: input @ one, other, magnitude=lambda one: input.abs() @ one)


def _batch_norm(
    input: Bounded,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Bounded:
    if training or running_mean is None or running_var is None:
        refuse("statistics of the batch have no bound: put the network into eval mode")
    scale = torch.rsqrt(running_var + eps)
    if weight is not None:
        scale = scale * weight
    shift = -running_mean * scale if bias is None else bias - running_mean * scale
    shape = (-1, *(1,) * (input.ndim - 2))
    scale, shift = scale.view(shape), shift.view(shape)
    size = scale.abs()
    return linear(
        lambda one: torch.addcmul(shift, one, scale),
        input,
        magnitude=lambda one: one * size,
        transposed=lambda coefficients: coefficients * scale,
        constant=shift,
        is_diagonal=True,
    )


def _total(input: Bounded, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Bounded:
    check_dims(input, dim)
    return linear(lambda one: one.sum(dim, keepdim), input)


def _mean(input: Bounded, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Bounded:
    check_dims(input, dim)
    return linear(lambda one: one.mean(dim, keepdim), input)


def _nonnegative(function: Callable[..., Tensor]) -> Callable[..., Bounded]:
    """Return the rule of a function that averages or moves values, and adds no constant."""

    def rule(input: Bounded, *args: Any, **kwargs: Any) -> Bounded:
        check_rank(input, least=4)
        return linear(lambda one: function(one, *args, **kwargs), input)

    return rule


def _interpolate(
    input: Bounded,
    size: Any = None,
    scale_factor: Any = None,
    mode: str = "nearest",
    align_corners: bool | None = None,
    recompute_scale_factor: bool | None = None,
    antialias: bool = False,
) -> Bounded:
    if mode == "bicubic":
        refuse("bicubic weights are negative too")
    return linear(
        lambda one: functional.interpolate(
            one, size, scale_factor, mode, align_corners, recompute_scale_factor, antialias
        ),
        input,
    )


def _pad(input: Bounded, pad: Sequence[int], mode: str = "constant", value: Any = None) -> Bounded:
    if len(pad) >= 2 * input.ndim:
        refuse("it pads the batch")
    size = tuple(pad)
    return linear(
        lambda one: functional.pad(one, size, mode, value),
        input,
        magnitude=lambda one: functional.pad(one, size, mode),
    )


def _max_pool2d(
    input: Bounded,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Bounded:
    check_rank(input, least=4)
    if return_indices:
        refuse("which element is the largest depends on the images")

    def gather(values: Tensor) -> tuple[Tensor, Tensor]:
        return functional.max_pool2d_with_indices(
            values, kernel_size, stride, padding, dilation, ceil_mode
        )

    return largest(gather, input)


LAYERS: Table = (
    (_convolution(functional.conv1d), ("conv1d",)),
    (_convolution(functional.conv2d), ("conv2d",)),
    (_linear_layer, ("linear",)),
    (_matmul, ("matmul", "mm", "__matmul__")),
    (_batch_norm, ("batch_norm",)),
    (_total, ("sum",)),
    (_mean, ("mean",)),
    (_nonnegative(functional.avg_pool2d), ("avg_pool2d",)),
    (_nonnegative(functional.adaptive_avg_pool2d), ("adaptive_avg_pool2d",)),
    (_nonnegative(functional.pixel_shuffle), ("pixel_shuffle",)),
    (_nonnegative(functional.channel_shuffle), ("channel_shuffle",)),
    (_interpolate, ("interpolate",)),
    (_pad, ("pad",)),
    (_max_pool2d, ("max_pool2d",)),
)
