"""An ONNX model in another precision, put into the file itself.

TensorRT 11 knows no precision flags, and no runtime computes what another one does unless the graph
says so. Inputs and outputs stay float32 whatever lies between them, so that every runner takes and
gives the same arrays.
"""

from __future__ import annotations

import contextlib
import copy
import logging
import tempfile
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnx.checker
from onnxconverter_common.float16 import convert_float_to_float16

from hwnas.core.errors import DataError, ExportError, nearest
from hwnas_export.onnx_head import WEIGHTED, head_nodes
from hwnas_export.onnx_metadata import PRECISION

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

PRECISIONS = ("fp32", "fp16", "int8")

_FREE_BATCH = 32
"""Images per calibration step where the model leaves the batch open."""

_DRAWS = 8
"""Images drawn where no calibration data is given: only the ranges come from them."""

_WHICH_IMAGES = "take a few hundred images like those in use, which were not trained on"

_QDQ_OPTIONS = {
    "WeightSymmetric": True,
    "AddQDQPairToWeight": True,  # weights stay float32 in the file; the runtime folds the pair
    "QuantizeBias": False,  # TensorRT refuses the int32 biases that are ONNX Runtime's default
}


def onnx_in_precision(
    model: onnx.ModelProto,
    precision: str,
    *,
    calibration: NDArray[np.float32] | None = None,
    seed: int = 0,
    symmetric: bool = False,
    float_head: bool = False,
) -> onnx.ModelProto:
    """Return a model that computes in another precision, with the same inputs and outputs.

    `fp16` computes all of it in half precision between two casts. `int8` holds explicit
    QuantizeLinear/DequantizeLinear pairs, weights per channel, activation ranges by minimum and
    maximum. What is best differs between runtimes, see `symmetric`.

    Args:
        model: A model in fp32 with one input (batch, channels, height, width). Not changed.
        precision: `fp32` returns the model as it is.
        calibration: For `int8`, images as the model sees them in use: float32, (n, channels,
            height, width), n at least the model's own batch. Without it the ranges come from
            standard normal draws: right for latency, which does not depend on them, and for nothing
            else. Not used by the other precisions.
        seed: Of these draws.
        symmetric: For `int8`, which runtime it is for. False is for ONNX Runtime on a CPU: unsigned
            activations with zero points, quantized behind every operator. True is for TensorRT,
            which refuses zero points: signed activations, quantized where they enter an operator
            with weights and nowhere else, as its vendor advises. Each is slow, or refused, on the
            other: docs/decisions/0015-tensorrt.md has figures.
        float_head: For `int8`, keep the head in float32: see `head_nodes`. Right for a network,
            whose quantized logits take so few values that attacks which follow scores are blinded,
            and it seems robust; an operator of a latency table has no head to keep.

    Raises:
        ExportError: The precision is unknown, or the model cannot be converted.
        DataError: The calibration images have another shape or type, are too few, are not finite,
            or are all of one value or all the same.
    """
    if precision not in PRECISIONS:
        similar = nearest(precision, PRECISIONS)
        known = f"known: {', '.join(PRECISIONS)}"
        hint = f"did you mean `{similar[0]}`? {known}" if similar else known
        raise ExportError(f"there is no precision `{precision}` for ONNX models", hint=hint)
    own = precision_of(model)
    if own not in ("fp32", precision):
        raise ExportError(f"a model in {own} cannot be put into {precision}: start from fp32")
    if own == precision:
        return model
    if precision == "fp16":
        converted = _half(model)
    else:
        images = _draws(model, seed) if calibration is None else calibration
        converted = _quantized(
            model, _checked_calibration(model, images), symmetric=symmetric, float_head=float_head
        )
    _finish(converted, model, precision)
    return converted


def precision_of(model: onnx.ModelProto) -> str:
    """Return the precision that a model computes in: one of `PRECISIONS`.

    A model of `onnx_in_precision` carries its mark; another one is looked through.
    """
    for entry in model.metadata_props:
        if entry.key == PRECISION:
            return str(entry.value)
    if any(node.op_type in ("QuantizeLinear", "DequantizeLinear") for node in model.graph.node):
        return "int8"
    half = onnx.TensorProto.FLOAT16
    casts_to = {
        attribute.i
        for node in model.graph.node
        if node.op_type == "Cast"
        for attribute in node.attribute
        if attribute.name == "to"
    }
    weights = {tensor.data_type for tensor in model.graph.initializer}
    return "fp16" if half in casts_to | weights else "fp32"


