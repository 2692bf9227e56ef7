"""An ONNX model -> a PyTorch module that computes the same, with gradients.

What has only an ONNX file can so be attacked as a white box. docs/decisions/0029-torch-from-onnx.md
says why this is ours.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx.inliner
import torch
from torch import Tensor, nn

from hwnas.core.errors import ExportError, InputFileError
from hwnas_export.torch_from_onnx_node import BLACK_BOX, Node
from hwnas_export.torch_from_onnx_ops import RULES
from hwnas_export.torch_from_onnx_shapes import tensor_of

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from hwnas_export.torch_from_onnx_node import Operation

OPSETS = range(11, 24)
"""Versions of the standard operator set that the rules were written for."""

_TRIED = 2
"""Batches that a graph of a fixed batch is tried with, to see whether it takes others too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TwinParity:
    """A converted module against ONNX Runtime, on the same images.

    Attributes:
        n: Images.
        max_abs_diff: Largest difference of any logit; None where one of them is not finite.
        largest: Largest logit of ONNX Runtime by size, which the difference is to be seen against;
            None likewise.
        agreement: Share of images with the same top class.
    """

    n: int
    max_abs_diff: float | None
    largest: float | None
    agreement: float


@dataclass(frozen=True, slots=True, kw_only=True)
class _Step:
    """One node as it runs: where its inputs are read, and its outputs go."""

    operation: Operation
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    label: str


class OnnxTwin(nn.Module):
    """A converted graph: float32 (batch, channels, height, width) -> float32 (batch, classes).

    Its weights are buffers under the names of the file, with `.` written as `/`; what could be
    computed from them alone has been. Made by `torch_from_onnx`.

    Attributes:
        input_shape: The shape that the graph takes; a size of None is free.
    """

    def __init__(
        self,
        steps: Sequence[_Step],
        constants: dict[str, Tensor],
        *,
        source: str,
        result: str,
        input_shape: tuple[int | None, ...],
    ) -> None:
        super().__init__()
        self.input_shape = input_shape
        self._steps = tuple(steps)
        self._source, self._result = source, result
        self._whole: dict[str, Tensor] = {}
        self._places: dict[str, str] = {}
        for name in _read_names(steps, result):
            value = constants.get(name)
            if value is None:
                continue
            if value.is_floating_point() and value.ndim:
                self._places[name] = self._keep(name, value)
            else:
                # Shapes, and single numbers: read by the host, and taken along by no `to`.
                self._whole[name] = value
        self._batch = None if self._takes_other_batches() else input_shape[0]

    def forward(self, images: Tensor) -> Tensor:
        """Compute the graph's one output."""
        if self._batch is None or len(images) == self._batch:
            return self._run(images)
        missing = -len(images) % self._batch
        # The last image fills the last batch, and is cut off again.
        full = torch.cat([images, images[-1:].expand(missing, *images.shape[1:])])
        parts = [self._run(part) for part in torch.split(full, self._batch)]
        return torch.cat(parts)[: len(images)]

    def _run(self, images: Tensor) -> Tensor:
        values: dict[str, Any] = {
            self._source: images,
            **self._whole,
            **{name: self.get_buffer(place) for name, place in self._places.items()},
        }
        for step in self._steps:
            try:
                made = step.operation(*(values[name] if name else None for name in step.inputs))
            except (RuntimeError, ValueError, TypeError, IndexError) as error:
                reason = str(error).strip().partition("\n")[0]
                raise ExportError(
                    f"{step.label} fails in PyTorch on images of {tuple(images.shape)}: {reason}",
                    hint=BLACK_BOX,
                ) from error
            if len(step.outputs) == 1 and not isinstance(made, tuple):
                made = (made,)
            values.update(zip(step.outputs, made, strict=False))
        result: Tensor = values[self._result]
        return result

    def _keep(self, name: str, value: Tensor) -> str:
        place = name.replace(".", "/") or "_"
        while hasattr(self, place):
            place += "_"
        self.register_buffer(place, value)
        return place

    def _takes_other_batches(self) -> bool:
        """Say whether the batch is free; one that is written down may still be read by no node."""
        batch = self.input_shape[0]
        if batch is None:
            return True
        sizes = [size or 1 for size in self.input_shape[1:]]
        generator = torch.Generator().manual_seed(0)
        images = torch.rand(_TRIED * batch, *sizes, generator=generator)
        with torch.no_grad():
            parts = [self._run(part) for part in torch.split(images, batch)]
            if not parts[0].ndim:
                return False
            apart = torch.cat(parts)
            try:
                together = self._run(images)
            except ExportError:
                return False
        return together.shape == apart.shape and torch.allclose(
            together, apart, rtol=1e-4, atol=1e-5, equal_nan=True
        )


