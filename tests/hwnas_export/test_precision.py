"""The same network in another precision: what it computes, and what its file holds."""

from __future__ import annotations

import logging
import tempfile
from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto
from torch import nn

from hwnas.core.errors import DataError, ExportError
from hwnas_export.onnx_export import onnx_from_module
from hwnas_export.precision import PRECISIONS, onnx_in_precision, precision_of

if TYPE_CHECKING:
    from pathlib import Path

Array = NDArray[np.float32]


class Residual(nn.Module):
    def __init__(self, branch: nn.Module) -> None:
        super().__init__()
        self.branch = branch

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        branch: torch.Tensor = self.branch(images)
        return images + branch


def network() -> nn.Module:
    widen = [nn.Conv2d(8, 32, 1), nn.BatchNorm2d(32), nn.Hardswish()]
    depthwise = [nn.Conv2d(32, 32, 3, padding=1, groups=32), nn.ReLU6()]
    block = Residual(nn.Sequential(*widen, *depthwise, nn.Conv2d(32, 8, 1)))
    stem = [nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.ReLU()]
    return nn.Sequential(*stem, block, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))


def tinted(count: int, seed: int) -> tuple[Array, NDArray[np.int64]]:
    """Noise with a tint: its color, or none, is the class."""
    rng = np.random.default_rng(seed)
    images = 0.4 * rng.random((count, 3, 16, 16), dtype=np.float32)
    labels = rng.integers(4, size=count)
    for image, label in zip(images, labels, strict=True):
        if label < 3:
            image[label] += 0.4
    return images, labels


@pytest.fixture(scope="module")
def model() -> onnx.ModelProto:
    """A network that was trained a little: an untrained one's outputs hardly vary."""
    torch.manual_seed(0)
    module = network().train()
    images, labels = tinted(64, seed=0)
    optimizer = torch.optim.Adam(module.parameters(), lr=2e-2)
    for _ in range(60):
        loss = nn.functional.cross_entropy(
            module(torch.from_numpy(images)), torch.from_numpy(labels)
        )
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch gives it no types
        optimizer.step()
    return onnx_from_module(module, (32, 3, 16, 16))


@pytest.fixture(scope="module")
def free_batch_model() -> onnx.ModelProto:
    torch.manual_seed(0)
    return onnx_from_module(network(), (1, 3, 16, 16), dynamic_batch=True)


def outputs(model: onnx.ModelProto, images: Array) -> Array:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(model.SerializeToString(), options)
    return np.asarray(session.run(["logits"], {"images": images})[0], dtype=np.float32)


def ends(model: onnx.ModelProto) -> list[tuple[str, int, list[object]]]:
    return [
        (
            end.name,
            end.type.tensor_type.elem_type,
            [size.dim_param or size.dim_value for size in end.type.tensor_type.shape.dim],
        )
        for end in (*model.graph.input, *model.graph.output)
    ]


