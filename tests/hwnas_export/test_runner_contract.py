"""Every runner keeps one contract: the same cases for all, wherever a runner can run."""

from __future__ import annotations

import ctypes
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, Literal

import numpy as np
import onnxruntime as ort
import pytest
import torch
from torch import nn

from hwnas.core.errors import DataError, ExportError
from hwnas_export.onnx_export import onnx_from_module
from hwnas_export.onnxruntime_runner import OnnxRuntimeRunner
from hwnas_export.openvino_runner import OpenVinoRunner, import_openvino
from hwnas_export.precision import onnx_in_precision
from hwnas_export.runner import Runner, host_sampler
from hwnas_export.torch_runner import TorchRunner

Images = np.ndarray[tuple[int, ...], np.dtype[np.float32]]

# Outputs here are about 1 in size. Half of a unit in the last place is 2^-11 in fp16, 2^-9 in bf16;
# a few of them add up over two layers.
TOLERANCES = {"fp32": 1e-5, "fp16": 5e-3, "bf16": 2e-2}


def network() -> nn.Module:
    """Return the network of all cases: its weights come from one seed."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        # Dropout and batch norm tell whether it runs in eval mode.
        layers = [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5)]
        return nn.Sequential(*layers, nn.Flatten(), nn.Linear(4 * 36, 5)).train()


@cache
def exported(free_batch: bool, precision: str) -> bytes:
    model = onnx_from_module(network(), (2, 3, 8, 8), dynamic_batch=free_batch)
    return bytes(onnx_in_precision(model, precision).SerializeToString())


def onnxruntime_runner(
    _: nn.Module, free_batch: bool, device: Literal["cpu", "cuda"], precision: str
) -> Runner:
    model = exported(free_batch, precision)
    return OnnxRuntimeRunner(model, device=device, precision=precision)


def torch_runner(
    module: nn.Module, free_batch: bool, device: Literal["cpu", "cuda"], precision: str
) -> Runner:
    shape = (None if free_batch else 2, 3, 8, 8)
    return TorchRunner(module, shape, device=device, precision=precision)


def openvino_runner(_: nn.Module, free_batch: bool, precision: str) -> Runner:
    return OpenVinoRunner(exported(free_batch, "fp32"), precision=precision)


def no_torch_cuda() -> str:
    return "" if torch.cuda.is_available() else f"torch {torch.__version__} sees no GPU"


def no_onnxruntime_cuda() -> str:
    offered = ort.get_available_providers()
    if "CUDAExecutionProvider" not in offered:
        return f"ONNX Runtime offers {', '.join(offered)}"
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return "no NVIDIA driver is installed"
    return ""


def no_openvino() -> str:
    return "" if importlib.util.find_spec("openvino") else "OpenVINO is not installed"


def no_openvino_bf16() -> str:
    if no_openvino():
        return no_openvino()
    has = import_openvino().Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return "" if "BF16" in has else "this CPU has no bfloat16"


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """How to make a runner, and what to expect of it."""

    make: Callable[[nn.Module, bool], Runner]
    tolerance: float = TOLERANCES["fp32"]
    missing: Callable[[], str] = str  # why it cannot run here, if it cannot
    # The class and method that each call goes through; none where graphs are replayed.
    calls: Callable[[], tuple[type, str]] | None = None


CASES = {
    "onnxruntime-cpu": Case(
        make=partial(onnxruntime_runner, device="cpu", precision="fp32"),
        calls=lambda: (ort.InferenceSession, "run"),
    ),
    "onnxruntime-cpu-fp16": Case(
        make=partial(onnxruntime_runner, device="cpu", precision="fp16"),
        tolerance=TOLERANCES["fp16"],
        calls=lambda: (ort.InferenceSession, "run"),
    ),
    "torch-cpu": Case(
        make=partial(torch_runner, device="cpu", precision="fp32"),
        calls=lambda: (nn.Linear, "forward"),
    ),
    "torch-cpu-bf16": Case(
        make=partial(torch_runner, device="cpu", precision="bf16"),
        tolerance=TOLERANCES["bf16"],
        calls=lambda: (nn.Linear, "forward"),
    ),
    "openvino-cpu": Case(
        make=partial(openvino_runner, precision="fp32"),
        missing=no_openvino,
        calls=lambda: (import_openvino().InferRequest, "infer"),
    ),
    "openvino-cpu-bf16": Case(
        make=partial(openvino_runner, precision="bf16"),
        tolerance=TOLERANCES["bf16"],
        missing=no_openvino_bf16,
        calls=lambda: (import_openvino().InferRequest, "infer"),
    ),
}
GPU_CASES = {
    "onnxruntime-cuda": Case(
        make=partial(onnxruntime_runner, device="cuda", precision="fp32"),
        missing=no_onnxruntime_cuda,
        calls=lambda: (ort.InferenceSession, "run_with_iobinding"),
    ),
    "onnxruntime-cuda-fp16": Case(
        make=partial(onnxruntime_runner, device="cuda", precision="fp16"),
        tolerance=TOLERANCES["fp16"],
        missing=no_onnxruntime_cuda,
        calls=lambda: (ort.InferenceSession, "run_with_iobinding"),
    ),
    "torch-cuda": Case(
        make=partial(torch_runner, device="cuda", precision="fp32"), missing=no_torch_cuda
    ),
    "torch-cuda-fp16": Case(
        make=partial(torch_runner, device="cuda", precision="fp16"),
        tolerance=TOLERANCES["fp16"],
        missing=no_torch_cuda,
    ),
    "torch-cuda-bf16": Case(
        make=partial(torch_runner, device="cuda", precision="bf16"),
        tolerance=TOLERANCES["bf16"],
        missing=no_torch_cuda,
    ),
}


@pytest.fixture(params=[*CASES, *(pytest.param(name, marks=pytest.mark.gpu) for name in GPU_CASES)])
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def case(name: str) -> Case:
    case = (CASES | GPU_CASES)[name]
    if reason := case.missing():
        pytest.skip(reason)
    return case


@pytest.fixture
def module() -> nn.Module:
    return network()


@pytest.fixture
def images() -> Images:
    return np.random.default_rng(0).random((2, 3, 8, 8), dtype=np.float32)


def expected_of(module: nn.Module, images: Images) -> Images:
    mode = module.training
    with torch.no_grad():
        expected: Images = module.eval()(torch.from_numpy(images)).numpy()
    module.train(mode)
    return expected


def as_array(output: Any) -> Images:
    """Return what a bare call gave, whatever the runtime keeps it in."""
    if isinstance(output, torch.Tensor):
        output = output.float().cpu()
    elif not isinstance(output, ort.OrtValue):
        output = output[0]
    return np.asarray(output.numpy() if hasattr(output, "numpy") else output)


def test_outputs_are_the_modules_own_in_eval_mode(
    case: Case, module: nn.Module, images: Images
) -> None:
    expected = expected_of(module, images)
    with case.make(module, False) as runner:
        outputs = runner.infer(images)
        assert outputs.dtype == np.float32
        assert outputs.shape == (2, 5)
        np.testing.assert_allclose(outputs, expected, atol=case.tolerance)
        np.testing.assert_array_equal(runner.infer(images), outputs)
    assert module.training  # its own mode was left as it was


def test_the_bare_call_computes_what_infer_does(
    case: Case, module: nn.Module, images: Images
) -> None:
    with case.make(module, False) as runner:
        output = as_array(runner.call_on(images)())
        np.testing.assert_allclose(output, runner.infer(images), atol=case.tolerance)


def test_each_binding_keeps_its_own_input(case: Case, module: nn.Module, images: Images) -> None:
    with case.make(module, False) as runner:
        # Of copies that nobody else holds.
        call, other_call = runner.call_on(images.copy()), runner.call_on(images[::-1].copy())
        sampler = runner.sampler_on(images[::-1].copy())
        runner.infer(np.zeros_like(images))
        sampler(3)
        first = as_array(call()).copy()
        second = as_array(other_call()).copy()
    expected = expected_of(module, images)
    np.testing.assert_allclose(first, expected, atol=case.tolerance)
    np.testing.assert_allclose(second, expected[::-1], atol=case.tolerance)


def test_outputs_are_the_callers_to_keep(case: Case, module: nn.Module, images: Images) -> None:
    with case.make(module, False) as runner:
        first = runner.infer(images)
        kept = first.copy()
        runner.infer(np.zeros_like(images))
        np.testing.assert_array_equal(first, kept)


@pytest.mark.parametrize("free_batch", [False, True])
def test_a_sampler_makes_as_many_calls_as_asked(
    case: Case,
    module: nn.Module,
    images: Images,
    free_batch: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if case.calls is None:
        pytest.skip("a replayed graph passes no Python that could count it")
    made = 0
    owner, method = case.calls()
    original = getattr(owner, method)

    def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal made
        made += 1
        return original(*args, **kwargs)

    monkeypatch.setattr(owner, method, counted)
    with case.make(module, free_batch) as runner:
        sampler = runner.sampler_on(images)
        for calls in (1, 7):
            made = 0
            sampler(calls)
            assert made == calls


def test_a_sampler_tells_a_time_that_grows_with_the_calls(
    case: Case, module: nn.Module, images: Images
) -> None:
    with case.make(module, False) as runner:
        sampler = runner.sampler_on(images)
        one = min(sampler(1) for _ in range(3))
        many = min(sampler(300) for _ in range(3))
    assert 0 < one < many


def test_the_name_is_the_target(name: str, module: nn.Module) -> None:
    # Made, not activated: that touches no device.
    assert (CASES | GPU_CASES)[name].make(module, False).name == name


def test_a_free_batch_takes_any_other_is_fixed(
    case: Case, module: nn.Module, images: Images
) -> None:
    with case.make(module, True) as runner:
        assert runner.input_shape == (None, 3, 8, 8)
        whole = runner.infer(images)
        single = np.concatenate([runner.infer(image[None]) for image in images])
        np.testing.assert_allclose(single, whole, atol=case.tolerance)
        bound = as_array(runner.call_on(images[:1])())
        np.testing.assert_allclose(bound, whole[:1], atol=case.tolerance)
        assert runner.sampler_on(images[:1])(2) > 0
    with case.make(module, False) as runner:
        assert runner.input_shape == (2, 3, 8, 8)
        with pytest.raises(DataError, match="2x3x8x8, not float32 of shape 1x3x8x8"):
            runner.infer(images[:1])


@pytest.mark.parametrize(
    "wrong",
    [
        np.zeros((2, 3, 8), np.float32),
        np.zeros((2, 3, 8, 9), np.float32),
        np.zeros((2, 1, 8, 8), np.float32),
        np.zeros((2, 3, 8, 8), np.float64),
        np.zeros((2, 3, 8, 8), np.uint8),
    ],
    ids=lambda array: f"{array.dtype}-{'x'.join(map(str, array.shape))}",
)
def test_another_shape_or_type_is_refused(
    case: Case, module: nn.Module, wrong: np.ndarray[tuple[int, ...], np.dtype[np.float32]]
) -> None:
    with case.make(module, True) as runner:
        for use in (runner.infer, runner.call_on, runner.sampler_on):
            with pytest.raises(DataError, match="takes float32 of shape Nx3x8x8"):
                use(wrong)


def test_memory_laid_out_otherwise_is_read_right(
    case: Case, module: nn.Module, images: Images
) -> None:
    turned = np.ascontiguousarray(images.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    assert not turned.flags.c_contiguous
    with case.make(module, False) as runner:
        outputs, bound = runner.infer(turned), as_array(runner.call_on(turned)())
    expected = expected_of(module, images)
    np.testing.assert_allclose(outputs, expected, atol=case.tolerance)
    np.testing.assert_allclose(bound, expected, atol=case.tolerance)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_is_refused(
    case: Case, module: nn.Module, images: Images, value: float
) -> None:
    images[1, 2, 3, 4] = value
    with (
        case.make(module, False) as runner,
        pytest.raises(DataError, match="NaN or infinity"),
    ):
        runner.infer(images)


def test_it_runs_only_while_active(case: Case, module: nn.Module, images: Images) -> None:
    runner = case.make(module, False)
    uses: list[Callable[[], object]] = [
        lambda: runner.infer(images),
        lambda: runner.call_on(images),
        lambda: runner.sampler_on(images),
        lambda: runner.input_shape,
    ]
    runner.close()  # before it was active: nothing to give back
    for _ in range(2):
        for use in uses:
            with pytest.raises(RuntimeError, match="not active"):
                use()
        runner.activate()
        runner.activate()
        first = runner.infer(images)
        runner.close()
        runner.close()
    runner.activate()  # and may be active again
    np.testing.assert_array_equal(runner.infer(images), first)
    runner.close()


def test_it_is_closed_when_its_block_fails(case: Case, module: nn.Module, images: Images) -> None:
    runner = case.make(module, False)
    with pytest.raises(KeyboardInterrupt), runner:
        raise KeyboardInterrupt
    with pytest.raises(RuntimeError, match="not active"):
        runner.infer(images)


@pytest.mark.parametrize(
    ("make", "runtime"),
    [(OnnxRuntimeRunner, "ONNX Runtime"), (OpenVinoRunner, "OpenVINO")],
)
def test_junk_is_rejected_and_the_runner_stays_inactive(
    make: Callable[[bytes], Runner], runtime: str
) -> None:
    if make is OpenVinoRunner and no_openvino():
        pytest.skip(no_openvino())
    runner = make(b"junk")
    with pytest.raises(ExportError, match=f"{runtime} rejects the model"):
        runner.activate()
    with pytest.raises(RuntimeError, match="not active"):
        _ = runner.input_shape


def test_the_hosts_clock_is_read_around_all_calls() -> None:
    now, made = 1000, 0

    def call() -> None:
        nonlocal now, made
        now += 30
        made += 1

    assert host_sampler(call, clock=lambda: now)(4) == 120
    assert made == 4
