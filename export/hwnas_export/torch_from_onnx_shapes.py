"""Rules for what moves, cuts and joins values: ONNX node -> PyTorch operation.

Shapes are integers on the CPU wherever the images are, so that reading them waits for no device.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch.nn import functional

from hwnas.core.errors import ExportError
from hwnas_export.torch_from_onnx_node import BLACK_BOX

if TYPE_CHECKING:
    from torch import Tensor

    from hwnas_export.torch_from_onnx_node import Node, Operation

_PAD_MODES = {"reflect": "reflect", "edge": "replicate", "wrap": "circular"}


def flatten(node: Node) -> Operation:
    """Two axes of many."""
    axis = node.take("axis", 1)

    def run(x: Tensor) -> Tensor:
        place = axis % x.ndim if axis < 0 else axis
        return x.reshape(math.prod(x.shape[:place]), -1)

    return run


def reshape(node: Node) -> Operation:
    """Another shape, in which 0 keeps an axis and -1 is what is left."""
    literal = node.take("allowzero", 0)

    def run(x: Tensor, shape: Tensor) -> Tensor:
        sizes = [int(size) for size in shape.tolist()]
        if not literal:
            sizes = [size or x.shape[axis] for axis, size in enumerate(sizes)]
        return x.reshape(sizes)

    return run


def transpose(node: Node) -> Operation:
    """Axes in another order; reversed where none is given."""
    order = node.take("perm")
    return lambda x: x.permute(order or list(reversed(range(x.ndim))))


def squeeze(node: Node) -> Operation:
    """Axes of size 1 left out."""
    axes = node.integers(1, "axes")

    def run(x: Tensor, *_: object) -> Tensor:
        return x.squeeze() if axes is None else x.squeeze(tuple(axes))

    return run


def unsqueeze(node: Node) -> Operation:
    """Axes of size 1 put in, at places of the result."""
    axes = node.integers(1, "axes") or []

    def run(x: Tensor, *_: object) -> Tensor:
        rank = x.ndim + len(axes)
        for axis in sorted(axis % rank for axis in axes):
            x = x.unsqueeze(axis)
        return x

    return run


def concat(node: Node) -> Operation:
    """Joined along an axis."""
    axis = node.take("axis")
    return lambda *parts: torch.cat(parts, dim=axis)


def split(node: Node) -> Operation:
    """Cut along an axis into parts of given or of equal sizes."""
    axis, sizes = node.take("axis", 0), node.integers(1, "split")
    count = node.take("num_outputs", len(node.outputs))

    def run(x: Tensor, *_: object) -> tuple[Tensor, ...]:
        # The last of equal parts may be smaller.
        each = math.ceil(x.shape[axis] / count)
        return torch.split(x, sizes if sizes is not None else each, dim=axis)

    return run


def cut(node: Node) -> Operation:
    """Slice: a range of some axes, with steps that may go backward."""

    def run(
        x: Tensor,
        starts: Tensor,
        ends: Tensor,
        axes: Tensor | None = None,
        steps: Tensor | None = None,
    ) -> Tensor:
        places = range(len(starts)) if axes is None else axes.tolist()
        strides = [1] * len(starts) if steps is None else steps.tolist()
        for start, end, axis, step in zip(
            starts.tolist(), ends.tolist(), places, strides, strict=True
        ):
            chosen = _range(start, end, step, x.shape[axis])
            if step == 1:
                x = x.narrow(axis, chosen.start, len(chosen))
            else:
                x = x.index_select(axis, torch.tensor(list(chosen), device=x.device))
        return x

    if node.opset < 10:
        raise node.error("its ranges are attributes, as in operator sets before 10")
    return run


def _range(start: int, end: int, step: int, size: int) -> range:
    """Return the places that a slice takes of an axis."""
    start, end = (at + size if at < 0 else at for at in (start, end))
    if step > 0:
        start, end = min(max(start, 0), size), min(max(end, 0), size)
        return range(start, max(start, end), step)
    return range(min(max(start, 0), size - 1), min(max(end, -1), size - 1), step)


def pad(node: Node) -> Operation:
    """Padding by a constant, or by mirrored or repeated borders."""
    mode = node.take("mode", "constant")
    pads, axes = node.integers(1, "pads") or [], node.integers(3, "axes")
    value = node.constant(2)
    number = 0.0 if value is None else float(value)
    if mode not in ("constant", *_PAD_MODES):
        raise node.error(f"there is no rule for mode={mode}")

    def run(x: Tensor, *_: object) -> Tensor:
        begins, ends = [0] * x.ndim, [0] * x.ndim
        half = len(pads) // 2
        for place, axis in enumerate(axes if axes is not None else range(half)):
            begins[axis], ends[axis] = pads[place], pads[half + place]
        pairs = [
            size for pair in zip(reversed(begins), reversed(ends), strict=True) for size in pair
        ]
        if mode == "constant":
            return functional.pad(x, pairs, value=number)
        if any(pairs[4:]):
            raise node.error(f"mode={mode} has a rule for the last two axes alone")
        return functional.pad(x, pairs[:4], mode=_PAD_MODES[mode])

    return run


def expand(_: Node) -> Operation:
    """Repeated along axes of size 1, each shape broadcast to the other."""
    return lambda x, shape: x.expand(np.broadcast_shapes(tuple(x.shape), tuple(shape.tolist())))


def tile(_: Node) -> Operation:
    """Repeated along each axis."""
    return lambda x, repeats: x.repeat(*repeats.tolist())


def gather(node: Node) -> Operation:
    """Chosen places of an axis; negative ones count from its end."""
    axis = node.take("axis", 0)

    def run(x: Tensor, indices: Tensor) -> Tensor:
        size = x.shape[axis]
        places = torch.where(indices < 0, indices + size, indices).to(x.device)
        chosen = x.index_select(axis, places.reshape(-1).long())
        start = axis % x.ndim
        return chosen.reshape((*x.shape[:start], *indices.shape, *x.shape[start + 1 :]))

    return run


def shape_of(node: Node) -> Operation:
    """Sizes of the axes."""
    start, end = node.take("start", 0), node.take("end")
    return lambda x: torch.tensor(x.shape[start:end], dtype=torch.int64)


def size_of(_: Node) -> Operation:
    """Number of values."""
    return lambda x: torch.tensor(x.numel(), dtype=torch.int64)


def constant(node: Node) -> Operation:
    """A value that the graph holds."""
    tensor = node.take("value")
    if tensor is not None:
        held = tensor_of(tensor, node)
    else:
        kinds = {"value_float": torch.float32, "value_floats": torch.float32,
                 "value_int": torch.int64, "value_ints": torch.int64}  # fmt: skip
        values = {name: node.take(name) for name in kinds}
        name = next((name for name, value in values.items() if value is not None), None)
        if name is None:
            raise node.error("it holds no numbers")
        held = torch.tensor(values[name], dtype=kinds[name])
    return lambda: held


def constant_of_shape(node: Node) -> Operation:
    """One value in a shape."""
    tensor = node.take("value")
    filling = torch.zeros(1) if tensor is None else tensor_of(tensor, node)
    return lambda shape: filling.reshape(()).expand(shape.tolist()).clone()


def tensor_of(tensor: onnx.TensorProto, node: Node | None = None) -> Tensor:
    """Read a tensor of an ONNX file. Whole numbers of few bits become floats: see `quantize`.

    Raises:
        ExportError: It holds texts, or numbers of 8 bits with a fraction.
    """
    kind = tensor.data_type
    if kind not in (*TYPES, *SMALL_INTEGERS):
        name = onnx.TensorProto.DataType.Name(kind)
        where = f"{node}" if node else f"`{tensor.name}`"
        raise ExportError(
            f"{where} holds values of type {name}, which have no rule in PyTorch", hint=BLACK_BOX
        )
    array = numpy_helper.to_array(tensor)
    if kind in SMALL_INTEGERS or kind == onnx.TensorProto.BFLOAT16:
        array = array.astype(np.float32)
    # A copy: what onnx gives may be a view that cannot be written, which torch warns of.
    return torch.from_numpy(np.array(array)).to(TYPES.get(kind, torch.float32))


TYPES: dict[int, torch.dtype] = {
    onnx.TensorProto.FLOAT: torch.float32,
    onnx.TensorProto.FLOAT16: torch.float16,
    onnx.TensorProto.BFLOAT16: torch.bfloat16,
    onnx.TensorProto.DOUBLE: torch.float64,
    onnx.TensorProto.INT32: torch.int32,
    onnx.TensorProto.INT64: torch.int64,
    onnx.TensorProto.BOOL: torch.bool,
}
"""Types that torch holds as they are."""

SMALL_INTEGERS: dict[int, tuple[int, int]] = {
    onnx.TensorProto.UINT8: (0, 255),
    onnx.TensorProto.INT8: (-128, 127),
    onnx.TensorProto.UINT16: (0, 65535),
    onnx.TensorProto.INT16: (-32768, 32767),
    onnx.TensorProto.UINT4: (0, 15),
    onnx.TensorProto.INT4: (-8, 7),
}
"""Types that quantized values are of, each with its least and largest value."""