def operators(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


def relative_error(got: Array, expected: Array) -> float:
    return float(np.linalg.norm(got - expected) / np.linalg.norm(expected))


@pytest.mark.parametrize(
    ("precision", "symmetric", "tolerance"),
    [("fp16", True, 2e-3), ("int8", True, 5e-2), ("int8", False, 5e-2)],
)
def test_a_trained_network_keeps_its_answers(
    model: onnx.ModelProto, precision: str, symmetric: bool, tolerance: float
) -> None:
    images, labels = tinted(32, seed=1)
    expected = outputs(model, images)
    assert (expected.argmax(1) == labels).mean() > 0.9  # there is something to keep
    calibration, _ = tinted(100, seed=2)
    converted = onnx_in_precision(model, precision, calibration=calibration, symmetric=symmetric)
    got = outputs(converted, images)
    error = relative_error(got, expected)
    assert 1e-6 < error < tolerance  # it does compute in another precision, and well
    assert (got.argmax(1) == expected.argmax(1)).all()


def test_half_precision_is_more_exact_than_eight_bits(model: onnx.ModelProto) -> None:
    images, _ = tinted(32, seed=1)
    expected = outputs(model, images)
    errors = {
        precision: relative_error(
            outputs(onnx_in_precision(model, precision, calibration=images), images), expected
        )
        for precision in ("fp32", "fp16", "int8")
    }
    assert errors["fp32"] == 0.0
    assert 10 * errors["fp16"] < errors["int8"]


def test_calibration_sets_the_ranges(model: onnx.ModelProto) -> None:
    images, _ = tinted(32, seed=1)
    expected = outputs(model, images)
    own = onnx_in_precision(model, "int8", calibration=images, symmetric=True)
    far_off = onnx_in_precision(model, "int8", calibration=np.float32(50) * images, symmetric=True)
    errors = [relative_error(outputs(each, images), expected) for each in (own, far_off)]
    assert 4 * errors[0] < errors[1]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_inputs_and_outputs_stay_as_they_are(
    model: onnx.ModelProto, free_batch_model: onnx.ModelProto, precision: str
) -> None:
    for each in (model, free_batch_model):
        before = each.SerializeToString()
        converted = onnx_in_precision(each, precision)
        assert ends(converted) == ends(each)
        assert all(elem_type == TensorProto.FLOAT for _, elem_type, _ in ends(converted))
        assert each.SerializeToString() == before
        assert precision_of(converted) == precision
        assert {entry.domain for entry in converted.opset_import} == {""}


def test_fp32_is_the_model_itself(model: onnx.ModelProto) -> None:
    assert onnx_in_precision(model, "fp32") is model


def test_half_precision_holds_no_float_weights(model: onnx.ModelProto) -> None:
    converted = onnx_in_precision(model, "fp16")
    types = {weight.data_type for weight in converted.graph.initializer}
    assert TensorProto.FLOAT16 in types
    assert TensorProto.FLOAT not in types
    assert operators(converted).count("Cast") == 2


def test_large_weights_survive_half_precision() -> None:
    linear = nn.Linear(4, 1, bias=False)
    nn.init.constant_(linear.weight, 30_000.0)
    module = nn.Sequential(nn.Flatten(), linear)
    converted = onnx_in_precision(onnx_from_module(module, (1, 1, 2, 2)), "fp16")
    images = np.full((1, 1, 2, 2), 0.25, dtype=np.float32)
    np.testing.assert_allclose(outputs(converted, images), 30_000.0, rtol=1e-3)


def test_eight_bits_are_what_tensorrt_takes(model: onnx.ModelProto) -> None:
    converted = onnx_in_precision(model, "int8", symmetric=True)
    types = {weight.name: weight.data_type for weight in converted.graph.initializer}
    values = {
        weight.name: onnx.numpy_helper.to_array(weight) for weight in converted.graph.initializer
    }
    pairs = [node for node in converted.graph.node if node.op_type.endswith("quantizeLinear")]
    pairs += [node for node in converted.graph.node if node.op_type == "QuantizeLinear"]
    assert pairs
    for node in pairs:
        zero_point = node.input[2]
        assert types[zero_point] == TensorProto.INT8  # no int32: no quantized bias
        assert not values[zero_point].any()
    producers = {name: node for node in converted.graph.node for name in node.output}
    weighted = [node for node in converted.graph.node if node.op_type in ("Conv", "Gemm")]
    assert len(weighted) == 5
    for node in weighted:
        images, weights = (producers[name] for name in node.input[:2])
        assert images.op_type == weights.op_type == "DequantizeLinear"
        assert values[weights.input[1]].ndim == 1  # a scale per channel
        assert values[images.input[1]].ndim == 0
        if len(node.input) > 2:
            assert node.input[2] not in producers  # the bias is a plain constant
    # Nothing stands between a convolution and what it fuses with.
    consumers = {name: node.op_type for node in converted.graph.node for name in node.input}
    assert all(consumers.get(node.output[0]) != "QuantizeLinear" for node in weighted)


def test_eight_bits_for_processors_are_unsigned(model: onnx.ModelProto) -> None:
    converted = onnx_in_precision(model, "int8")
    types = {weight.name: weight.data_type for weight in converted.graph.initializer}
    zero_points = [
        types[node.input[2]] for node in converted.graph.node if node.op_type == "QuantizeLinear"
    ]
    assert TensorProto.UINT8 in zero_points
    assert TensorProto.INT32 not in zero_points


@pytest.mark.parametrize("symmetric", [False, True])
def test_a_head_in_float_gives_logits_that_are_not_quantized(
    model: onnx.ModelProto, symmetric: bool
) -> None:
    images, _ = tinted(32, seed=1)
    calibration, _ = tinted(100, seed=2)
    quantized, kept = (
        onnx_in_precision(
            model, "int8", calibration=calibration, symmetric=symmetric, float_head=float_head
        )
        for float_head in (False, True)
    )
    makers = {name: node for node in kept.graph.node for name in node.output}
    last = makers["logits"]
    assert last.op_type == "Gemm"
    assert last.input[1] not in makers  # its weights are plain constants
    assert sum(operator == "QuantizeLinear" for operator in operators(kept)) > 5
    errors = [
        relative_error(outputs(each, images), outputs(model, images)) for each in (kept, quantized)
    ]
    assert errors[0] < 5e-2
    if not symmetric:  # TensorRT's recipe quantizes no outputs in the first place
        distinct = [len(np.unique(outputs(each, images))) for each in (kept, quantized)]
        assert distinct[0] == 32 * 4
        assert distinct[1] < distinct[0]


def test_nodes_without_names_are_quantized_too(model: onnx.ModelProto) -> None:
    nameless = onnx.ModelProto()
    nameless.CopyFrom(model)
    for node in nameless.graph.node:
        node.name = ""
    images, _ = tinted(32, seed=1)
    one, other = (
        outputs(onnx_in_precision(each, "int8", calibration=images, float_head=True), images)
        for each in (model, nameless)
    )
    np.testing.assert_array_equal(one, other)
    assert not any(node.name for node in nameless.graph.node)


def test_a_network_without_weights_is_marked_alone() -> None:
    pooling = onnx_from_module(nn.AvgPool2d(2), (1, 3, 8, 8))
    converted = onnx_in_precision(pooling, "int8")
    assert operators(converted) == operators(pooling)
    assert precision_of(converted) == "int8"
    assert precision_of(pooling) == "fp32"


def test_a_model_without_our_mark_is_looked_through(model: onnx.ModelProto) -> None:
    for precision in PRECISIONS:
        bare = onnx.ModelProto()
        bare.CopyFrom(onnx_in_precision(model, precision))
        del bare.metadata_props[:]
        assert precision_of(bare) == precision


def test_draws_repeat_and_follow_the_seed(model: onnx.ModelProto) -> None:
    first, again, other = (
        onnx_in_precision(model, "int8", seed=seed).SerializeToString(deterministic=True)
        for seed in (0, 0, 1)
    )
    assert first == again
    assert first != other


@pytest.mark.parametrize(("precision", "nearest"), [("int4", "int8"), ("fp64", "fp"), ("", "fp32")])
def test_an_unknown_precision_names_the_known_ones(
    model: onnx.ModelProto, precision: str, nearest: str
) -> None:
    with pytest.raises(ExportError, match=nearest) as caught:
        onnx_in_precision(model, precision)
    assert all(known in str(caught.value) for known in PRECISIONS)


def test_a_converted_model_is_not_converted_again(model: onnx.ModelProto) -> None:
    half = onnx_in_precision(model, "fp16")
    assert onnx_in_precision(half, "fp16") is half
    with pytest.raises(ExportError, match="in fp16 cannot be put into int8: start from fp32"):
        onnx_in_precision(half, "int8")


GOOD = np.random.default_rng(0).random((64, 3, 16, 16), dtype=np.float32)


@pytest.mark.parametrize(
    ("calibration", "reason"),
    [
        (np.full_like(GOOD, 0.5), "are 0.5 everywhere"),
        (np.repeat(GOOD[:1], 64, axis=0), "all 64 calibration images are the same image"),
        (GOOD[:, :, :8], "float32 of shape nx3x16x16, not float32 of shape 64x3x8x16"),
        (GOOD.astype(np.float64), "not float64"),
        (GOOD[0], "of shape 3x16x16"),
        (GOOD[:31], "31 calibration images are fewer than the model's batch of 32"),
        (np.where(GOOD > 0.99, np.float32(np.nan), GOOD), "NaN or infinity"),
        (np.where(GOOD > 0.99, np.float32(np.inf), GOOD), "NaN or infinity"),
    ],
    ids=["constant", "same", "shape", "type", "dimensions", "few", "nan", "inf"],
)
def test_calibration_of_no_use_is_refused(
    model: onnx.ModelProto, calibration: Array, reason: str
) -> None:
    with pytest.raises(DataError, match=reason):
        onnx_in_precision(model, "int8", calibration=calibration)


def test_nothing_is_left_and_nothing_is_said(
    model: onnx.ModelProto,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])  # as in a program that set up no logging
    for precision in PRECISIONS:
        onnx_in_precision(model, precision)
    assert list(tmp_path.iterdir()) == []
    assert root.handlers == []
    assert root.filters == []
    captured = capfd.readouterr()
    assert captured.out == captured.err == ""


def test_nothing_reaches_the_logs_of_a_program_that_has_some(
    model: onnx.ModelProto, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    onnx_in_precision(model, "int8")
    assert caplog.records == []
    logging.getLogger().warning("back to normal")
    assert caplog.messages == ["back to normal"]
