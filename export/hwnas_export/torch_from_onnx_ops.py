"""Rules for arithmetic, activations and sums, and the list of all: ONNX node -> PyTorch operation.

Layers, shapes and quantization have modules of their own.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import onnx
import torch
from torch.nn import functional

from hwnas_export import torch_from_onnx_layers as layers
from hwnas_export import torch_from_onnx_quantization as quantization
from hwnas_export import torch_from_onnx_shapes as shapes
from hwnas_export.torch_from_onnx_node import Node, Operation

if TYPE_CHECKING:
    from torch import Tensor

Rule = Callable[[Node], Operation]


def _plain(function: Operation) -> Rule:
    """Return the rule of an operator without attributes."""
    return lambda _: function


def _folded(function: Callable[[Tensor, Tensor], Tensor]) -> Rule:
    """Return the rule of an operator of any number of inputs."""
    return lambda _: lambda *parts: functools.reduce(function, parts)


def _divided(a: Tensor, b: Tensor) -> Tensor:
    whole = not (a.is_floating_point() or b.is_floating_point())
    return torch.div(a, b, rounding_mode="trunc") if whole else torch.div(a, b)


def _power(base: Tensor, exponent: Tensor) -> Tensor:
    return torch.pow(base, exponent).to(base.dtype)


def _mean(*parts: Tensor) -> Tensor:
    return functools.reduce(torch.add, parts) / len(parts)


def _clip(node: Node) -> Operation:
    if node.known(1) and node.known(2):
        bounds = node.constant(1), node.constant(2)
        low, high = (None if bound is None else bound.item() for bound in bounds)
        if low is None and high is None:
            return lambda x, *_: x
        return lambda x, *_: x.clamp(low, high)

    def run(x: Tensor, least: Tensor | None = None, most: Tensor | None = None) -> Tensor:
        x = x if least is None else torch.maximum(x, least)
        return x if most is None else torch.minimum(x, most)

    return run


def _hard_sigmoid(node: Node) -> Operation:
    alpha, beta = node.take("alpha", 0.2), node.take("beta", 0.5)
    return lambda x: (alpha * x + beta).clamp(0.0, 1.0)


def _hard_swish(_: Node) -> Operation:
    return lambda x: x * (x / 6 + 0.5).clamp(0.0, 1.0)


def _leaky_relu(node: Node) -> Operation:
    slope = node.take("alpha", 0.01)
    return lambda x: functional.leaky_relu(x, slope)


def _elu(node: Node) -> Operation:
    alpha = node.take("alpha", 1.0)
    return lambda x: functional.elu(x, alpha)


def _selu(node: Node) -> Operation:
    alpha, gamma = node.take("alpha", 1.6732632423543772), node.take("gamma", 1.0507009873554805)
    return lambda x: gamma * functional.elu(x, alpha)


def _prelu(x: Tensor, slope: Tensor) -> Tensor:
    return torch.where(x < 0, x * slope, x)


def _gelu(node: Node) -> Operation:
    approximate = node.take("approximate", "none")
    return lambda x: functional.gelu(x, approximate=approximate)


def _softmax(function: Callable[[Tensor, int], Tensor]) -> Rule:
    def rule(node: Node) -> Operation:
        axis = node.take("axis", -1 if node.opset >= 13 else 1)
        if node.opset >= 13:
            return lambda x: function(x, axis)

        def flattened(x: Tensor) -> Tensor:  # older sets take all axes from this one on as one
            return function(x.flatten(axis), axis).reshape(x.shape)

        return flattened

    return rule


def _dropout(node: Node) -> Operation:
    for name in ("seed", "ratio"):
        node.take(name)
    training = node.constant(2)
    if training is not None and bool(training):
        raise node.error("it drops at random: the model was exported in training mode")
    if sum(map(bool, node.outputs)) > 1:
        raise node.error("there is a rule for its first output alone")
    return lambda x, *_: x


def _cast(node: Node) -> Operation:
    wanted = node.take("to")
    node.take("saturate")  # of float8 alone, which has no rule
    node.take("round_mode")
    if wanted not in shapes.TYPES:
        name = onnx.TensorProto.DataType.Name(wanted)
        raise node.error(f"there is no rule for a cast to {name}")
    return lambda x: x.to(shapes.TYPES[wanted])


def _reduced(function: Callable[[Tensor, tuple[int, ...], bool], Tensor]) -> Rule:
    """Return the rule of an operator that reduces some axes, or all."""

    def rule(node: Node) -> Operation:
        keep, axes = bool(node.take("keepdims", 1)), node.integers(1, "axes")
        if not axes and node.take("noop_with_empty_axes", 0):
            return lambda x, *_: x
        node.take("noop_with_empty_axes")
        return lambda x, *_: function(x, tuple(axes or range(x.ndim)), keep)

    return rule


def _product(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
    for axis in sorted((axis % x.ndim for axis in axes), reverse=True):
        x = x.prod(axis, keepdim=keep)
    return x


def _summed(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
    return x.sum(axes, keepdim=keep, dtype=x.dtype)


RULES: Mapping[str, Rule] = {
    "Conv": layers.conv,
    "Gemm": layers.gemm,
    "MatMul": _plain(torch.matmul),
    "BatchNormalization": layers.batch_normalization,
    "LayerNormalization": layers.layer_normalization,
    "InstanceNormalization": layers.instance_normalization,
    "LRN": layers.local_response,
    "MaxPool": layers.max_pool,
    "AveragePool": layers.average_pool,
    "GlobalAveragePool": layers.global_average_pool,
    "GlobalMaxPool": layers.global_max_pool,
    "Relu": _plain(torch.relu),
    "Clip": _clip,
    "HardSwish": _hard_swish,
    "HardSigmoid": _hard_sigmoid,
    "Sigmoid": _plain(torch.sigmoid),
    "Tanh": _plain(torch.tanh),
    "LeakyRelu": _leaky_relu,
    "PRelu": _plain(_prelu),
    "Elu": _elu,
    "Selu": _selu,
    "Softplus": _plain(functional.softplus),
    "Softsign": _plain(functional.softsign),
    "Mish": _plain(functional.mish),
    "Gelu": _gelu,
    "Erf": _plain(torch.erf),
    "Softmax": _softmax(torch.softmax),
    "LogSoftmax": _softmax(torch.log_softmax),
    "Add": _plain(torch.add),
    "Sub": _plain(torch.sub),
    "Mul": _plain(torch.mul),
    "Div": _plain(_divided),
    "Pow": _plain(_power),
    "Sqrt": _plain(torch.sqrt),
    "Exp": _plain(torch.exp),
    "Log": _plain(torch.log),
    "Neg": _plain(torch.neg),
    "Abs": _plain(torch.abs),
    "Reciprocal": _plain(torch.reciprocal),
    "Floor": _plain(torch.floor),
    "Ceil": _plain(torch.ceil),
    "Round": _plain(torch.round),
    "Sign": _plain(torch.sign),
    "Min": _folded(torch.minimum),
    "Max": _folded(torch.maximum),
    "Sum": _folded(torch.add),
    "Mean": _plain(_mean),
    "Equal": _plain(torch.eq),
    "Greater": _plain(torch.gt),
    "GreaterOrEqual": _plain(torch.ge),
    "Less": _plain(torch.lt),
    "LessOrEqual": _plain(torch.le),
    "Not": _plain(torch.logical_not),
    "And": _plain(torch.logical_and),
    "Or": _plain(torch.logical_or),
    "Where": _plain(torch.where),
    "ReduceMean": _reduced(lambda x, axes, keep: x.mean(axes, keepdim=keep)),
    "ReduceSum": _reduced(_summed),
    "ReduceMax": _reduced(lambda x, axes, keep: x.amax(axes, keepdim=keep)),
    "ReduceMin": _reduced(lambda x, axes, keep: x.amin(axes, keepdim=keep)),
    "ReduceProd": _reduced(_product),
    "ReduceL2": _reduced(lambda x, axes, keep: x.square().sum(axes, keepdim=keep).sqrt()),
    "Identity": _plain(lambda x: x),
    "Dropout": _dropout,
    "Cast": _cast,
    "Flatten": shapes.flatten,
    "Reshape": shapes.reshape,
    "Transpose": shapes.transpose,
    "Squeeze": shapes.squeeze,
    "Unsqueeze": shapes.unsqueeze,
    "Concat": shapes.concat,
    "Split": shapes.split,
    "Slice": shapes.cut,
    "Pad": shapes.pad,
    "Expand": shapes.expand,
    "Tile": shapes.tile,
    "Gather": shapes.gather,
    "Shape": shapes.shape_of,
    "Size": shapes.size_of,
    "Constant": shapes.constant,
    "ConstantOfShape": shapes.constant_of_shape,
    "QuantizeLinear": quantization.quantize,
    "DequantizeLinear": quantization.dequantize,
}
"""What makes an operation of a node, by its operator."""
