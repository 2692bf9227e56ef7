"""Memory of an ONNX model, counted from its own graph: its weights, and its peak of activations.

Nothing is estimated and no operator has a formula: each tensor has the size that ONNX's shape
inference gives it, and lives from the node that makes it to the last node that needs it.

What is counted, and what is not:

- Nodes run one after the other, in the order of the file. A runtime that takes branches in another
  order may need another amount.
- An input lives from the start of the call to its last use, as arena planners have it, which then
  give its place to another tensor. A caller who keeps the image elsewhere has its size on top. With
  this rule memory composes: all that lives between two operators of a chain is the tensor between
  them, so the peak of a chain is the greatest peak of its operators.
- An output of the model lives until the end.
- No node writes in place: its inputs and outputs live side by side while it runs. Nodes that only
  give a tensor another shape or name make none: their output is their input.
- What is computed from weights alone is no activation: it does not depend on the input, and
  runtimes compute it once, before the first call.
- Scratch space that a kernel takes for itself is not in the graph, and not in the figure. Nor is
  alignment.

A quantized model is counted as it is written: a tensor between a QuantizeLinear and a
DequantizeLinear has its small size, one before or behind them its full size, though runtimes that
fuse these nodes with their neighbors never make the latter.

References:
    The measure is that of memory-bound deployment, e.g. J. Lin et al., MCUNet: Tiny Deep Learning
    on IoT Devices, NeurIPS 2020 (arXiv 2007.10319), which bounds the peak of live activations.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import onnx
import onnx.helper
import onnx.inliner
import onnx.shape_inference

from hwnas.core.errors import ExportError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

VIEWS = frozenset({"Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity"})
"""Operators of the standard domain whose output is their first input under another shape."""

_Type = onnx.TensorProto.DataType
_SUB_BYTE_BITS = {
    getattr(_Type, name): bits
    for name, bits in {"INT4": 4, "UINT4": 4, "FLOAT4E2M1": 4, "INT2": 2, "UINT2": 2}.items()
    if hasattr(_Type, name)  # the newest of them are unknown to older versions of onnx
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelMemory:
    """Memory that a model takes for one call.

    Attributes:
        weights_bytes: Its initializers and constants; one that many nodes read counts once.
        peak_activation_bytes: The largest sum of tensors alive at a node.
        peak_node: The first node at which it is reached: its name, or its type and place in the
            graph where it has none. Empty for a model without nodes.
    """

    weights_bytes: int
    peak_activation_bytes: int
    peak_node: str


def memory_of_onnx(model: onnx.ModelProto, *, batch: int | None = None) -> ModelMemory:
    """Count a model's weights and its peak of live activations.

    Args:
        model: A valid model. It is not changed.
        batch: Images per call, where the model leaves the first size of its inputs free.

    Raises:
        ExportError: A size is free or unknown, a tensor has no fixed size (text, sequences), or the
            graph branches on data.
    """
    model = _with_shapes(model, batch)
    graph = model.graph
    weights = _weights_of(graph)
    sizes = _sizes_of(graph)
    buffers = _buffers_of(graph, weights)
    begin, end = _lifetimes(graph, buffers)
    # Live bytes change where a tensor is made, and behind its last use.
    change = [0] * (max(len(graph.node), 1) + 1)
    for name, first in begin.items():
        size = _size(name, sizes)
        change[first] += size
        change[end[name] + 1] -= size
    live = list(itertools.accumulate(change))
    peak = max(live)
    return ModelMemory(
        weights_bytes=sum(_size(name, sizes) for name in weights) + _sparse_bytes(graph),
        peak_activation_bytes=peak,
        peak_node=_node_name(graph, live.index(peak)) if graph.node else "",
    )


def _with_shapes(model: onnx.ModelProto, batch: int | None) -> onnx.ModelProto:
    """Return the model with its functions inlined and the shape of every tensor inferred."""
    if model.functions:
        model = onnx.inliner.inline_local_functions(model)
    bound = onnx.ModelProto()
    bound.CopyFrom(model)
    if batch is not None:
        _bind_batch(bound, batch)
    try:
        return onnx.shape_inference.infer_shapes(bound, strict_mode=True, data_prop=True)
    except onnx.shape_inference.InferenceError as error:
        raise ExportError(
            f"the shapes of the model's tensors cannot be inferred: {error}",
            hint="memory is counted from shapes; export the model with fixed ones",
        ) from error


def _bind_batch(model: onnx.ModelProto, batch: int) -> None:
    if batch < 1:
        raise ExportError(f"a batch is at least 1, not {batch}")
    weights = {tensor.name for tensor in model.graph.initializer}
    for value in model.graph.input:
        sizes = value.type.tensor_type.shape.dim
        if value.name not in weights and sizes and not sizes[0].HasField("dim_value"):
            sizes[0].dim_value = batch
    # What was inferred for a free batch would stand beside what follows from this one.
    del model.graph.value_info[:]
    for value in model.graph.output:
        value.type.tensor_type.ClearField("shape")


def _weights_of(graph: onnx.GraphProto) -> set[str]:
    """Return the names of the tensors that a model stores."""
    constants = {
        name for node in graph.node if _is_standard(node, "Constant") for name in node.output
    }
    return {tensor.name for tensor in graph.initializer} | constants


def _buffers_of(graph: onnx.GraphProto, weights: set[str]) -> dict[str, str]:
    """Return the tensor that each activation is, by its names: views have that of their input.

    Weights, and what follows from weights alone, are left out.

    Raises:
        ExportError: A node holds a graph of its own.
    """
    constant = weights | {sparse.values.name for sparse in graph.sparse_initializer}
    buffers = {value.name: value.name for value in graph.input if value.name not in constant}
    for index, node in enumerate(graph.node):
        if any(attribute.HasField("g") or attribute.graphs for attribute in node.attribute):
            raise ExportError(
                f"the memory of {_node_name(graph, index)} ({node.op_type}) depends on data: "
                "what it runs is decided while it runs",
                hint="export the model without loops and branches on data",
            )
        inputs = [name for name in node.input if name]
        # A node without inputs makes something anew in every call, unless it is a constant.
        if all(name in constant for name in inputs) and (inputs or _is_standard(node, "Constant")):
            constant.update(filter(None, node.output))
            continue
        for name in filter(None, node.output):
            buffers[name] = name
        if any(_is_standard(node, view) for view in VIEWS):
            buffers[node.output[0]] = buffers.get(node.input[0], node.output[0])
    return buffers


def _lifetimes(
    graph: onnx.GraphProto, buffers: Mapping[str, str]
) -> tuple[dict[str, int], dict[str, int]]:
    """Return the first and the last node, by index, while which each buffer is alive."""
    weights_aside = [value.name for value in graph.input if value.name in buffers]
    begin = dict.fromkeys(weights_aside, 0)
    end = dict.fromkeys(weights_aside, 0)
    for index, node in enumerate(graph.node):
        for name in filter(None, node.output):
            if name in buffers:
                begin.setdefault(buffers[name], index)
                end[buffers[name]] = index  # an output that nobody reads is made all the same
        for name in node.input:
            if name in buffers:
                end[buffers[name]] = index
    for value in graph.output:
        if value.name in buffers:
            end[buffers[value.name]] = max(len(graph.node) - 1, 0)
    return begin, end


def _sizes_of(graph: onnx.GraphProto) -> dict[str, int | str]:
    """Return the bytes of each named tensor, or why they are not known."""
    values: Iterable[onnx.ValueInfoProto] = (*graph.value_info, *graph.input, *graph.output)
    sizes = {value.name: _bytes_of_type(value.type) for value in values}
    for tensor in graph.initializer:
        sizes[tensor.name] = _bytes_of(tensor.data_type, tensor.dims)
    return sizes


def _size(name: str, sizes: Mapping[str, int | str]) -> int:
    size = sizes.get(name, "its shape cannot be inferred")
    if isinstance(size, str):
        raise ExportError(
            f"the memory of tensor `{name}` cannot be counted: {size}",
            hint="give the batch where only that is free; else export the model with fixed shapes",
        )
    return size


def _bytes_of_type(kind: onnx.TypeProto) -> int | str:
    if not kind.HasField("tensor_type"):
        return f"it is a {kind.WhichOneof('value') or 'value of unknown type'}, not a tensor"
    tensor = kind.tensor_type
    if not tensor.HasField("shape"):
        return "its shape cannot be inferred"
    free = [size.dim_param or "?" for size in tensor.shape.dim if not size.HasField("dim_value")]
    if free:
        return f"its size `{free[0]}` is free"
    return _bytes_of(tensor.elem_type, [size.dim_value for size in tensor.shape.dim])


def _bytes_of(data_type: int, dims: Iterable[int]) -> int | str:
    count = math.prod(dims)
    if data_type in _SUB_BYTE_BITS:  # packed, the last byte filled up
        return -(-count * _SUB_BYTE_BITS[data_type] // 8)
    if data_type in (_Type.STRING, _Type.UNDEFINED):
        return f"its elements are of type {_Type.Name(data_type)}"
    return count * int(onnx.helper.tensor_dtype_to_np_dtype(data_type).itemsize)


def _sparse_bytes(graph: onnx.GraphProto) -> int:
    """Return the bytes of sparse weights: their values and their indices."""
    total = 0
    for sparse in graph.sparse_initializer:
        for part in (sparse.values, sparse.indices):
            total += _size(part.name, {part.name: _bytes_of(part.data_type, part.dims)})
    return total


def _is_standard(node: onnx.NodeProto, op_type: str) -> bool:
    return node.op_type == op_type and node.domain in ("", "ai.onnx")


def _node_name(graph: onnx.GraphProto, index: int) -> str:
    node = graph.node[index]
    return node.name or f"{node.op_type} at {index}"
