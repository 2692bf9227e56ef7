"""Engines that were damaged in their ONNX bytes are caught, and the gates that do are named."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from hwnas.core.decoding import decode_json, encode_json
from hwnas.core.errors import GateFailedError
from hwnas.verify.verification import Verification, verify_engine
from hwnas_export.onnxruntime_runner import OnnxRuntimeRunner
from hwnas_export.precision import onnx_in_precision

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.hwnas.verify.conftest import Trained

    Damage = Callable[[onnx.ModelProto], None]

TARGET_PRECISIONS = ("fp32", "fp16", "int8")


def copy_of(model: onnx.ModelProto) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return copy


def verified(
    trained: Trained, model: onnx.ModelProto, precision: str = "fp32", *, quick: bool = True
) -> Verification:
    settings = trained.settings
    if quick:
        settings = replace(
            settings, square_queries=5, square_samples=20, masking_samples=20, adaptive_steps=5
        )
    content = model.SerializeToString()
    with OnnxRuntimeRunner(content, precision=precision) as engine:
        return verify_engine(
            twin=trained.twin,
            engine=engine,
            images=trained.images,
            labels=trained.labels,
            threat=trained.threat,
            precision=precision,
            model=content,
            settings=settings,
        )


def failed(found: Verification) -> set[str]:
    return {gate.name for gate in found.gates if not gate.passed}


def nodes(model: onnx.ModelProto, kind: str) -> list[onnx.NodeProto]:
    return [node for node in model.graph.node if node.op_type == kind]


def change(model: onnx.ModelProto, name: str, new: Callable[[np.ndarray], np.ndarray]) -> None:
    """Change an initializer; it keeps its type and shape."""
    (tensor,) = [each for each in model.graph.initializer if each.name == name]
    before = numpy_helper.to_array(tensor)
    after = new(before.copy()).astype(before.dtype)
    assert after.shape == before.shape
    tensor.CopyFrom(numpy_helper.from_array(after, name))


def weight(model: onnx.ModelProto, kind: str, place: int = 0) -> str:
    name: str = nodes(model, kind)[place].input[1]
    return name


def bias(model: onnx.ModelProto, kind: str, place: int = 0) -> str:
    name: str = nodes(model, kind)[place].input[2]
    return name


def before_all(model: onnx.ModelProto, *made: onnx.NodeProto) -> None:
    """Put nodes between the input and what reads it: they read `images` and give `changed`."""
    source = model.graph.input[0].name
    for node in model.graph.node:
        node.input[:] = ["changed" if name == source else name for name in node.input]
    for place, node in enumerate(made):
        node.input[:] = [source if name == "images" else name for name in node.input]
        model.graph.node.insert(place, node)


def constant(model: onnx.ModelProto, name: str, value: float) -> None:
    model.graph.initializer.append(numpy_helper.from_array(np.array(value, np.float32), name))


def wrong_scale(model: onnx.ModelProto) -> None:
    change(model, weight(model, "Conv", 1), lambda values: values * 1.2)


def swapped_channels(model: onnx.ModelProto) -> None:
    change(model, weight(model, "Conv"), lambda values: values[[1, 0, *range(2, len(values))]])


def wrong_mean(model: onnx.ModelProto) -> None:
    change(model, weight(model, "Sub"), lambda values: values + 0.2)


def wrong_std(model: onnx.ModelProto) -> None:
    change(model, weight(model, "Div"), lambda values: values * 1.5)


def normalized_twice(model: onnx.ModelProto) -> None:
    constant(model, "again_mean", 0.3)
    constant(model, "again_std", 0.35)
    before_all(
        model,
        helper.make_node("Sub", ["images", "again_mean"], ["between"]),
        helper.make_node("Div", ["between", "again_std"], ["changed"]),
    )


def not_normalized(model: onnx.ModelProto) -> None:
    change(model, weight(model, "Sub"), np.zeros_like)
    change(model, weight(model, "Div"), np.ones_like)


def stale(model: onnx.ModelProto) -> None:
    draws = np.random.default_rng(0)
    for kind, place in (("Conv", 0), ("Conv", 1), ("Gemm", 0)):
        change(
            model,
            weight(model, kind, place),
            lambda values: values + 0.3 * values.std() * draws.standard_normal(values.shape),
        )


def truncated(model: onnx.ModelProto) -> None:
    def cut(values: np.ndarray) -> np.ndarray:
        values.reshape(-1)[values.size // 2 :] = 0
        return values

    change(model, weight(model, "Gemm"), cut)


def one_flipped_bias(model: onnx.ModelProto) -> None:
    def flip(values: np.ndarray) -> np.ndarray:
        values[np.abs(values).argmax()] *= -1
        return values

    change(model, bias(model, "Conv"), flip)


def nan_weight(model: onnx.ModelProto) -> None:
    def spoil(values: np.ndarray) -> np.ndarray:
        values.reshape(-1)[7] = np.nan
        return values

    change(model, weight(model, "Conv", 1), spoil)


def other_class_order(model: onnx.ModelProto) -> None:
    def swapped(values: np.ndarray) -> np.ndarray:
        axis = 0 if values.shape[0] == 10 else 1
        return np.roll(values, 1, axis=axis)

    change(model, weight(model, "Gemm"), swapped)
    change(model, bias(model, "Gemm"), lambda values: np.roll(values, 1))


def missing_activation(model: onnx.ModelProto) -> None:
    nodes(model, "Relu")[0].op_type = "Identity"


def transposed(model: onnx.ModelProto) -> None:
    before_all(model, helper.make_node("Transpose", ["images"], ["changed"], perm=[0, 1, 3, 2]))


def shifted_padding(model: onnx.ModelProto) -> None:
    for attribute in nodes(model, "Conv")[1].attribute:
        if attribute.name == "pads":
            attribute.ints[:] = [2, 2, 0, 0]


def pixels_in_255(model: onnx.ModelProto) -> None:
    constant(model, "range", 255.0)
    before_all(model, helper.make_node("Mul", ["images", "range"], ["changed"]))


def rounded_output(model: onnx.ModelProto) -> None:
    """What an output in four bits gives: logits in steps of two."""
    result = model.graph.output[0].name
    for node in model.graph.node:
        node.output[:] = ["exact" if name == result else name for name in node.output]
    constant(model, "step", 2.0)
    model.graph.node.extend(
        [
            helper.make_node("Div", ["exact", "step"], ["steps"]),
            helper.make_node("Round", ["steps"], ["whole"]),
            helper.make_node("Mul", ["whole", "step"], [result]),
        ]
    )


NUMBERS = {"max_abs_diff", "relative_l2", "margin_drift"}


@pytest.mark.parametrize(
    ("damage", "gates"),
    [
        (wrong_scale, NUMBERS),
        (swapped_channels, NUMBERS | {"adversarial_agreement"}),
        (wrong_mean, NUMBERS),
        (wrong_std, NUMBERS),
        (normalized_twice, NUMBERS),
        (not_normalized, NUMBERS | {"adversarial_agreement"}),
        (stale, NUMBERS | {"agreement"}),
        (truncated, NUMBERS | {"agreement", "clean_drop"}),
        (one_flipped_bias, NUMBERS),
        (nan_weight, {"finite_logits", "agreement", "clean_drop"}),
        (other_class_order, {"agreement", "clean_drop", "robust_drop"}),
        (missing_activation, NUMBERS | {"adversarial_agreement"}),
        (transposed, NUMBERS | {"agreement", "clean_drop"}),
        (shifted_padding, NUMBERS | {"agreement"}),
        (pixels_in_255, NUMBERS | {"agreement", "clean_drop"}),
        (rounded_output, {"max_abs_diff", "tie_rate", "distinct_logits"}),
    ],
)
def test_damaged_bytes_are_caught(
    trained: Trained, model: onnx.ModelProto, damage: Damage, gates: set[str]
) -> None:
    damaged = copy_of(model)
    damage(damaged)
    found = verified(trained, damaged)
    assert gates <= failed(found)
    with pytest.raises(GateFailedError) as caught:
        found.require()
    assert all(f"  {gate}: " in str(caught.value) for gate in gates)
    assert decode_json(encode_json(found), Verification, source="test") == found


def test_a_half_precision_that_overflows_is_caught(
    trained: Trained, model: onnx.ModelProto
) -> None:
    # In single precision it computes what it did before: what one layer is scaled up by, the next
    # one is scaled down by.
    overflowing = copy_of(model)
    for name in (weight(overflowing, "Conv"), bias(overflowing, "Conv")):
        change(overflowing, name, lambda values: values * 1e6)
    change(overflowing, weight(overflowing, "Conv", 1), lambda values: values / 1e6)
    assert not failed(verified(trained, overflowing))
    half = onnx_in_precision(overflowing, "fp16")
    assert {"relative_l2", "margin_drift"} <= failed(verified(trained, half, "fp16"))


def wrong_zero_point(model: onnx.ModelProto) -> None:
    change(model, nodes(model, "QuantizeLinear")[0].input[2], lambda value: value + 60)


def wrong_activation_scale(model: onnx.ModelProto) -> None:
    # Of one pair: a scale is read by both nodes, and changed in the second.
    node = nodes(model, "DequantizeLinear")[0]
    (tensor,) = [each for each in model.graph.initializer if each.name == node.input[1]]
    other = numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(1.5), "other_scale")
    model.graph.initializer.append(other)
    node.input[1] = "other_scale"


def narrow_ranges(model: onnx.ModelProto) -> None:
    """What a calibration on dark images gives: all else saturates."""
    scalars = {tensor.name for tensor in model.graph.initializer if not tensor.dims}
    for name in sorted({node.input[1] for node in nodes(model, "QuantizeLinear")} & scalars):
        change(model, name, lambda value: value / 6)


@pytest.mark.parametrize(
    ("damage", "gates"),
    [
        (wrong_zero_point, {"relative_l2"}),
        (wrong_activation_scale, {"relative_l2"}),
        (narrow_ranges, {"relative_l2", "adversarial_agreement"}),
    ],
)
def test_a_damaged_int8_engine_is_caught(
    trained: Trained, quantized: onnx.ModelProto, damage: Damage, gates: set[str]
) -> None:
    damaged = copy_of(quantized)
    damage(damaged)
    assert gates <= failed(verified(trained, damaged, "int8"))


def test_quantized_logits_are_caught(trained: Trained, model: onnx.ModelProto) -> None:
    whole = onnx_in_precision(model, "int8", calibration=trained.calibration)
    found = verified(trained, whole, "int8")
    assert failed(found) == {"distinct_logits"}
    assert found.parity.distinct_logits_engine <= 256


@pytest.mark.parametrize("precision", TARGET_PRECISIONS)
def test_a_sound_engine_of_each_precision_passes(
    trained: Trained, model: onnx.ModelProto, precision: str
) -> None:
    converted = onnx_in_precision(
        model, precision, calibration=trained.calibration, float_head=True
    )
    found = verified(trained, converted, precision, quick=False)
    assert failed(found) == set(), found.gates
    assert found.precision == precision
    assert not found.left_out
    assert found.adaptive is not None
    quantized = precision == "int8"
    assert found.adaptive.gradients == (
        "fake quantization of the engine" if quantized else "the PyTorch twin"
    )
    assert not found.adaptive.note
    if quantized:
        # The fake quantization computes the engine's own numbers, which its twin does not.
        own, twins = found.adaptive.parity.relative_l2, found.parity.relative_l2
        assert own is not None
        assert twins is not None
        assert own < twins / 3
