"""The head of a network in its ONNX graph: what gives the logits."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx

WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
"""Operators that hold weights, and whose arithmetic a lower precision speeds up."""


def head_nodes(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """Return the last operators with weights on each way to the outputs, and all that follow them.

    One linear layer, as a rule; of an ensemble that averages logits, each member's linear layer and
    the average.

    Args:
        model: The model.

    Returns:
        The nodes, in the order of the graph.
    """
    makers = {name: node for node in model.graph.node for name in node.output}
    waiting = [output.name for output in model.graph.output]
    seen: set[str] = set()
    head: set[str] = set()
    while waiting:
        name = waiting.pop()
        node = makers.get(name)
        if node is None or name in seen:
            continue
        seen.add(name)
        head.update(node.output)
        if node.op_type not in WEIGHTED:
            waiting += node.input
    return [node for node in model.graph.node if head.intersection(node.output)]
