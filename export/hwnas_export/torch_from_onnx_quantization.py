"""Rules for QuantizeLinear and DequantizeLinear; gradients pass straight through the rounding.

A quantized value is held as a float that is a whole number, so that what lies between two nodes (a
pooling, a reshape) needs no rule of its own and gradients flow through it. Rounding passes the
gradient on as it is; saturation does not: beyond its range a value is constant in truth.

References:
    Bengio et al., "Estimating or Propagating Gradients Through Stochastic Neurons for Conditional
    Computation", 2013, section 4.
    Athalye et al., "Obfuscated Gradients Give a False Sense of Security", 2018, section 4.1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx

from hwnas_export.torch_from_onnx_shapes import SMALL_INTEGERS

if TYPE_CHECKING:
    from torch import Tensor

    from hwnas_export.torch_from_onnx_node import Node, Operation


def quantize(node: Node) -> Operation:
    """Divide by the scale, round half to even, add the zero point, and saturate."""
    axis, block = node.take("axis", 1), node.take("block_size", 0)
    node.take("saturate")  # of float8 alone
    node.expect("precision", 0)
    wanted = node.take("output_dtype", 0)
    kind = wanted or (node.type_of(2) if node.has(2) else onnx.TensorProto.UINT8)
    if kind not in SMALL_INTEGERS:
        name = "that is no constant" if kind is None else onnx.TensorProto.DataType.Name(kind)
        raise node.error(f"there is no rule for a zero point of a type {name}")
    least, most = SMALL_INTEGERS[kind]

    def run(x: Tensor, scale: Tensor, zero: Tensor | None = None) -> Tensor:
        zero_point = x.new_zeros(()) if zero is None else _along(zero, x, axis, block)
        # Saturated before it is rounded: the bounds are whole numbers, so the order is the same,
        # and nothing that is infinite is left.
        level = (x / _along(scale, x, axis, block)).clamp(least - zero_point, most - zero_point)
        # A difference that is exactly 0, so the values are the rounded ones to the last bit.
        return level.round().detach() + (level - level.detach()) + zero_point

    return run


def dequantize(node: Node) -> Operation:
    """Take the zero point off and multiply by the scale."""
    axis, block = node.take("axis", 1), node.take("block_size", 0)
    node.expect("output_dtype", 0, onnx.TensorProto.FLOAT)

    def run(x: Tensor, scale: Tensor, zero: Tensor | None = None) -> Tensor:
        level = x if zero is None else x - _along(zero, x, axis, block)
        dequantized: Tensor = level.to(scale.dtype) * _along(scale, x, axis, block)
        return dequantized

    return run


def _along(values: Tensor, x: Tensor, axis: int, block: int) -> Tensor:
    """Shape the scales or zero points of an axis, or of its blocks, to those of the values."""
    if values.numel() == 1:
        return values.reshape(())
    if block:
        return values.repeat_interleave(block, dim=axis).narrow(axis, 0, x.shape[axis])
    shape = [1] * x.ndim
    shape[axis] = -1
    return values.reshape(shape)