def torch_from_onnx(model: onnx.ModelProto | bytes | Path) -> OnnxTwin:
    """Convert a model with one float32 input and one output.

    QuantizeLinear and DequantizeLinear become fake quantization: the values are ONNX's, and
    gradients pass straight through the rounding, so that a quantized engine can be attacked too.
    The module is right as far as its rules are; `check_twin` compares it with ONNX Runtime.

    Args:
        model: The model, its serialized form, or its file, beside which weights may lie.

    Returns:
        In eval mode, on the CPU.

    Raises:
        ExportError: A node has no rule here: it is named with its operator and opset. Or the model
            has several inputs or outputs, or an operator set that the rules were not written for.
        InputFileError: The file is no ONNX model, or weights beside it are missing.
    """
    proto = _inlined(_loaded(model))
    opset = _opset(proto)
    graph = proto.graph
    constants: dict[str, Tensor] = {}
    types: dict[str, int] = {}
    for tensor in graph.initializer:
        constants[tensor.name] = tensor_of(tensor)
        types[tensor.name] = tensor.data_type
    if graph.sparse_initializer:
        raise ExportError("the model holds sparse weights, which have no rule", hint=BLACK_BOX)
    source = _only([value for value in graph.input if value.name not in constants], "input")
    result = _only(list(graph.output), "output")
    steps = []
    for proto_node in graph.node:
        step = _step(proto_node, opset, constants, types)
        if source.name in step.inputs or not constants.keys() >= set(filter(None, step.inputs)):
            steps.append(step)
            continue
        with torch.no_grad():
            made = step.operation(*(constants[name] if name else None for name in step.inputs))
        for name, value in zip(
            step.outputs, made if isinstance(made, tuple) else (made,), strict=False
        ):
            constants[name] = value
            if proto_node.op_type in ("Constant", "Identity"):
                types[name] = _constant_type(proto_node, types)
    shape = tuple(
        size.dim_value if size.HasField("dim_value") and size.dim_value > 0 else None
        for size in source.type.tensor_type.shape.dim
    )
    if len(shape) != 4:
        raise ExportError(
            f"the model's input `{source.name}` has {len(shape)} axes, not (batch, channels, "
            "height, width)"
        )
    return OnnxTwin(
        _needed(steps, result.name), constants, source=source.name, result=result.name,
        input_shape=shape,
    ).eval()  # fmt: skip


