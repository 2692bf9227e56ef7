"""ONNX models -> one model that runs them one after the other.

A network of a chain space is its operators in a row, so its graph can be put together from graphs
that were exported once: tracing each network anew would take most of a calibration's time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx
from onnx import helper

from hwnas.core.errors import ExportError
from hwnas_export.onnx_export import INPUT_NAME, OUTPUT_NAME

if TYPE_CHECKING:
    from collections.abc import Sequence


def chained(models: Sequence[onnx.ModelProto]) -> onnx.ModelProto:
    """Connect models with one input and one output each; the first's input is the chain's.

    Args:
        models: At least one; the output of each has the shape of the next one's input.

    Returns:
        A model with input `images` and output `logits`. Values are renamed, nothing else changes:
        the nodes are those of the models, in their order.

    Raises:
        ExportError: Shapes do not fit, the models are of unequal opsets, or one is more than a
            plain graph from one input to one output.
    """
    nodes: list[onnx.NodeProto] = []
    initializers: list[onnx.TensorProto] = []
    before = INPUT_NAME
    for index, model in enumerate(models):
        graph = model.graph
        _check_plain(model, index)
        if index:
            _check_fits(models[index - 1], model, index)
        names = {graph.input[0].name: before}
        if index == len(models) - 1:
            names[graph.output[0].name] = OUTPUT_NAME
        for node in graph.node:
            copy = onnx.NodeProto()
            copy.CopyFrom(node)
            copy.name = f"{index}/{node.name}"
            copy.input[:] = [_renamed(name, names, index) for name in node.input]
            copy.output[:] = [_renamed(name, names, index) for name in node.output]
            nodes.append(copy)
        for initializer in graph.initializer:
            tensor = onnx.TensorProto()
            tensor.CopyFrom(initializer)
            tensor.name = _renamed(initializer.name, names, index)
            initializers.append(tensor)
        before = _renamed(graph.output[0].name, names, index)
    first, last = models[0], models[-1]
    output = onnx.ValueInfoProto()
    output.CopyFrom(last.graph.output[0])
    output.name = OUTPUT_NAME
    own_input = onnx.ValueInfoProto()
    own_input.CopyFrom(first.graph.input[0])
    own_input.name = INPUT_NAME
    graph = helper.make_graph(nodes, "chain", [own_input], [output], initializers)
    return helper.make_model(graph, opset_imports=first.opset_import, ir_version=first.ir_version)


def _renamed(name: str, names: dict[str, str], index: int) -> str:
    # An empty name stands for an optional input that is not given.
    return names.setdefault(name, f"{index}/{name}") if name else name


def _check_plain(model: onnx.ModelProto, index: int) -> None:
    """Refuse what renaming the values of nodes would not carry over."""
    graph = model.graph
    if len(graph.input) != 1 or len(graph.output) != 1:
        raise ExportError(
            f"part {index + 1} of a chain has {len(graph.input)} inputs and "
            f"{len(graph.output)} outputs, not one of each"
        )
    if not any(graph.output[0].name in node.output for node in graph.node):
        raise ExportError(f"part {index + 1} of a chain computes nothing: no node gives its output")
    nested = {onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS}
    inner = any(attribute.type in nested for node in graph.node for attribute in node.attribute)
    if inner or model.functions or graph.sparse_initializer:
        raise ExportError(
            f"part {index + 1} of a chain holds control flow, functions or sparse weights",
            hint="only plain graphs can be put in a chain",
        )


def _check_fits(before: onnx.ModelProto, after: onnx.ModelProto, index: int) -> None:
    given, wanted = _shape(before.graph.output[0]), _shape(after.graph.input[0])
    if given != wanted:
        raise ExportError(f"part {index} of a chain gives {given}, the next one takes {wanted}")
    if {(each.domain, each.version) for each in before.opset_import} != {
        (each.domain, each.version) for each in after.opset_import
    }:
        raise ExportError(f"parts {index} and {index + 1} of a chain are of unequal opsets")


def _shape(value: onnx.ValueInfoProto) -> tuple[int | str, ...]:
    return tuple(each.dim_param or each.dim_value for each in value.type.tensor_type.shape.dim)