def _half(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a float16 copy between two casts."""
    with warnings.catch_warnings():
        # It warns of each weight below 1e-7, which it rounds: no news to anyone.
        warnings.simplefilter("ignore")
        converted: onnx.ModelProto = convert_float_to_float16(
            model,  # it works on a copy
            keep_io_types=True,
            # Its own default cuts weights off at 1e4, far below what half precision holds.
            max_finite_val=float(np.finfo(np.float16).max),
        )
    return converted


def _quantized(
    model: onnx.ModelProto, images: NDArray[np.float32], *, symmetric: bool, float_head: bool
) -> onnx.ModelProto:
    """Return an int8 copy with explicit pairs, calibrated on images."""
    model = _named(model)
    kept = {node.name for node in head_nodes(model)} if float_head else set()
    if not any(node.op_type in WEIGHTED and node.name not in kept for node in model.graph.node):
        return model  # nothing to gain, as in an identity or a pooling
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    options: dict[str, object] = {**_QDQ_OPTIONS, "ActivationSymmetric": symmetric}
    if symmetric:
        options["OpTypesToExcludeOutputQuantization"] = list(WEIGHTED)
    with tempfile.TemporaryDirectory(prefix="hwnas-int8-") as folder, _quiet_quantizer():
        # Through files: the quantizer moves the weights of a model in memory out of it.
        source, target = Path(folder, "fp32.onnx"), Path(folder, "int8.onnx")
        onnx.save_model(model, source)
        try:
            quantize_static(
                source,
                target,
                _reader(model, images),
                quant_format=QuantFormat.QDQ,
                activation_type=QuantType.QInt8 if symmetric else QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                op_types_to_quantize=list(WEIGHTED) if symmetric else None,
                nodes_to_exclude=sorted(kept),
                per_channel=True,
                extra_options=options,
            )
        # It lets through whatever its parts and ONNX Runtime raise.
        except Exception as error:
            raise ExportError(f"the model cannot be quantized to int8: {error}") from error
        return onnx.load_model(target)


def _named(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy whose nodes all have names: by them the quantizer is told what to leave."""
    named = copy.deepcopy(model)
    for index, node in enumerate(named.graph.node):
        node.name = node.name or f"{node.op_type}_{index}"
    return named


def _reader(model: onnx.ModelProto, images: NDArray[np.float32]) -> object:
    """Feed images batch by batch; the last batch is filled up with images that came before."""
    from onnxruntime.quantization import CalibrationDataReader

    name = model.graph.input[0].name
    batch = _input_shape(model)[0] or min(_FREE_BATCH, len(images))
    begins = range(0, len(images), batch)
    batches = iter([images[min(begin, len(images) - batch) :][:batch] for begin in begins])

    class Reader(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime ships no types
        def get_next(self) -> dict[str, NDArray[np.float32]] | None:
            images = next(batches, None)
            return None if images is None else {name: images}

    return Reader()


def _draws(model: onnx.ModelProto, seed: int) -> NDArray[np.float32]:
    batch, *image = _input_shape(model)
    count = max(_DRAWS, batch or 0)
    return np.random.default_rng(seed).standard_normal((count, *image), dtype=np.float32)


def _checked_calibration(
    model: onnx.ModelProto, images: NDArray[np.float32]
) -> NDArray[np.float32]:
    batch, *image = _input_shape(model)
    if images.dtype != np.float32 or images.ndim != 4 or list(images.shape[1:]) != image:
        raise DataError(
            f"calibration images must be float32 of shape nx{'x'.join(map(str, image))}, "
            f"not {images.dtype} of shape {'x'.join(map(str, images.shape))}"
        )
    if len(images) < (batch or 1):
        raise DataError(
            f"{len(images)} calibration images are fewer than the model's batch of {batch or 1}"
        )
    if not np.isfinite(images).all():
        raise DataError("the calibration images hold NaN or infinity")
    if images.min() == images.max():
        raise DataError(
            f"all calibration images are {images.flat[0]:g} everywhere: they tell no range",
            hint=_WHICH_IMAGES,
        )
    if len(images) > 1 and (images == images[:1]).all():
        raise DataError(
            f"all {len(images)} calibration images are the same image: its ranges are not those "
            "of others",
            hint=_WHICH_IMAGES,
        )
    return images


def _input_shape(model: onnx.ModelProto) -> list[int]:
    """Return (batch, channels, height, width); a batch of 0 is free."""
    return [size.dim_value for size in model.graph.input[0].type.tensor_type.shape.dim]


def _finish(converted: onnx.ModelProto, model: onnx.ModelProto, precision: str) -> None:
    """Mark a converted model, and check that it is valid and its ends are the first one's."""
    used = {node.domain for node in converted.graph.node}
    opsets = [entry for entry in converted.opset_import if entry.domain in used | {""}]
    del converted.opset_import[:]
    converted.opset_import.extend(opsets)
    del converted.metadata_props[:]
    converted.metadata_props.extend(model.metadata_props)
    converted.metadata_props.add(key=PRECISION, value=precision)
    for ends in ("input", "output"):
        before = [(end.name, end.type) for end in getattr(model.graph, ends)]
        after = [(end.name, end.type) for end in getattr(converted.graph, ends)]
        if before != after:
            raise ExportError(f"the {ends}s changed on the way to {precision}: {before} -> {after}")
    try:
        onnx.checker.check_model(converted, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"the model in {precision} is not valid ONNX: {error}") from error


@contextlib.contextmanager
def _quiet_quantizer() -> Iterator[None]:
    """Keep the quantizer's advice to itself: to prepare what the exporter has prepared.

    It logs on the root logger by the module's own functions, which set up a handler for the whole
    process where there is none.
    """
    root = logging.getLogger()
    handler = logging.NullHandler()

    def drop(_: logging.LogRecord) -> bool:
        return False

    root.addHandler(handler)
    root.addFilter(drop)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        root.removeFilter(drop)
        root.removeHandler(handler)
