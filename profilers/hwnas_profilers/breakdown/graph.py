"""What the graph that a runtime made says of its nodes: kind, what was fused, work, weights."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import onnx
import onnx.helper

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

Shape = tuple[int, ...]

# Where the weights of a node are among its inputs, by its type: ONNX's own operators, and those
# that ONNX Runtime makes of them.
_CONVOLUTIONS = {"Conv": 1, "FusedConv": 1, "ConvInteger": 1, "QLinearConv": 3, "NhwcFusedConv": 1}
_TRANSPOSED = {"ConvTranspose": 1}
_PRODUCTS = (
    "MatMul", "Gemm", "FusedMatMul", "FusedGemm", "MatMulInteger", "MatMulIntegerToFloat",
    "DynamicQuantizeMatMul", "QLinearMatMul", "QGemm",
)  # fmt: skip
_SUM_INPUT = {"Conv": 3, "FusedConv": 3}  # an added tensor: only where it is fused into one

_SUB_BYTE_BITS = {
    getattr(onnx.TensorProto, name): 4
    for name in ("INT4", "UINT4", "FLOAT4E2M1")
    if hasattr(onnx.TensorProto, name)
}


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeFacts:
    """See `NodeTiming` for the fields."""

    kind: str
    fused: str
    macs: int | None
    weights_bytes: int | None


class RuntimeGraph:
    """The graph that a runtime executes, saved by it as ONNX.

    Args:
        model: The saved model; the data of its weights is not needed.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        self.nodes: Sequence[onnx.NodeProto] = tuple(model.graph.node)
        self._constants = {tensor.name: tensor for tensor in model.graph.initializer}

    def nodes_in_order(self, executed: Sequence[tuple[str, str]]) -> list[onnx.NodeProto | None]:
        """Find the nodes that were executed.

        They are saved in the order of execution. Where that does not hold, a name that only one
        node has tells it; what stays unclear is None.

        Args:
            executed: Name and type of each, in the order of execution.
        """
        if [node.op_type for node in self.nodes] == [op_type for _, op_type in executed] and all(
            node.name in ("", name) for node, (name, _) in zip(self.nodes, executed, strict=True)
        ):
            return list(self.nodes)
        by_name: dict[tuple[str, str], onnx.NodeProto | None] = {}
        for node in self.nodes:
            key = node.name, node.op_type
            by_name[key] = node if key not in by_name else None
        return [by_name.get(key) for key in executed]

    def facts(
        self, node: onnx.NodeProto, shapes_in: Sequence[Shape], shapes_out: Sequence[Shape]
    ) -> NodeFacts:
        """Describe a node that ran on inputs and outputs of these shapes."""
        constants = [self._constants[name] for name in node.input if name in self._constants]
        return NodeFacts(
            kind=self._kind(node, shapes_in),
            fused=_fused(node),
            macs=self._macs(node, shapes_in, shapes_out),
            weights_bytes=sum(map(_size_bytes, constants)),
        )

    def _weights(
        self, node: onnx.NodeProto, places: Mapping[str, int], shapes_in: Sequence[Shape]
    ) -> Shape | None:
        """Return the shape of a convolution's weights: (out, in / groups, *kernel), or None."""
        place = places.get(node.op_type)
        if place is None or place >= len(node.input):
            return None
        tensor = self._constants.get(node.input[place])
        if tensor is not None:
            weights = tuple(tensor.dims)
        elif place == 1 and len(shapes_in) > 1:  # computed, e.g. by a DequantizeLinear
            weights = shapes_in[1]
        else:
            return None
        return weights if len(weights) > 2 else None

    def _kind(self, node: onnx.NodeProto, shapes_in: Sequence[Shape]) -> str:
        weights = self._weights(node, _CONVOLUTIONS | _TRANSPOSED, shapes_in)
        if weights is None:
            return node.op_type
        groups = _attributes(node).get("group", 1)
        kernel = "x".join(map(str, weights[2:]))
        note = ""
        if isinstance(groups, int) and groups > 1:
            note = " depthwise" if weights[1] == 1 else " grouped"
        return f"{node.op_type} {kernel}{note}"

    def _macs(
        self, node: onnx.NodeProto, shapes_in: Sequence[Shape], shapes_out: Sequence[Shape]
    ) -> int | None:
        if not shapes_in or not shapes_out:
            return None
        weights = self._weights(node, _CONVOLUTIONS, shapes_in)
        if weights is not None:
            return math.prod(shapes_out[0]) * math.prod(weights[1:])
        weights = self._weights(node, _TRANSPOSED, shapes_in)
        if weights is not None:
            return math.prod(shapes_in[0]) * math.prod(weights[1:])
        if node.op_type in _PRODUCTS and shapes_in[0]:
            is_transposed = bool(_attributes(node).get("transA", 0)) and len(shapes_in[0]) > 1
            summed = shapes_in[0][-2 if is_transposed else -1]
            return math.prod(shapes_out[0]) * summed
        return None


def _fused(node: onnx.NodeProto) -> str:
    """Name what a runtime merged into a node: an added tensor, an activation."""
    parts = []
    place = _SUM_INPUT.get(node.op_type)
    if place is not None and len(node.input) > place and node.input[place]:
        parts.append("Add")
    activation = _attributes(node).get("activation")
    if isinstance(activation, bytes) and activation:
        parts.append(activation.decode(errors="replace"))
    return ", ".join(parts)


def _attributes(node: onnx.NodeProto) -> dict[str, object]:
    wanted = ("group", "transA", "activation")
    return {
        attribute.name: onnx.helper.get_attribute_value(attribute)
        for attribute in node.attribute
        if attribute.name in wanted
    }


def _size_bytes(tensor: onnx.TensorProto) -> int:
    count: int = math.prod(tensor.dims)
    bits: int | None = _SUB_BYTE_BITS.get(tensor.data_type)
    if bits is not None:
        return -(-count * bits // 8)
    itemsize: int = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    return count * itemsize
