"""Fake quantization: ONNX's values to the last bit, and gradients that pass through."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from hwnas.core.errors import ExportError
from hwnas_export.onnx_export import onnx_from_module
from hwnas_export.precision import onnx_in_precision
from hwnas_export.torch_from_onnx import check_twin, torch_from_onnx

if TYPE_CHECKING:
    from numpy.typing import NDArray

KINDS = {
    "uint8": (np.uint8, 128), "int8": (np.int8, 3), "uint16": (np.uint16, 30000),
    "int16": (np.int16, -7),
}  # fmt: skip


def pair(
    *,
    scale: NDArray[np.float32],
    zero: NDArray[Any] | None,
    opset: int = 21,
    shape: tuple[int, ...] = (2, 3, 4, 4),
    **attributes: Any,
) -> onnx.ModelProto:
    names = ["scale"] if zero is None else ["scale", "zero"]
    constants = [numpy_helper.from_array(scale, "scale")]
    if zero is not None:
        constants.append(numpy_helper.from_array(zero, "zero"))
    graph = helper.make_graph(
        [
            helper.make_node("QuantizeLinear", ["x", *names], ["q"], **attributes),
            helper.make_node("DequantizeLinear", ["q", *names], ["y"], **attributes),
        ],
        "pair",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        constants,
    )
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8 if opset < 19 else 10
    )


def exact(model: onnx.ModelProto, x: NDArray[np.float32]) -> NDArray[np.float32]:
    """What ONNX Runtime computes node by node, nothing fused."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    session = ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    found: NDArray[np.float32] = session.run(None, {session.get_inputs()[0].name: x})[0]
    return found


@settings(max_examples=60)
@given(
    st.sampled_from(sorted(KINDS)),
    st.floats(0.001, 3.0),
    st.integers(0, 999),
    st.sampled_from([13, 19, 21]),
)
def test_values_are_onnx_runtimes_to_the_last_bit(
    kind: str, scale: float, seed: int, opset: int
) -> None:
    number, zero = KINDS[kind]
    if opset < 21 and "16" in kind:
        return  # 16 bits are of the newest set alone
    # Whole and half steps too: there rounding shows, and saturation at both ends.
    x = np.random.default_rng(seed).integers(-600, 600, (2, 3, 4, 4)).astype(np.float32)
    x *= np.float32(scale) / 2
    model = pair(scale=np.array(scale, np.float32), zero=np.array(zero, number), opset=opset)
    with torch.no_grad():
        found = torch_from_onnx(model)(torch.from_numpy(x)).numpy()
    np.testing.assert_array_equal(found, exact(model, x))


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_each_channel_has_its_own_scale(axis: int) -> None:
    size = (2, 3, 4, 4)[axis]
    scale = np.linspace(0.01, 0.4, size, dtype=np.float32)
    model = pair(scale=scale, zero=np.arange(size).astype(np.int8), axis=axis)
    x = np.random.default_rng(0).normal(size=(2, 3, 4, 4)).astype(np.float32)
    with torch.no_grad():
        found = torch_from_onnx(model)(torch.from_numpy(x)).numpy()
    np.testing.assert_array_equal(found, exact(model, x))


def test_blocks_and_no_zero_point() -> None:
    scale = np.linspace(0.01, 0.4, 2 * 3 * 2 * 4, dtype=np.float32).reshape(2, 3, 2, 4)
    zero = np.zeros_like(scale, dtype=np.int8)
    x = np.random.default_rng(0).normal(size=(2, 3, 4, 4)).astype(np.float32)
    model = pair(scale=scale, zero=zero, axis=2, block_size=2)
    plain = pair(scale=np.array(0.1, np.float32), zero=None)
    with torch.no_grad():
        for each in (model, plain):
            found = torch_from_onnx(each)(torch.from_numpy(x)).numpy()
            np.testing.assert_array_equal(found, exact(each, x))


def test_gradients_pass_rounding_and_stop_at_saturation() -> None:
    model = pair(scale=np.array(0.1, np.float32), zero=np.array(0, np.int8), shape=(1, 1, 1, 4))
    x = torch.tensor([[[[0.04, 0.23, 12.6, -99.0]]]], requires_grad=True)
    found = torch_from_onnx(model)(x)
    found.sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(found.detach(), torch.tensor([[[[0.0, 0.2, 12.6, -12.8]]]]))
    torch.testing.assert_close(x.grad, torch.tensor([[[[1.0, 1.0, 1.0, 0.0]]]]))


def test_infinite_values_saturate() -> None:
    model = pair(scale=np.array(0.1, np.float32), zero=np.array(5, np.uint8), shape=(1, 1, 1, 2))
    x = torch.tensor([[[[torch.inf, -torch.inf]]]])
    torch.testing.assert_close(torch_from_onnx(model)(x), torch.tensor([[[[25.0, -0.5]]]]))


def test_a_zero_point_of_another_type_is_refused() -> None:
    model = pair(scale=np.array(0.1, np.float32), zero=np.array(0, np.int32))
    with pytest.raises(ExportError, match="zero point of a type INT32"):
        torch_from_onnx(model)


def small_network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 16, 1), nn.Hardswish(), nn.MaxPool2d(2),
        nn.Conv2d(16, 16, 3, padding=1, groups=16), nn.ReLU6(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4),
    )  # fmt: skip


@pytest.mark.parametrize("symmetric", [False, True])
def test_our_int8_models(symmetric: bool) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = small_network().eval()
    images = np.random.default_rng(0).random((64, 3, 16, 16), dtype=np.float32)
    model = onnx_in_precision(
        onnx_from_module(network, (1, 3, 16, 16), dynamic_batch=True), "int8",
        calibration=images, symmetric=symmetric,
    )  # fmt: skip
    twin = torch_from_onnx(model)
    with torch.no_grad():
        found = twin(torch.from_numpy(images)).numpy()
    expected = exact(model, images)
    # Sums in another order may round one value the other way, rarely.
    assert np.mean(np.abs(found - expected) > 1e-5) < 0.02
    # Fused, ONNX Runtime sums integers: exact where floats round, so a few steps go the other way.
    parity = check_twin(model.SerializeToString(), twin, images)
    assert parity.max_abs_diff is not None
    assert parity.largest is not None
    assert parity.max_abs_diff < 0.02 * parity.largest
    assert parity.agreement >= 0.98
    pixels = torch.from_numpy(images[:4]).requires_grad_()
    twin(pixels).square().sum().backward()
    assert pixels.grad is not None
    assert bool((pixels.grad.flatten(1).abs().sum(1) > 0).all())