def check_twin(
    model: onnx.ModelProto | bytes | Path,
    module: nn.Module,
    images: NDArray[np.float32],
    *,
    batch: int = 64,
) -> TwinParity:
    """Run a model in ONNX Runtime and its twin in PyTorch on the same images.

    Args:
        model: The ONNX model.
        module: What was made of it; run in eval mode, and given back in its own.
        images: float32, (N, channels, height, width).
        batch: Images per call, where the model's own batch is free.

    Raises:
        ExportError: ONNX Runtime does not take the model, or the twin gives another shape.
    """
    from hwnas_export.onnxruntime_runner import OnnxRuntimeRunner

    with OnnxRuntimeRunner(_loaded(model).SerializeToString()) as runner:
        fixed = runner.input_shape[0]
        size = fixed or batch
        usable = images[: len(images) // size * size] if fixed else images
        if not len(usable):
            raise ExportError(f"{len(images)} images are fewer than the model's batch of {size}")
        parts = [usable[at : at + size] for at in range(0, len(usable), size)]
        engine = np.concatenate([runner.infer(np.ascontiguousarray(part)) for part in parts])
    was_training = module.training
    module.eval()
    with torch.inference_mode():
        twin = np.concatenate([module(torch.from_numpy(part)).numpy() for part in parts])
    module.train(was_training)
    if twin.shape != engine.shape:
        raise ExportError(f"the twin gives {twin.shape}, ONNX Runtime {engine.shape}")
    finite = bool(np.isfinite(twin).all() and np.isfinite(engine).all())
    return TwinParity(
        n=len(usable),
        max_abs_diff=float(np.abs(twin - engine).max()) if finite else None,
        largest=float(np.abs(engine).max()) if finite else None,
        agreement=float(np.mean(twin.argmax(axis=1) == engine.argmax(axis=1))),
    )


def _loaded(model: onnx.ModelProto | bytes | Path) -> onnx.ModelProto:
    if isinstance(model, onnx.ModelProto):
        return model
    try:
        if isinstance(model, bytes):
            loaded = onnx.load_model_from_string(model)
        else:
            loaded = onnx.load(model)
    except OSError as error:
        raise InputFileError(f"{model!s} cannot be read: {error.strerror or error}") from error
    except Exception as error:  # protobuf's DecodeError, which ships no type information
        name = "the model" if isinstance(model, bytes) else str(model)
        raise InputFileError(f"{name} is no ONNX model, or was cut: {error}") from error
    if not loaded.graph.node:
        raise InputFileError("the model holds no graph of operators")
    return loaded


def _inlined(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Put the bodies of the model's own functions in their places."""
    return onnx.inliner.inline_local_functions(proto) if proto.functions else proto


def _opset(proto: onnx.ModelProto) -> int:
    opset = next((each.version for each in proto.opset_import if each.domain in ("", "ai.onnx")), 0)
    if opset not in OPSETS:
        raise ExportError(
            f"the model is of opset {opset}; the rules are for {OPSETS[0]} to {OPSETS[-1]}",
            hint="convert it: onnx.version_converter.convert_version(model, 20)",
        )
    return opset


def _step(
    proto: onnx.NodeProto, opset: int, constants: dict[str, Tensor], types: dict[str, int]
) -> _Step:
    node = Node(proto, opset, constants, types)
    rule = RULES.get(proto.op_type) if proto.domain in ("", "ai.onnx") else None
    if rule is None:
        of = f" of {proto.domain}" if proto.domain not in ("", "ai.onnx") else ""
        raise node.error(f"there is no rule for the operator {proto.op_type}{of}")
    operation = rule(node)
    node.finish()
    return _Step(operation=operation, inputs=node.inputs, outputs=node.outputs, label=str(node))


def _constant_type(proto: onnx.NodeProto, types: dict[str, int]) -> int:
    """Return the ONNX type of what a Constant or an Identity gives."""
    if proto.op_type == "Identity":
        return types.get(proto.input[0], onnx.TensorProto.UNDEFINED)
    value = next((each.t.data_type for each in proto.attribute if each.name == "value"), None)
    return onnx.TensorProto.UNDEFINED if value is None else value


def _only(values: list[onnx.ValueInfoProto], role: str) -> onnx.ValueInfoProto:
    if len(values) != 1:
        names = ", ".join(value.name for value in values[:4])
        raise ExportError(f"the model has {len(values)} {role}s ({names}), not one")
    kind = values[0].type.tensor_type.elem_type
    if kind != onnx.TensorProto.FLOAT:
        name = onnx.TensorProto.DataType.Name(kind)
        raise ExportError(f"the model's {role} `{values[0].name}` is of type {name}, not FLOAT")
    return values[0]


def _needed(steps: list[_Step], result: str) -> list[_Step]:
    """Leave out what the result does not depend on."""
    wanted, kept = {result}, []
    for step in reversed(steps):
        if wanted.intersection(step.outputs):
            wanted.update(step.inputs)
            kept.append(step)
    return kept[::-1]


def _read_names(steps: Sequence[_Step], result: str) -> list[str]:
    """Return what the steps read, each once, in their order."""
    read = dict.fromkeys(name for step in steps for name in step.inputs if name)
    return list(read | {result: None})
