"""What `OnnxRuntimeRunner` promises beyond the contract, and what of its GPU side needs no GPU."""

from __future__ import annotations

import logging
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from hwnas.core.errors import ExportError, TargetError
from hwnas_export import cuda_session
from hwnas_export.cuda_session import CudaSession, DeviceBinding, check_taken, operators_on_cpu
from hwnas_export.onnxruntime_runner import OnnxRuntimeRunner

if TYPE_CHECKING:
    from collections.abc import Mapping

NO_CUDA = "CUDAExecutionProvider" not in ort.get_available_providers()


def doubling(element: int = TensorProto.FLOAT) -> bytes:
    """Return a model that adds its input to itself."""
    shape = [2, 3, 4, 4]
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "x"], ["y"], name="twice")],
        "doubling",
        [helper.make_tensor_value_info("x", element, shape)],
        [helper.make_tensor_value_info("y", element, shape)],
    )
    opsets = [helper.make_opsetid("", 20)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


@pytest.fixture
def session() -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    return ort.InferenceSession(doubling(), options, providers=["CPUExecutionProvider"])


@pytest.fixture
def images() -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    return np.random.default_rng(0).random((2, 3, 4, 4), dtype=np.float32)


@pytest.mark.parametrize(
    ("device", "precision", "name"),
    [
        ("cpu", "fp32", "onnxruntime-cpu"),
        ("cpu", "int8", "onnxruntime-cpu-int8"),
        ("cpu", "fp16", "onnxruntime-cpu-fp16"),
        ("cuda", "fp32", "onnxruntime-cuda"),
        ("cuda", "fp16", "onnxruntime-cuda-fp16"),
    ],
)
def test_device_and_precision_make_the_name(device: Any, precision: str, name: str) -> None:
    assert OnnxRuntimeRunner(b"", device=device, precision=precision).name == name


@pytest.mark.parametrize(("device", "precision"), [("cpu", "bf16"), ("cuda", "int8")])
def test_a_target_that_there_is_not_is_refused(device: Any, precision: str) -> None:
    with pytest.raises(TargetError, match=r"no target onnxruntime-.*\n.*onnxruntime-cpu-int8"):
        OnnxRuntimeRunner(b"", device=device, precision=precision)


def test_a_model_whose_ends_are_not_float32_is_refused() -> None:
    with (
        pytest.raises(ExportError, match=r"input x is tensor\(float16\)"),
        OnnxRuntimeRunner(doubling(TensorProto.FLOAT16)),
    ):
        pass


@pytest.mark.skipif(not NO_CUDA, reason="this ONNX Runtime is built with CUDA")
def test_a_gpu_is_refused_by_an_onnxruntime_without_cuda() -> None:
    runner = OnnxRuntimeRunner(doubling(), device="cuda")
    with pytest.raises(TargetError, match=r"built without CUDA.*\n.*onnxruntime-gpu"):
        runner.activate()
    with pytest.raises(RuntimeError, match="not active"):
        _ = runner.input_shape


def test_a_session_that_fell_back_to_the_cpu_is_refused(session: ort.InferenceSession) -> None:
    # This is what ONNX Runtime hands out when it cannot load its CUDA provider.
    with pytest.raises(TargetError, match=r"took CPUExecutionProvider\n.*preload_dlls"):
        check_taken(session)


def test_operators_left_to_the_cpu_are_named(session: ort.InferenceSession) -> None:
    # Only newer versions tell; the others must at least not fail.
    tells = hasattr(session, "get_provider_graph_assignment_info")
    assert operators_on_cpu(session) == (("twice",) if tells else ())


def test_on_the_cpu_none_is_left_to_the_cpu() -> None:
    with OnnxRuntimeRunner(doubling()) as runner:
        assert runner.cpu_operators == ()


def test_what_cannot_be_captured_is_launched_and_said(
    session: ort.InferenceSession, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    asked: list[dict[str, str]] = []

    def open_session(provider: tuple[str, Mapping[str, str]]) -> ort.InferenceSession:
        name, options = provider
        assert name == "CUDAExecutionProvider"
        asked.append(dict(options))
        if "enable_cuda_graph" in options:
            raise ExportError("nodes were left to another provider")
        return session

    # The session itself is the CPU's: that it was taken is checked elsewhere.
    monkeypatch.setattr(cuda_session, "_check_available", lambda: None)
    monkeypatch.setattr(cuda_session, "check_taken", lambda session: None)
    with caplog.at_level(logging.WARNING, logger="hwnas_export"):
        opened = CudaSession(open_session)
    assert opened.session is session
    assert [options.get("enable_cuda_graph") for options in asked] == ["1", None]
    assert all(options["use_tf32"] == "0" for options in asked)
    assert "nodes were left to another provider" in caplog.text
    if opened.cpu_operators:
        assert "left to the CPU: twice" in caplog.text
    if NO_CUDA:
        with pytest.raises(ExportError, match="cannot run the model on the GPU"):
            opened.bind(np.zeros((2, 3, 4, 4), np.float32))


def test_a_binding_computes_in_place_what_run_does(
    session: ort.InferenceSession, images: np.ndarray[tuple[int, ...], np.dtype[np.float32]]
) -> None:
    # The same steps as on a GPU, in the CPU's memory.
    binding = DeviceBinding(session, images.copy(), graph=1, device="cpu")
    other = DeviceBinding(session, -images, graph=2, device="cpu")
    first = binding.call()
    place = first.data_ptr()
    other.sample(2)
    np.testing.assert_array_equal(first.numpy(), images + images)
    np.testing.assert_array_equal(other.call().numpy(), -images - images)
    assert binding.call().data_ptr() == place  # preallocated: a captured graph writes there


def test_a_binding_reads_the_clock_around_all_its_calls(
    session: ort.InferenceSession, images: np.ndarray[tuple[int, ...], np.dtype[np.float32]]
) -> None:
    ticks = iter([100, 700])
    binding = DeviceBinding(session, images, graph=1, device="cpu")
    assert binding.sample(5, clock=lambda: next(ticks)) == 600


def test_the_other_runtimes_are_not_imported() -> None:
    script = (
        "import sys; import hwnas_export.onnxruntime_runner;"
        "found = {'torch', 'openvino', 'hwnas_export.cuda_session'} & set(sys.modules);"
        "sys.exit(str(found) if found else 0)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
