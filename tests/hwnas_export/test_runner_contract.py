"""Every runner keeps one contract: the same cases for all."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from hwnas.core.errors import DataError, ExportError
from hwnas_export.onnx_export import onnx_from_module
from hwnas_export.onnxruntime_runner import OnnxRuntimeRunner
from hwnas_export.runner import Runner
from hwnas_export.torch_runner import TorchRunner

MakeRunner = Callable[[nn.Module, bool], Runner]


def onnxruntime_runner(module: nn.Module, free_batch: bool) -> Runner:
    model = onnx_from_module(module, (2, 3, 8, 8), dynamic_batch=free_batch)
    return OnnxRuntimeRunner(model.SerializeToString(), threads=1)


def torch_runner(module: nn.Module, free_batch: bool) -> Runner:
    return TorchRunner(module, (None if free_batch else 2, 3, 8, 8))


RUNNERS: dict[str, MakeRunner] = {
    "onnxruntime-cpu": onnxruntime_runner,
    "torch-cpu": torch_runner,
}


@pytest.fixture(params=RUNNERS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def module() -> nn.Module:
    torch.manual_seed(0)
    # Dropout and batch norm tell whether it runs in eval mode.
    layers = [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(4 * 36, 5)).train()


@pytest.fixture
def images() -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    return np.random.default_rng(0).random((2, 3, 8, 8), dtype=np.float32)


Images = np.ndarray[tuple[int, ...], np.dtype[np.float32]]


def test_outputs_are_the_modules_own_in_eval_mode(
    name: str, module: nn.Module, images: Images
) -> None:
    with torch.no_grad():
        expected = module.eval()(torch.from_numpy(images)).numpy()
    module.train()
    with RUNNERS[name](module, False) as runner:
        outputs = runner.infer(images)
        assert outputs.dtype == np.float32
        assert outputs.shape == (2, 5)
        np.testing.assert_allclose(outputs, expected, atol=1e-5)
        np.testing.assert_array_equal(runner.infer(images), outputs)
    assert module.training  # its own mode was left as it was


def test_the_bare_call_computes_what_infer_does(
    name: str, module: nn.Module, images: Images
) -> None:
    with RUNNERS[name](module, False) as runner:
        output = runner.call_on(images)()
        array = output[0] if isinstance(output, list) else output
        np.testing.assert_array_equal(np.asarray(array), runner.infer(images))


def test_the_name_is_the_target(name: str, module: nn.Module) -> None:
    assert RUNNERS[name](module, False).name == name


def test_a_free_batch_takes_any_other_is_fixed(
    name: str, module: nn.Module, images: Images
) -> None:
    with RUNNERS[name](module, True) as runner:
        assert runner.input_shape == (None, 3, 8, 8)
        whole = runner.infer(images)
        single = np.concatenate([runner.infer(image[None]) for image in images])
        np.testing.assert_allclose(single, whole, atol=1e-5)
    with RUNNERS[name](module, False) as runner:
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
    name: str, module: nn.Module, wrong: np.ndarray[tuple[int, ...], np.dtype[np.float32]]
) -> None:
    with RUNNERS[name](module, True) as runner:
        for use in (runner.infer, runner.call_on):
            with pytest.raises(DataError, match="takes float32 of shape Nx3x8x8"):
                use(wrong)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_is_refused(
    name: str, module: nn.Module, images: Images, value: float
) -> None:
    images[1, 2, 3, 4] = value
    with (
        RUNNERS[name](module, False) as runner,
        pytest.raises(DataError, match="NaN or infinity"),
    ):
        runner.infer(images)


def test_it_runs_only_while_active(name: str, module: nn.Module, images: Images) -> None:
    runner = RUNNERS[name](module, False)
    uses: list[Callable[[], object]] = [
        lambda: runner.infer(images),
        lambda: runner.call_on(images),
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


def test_it_is_closed_when_its_block_fails(name: str, module: nn.Module, images: Images) -> None:
    runner = RUNNERS[name](module, False)
    with pytest.raises(KeyboardInterrupt), runner:
        raise KeyboardInterrupt
    with pytest.raises(RuntimeError, match="not active"):
        runner.infer(images)


def test_onnxruntime_rejects_junk_without_becoming_active() -> None:
    runner = OnnxRuntimeRunner(b"junk")
    with pytest.raises(ExportError, match="ONNX Runtime rejects the model"):
        runner.activate()
    with pytest.raises(RuntimeError, match="not active"):
        _ = runner.input_shape
